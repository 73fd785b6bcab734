//! The schema and its versions.

use std::collections::BTreeSet;
use std::sync::Barrier;

use diesel::Connection;
use diesel::pg::PgConnection;
use diesel::sqlite::SqliteConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::fixture::{Fixture, Pg, Sqlite};
use super::on_both;
use crate::db::migrate::{self, SchemaError};
use crate::db::{StoreError, open};

on_both! {
    the_tables_have_the_columns_that_the_data_model_promises,
    migrating_again_changes_nothing,
    a_schema_that_lacks_a_migration_is_refused_with_the_remedy,
    a_schema_of_a_newer_program_is_left_alone,
}

/// The public contract: docs/DATA_MODEL.md.
const PROMISED: [(&str, &str); 9] = [
    ("rings", "id, name, tick, cursor_xid, cursor_id, created_at"),
    (
        "keys",
        "id, ring_id, kid, algorithm, public_key, sealed_private_key, status, last_tick, created_at",
    ),
    ("records", "id, ring_id, external_id, payload, inserted_xid, created_at"),
    (
        "batches",
        "id, ring_id, low_xid, low_id, high_xid, high_id, record_count, state, attempts, failure, \
         created_at, stored_at",
    ),
    (
        "key_uses",
        "ring_id, fence, batch_id, key_id, node, checked_out_at, expires_at, end_tick, ended_at, \
         outcome",
    ),
    ("key_events", "ring_id, tick, key_id, event, actor, at"),
    ("signatures", "record_id, batch_id, signature"),
    (
        "nodes",
        "id, name, host, process_id, version, state, in_flight, trouble, lease_ms, started_at, \
         last_seen_at",
    ),
    (
        "signed_records",
        "record_id, external_id, ring, payload, signature, kid, public_key, algorithm, batch_id, \
         signed_at",
    ),
];

fn the_tables_have_the_columns_that_the_data_model_promises<F: Fixture>(f: &F) {
    for (table, columns) in PROMISED {
        assert_eq!(
            f.number(&format!("SELECT count(*) AS value FROM (SELECT {columns} FROM {table}) t")),
            i64::from(table == "rings"),
            "{table}"
        );
    }
    assert_eq!(f.rows("SELECT name AS value FROM rings"), ["default"]);
}

fn migrating_again_changes_nothing<F: Fixture>(f: &F) {
    let tables = "SELECT count(*) AS value FROM __diesel_schema_migrations";
    let before = f.number(tables);
    assert!(before > 0);
    assert_eq!(migrate::migrate(&f.url(), None).unwrap(), Vec::<String>::new());
    assert_eq!(f.number(tables), before);
    migrate::check(&f.url()).unwrap();
}

fn a_schema_that_lacks_a_migration_is_refused_with_the_remedy<F: Fixture>(f: &F) {
    f.run("DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)");
    let error = migrate::check(&f.url()).unwrap_err();
    assert!(matches!(error, StoreError::Schema(SchemaError::Older { .. })), "{error:?}");
    assert!(error.to_string().contains("chancery migrate"), "{error}");
}

