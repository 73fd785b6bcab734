//! The protocol's transactions on PostgreSQL, in the order of a batch's life.
//!
//! Lock order, everywhere: `key_uses` by fence, then the ring's row, then batches and keys. Who
//! holds the ring's row first locks `key_uses` only with SKIP LOCKED.

use std::collections::HashMap;

use diesel::data_types::PgInterval;
use diesel::pg::{CopyFormat, PgConnection};
use diesel::sql_types::{Array, BigInt, Interval, Text};
use diesel::{ExecuteCopyFromDsl, QueryResult, RunQueryDsl, sql_query};

use super::{CURRENT_XID, PgStore, int, ring_bind};
use crate::db::models::{
    BatchRow, EdgeRow, NumberRow, PositionRow, RecordRow, RingRow, UseRow, ranges,
};
use crate::db::shared::{self, Bind, Session, TxResult};
use crate::db::{
    CheckOut, CheckedOut, GiveUp, KeyUse, ReclaimScope, Reclaimed, Refusal, Ring, SignedBatch,
    StoreError, StoreOutcome, schema,
};
use crate::types::{BatchRange, Fence, KeyId, NodeId, Outcome, Position, Record, RingId, Tick};

/// The ring's row, locked. Always a statement of its own: what follows must see every commit
/// before it.
pub(super) fn lock_ring(store: &PgStore, c: &mut PgConnection, ring: RingId) -> TxResult<Ring> {
    let query = "SELECT id, name, tick, cursor_xid, cursor_id FROM rings
                 WHERE id = $1 FOR NO KEY UPDATE";
    let ring = Ring::from(c.row::<RingRow>(query, &ring_bind(ring))?);
    store.seen.check(ring.id, ring.tick)?;
    Ok(ring)
}

/// Adds `events` ticks to the ring, which locks its row; the tick before the first of them.
fn take_ticks(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    events: usize,
) -> TxResult<Tick> {
    let statement = "UPDATE rings SET tick = tick + $1 WHERE id = $2 RETURNING tick AS value";
    let after = c.number(statement, &[Bind::Int(int(events)), Bind::Int(ring.0)])?;
    let before = Tick(after - int(events));
    store.seen.check(ring, before)?;
    Ok(before)
}

