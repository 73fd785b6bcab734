//! What those who watch a service ask: cheap reads without a lock, on either database.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text};

use super::models::{BytesRow, NumberRow, word};
use super::shared::{Bind, Session, TxResult, UNFINISHED, cursor};
use super::{Backlog, KeyGlance, KeyTally};
use crate::types::{KeyId, Kid, RingId, Tick, Timestamp};

/// What waits in a ring, counted up to `most` records behind the cursor.
pub(super) fn backlog<S: Session>(s: &mut S, ring: RingId, most: u32) -> TxResult<Backlog> {
    let cursor = cursor(s, ring)?;
    let binds = [Bind::Int(ring.0), Bind::Int(cursor.xid), Bind::Int(cursor.id.0)];
    let behind_cursor = "FROM records r
                         WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) > ($2, $3)";
    let count =
        format!("SELECT count(*) AS value FROM (SELECT 1 {behind_cursor} LIMIT {most}) waiting");
    let waiting = s.number(&count, &binds)?;
    let unfinished = format!(
        "FROM batches b WHERE b.ring_id = $1 AND b.state IN ('open', 'retry') AND b.{UNFINISHED}"
    );
    let count =
        format!("SELECT CAST(coalesce(sum(b.record_count), 0) AS BIGINT) AS value {unfinished}");
    let in_batches = s.number(&count, &[Bind::Int(ring.0)])?;
    let age = format!("{} - {} AS value", S::micros(S::NOW), S::micros("r.created_at"));
    // The first of its batch is the one that has waited longest.
    let next = format!("SELECT {age} {behind_cursor} ORDER BY r.inserted_xid, r.id LIMIT 1");
    let first_taken = format!(
        "SELECT {age} FROM records r
         WHERE r.id = (SELECT b.low_id {unfinished} ORDER BY b.low_xid, b.low_id LIMIT 1)"
    );
    let mut ages = s.rows::<NumberRow>(&next, &binds)?;
    ages.extend(s.rows::<NumberRow>(&first_taken, &binds[..1])?);
    let oldest_us = ages.iter().map(|age| age.value).max();
    Ok(Backlog {
        waiting: waiting.unsigned_abs(),
        in_batches: in_batches.unsigned_abs(),
        // A clock that was set back makes it negative.
        oldest: oldest_us.map(|us| Duration::from_micros(u64::try_from(us).unwrap_or(0))),
    })
}

/// The raw public keys that verifiers need, of every ring, in order of id.
pub(super) fn public_keys<S: Session>(s: &mut S) -> TxResult<Vec<Vec<u8>>> {
    let query = "SELECT public_key AS value FROM keys
                 WHERE status IN ('active', 'retired') ORDER BY id";
    Ok(s.rows::<BytesRow>(query, &[])?.into_iter().map(|row| row.value).collect())
}

/// What each key has signed behind a tick. Uses end in the order of their ticks, so that nothing ever
/// appears before what was seen.
pub(super) fn tally<S: Session>(s: &mut S, ring: RingId, after: Tick) -> TxResult<Vec<KeyTally>> {
    let query = format!(
        "SELECT u.key_id, count(*) AS batches, CAST(sum(b.record_count) AS BIGINT) AS records,
                max(u.end_tick) AS last_tick, max({}) AS last_at
         FROM key_uses u JOIN batches b ON b.id = u.batch_id
         WHERE u.ring_id = $1 AND u.end_tick > $2 AND u.outcome = 'stored' GROUP BY u.key_id",
        S::micros("u.ended_at")
    );
    let rows = s.rows::<TallyRow>(&query, &[Bind::Int(ring.0), Bind::Int(after.0)])?;
    Ok(rows.into_iter().map(KeyTally::from).collect())
}

/// The keys of a ring, in order of id.
pub(super) fn glance_at_keys<S: Session>(s: &mut S, ring: RingId) -> TxResult<Vec<KeyGlance>> {
    let query = "SELECT k.id, k.kid, k.status, k.last_tick,
                        EXISTS (SELECT 1 FROM key_uses u
                                WHERE u.key_id = k.id AND u.end_tick IS NULL) AS in_use
                 FROM keys k WHERE k.ring_id = $1 ORDER BY k.id";
    let glance = |row: GlanceRow| {
        Ok(KeyGlance {
            id: KeyId(row.id),
            kid: Kid(row.kid),
            status: word(&row.status)?,
            in_use: row.in_use,
            last_tick: Tick(row.last_tick),
        })
    };
    s.rows::<GlanceRow>(query, &[Bind::Int(ring.0)])?.into_iter().map(glance).collect()
}

#[derive(QueryableByName)]
struct TallyRow {
    #[diesel(sql_type = BigInt)]
    key_id: i64,
    #[diesel(sql_type = BigInt)]
    batches: i64,
    #[diesel(sql_type = BigInt)]
    records: i64,
    #[diesel(sql_type = BigInt)]
    last_tick: i64,
    #[diesel(sql_type = BigInt)]
    last_at: i64,
}

impl From<TallyRow> for KeyTally {
    fn from(row: TallyRow) -> Self {
        KeyTally {
            key: KeyId(row.key_id),
            batches: row.batches.unsigned_abs(),
            records: row.records.unsigned_abs(),
            last_tick: Tick(row.last_tick),
            last_at: Timestamp(row.last_at),
        }
    }
}

#[derive(QueryableByName)]
struct GlanceRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = BigInt)]
    last_tick: i64,
    #[diesel(sql_type = Bool)]
    in_use: bool,
}
