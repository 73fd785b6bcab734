//! The only door to the database: the [`Store`] trait, its two implementations and its errors.
//!
//! Every method is one transaction (or a few, where its documentation says so), blocks the calling
//! thread and serves one ring. Nothing above this module knows diesel or SQL.

mod admin;
#[cfg(test)]
mod conformance;
mod delegate;
mod error;
mod inspection;
mod keks;
mod key_changes;
mod key_values;
mod keys;
mod lists;
pub mod migrate;
mod models;
mod nodes;
mod pickup;
mod postgres;
mod remaining;
mod schema;
mod seen;
mod shared;
mod sqlite;
mod statement;
mod values;
mod views;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use crate::config::DatabaseUrl;
use crate::ledger;
use crate::types::{
    BatchId, BatchRange, BatchState, DataKeyId, Fence, KeyEvent, KeyId, KeyStatus, Kid, NodeId,
    Outcome, Position, Provider, Record, RecordId, RingId, Tick, TokenId,
};

pub use error::{MakeKeyError, Refusal, StoreError};
pub use key_values::{
    DataKeyRow, DueKey, KekCheck, KekUsage, Key, KeyChange, NewKey, Resealed, Retirement,
    SealedKey, SealedKeyRow,
};
pub use postgres::PgStore;
pub use sqlite::{HeldSigningLock, SigningLock, SqliteStore};
pub use values::{
    Added, Backlog, Batch, BatchKey, Blocker, CheckOut, CheckedOut, ClaimedBatch, GiveUp, Inserted,
    KeyUse, Membership, NewRecord, Node, NodeReport, OpenUse, Progress, ReclaimScope, Reclaimed,
    Remaining, Ring, Shortage, SignedBatch, SignedRecord, StoreOutcome,
};
pub use views::{
    AdminAction, AdminEntry, BatchView, FeedItem, FeedPosition, KeyCounts, KeyGlance, KeyTally,
    NewToken, NodeOrders, PoolState, RecordSignature, RecordState, StoredRecord, Token,
};

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

    /// Ends the sessions of nodes that are frozen inside a transaction, as a reclaim does first;
    /// returns how many.
    fn end_frozen_sessions(&self) -> Result<u32, StoreError>;

    /// Moves unsigned records that lie behind the cursor and in no unfinished batch back before
    /// it, so that they are signed. Returns how many.
    fn sweep(&self, ring: RingId) -> Result<u64, StoreError>;

    /// Whether a checkout would find a batch now, which it never does while the ring is paused;
    /// takes no lock.
    fn has_work(&self, ring: RingId) -> Result<bool, StoreError>;

    /// Where the ring stands, by its batches and uses alone: cheap whatever the number of records.
    fn progress(&self, ring: RingId) -> Result<Progress, StoreError>;

    /// What each key has signed behind a tick, as far as it is stored: cheap for those who ask often,
    /// and each time from where they were.
    fn tally(&self, ring: RingId, after: Tick) -> Result<Vec<KeyTally>, StoreError>;

    /// As [`Store::progress`], but of unfinished and quarantined batches alone, whatever the number of
    /// those that are stored.
    fn unfinished(&self, ring: RingId) -> Result<Progress, StoreError>;

    /// The keys of a ring, in order of id, with what can be read cheaply.
    fn glance_at_keys(&self, ring: RingId) -> Result<Vec<KeyGlance>, StoreError>;

    /// The truth about what is left: every record is counted, and if any could be left, looked at.
    fn remaining(&self, ring: RingId) -> Result<Remaining, StoreError>;

    /// Whether every record of the ring lies in a batch, settled or not: they are counted.
    fn all_in_batches(&self, ring: RingId) -> Result<bool, StoreError>;

    /// As [`Store::remaining`], for whom [`Store::all_in_batches`] has told that they are. Where the
    /// cursor has reached every record, only batches are looked at. So it is the truth about the records
    /// that were there then, and of those that have come since in their order.
    fn remaining_in_batches(&self, ring: RingId) -> Result<Remaining, StoreError>;

    /// How many records the ring has, signed or not.
    fn record_count(&self, ring: RingId) -> Result<u64, StoreError>;

    /// What waits in the ring, with records behind the cursor counted up to `most`; takes no lock.
    fn backlog(&self, ring: RingId, most: u32) -> Result<Backlog, StoreError>;

    /// Whether records behind the cursor wait for somebody's transaction to end; takes no lock.
    fn is_held_back(&self, ring: RingId) -> Result<bool, StoreError>;

    /// The long transactions that hold Chancery up or may do so, oldest first.
    fn blockers(&self) -> Result<Vec<Blocker>, StoreError>;

    /// What would keep writes from succeeding now, for people: a disk that is full or nearly so, a
    /// standby, a file that is read-only. `None` if nothing can be seen; it changes nothing.
    fn write_trouble(&self) -> Result<Option<String>, StoreError>;

    /// Checks that the schema is still the one this program knows.
    ///
    /// # Errors
    /// [`StoreError::Schema`] if it is not.
    fn check_schema(&self) -> Result<(), StoreError>;

    // Nodes.

    /// Writes down what this node says of itself, for those who look at the database.
    fn report(&self, report: &NodeReport) -> Result<(), StoreError>;

    /// What administrators ask of this node and its ring.
    fn orders(&self, ring: RingId) -> Result<NodeOrders, StoreError>;

    /// The nodes that have been seen within the last days, in order of their start.
    fn nodes(&self) -> Result<Vec<Node>, StoreError>;

    // Rings and keys.

    /// This database's own name for itself, part of what every sealed key is bound to.
    fn database_id(&self) -> Result<String, StoreError>;

    /// The ring of that name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn ring(&self, name: &str) -> Result<Ring, StoreError>;

    /// Makes a ring without keys or records, with its entry in the administrators' log.
    ///
    /// # Errors
    /// [`StoreError::RingExists`].
    fn create_ring(&self, name: &str, provider: Provider, actor: &str) -> Result<Ring, StoreError>;

    /// Every ring, in order of id.
    fn rings(&self) -> Result<Vec<Ring>, StoreError>;

    /// The check values of the KEKs that have sealed keys here, oldest first.
    fn kek_checks(&self) -> Result<Vec<KekCheck>, StoreError>;

    /// Remembers a KEK's check value; no error if it is there already.
    fn add_kek(&self, check: &KekCheck) -> Result<(), StoreError>;

    /// As [`Store::add_kek`], for a database that has none; `false` if it has one by now.
    fn add_first_kek(&self, check: &KekCheck) -> Result<bool, StoreError>;

    /// What is sealed under each KEK, the oldest KEK first.
    fn kek_usage(&self) -> Result<Vec<KekUsage>, StoreError>;

    /// Removes a KEK with its data keys, unless a key is sealed under it; whether it did.
    fn forget_kek(&self, kek_id: &str, actor: &str) -> Result<bool, StoreError>;

    /// The data keys of a ring, one for each KEK that has sealed keys of it.
    fn data_keys(&self, ring: RingId) -> Result<Vec<DataKeyRow>, StoreError>;

    /// Adds a ring's data key under a KEK, unless it has one; the one that it has now.
    fn add_data_key(
        &self,
        ring: RingId,
        kek_id: &str,
        wrapped_key: &[u8],
    ) -> Result<DataKeyRow, StoreError>;

    /// Up to `limit` keys of a ring behind `after`, in order of id and whatever their status, that are
    /// sealed by anything but this data key.
    fn keys_to_reseal(
        &self,
        ring: RingId,
        data_key: DataKeyId,
        after: KeyId,
        limit: u32,
    ) -> Result<Vec<SealedKeyRow>, StoreError>;

    /// Puts new seals in the place of old ones in one transaction, each only if the old one is still
    /// there; how many were. No event: a key is the same key under another KEK.
    fn reseal_keys(&self, ring: RingId, keys: &[Resealed], actor: &str) -> Result<u64, StoreError>;

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

    /// The raw public keys of every ring that are active or retired, in order of id.
    fn public_keys(&self) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Changes the status of keys of one ring in one transaction, each with its event in the ring's
    /// history; for each, whether it has changed. A key that has that status already stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::IllegalChange`], or [`StoreError::KeyInUse`], after which
    /// none has changed.
    fn change_keys(
        &self,
        ring: RingId,
        kids: &[Kid],
        change: &KeyChange<'_>,
    ) -> Result<Vec<bool>, StoreError>;

    /// As [`Store::change_keys`], for one key of whatever ring.
    ///
    /// # Errors
    /// The same.
    fn change_key(
        &self,
        kid: &Kid,
        event: KeyEvent,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        let ring = self.key(kid)?.ring;
        let change = KeyChange { event, actor, reason, force: false };
        Ok(self.change_keys(ring, std::slice::from_ref(kid), &change)?.contains(&true))
    }

    /// Up to `limit` active keys of a ring, in order of id, that have signed for long enough.
    fn due_keys(
        &self,
        ring: RingId,
        retirement: &Retirement,
        limit: u32,
    ) -> Result<Vec<DueKey>, StoreError>;

    /// Retires those of `due` that are active still, and adds a key that `make` makes in the place of
    /// each; how many.
    fn replace_keys(
        &self,
        ring: RingId,
        due: &[DueKey],
        actor: &str,
        make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
    ) -> Result<u32, StoreError>;

    // Intake and inspection.

    /// Inserts records in one transaction, or none of them on an error; what became of each, in
    /// their order. A record whose external id is there already is compared and never changed.
    fn add_records(&self, ring: RingId, records: &[NewRecord]) -> Result<Vec<Added>, StoreError>;

    /// As [`Store::add_records`], in numbers.
    ///
    /// # Errors
    /// The same.
    fn insert_records(&self, ring: RingId, records: &[NewRecord]) -> Result<Inserted, StoreError> {
        Ok(self.add_records(ring, records)?.into_iter().collect())
    }

    /// A record of the ring, with its signature if it has one.
    fn record(&self, ring: RingId, id: RecordId) -> Result<Option<StoredRecord>, StoreError>;

    /// The record of the ring that has that external id.
    fn record_id(&self, ring: RingId, external_id: &str) -> Result<Option<RecordId>, StoreError>;

    /// The signatures that are stored for these records, in no order.
    fn signatures_of(&self, records: &[RecordId]) -> Result<Vec<RecordSignature>, StoreError>;

    /// Up to `limit` signatures of a ring from behind `after`, in the order in which their batches
    /// were stored, and of their ids within a batch. Nothing ever appears before what was seen.
    fn feed(
        &self,
        ring: RingId,
        after: FeedPosition,
        limit: u32,
    ) -> Result<Vec<FeedItem>, StoreError>;

    /// The batches that this node has stored behind a tick: when each was stored, and how long its
    /// first record had been there by then.
    fn stored_ages(
        &self,
        ring: RingId,
        after: Tick,
        limit: u32,
    ) -> Result<Vec<(Tick, Duration)>, StoreError>;

    // Lists for those who look.

    /// Up to `limit` keys of a ring behind `after`, in order of id, of one status or of all.
    fn list_keys(
        &self,
        ring: RingId,
        status: Option<KeyStatus>,
        after: KeyId,
        limit: u32,
    ) -> Result<Vec<Key>, StoreError>;

    /// The key of that thumbprint, of whatever ring.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn key(&self, kid: &Kid) -> Result<Key, StoreError>;

    /// The keys of a ring in numbers.
    fn key_counts(&self, ring: RingId) -> Result<KeyCounts, StoreError>;

    /// Up to `limit` batches of a ring behind `after`, in order of id, of one state or of all.
    fn list_batches(
        &self,
        ring: RingId,
        state: Option<BatchState>,
        after: BatchId,
        limit: u32,
    ) -> Result<Vec<BatchView>, StoreError>;

    /// One batch.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn batch(&self, batch: BatchId) -> Result<BatchView, StoreError>;

    /// The connections of this process.
    fn pool_state(&self) -> PoolState;

    // Administration: each change with its entry in the administrators' log.

    /// Writes down what an administrator did that changed nothing in the database.
    fn log_action(&self, action: &AdminAction<'_>) -> Result<(), StoreError>;

    /// Up to `limit` entries of the administrators' log behind `after`, oldest first.
    fn admin_log(&self, after: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError>;

    /// Up to `limit` entries of the administrators' log before `before`, newest first.
    fn last_admin_log(&self, before: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError>;

    /// The number and the hash of the log's last entry, as its head has them.
    fn admin_log_head(&self) -> Result<(i64, String), StoreError>;

    /// Adds a token.
    fn add_token(&self, token: &NewToken, actor: &str) -> Result<TokenId, StoreError>;

    /// Every token, in order of id.
    fn tokens(&self) -> Result<Vec<Token>, StoreError>;

    /// Revokes a token; `false` if it was revoked already.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn revoke_token(&self, token: TokenId, actor: &str) -> Result<bool, StoreError>;

    /// Notes that tokens have been used just now.
    fn touch_tokens(&self, tokens: &[TokenId]) -> Result<(), StoreError>;

    /// Pauses a ring on all nodes, or lets it go on; `false` if it was so already.
    fn set_paused(&self, ring: RingId, paused: bool, actor: &str) -> Result<bool, StoreError>;

    /// Asks every node that runs to drain; how many were asked.
    fn request_drain(&self, actor: &str) -> Result<u64, StoreError>;

    /// Sends a quarantined batch back to be retried, with all its attempts before it again.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotQuarantined`].
    fn retry_batch(&self, batch: BatchId, actor: &str) -> Result<(), StoreError>;

    /// Brings the planner's statistics up to date after a large intake.
    fn analyze(&self) -> Result<(), StoreError>;

    /// Marks the records that all can see, so that a checkout reads an index alone; where this role does not own
    /// them, and on SQLite, it does nothing.
    fn vacuum(&self) -> Result<(), StoreError>;

    /// A page of signatures in order of record id, from behind `after`, with about `max_bytes` of
    /// payload; empty at the end. It is read fastest if none of its payloads has more than `each_bytes`, or
    /// than a part in thousands of `max_bytes`.
    fn signed_records(
        &self,
        after: Option<RecordId>,
        max_bytes: usize,
        each_bytes: usize,
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
