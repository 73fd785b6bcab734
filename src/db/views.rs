//! What goes into a [`Store`](super::Store) and comes out of it for those who steer it, bring records
//! and look: actions and their log, tokens, single records, lists.

use std::time::Duration;

use serde::Serialize;

use crate::types::{
    BatchId, BatchState, KeyId, KeyStatus, Kid, RecordId, RingId, Role, Tick, Timestamp, TokenId,
};

/// Something that an administrator does, for the log.
#[derive(Clone, Debug)]
pub struct AdminAction<'a> {
    /// Who.
    pub actor: &'a str,
    /// What, as `noun.verb`.
    pub action: &'a str,
    /// To what.
    pub target: String,
    /// More about it, as a JSON object.
    pub detail: serde_json::Value,
}

/// An entry of the administrators' log, as it stands there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdminEntry {
    /// Its number, from 1 on without a gap.
    pub seq: i64,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub target: String,
    /// More about it, as JSON text.
    pub detail: String,
    /// The hash of the entry before it.
    pub previous_hash: String,
    /// What [`AdminEntry::computed_hash`] gave when it was written.
    pub hash: String,
}

/// A token to be added.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub roles: Vec<Role>,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// How long it is good for; `None` for ever.
    pub valid_for: Option<Duration>,
}

/// A token as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// What people call it.
    pub name: String,
    /// What its bearer may do.
    pub roles: Vec<Role>,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<Timestamp>,
    /// How long it is still good for, by the database's clock.
    pub valid_for: Option<Duration>,
}

impl Token {
    /// Whether it still opens anything.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.revoked_at.is_none() && self.valid_for.is_none_or(|left| left > Duration::ZERO)
    }
}

/// What a node is told when it reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeOrders {
    /// An administrator asks it to drain.
    pub drain: bool,
    /// Its ring is paused.
    pub ring_paused: bool,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// It waits for its signature.
    Pending,
    /// Its signature is stored.
    Signed,
    /// It lies in a quarantined batch.
    Quarantined,
}

impl RecordState {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RecordState::Pending => "pending",
            RecordState::Signed => "signed",
            RecordState::Quarantined => "quarantined",
        }
    }
}

/// A record with whatever is known of it.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Its id.
    pub id: RecordId,
    /// Its external id.
    pub external_id: Option<String>,
    /// The bytes that are signed.
    pub payload: Vec<u8>,
    /// When it was inserted.
    pub created_at: Timestamp,
    /// Where it stands.
    pub state: RecordState,
    /// Its signature.
    pub signature: Option<RecordSignature>,
}

/// A stored signature with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSignature {
    /// The record.
    pub record: RecordId,
    /// The batch it was signed in.
    pub batch: BatchId,
    /// The signature.
    pub signature: Vec<u8>,
    /// The key.
    pub kid: Kid,
    /// When it was stored.
    pub signed_at: Timestamp,
}

/// A place in a ring's feed of signatures: by the end of the use, then by record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPosition {
    /// The tick at which the batch was stored.
    pub tick: Tick,
    /// The record.
    pub record: RecordId,
}

impl FeedPosition {
    /// Before every signature.
    pub const START: FeedPosition = FeedPosition { tick: Tick(0), record: RecordId(i64::MIN) };
}

/// A signature in a ring's feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedItem {
    /// Its place.
    pub position: FeedPosition,
    /// The record's external id.
    pub external_id: Option<String>,
    /// The signature.
    pub signature: Vec<u8>,
    /// The batch.
    pub batch: BatchId,
    /// The key.
    pub kid: Kid,
    /// When it was stored.
    pub signed_at: Timestamp,
}

/// A batch for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchView {
    /// Its id.
    pub id: BatchId,
    /// Its ring.
    pub ring: RingId,
    /// How many records it has.
    pub record_count: u32,
    /// Its state.
    pub state: BatchState,
    /// How often it failed.
    pub attempts: u32,
    /// Its last failure.
    pub failure: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was stored.
    pub stored_at: Option<Timestamp>,
    /// The key that has it, or that signed it.
    pub kid: Option<Kid>,
    /// The node that has it, or that stored it.
    pub node: Option<String>,
}

/// The keys of a ring in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyCounts {
    /// Keys that sign.
    pub active: u64,
    /// Keys that are kept from signing.
    pub disabled: u64,
    /// Keys that sign no more.
    pub retired: u64,
    /// Keys without their private part.
    pub destroyed: u64,
    /// Open uses.
    pub in_use: u64,
}

/// What a key has signed behind a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTally {
    /// The key.
    pub key: KeyId,
    /// Batches stored.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// The tick at which the last of them was stored.
    pub last_tick: Tick,
    /// When that was.
    pub last_at: Timestamp,
}

/// A key as those see it who look often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyGlance {
    /// Its id.
    pub id: KeyId,
    /// Its thumbprint.
    pub kid: Kid,
    /// Its status.
    pub status: KeyStatus,
    /// Whether a use of it is open.
    pub in_use: bool,
    /// The tick of the end of its last use; 0 if it was never used.
    pub last_tick: Tick,
}

/// The connections of this process to its database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Lent out.
    pub in_use: u32,
    /// Waiting to be lent.
    pub idle: u32,
}
