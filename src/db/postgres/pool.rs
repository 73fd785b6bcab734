//! Connections to PostgreSQL: lent, taken back, made again when they broke.
//!
//! Each caller hears at once why there is no connection. (r2d2 connects on threads of its own: every
//! caller waits for its time limit, and a password that was changed looks like a server that is slow.)

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::r2d2::R2D2Connection;

use super::errors::{classify, connect_error};
use crate::db::{StoreError, StoreOptions};
use crate::types::NodeId;

/// How long to wait for a connection that another thread of ours holds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Up to so many connections to one database.
pub(super) struct Pool {
    url: String,
    settings: String,
    most: u32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<PgConnection>,
    /// Connections that are lent.
    lent: u32,
    /// Callers that are making one.
    connecting: u32,
}

/// A connection that goes back to its pool when it is dropped.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    /// `None` only while it is being dropped.
    connection: Option<PgConnection>,
}

impl Pool {
    pub(super) fn new(url: &str, options: &StoreOptions) -> Self {
        Pool {
            url: url.to_owned(),
            settings: session_settings(&options.node, options.lease),
            most: options.pool_size.max(2),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A connection that has just answered.
    ///
    /// Where the server gives us no further one, those that we have must do: the caller waits for
    /// another thread to give its own back.
    ///
    /// # Errors
    /// Why none came about; [`StoreError::Busy`] if all were lent for longer than 5 s.
    pub(super) fn connection(&self) -> Result<Lent<'_>, StoreError> {
        let begin = Instant::now();
        let mut refusal = None;
        let mut state = self.state();
        loop {
            if let Some(mut connection) = state.idle.pop() {
                state.lent += 1;
                drop(state);
                if connection.ping().is_ok() {
                    return Ok(Lent { pool: self, connection: Some(connection) });
                }
                state = self.state();
                state.lent -= 1;
                self.changed.notify_all();
                continue;
            }
            // Once for each caller: whoever waits here is woken by every change.
            if refusal.is_none() && state.lent + state.connecting < self.most {
                state.connecting += 1;
                drop(state);
                let made = self.connect();
                state = self.state();
                state.connecting -= 1;
                match made {
                    Ok(connection) => {
                        state.lent += 1;
                        return Ok(Lent { pool: self, connection: Some(connection) });
                    }
                    Err(error) => refusal = Some(error),
                }
                self.changed.notify_all();
                continue;
            }
            let left = PATIENCE.saturating_sub(begin.elapsed());
            match refusal {
                Some(refusal) if state.lent == 0 || left.is_zero() => return Err(refusal),
                None if left.is_zero() => {
                    let message = format!("all {} connections were in use too long", self.most);
                    return Err(StoreError::Busy(message));
                }
                _ => {}
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connect(&self) -> Result<PgConnection, StoreError> {
        let mut connection = connect(&self.url)?;
        connection.batch_execute(&self.settings).map_err(classify)?;
        Ok(connection)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Lent<'_> {
    type Target = PgConnection;

    #[expect(clippy::unwrap_used, reason = "only its drop takes the connection out")]
    fn deref(&self) -> &PgConnection {
        // Unwrap safety: only the drop takes it out.
        self.connection.as_ref().unwrap()
    }
}

impl DerefMut for Lent<'_> {
    #[expect(clippy::unwrap_used, reason = "only its drop takes the connection out")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        // Unwrap safety: as above.
        self.connection.as_mut().unwrap()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // A panic may have left a transaction open; a broken one has lost count of it.
        let whole = self.connection.take().and_then(|mut connection| {
            (!std::thread::panicking() && !connection.is_broken()).then_some(connection)
        });
        let mut state = self.pool.state();
        state.lent -= 1;
        state.idle.extend(whole);
        drop(state);
        self.pool.changed.notify_all();
    }
}

/// A connection of its own, which notices a server that vanished.
///
/// # Errors
/// [`StoreError::Unavailable`] while the server cannot be reached or is starting,
/// [`StoreError::Connect`] if it refuses this user or has no such database.
pub(in crate::db) fn connect(url: &str) -> Result<PgConnection, StoreError> {
    PgConnection::establish(&with_keepalives(url)).map_err(connect_error)
}

/// What each session sets for itself, whatever the server's or the role's defaults.
///
/// The server's messages must be English, since they tell errors apart (`errors.rs`). To ask for that
/// is the superuser's right, so `chancery migrate` gives it to the runtime role where it can.
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
         SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') IN ('off', 'local');
         DO $$ BEGIN SET lc_messages = 'C';
               EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
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
    let missing: Vec<&str> =
        settings.iter().filter(|(name, _)| !url.contains(name)).map(|(_, text)| *text).collect();
    if missing.is_empty() {
        url.to_owned()
    } else {
        format!("{url}{separator}{}", missing.join("&"))
    }
}
