//! The protocol's transactions on SQLite, in the order of a batch's life.
//!
//! Each runs under `BEGIN IMMEDIATE`, which is the ring's lock and every other one: nothing here
//! can run beside another writer. SQLite bounds an index by the first column of `(inserted_xid, id)
//! > (?, ?)` alone, which here is 0 in every record, so the comparison is written out.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use super::SqliteStore;
use super::signatures::insert_signatures;
use crate::db::models::{
    BatchRow, EdgeRow, NumberRow, PositionRow, RecordRow, RingRow, UseRow, ranges,
};
use crate::db::remaining;
use crate::db::shared::{self, Bind, LARGE_BATCH, Session, TxResult, UNFINISHED};
use crate::db::statement::Statement;
use crate::db::{
    CheckOut, CheckedOut, GiveUp, KeyUse, ReclaimScope, Reclaimed, Ring, Shortage, SignedBatch,
    StoreOutcome,
};
use crate::failpoint::pass;
use crate::types::{
    BatchRange, Fence, KeyId, NodeId, Outcome, Position, Record, RecordId, RingId, Tick,
};

/// Now, as it is stored.
const NOW: &str = <SqliteConnection as Session>::NOW;

pub(super) fn ring_row(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
) -> TxResult<Ring> {
    let query = format!("SELECT {} FROM rings WHERE id = $1", RingRow::COLUMNS);
    let ring = Ring::try_from(c.prepared_row::<RingRow>(&query, &[Bind::Int(ring.0)])?)?;
    store.seen.check(ring.id, ring.tick)?;
    Ok(ring)
}

fn set_tick(c: &mut SqliteConnection, ring: RingId, tick: Tick) -> QueryResult<()> {
    c.run_prepared(
        "UPDATE rings SET tick = $1 WHERE id = $2",
        &[Bind::Int(tick.0), Bind::Int(ring.0)],
    )?;
    Ok(())
}

/// When a lease that starts now ends, as an SQL expression.
fn lease_end(store: &SqliteStore) -> String {
    let seconds = store.lease.as_secs_f64();
    format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+{seconds:.3} seconds')")
}

// Check out

pub(super) fn check_out(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    request: &CheckOut,
) -> TxResult<(CheckedOut, Tick)> {
    let ring = ring_row(store, c, request.ring)?;
    pass("check_out", "ring_locked")?;
    if ring.paused {
        return Ok((
            CheckedOut { shortage: Some(Shortage::Paused), ..Default::default() },
            ring.tick,
        ));
    }
    let (keys, mut batches) = shared::free_keys_and_retries(c, ring.id, request.max_batches)?;
    pass("check_out", "keys_chosen")?;
    for batch in &batches {
        c.run_prepared(
            "UPDATE batches SET state = 'open' WHERE id = $1",
            &[Bind::Int(batch.id.0)],
        )?;
        pass("check_out", "retries_opened")?;
    }
    let fresh = next_ranges(c, &ring, keys.len() - batches.len(), request.batch_size.records())?;
    pass("check_out", "ranges_chosen")?;
    let cursor = fresh.last().map_or(ring.cursor, |range| range.high);
    for range in fresh {
        batches.push(insert_batch(c, ring.id, range, "open")?);
    }
    pass("check_out", "batches_inserted")?;

    let mut tick = ring.tick;
    let mut claimed = Vec::with_capacity(batches.len());
    let open_use = format!(
        "INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         VALUES ($1, $2, $3, $4, $5, {})",
        lease_end(store)
    );
    for (batch, key) in batches.iter().zip(&keys) {
        tick = tick.next();
        c.run_prepared(
            &open_use,
            &[
                Bind::Int(ring.id.0),
                Bind::Int(tick.0),
                Bind::Int(batch.id.0),
                Bind::Int(*key),
                Bind::Text(&store.node.0),
            ],
        )?;
        claimed.push(batch.claimed(Fence(tick), KeyId(*key)));
    }
    if !claimed.is_empty() {
        pass("check_out", "uses_opened")?;
        c.run_prepared(
            "UPDATE rings SET tick = $1, cursor_xid = $2, cursor_id = $3 WHERE id = $4",
            &[
                Bind::Int(tick.0),
                Bind::Int(cursor.xid),
                Bind::Int(cursor.id.0),
                Bind::Int(ring.id.0),
            ],
        )?;
        pass("check_out", "cursor_moved")?;
    }
    let shortage = shared::shortage(c, request, keys.len(), claimed.len())?;
    Ok((CheckedOut { batches: claimed, shortage }, tick))
}

