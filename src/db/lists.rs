//! Lists in pages for those who look, in order of id, on either database.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use super::models::{KeyRow, count, word};
use super::shared::{Bind, Session, TxResult, UNFINISHED};
use super::{BatchView, Key, KeyCounts, StoreError};
use crate::types::{BatchId, BatchState, KeyId, KeyStatus, Kid, RingId, Timestamp};

/// The columns of [`KeyRow`], over `keys k`.
pub(super) fn key_columns<S: Session>() -> String {
    format!(
        "k.id, k.ring_id, k.kid, k.algorithm, k.public_key, k.status, k.status_reason,
         k.last_tick, k.signature_count, k.kek_id, {} AS created_at,
         EXISTS (SELECT 1 FROM key_uses u WHERE u.key_id = k.id AND u.end_tick IS NULL) AS in_use,
         (SELECT count(*) FROM key_uses u WHERE u.key_id = k.id AND u.outcome = 'stored') AS stored_uses",
        S::micros("k.created_at")
    )
}

/// Keys of a ring behind `after`, of one status or of all.
pub(super) fn keys<S: Session>(
    s: &mut S,
    ring: RingId,
    status: Option<KeyStatus>,
    after: KeyId,
    limit: u32,
) -> TxResult<Vec<Key>> {
    let query = format!(
        "SELECT {} FROM keys k
         WHERE k.ring_id = $1 AND k.id > $2 AND ($3 = '' OR k.status = $3)
         ORDER BY k.id LIMIT $4",
        key_columns::<S>()
    );
    let binds = [
        Bind::Int(ring.0),
        Bind::Int(after.0),
        Bind::Text(status.map_or("", KeyStatus::as_str)),
        Bind::Int(limit.into()),
    ];
    let rows = s.rows::<KeyRow>(&query, &binds)?;
    Ok(rows.into_iter().map(Key::try_from).collect::<Result<_, _>>()?)
}

/// The key of that thumbprint, of whatever ring.
pub(super) fn key<S: Session>(s: &mut S, kid: &Kid) -> TxResult<Key> {
    let query = format!("SELECT {} FROM keys k WHERE k.kid = $1", key_columns::<S>());
    match s.rows::<KeyRow>(&query, &[Bind::Text(&kid.0)])?.pop() {
        Some(row) => Ok(Key::try_from(row)?),
        None => Err(StoreError::NotFound { what: "key", name: kid.0.clone() }.into()),
    }
}

/// How many keys of a ring have each status, and how many uses are open.
pub(super) fn key_counts<S: Session>(s: &mut S, ring: RingId) -> TxResult<KeyCounts> {
    // By the sign SQLite does not read all uses of the ring, but the index of those that are open.
    let query = "SELECT status AS word, count(*) AS number FROM keys WHERE ring_id = $1
                 GROUP BY status
                 UNION ALL
                 SELECT 'in use', count(*) FROM key_uses WHERE +ring_id = $1 AND end_tick IS NULL";
    let mut counts = KeyCounts::default();
    for row in s.rows::<CountRow>(query, &[Bind::Int(ring.0)])? {
        let number = row.number.unsigned_abs();
        if row.word == "in use" {
            counts.in_use = number;
            continue;
        }
        match word::<KeyStatus>(&row.word)? {
            KeyStatus::Active => counts.active = number,
            KeyStatus::Disabled => counts.disabled = number,
            KeyStatus::Retired => counts.retired = number,
            KeyStatus::Destroyed => counts.destroyed = number,
        }
    }
    Ok(counts)
}

/// Batches of a ring behind `after`, of one state or of all.
pub(super) fn batches<S: Session>(
    s: &mut S,
    ring: RingId,
    state: Option<BatchState>,
    after: BatchId,
    limit: u32,
) -> TxResult<Vec<BatchView>> {
    // The index of unfinished batches serves only who asks for such.
    let unfinished = match state {
        None | Some(BatchState::Stored) => String::new(),
        Some(_) => format!("AND b.{UNFINISHED}"),
    };
    let query = format!(
        "{} WHERE b.ring_id = $1 AND b.id > $2 AND ($3 = '' OR b.state = $3) {unfinished}
         ORDER BY b.id LIMIT $4",
        select_batches::<S>()
    );
    let binds = [
        Bind::Int(ring.0),
        Bind::Int(after.0),
        Bind::Text(state.map_or("", BatchState::as_str)),
        Bind::Int(limit.into()),
    ];
    let rows = s.rows::<BatchViewRow>(&query, &binds)?;
    Ok(rows.into_iter().map(BatchView::try_from).collect::<Result<_, _>>()?)
}

/// One batch.
pub(super) fn batch<S: Session>(s: &mut S, batch: BatchId) -> TxResult<BatchView> {
    let query = format!("{} WHERE b.id = $1", select_batches::<S>());
    match s.rows::<BatchViewRow>(&query, &[Bind::Int(batch.0)])?.pop() {
        Some(row) => Ok(BatchView::try_from(row)?),
        None => Err(StoreError::NotFound { what: "batch", name: batch.to_string() }.into()),
    }
}

fn select_batches<S: Session>() -> String {
    format!(
        "SELECT b.id, b.ring_id, b.record_count, b.state, b.attempts, b.failure,
                {} AS created_at, {} AS stored_at, k.kid, u.node
         FROM batches b
         LEFT JOIN key_uses u ON u.batch_id = b.id AND (u.end_tick IS NULL OR u.outcome = 'stored')
         LEFT JOIN keys k ON k.id = u.key_id",
        S::micros("b.created_at"),
        S::micros("b.stored_at")
    )
}

#[derive(QueryableByName)]
struct CountRow {
    #[diesel(sql_type = Text)]
    word: String,
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct BatchViewRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    ring_id: i64,
    #[diesel(sql_type = BigInt)]
    record_count: i64,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    failure: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    stored_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    kid: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    node: Option<String>,
}

impl TryFrom<BatchViewRow> for BatchView {
    type Error = StoreError;

    fn try_from(row: BatchViewRow) -> Result<Self, StoreError> {
        Ok(BatchView {
            id: BatchId(row.id),
            ring: RingId(row.ring_id),
            record_count: count(row.record_count)?,
            state: word(&row.state)?,
            attempts: count(row.attempts.into())?,
            failure: row.failure,
            created_at: Timestamp(row.created_at),
            stored_at: row.stored_at.map(Timestamp),
            kid: row.kid.map(Kid),
            node: row.node,
        })
    }
}
