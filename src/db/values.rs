//! What goes into a [`Store`](super::Store) and what comes out of it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::signing::{PublicKey, Signature};
use crate::types::{
    BatchId, BatchRange, BatchSize, BatchState, BlockerKind, Fence, KeyId, KeyStatus, Kid, NodeId,
    NodeState, Outcome, Position, Provider, RecordId, RingId, Tick, Timestamp,
};

/// A request for batches.
#[derive(Clone, Copy, Debug)]
pub struct CheckOut {
    /// Of which ring.
    pub ring: RingId,
    /// How many at most.
    pub max_batches: u32,
    /// How many records in a new one; a batch to be retried keeps its size.
    pub batch_size: BatchSize,
}

/// The answer to [`CheckOut`].
#[derive(Clone, Debug, Default)]
pub struct CheckedOut {
    /// The batches, in order of their fences.
    pub batches: Vec<ClaimedBatch>,
    /// Why there are fewer than asked for, if so.
    pub shortage: Option<Shortage>,
}

/// What kept a checkout from handing out more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// No record waits behind the cursor and no batch is to be retried.
    NoWork,
    /// Every active key is in use.
    NoFreeKey,
    /// The ring has no active key at all.
    NoActiveKey,
    /// The ring is paused.
    Paused,
}

/// One checkout of one key for one batch: all that a store must show to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyUse {
    /// The ring.
    pub ring: RingId,
    /// The tick of the checkout.
    pub fence: Fence,
    /// The batch.
    pub batch: BatchId,
    /// The key.
    pub key: KeyId,
}

/// A batch that is this node's to sign until its lease ends.
#[derive(Clone, Debug)]
pub struct ClaimedBatch {
    /// The checkout.
    pub key_use: KeyUse,
    /// The records.
    pub range: BatchRange,
    /// How often it has failed before.
    pub attempts: u32,
}

/// A batch with a signature for each of its records.
#[derive(Clone, Debug)]
pub struct SignedBatch {
    /// The checkout it was signed under.
    pub key_use: KeyUse,
    /// The signatures.
    pub signatures: Vec<(RecordId, Signature)>,
}

/// What became of one batch of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// Stored by this transaction.
    Stored,
    /// Stored by an earlier attempt whose reply was lost.
    AlreadyStored,
    /// The use had ended otherwise: nothing of the batch was stored.
    Fenced(Outcome),
}

/// A use to be ended without a store.
#[derive(Clone, Debug)]
pub struct GiveUp {
    /// The use.
    pub key_use: KeyUse,
    /// The batch's own failure, if it is to blame; `None` for a drain.
    pub failure: Option<String>,
}

/// Which open uses a reclaim may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimScope {
    /// Those whose lease has run out by the database's clock.
    Expired,
    /// All: the caller holds the signing lock, which proves that no other owner lives.
    All,
}

/// What a reclaim did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// The uses it ended, with the node that had them.
    pub uses: Vec<(KeyUse, NodeId)>,
    /// Batches that are quarantined now.
    pub quarantined: Vec<BatchId>,
    /// Database sessions ended because their transaction was older than a lease.
    pub terminated_sessions: u32,
}

/// Where a ring stands by its batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Batches in hand.
    pub open_batches: u64,
    /// Batches that wait for another attempt.
    pub retry_batches: u64,
    /// Batches stored.
    pub stored_batches: u64,
    /// Batches in quarantine.
    pub quarantined_batches: u64,
    /// Records in stored batches, which is the number of signatures.
    pub signed_records: u64,
    /// Records in quarantined batches.
    pub quarantined_records: u64,
    /// The ring's clock.
    pub tick: i64,
}

/// What waits to be signed, for those who watch: cheap, and so an estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Records behind the cursor, which no batch has taken yet; counted up to a limit only.
    pub waiting: u64,
    /// Records in batches that are open or wait for another attempt.
    pub in_batches: u64,
    /// How long the oldest of them has been there, by the database's clock.
    pub oldest: Option<Duration>,
}

/// What is left to sign, by the records themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Remaining {
    /// All records of the ring.
    pub records: u64,
    /// Records without a signature, quarantined ones left out.
    pub unsigned: u64,
    /// Those of them that lie behind the cursor and in no unfinished batch: a sweep finds them.
    pub behind_cursor: u64,
    /// Batches that are open or wait for another attempt.
    pub unfinished_batches: u64,
    /// Records in quarantined batches.
    pub quarantined: u64,
}

impl Remaining {
    /// Whether the ring is signed, apart from its quarantine.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.unsigned == 0 && self.unfinished_batches == 0
    }
}

/// Somebody's long transaction that holds Chancery up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// What it holds up, and how.
    pub kind: BlockerKind,
    /// Its process on the database server; 0 for a prepared transaction.
    pub pid: i32,
    /// The database it works in.
    pub database: String,
    /// Its application's name, or the prepared transaction's.
    pub application: String,
    /// Its age in seconds, unless this role may not know it.
    pub age_s: Option<i64>,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocker { kind, pid, database, application, age_s } = self;
        let age = match age_s {
            Some(age_s) => format!("open for {age_s} s"),
            None => "open for a time that only pg_read_all_stats may see".to_owned(),
        };
        match kind {
            BlockerKind::Prepared => write!(f, "the prepared transaction {application:?}")?,
            _ => write!(f, "a transaction of process {pid}, application {application:?}")?,
        }
        write!(f, ", in database {database}, {age}, {}", kind.effect())
    }
}

/// A ring as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its id.
    pub id: RingId,
    /// Its name.
    pub name: String,
    /// Its clock.
    pub tick: Tick,
    /// The last record that was put into a batch.
    pub cursor: Position,
    /// Whether an administrator has paused it: no node checks anything out.
    pub paused: bool,
    /// Where its private keys are used.
    pub provider: Provider,
}

