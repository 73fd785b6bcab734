//! Rows as the queries of this floor return them, and their way into the types of [`super`].
//!
//! A row that does not fit its type (a word of no closed list, a negative count) was written by
//! something else than Chancery, and is reported, never guessed at.

use std::str::FromStr;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};

use super::{Batch, ClaimedBatch, DueKey, Key, KeyUse, OpenUse, Ring, SealedKeyRow, StoreError};
use crate::types::{
    BatchId, BatchRange, DataKeyId, Fence, KeyId, Kid, NodeId, Outcome, Position, Record, RecordId,
    RingId, Tick, Timestamp,
};

pub(super) fn word<T: FromStr<Err = crate::types::UnknownWord>>(
    word: &str,
) -> Result<T, StoreError> {
    word.parse().map_err(|unknown: crate::types::UnknownWord| {
        StoreError::Database(format!("{unknown}: is the database newer than this program?"))
    })
}

pub(super) fn count(value: i64) -> Result<u32, StoreError> {
    u32::try_from(value).map_err(|_| StoreError::Database(format!("{value} is not a count")))
}

/// One number, named `value`.
#[derive(QueryableByName)]
pub(super) struct NumberRow {
    #[diesel(sql_type = BigInt)]
    pub(super) value: i64,
}

/// One truth, named `value`.
#[derive(QueryableByName)]
pub(super) struct FlagRow {
    #[diesel(sql_type = Bool)]
    pub(super) value: bool,
}

/// A key that is free, and whether any batch of the ring waits to be tried again: the same in each row.
#[derive(QueryableByName)]
pub(super) struct FreeKeyRow {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
    #[diesel(sql_type = Bool)]
    pub(super) has_retries: bool,
}

/// Some bytes, named `value`.
#[derive(QueryableByName)]
pub(super) struct BytesRow {
    #[diesel(sql_type = Binary)]
    pub(super) value: Vec<u8>,
}

/// One text, named `value`.
#[derive(QueryableByName)]
pub(super) struct TextRow {
    #[diesel(sql_type = Text)]
    pub(super) value: String,
}

#[derive(QueryableByName)]
pub(super) struct RingRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    tick: i64,
    #[diesel(sql_type = BigInt)]
    cursor_xid: i64,
    #[diesel(sql_type = BigInt)]
    cursor_id: i64,
    #[diesel(sql_type = Bool)]
    paused: bool,
    #[diesel(sql_type = Text)]
    provider: String,
}

impl RingRow {
    /// The columns, in any query over `rings`.
    pub(super) const COLUMNS: &'static str =
        "id, name, tick, cursor_xid, cursor_id, paused, provider";
}

impl TryFrom<RingRow> for Ring {
    type Error = StoreError;

    fn try_from(row: RingRow) -> Result<Self, StoreError> {
        Ok(Ring {
            id: RingId(row.id),
            name: row.name,
            tick: Tick(row.tick),
            cursor: Position { xid: row.cursor_xid, id: RecordId(row.cursor_id) },
            paused: row.paused,
            provider: word(&row.provider)?,
        })
    }
}

/// A record's place.
#[derive(QueryableByName)]
pub(super) struct PositionRow {
    #[diesel(sql_type = BigInt)]
    inserted_xid: i64,
    #[diesel(sql_type = BigInt)]
    id: i64,
}

impl From<PositionRow> for Position {
    fn from(row: PositionRow) -> Self {
        Position { xid: row.inserted_xid, id: RecordId(row.id) }
    }
}

/// The first and the last record of a batch to be made.
#[derive(QueryableByName)]
pub(super) struct RangeRow {
    #[diesel(sql_type = BigInt)]
    low_xid: i64,
    #[diesel(sql_type = BigInt)]
    low_id: i64,
    #[diesel(sql_type = BigInt)]
    high_xid: i64,
    #[diesel(sql_type = BigInt)]
    high_id: i64,
}

impl RangeRow {
    pub(super) fn range(self, record_count: u32) -> BatchRange {
        let position = |xid, id| Position { xid, id: RecordId(id) };
        BatchRange {
            low: position(self.low_xid, self.low_id),
            high: position(self.high_xid, self.high_id),
            record_count,
        }
    }
}

/// An edge of a batch to be made: the `n`th record behind the cursor, counted from 0.
#[derive(QueryableByName)]
pub(super) struct EdgeRow {
    #[diesel(sql_type = BigInt)]
    pub(super) n: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) inserted_xid: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
}

