//! [`Store`] on SQLite: one connection that writes, several that read, and the signing lock.
//!
//! WAL with `synchronous=FULL`. Every writing transaction is `BEGIN IMMEDIATE`: one that reads
//! first and then writes would fail with "database is locked" whatever the busy timeout says. The
//! protocol's own transactions stand in `protocol.rs`.

mod file;
mod intake;
mod lock;
mod protocol;
mod signatures;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use diesel::QueryResult;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::sqlite::SqliteConnection;

pub(super) use file::{classify, open as open_file};
pub use lock::{HeldSigningLock, SigningLock};

use super::delegate::shared_methods;
use super::models::TextRow;
use super::seen::SeenTicks;
use super::shared::{self, Session, TxError, TxResult};
use super::{
    Added, AdminAction, AdminEntry, Backlog, Batch, BatchKey, BatchView, Blocker, CheckOut,
    CheckedOut, DataKeyRow, DueKey, FeedItem, FeedPosition, GiveUp, KekCheck, KekUsage, Key,
    KeyChange, KeyCounts, KeyGlance, KeyTally, MakeKeyError, Membership, NewKey, NewRecord,
    NewToken, Node, NodeOrders, NodeReport, OpenUse, PoolState, Progress, ReclaimScope, Reclaimed,
    RecordSignature, Remaining, Resealed, Retirement, Ring, SealedKeyRow, SignedBatch,
    SignedRecord, Store, StoreError, StoreOptions, StoreOutcome, StoredRecord, Token,
};
use super::{
    admin, inspection, keks, key_changes, keys, lists, migrate, nodes, pickup, remaining, watch,
};
use crate::failpoint;
use crate::ledger::Event;
use crate::types::{
    BatchId, BatchRange, BatchState, DataKeyId, Fence, KeyId, KeyStatus, Kid, NodeId, Outcome,
    Position, Provider, Record, RecordId, RingId, Tick, TokenId,
};

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT_MS: u32 = 10_000;

/// How often a transaction that found the file locked is tried before the caller hears of it.
const BUSY_ATTEMPTS: u32 = 3;

/// The store on SQLite. One process at a time signs; others may read and insert.
pub struct SqliteStore {
    path: PathBuf,
    /// Which file it was when it was opened.
    identity: Option<(u64, u64)>,
    /// What was found damaged: nothing more is read or written then.
    damage: OnceLock<String>,
    /// In this process, writers queue here rather than at SQLite's own lock, which is polled.
    writer: Mutex<SqliteConnection>,
    readers: Pool<ConnectionManager<SqliteConnection>>,
    node: NodeId,
    lease: Duration,
    max_attempts: i64,
    seen: SeenTicks,
}

