//! The protocol's transactions on PostgreSQL from the ring's lock to a batch's payloads, and the reads
//! of an idle node. How key uses end stands in `endings.rs`.
//!
//! Lock order, everywhere: `key_uses` by fence, then the ring's row, then batches and keys. Who
//! holds the ring's row first locks `key_uses` only with SKIP LOCKED.

use diesel::pg::PgConnection;
use diesel::sql_types::{Array, BigInt};
use diesel::{QueryResult, RunQueryDsl, sql_query};

use super::endings::expect_rows;
use super::{CURRENT_XID, PgStore, int, ring_bind};
use crate::db::models::{
    BatchRow, EdgeRow, FlagRow, PayloadRow, RangeRow, RecordRow, RingRow, ranges,
};
use crate::db::shared::{self, Bind, LARGE_BATCH, Session, TxResult};
use crate::db::{Batch, CheckOut, CheckedOut, Ring, Shortage};
use crate::failpoint::pass;
use crate::types::{BatchRange, Fence, KeyId, Position, Record, RecordId, RingId, Tick};

/// The ring's row, locked. Always a statement of its own: what follows must see every commit
/// before it.
pub(super) fn lock_ring(store: &PgStore, c: &mut PgConnection, ring: RingId) -> TxResult<Ring> {
    let query = format!("SELECT {} FROM rings WHERE id = $1 FOR NO KEY UPDATE", RingRow::COLUMNS);
    let ring = Ring::try_from(c.prepared_row::<RingRow>(&query, &ring_bind(ring))?)?;
    store.seen.check(ring.id, ring.tick)?;
    Ok(ring)
}

