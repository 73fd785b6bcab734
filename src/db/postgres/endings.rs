//! The ends of key uses on PostgreSQL: stored, given up, reclaimed; and the lease that puts the last
//! of them off.
//!
//! Lock order as everywhere: `key_uses` by fence, then the ring's row, then batches and keys. Who
//! holds the ring's row first locks `key_uses` only with SKIP LOCKED.

use std::collections::HashMap;

use diesel::ExecuteCopyFromDsl;
use diesel::pg::{CopyFormat, PgConnection};

use super::protocol::{lock_ring, microseconds};
use super::{PgStore, int, ring_bind};
use crate::db::models::{ChangedRow, LockedUseRow, NumberRow, UseRow};
use crate::db::shared::{self, Bind, Session, TxResult};
use crate::db::{
    GiveUp, KeyUse, ReclaimScope, Reclaimed, Refusal, SignedBatch, StoreError, StoreOutcome, schema,
};
use crate::failpoint::pass;
use crate::types::{Fence, NodeId, Outcome, RingId, Tick};

pub(super) fn store_batches(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    batches: &[SignedBatch],
) -> TxResult<(Vec<StoreOutcome>, Option<Tick>)> {
    let uses: Vec<KeyUse> = batches.iter().map(|batch| batch.key_use).collect();
    let standings = lock_uses(store, c, ring, &uses)?;
    pass("store", "uses_locked")?;
    let mut held = Vec::with_capacity(batches.len());
    let mut outcomes = Vec::with_capacity(batches.len());
    for (batch, standing) in batches.iter().zip(standings) {
        outcomes.push(match standing {
            Standing::Open { records } => {
                check_count(batch, records)?;
                held.push(batch);
                StoreOutcome::Stored
            }
            Standing::Ended(Outcome::Stored) => StoreOutcome::AlreadyStored,
            Standing::Ended(other) => StoreOutcome::Fenced(other),
        });
    }
    if held.is_empty() {
        return Ok((outcomes, None));
    }

    copy_signatures(c, &held)?;
    pass("store", "copied")?;
    let ended: Vec<EndedUse> = held.iter().map(|batch| EndedUse::stored(batch)).collect();
    let last = end_uses(store, c, ring, &ended, Outcome::Stored)?;
    Ok((outcomes, Some(last)))
}

/// How a use stands in the database.
#[derive(Clone, Copy)]
enum Standing {
    /// It is this node's, and its batch has so many records.
    Open {
        records: u64,
    },
    Ended(Outcome),
}

/// Locks those of `uses` that are this node's, in order of fence; how each of them stands.
fn lock_uses(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: &[KeyUse],
) -> TxResult<Vec<Standing>> {
    let mut fences: Vec<i64> = uses.iter().map(|u| u.fence.0.0).collect();
    fences.sort_unstable();
    // Each is looked up by itself: on a small table, a plan for the whole list would read all of them.
    let query = format!(
        "SELECT u.*, coalesce((SELECT b.record_count FROM batches b WHERE b.id = u.batch_id), 0)
                     AS record_count
         FROM unnest($1) f(fence)
         CROSS JOIN LATERAL (SELECT {} FROM key_uses
                             WHERE ring_id = $2 AND fence = f.fence AND node = $3 FOR UPDATE) u",
        shared::use_columns::<PgConnection>()
    );
    let binds = [Bind::Ints(&fences), Bind::Int(ring.0), Bind::Text(&store.node.0)];
    let mut standings = HashMap::new();
    for row in c.prepared_rows::<LockedUseRow>(&query, &binds)? {
        let open = Standing::Open { records: row.records()? };
        standings.insert(row.of.key_use(), row.of.outcome()?.map_or(open, Standing::Ended));
    }
    // A use that is nowhere was rolled back with the state it belonged to.
    let nowhere = Standing::Ended(Outcome::Reclaimed);
    Ok(uses.iter().map(|u| standings.get(u).copied().unwrap_or(nowhere)).collect())
}

fn check_count(batch: &SignedBatch, expected: u64) -> TxResult<()> {
    let found = batch.signatures.len() as u64;
    if expected == found {
        Ok(())
    } else {
        Err(StoreError::Refused(Refusal::Count { expected, found }).into())
    }
}