/// Turns the edges of consecutive batches of `size` records into their ranges.
///
/// `edges` are the first and the last record of each batch in order, which may be the same one.
pub(super) fn ranges(edges: &[EdgeRow], size: i64) -> Result<Vec<BatchRange>, StoreError> {
    let mut ranges: Vec<BatchRange> = Vec::new();
    for edge in edges {
        let position = Position { xid: edge.inserted_xid, id: RecordId(edge.id) };
        let starts_batch = edge.n % size == 0;
        if starts_batch {
            ranges.push(BatchRange { low: position, high: position, record_count: 1 });
        } else if let Some(range) = ranges.last_mut() {
            range.high = position;
            range.record_count = count(edge.n % size + 1)?;
        }
    }
    Ok(ranges)
}

#[derive(QueryableByName)]
pub(super) struct BatchRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    ring_id: i64,
    #[diesel(sql_type = BigInt)]
    low_xid: i64,
    #[diesel(sql_type = BigInt)]
    low_id: i64,
    #[diesel(sql_type = BigInt)]
    high_xid: i64,
    #[diesel(sql_type = BigInt)]
    high_id: i64,
    #[diesel(sql_type = BigInt)]
    record_count: i64,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    failure: Option<String>,
}

impl BatchRow {
    /// The columns, in any query over `batches`.
    pub(super) const COLUMNS: &'static str = "id, ring_id, low_xid, low_id, high_xid, high_id, \
                                              record_count, state, attempts, failure";
}

impl TryFrom<BatchRow> for Batch {
    type Error = StoreError;

    fn try_from(row: BatchRow) -> Result<Self, StoreError> {
        Ok(Batch {
            id: BatchId(row.id),
            ring: RingId(row.ring_id),
            range: BatchRange {
                low: Position { xid: row.low_xid, id: RecordId(row.low_id) },
                high: Position { xid: row.high_xid, id: RecordId(row.high_id) },
                record_count: count(row.record_count)?,
            },
            state: word(&row.state)?,
            attempts: count(row.attempts.into())?,
            failure: row.failure,
        })
    }
}

impl Batch {
    /// The batch as claimed by a key use.
    pub(super) fn claimed(&self, fence: Fence, key: KeyId) -> ClaimedBatch {
        ClaimedBatch {
            key_use: KeyUse { ring: self.ring, fence, batch: self.id, key },
            range: self.range,
            attempts: self.attempts,
        }
    }
}

/// A key use as the store and the reclaim lock it.
#[derive(QueryableByName)]
pub(super) struct UseRow {
    #[diesel(sql_type = BigInt)]
    pub(super) ring_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) fence: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) batch_id: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) key_id: i64,
    #[diesel(sql_type = Text)]
    pub(super) node: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) outcome: Option<String>,
    #[diesel(sql_type = BigInt)]
    checked_out_at: i64,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
}

impl UseRow {
    pub(super) fn key_use(&self) -> KeyUse {
        KeyUse {
            ring: RingId(self.ring_id),
            fence: Fence(Tick(self.fence)),
            batch: BatchId(self.batch_id),
            key: KeyId(self.key_id),
        }
    }

    pub(super) fn outcome(&self) -> Result<Option<Outcome>, StoreError> {
        self.outcome.as_deref().map(word).transpose()
    }
}

/// A use as PostgreSQL locks it to end it, with the records of its batch.
#[derive(QueryableByName)]
pub(super) struct LockedUseRow {
    #[diesel(embed)]
    pub(super) of: UseRow,
    #[diesel(sql_type = BigInt)]
    record_count: i64,
}

impl LockedUseRow {
    pub(super) fn records(&self) -> Result<u64, StoreError> {
        Ok(count(self.record_count)?.into())
    }
}

/// What PostgreSQL changed to end uses: the ring's tick before, and how many rows.
#[derive(QueryableByName)]
pub(super) struct ChangedRow {
    #[diesel(sql_type = BigInt)]
    pub(super) before: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) uses: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) keys: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) batches: i64,
}

impl From<UseRow> for OpenUse {
    fn from(row: UseRow) -> Self {
        OpenUse {
            key_use: row.key_use(),
            checked_out_at: Timestamp(row.checked_out_at),
            expires_at: Timestamp(row.expires_at),
            node: NodeId(row.node),
        }
    }
}

