//! Single records and their signatures, for those who brought them, on either database.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};

use super::models::NumberRow;
use super::shared::{Bind, Session, TxResult, UNFINISHED};
use super::{FeedItem, FeedPosition, RecordSignature, RecordState, StoredRecord};
use crate::types::{BatchId, Kid, RecordId, RingId, Tick, Timestamp};

/// How many stored uses a page of the feed looks at, at the most.
const FEED_BATCHES: i64 = 64;

/// A record of the ring.
pub(super) fn record<S: Session>(
    s: &mut S,
    ring: RingId,
    id: RecordId,
) -> TxResult<Option<StoredRecord>> {
    let query = format!(
        "SELECT r.id, r.external_id, r.payload, {} AS created_at,
                (SELECT count(*) FROM batches b
                 WHERE b.ring_id = r.ring_id AND b.state = 'quarantined' AND b.{UNFINISHED}
                   AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
                   AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id)) AS quarantined
         FROM records r WHERE r.id = $1 AND r.ring_id = $2",
        S::micros("r.created_at")
    );
    let Some(row) = s.rows::<StoredRow>(&query, &[Bind::Int(id.0), Bind::Int(ring.0)])?.pop()
    else {
        return Ok(None);
    };
    let signature = signatures_of(s, &[id])?.pop();
    let state = if signature.is_some() {
        RecordState::Signed
    } else if row.quarantined > 0 {
        RecordState::Quarantined
    } else {
        RecordState::Pending
    };
    Ok(Some(StoredRecord {
        id: RecordId(row.id),
        external_id: row.external_id,
        payload: row.payload,
        created_at: Timestamp(row.created_at),
        state,
        signature,
    }))
}

/// The record of that external id.
pub(super) fn record_id<S: Session>(
    s: &mut S,
    ring: RingId,
    external_id: &str,
) -> TxResult<Option<RecordId>> {
    let query = "SELECT id AS value FROM records WHERE ring_id = $1 AND external_id = $2";
    let row = s.rows::<NumberRow>(query, &[Bind::Int(ring.0), Bind::Text(external_id)])?.pop();
    Ok(row.map(|row| RecordId(row.value)))
}

/// The signatures that are stored for these records, in no order.
pub(super) fn signatures_of<S: Session>(
    s: &mut S,
    records: &[RecordId],
) -> TxResult<Vec<RecordSignature>> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    // The ids are numbers of ours, and a list in the text works on both databases.
    let ids = records.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let query = format!(
        "SELECT s.record_id, s.batch_id, s.signature, k.kid, {} AS signed_at
         FROM signatures s
         JOIN batches b ON b.id = s.batch_id
         JOIN key_uses u ON u.batch_id = s.batch_id AND u.outcome = 'stored'
         JOIN keys k ON k.id = u.key_id
         WHERE s.record_id IN ({ids})",
        S::micros("b.stored_at")
    );
    let rows = s.rows::<SignatureRow>(&query, &[])?;
    Ok(rows.into_iter().map(RecordSignature::from).collect())
}

/// Up to `limit` signatures of a ring in the order of the feed, from behind `after`.
pub(super) fn feed<S: Session>(
    s: &mut S,
    ring: RingId,
    after: FeedPosition,
    limit: u32,
) -> TxResult<Vec<FeedItem>> {
    let query = format!(
        "SELECT u.end_tick, u.batch_id, k.kid, {} AS signed_at,
                b.low_xid, b.low_id, b.high_xid, b.high_id
         FROM key_uses u JOIN keys k ON k.id = u.key_id JOIN batches b ON b.id = u.batch_id
         WHERE u.ring_id = $1 AND u.end_tick >= $2 AND u.outcome = 'stored'
         ORDER BY u.end_tick LIMIT $3",
        S::micros("b.stored_at")
    );
    let mut items = Vec::new();
    let mut from = after;
    loop {
        let binds = [Bind::Int(ring.0), Bind::Int(from.tick.0), Bind::Int(FEED_BATCHES)];
        let uses = s.rows::<FeedUseRow>(&query, &binds)?;
        let is_last = uses.len() < usize::try_from(FEED_BATCHES).unwrap_or(usize::MAX);
        for row in uses {
            let tick = Tick(row.end_tick);
            let behind = if tick == from.tick { from.record } else { RecordId(i64::MIN) };
            let left = limit as usize - items.len();
            items.extend(of_batch(s, ring, &row, behind, left)?);
            if items.len() >= limit as usize {
                return Ok(items);
            }
            from = FeedPosition { tick: tick.next(), record: RecordId(i64::MIN) };
        }
        if is_last {
            return Ok(items);
        }
    }
}

