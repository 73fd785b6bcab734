//! The reads of `verify`, `audit` and `export`, in the same words for both databases.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};

use super::models::word;
use super::shared::{Bind, Session, TxResult};
use super::{BatchKey, Membership, SignedRecord, StoreError};
use crate::ledger::Event;
use crate::types::{BatchId, Fence, KeyId, Kid, Position, RecordId, RingId, Tick, Timestamp};

pub(super) fn signature_count<S: Session>(s: &mut S) -> TxResult<u64> {
    let query = "SELECT CAST(coalesce(sum(record_count), 0) AS BIGINT) AS value
                 FROM batches WHERE state = 'stored'";
    Ok(s.number(query, &[])?.unsigned_abs())
}

/// How many signatures a page holds at most.
const SIGNED_PAGE: i64 = 4096;

pub(super) fn signed_records<S: Session>(
    s: &mut S,
    after: Option<RecordId>,
    max_bytes: usize,
    each_bytes: usize,
) -> TxResult<Vec<SignedRecord>> {
    let after = after.map_or(i64::MIN, |record| record.0);
    let int = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    // A page is empty only at the end.
    let max_bytes = int(max_bytes).max(1);
    // As many as are likely to fit; if none is larger than its part of the bound, all of them do. The bounds
    // on records say what the join implies, so that no plan reads more of them.
    let limit = (max_bytes / int(each_bytes).max(1)).clamp(1, SIGNED_PAGE);
    let query = "WITH page AS MATERIALIZED (
                     SELECT record_id, batch_id, signature FROM signatures
                     WHERE record_id > $1 ORDER BY record_id LIMIT $2)
                 SELECT s.record_id, s.batch_id, s.signature, r.external_id,
                        CASE WHEN length(r.payload) <= $3 THEN r.payload END AS payload,
                        coalesce(length(r.payload) > $3, FALSE) AS is_left_out
                 FROM page s LEFT JOIN records r
                 ON r.id = s.record_id AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM page)
                 ORDER BY s.record_id";
    let binds = [Bind::Int(after), Bind::Int(limit), Bind::Int(max_bytes / limit)];
    let rows = s.rows::<SmallSignedRow>(query, &binds)?;
    if rows.iter().all(|row| !row.is_left_out) {
        return Ok(rows.into_iter().map(|row| row.signed.into()).collect());
    }
    drop(rows);
    signed_records_of_any_size(s, after, max_bytes)
}

fn signed_records_of_any_size<S: Session>(
    s: &mut S,
    after: i64,
    max_bytes: i64,
) -> TxResult<Vec<SignedRecord>> {
    // The lengths are summed apart from the payloads, so that a page of large ones is never read
    // beyond its end. SQLite copies every column that the query of a window function names: without
    // the materialized step each page read all payloads behind it (40 of 16 MiB: 27 s, now 5 s).
    // The bounds on records say what the joins imply, so that no plan reads more of them.
    let query = "WITH first AS MATERIALIZED (
                     SELECT record_id, batch_id, signature FROM signatures
                     WHERE record_id > $1 ORDER BY record_id LIMIT $2),
                 page AS MATERIALIZED (
                     SELECT s.record_id, s.batch_id, s.signature,
                            coalesce(length(r.payload), 0) AS bytes
                     FROM first s LEFT JOIN records r ON r.id = s.record_id
                      AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM first))
                 SELECT t.record_id, t.batch_id, t.signature, r.external_id, r.payload
                 FROM (SELECT record_id, batch_id, signature,
                              sum(bytes) OVER (ORDER BY record_id) - bytes AS bytes_before
                       FROM page) t
                 LEFT JOIN records r ON r.id = t.record_id
                  AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM first)
                 WHERE t.bytes_before < $3 ORDER BY t.record_id";
    let binds = [Bind::Int(after), Bind::Int(SIGNED_PAGE), Bind::Int(max_bytes)];
    Ok(s.rows::<SignedRow>(query, &binds)?.into_iter().map(SignedRecord::from).collect())
}

pub(super) fn batch_keys<S: Session>(s: &mut S, batches: &[BatchId]) -> TxResult<Vec<BatchKey>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    // The ids are numbers of ours, and a list in the text works on both databases.
    let ids = batches.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let query = format!(
        "SELECT u.batch_id, b.ring_id, u.key_id, k.kid, k.public_key, k.algorithm, {} AS stored_at
         FROM key_uses u JOIN keys k ON k.id = u.key_id JOIN batches b ON b.id = u.batch_id
         WHERE u.outcome = 'stored' AND u.batch_id IN ({ids})",
        S::micros("b.stored_at")
    );
    Ok(s.rows::<BatchKeyRow>(&query, &[])?.into_iter().map(BatchKey::from).collect())
}