impl SqliteStore {
    /// Opens the database file at `path`, and makes it if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Connect`], [`StoreError::ReadOnly`] or [`StoreError::Damaged`], which name the
    /// file; [`StoreError::Storage`] and [`StoreError::Busy`], which may pass.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let writer = open_file(path, &format!("{} {WRITER_CACHE}", settings()))?;
        let name = path.to_string_lossy();
        let readers = Pool::builder()
            .max_size(options.pool_size.max(1))
            .min_idle(Some(0))
            .test_on_check_out(false)
            .connection_timeout(Duration::from_secs(30))
            .error_handler(Box::new(diesel::r2d2::NopErrorHandler))
            .connection_customizer(Box::new(ReaderSettings))
            .build_unchecked(ConnectionManager::new(name));
        Ok(SqliteStore {
            path: path.to_owned(),
            identity: file::identity(path),
            damage: OnceLock::new(),
            writer: Mutex::new(writer),
            readers,
            node: options.node.clone(),
            lease: options.lease,
            max_attempts: options.max_attempts.into(),
            seen: SeenTicks::default(),
        })
    }

    /// Runs a writing transaction, again where another process kept the file locked. The one place
    /// that decides about retries on this database. `step` is its name among the failpoints.
    pub(super) fn run_tx<T>(
        &self,
        step: &'static str,
        mut body: impl FnMut(&mut SqliteConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        let mut steps = |c: &mut SqliteConnection| {
            failpoint::pass(step, "begun")?;
            body(c)
        };
        let mut attempt = 1;
        loop {
            self.check_file()?;
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let error = match transaction(&mut writer, &mut steps) {
                Ok(value) => return shared::committed(step, value),
                Err(error) => self.note(error),
            };
            drop(writer);
            if !matches!(error, StoreError::Busy(_)) || attempt == BUSY_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    pub(super) fn read<T>(
        &self,
        body: impl FnOnce(&mut SqliteConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        self.check_file()?;
        let mut reader =
            self.readers.get().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        body(&mut reader).map_err(|error| self.note(error))
    }

    /// Runs a read that must go by index; all do.
    fn read_by_index<T>(
        &self,
        body: impl FnOnce(&mut SqliteConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        self.read(body)
    }

    /// Refuses to go on with a file that is damaged, or that nobody else sees any more: what a
    /// process writes to a deleted file vanishes with it.
    fn check_file(&self) -> Result<(), StoreError> {
        if let Some(damage) = self.damage.get() {
            return Err(StoreError::Damaged(damage.clone()));
        }
        if self.identity == file::identity(&self.path) {
            return Ok(());
        }
        Err(StoreError::Connect(format!(
            "{} is not the file any more that this process opened: it was deleted, moved or replaced",
            self.path.display()
        )))
    }

    /// What an error means, and for good if it is damage.
    fn note(&self, error: TxError) -> StoreError {
        match error {
            TxError::Store(error) => error,
            TxError::Diesel(error) => match classify(error) {
                StoreError::Damaged(message) => {
                    let damage = format!("{}: {message}", self.path.display());
                    StoreError::Damaged(self.damage.get_or_init(|| damage).clone())
                }
                StoreError::ReadOnly(message) => StoreError::ReadOnly(
                    file::read_only(&self.path)
                        .unwrap_or_else(|| format!("{}: {message}", self.path.display())),
                ),
                other => other,
            },
        }
    }
}

/// Not diesel's: after a panic in the middle of one, diesel begins no other on that connection. And
/// where SQLite has ended one by itself, as it may on a full disk, diesel (2.3) takes the ROLLBACK that
/// then fails for the error.
fn transaction<T>(
    connection: &mut SqliteConnection,
    body: impl FnOnce(&mut SqliteConnection) -> TxResult<T>,
) -> TxResult<T> {
    begin(connection)?;
    let done = body(connection).and_then(|value| {
        connection.batch_execute("COMMIT")?;
        Ok(value)
    });
    if done.is_err() {
        // It fails if SQLite has done so itself. Whatever else is left of it, the next `begin` ends.
        let _ = connection.batch_execute("ROLLBACK");
    }
    done
}

fn begin(connection: &mut SqliteConnection) -> QueryResult<()> {
    let begun = connection.batch_execute("BEGIN IMMEDIATE");
    match begun {
        // A panic left one open.
        Err(error) if error.to_string().contains("within a transaction") => {
            connection.batch_execute("ROLLBACK")?;
            connection.batch_execute("BEGIN IMMEDIATE")
        }
        begun => begun,
    }
}

/// What every connection sets. With `recursive_triggers` an INSERT OR REPLACE fires the triggers
/// that refuse a DELETE.
fn settings() -> String {
    format!(
        "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA recursive_triggers = ON;
         PRAGMA temp_store = MEMORY;"
    )
}

/// The writer's, in KiB: what a transaction changes, and the pages above it in each index. Readers have
/// SQLite's own 2 MiB: they read each record once, and the operating system's cache stands behind theirs.
const WRITER_CACHE: &str = "PRAGMA cache_size = -16384";

#[derive(Debug)]
struct ReaderSettings;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for ReaderSettings {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        connection.batch_execute(&settings()).map_err(diesel::r2d2::Error::QueryError)
    }
}

impl Store for SqliteStore {
    shared_methods!(protocol::ring_row);

    fn store_batches(
        &self,
        ring: RingId,
        batches: &[SignedBatch],
    ) -> Result<Vec<StoreOutcome>, StoreError> {
        let (outcomes, tick) =
            self.run_tx("store", |c| protocol::store_batches(self, c, ring, batches))?;
        self.seen.saw(ring, tick);
        Ok(outcomes)
    }

    fn renew(&self, ring: RingId, fences: &[Fence]) -> Result<Vec<Fence>, StoreError> {
        self.run_tx("renew", |c| protocol::renew(self, c, ring, fences))
    }

    fn give_up(&self, ring: RingId, uses: &[GiveUp]) -> Result<Vec<Outcome>, StoreError> {
        let (outcomes, tick) =
            self.run_tx("give_up", |c| protocol::give_up(self, c, ring, uses))?;
        self.seen.saw(ring, tick);
        Ok(outcomes)
    }

    fn reclaim(&self, ring: RingId, scope: ReclaimScope) -> Result<Reclaimed, StoreError> {
        let (reclaimed, tick) =
            self.run_tx("reclaim", |c| protocol::reclaim(self, c, ring, scope))?;
        self.seen.saw(ring, tick);
        Ok(reclaimed)
    }

    fn end_frozen_sessions(&self) -> Result<u32, StoreError> {
        Ok(0)
    }

    fn sweep(&self, ring: RingId) -> Result<u64, StoreError> {
        self.run_tx("sweep", |c| protocol::sweep(self, c, ring))
    }

    fn has_work(&self, ring: RingId) -> Result<bool, StoreError> {
        self.seen.check_read(ring, || self.read(|c| Ok(protocol::has_work(c, ring)?)))
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        self.read(|c| Ok(migrate::check_sqlite(c)?))
    }

    fn is_held_back(&self, _: RingId) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn blockers(&self) -> Result<Vec<Blocker>, StoreError> {
        Ok(Vec::new())
    }

    fn write_trouble(&self) -> Result<Option<String>, StoreError> {
        Ok(file::read_only(&self.path).or_else(|| file::little_room(&self.path)))
    }

    fn pool_state(&self) -> PoolState {
        let state = self.readers.state();
        // And the one that writes.
        PoolState {
            in_use: state.connections - state.idle_connections + 1,
            idle: state.idle_connections,
        }
    }

    fn analyze(&self) -> Result<(), StoreError> {
        // A sample is enough, and a full ANALYZE reads every index.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.batch_execute("PRAGMA analysis_limit = 1000; ANALYZE").map_err(classify)
    }

    fn vacuum(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn server_version(&self) -> Result<String, StoreError> {
        let query = "SELECT 'SQLite ' || sqlite_version() AS value";
        self.read(|c| Ok(c.row::<TextRow>(query, &[])?.value))
    }

    fn signing_lock(&self) -> Option<SigningLock> {
        Some(SigningLock::of_database(&self.path))
    }
}