pub(super) fn microseconds(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

// Check out

pub(super) fn check_out(
    store: &PgStore,
    c: &mut PgConnection,
    request: &CheckOut,
) -> TxResult<(CheckedOut, Tick)> {
    let ring = lock_ring(store, c, request.ring)?;
    pass("check_out", "ring_locked")?;
    if ring.paused {
        return Ok((
            CheckedOut { shortage: Some(Shortage::Paused), ..Default::default() },
            ring.tick,
        ));
    }
    let (keys, retried) = shared::free_keys_and_retries(c, ring.id, request.max_batches)?;
    pass("check_out", "keys_chosen")?;
    if !retried.is_empty() {
        let ids: Vec<i64> = retried.iter().map(|batch| batch.id.0).collect();
        let open = "UPDATE batches SET state = 'open' WHERE id = ANY($1)";
        let opened = c.run_prepared(open, &[Bind::Ints(&ids)])?;
        expect_rows("batches", ids.len(), opened)?;
        pass("check_out", "retries_opened")?;
    }
    let fresh = next_ranges(c, &ring, keys.len() - retried.len(), request.batch_size.records())?;
    pass("check_out", "ranges_chosen")?;
    let mut tick = ring.tick;
    let mut claimed = Vec::new();
    if !(retried.is_empty() && fresh.is_empty()) {
        let batches = claim(store, c, &ring, retried, &fresh, &keys)?;
        claimed.extend(batches.iter().zip(&keys).map(|(batch, key)| {
            tick = tick.next();
            batch.claimed(Fence(tick), KeyId(*key))
        }));
        pass("check_out", "cursor_moved")?;
    }
    let shortage = shared::shortage(c, request, keys.len(), claimed.len())?;
    Ok((CheckedOut { batches: claimed, shortage }, tick))
}

/// The ranges of up to `batches` new batches behind the ring's cursor.
///
/// Only records of transactions older than every one still running: what commits later lies
/// behind them, and no range ever changes.
fn next_ranges(
    c: &mut PgConnection,
    ring: &Ring,
    batches: usize,
    batch_size: u32,
) -> TxResult<Vec<BatchRange>> {
    let mut ranges = Vec::new();
    if batch_size >= LARGE_BATCH && batches > 0 {
        ranges = full_ranges(c, ring, batches, batch_size)?;
    }
    let left = batches - ranges.len();
    if left > 0 {
        let cursor = ranges.last().map_or(ring.cursor, |range| range.high);
        ranges.extend(counted_ranges(c, ring.id, cursor, left, batch_size)?);
    }
    Ok(ranges)
}

/// Those of them that have `batch_size` records: each is two records that are looked up by index, without
/// a look at what lies between them.
fn full_ranges(
    c: &mut PgConnection,
    ring: &Ring,
    batches: usize,
    batch_size: u32,
) -> TxResult<Vec<BatchRange>> {
    let query = "
        WITH RECURSIVE full_batch (n, low_xid, low_id, high_xid, high_id) AS (
            SELECT 0::BIGINT, $1::BIGINT, $2::BIGINT, $1, $2
            UNION ALL
            SELECT b.n + 1, low.inserted_xid, low.id, high.inserted_xid, high.id
            FROM full_batch b
            CROSS JOIN LATERAL (
                SELECT inserted_xid, id FROM records
                WHERE ring_id = $3 AND (inserted_xid, id) > (b.high_xid, b.high_id)
                ORDER BY inserted_xid, id LIMIT 1) low
            CROSS JOIN LATERAL (
                SELECT inserted_xid, id FROM records
                WHERE ring_id = $3 AND (inserted_xid, id) > (b.high_xid, b.high_id)
                  AND inserted_xid < pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                                     + chancery_xid_offset()
                ORDER BY inserted_xid, id LIMIT 1 OFFSET $4 - 1) high
            WHERE b.n < $5)
        SELECT low_xid, low_id, high_xid, high_id FROM full_batch WHERE n > 0 ORDER BY n";
    let rows = c.prepared_rows::<RangeRow>(
        query,
        &[
            Bind::Int(ring.cursor.xid),
            Bind::Int(ring.cursor.id.0),
            Bind::Int(ring.id.0),
            Bind::Int(batch_size.into()),
            Bind::Int(int(batches)),
        ],
    )?;
    Ok(rows.into_iter().map(|row| row.range(batch_size)).collect())
}

/// Those of any size, by looking at each record behind `cursor`.
fn counted_ranges(
    c: &mut PgConnection,
    ring: RingId,
    cursor: Position,
    batches: usize,
    batch_size: u32,
) -> TxResult<Vec<BatchRange>> {
    let query = "
        WITH next AS MATERIALIZED (
            SELECT row_number() OVER (ORDER BY inserted_xid, id) - 1 AS n, inserted_xid, id
            FROM (SELECT inserted_xid, id FROM records
                  WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3)
                    AND inserted_xid < pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                                       + chancery_xid_offset()
                  ORDER BY inserted_xid, id LIMIT $4) behind)
        SELECT n, inserted_xid, id FROM next
        WHERE n % $5 IN (0, $5 - 1) OR n = (SELECT max(n) FROM next) ORDER BY n";
    let size = i64::from(batch_size);
    let edges = c.prepared_rows::<EdgeRow>(
        query,
        &[
            Bind::Int(ring.0),
            Bind::Int(cursor.xid),
            Bind::Int(cursor.id.0),
            Bind::Int(int(batches).saturating_mul(size)),
            Bind::Int(size),
        ],
    )?;
    Ok(ranges(&edges, size)?)
}

