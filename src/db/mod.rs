//! The only door to the database: the [`Store`] trait, its two implementations and its errors.
//!
//! Every method is one transaction (or a few, where its documentation says so), blocks the calling
//! thread and serves one ring. Nothing above this module knows diesel or SQL.

#[cfg(test)]
mod conformance;
pub mod migrate;
mod models;
mod postgres;
mod schema;
mod seen;
mod shared;
mod sqlite;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::DatabaseUrl;
use crate::ledger;
use crate::signing::{PublicKey, Signature};
use crate::types::{
    BatchId, BatchRange, BatchSize, BatchState, Fence, KeyEvent, KeyId, KeyStatus, Kid, NodeId,
    Outcome, Position, Record, RecordId, RingId, Tick, Timestamp,
};

pub use postgres::PgStore;
pub use sqlite::{HeldSigningLock, SigningLock, SqliteStore};

/// How a store connects.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// This start of this process; it stands in `key_uses.node` and in PostgreSQL's
    /// `application_name`.
    pub node: NodeId,
    /// How many connections the pool may hold.
    pub pool_size: u32,
    /// How long a checkout is good for without renewal. No transaction of this store may live
    /// longer.
    pub lease: Duration,
    /// After how many failures of its own a batch is quarantined.
    pub max_attempts: u32,
}

/// Connects to a database. It neither migrates nor checks the schema: see [`migrate`].
///
/// # Errors
/// [`StoreError::Unavailable`] where a later attempt may succeed, [`StoreError::Connect`] where it
/// cannot.
pub fn open(url: &DatabaseUrl, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        DatabaseUrl::Postgres { url } => Ok(Arc::new(PgStore::open(url, options)?)),
        DatabaseUrl::Sqlite { path } => Ok(Arc::new(SqliteStore::open(path, options)?)),
    }
}

/// What Chancery asks of a database.
pub trait Store: Send + Sync + 'static {
    // The protocol (docs/ARCHITECTURE.md), in the order of a batch's life.

    /// Checks out up to `max_batches` batches, each with the least recently used free key.
    ///
    /// # Errors
    /// [`StoreError::RolledBack`] if the ring's tick is lower than one this store has seen.
    fn check_out(&self, request: &CheckOut) -> Result<CheckedOut, StoreError>;

    /// Records of a batch in order, from behind `after`: as many as fit into `max_bytes` of
    /// payload, but at least one; empty at the end of the batch.
    fn load_batch(
        &self,
        ring: RingId,
        range: &BatchRange,
        after: Option<Position>,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError>;

    /// Stores several batches of one ring in one transaction and returns their keys.
    ///
    /// The outcomes come in the order of `batches`. A batch whose use has ended is left out of the
    /// transaction and said to be fenced (or stored already); the others go on.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if a batch breaks a rule: nothing of the group is stored.
    fn store_batches(
        &self,
        ring: RingId,
        batches: &[SignedBatch],
    ) -> Result<Vec<StoreOutcome>, StoreError>;

    /// Moves the end of the lease of open uses of this node to now plus a lease. Returns those
    /// that were still open.
    fn renew(&self, ring: RingId, fences: &[Fence]) -> Result<Vec<Fence>, StoreError>;

    /// Ends open uses of this node without a store: the batches go to `retry`, or to quarantine
    /// after too many failures of their own. Returns the outcome that each use has now.
    fn give_up(&self, ring: RingId, uses: &[GiveUp]) -> Result<Vec<Outcome>, StoreError>;

    /// Ends the uses that their owners cannot end any more.
    fn reclaim(&self, ring: RingId, scope: ReclaimScope) -> Result<Reclaimed, StoreError>;

    /// Moves unsigned records that lie behind the cursor and in no unfinished batch back before
    /// it, so that they are signed. Returns how many.
    fn sweep(&self, ring: RingId) -> Result<u64, StoreError>;

    /// Whether a checkout would find a batch now; takes no lock.
    fn has_work(&self, ring: RingId) -> Result<bool, StoreError>;

    /// Where the ring stands, by its batches and uses alone: cheap whatever the number of records.
    fn progress(&self, ring: RingId) -> Result<Progress, StoreError>;

    /// The truth about what is left, by looking at every record.
    fn remaining(&self, ring: RingId) -> Result<Remaining, StoreError>;

    /// How many records the ring has, signed or not.
    fn record_count(&self, ring: RingId) -> Result<u64, StoreError>;

    /// The transactions that keep inserted records from being seen by the cursor, oldest first.
    fn blockers(&self) -> Result<Vec<Blocker>, StoreError>;

    // Rings and keys.

    /// This database's own name for itself, part of what every sealed key is bound to.
    fn database_id(&self) -> Result<String, StoreError>;

    /// The ring of that name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn ring(&self, name: &str) -> Result<Ring, StoreError>;

    /// Every ring, in order of id.
    fn rings(&self) -> Result<Vec<Ring>, StoreError>;

    /// The check values of the KEKs that have sealed keys here, oldest first.
    fn kek_checks(&self) -> Result<Vec<KekCheck>, StoreError>;

    /// Remembers a KEK's check value; no error if it is there already.
    fn add_kek(&self, check: &KekCheck) -> Result<(), StoreError>;

    /// Adds `count` active keys, each made by `make` for the id that it will have.
    ///
    /// With `if_empty`, adds none to a ring that has keys. Returns the ids added.
    fn add_keys(
        &self,
        ring: RingId,
        count: u32,
        if_empty: bool,
        actor: &str,
        make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
    ) -> Result<Vec<KeyId>, StoreError>;

    /// The keys of a ring, in order of id.
    fn keys(&self, ring: RingId) -> Result<Vec<Key>, StoreError>;

    /// The keys of a ring with their sealed private keys: those that are active.
    fn sealed_keys(&self, ring: RingId) -> Result<Vec<SealedKeyRow>, StoreError>;

    /// Changes a key's status, with its event in the ring's history.
    ///
    /// A change to the status that the key already has changes nothing and returns `false`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::IllegalChange`], or [`StoreError::KeyInUse`].
    fn change_key(
        &self,
        kid: &Kid,
        event: KeyEvent,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<bool, StoreError>;

    // Intake and inspection.

    /// Inserts records in one transaction, or none of them on an error. A record whose external
    /// id is there already is compared and never changed.
    fn insert_records(&self, ring: RingId, records: &[NewRecord]) -> Result<Inserted, StoreError>;

    /// Brings the planner's statistics up to date after a large intake.
    fn analyze(&self) -> Result<(), StoreError>;

    /// A page of signatures in order of record id, from behind `after`, with about `max_bytes` of
    /// payload; empty at the end.
    fn signed_records(
        &self,
        after: Option<RecordId>,
        max_bytes: usize,
    ) -> Result<Vec<SignedRecord>, StoreError>;

    /// The stored key use of each batch in `batches` that has one.
    fn batch_keys(&self, batches: &[BatchId]) -> Result<Vec<BatchKey>, StoreError>;

    /// Up to `limit` events of a ring's history in order of their ticks, from behind `after` up to
    /// and with `until`.
    fn history(
        &self,
        ring: RingId,
        after: Tick,
        until: Tick,
        limit: u32,
    ) -> Result<Vec<ledger::Event>, StoreError>;

    /// A page of batches in order of id, from behind `after`.
    fn batches(&self, after: Option<BatchId>, limit: u32) -> Result<Vec<Batch>, StoreError>;

    /// How many signatures exist, for progress bars; an estimate is good enough.
    fn signature_count(&self) -> Result<u64, StoreError>;

    /// A page of what signatures and records say of each other, in order of record id.
    fn memberships(
        &self,
        after: Option<RecordId>,
        limit: u32,
    ) -> Result<Vec<Membership>, StoreError>;

    /// The open uses of every ring.
    fn open_uses(&self) -> Result<Vec<OpenUse>, StoreError>;

    /// The database's product and version, for people.
    fn server_version(&self) -> Result<String, StoreError>;

    /// The lock that a signing process holds for its life, where the database needs one: on
    /// SQLite. `None` where several processes may sign.
    fn signing_lock(&self) -> Option<SigningLock>;
}

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

/// A transaction that holds back the cursor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// Its process on the database server; 0 for a prepared transaction.
    pub pid: i32,
    /// The database it works in.
    pub database: String,
    /// Its application's name, or the prepared transaction's.
    pub application: String,
    /// Its age in seconds.
    pub age_s: i64,
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
    /// Its sealed private key.
    pub sealed_private_key: Vec<u8>,
    /// The KEK that sealed it.
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

/// Why a new key could not be made.
pub type MakeKeyError = Box<dyn std::error::Error + Send + Sync>;

/// Why the database would not take a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A record of it has a signature already: an alarm, since the fence should have kept it out.
    DoubleSign(String),
    /// The batch has another number of records than it was made with.
    Count {
        /// As in `batches.record_count`.
        expected: u64,
        /// As handed in.
        found: u64,
    },
    /// It breaks another constraint.
    Constraint(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::DoubleSign(detail) => write!(f, "double signing prevented: {detail}"),
            Refusal::Count { expected, found } => {
                write!(f, "the batch was made with {expected} records, and {found} were signed")
            }
            Refusal::Constraint(detail) => write!(f, "a constraint refused it: {detail}"),
        }
    }
}

