//! Connections to PostgreSQL: r2d2's pool, and the settings of a session.
//!
//! r2d2 connects on threads of its own and tells a caller only that its time is up. So the manager
//! notes why connecting fails, and a caller who has nothing to wait for hears it at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::r2d2::{self, ManageConnection, PooledConnection, R2D2Connection};
use diesel::sql_types::Text;
use diesel::{Connection, QueryResult, QueryableByName, RunQueryDsl, sql_query};

use super::errors::{classify, connect_error};
use crate::db::{PoolState, StoreError, StoreOptions};
use crate::types::NodeId;

/// How long to wait for a connection that another thread of ours holds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a caller who waits looks whether connecting has failed meanwhile.
const GLANCE: Duration = Duration::from_millis(50);

/// For how long a connection that has answered is lent again, for signing, without being asked first: to ask
/// costs as much as a small statement.
const TRUST: Duration = Duration::from_millis(200);

/// Up to so many connections to one database.
pub(super) struct Pool {
    pool: r2d2::Pool<Manager>,
    refusal: Arc<LastRefusal>,
}

impl Pool {
    pub(super) fn new(url: &str, options: &StoreOptions) -> Self {
        let refusal = Arc::<LastRefusal>::default();
        let manager = Manager {
            url: url.to_owned(),
            settings: session_settings(&options.node, options.lease),
            refusal: Arc::clone(&refusal),
        };
        let pool = r2d2::Pool::builder()
            .max_size(options.pool_size.max(2))
            .min_idle(Some(0))
            .test_on_check_out(true)
            // Half of it is the longest pause between two attempts to connect.
            .connection_timeout(Duration::from_secs(1))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(manager);
        Pool { pool, refusal }
    }

    /// The connections that there are now.
    pub(super) fn state(&self) -> PoolState {
        let state = self.pool.state();
        let idle = state.idle_connections;
        PoolState { in_use: state.connections - idle, idle }
    }

    /// A connection for a purpose, which has answered just now, or, to sign, within the last 200 ms.
    ///
    /// # Errors
    /// Why none came about; [`StoreError::Busy`] if all were lent for longer than 5 s.
    pub(super) fn connection(
        &self,
        purpose: Purpose,
    ) -> Result<PooledConnection<Manager>, StoreError> {
        loop {
            let mut pooled = self.any_connection()?;
            let is_well = match purpose {
                Purpose::Signing => Ok(()),
                Purpose::Rest => pooled.make_sure(),
            };
            match is_well.and_then(|()| pooled.plan_for(purpose)) {
                Ok(()) => return Ok(pooled),
                Err(error) if !pooled.is_trusted => return Err(classify(error)),
                // When it is lent again it is asked first.
                Err(_) => pooled.answered = None,
            }
        }
    }

    /// Where the server gives us no further one, those that we have must do: the caller waits for
    /// another thread to give its own back.
    fn any_connection(&self) -> Result<PooledConnection<Manager>, StoreError> {
        let begin = Instant::now();
        loop {
            if let Ok(connection) = self.pool.get_timeout(GLANCE) {
                return Ok(connection);
            }
            let refusal = self.refusal.since(begin);
            let is_late = begin.elapsed() >= PATIENCE;
            let others_have_some = self.pool.state().connections > 0;
            match refusal {
                Some(error) if is_late || !others_have_some => return Err(error),
                None if is_late && others_have_some => {
                    let most = self.pool.max_size();
                    let message = format!("all of up to {most} connections were in use too long");
                    return Err(StoreError::Busy(message));
                }
                None if is_late => {
                    let message = format!("no answer from the server in {PATIENCE:?}");
                    return Err(StoreError::Unavailable(message));
                }
                _ => {}
            }
        }
    }
}

/// What a connection is lent for, and so how its session plans statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To check out, load and store: the same few statements again and again, each planned once for a
    /// session. That may be on tables that are empty, and the plan must be good when they are full: so it
    /// never reads a table from end to end.
    Signing,
    /// Everything else, planned as PostgreSQL likes.
    Rest,
}

impl Purpose {
    fn settings(self) -> &'static str {
        match self {
            Purpose::Signing => {
                "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off"
            }
            Purpose::Rest => "RESET plan_cache_mode; RESET enable_seqscan",
        }
    }
}

/// A connection of the pool.
pub(super) struct Pooled {
    pub(super) connection: PgConnection,
    purpose: Purpose,
    /// When it last did what it was asked to; `None` if it failed since.
    answered: Option<Instant>,
    /// Whether it was lent without being asked first.
    pub(super) is_trusted: bool,
}

impl Pooled {
    /// Asks it, unless that has been done.
    fn make_sure(&mut self) -> QueryResult<()> {
        if self.is_trusted { self.connection.ping() } else { Ok(()) }
    }

    /// Makes the session plan for a purpose. Work of one kind follows upon its like, so that this seldom does
    /// anything.
    fn plan_for(&mut self, purpose: Purpose) -> QueryResult<()> {
        if self.purpose != purpose {
            // Should only the first setting succeed, plans are slow and not wrong.
            self.connection.batch_execute(purpose.settings())?;
            self.purpose = purpose;
        }
        Ok(())
    }

    /// Notes whether it did what it was asked to, before it is given back.
    pub(super) fn note<T, E>(&mut self, done: &Result<T, E>) {
        self.answered = done.is_ok().then(Instant::now);
    }
}