pub(super) fn history<S: Session>(
    s: &mut S,
    ring: RingId,
    after: Tick,
    until: Tick,
    limit: u32,
) -> TxResult<Vec<Event>> {
    let query = "
        SELECT * FROM (
            SELECT fence AS tick, 'checked_out' AS kind, fence, key_id, batch_id, '' AS word
            FROM key_uses WHERE ring_id = $1 AND fence > $2 AND fence <= $3 ORDER BY fence LIMIT $4) a
        UNION ALL SELECT * FROM (
            SELECT end_tick AS tick, 'ended' AS kind, fence, key_id, batch_id, outcome AS word
            FROM key_uses WHERE ring_id = $1 AND end_tick > $2 AND end_tick <= $3 ORDER BY end_tick LIMIT $4) b
        UNION ALL SELECT * FROM (
            SELECT tick, 'key' AS kind, tick AS fence, key_id, CAST(0 AS BIGINT) AS batch_id, event AS word
            FROM key_events WHERE ring_id = $1 AND tick > $2 AND tick <= $3 ORDER BY tick LIMIT $4) c
        ORDER BY tick, kind LIMIT $4";
    let binds =
        [Bind::Int(ring.0), Bind::Int(after.0), Bind::Int(until.0), Bind::Int(limit.into())];
    let rows = s.rows::<EventRow>(query, &binds)?;
    let is_full = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let mut events = rows.into_iter().map(Event::try_from).collect::<Result<Vec<_>, _>>()?;
    // A tick that stands twice must not be cut in two by the end of a page.
    if is_full && let (Some(first), Some(last)) = (events.first(), events.last()) {
        let last = last.tick();
        if first.tick() != last {
            events.retain(|event| event.tick() != last);
        }
    }
    Ok(events)
}

pub(super) fn memberships<S: Session>(
    s: &mut S,
    after: Option<RecordId>,
    limit: u32,
) -> TxResult<Vec<Membership>> {
    // The bounds on records say what the join implies, so that no plan reads more of them.
    let query = "WITH page AS MATERIALIZED (
                     SELECT record_id, batch_id FROM signatures
                     WHERE record_id > $1 ORDER BY record_id LIMIT $2)
                 SELECT s.record_id, s.batch_id, r.ring_id, r.inserted_xid
                 FROM page s LEFT JOIN records r
                 ON r.id = s.record_id AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM page)
                 ORDER BY s.record_id";
    let after = after.map_or(i64::MIN, |record| record.0);
    let rows = s.rows::<MembershipRow>(query, &[Bind::Int(after), Bind::Int(limit.into())])?;
    Ok(rows.into_iter().map(Membership::from).collect())
}

// Rows

#[derive(QueryableByName)]
struct SignedRow {
    #[diesel(sql_type = BigInt)]
    record_id: i64,
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
    #[diesel(sql_type = Nullable<Text>)]
    external_id: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct SmallSignedRow {
    #[diesel(embed)]
    signed: SignedRow,
    /// The payload is larger than was asked for, and not in `signed`.
    #[diesel(sql_type = Bool)]
    is_left_out: bool,
}

impl From<SignedRow> for SignedRecord {
    fn from(row: SignedRow) -> Self {
        SignedRecord {
            record: RecordId(row.record_id),
            batch: BatchId(row.batch_id),
            signature: row.signature,
            external_id: row.external_id,
            payload: row.payload,
        }
    }
}

#[derive(QueryableByName)]
struct BatchKeyRow {
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = BigInt)]
    ring_id: i64,
    #[diesel(sql_type = BigInt)]
    key_id: i64,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = Binary)]
    public_key: Vec<u8>,
    #[diesel(sql_type = Text)]
    algorithm: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    stored_at: Option<i64>,
}

impl From<BatchKeyRow> for BatchKey {
    fn from(row: BatchKeyRow) -> Self {
        BatchKey {
            batch: BatchId(row.batch_id),
            ring: RingId(row.ring_id),
            key: KeyId(row.key_id),
            kid: Kid(row.kid),
            public_key: row.public_key,
            algorithm: row.algorithm,
            stored_at: row.stored_at.map(Timestamp),
        }
    }
}

/// An event of a ring's history; `kind` is `checked_out`, `ended` or `key`.
#[derive(QueryableByName)]
struct EventRow {
    #[diesel(sql_type = BigInt)]
    tick: i64,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = BigInt)]
    fence: i64,
    #[diesel(sql_type = BigInt)]
    key_id: i64,
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = Text)]
    word: String,
}

impl TryFrom<EventRow> for Event {
    type Error = StoreError;

    fn try_from(row: EventRow) -> Result<Self, StoreError> {
        let tick = Tick(row.tick);
        let fence = Fence(Tick(row.fence));
        let key = KeyId(row.key_id);
        let batch = BatchId(row.batch_id);
        Ok(match row.kind.as_str() {
            "checked_out" => Event::CheckedOut { fence, key, batch },
            "ended" => Event::Ended { tick, fence, key, batch, outcome: word(&row.word)? },
            _ => Event::Key { tick, key, event: word(&row.word)? },
        })
    }
}

#[derive(QueryableByName)]
struct MembershipRow {
    #[diesel(sql_type = BigInt)]
    record_id: i64,
    #[diesel(sql_type = BigInt)]
    batch_id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    ring_id: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    inserted_xid: Option<i64>,
}

impl From<MembershipRow> for Membership {
    fn from(row: MembershipRow) -> Self {
        let record = RecordId(row.record_id);
        let place = row.ring_id.zip(row.inserted_xid);
        Membership {
            record,
            batch: BatchId(row.batch_id),
            place: place.map(|(ring, xid)| (RingId(ring), Position { xid, id: record })),
        }
    }
}