/// COPY in the binary format (PostgreSQL's documentation of COPY, "Binary Format").
fn copy_signatures(c: &mut PgConnection, held: &[&SignedBatch]) -> TxResult<()> {
    let rows: usize = held.iter().map(|batch| batch.signatures.len()).sum();
    // In the order of the primary key, whose index then grows at its end.
    let mut held = held.to_vec();
    held.sort_by_key(|batch| batch.signatures.first().map(|(record, _)| *record));
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
            let (first, second) = data.split_at(data.len() / 2);
            out.write_all(first).map_err(not_written)?;
            pass("store", "copying").map_err(not_written)?;
            out.write_all(second).map_err(not_written)
        })
        .with_format(CopyFormat::Binary)
        .execute(c)?;
    expect_rows("signatures", rows, copied)
}

fn not_written(error: impl std::error::Error + Send + Sync + 'static) -> diesel::result::Error {
    diesel::result::Error::SerializationError(Box::new(error))
}

/// A use that ends, and how many signatures its key has made in it.
struct EndedUse {
    key_use: KeyUse,
    signatures: i64,
}

impl EndedUse {
    fn stored(batch: &SignedBatch) -> Self {
        EndedUse { key_use: batch.key_use, signatures: int(batch.signatures.len()) }
    }

    fn in_vain(key_use: KeyUse) -> Self {
        EndedUse { key_use, signatures: 0 }
    }
}

/// Ends `uses`, one tick each in their order, and with [`Outcome::Stored`] their batches too; the last
/// tick.
///
/// One statement, which waits for the ring's lock and then does the rest: each round trip would lengthen the
/// time for which all nodes wait for that lock. What it changes behind the lock is what is committed by then:
/// the uses have been locked before, and only who has locked a batch's open use changes the batch; of a key
/// it changes columns that it reads in the same row, which PostgreSQL takes from the row's latest version.
fn end_uses(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    uses: &[EndedUse],
    outcome: Outcome,
) -> TxResult<Tick> {
    let column = |value: fn(&EndedUse) -> i64| -> Vec<i64> { uses.iter().map(value).collect() };
    let mut stored = Vec::new();
    if outcome == Outcome::Stored {
        stored = column(|ended| ended.key_use.batch.0);
    }
    let seen = store.seen.highest(ring);
    // In a database that has gone back nothing is changed: a constraint would refuse it, and the batch would
    // be blamed. Uses are found one by one as they were locked, and a locked row stays where it is. No key
    // is open twice, so that none is in the list twice.
    let statement = "
        WITH ticked AS (
            UPDATE rings SET tick = tick + $1 WHERE id = $2 AND tick >= $3 RETURNING tick - $1 AS before
        ), closed AS (
            UPDATE key_uses u
            SET end_tick = ticked.before + found.n, ended_at = clock_timestamp(), outcome = $4
            FROM ticked, (SELECT listed.n, at.place
                          FROM unnest($5) WITH ORDINALITY listed(fence, n)
                          CROSS JOIN LATERAL (SELECT ctid AS place FROM key_uses
                                              WHERE ring_id = $2 AND fence = listed.fence LIMIT 1) at
                         ) found
            WHERE u.ctid = found.place
            RETURNING 1
        ), stamped AS (
            UPDATE keys SET last_tick = ticked.before + array_position($6, id),
                   signature_count = signature_count + ($7)[array_position($6, id)]
            FROM ticked WHERE id = ANY($6)
            RETURNING 1
        ), stored AS (
            UPDATE batches SET state = 'stored', stored_at = clock_timestamp()
            FROM ticked WHERE id = ANY($8)
            RETURNING 1
        )
        SELECT before, (SELECT count(*) FROM closed) AS uses, (SELECT count(*) FROM stamped) AS keys,
               (SELECT count(*) FROM stored) AS batches
        FROM ticked";
    let binds = [
        Bind::Int(int(uses.len())),
        Bind::Int(ring.0),
        Bind::Int(seen.0),
        Bind::Text(outcome.as_str()),
        Bind::Ints(&column(|ended| ended.key_use.fence.0.0)),
        Bind::Ints(&column(|ended| ended.key_use.key.0)),
        Bind::Ints(&column(|ended| ended.signatures)),
        Bind::Ints(&stored),
    ];
    let Some(changed) = c.prepared_rows::<ChangedRow>(statement, &binds)?.pop() else {
        let tick = "SELECT tick AS value FROM rings WHERE id = $1";
        let now = Tick(c.number(tick, &ring_bind(ring))?);
        return Err(StoreError::RolledBack { ring, seen, now }.into());
    };
    // What other threads have seen while it waited counts too.
    store.seen.check(ring, Tick(changed.before))?;
    for (table, expected, found) in [
        ("key_uses", uses.len(), changed.uses),
        ("keys", uses.len(), changed.keys),
        ("batches", stored.len(), changed.batches),
    ] {
        expect_rows(table, expected, usize::try_from(found).unwrap_or(usize::MAX))?;
    }
    pass(shared::step_of(outcome), "keys_stamped")?;
    Ok(Tick(changed.before + int(uses.len())))
}

