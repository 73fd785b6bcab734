//! What those who watch a service ask: cheap reads without a lock, on either database.

use std::time::Duration;

use super::models::{BytesRow, NumberRow, PositionRow};
use super::shared::{Bind, Session, TxResult};
use super::values::Backlog;
use crate::types::{Position, RingId};

/// What waits in a ring, counted up to `most` records behind the cursor.
pub(super) fn backlog<S: Session>(s: &mut S, ring: RingId, most: u32) -> TxResult<Backlog> {
    let cursor = "SELECT cursor_xid AS inserted_xid, cursor_id AS id FROM rings WHERE id = $1";
    let cursor = Position::from(s.row::<PositionRow>(cursor, &[Bind::Int(ring.0)])?);
    let binds = [Bind::Int(ring.0), Bind::Int(cursor.xid), Bind::Int(cursor.id.0)];
    let behind_cursor = "FROM records r
                         WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) > ($2, $3)";
    let count =
        format!("SELECT count(*) AS value FROM (SELECT 1 {behind_cursor} LIMIT {most}) waiting");
    let waiting = s.number(&count, &binds)?;
    let unfinished = "FROM batches b WHERE b.ring_id = $1 AND b.state IN ('open', 'retry')";
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