/// Signatures of one batch in order of record id.
fn of_batch<S: Session>(
    s: &mut S,
    ring: RingId,
    row: &FeedUseRow,
    behind: RecordId,
    limit: usize,
) -> TxResult<Vec<FeedItem>> {
    // With one transaction id, as always on SQLite, an index serves an equation and a range only.
    let range = if row.low_xid == row.high_xid {
        "r.inserted_xid = $2 AND r.id >= $3 AND r.inserted_xid = $4 AND r.id <= $5"
    } else {
        "(r.inserted_xid, r.id) >= ($2, $3) AND (r.inserted_xid, r.id) <= ($4, $5)"
    };
    let query = format!(
        "SELECT r.id, r.external_id, s.signature
         FROM records r JOIN signatures s ON s.record_id = r.id
         WHERE r.ring_id = $1 AND {range} AND r.id > $6 AND s.batch_id = $7
         ORDER BY r.id LIMIT $8"
    );
    let binds = [
        Bind::Int(ring.0),
        Bind::Int(row.low_xid),
        Bind::Int(row.low_id),
        Bind::Int(row.high_xid),
        Bind::Int(row.high_id),
        Bind::Int(behind.0),
        Bind::Int(row.batch_id),
        Bind::Int(i64::try_from(limit).unwrap_or(i64::MAX)),
    ];
    let rows = s.rows::<FeedRow>(&query, &binds)?;
    Ok(rows
        .into_iter()
        .map(|record| FeedItem {
            position: FeedPosition { tick: Tick(row.end_tick), record: RecordId(record.id) },
            external_id: record.external_id,
            signature: record.signature,
            batch: BatchId(row.batch_id),
            kid: Kid(row.kid.clone()),
            signed_at: Timestamp(row.signed_at),
        })
        .collect())
}

/// The batches that a node has stored behind a tick: when each use ended, and how long the batch's
/// first record had been there by then.
pub(super) fn stored_ages<S: Session>(
    s: &mut S,
    ring: RingId,
    node: &str,
    after: Tick,
    limit: u32,
) -> TxResult<Vec<(Tick, Duration)>> {
    let query = format!(
        "SELECT u.end_tick, {} - {} AS age_us
         FROM key_uses u JOIN batches b ON b.id = u.batch_id JOIN records r ON r.id = b.low_id
         WHERE u.ring_id = $1 AND u.end_tick > $2 AND u.outcome = 'stored' AND u.node = $3
         ORDER BY u.end_tick LIMIT $4",
        S::micros("b.stored_at"),
        S::micros("r.created_at")
    );
    let binds = [Bind::Int(ring.0), Bind::Int(after.0), Bind::Text(node), Bind::Int(limit.into())];
    let rows = s.rows::<AgeRow>(&query, &binds)?;
    let age = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or(0));
    Ok(rows.into_iter().map(|row| (Tick(row.end_tick), age(row.age_us))).collect())
}

#[derive(QueryableByName)]
struct StoredRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<Text>)]
    external_id: Option<String>,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = BigInt)]
    quarantined: i64,
}

#[derive(QueryableByName)]
struct SignatureRow {
    #[diesel(sql_type = BigInt)]
    record_id: i64,
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = BigInt)]
    signed_at: i64,
}

impl From<SignatureRow> for RecordSignature {
    fn from(row: SignatureRow) -> Self {
        RecordSignature {
            record: RecordId(row.record_id),
            batch: BatchId(row.batch_id),
            signature: row.signature,
            kid: Kid(row.kid),
            signed_at: Timestamp(row.signed_at),
        }
    }
}

#[derive(QueryableByName)]
struct FeedUseRow {
    #[diesel(sql_type = BigInt)]
    end_tick: i64,
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = BigInt)]
    signed_at: i64,
    #[diesel(sql_type = BigInt)]
    low_xid: i64,
    #[diesel(sql_type = BigInt)]
    low_id: i64,
    #[diesel(sql_type = BigInt)]
    high_xid: i64,
    #[diesel(sql_type = BigInt)]
    high_id: i64,
}

#[derive(QueryableByName)]
struct FeedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<Text>)]
    external_id: Option<String>,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
}

#[derive(QueryableByName)]
struct AgeRow {
    #[diesel(sql_type = BigInt)]
    end_tick: i64,
    #[diesel(sql_type = BigInt)]
    age_us: i64,
}
