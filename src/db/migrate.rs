//! The schema's versions: embedded migrations, and the check that program and database fit.
//!
//! `migrations/postgres` and `migrations/sqlite` have the same versions, one to one.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::result::DatabaseErrorKind;
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::models::{FlagRow, TextRow};
use super::shared::{Session, TxError, TxResult};
use super::{StoreError, postgres, sqlite};
use crate::config::DatabaseUrl;

const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// What a connection that makes or checks an SQLite schema sets.
const SQLITE_SETTINGS: &str = "PRAGMA busy_timeout = 10000";

/// Why the schema does not fit this program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaError {
    /// Migrations are missing.
    #[error(
        "the database's schema is {}; this program needs {needed}: run `chancery migrate`",
        .found.as_deref().map_or("empty".to_owned(), |version| format!("at version {version}"))
    )]
    Older {
        /// The newest version applied.
        found: Option<String>,
        /// The newest version that the program knows.
        needed: String,
    },
    /// A newer program has migrated the database.
    #[error(
        "the database's schema has version {found}, which is newer than this program knows \
         ({known}): use a newer chancery"
    )]
    Newer {
        /// The unknown version.
        found: String,
        /// The newest version that the program knows.
        known: String,
    },
    /// The database was dumped from one PostgreSQL cluster and restored into another, so that the
    /// transaction ids in its records mean nothing here.
    #[error(
        "the database was restored from another PostgreSQL cluster, and its transaction ids must \
         be shifted before anything is signed: run `chancery migrate` as the owner"
    )]
    OtherCluster,
}

/// Brings the schema up to date; the versions applied, none if it was.
///
/// Safe to call from several processes at once: one waits for the other.
///
/// # Errors
/// [`StoreError::Schema`] if the database is newer than this program, and what the database said.
pub fn migrate(url: &DatabaseUrl, runtime_role: Option<&str>) -> Result<Vec<String>, StoreError> {
    match url {
        DatabaseUrl::Postgres { url } => migrate_postgres(url, runtime_role),
        DatabaseUrl::Sqlite { path } => {
            let mut connection = open_in_wal_mode(path)?;
            let known = versions::<Sqlite>(&SQLITE)?;
            if check_not_newer(&mut connection, &known)?.len() == known.len() {
                return Ok(Vec::new());
            }
            // Another process may be at it just now: who comes second looks again.
            let applied = connection.immediate_transaction(|connection| -> TxResult<_> {
                check_not_newer(connection, &known)?;
                Ok(run::<Sqlite, _>(connection, SQLITE)?)
            });
            applied.map_err(|error| match error {
                TxError::Store(error) => error,
                TxError::Diesel(error) => sqlite::classify(error),
            })
        }
    }
}

/// Opens a file and turns its write-ahead log on. SQLite does not wait for others who do the same at the same
/// time, whatever the busy timeout says.
#[expect(clippy::disallowed_methods, reason = "SQLite tells nobody when the lock is free")]
fn open_in_wal_mode(path: &Path) -> Result<SqliteConnection, StoreError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let wal = format!("{SQLITE_SETTINGS}; PRAGMA journal_mode = WAL");
    let begin = Instant::now();
    loop {
        match sqlite::open_file(path, &wal) {
            Err(StoreError::Busy(_)) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

fn migrate_postgres(url: &str, runtime_role: Option<&str>) -> Result<Vec<String>, StoreError> {
    let mut connection = postgres::connect(url)?;
    // Not "chancery/...": a long migration must not look like a node's forgotten transaction. The
    // advisory lock makes one of several migrating processes wait; it ends with the session.
    connection
        .batch_execute(
            "SET application_name = 'chancery-migrate'; SET client_min_messages = warning;
             SELECT pg_advisory_lock(hashtext('chancery migrations'))",
        )
        .map_err(postgres::classify)?;
    check_not_newer(&mut connection, &versions::<Pg>(&POSTGRES)?)?;
    let applied = run::<Pg, _>(&mut connection, POSTGRES)?;
    if !is_of_this_cluster(&mut connection)? {
        let offset = shift_transaction_ids(&mut connection)?;
        tracing::warn!(
            offset,
            "the database came from another cluster: shifted the transaction ids of what follows"
        );
    }
    if let Some(role) = runtime_role {
        connection.batch_execute(&grants(role)).map_err(postgres::classify)?;
    }
    Ok(applied)
}

/// Whether the database was made in, or has been adopted by, the cluster that it is in.
fn is_of_this_cluster(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let query = "SELECT i.system_identifier = c.system_identifier::TEXT AS value
                 FROM database_identity i, pg_control_system() c";
    Ok(connection.row::<FlagRow>(query, &[]).map_err(postgres::classify)?.value)
}

/// Adopts a restored database: from now on every stored transaction id is this cluster's plus an
/// offset that puts it above all that were restored. Nothing is renumbered.
#[expect(clippy::disallowed_methods, reason = "the owner's own transaction, outside the protocol")]
fn shift_transaction_ids(connection: &mut PgConnection) -> Result<i64, StoreError> {
    connection
        .transaction(|c| {
            c.batch_execute("LOCK TABLE rings, records, batches IN EXCLUSIVE MODE")?;
            let offset = c.number(
                "SELECT greatest(0, 1 + greatest(
                     (SELECT coalesce(max(inserted_xid), 0) FROM records),
                     (SELECT coalesce(max(cursor_xid), 0) FROM rings),
                     (SELECT coalesce(max(high_xid), 0) FROM batches))
                   - pg_current_xact_id()::TEXT::BIGINT) AS value",
                &[],
            )?;
            c.batch_execute(&format!(
                "CREATE OR REPLACE FUNCTION chancery_xid_offset() RETURNS BIGINT
                     LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {offset}::BIGINT;
                 UPDATE database_identity
                     SET system_identifier = (SELECT system_identifier::TEXT FROM pg_control_system())"
            ))?;
            Ok(offset)
        })
        .map_err(postgres::classify)
}