/// A KEK that has sealed keys of this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekCheck {
    /// The KEK's id.
    pub kek_id: String,
    /// What only that KEK opens.
    pub check_value: Vec<u8>,
}

/// A key to be added.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its thumbprint.
    pub kid: Kid,
    /// Its algorithm's name.
    pub algorithm: &'static str,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its private key, sealed; `None` if it is held elsewhere.
    pub sealed: Option<SealedKey>,
}

/// A sealed private key.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// The sealed bytes.
    pub blob: Vec<u8>,
    /// The KEK that they need.
    pub kek_id: String,
}

/// A key as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its ring.
    pub ring: RingId,
    /// Its thumbprint.
    pub kid: Kid,
    /// Its algorithm's name.
    pub algorithm: String,
    /// Its public key, 32 bytes as they stand in the database.
    pub public_key: Vec<u8>,
    /// Its status.
    pub status: KeyStatus,
    /// Why it has that status, where somebody said so.
    pub status_reason: Option<String>,
    /// The tick of the end of its last use; 0 if it was never used.
    pub last_tick: Tick,
    /// Whether a use of it is open.
    pub in_use: bool,
    /// How many batches it has signed.
    pub stored_uses: u64,
    /// When it was added.
    pub created_at: Timestamp,
}

/// An active key with its sealed private key.
#[derive(Clone, Debug)]
pub struct SealedKeyRow {
    /// Its id.
    pub id: KeyId,
    /// Its thumbprint.
    pub kid: Kid,
    /// Its public key.
    pub public_key: Vec<u8>,
    /// The sealed private key; `None` if it is held elsewhere.
    pub sealed_private_key: Option<Vec<u8>>,
    /// The KEK that sealed it.
    pub kek_id: Option<String>,
}

/// A record to be inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// The user's own id.
    pub external_id: Option<String>,
    /// The bytes to be signed.
    pub payload: Vec<u8>,
}

/// What became of one record of an insert, with the id of the record that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New(RecordId),
    /// It was there already, with the same payload.
    Unchanged(RecordId),
    /// Its external id is there with another payload; it was not inserted.
    Conflict(RecordId),
}

impl Added {
    /// The record that is there now.
    #[must_use]
    pub fn id(self) -> RecordId {
        match self {
            Added::New(id) | Added::Unchanged(id) | Added::Conflict(id) => id,
        }
    }
}

/// What became of the records of an insert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// How many are new.
    pub added: u64,
    /// How many were there already, with the same payload.
    pub unchanged: u64,
    /// Indexes of those whose external id is there with another payload; they were not inserted.
    pub conflicts: Vec<usize>,
}

impl FromIterator<Added> for Inserted {
    fn from_iter<I: IntoIterator<Item = Added>>(added: I) -> Self {
        let mut inserted = Inserted::default();
        for (n, added) in added.into_iter().enumerate() {
            match added {
                Added::New(_) => inserted.added += 1,
                Added::Unchanged(_) => inserted.unchanged += 1,
                Added::Conflict(_) => inserted.conflicts.push(n),
            }
        }
        inserted
    }
}

/// A signature with its record.
#[derive(Clone, Debug)]
pub struct SignedRecord {
    /// The record's id.
    pub record: RecordId,
    /// The batch it was signed in.
    pub batch: BatchId,
    /// The signature as it stands in the database.
    pub signature: Vec<u8>,
    /// The record's external id.
    pub external_id: Option<String>,
    /// The record's payload; `None` if there is no such record.
    pub payload: Option<Vec<u8>>,
}

/// The key that signed a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchKey {
    /// The batch.
    pub batch: BatchId,
    /// The key.
    pub key: KeyId,
    /// The key's thumbprint.
    pub kid: Kid,
    /// The key's public key.
    pub public_key: Vec<u8>,
    /// The key's algorithm.
    pub algorithm: String,
    /// When the batch was stored.
    pub stored_at: Option<Timestamp>,
}

/// A batch as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// Its ring.
    pub ring: RingId,
    /// Its records.
    pub range: BatchRange,
    /// Its state.
    pub state: BatchState,
    /// How often it failed.
    pub attempts: u32,
    /// Its last failure.
    pub failure: Option<String>,
}

/// Where a signature's record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The signature's record.
    pub record: RecordId,
    /// The signature's batch.
    pub batch: BatchId,
    /// The record's ring and place; `None` if there is no such record.
    pub place: Option<(RingId, Position)>,
}

/// An open key use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUse {
    /// The use.
    pub key_use: KeyUse,
    /// Who has it.
    pub node: NodeId,
    /// Since when.
    pub checked_out_at: Timestamp,
    /// Until when, unless renewed.
    pub expires_at: Timestamp,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Its name: the configured one, or else its host's with the process id.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// Its process there.
    pub process_id: u32,
    /// The version of the program.
    pub version: String,
    /// How long its checkouts are good for, and three times as long as it is silent between two
    /// reports.
    pub lease: Duration,
    /// What it is doing.
    pub state: NodeState,
    /// Batches in flight.
    pub in_flight: u32,
    /// What keeps it from its work, if anything does.
    pub trouble: Option<String>,
}

/// A node as its row says: one start of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// As in the key uses.
    pub id: NodeId,
    /// What it said last.
    pub report: NodeReport,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// When it said that.
    pub last_seen_at: Timestamp,
    /// How long ago that is, by the database's clock.
    pub silent_for: Duration,
}

impl Node {
    /// Whether it has neither stopped nor been silent for longer than a lease.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.report.state != NodeState::Stopped && self.silent_for <= self.report.lease
    }
}
