//! The schema's versions: embedded migrations, and the check that program and database fit.
//!
//! `migrations/postgres` and `migrations/sqlite` have the same versions, one to one.

use std::collections::BTreeSet;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::pg::{Pg, PgConnection};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::StoreError;
use super::models::{FlagRow, TextRow};
use super::shared::Session;
use crate::config::DatabaseUrl;

const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

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
}

/// Brings the schema up to date; the versions applied, none if it was.
///
/// Safe to call from several processes at once: on PostgreSQL one waits for the other.
///
/// # Errors
/// [`StoreError::Schema`] if the database is newer than this program, and what the database said.
pub fn migrate(url: &DatabaseUrl, runtime_role: Option<&str>) -> Result<Vec<String>, StoreError> {
    match url {
        DatabaseUrl::Postgres { url } => migrate_postgres(url, runtime_role),
        DatabaseUrl::Sqlite { path } => {
            let name = path.to_string_lossy();
            let mut connection = SqliteConnection::establish(&name).map_err(unavailable)?;
            connection
                .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;")
                .map_err(failed)?;
            check_not_newer(&mut connection, &versions::<Sqlite>(&SQLITE)?)?;
            run::<Sqlite>(&mut connection, SQLITE)
        }
    }
}

fn migrate_postgres(url: &str, runtime_role: Option<&str>) -> Result<Vec<String>, StoreError> {
    let mut connection = PgConnection::establish(url).map_err(unavailable)?;
    // Not "chancery/...": a long migration must not look like a node's forgotten transaction. The
    // advisory lock makes one of several migrating processes wait; it ends with the session.
    connection
        .batch_execute(
            "SET application_name = 'chancery-migrate'; SET client_min_messages = warning;
             SELECT pg_advisory_lock(hashtext('chancery migrations'))",
        )
        .map_err(failed)?;
    check_not_newer(&mut connection, &versions::<Pg>(&POSTGRES)?)?;
    let applied = run::<Pg>(&mut connection, POSTGRES)?;
    if let Some(role) = runtime_role {
        connection.batch_execute(&grants(role)).map_err(failed)?;
    }
    Ok(applied)
}

/// The rights of the role that signs: everything but changing what is append-only.
fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "GRANT USAGE ON SCHEMA public TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};
         GRANT INSERT ON keks, keys, records, batches, key_uses, key_events, signatures TO {role};
         GRANT UPDATE ON rings, keys, records, batches, key_uses TO {role};"
    )
}

/// Checks that the schema is the one this program knows.
///
/// # Errors
/// [`StoreError::Schema`] if it is older or newer.
pub fn check(url: &DatabaseUrl) -> Result<(), StoreError> {
    match url {
        DatabaseUrl::Postgres { url } => {
            let mut connection = PgConnection::establish(url).map_err(unavailable)?;
            check_current(&mut connection, &versions::<Pg>(&POSTGRES)?)
        }
        DatabaseUrl::Sqlite { path } => {
            let mut connection =
                SqliteConnection::establish(&path.to_string_lossy()).map_err(unavailable)?;
            connection.batch_execute("PRAGMA busy_timeout = 10000").map_err(failed)?;
            check_current(&mut connection, &versions::<Sqlite>(&SQLITE)?)
        }
    }
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
    let has_table = session.row::<FlagRow>(S::HAS_VERSIONS, &[]).map_err(failed)?.value;
    if !has_table {
        return Ok(BTreeSet::new());
    }
    let query = "SELECT version AS value FROM __diesel_schema_migrations";
    let rows = session.rows::<TextRow>(query, &[]).map_err(failed)?;
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

fn run<DB: diesel::backend::Backend>(
    connection: &mut impl MigrationHarness<DB>,
    source: EmbeddedMigrations,
) -> Result<Vec<String>, StoreError> {
    let applied = connection
        .run_pending_migrations(source)
        .map_err(|error| StoreError::Database(error.to_string()))?;
    Ok(applied.iter().map(ToString::to_string).collect())
}

fn unavailable(error: diesel::ConnectionError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn failed(error: diesel::result::Error) -> StoreError {
    StoreError::Database(error.to_string())
}