pub(super) fn expect_rows(table: &str, expected: usize, found: usize) -> TxResult<()> {
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
) -> TxResult<Vec<Fence>> {
    let fences: Vec<i64> = fences.iter().map(|fence| fence.0.0).collect();
    let rows = c.rows::<NumberRow>(
        "WITH held AS (SELECT fence FROM key_uses
                       WHERE ring_id = $1 AND fence = ANY($2) AND node = $3 AND end_tick IS NULL
                       ORDER BY fence FOR UPDATE SKIP LOCKED)
         UPDATE key_uses u SET expires_at = clock_timestamp() + $4 * INTERVAL '1 microsecond'
         FROM held WHERE u.ring_id = $1 AND u.fence = held.fence RETURNING u.fence AS value",
        &[
            Bind::Int(ring.0),
            Bind::Ints(&fences),
            Bind::Text(&store.node.0),
            Bind::Int(microseconds(store.lease)),
        ],
    )?;
    pass("renew", "renewed")?;
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
    pass("give_up", "uses_locked")?;
    let mut held = Vec::with_capacity(uses.len());
    let mut outcomes = Vec::with_capacity(uses.len());
    for (given_up, standing) in uses.iter().zip(standings) {
        outcomes.push(match standing {
            Standing::Open { .. } => {
                held.push(given_up);
                Outcome::Abandoned
            }
            Standing::Ended(outcome) => outcome,
        });
    }
    if held.is_empty() {
        return Ok((outcomes, None));
    }
    let ended: Vec<EndedUse> = held.iter().map(|u| EndedUse::in_vain(u.key_use)).collect();
    let last = end_uses(store, c, ring, &ended, Outcome::Abandoned)?;
    for given_up in held {
        fail_batch(store, c, given_up.key_use, given_up.failure.as_deref())?;
    }
    pass("give_up", "batches_failed")?;
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

/// Ends the sessions of nodes whose transaction has written or locked and is older than a lease: a
/// process frozen inside one holds the ring's lock or the cursor for everybody. Returns how many. A
/// long read harms nobody so.
pub(super) fn end_frozen_sessions(
    c: &mut PgConnection,
    lease: std::time::Duration,
) -> TxResult<u32> {
    let ended = c.number(
        "SELECT count(*) AS value
         FROM (SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND application_name LIKE 'chancery/%' AND pg_has_role(usesysid, 'USAGE')
                 AND backend_xid IS NOT NULL
                 AND xact_start < clock_timestamp() - $1 * INTERVAL '1 microsecond') t
         WHERE ended",
        &[Bind::Int(microseconds(lease))],
    )?;
    Ok(u32::try_from(ended).unwrap_or(u32::MAX))
}

pub(super) fn reclaim(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    // Several nodes share a PostgreSQL, so only an expired lease proves anything here.
    _scope: ReclaimScope,
) -> TxResult<(Reclaimed, Tick)> {
    let ring = lock_ring(store, c, ring)?;
    pass("reclaim", "ring_locked")?;
    let query = format!(
        "SELECT {} FROM key_uses
         WHERE ring_id = $1 AND end_tick IS NULL AND expires_at < clock_timestamp()
         ORDER BY fence FOR UPDATE SKIP LOCKED",
        shared::use_columns::<PgConnection>()
    );
    let expired = c.rows::<UseRow>(&query, &ring_bind(ring.id))?;
    pass("reclaim", "uses_found")?;
    if expired.is_empty() {
        return Ok((Reclaimed::default(), ring.tick));
    }
    let uses: Vec<EndedUse> = expired.iter().map(|row| EndedUse::in_vain(row.key_use())).collect();
    let last = end_uses(store, c, ring.id, &uses, Outcome::Reclaimed)?;
    let mut reclaimed = Reclaimed::default();
    for row in expired {
        let failure = format!("the lease of node {} ran out", row.node);
        if fail_batch(store, c, row.key_use(), Some(&failure))? {
            reclaimed.quarantined.push(row.key_use().batch);
        }
        reclaimed.uses.push((row.key_use(), NodeId(row.node)));
    }
    pass("reclaim", "batches_failed")?;
    Ok((reclaimed, last))
}