fn a_schema_of_a_newer_program_is_left_alone<F: Fixture>(f: &F) {
    f.run("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000001')");
    for error in [
        migrate::check(&f.url()).unwrap_err(),
        migrate::migrate(&f.url(), None).map(|_| ()).unwrap_err(),
    ] {
        match &error {
            StoreError::Schema(SchemaError::Newer { found, known }) => {
                assert_eq!((found.as_str(), known), ("99990101000001", &migrate::newest_version()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(f.number("SELECT count(*) AS value FROM rings"), 1);
}

#[test]
fn an_empty_database_is_refused_with_the_remedy_and_stays_empty() {
    fn judge(f: &impl Fixture, tables: &str) {
        let error = migrate::check(&f.url()).unwrap_err();
        match &error {
            StoreError::Schema(SchemaError::Older { found: None, needed }) => {
                assert_eq!(needed, &migrate::newest_version());
            }
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains("chancery migrate"), "{error}");
        assert_eq!(f.number(tables), 0, "a check makes no table");
    }
    judge(&Sqlite::empty(), "SELECT count(*) AS value FROM sqlite_master");
    judge(&Pg::empty(), "SELECT count(*) AS value FROM pg_tables WHERE schemaname = 'public'");
}

#[test]
fn both_databases_have_the_same_versions_tables_columns_and_indexes() {
    let (sqlite, postgres) = (Sqlite::empty(), Pg::empty());
    let versions = migrate::migrate(&sqlite.url(), None).unwrap();
    assert_eq!(versions.last(), Some(&migrate::newest_version()));
    assert_eq!(versions, migrate::migrate(&postgres.url(), None).unwrap());

    let columns = sqlite.rows(
        "SELECT t.name || '.' || c.name AS value FROM sqlite_master t, pragma_table_info(t.name) c
         WHERE t.type IN ('table', 'view') AND t.name <> 'sqlite_sequence'",
    );
    let postgres_columns = postgres.rows(
        "SELECT table_name || '.' || column_name AS value FROM information_schema.columns
         WHERE table_schema = 'public'",
    );
    assert!(columns.len() > 60, "{columns:?}");
    assert_eq!(set(columns), set(postgres_columns));

    let indexes = sqlite
        .rows("SELECT name AS value FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL");
    let postgres_indexes = postgres.rows(
        "SELECT i.indexname AS value FROM pg_indexes i WHERE i.schemaname = 'public'
         AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
    );
    assert!(indexes.len() > 5, "{indexes:?}");
    assert_eq!(set(indexes), set(postgres_indexes));
}

fn set(rows: Vec<String>) -> BTreeSet<String> {
    rows.into_iter().collect()
}

#[test]
fn what_a_migration_makes_its_way_back_removes() {
    const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
    const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

    let f = Sqlite::new();
    let db_path = match f.url() {
        crate::config::DatabaseUrl::Sqlite { path } => path,
        crate::config::DatabaseUrl::Postgres { .. } => unreachable!("a fixture of SQLite"),
    };
    let mut connection = SqliteConnection::establish(db_path.to_str().unwrap()).unwrap();
    assert!(!connection.revert_all_migrations(SQLITE).unwrap().is_empty());
    let left = "SELECT name AS value FROM sqlite_master WHERE name NOT LIKE 'sqlite%'";
    assert_eq!(f.rows(left), ["__diesel_schema_migrations"]);
    assert!(!migrate::migrate(&f.url(), None).unwrap().is_empty());

    let f = Pg::new();
    let mut connection = PgConnection::establish(&f.database.url()).unwrap();
    assert!(!connection.revert_all_migrations(POSTGRES).unwrap().is_empty());
    let left = "SELECT relname AS value FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'
                UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace";
    assert_eq!(f.rows(left), ["__diesel_schema_migrations"]);
    assert!(!migrate::migrate(&f.url(), None).unwrap().is_empty());
}

#[test]
fn of_several_processes_that_migrate_at_once_one_does_the_work_and_all_succeed() {
    fn judge(f: &impl Fixture) {
        const PROCESSES: usize = 6;
        let barrier = Barrier::new(PROCESSES);
        let applied: Vec<String> = std::thread::scope(|scope| {
            let migrate = || {
                barrier.wait();
                migrate::migrate(&f.url(), None)
            };
            let handles: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(migrate)).collect();
            handles.into_iter().flat_map(|handle| handle.join().unwrap().unwrap()).collect()
        });
        assert_eq!(applied.last(), Some(&migrate::newest_version()));
        assert_eq!(applied.len(), set(applied.clone()).len(), "each migration was applied once");
        migrate::check(&f.url()).unwrap();
    }
    judge(&Pg::empty());
    judge(&Sqlite::empty());
}

#[test]
fn a_database_that_is_not_there_is_told_apart_from_one_that_is_down() {
    let f = Pg::new();
    let options = super::fixture::options("a");
    let missing = f.database.server().url("no_such_database");
    let error =
        open(&crate::config::DatabaseUrl::Postgres { url: missing }, &options).err().unwrap();
    assert!(matches!(error, StoreError::Connect(_)), "{error:?}");
    assert!(!error.is_retryable());

    // A port that was free a moment ago, and that nobody else is given in between.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let down = format!("postgres://postgres@127.0.0.1:{port}/chancery");
    let error = open(&crate::config::DatabaseUrl::Postgres { url: down }, &options).err().unwrap();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.is_retryable());
}