/// The ranges of up to `batches` new batches behind the ring's cursor.
fn next_ranges(
    c: &mut SqliteConnection,
    ring: &Ring,
    batches: usize,
    batch_size: u32,
) -> TxResult<Vec<BatchRange>> {
    let mut cursor = ring.cursor;
    let mut ranges = Vec::new();
    while batch_size >= LARGE_BATCH && ranges.len() < batches {
        let Some(range) = full_range(c, ring.id, cursor, batch_size)? else { break };
        cursor = range.high;
        ranges.push(range);
    }
    let left = batches - ranges.len();
    if left > 0 {
        ranges.extend(counted_ranges(c, ring.id, cursor, left, batch_size)?);
    }
    Ok(ranges)
}

/// The next batch if it has `batch_size` records, all inserted where the cursor is, as nearly all are: two
/// records that are looked up by index, without a look at what lies between them.
fn full_range(
    c: &mut SqliteConnection,
    ring: RingId,
    cursor: Position,
    batch_size: u32,
) -> TxResult<Option<BatchRange>> {
    let nth_behind = "SELECT inserted_xid, id FROM records
                      WHERE ring_id = $1 AND inserted_xid = $2 AND id > $3
                      ORDER BY id LIMIT 1 OFFSET $4";
    let mut edge = |n: u32| -> TxResult<Option<Position>> {
        let binds =
            [Bind::Int(ring.0), Bind::Int(cursor.xid), Bind::Int(cursor.id.0), Bind::Int(n.into())];
        Ok(c.prepared_rows::<PositionRow>(nth_behind, &binds)?.pop().map(Position::from))
    };
    let (Some(low), Some(high)) = (edge(0)?, edge(batch_size - 1)?) else { return Ok(None) };
    Ok(Some(BatchRange { low, high, record_count: batch_size }))
}

/// Those of any size, by looking at each record behind `cursor`.
fn counted_ranges(
    c: &mut SqliteConnection,
    ring: RingId,
    cursor: Position,
    batches: usize,
    batch_size: u32,
) -> TxResult<Vec<BatchRange>> {
    let query = "
        WITH next AS MATERIALIZED (
            SELECT row_number() OVER (ORDER BY inserted_xid, id) - 1 AS n, inserted_xid, id
            FROM (SELECT inserted_xid, id FROM records
                  WHERE ring_id = $1 AND inserted_xid = $2 AND id > $3
                  UNION ALL
                  SELECT inserted_xid, id FROM records WHERE ring_id = $1 AND inserted_xid > $2
                  ORDER BY inserted_xid, id LIMIT $4) behind)
        SELECT n, inserted_xid, id FROM next
        WHERE n % $5 IN (0, $5 - 1) OR n = (SELECT max(n) FROM next) ORDER BY n";
    let size = i64::from(batch_size);
    let limit = i64::try_from(batches).unwrap_or(i64::MAX).saturating_mul(size);
    let edges = c.prepared_rows::<EdgeRow>(
        query,
        &[
            Bind::Int(ring.0),
            Bind::Int(cursor.xid),
            Bind::Int(cursor.id.0),
            Bind::Int(limit),
            Bind::Int(size),
        ],
    )?;
    Ok(ranges(&edges, size)?)
}