/// What can go wrong between Chancery and its database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The connection failed. Whether a commit under way took effect is unknown.
    #[error("the database is not reachable: {0}")]
    Unavailable(String),
    /// The database gave way to somebody else; the transaction did not happen.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// The database has no room or its storage fails; the transaction did not happen.
    #[error("the database's storage fails: {0}")]
    Storage(String),
    /// The database cannot be used as it was named.
    #[error("{0}")]
    Connect(String),
    /// A batch (of one ring's group; which one is known only in a group of one) breaks a rule.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The database is in an older state than one this process has seen committed.
    #[error(
        "ring {ring} is at tick {now}, but this node has seen tick {seen} committed: the database \
         has gone back to an older state (an old backup, or a fail-over that lost commits); \
         restore the newer state, or restart this node once you accept the loss"
    )]
    RolledBack {
        /// The ring.
        ring: RingId,
        /// The highest tick seen.
        seen: Tick,
        /// The tick found.
        now: Tick,
    },
    /// Nothing of that name.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// A ring, a key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A key's status does not allow the change.
    #[error("key {kid} is {status} and cannot be {event}")]
    IllegalChange {
        /// The key.
        kid: Kid,
        /// Its status.
        status: KeyStatus,
        /// The change.
        event: KeyEvent,
    },
    /// A key that is in use cannot be destroyed.
    #[error("key {kid} is in use: disable it, and destroy it when its batch has ended")]
    KeyInUse {
        /// The key.
        kid: Kid,
    },
    /// The schema does not fit this program.
    #[error(transparent)]
    Schema(#[from] migrate::SchemaError),
    /// A key could not be made.
    #[error("making a key failed: {0}")]
    MakeKey(MakeKeyError),
    /// Anything else that the database said.
    #[error("the database refused: {0}")]
    Database(String),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Unavailable(_) | StoreError::Busy(_) | StoreError::Storage(_))
    }
}
