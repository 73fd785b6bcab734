//! Reaching the database: waiting until it is there, checking its schema, taking the signing lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::UsageError;
use crate::config::{Config, DatabaseUrl};
use crate::db::{self, HeldSigningLock, Store, StoreError, StoreOptions, migrate};
use crate::types::NodeId;

/// The longest pause between two attempts to reach the database.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often a wait says that it goes on.
const REMINDER: Duration = Duration::from_secs(10);

/// A database that answers and has the schema that this program needs.
pub struct Connected {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Its name for people, without secrets.
    pub name: String,
}

/// What to do if an SQLite file is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingDatabase {
    /// Make it.
    Create,
    /// Say so.
    Refuse,
}

/// Connects, waiting up to `database.wait_s` for a server that is not there yet. SQLite databases
/// are migrated; others must have been.
///
/// # Errors
/// What keeps the database from being used.
pub fn connect(
    config: &Config,
    node: &NodeId,
    missing: MissingDatabase,
) -> anyhow::Result<Connected> {
    let url = &config.database.url;
    let name = url.to_string();
    if let DatabaseUrl::Sqlite { path } = url {
        if missing == MissingDatabase::Refuse && !path.exists() {
            return Err(UsageError(format!(
                "there is no database at {}: name another with --database-url, or begin one with \
                 `chancery seed`, `import`, `keys generate` or `demo`",
                path.display()
            ))
            .into());
        }
        let applied = wait_for_database(config, || migrate::migrate(url, None))?;
        if !applied.is_empty() {
            tracing::info!(database = name, "made the schema");
        }
    }
    let options = StoreOptions {
        node: node.clone(),
        pool_size: config.database.pool_size,
        lease: config.lease.duration(),
        max_attempts: config.lease.max_attempts,
    };
    let store = wait_for(config.database.wait(), &name, || {
        migrate::check(url)?;
        db::open(url, &options)
    })?;
    Ok(Connected { store, name })
}

/// Runs `attempt` on the configured database, waiting as [`connect`] does.
///
/// # Errors
/// The last attempt's.
pub fn wait_for_database<T>(
    config: &Config,
    attempt: impl FnMut() -> Result<T, StoreError>,
) -> anyhow::Result<T> {
    wait_for(config.database.wait(), &config.database.url.to_string(), attempt)
}

/// Asks a database that has answered before, waiting as [`connect`] does while it cannot be reached:
/// a start that is cut off in the middle goes on.
///
/// # Errors
/// What the database refuses, and the last attempt's.
pub fn ask_database<T>(
    config: &Config,
    mut ask: impl FnMut() -> Result<T, StoreError>,
) -> anyhow::Result<T> {
    let answer = wait_for_database(config, || match ask() {
        Err(error) if !error.is_retryable() => Ok(Err(error)),
        answer => answer.map(Ok),
    });
    Ok(answer??)
}

/// Repeats `attempt` while a later one may succeed.
fn wait_for<T>(
    wait: Duration,
    name: &str,
    mut attempt: impl FnMut() -> Result<T, StoreError>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(50);
    let mut reminded: Option<Instant> = None;
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let waited = begin.elapsed();
        if !error.is_retryable() {
            return Err(error).with_context(|| format!("cannot use the database {name}"));
        }
        if waited >= wait {
            return Err(error).with_context(|| {
                format!(
                    "gave up on the database {name} after {} s (database.wait_s)",
                    wait.as_secs()
                )
            });
        }
        if reminded.is_none_or(|at| at.elapsed() >= REMINDER) {
            let left_s = (wait - waited).as_secs();
            tracing::warn!(database = name, %error, left_s, "waiting for the database");
            reminded = Some(Instant::now());
        }
        pause_for(pause.min(wait - waited));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Takes the signing lock of a database that has one, waiting for whoever holds it.
///
/// # Errors
/// If the lock file cannot be made.
pub fn wait_for_signing_lock(
    store: &dyn Store,
    node: &NodeId,
) -> anyhow::Result<Option<HeldSigningLock>> {
    let Some(lock) = store.signing_lock() else {
        return Ok(None);
    };
    let who = format!("node {node} (process {})", std::process::id());
    let mut said_for: Option<String> = None;
    loop {
        match lock.try_hold(&who)? {
            Ok(held) => return Ok(Some(held)),
            Err(holder) => {
                if said_for.as_ref() != Some(&holder) {
                    tracing::warn!(
                        holder, lock = %lock.path().display(),
                        "waiting: one process at a time signs an SQLite database"
                    );
                    said_for = Some(holder);
                }
                pause_for(Duration::from_millis(100));
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "start-up waits on its own thread for what sends no event"
)]
fn pause_for(pause: Duration) {
    std::thread::sleep(pause);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_comes_up_late_is_waited_for() {
        let mut attempts = 0;
        let found = wait_for(Duration::from_secs(60), "db", || {
            attempts += 1;
            if attempts < 3 { Err(StoreError::Unavailable("refused".into())) } else { Ok(attempts) }
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_wrong_password_is_not_waited_for() {
        let mut attempts = 0;
        let error = wait_for::<()>(Duration::from_secs(60), "db", || {
            attempts += 1;
            Err(StoreError::Connect("password authentication failed".into()))
        })
        .unwrap_err();
        assert_eq!(attempts, 1);
        assert_eq!(
            format!("{error:#}"),
            "cannot use the database db: password authentication failed"
        );
    }

    #[test]
    fn a_database_that_breaks_off_is_asked_again_and_what_it_refuses_is_said_as_it_is() {
        let config = Config::default();
        let mut attempts = 0;
        let error = ask_database::<()>(&config, || {
            attempts += 1;
            Err(match attempts {
                1 | 2 => StoreError::Unavailable("server closed the connection".into()),
                _ => StoreError::Database("no such ring".into()),
            })
        })
        .unwrap_err();
        assert_eq!(attempts, 3);
        assert_eq!(format!("{error:#}"), StoreError::Database("no such ring".into()).to_string());
    }

    #[test]
    fn the_wait_ends_with_the_last_reason() {
        let error = wait_for::<()>(Duration::ZERO, "db", || {
            Err(StoreError::Unavailable("connection refused".into()))
        })
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "gave up on the database db after 0 s (database.wait_s): \
             the database is not reachable: connection refused"
        );
    }
}