/// Makes and tests connections, and notes why it could not.
pub(super) struct Manager {
    url: String,
    settings: String,
    refusal: Arc<LastRefusal>,
}

/// Why the last attempt to connect that failed did so, and when.
#[derive(Default)]
struct LastRefusal(Mutex<Option<(Instant, StoreError)>>);

impl LastRefusal {
    fn note(&self, error: StoreError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), error));
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn since(&self, begin: Instant) -> Option<StoreError> {
        let refusal = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match refusal.as_ref()? {
            (at, _) if *at < begin => None,
            // Every caller that waits is told.
            (_, StoreError::Connect(message)) => Some(StoreError::Connect(message.clone())),
            (_, StoreError::Unavailable(message)) => Some(StoreError::Unavailable(message.clone())),
            (_, other) => Some(StoreError::Unavailable(other.to_string())),
        }
    }
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = NotConnected;

    fn connect(&self) -> Result<Pooled, NotConnected> {
        let made = connect(&self.url).and_then(|mut connection| {
            settle(&mut connection, &self.settings).map_err(classify)?;
            Ok(connection)
        });
        match made {
            Ok(connection) => {
                self.refusal.clear();
                Ok(Pooled { connection, purpose: Purpose::Rest, answered: None, is_trusted: false })
            }
            Err(error) => {
                self.refusal.note(error);
                Err(NotConnected)
            }
        }
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), NotConnected> {
        pooled.is_trusted = pooled.answered.is_some_and(|at| at.elapsed() < TRUST);
        if pooled.is_trusted {
            return Ok(());
        }
        pooled.connection.ping().map_err(|_| NotConnected)
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        // A panic may have left a transaction open; a broken one has lost count of it.
        std::thread::panicking() || pooled.connection.is_broken()
    }
}

/// There is no connection; the manager knows why.
#[derive(Debug, thiserror::Error)]
#[error("not connected")]
pub(super) struct NotConnected;

/// A connection of its own, which notices a server that vanished.
///
/// # Errors
/// [`StoreError::Unavailable`] while the server cannot be reached or is starting,
/// [`StoreError::Connect`] if it refuses this user or has no such database.
pub(in crate::db) fn connect(url: &str) -> Result<PgConnection, StoreError> {
    PgConnection::establish(&with_keepalives(url)).map_err(connect_error)
}

/// Makes a session what it must be, whatever the server's or the role's defaults.
fn settle(connection: &mut PgConnection, settings: &str) -> QueryResult<()> {
    connection.batch_execute(settings)?;
    // SHOW reads no catalogue, and most sessions have nothing to mend: a third of what it cost to begin one.
    let SynchronousCommit { synchronous_commit } =
        sql_query("SHOW synchronous_commit").get_result(connection)?;
    if matches!(synchronous_commit.as_str(), "off" | "local") {
        connection.batch_execute("SET synchronous_commit = on")?;
    }
    let LcMessages { lc_messages } = sql_query("SHOW lc_messages").get_result(connection)?;
    if lc_messages != "C" {
        connection.batch_execute(ENGLISH)?;
    }
    Ok(())
}

#[derive(QueryableByName)]
struct SynchronousCommit {
    #[diesel(sql_type = Text)]
    synchronous_commit: String,
}

#[derive(QueryableByName)]
struct LcMessages {
    #[diesel(sql_type = Text)]
    lc_messages: String,
}

/// The server's messages must be English, since they tell errors apart (`errors.rs`). To ask for that
/// is the superuser's right, so `chancery migrate` gives it to the runtime role where it can.
const ENGLISH: &str = "DO $$ BEGIN SET lc_messages = 'C';
                       EXCEPTION WHEN insufficient_privilege THEN NULL; END $$";

/// What each session sets for itself. A node's queries are many and run beside others, so that none of
/// them takes several processors.
fn session_settings(node: &NodeId, lease: Duration) -> String {
    // PostgreSQL cuts application names at 63 bytes; a quote would end the literal.
    let application: String =
        format!("chancery/{node}").replace(['\'', '\\'], "_").chars().take(63).collect();
    let lock_timeout_ms = lease.as_millis() / 2;
    let idle_timeout_ms = lease.as_millis() * 3 / 4;
    format!(
        "SET application_name = '{application}';
         SET default_transaction_isolation = 'read committed';
         SET lock_timeout = {lock_timeout_ms};
         SET idle_in_transaction_session_timeout = {idle_timeout_ms};
         SET tcp_keepalives_idle = 10;
         SET tcp_keepalives_interval = 5;
         SET tcp_keepalives_count = 3;
         SET timezone = 'UTC';
         SET jit = off;
         SET max_parallel_workers_per_gather = 0"
    )
}

/// Adds the client's half of the keepalives, so that a server that vanished is noticed.
fn with_keepalives(url: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    let settings = [
        ("connect_timeout", "connect_timeout=5"),
        ("keepalives_idle", "keepalives_idle=10&keepalives_interval=5&keepalives_count=3"),
        ("tcp_user_timeout", "tcp_user_timeout=20000"),
    ];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let missing: Vec<&str> =
        settings.iter().filter(|(name, _)| !query.contains(name)).map(|(_, text)| *text).collect();
    if missing.is_empty() {
        url.to_owned()
    } else {
        format!("{url}{separator}{}", missing.join("&"))
    }
}