fn milliseconds(duration: std::time::Duration) -> PgInterval {
    PgInterval::from_microseconds(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

// Check out

pub(super) fn check_out(
    store: &PgStore,
    c: &mut PgConnection,
    request: &CheckOut,
) -> TxResult<(CheckedOut, Tick)> {
    let ring = lock_ring(store, c, request.ring)?;
    let keys = shared::free_keys(c, ring.id, request.max_batches)?;
    let mut batches = shared::retry_batches(c, ring.id, keys.len())?;
    let retried: Vec<i64> = batches.iter().map(|batch| batch.id.0).collect();
    let fresh = next_ranges(c, &ring, keys.len() - retried.len(), request.batch_size.records())?;
    let cursor = fresh.last().map_or(ring.cursor, |range| range.high);
    batches.extend(insert_batches(c, ring.id, &fresh)?);

    let claimed: Vec<_> = batches
        .iter()
        .zip(&keys)
        .scan(ring.tick, |tick, (batch, key)| {
            *tick = tick.next();
            Some(batch.claimed(Fence(*tick), KeyId(*key)))
        })
        .collect();
    if !retried.is_empty() {
        sql_query("UPDATE batches SET state = 'open' WHERE id = ANY($1)")
            .bind::<Array<BigInt>, _>(&retried)
            .execute(c)?;
    }
    let tick = Tick(ring.tick.0 + int(claimed.len()));
    if !claimed.is_empty() {
        open_uses(store, c, ring.id, claimed.iter().map(|batch| batch.key_use))?;
        c.run(
            "UPDATE rings SET tick = $1, cursor_xid = $2, cursor_id = $3 WHERE id = $4",
            &[
                Bind::Int(tick.0),
                Bind::Int(cursor.xid),
                Bind::Int(cursor.id.0),
                Bind::Int(ring.id.0),
            ],
        )?;
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
    if batches == 0 {
        return Ok(Vec::new());
    }
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
    let edges = c.rows::<EdgeRow>(
        query,
        &[
            Bind::Int(ring.id.0),
            Bind::Int(ring.cursor.xid),
            Bind::Int(ring.cursor.id.0),
            Bind::Int(int(batches).saturating_mul(size)),
            Bind::Int(size),
        ],
    )?;
    Ok(ranges(&edges, size)?)
}

fn insert_batches(
    c: &mut PgConnection,
    ring: RingId,
    ranges: &[BatchRange],
) -> TxResult<Vec<crate::db::Batch>> {
    if ranges.is_empty() {
        return Ok(Vec::new());
    }
    let column = |value: fn(&BatchRange) -> i64| ranges.iter().map(value).collect::<Vec<i64>>();
    let statement = format!(
        "INSERT INTO batches (ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
         SELECT $1, r.*, 'open' FROM unnest($2, $3, $4, $5, $6) r RETURNING {}",
        BatchRow::COLUMNS
    );
    let rows: Vec<BatchRow> = sql_query(statement)
        .bind::<BigInt, _>(ring.0)
        .bind::<Array<BigInt>, _>(column(|range| range.low.xid))
        .bind::<Array<BigInt>, _>(column(|range| range.low.id.0))
        .bind::<Array<BigInt>, _>(column(|range| range.high.xid))
        .bind::<Array<BigInt>, _>(column(|range| range.high.id.0))
        .bind::<Array<BigInt>, _>(column(|range| range.record_count.into()))
        .load(c)?;
    let mut batches =
        rows.into_iter().map(crate::db::Batch::try_from).collect::<Result<Vec<_>, _>>()?;
    batches.sort_by_key(|batch| batch.range.low);
    Ok(batches)
}

fn open_uses(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: impl Iterator<Item = KeyUse> + Clone,
) -> QueryResult<()> {
    sql_query(
        "INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         SELECT $1, u.*, $5, clock_timestamp() + $6 FROM unnest($2, $3, $4) u",
    )
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(uses.clone().map(|u| u.fence.0.0).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(uses.clone().map(|u| u.batch.0).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(uses.map(|u| u.key.0).collect::<Vec<_>>())
    .bind::<Text, _>(&store.node.0)
    .bind::<Interval, _>(milliseconds(store.lease))
    .execute(c)?;
    Ok(())
}

// Load

pub(super) fn load_batch(
    c: &mut PgConnection,
    ring: RingId,
    range: &BatchRange,
    after: Option<Position>,
    max_bytes: usize,
) -> QueryResult<Vec<Record>> {
    // octet_length reads no payload that is stored out of line.
    let query = "
        SELECT inserted_xid, id, payload
        FROM (SELECT inserted_xid, id, payload, sum(octet_length(payload)) OVER through AS bytes,
                     row_number() OVER through AS n
              FROM records
              WHERE ring_id = $1 AND (inserted_xid, id) >= ($2, $3)
                AND (inserted_xid, id) <= ($4, $5) AND (inserted_xid, id) > ($6, $7)
              WINDOW through AS (ORDER BY inserted_xid, id ROWS UNBOUNDED PRECEDING)) r
        WHERE bytes <= $8 OR n = 1 ORDER BY inserted_xid, id";
    let after = after.unwrap_or(Position { xid: i64::MIN, id: crate::types::RecordId(i64::MIN) });
    let rows = c.rows::<RecordRow>(
        query,
        &[
            Bind::Int(ring.0),
            Bind::Int(range.low.xid),
            Bind::Int(range.low.id.0),
            Bind::Int(range.high.xid),
            Bind::Int(range.high.id.0),
            Bind::Int(after.xid),
            Bind::Int(after.id.0),
            Bind::Int(int(max_bytes)),
        ],
    )?;
    Ok(rows.into_iter().map(Record::from).collect())
}

// Store

pub(super) fn store_batches(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    batches: &[SignedBatch],
) -> TxResult<(Vec<StoreOutcome>, Option<Tick>)> {
    let uses: Vec<KeyUse> = batches.iter().map(|batch| batch.key_use).collect();
    let standings = lock_uses(store, c, ring, &uses)?;
    let held: Vec<&SignedBatch> =
        batches.iter().zip(&standings).filter(|(_, s)| s.is_none()).map(|(b, _)| b).collect();
    let outcomes = standings
        .iter()
        .map(|standing| match standing {
            None => StoreOutcome::Stored,
            Some(Outcome::Stored) => StoreOutcome::AlreadyStored,
            Some(other) => StoreOutcome::Fenced(*other),
        })
        .collect();
    if held.is_empty() {
        return Ok((outcomes, None));
    }

    check_counts(c, &held)?;
    copy_signatures(c, &held)?;
    let held: Vec<KeyUse> = held.iter().map(|batch| batch.key_use).collect();
    let last = close_uses(store, c, ring, &held, Outcome::Stored)?;
    let changed = sql_query(
        "UPDATE batches SET state = 'stored', stored_at = clock_timestamp() WHERE id = ANY($1)",
    )
    .bind::<Array<BigInt>, _>(held.iter().map(|u| u.batch.0).collect::<Vec<_>>())
    .execute(c)?;
    expect_rows("batches", held.len(), changed)?;
    Ok((outcomes, Some(last)))
}

/// Locks those of `uses` that are this node's and open, in order of fence. For each use: `None` if
/// it is held now, else how it ended.
fn lock_uses(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: &[KeyUse],
) -> TxResult<Vec<Option<Outcome>>> {
    let fences: Vec<i64> = uses.iter().map(|u| u.fence.0.0).collect();
    let columns = shared::use_columns::<PgConnection>();
    let locked: Vec<UseRow> = sql_query(format!(
        "SELECT {columns} FROM key_uses
         WHERE ring_id = $1 AND fence = ANY($2) AND node = $3 AND end_tick IS NULL
         ORDER BY fence FOR UPDATE"
    ))
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(&fences)
    .bind::<Text, _>(&store.node.0)
    .load(c)?;
    let held: Vec<KeyUse> = locked.iter().map(UseRow::key_use).collect();
    if uses.iter().all(|u| held.contains(u)) {
        return Ok(vec![None; uses.len()]);
    }
    let found: Vec<UseRow> = sql_query(format!(
        "SELECT {columns} FROM key_uses WHERE ring_id = $1 AND fence = ANY($2) AND node = $3"
    ))
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(&fences)
    .bind::<Text, _>(&store.node.0)
    .load(c)?;
    let mut ended = HashMap::new();
    for row in &found {
        ended.insert(row.key_use(), row.outcome()?);
    }
    Ok(uses
        .iter()
        .map(|u| match ended.get(u) {
            _ if held.contains(u) => None,
            // A use that is nowhere was rolled back with the state it belonged to.
            None | Some(None) => Some(Outcome::Reclaimed),
            Some(Some(outcome)) => Some(*outcome),
        })
        .collect())
}

fn check_counts(c: &mut PgConnection, held: &[&SignedBatch]) -> TxResult<()> {
    let rows: Vec<BatchRow> =
        sql_query(format!("SELECT {} FROM batches WHERE id = ANY($1)", BatchRow::COLUMNS))
            .bind::<Array<BigInt>, _>(held.iter().map(|b| b.key_use.batch.0).collect::<Vec<_>>())
            .load(c)?;
    let mut expected = HashMap::new();
    for row in rows {
        let batch = crate::db::Batch::try_from(row)?;
        expected.insert(batch.id, u64::from(batch.range.record_count));
    }
    for batch in held {
        let expected = expected.get(&batch.key_use.batch).copied().unwrap_or(0);
        let found = batch.signatures.len() as u64;
        if expected != found {
            return Err(StoreError::Refused(Refusal::Count { expected, found }).into());
        }
    }
    Ok(())
}

/// COPY in the binary format (PostgreSQL's documentation of COPY, "Binary Format").
fn copy_signatures(c: &mut PgConnection, held: &[&SignedBatch]) -> TxResult<()> {
    let rows: usize = held.iter().map(|batch| batch.signatures.len()).sum();
    let mut data = Vec::with_capacity(21 + rows * 94);
    data.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for batch in held {
        for (record, signature) in &batch.signatures {
            data.extend_from_slice(&3_i16.to_be_bytes());
            for id in [record.0, batch.key_use.batch.0] {
                data.extend_from_slice(&8_i32.to_be_bytes());
                data.extend_from_slice(&id.to_be_bytes());
            }
            data.extend_from_slice(&64_i32.to_be_bytes());
            data.extend_from_slice(&signature.0);
        }
    }
    data.extend_from_slice(&(-1_i16).to_be_bytes());
    let copied = diesel::copy_from(schema::signatures::table)
        .from_raw_data(schema::signatures::table, |out| {
            out.write_all(&data)
                .map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
        })
        .with_format(CopyFormat::Binary)
        .execute(c)?;
    expect_rows("signatures", rows, copied)
}

/// Takes the ring's lock and ends `uses`, one tick each in their order; the last tick.
fn close_uses(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: &[KeyUse],
    outcome: Outcome,
) -> TxResult<Tick> {
    let before = take_ticks(store, c, ring, uses.len())?;
    let ticks: Vec<i64> = (1..=int(uses.len())).map(|n| before.0 + n).collect();
    let closed = sql_query(
        "UPDATE key_uses u SET end_tick = v.tick, ended_at = clock_timestamp(), outcome = $4
         FROM unnest($2, $3) AS v(fence, tick) WHERE u.ring_id = $1 AND u.fence = v.fence",
    )
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(uses.iter().map(|u| u.fence.0.0).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(&ticks)
    .bind::<Text, _>(outcome.as_str())
    .execute(c)?;
    expect_rows("key_uses", uses.len(), closed)?;
    sql_query(
        "UPDATE keys k SET last_tick = v.tick
         FROM (SELECT key_id, max(tick) AS tick FROM unnest($1, $2) AS u(key_id, tick)
               GROUP BY key_id) v WHERE k.id = v.key_id",
    )
    .bind::<Array<BigInt>, _>(uses.iter().map(|u| u.key.0).collect::<Vec<_>>())
    .bind::<Array<BigInt>, _>(&ticks)
    .execute(c)?;
    Ok(Tick(before.0 + int(uses.len())))
}

fn expect_rows(table: &str, expected: usize, found: usize) -> TxResult<()> {
    if expected == found {
        Ok(())
    } else {
        let message = format!("{found} rows of {table} changed where {expected} were expected");
        Err(StoreError::Database(message).into())
    }
}

// Renew, give up, reclaim

pub(super) fn renew(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    fences: &[Fence],
) -> QueryResult<Vec<Fence>> {
    let rows: Vec<NumberRow> = sql_query(
        "WITH held AS (SELECT fence FROM key_uses
                       WHERE ring_id = $1 AND fence = ANY($2) AND node = $3 AND end_tick IS NULL
                       ORDER BY fence FOR UPDATE SKIP LOCKED)
         UPDATE key_uses u SET expires_at = clock_timestamp() + $4
         FROM held WHERE u.ring_id = $1 AND u.fence = held.fence RETURNING u.fence AS value",
    )
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(fences.iter().map(|fence| fence.0.0).collect::<Vec<_>>())
    .bind::<Text, _>(&store.node.0)
    .bind::<Interval, _>(milliseconds(store.lease))
    .load(c)?;
    Ok(rows.into_iter().map(|row| Fence(Tick(row.value))).collect())
}

pub(super) fn give_up(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: &[GiveUp],
) -> TxResult<(Vec<Outcome>, Option<Tick>)> {
    let all: Vec<KeyUse> = uses.iter().map(|u| u.key_use).collect();
    let standings = lock_uses(store, c, ring, &all)?;
    let held: Vec<&GiveUp> =
        uses.iter().zip(&standings).filter(|(_, s)| s.is_none()).map(|(u, _)| u).collect();
    let outcomes = standings.iter().map(|s| s.unwrap_or(Outcome::Abandoned)).collect();
    if held.is_empty() {
        return Ok((outcomes, None));
    }
    let held_uses: Vec<KeyUse> = held.iter().map(|u| u.key_use).collect();
    let last = close_uses(store, c, ring, &held_uses, Outcome::Abandoned)?;
    for given_up in held {
        fail_batch(store, c, given_up.key_use, given_up.failure.as_deref())?;
    }
    Ok((outcomes, Some(last)))
}

/// Sends a batch back to `retry`, or to quarantine if this was its last attempt; whether it was.
fn fail_batch(
    store: &PgStore,
    c: &mut PgConnection,
    key_use: KeyUse,
    failure: Option<&str>,
) -> TxResult<bool> {
    let own = i64::from(failure.is_some());
    let statement = "
        UPDATE batches SET attempts = attempts + $1, failure = coalesce($2, failure),
               state = CASE WHEN $1 = 1 AND attempts + 1 >= $3 THEN 'quarantined' ELSE 'retry' END
        WHERE id = $4
        RETURNING CASE WHEN state = 'quarantined' THEN 1::BIGINT ELSE 0 END AS value";
    let binds = [
        Bind::Int(own),
        Bind::OptionalText(failure),
        Bind::Int(store.max_attempts.into()),
        Bind::Int(key_use.batch.0),
    ];
    Ok(c.number(statement, &binds)? == 1)
}

/// Ends the sessions of nodes whose transaction is older than a lease: a process frozen inside a
/// transaction holds the ring's lock or the cursor for everybody. Returns how many.
pub(super) fn end_old_sessions(c: &mut PgConnection, lease: std::time::Duration) -> TxResult<u32> {
    let row: NumberRow = sql_query(
        "SELECT count(*) AS value
         FROM (SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND application_name LIKE 'chancery/%' AND pg_has_role(usesysid, 'USAGE')
                 AND xact_start < clock_timestamp() - $1) t
         WHERE ended",
    )
    .bind::<Interval, _>(milliseconds(lease))
    .get_result(c)?;
    Ok(u32::try_from(row.value).unwrap_or(u32::MAX))
}

pub(super) fn reclaim(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    // Several nodes share a PostgreSQL, so only an expired lease proves anything here.
    _scope: ReclaimScope,
) -> TxResult<(Reclaimed, Tick)> {
    let ring = lock_ring(store, c, ring)?;
    let query = format!(
        "SELECT {} FROM key_uses
         WHERE ring_id = $1 AND end_tick IS NULL AND expires_at < clock_timestamp()
         ORDER BY fence FOR UPDATE SKIP LOCKED",
        shared::use_columns::<PgConnection>()
    );
    let expired = c.rows::<UseRow>(&query, &ring_bind(ring.id))?;
    if expired.is_empty() {
        return Ok((Reclaimed::default(), ring.tick));
    }
    let uses: Vec<KeyUse> = expired.iter().map(UseRow::key_use).collect();
    let last = close_uses(store, c, ring.id, &uses, Outcome::Reclaimed)?;
    let mut reclaimed = Reclaimed::default();
    for row in expired {
        let failure = format!("the lease of node {} ran out", row.node);
        if fail_batch(store, c, row.key_use(), Some(&failure))? {
            reclaimed.quarantined.push(row.key_use().batch);
        }
        reclaimed.uses.push((row.key_use(), NodeId(row.node)));
    }
    Ok((reclaimed, last))
}

// Sweep, idle

pub(super) fn ring_cursor(c: &mut PgConnection, ring: RingId) -> QueryResult<Position> {
    let query = "SELECT cursor_xid AS inserted_xid, cursor_id AS id FROM rings WHERE id = $1";
    Ok(c.row::<PositionRow>(query, &ring_bind(ring))?.into())
}

/// Gives strays the current transaction's place, unless they have been signed meanwhile.
pub(super) fn sweep(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    strays: &[Position],
) -> TxResult<u64> {
    let ring = lock_ring(store, c, ring)?;
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
    Ok(swept as u64)
}

/// Whether a checkout would find a batch, and the ring's tick.
pub(super) fn has_work(c: &mut PgConnection, ring: RingId) -> QueryResult<(bool, Tick)> {
    let query = "
        SELECT CASE WHEN
            EXISTS (SELECT 1 FROM batches WHERE ring_id = $1 AND state = 'retry')
            OR EXISTS (SELECT 1 FROM records r
                       WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) > (g.cursor_xid, g.cursor_id)
                         AND r.inserted_xid < pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                                              + chancery_xid_offset())
            THEN g.tick ELSE -g.tick - 1 END AS value
        FROM rings g WHERE g.id = $1";
    let value = c.number(query, &ring_bind(ring))?;
    Ok(if value >= 0 { (true, Tick(value)) } else { (false, Tick(-value - 1)) })
}