/// The rights of the role that signs: everything but changing what is append-only. And English
/// messages from the server, by which a node tells its errors apart, where the owner may give that.
fn grants(role: &str) -> String {
    let literal = format!("'{}'", role.replace('\'', "''"));
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "GRANT USAGE ON SCHEMA public TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};
         GRANT INSERT ON rings, keks, data_keys, keys, records, batches, key_uses, key_events, signatures TO {role};
         GRANT UPDATE ON rings, keys, records, batches, key_uses TO {role};
         GRANT DELETE ON keks, data_keys TO {role};
         GRANT INSERT, UPDATE, DELETE ON nodes TO {role};
         GRANT INSERT ON tokens, admin_log TO {role};
         GRANT UPDATE ON tokens, admin_log_head TO {role};
         DO $chancery$ BEGIN
             EXECUTE format('ALTER ROLE %I IN DATABASE %I SET lc_messages = %L',
                            {literal}, current_database(), 'C');
         EXCEPTION WHEN insufficient_privilege THEN NULL;
         END $chancery$;"
    )
}

/// Checks that the schema is the one this program knows.
///
/// # Errors
/// [`StoreError::Schema`] if it is older or newer.
pub fn check(url: &DatabaseUrl) -> Result<(), StoreError> {
    match url {
        DatabaseUrl::Postgres { url } => check_postgres(&mut postgres::connect(url)?),
        DatabaseUrl::Sqlite { path } => {
            check_sqlite(&mut sqlite::open_file(path, SQLITE_SETTINGS)?)
        }
    }
}

/// As [`check`], over a connection that is there.
pub(super) fn check_postgres(connection: &mut PgConnection) -> Result<(), StoreError> {
    check_current(connection, &versions::<Pg>(&POSTGRES)?)?;
    if is_of_this_cluster(connection)? { Ok(()) } else { Err(SchemaError::OtherCluster.into()) }
}

/// As [`check`], over a connection that is there.
pub(super) fn check_sqlite(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    check_current(connection, &versions::<Sqlite>(&SQLITE)?)
}

/// The newest schema version that this program knows.
#[must_use]
pub fn newest_version() -> String {
    versions::<Sqlite>(&SQLITE).ok().and_then(|known| known.last().cloned()).unwrap_or_default()
}

fn versions<DB: diesel::backend::Backend>(
    source: &EmbeddedMigrations,
) -> Result<BTreeSet<String>, StoreError> {
    use diesel::migration::MigrationSource;
    let migrations = MigrationSource::<DB>::migrations(source)
        .map_err(|error| StoreError::Database(error.to_string()))?;
    Ok(migrations.iter().map(|m| m.name().version().to_string()).collect())
}

/// The versions that a database has. Reads only: the runtime role may make no table.
fn applied<S: Session>(session: &mut S) -> Result<BTreeSet<String>, StoreError> {
    let has_table = session.row::<FlagRow>(S::HAS_VERSIONS, &[]).map_err(S::classify)?.value;
    if !has_table {
        return Ok(BTreeSet::new());
    }
    let query = "SELECT version AS value FROM __diesel_schema_migrations";
    let rows = session.rows::<TextRow>(query, &[]).map_err(S::classify)?;
    Ok(rows.into_iter().map(|row| row.value).collect())
}

fn check_not_newer<S: Session>(
    session: &mut S,
    known: &BTreeSet<String>,
) -> Result<BTreeSet<String>, StoreError> {
    let applied = applied(session)?;
    match applied.difference(known).max() {
        Some(found) => Err(SchemaError::Newer {
            found: found.clone(),
            known: known.last().cloned().unwrap_or_default(),
        }
        .into()),
        None => Ok(applied),
    }
}

fn check_current<S: Session>(session: &mut S, known: &BTreeSet<String>) -> Result<(), StoreError> {
    let applied = check_not_newer(session, known)?;
    if applied.len() == known.len() {
        return Ok(());
    }
    let needed = known.last().cloned().unwrap_or_default();
    Err(SchemaError::Older { found: applied.last().cloned(), needed }.into())
}

fn run<DB: diesel::backend::Backend, S: Session + MigrationHarness<DB>>(
    connection: &mut S,
    source: EmbeddedMigrations,
) -> Result<Vec<String>, StoreError> {
    let applied = connection.run_pending_migrations(source).map_err(|error| {
        // It has lost its kind on the way, and its words tell enough.
        let message = Box::new(error.to_string());
        S::classify(diesel::result::Error::DatabaseError(DatabaseErrorKind::Unknown, message))
    })?;
    Ok(applied.iter().map(ToString::to_string).collect())
}