/// Makes batches of the ranges in `fresh`, opens a use of one of `keys` for each batch, those `retried`
/// first, one tick each, and moves the cursor behind the last; the batches in the order of their uses.
///
/// One statement: each round trip lengthens the time for which all nodes wait for the ring's lock.
fn claim(
    store: &PgStore,
    c: &mut PgConnection,
    ring: &Ring,
    mut retried: Vec<Batch>,
    fresh: &[BatchRange],
    keys: &[i64],
) -> TxResult<Vec<Batch>> {
    let column = |value: fn(&BatchRange) -> i64| fresh.iter().map(value).collect::<Vec<i64>>();
    let ids: Vec<i64> = retried.iter().map(|batch| batch.id.0).collect();
    let cursor = fresh.last().map_or(ring.cursor, |range| range.high);
    let tick = ring.tick.0 + int(retried.len() + fresh.len());
    let statement = format!(
        "WITH made AS (
            INSERT INTO batches (ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
            SELECT $1, r.*, 'open' FROM unnest($2, $3, $4, $5, $6) r RETURNING {columns}
         ), claimed AS (
            SELECT n, batch FROM unnest($7) WITH ORDINALITY r(batch, n)
            UNION ALL
            SELECT cardinality($7) + row_number() OVER (ORDER BY low_xid, low_id), id FROM made
         ), opened AS (
            INSERT INTO key_uses (ring_id, node, expires_at, fence, batch_id, key_id)
            SELECT $1, $8, clock_timestamp() + $9 * INTERVAL '1 microsecond', $10 + n, batch, ($11)[n]
            FROM claimed
         ), moved AS (
            UPDATE rings SET tick = $12, cursor_xid = $13, cursor_id = $14 WHERE id = $1
         )
         SELECT {columns} FROM made",
        columns = BatchRow::COLUMNS
    );
    let rows = c.prepared_rows::<BatchRow>(
        &statement,
        &[
            Bind::Int(ring.id.0),
            Bind::Ints(&column(|range| range.low.xid)),
            Bind::Ints(&column(|range| range.low.id.0)),
            Bind::Ints(&column(|range| range.high.xid)),
            Bind::Ints(&column(|range| range.high.id.0)),
            Bind::Ints(&column(|range| range.record_count.into())),
            Bind::Ints(&ids),
            Bind::Text(&store.node.0),
            Bind::Int(microseconds(store.lease)),
            Bind::Int(ring.tick.0),
            Bind::Ints(keys),
            Bind::Int(tick),
            Bind::Int(cursor.xid),
            Bind::Int(cursor.id.0),
        ],
    )?;
    expect_rows("batches", fresh.len(), rows.len())?;
    let mut made = rows.into_iter().map(Batch::try_from).collect::<Result<Vec<_>, _>>()?;
    made.sort_by_key(|batch| batch.range.low);
    retried.append(&mut made);
    Ok(retried)
}

// Load

pub(super) fn load_batch(
    c: &mut PgConnection,
    ring: RingId,
    range: &BatchRange,
    after: Option<Position>,
    max_bytes: usize,
) -> TxResult<Vec<Record>> {
    pass("load", "begun")?;
    let low = Position { xid: range.low.xid, id: RecordId(range.low.id.0 - 1) };
    let begin = after.unwrap_or(low);
    let bounds = |sixth: i64, seventh: i64| {
        [
            Bind::Int(ring.0),
            Bind::Int(begin.xid),
            Bind::Int(begin.id.0),
            Bind::Int(range.high.xid),
            Bind::Int(range.high.id.0),
            Bind::Int(sixth),
            Bind::Int(seventh),
        ]
    };
    // Without its limit a scan would go on behind the range to the end of the last transaction's
    // records: a comparison of rows ends it only by its first column.
    let limit = i64::from(range.record_count);
    let mut records = Vec::new();
    // If no record is larger than its part of the bound all of them fit. They nearly always do, and then
    // one plain scan reads them. octet_length reads no payload that is stored out of line.
    if after.is_none() {
        let each = int(max_bytes) / limit.max(1);
        if range.low.xid == range.high.xid {
            // To compare numbers takes half the time of a comparison of rows.
            let all = "
                SELECT id, payload FROM records
                WHERE ring_id = $1 AND inserted_xid = $2 AND id >= $3 AND id <= $4
                  AND octet_length(payload) <= $5
                ORDER BY inserted_xid, id LIMIT $6";
            let (low, high) = (range.low, range.high);
            let bounds = [ring.0, low.xid, low.id.0, high.id.0, each, limit].map(Bind::Int);
            let rows = c.prepared_rows::<PayloadRow>(all, &bounds)?;
            records = rows.into_iter().map(|row| row.of_transaction(low.xid)).collect();
        } else {
            let all = "
                SELECT inserted_xid, id, payload FROM records
                WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3) AND (inserted_xid, id) <= ($4, $5)
                  AND octet_length(payload) <= $6
                ORDER BY inserted_xid, id LIMIT $7";
            records = self::records(c, all, &bounds(each, limit))?;
        }
    }
    if records.len() < range.record_count as usize {
        let first = "
            SELECT inserted_xid, id, payload
            FROM (SELECT inserted_xid, id, payload, row_number() OVER through AS n,
                         sum(octet_length(payload)) OVER through AS bytes
                  FROM (SELECT inserted_xid, id, payload FROM records
                        WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3)
                          AND (inserted_xid, id) <= ($4, $5)
                        ORDER BY inserted_xid, id LIMIT $6) r
                  WINDOW through AS (ORDER BY inserted_xid, id ROWS UNBOUNDED PRECEDING)) r
            WHERE bytes <= $7 OR n = 1 ORDER BY inserted_xid, id";
        records = self::records(c, first, &bounds(limit, int(max_bytes)))?;
    }
    pass("load", "read")?;
    Ok(records)
}

