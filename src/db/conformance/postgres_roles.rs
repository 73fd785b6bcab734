//! The runtime role, on PostgreSQL only: all that signing needs, and nothing more.

use super::actions::{RING, add_keys, check_out, give_up, insert, sign_all};
use super::fixture::{Fixture, Pg, options};
use super::judge::assert_signed;
use crate::config::DatabaseUrl;
use crate::db::{PgStore, ReclaimScope, Store, migrate};
use crate::types::{KeyEvent, Kid};

/// A database whose runtime role may log in, and that role's address.
fn with_role() -> (Pg, String) {
    let f = Pg::empty();
    // Roles belong to the whole server: the name must differ from test to test.
    let role = format!("runtime \"{}\"", f.database.name());
    f.run(&format!("CREATE ROLE \"{}\" LOGIN", role.replace('"', "\"\"")));
    migrate::migrate(&f.url(), Some(&role)).unwrap();
    let encoded = role.replace(' ', "%20").replace('"', "%22");
    let url = f.database.url_as(&encoded);
    (f, url)
}

#[test]
fn the_runtime_role_can_do_the_whole_protocol() {
    let (f, url) = with_role();
    migrate::check(&DatabaseUrl::Postgres { url: url.clone() }).unwrap();
    let store = PgStore::open(&url, &options("a")).unwrap();
    add_keys(&store, RING, 3);
    insert(&f, &store, RING, 10);
    let named = crate::db::NewRecord { external_id: Some("x".to_owned()), payload: vec![1] };
    assert_eq!(store.insert_records(RING, &[named]).unwrap().added, 1);
    let batches = check_out(&store, RING, 3, 2).batches;
    store.renew(RING, &[batches[0].key_use.fence]).unwrap();
    store.give_up(RING, &[give_up(&batches[1], Some("a failure"))]).unwrap();
    f.expire("1 = 1");
    assert_eq!(store.reclaim(RING, ReclaimScope::Expired).unwrap().uses.len(), 2);
    let kid = Kid("kid-3".to_owned());
    for event in [KeyEvent::Disabled, KeyEvent::Retired, KeyEvent::Destroyed] {
        assert!(store.change_key(&kid, event, "test", None).unwrap());
    }
    f.run("INSERT INTO records (id, ring_id, payload, inserted_xid) VALUES (1000, 1, 'behind', 3)");
    assert_eq!(store.sweep(RING).unwrap(), 1);
    f.settle();
    store.create_ring("other", crate::types::Provider::Software, "test").unwrap();
    store.blockers().unwrap();
    store.report(&super::nodes::report()).unwrap();
    assert_eq!(store.nodes().unwrap().len(), 1);
    sign_all(&f, &store, RING, 2);
    assert_signed(&f, &store, RING, 12);
}

#[test]
fn the_runtime_role_brings_the_planner_up_to_date_after_intake() {
    let (f, url) = with_role();
    let store = PgStore::open(&url, &options("a")).unwrap();
    insert(&f, &store, RING, 500);
    store.analyze().unwrap();
    store.vacuum().unwrap();
    let estimate = "SELECT reltuples::BIGINT AS value FROM pg_class WHERE relname = 'records'";
    assert_eq!(f.number(estimate), 500);
    let vacuumed =
        "SELECT vacuum_count AS value FROM pg_stat_user_tables WHERE relname = 'records'";
    assert_eq!(f.number(vacuumed), 0, "that is for the owner to do");
}

#[test]
fn the_runtime_role_can_change_or_remove_nothing_that_was_signed() {
    let (f, url) = with_role();
    let store = PgStore::open(&url, &options("a")).unwrap();
    add_keys(&store, RING, 1);
    insert(&f, &store, RING, 2);
    sign_all(&f, &store, RING, 2);
    let role = "SELECT rolname AS value FROM pg_roles WHERE rolname LIKE 'runtime%' || current_database() || '%'";
    let role = f.rows(role).remove(0).replace('"', "\"\"");
    for table in ["signatures", "key_events"] {
        for statement in [
            format!("UPDATE {table} SET ctid = ctid"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("ALTER TABLE {table} DISABLE TRIGGER ALL"),
            format!("DROP TABLE {table}"),
        ] {
            let statement = statement.replace(
                "ctid = ctid",
                if table == "signatures" { "batch_id = 1" } else { "actor = 'x'" },
            );
            let message = f.refused(&format!("SET ROLE \"{role}\"; {statement}"));
            assert!(
                message.contains("permission denied") || message.contains("must be owner"),
                "{statement}: {message}"
            );
        }
    }
    for statement in [
        "DELETE FROM records",
        "DELETE FROM batches",
        "DELETE FROM key_uses",
        "DELETE FROM keys",
        "TRUNCATE records",
        "DELETE FROM rings",
        "DELETE FROM __diesel_schema_migrations",
        "CREATE TABLE t (n INT)",
    ] {
        let message = f.refused(&format!("SET ROLE \"{role}\"; {statement}"));
        assert!(message.contains("permission denied"), "{statement}: {message}");
    }
    assert_signed(&f, &store, RING, 2);
}