fn insert_batch(
    c: &mut SqliteConnection,
    ring: RingId,
    range: BatchRange,
    state: &str,
) -> TxResult<crate::db::Batch> {
    let statement = format!(
        "INSERT INTO batches (ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {}",
        BatchRow::COLUMNS
    );
    let row = c.prepared_row::<BatchRow>(
        &statement,
        &[
            Bind::Int(ring.0),
            Bind::Int(range.low.xid),
            Bind::Int(range.low.id.0),
            Bind::Int(range.high.xid),
            Bind::Int(range.high.id.0),
            Bind::Int(range.record_count.into()),
            Bind::Text(state),
        ],
    )?;
    Ok(crate::db::Batch::try_from(row)?)
}

// Load

pub(super) fn load_batch(
    c: &mut SqliteConnection,
    ring: RingId,
    range: &BatchRange,
    after: Option<Position>,
    max_bytes: usize,
) -> TxResult<Vec<Record>> {
    pass("load", "begun")?;
    let after = after.unwrap_or(Position { xid: range.low.xid, id: RecordId(range.low.id.0 - 1) });
    let last_of_first_xid = if after.xid == range.high.xid { range.high.id.0 } else { i64::MAX };
    let query = "SELECT inserted_xid, id, payload FROM records
         WHERE ring_id = $1 AND inserted_xid = $2 AND id > $3 AND id <= $4
         UNION ALL
         SELECT inserted_xid, id, payload FROM records
         WHERE ring_id = $1 AND inserted_xid > $2 AND inserted_xid <= $5
           AND (inserted_xid < $5 OR id <= $6)
         ORDER BY inserted_xid, id";
    let binds = [
        Bind::Int(ring.0),
        Bind::Int(after.xid),
        Bind::Int(after.id.0),
        Bind::Int(last_of_first_xid),
        Bind::Int(range.high.xid),
        Bind::Int(range.high.id.0),
    ];
    let query = Statement::prepared(query, &binds);
    let mut records = Vec::new();
    let mut bytes = 0;
    // Rows come one by one, and of what lies behind the slice only the first payload is read.
    for row in query.load_iter::<RecordRow, diesel::connection::DefaultLoadingMode>(c)? {
        let record = Record::from(row?);
        bytes += record.payload.len();
        if bytes > max_bytes && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    pass("load", "read")?;
    Ok(records)
}

// Store

pub(super) fn store_batches(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
    batches: &[SignedBatch],
) -> TxResult<(Vec<StoreOutcome>, Tick)> {
    let mut tick = ring_row(store, c, ring)?.tick;
    let mut outcomes = Vec::with_capacity(batches.len());
    for batch in batches {
        let outcome = match standing(store, c, ring, batch.key_use)? {
            None => {
                pass("store", "uses_locked")?;
                insert_signatures(c, batch)?;
                pass("store", "copied")?;
                tick = tick.next();
                close_use(c, batch.key_use, tick, Outcome::Stored)?;
                c.run_prepared(
                    &format!(
                        "UPDATE batches SET state = 'stored', stored_at = {NOW} WHERE id = $1"
                    ),
                    &[Bind::Int(batch.key_use.batch.0)],
                )?;
                pass("store", "batches_stored")?;
                StoreOutcome::Stored
            }
            Some(Outcome::Stored) => StoreOutcome::AlreadyStored,
            Some(other) => StoreOutcome::Fenced(other),
        };
        outcomes.push(outcome);
    }
    set_tick(c, ring, tick)?;
    Ok((outcomes, tick))
}

/// `None` if the use is this node's and open, else how it ended.
fn standing(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
    key_use: KeyUse,
) -> TxResult<Option<Outcome>> {
    let query = format!(
        "SELECT {} FROM key_uses WHERE ring_id = $1 AND fence = $2 AND node = $3",
        shared::use_columns::<SqliteConnection>()
    );
    let binds = [Bind::Int(ring.0), Bind::Int(key_use.fence.0.0), Bind::Text(&store.node.0)];
    match c.prepared_rows::<UseRow>(&query, &binds)?.pop() {
        Some(row) if row.key_use() == key_use => Ok(row.outcome()?),
        // A use that is nowhere was rolled back with the state it belonged to.
        _ => Ok(Some(Outcome::Reclaimed)),
    }
}

fn close_use(
    c: &mut SqliteConnection,
    key_use: KeyUse,
    tick: Tick,
    outcome: Outcome,
) -> TxResult<()> {
    let step = shared::step_of(outcome);
    c.run_prepared(
        &format!(
            "UPDATE key_uses SET end_tick = $1, ended_at = {NOW}, outcome = $2
             WHERE ring_id = $3 AND fence = $4"
        ),
        &[
            Bind::Int(tick.0),
            Bind::Text(outcome.as_str()),
            Bind::Int(key_use.ring.0),
            Bind::Int(key_use.fence.0.0),
        ],
    )?;
    pass(step, "uses_closed")?;
    c.run_prepared(
        "UPDATE keys SET last_tick = $1, signature_count = signature_count
             + CASE WHEN $2 = 'stored' THEN (SELECT record_count FROM batches WHERE id = $3) ELSE 0 END
         WHERE id = $4",
        &[
            Bind::Int(tick.0),
            Bind::Text(outcome.as_str()),
            Bind::Int(key_use.batch.0),
            Bind::Int(key_use.key.0),
        ],
    )?;
    pass(step, "keys_stamped")?;
    Ok(())
}

// Renew, give up, reclaim

pub(super) fn renew(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
    fences: &[Fence],
) -> TxResult<Vec<Fence>> {
    let statement = format!(
        "UPDATE key_uses SET expires_at = {}
         WHERE ring_id = $1 AND fence = $2 AND node = $3 AND end_tick IS NULL",
        lease_end(store)
    );
    let mut renewed = Vec::new();
    for fence in fences {
        let binds = [Bind::Int(ring.0), Bind::Int(fence.0.0), Bind::Text(&store.node.0)];
        if c.run_prepared(&statement, &binds)? == 1 {
            renewed.push(*fence);
        }
    }
    pass("renew", "renewed")?;
    Ok(renewed)
}

pub(super) fn give_up(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
    uses: &[GiveUp],
) -> TxResult<(Vec<Outcome>, Tick)> {
    let mut tick = ring_row(store, c, ring)?.tick;
    let mut outcomes = Vec::with_capacity(uses.len());
    for given_up in uses {
        let outcome = match standing(store, c, ring, given_up.key_use)? {
            None => {
                tick = tick.next();
                close_use(c, given_up.key_use, tick, Outcome::Abandoned)?;
                fail_batch(store, c, given_up.key_use, given_up.failure.as_deref())?;
                pass("give_up", "batches_failed")?;
                Outcome::Abandoned
            }
            Some(outcome) => outcome,
        };
        outcomes.push(outcome);
    }
    set_tick(c, ring, tick)?;
    Ok((outcomes, tick))
}

/// Sends a batch back to `retry`, or to quarantine if this was its last attempt; whether it was.
fn fail_batch(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    key_use: KeyUse,
    failure: Option<&str>,
) -> TxResult<bool> {
    let own = i64::from(failure.is_some());
    let statement = "
        UPDATE batches SET attempts = attempts + $1, failure = coalesce($2, failure),
               state = CASE WHEN $1 = 1 AND attempts + 1 >= $3 THEN 'quarantined' ELSE 'retry' END
        WHERE id = $4 RETURNING state = 'quarantined' AS value";
    let binds = [
        Bind::Int(own),
        Bind::OptionalText(failure),
        Bind::Int(store.max_attempts),
        Bind::Int(key_use.batch.0),
    ];
    Ok(c.prepared_number(statement, &binds)? == 1)
}

pub(super) fn reclaim(
    store: &SqliteStore,
    c: &mut SqliteConnection,
    ring: RingId,
    scope: ReclaimScope,
) -> TxResult<(Reclaimed, Tick)> {
    let mut tick = ring_row(store, c, ring)?.tick;
    pass("reclaim", "ring_locked")?;
    let condition = match scope {
        ReclaimScope::Expired => format!("expires_at < {NOW}"),
        ReclaimScope::All => "TRUE".to_owned(),
    };
    // By the sign SQLite does not read all uses of the ring, but the index of those that are open.
    let query = format!(
        "SELECT {} FROM key_uses WHERE +ring_id = $1 AND end_tick IS NULL AND {condition}
         ORDER BY fence",
        shared::use_columns::<SqliteConnection>()
    );
    let mut reclaimed = Reclaimed::default();
    for row in c.prepared_rows::<UseRow>(&query, &[Bind::Int(ring.0)])? {
        let key_use = row.key_use();
        tick = tick.next();
        close_use(c, key_use, tick, Outcome::Reclaimed)?;
        let failure = match scope {
            ReclaimScope::Expired => format!("the lease of node {} ran out", row.node),
            ReclaimScope::All => format!("node {} ended without storing it", row.node),
        };
        if fail_batch(store, c, key_use, Some(&failure))? {
            reclaimed.quarantined.push(key_use.batch);
        }
        pass("reclaim", "batches_failed")?;
        reclaimed.uses.push((key_use, NodeId(row.node)));
    }
    set_tick(c, ring, tick)?;
    Ok((reclaimed, tick))
}

// Sweep, idle

/// How many strays one batch of a sweep takes.
const SWEEP_BATCH: u32 = 500;

/// Puts strays into batches of their own that wait to be retried.
///
/// PostgreSQL moves strays before the cursor. Here every record has transaction id 0, and a higher
/// one would put all later records behind the cursor (docs/adr/0004).
pub(super) fn sweep(store: &SqliteStore, c: &mut SqliteConnection, ring: RingId) -> TxResult<u64> {
    let ring = ring_row(store, c, ring)?;
    pass("sweep", "ring_locked")?;
    let strays = remaining::strays(c, ring.id, ring.cursor)?;
    let mut runs: Vec<BatchRange> = Vec::new();
    for stray in &strays {
        let adjoining = match runs.last() {
            Some(run) => run.record_count < SWEEP_BATCH && adjoin(c, ring.id, run.high, *stray)?,
            None => false,
        };
        match runs.last_mut() {
            Some(run) if adjoining => {
                run.high = *stray;
                run.record_count += 1;
            }
            _ => runs.push(BatchRange { low: *stray, high: *stray, record_count: 1 }),
        }
    }
    for run in runs {
        insert_batch(c, ring.id, run, "retry")?;
    }
    pass("sweep", "moved")?;
    Ok(strays.len() as u64)
}

/// Whether no other record of the ring lies between two of it.
fn adjoin(
    c: &mut SqliteConnection,
    ring: RingId,
    low: Position,
    high: Position,
) -> QueryResult<bool> {
    if low.xid != high.xid {
        return Ok(false);
    }
    let query = "SELECT EXISTS (SELECT 1 FROM records
                                WHERE ring_id = $1 AND inserted_xid = $2
                                  AND id > $3 AND id < $4) AS value";
    let binds = [Bind::Int(ring.0), Bind::Int(low.xid), Bind::Int(low.id.0), Bind::Int(high.id.0)];
    Ok(c.prepared_number(query, &binds)? == 0)
}

/// Whether a checkout would find a batch, and the ring's tick.
pub(super) fn has_work(c: &mut SqliteConnection, ring: RingId) -> QueryResult<(bool, Tick)> {
    let query = format!(
        "SELECT NOT g.paused AND (
               EXISTS (SELECT 1 FROM batches
                       WHERE ring_id = $1 AND state = 'retry' AND {UNFINISHED})
            OR EXISTS (SELECT 1 FROM records r
                       WHERE r.ring_id = $1 AND r.inserted_xid = g.cursor_xid AND r.id > g.cursor_id)
            OR EXISTS (SELECT 1 FROM records r
                       WHERE r.ring_id = $1 AND r.inserted_xid > g.cursor_xid)) AS value
        FROM rings g WHERE g.id = $1
        UNION ALL SELECT tick FROM rings WHERE id = $1"
    );
    let rows = c.prepared_rows::<NumberRow>(&query, &[Bind::Int(ring.0)])?;
    let [work, tick] = rows.as_slice() else {
        return Err(diesel::result::Error::NotFound);
    };
    Ok((work.value == 1, Tick(tick.value)))
}