fn records(c: &mut PgConnection, query: &str, binds: &[Bind<'_>]) -> QueryResult<Vec<Record>> {
    let rows = c.prepared_rows::<RecordRow>(query, binds)?;
    Ok(rows.into_iter().map(Record::from).collect())
}

// Sweep, idle

/// Gives strays the current transaction's place, unless they have been signed meanwhile.
pub(super) fn sweep(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    strays: &[Position],
) -> TxResult<u64> {
    let ring = lock_ring(store, c, ring)?;
    pass("sweep", "ring_locked")?;
    let swept = sql_query(format!(
        "UPDATE records r SET inserted_xid = {CURRENT_XID}
         WHERE r.ring_id = $1 AND r.id = ANY($2) AND (r.inserted_xid, r.id) <= ($3, $4)
           AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.record_id = r.id)
           AND NOT EXISTS (SELECT 1 FROM batches b
                           WHERE b.ring_id = $1 AND b.state <> 'stored'
                             AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
                             AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id))"
    ))
    .bind::<BigInt, _>(ring.id.0)
    .bind::<Array<BigInt>, _>(strays.iter().map(|stray| stray.id.0).collect::<Vec<_>>())
    .bind::<BigInt, _>(ring.cursor.xid)
    .bind::<BigInt, _>(ring.cursor.id.0)
    .execute(c)?;
    pass("sweep", "moved")?;
    Ok(swept as u64)
}

/// Whether a checkout would find a batch, and the ring's tick.
pub(super) fn has_work(c: &mut PgConnection, ring: RingId) -> QueryResult<(bool, Tick)> {
    let query = "
        SELECT CASE WHEN NOT g.paused AND (
            EXISTS (SELECT 1 FROM batches WHERE ring_id = $1 AND state = 'retry')
            OR EXISTS (SELECT 1 FROM records r
                       WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) > (g.cursor_xid, g.cursor_id)
                         AND r.inserted_xid < pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                                              + chancery_xid_offset()))
            THEN g.tick ELSE -g.tick - 1 END AS value
        FROM rings g WHERE g.id = $1";
    Ok(flag_and_tick(c.prepared_number(query, &ring_bind(ring))?))
}

/// Whether a use has expired, and the ring's tick; takes no lock.
pub(super) fn has_expired(c: &mut PgConnection, ring: RingId) -> QueryResult<(bool, Tick)> {
    let query = "
        SELECT CASE WHEN EXISTS (SELECT 1 FROM key_uses
                                 WHERE ring_id = $1 AND end_tick IS NULL
                                   AND expires_at < clock_timestamp())
            THEN g.tick ELSE -g.tick - 1 END AS value
        FROM rings g WHERE g.id = $1";
    Ok(flag_and_tick(c.number(query, &ring_bind(ring))?))
}

/// A truth and a tick in one number: the tick where it is true, its complement where it is not.
fn flag_and_tick(value: i64) -> (bool, Tick) {
    if value >= 0 { (true, Tick(value)) } else { (false, Tick(-value - 1)) }
}

pub(super) fn is_standby(c: &mut PgConnection) -> QueryResult<bool> {
    Ok(c.row::<FlagRow>("SELECT pg_is_in_recovery() AS value", &[])?.value)
}
