//! [`Store`] on PostgreSQL: the one transaction runner, and what it runs.
//!
//! The protocol's own transactions stand in `protocol.rs`, the intake in `intake.rs`, connections in
//! `pool.rs` and what their errors mean in `errors.rs`.

pub(super) mod blockers;
mod endings;
mod errors;
mod intake;
mod pool;
mod protocol;

use std::cell::Cell;
use std::time::Duration;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;

pub(super) use errors::classify;
pub(super) use pool::connect;

use pool::{Pool, Purpose};

use super::delegate::shared_methods;
use super::models::{FlagRow, TextRow};
use super::seen::SeenTicks;
use super::shared::{self, Bind, Session, TxError, TxResult};
use super::{
    Added, AdminAction, AdminEntry, Backlog, Batch, BatchKey, BatchView, Blocker, CheckOut,
    CheckedOut, DataKeyRow, DueKey, FeedItem, FeedPosition, GiveUp, KekCheck, KekUsage, Key,
    KeyChange, KeyCounts, KeyGlance, KeyTally, MakeKeyError, Membership, NewKey, NewRecord,
    NewToken, Node, NodeOrders, NodeReport, OpenUse, PoolState, Progress, ReclaimScope, Reclaimed,
    RecordSignature, Remaining, Resealed, Retirement, Ring, SealedKeyRow, SignedBatch,
    SignedRecord, SigningLock, Store, StoreError, StoreOptions, StoreOutcome, StoredRecord, Token,
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

/// How often a transaction that gave way to another is tried before the caller hears of it.
const BUSY_ATTEMPTS: u32 = 5;

/// From what age a snapshot of somebody's slows checkouts down enough to be told.
const OLD_SNAPSHOT: Duration = Duration::from_secs(60);

/// The store on PostgreSQL. Any number of nodes may share one database.
pub struct PgStore {
    pool: Pool,
    node: NodeId,
    lease: Duration,
    max_attempts: i32,
    seen: SeenTicks,
}

impl PgStore {
    /// Connects to the server at `url`, a libpq connection URI.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while the server cannot be reached or is starting,
    /// [`StoreError::Connect`] if it refuses this user or has no such database.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        // One by hand: a pool that is thrown away takes a connection that comes late with it.
        drop(connect(url)?);
        Ok(PgStore {
            pool: Pool::new(url, options),
            node: options.node.clone(),
            lease: options.lease,
            max_attempts: i32::try_from(options.max_attempts).unwrap_or(i32::MAX),
            seen: SeenTicks::default(),
        })
    }

    /// Runs a transaction, again where it only gave way to another one (a deadlock, a lock
    /// timeout). The one place that decides about retries on this database. `step` is its name
    /// among the failpoints.
    #[expect(clippy::disallowed_methods, reason = "this is the one wrapper of raw transactions")]
    fn run_tx<T>(
        &self,
        step: &'static str,
        mut body: impl FnMut(&mut PgConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        let has_begun = Cell::new(false);
        let mut steps = |c: &mut PgConnection| {
            has_begun.set(true);
            failpoint::pass(step, "begun")?;
            body(c)
        };
        let purpose = match step {
            "check_out" | "store" => Purpose::Signing,
            _ => Purpose::Rest,
        };
        let mut attempt = 1;
        loop {
            let mut pooled = self.pool.connection(purpose)?;
            has_begun.set(false);
            let done = PgConnection::transaction(&mut pooled.connection, &mut steps);
            pooled.note(&done);
            let was_lost = pooled.is_trusted && !has_begun.get();
            drop(pooled);
            let error = match done {
                Ok(value) => return shared::committed(step, value),
                Err(TxError::Store(error)) => return Err(error),
                Err(TxError::Diesel(error)) => classify(error),
            };
            // A session that was ended while it was idle: the next connection is asked first.
            let is_passing = matches!(error, StoreError::Busy(_)) || was_lost;
            if !is_passing || attempt == BUSY_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// As [`SeenTicks::check_read`], but a standby that has not caught up is no step back.
    fn check_read<T>(
        &self,
        ring: RingId,
        read: impl FnOnce() -> Result<(T, Tick), StoreError>,
    ) -> Result<T, StoreError> {
        let checked = self.seen.check_read(ring, read);
        if matches!(checked, Err(StoreError::RolledBack { .. }))
            && self.read(|c| Ok(protocol::is_standby(c)?))?
        {
            return Err(StoreError::Standby("the server is a standby, behind its primary".into()));
        }
        checked
    }

    /// Runs reads that need no transaction around them.
    pub(super) fn read<T>(
        &self,
        body: impl FnOnce(&mut PgConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        self.read_for(Purpose::Rest, body)
    }

    /// Runs a read that must go by index.
    fn read_by_index<T>(
        &self,
        body: impl FnOnce(&mut PgConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        self.read_for(Purpose::Signing, body)
    }

    fn read_for<T>(
        &self,
        purpose: Purpose,
        body: impl FnOnce(&mut PgConnection) -> TxResult<T>,
    ) -> Result<T, StoreError> {
        let mut pooled = self.pool.connection(purpose)?;
        let done = body(&mut pooled.connection);
        pooled.note(&done);
        done.map_err(|error| match error {
            TxError::Store(error) => error,
            TxError::Diesel(error) => classify(error),
        })
    }
}

/// The current transaction's place in the order of records.
const CURRENT_XID: &str = "pg_current_xact_id()::TEXT::BIGINT + chancery_xid_offset()";

impl Store for PgStore {
    shared_methods!(protocol::lock_ring);

    fn store_batches(
        &self,
        ring: RingId,
        batches: &[SignedBatch],
    ) -> Result<Vec<StoreOutcome>, StoreError> {
        let (outcomes, tick) =
            self.run_tx("store", |c| endings::store_batches(self, c, ring, batches))?;
        if let Some(tick) = tick {
            self.seen.saw(ring, tick);
        }
        Ok(outcomes)
    }

    fn renew(&self, ring: RingId, fences: &[Fence]) -> Result<Vec<Fence>, StoreError> {
        self.run_tx("renew", |c| endings::renew(self, c, ring, fences))
    }

    fn give_up(&self, ring: RingId, uses: &[GiveUp]) -> Result<Vec<Outcome>, StoreError> {
        let (outcomes, tick) = self.run_tx("give_up", |c| endings::give_up(self, c, ring, uses))?;
        if let Some(tick) = tick {
            self.seen.saw(ring, tick);
        }
        Ok(outcomes)
    }

    fn reclaim(&self, ring: RingId, scope: ReclaimScope) -> Result<Reclaimed, StoreError> {
        let terminated_sessions = self.end_frozen_sessions()?;
        let mut reclaimed = Reclaimed::default();
        // A look first: every node asks often, and the ring's lock is for those who have a reason.
        let has_expired =
            self.check_read(ring, || self.read(|c| Ok(protocol::has_expired(c, ring)?)))?;
        if has_expired {
            let (ended, tick) =
                self.run_tx("reclaim", |c| endings::reclaim(self, c, ring, scope))?;
            self.seen.saw(ring, tick);
            reclaimed = ended;
        }
        reclaimed.terminated_sessions = terminated_sessions;
        Ok(reclaimed)
    }

    fn end_frozen_sessions(&self) -> Result<u32, StoreError> {
        self.read(|c| endings::end_frozen_sessions(c, self.lease))
    }

    fn sweep(&self, ring: RingId) -> Result<u64, StoreError> {
        let cursor = self.read(|c| Ok(shared::cursor(c, ring)?))?;
        let strays = self.read(|c| remaining::strays(c, ring, cursor))?;
        if strays.is_empty() {
            return Ok(0);
        }
        self.run_tx("sweep", |c| protocol::sweep(self, c, ring, &strays))
    }

    fn has_work(&self, ring: RingId) -> Result<bool, StoreError> {
        self.check_read(ring, || self.read_by_index(|c| Ok(protocol::has_work(c, ring)?)))
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        self.read(|c| Ok(migrate::check_postgres(c)?))
    }

    fn is_held_back(&self, ring: RingId) -> Result<bool, StoreError> {
        self.read(|c| Ok(blockers::is_held_back(c, ring)?))
    }

    fn blockers(&self) -> Result<Vec<Blocker>, StoreError> {
        self.read(|c| blockers::blockers(c, OLD_SNAPSHOT))
    }

    fn write_trouble(&self) -> Result<Option<String>, StoreError> {
        // Whatever was written could have found room where the next batch finds none. So this makes
        // the server lay about 10 MB by, more than the largest group needs, in a temporary file on
        // the disk of its data; it changes no table and no log, and works on a standby too.
        let probe = "SET LOCAL work_mem = '64kB'; SELECT count(*) FROM generate_series(1, 500000)";
        let look = self.read(|c| {
            if c.row::<FlagRow>("SELECT pg_is_in_recovery() AS value", &[])?.value {
                return Ok(Some("it is a standby that has not been promoted".to_owned()));
            }
            let read_only = "SELECT current_setting('transaction_read_only') = 'on' AS value";
            if c.row::<FlagRow>(read_only, &[])?.value {
                return Ok(Some("default_transaction_read_only is on".to_owned()));
            }
            c.batch_execute(probe)?;
            Ok(None)
        });
        match look {
            Err(StoreError::Storage(why)) => Ok(Some(format!("its disk has no room: {why}"))),
            look => look,
        }
    }

    fn pool_state(&self) -> PoolState {
        self.pool.state()
    }

    fn analyze(&self) -> Result<(), StoreError> {
        // Under another name: it may take longer than a lease, and is nobody frozen.
        let statements = "BEGIN; SET LOCAL application_name = 'chancery-analyze';
                          SELECT chancery_analyze(); COMMIT";
        self.read(|c| Ok(c.batch_execute(statements)?))
    }

    fn vacuum(&self) -> Result<(), StoreError> {
        let is_owner = "SELECT pg_has_role(relowner, 'USAGE') AS value
                        FROM pg_class WHERE oid = 'records'::REGCLASS";
        self.read(|c| {
            if c.row::<FlagRow>(is_owner, &[])?.value {
                // To cut the end of the table off would lock everybody out, and no record is ever removed.
                c.batch_execute("VACUUM (SKIP_LOCKED, TRUNCATE FALSE) records")?;
            }
            Ok(())
        })
    }

    fn server_version(&self) -> Result<String, StoreError> {
        let query = "SELECT 'PostgreSQL ' || current_setting('server_version') AS value";
        self.read(|c| Ok(c.row::<TextRow>(query, &[])?.value))
    }

    fn signing_lock(&self) -> Option<SigningLock> {
        None
    }
}

/// How many rows a list of batches, keys or fences has in a parameter.
fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The ring of a statement as its first parameter.
fn ring_bind(ring: RingId) -> [Bind<'static>; 1] {
    [Bind::Int(ring.0)]
}