#[derive(QueryableByName)]
pub(super) struct KeyRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    ring_id: i64,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = Text)]
    algorithm: String,
    #[diesel(sql_type = Binary)]
    public_key: Vec<u8>,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Nullable<Text>)]
    status_reason: Option<String>,
    #[diesel(sql_type = BigInt)]
    last_tick: i64,
    #[diesel(sql_type = Bool)]
    in_use: bool,
    #[diesel(sql_type = BigInt)]
    stored_uses: i64,
    #[diesel(sql_type = BigInt)]
    signature_count: i64,
    #[diesel(sql_type = Nullable<Text>)]
    kek_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
}

impl TryFrom<KeyRow> for Key {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        Ok(Key {
            id: KeyId(row.id),
            ring: RingId(row.ring_id),
            kid: Kid(row.kid),
            algorithm: row.algorithm,
            public_key: row.public_key,
            status: word(&row.status)?,
            status_reason: row.status_reason,
            last_tick: Tick(row.last_tick),
            in_use: row.in_use,
            stored_uses: count(row.stored_uses)?.into(),
            signatures: row.signature_count.unsigned_abs(),
            kek_id: row.kek_id,
            created_at: Timestamp(row.created_at),
        })
    }
}

#[derive(QueryableByName)]
pub(super) struct SealedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = Binary)]
    public_key: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    sealed_private_key: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    kek_id: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    data_key_id: Option<i64>,
}

impl From<SealedRow> for SealedKeyRow {
    fn from(row: SealedRow) -> Self {
        SealedKeyRow {
            id: KeyId(row.id),
            kid: Kid(row.kid),
            public_key: row.public_key,
            sealed_private_key: row.sealed_private_key,
            kek_id: row.kek_id,
            data_key: row.data_key_id.map(DataKeyId),
        }
    }
}

/// A key that has signed for long enough.
#[derive(QueryableByName)]
pub(super) struct DueRow {
    #[diesel(sql_type = Text)]
    kid: String,
    #[diesel(sql_type = BigInt)]
    signature_count: i64,
    #[diesel(sql_type = BigInt)]
    age_s: i64,
}

impl From<DueRow> for DueKey {
    fn from(row: DueRow) -> Self {
        DueKey {
            kid: Kid(row.kid),
            signatures: row.signature_count.unsigned_abs(),
            age: Duration::from_secs(row.age_s.max(0).unsigned_abs()),
        }
    }
}

/// A key's ring, id and status.
#[derive(QueryableByName)]
pub(super) struct KeyStateRow {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) ring_id: i64,
    #[diesel(sql_type = Text)]
    status: String,
}

impl KeyStateRow {
    pub(super) fn status(&self) -> Result<crate::types::KeyStatus, StoreError> {
        word(&self.status)
    }
}

#[derive(QueryableByName)]
pub(super) struct KekRow {
    #[diesel(sql_type = Text)]
    pub(super) kek_id: String,
    #[diesel(sql_type = Binary)]
    pub(super) check_value: Vec<u8>,
}

#[derive(QueryableByName)]
pub(super) struct RecordRow {
    #[diesel(sql_type = BigInt)]
    inserted_xid: i64,
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
}

impl From<RecordRow> for Record {
    fn from(row: RecordRow) -> Self {
        Record {
            position: Position { xid: row.inserted_xid, id: RecordId(row.id) },
            payload: row.payload,
        }
    }
}

/// A record whose transaction is known.
#[derive(QueryableByName)]
pub(super) struct PayloadRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
}

impl PayloadRow {
    pub(super) fn of_transaction(self, xid: i64) -> Record {
        Record { position: Position { xid, id: RecordId(self.id) }, payload: self.payload }
    }
}

/// A record that is there already, for comparison with one to be inserted.
#[derive(QueryableByName)]
pub(super) struct ExistingRow {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
    #[diesel(sql_type = Text)]
    pub(super) external_id: String,
    #[diesel(sql_type = Binary)]
    pub(super) payload: Vec<u8>,
}

#[derive(QueryableByName)]
pub(super) struct StateRow {
    #[diesel(sql_type = Text)]
    pub(super) state: String,
    #[diesel(sql_type = BigInt)]
    pub(super) batches: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) records: i64,
}

/// A page of the search for unsigned records.
#[derive(QueryableByName)]
pub(super) struct RemainingRow {
    #[diesel(sql_type = BigInt)]
    pub(super) records: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) unsigned: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) behind_cursor: i64,
}

/// How many records were counted, and the last of them.
#[derive(QueryableByName)]
pub(super) struct PageRow {
    #[diesel(sql_type = BigInt)]
    pub(super) records: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) last_xid: i64,
    #[diesel(sql_type = BigInt)]
    pub(super) last_id: i64,
}
