//! Long transactions of others, on PostgreSQL only: each that holds Chancery up is named.

use std::time::Duration;

use super::actions::{RING, add_keys, insert, sign_all};
use super::fixture::{Fixture, Pg, Raw, options, wait_for};
use super::judge::assert_signed;
use crate::db::postgres::blockers::blockers;
use crate::db::{Blocker, PgStore, Store, migrate};
use crate::types::BlockerKind;

/// Waits until there is a blocker; the only one.
fn the_blocker(f: &Pg, store: &PgStore) -> Blocker {
    let mut clock = f.session();
    let found = wait_for("the transaction to be old enough", || {
        clock.run("SELECT pg_sleep(0.1)");
        let found = store.read(|c| blockers(c, Duration::from_secs(1))).unwrap();
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn session_in(url: &str, application: &str) -> Raw {
    let mut session = Raw::connect(url);
    session.run(&format!("SET application_name = '{application}'"));
    session
}

#[test]
fn a_transaction_that_has_written_is_named_whatever_database_it_works_in() {
    let f = Pg::alone();
    let store = f.open_own("a");
    add_keys(&store, RING, 1);
    let elsewhere = f.database.server().create_database().unwrap();
    for (url, database) in
        [(f.database.url(), f.database.name()), (elsewhere.url(), elsewhere.name())]
    {
        let mut holder = session_in(&url, "nightly import");
        holder.run("BEGIN; SELECT pg_current_xact_id()");
        let pid = holder.number("SELECT pg_backend_pid()::BIGINT AS value");
        let blocker = the_blocker(&f, &store);
        assert_eq!(blocker.kind, BlockerKind::Writer);
        assert!(!store.is_held_back(RING).unwrap(), "nothing waits yet");
        assert_eq!(i64::from(blocker.pid), pid);
        assert_eq!(blocker.database, database);
        assert_eq!(blocker.application, "nightly import");
        assert!(blocker.age_s.is_some_and(|age_s| (5..60).contains(&age_s)), "{blocker:?}");
        let said = blocker.to_string();
        let told = ["nightly import", &pid.to_string(), database, "from being signed"];
        assert!(told.iter().all(|part| said.contains(part)), "{said}");
        f.run("INSERT INTO records (ring_id, payload) VALUES (1, 'x')");
        assert!(!store.has_work(RING).unwrap(), "the record waits for it");
        assert!(store.is_held_back(RING).unwrap());
        holder.run("COMMIT");
        f.settle();
        assert!(!store.is_held_back(RING).unwrap());
        assert!(store.blockers().unwrap().is_empty());
        assert!(store.has_work(RING).unwrap());
        sign_all(&f, &store, RING, 1);
    }
    assert_signed(&f, &store, RING, 2);
}

#[test]
fn a_prepared_transaction_that_was_left_behind_is_named() {
    let f = Pg::alone();
    let store = f.open_own("a");
    f.session().run("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'invoices-17'");
    let blocker = the_blocker(&f, &store);
    assert_eq!((blocker.kind, blocker.pid), (BlockerKind::Prepared, 0));
    assert_eq!(
        (blocker.application.as_str(), blocker.database.as_str()),
        ("invoices-17", f.database.name())
    );
    assert!(blocker.to_string().starts_with("the prepared transaction \"invoices-17\""));
    f.run("ROLLBACK PREPARED 'invoices-17'");
    assert!(store.blockers().unwrap().is_empty());
}

#[test]
fn an_old_snapshot_is_named_and_told_apart_from_a_writer() {
    let f = Pg::alone();
    let store = f.open_own("a");
    let mut report = session_in(&f.database.url(), "report");
    report.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM records");
    let blocker = the_blocker(&f, &store);
    assert_eq!((blocker.kind, blocker.application.as_str()), (BlockerKind::Snapshot, "report"));
    assert!(blocker.to_string().ends_with("slows checkouts down"));
    assert!(store.blockers().unwrap().is_empty(), "it is not yet a minute old");
    // One in another database keeps nothing of this one from being cleaned up.
    report.run("COMMIT");
    let elsewhere = f.database.server().create_database().unwrap();
    let mut report = session_in(&elsewhere.url(), "report");
    report.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    f.session().run("SELECT pg_sleep(1.2)");
    assert_eq!(store.read(|c| blockers(c, Duration::from_secs(1))).unwrap(), []);
    add_keys(&store, RING, 1);
    insert(&f, &store, RING, 1);
    sign_all(&f, &store, RING, 1);
    assert_signed(&f, &store, RING, 1);
}

#[test]
fn a_role_without_rights_on_statistics_is_told_of_the_oldest_writer() {
    let f = Pg::alone();
    f.run("CREATE ROLE signer LOGIN");
    migrate::migrate(&f.url(), Some("signer")).unwrap();
    let store = PgStore::open(&f.database.url_as("signer"), &options("a")).unwrap();
    let mut holder = session_in(&f.database.url(), "nightly import");
    holder.run("BEGIN; SELECT pg_current_xact_id()");
    let mut younger = session_in(&f.database.url(), "another");
    younger.run("BEGIN; SELECT pg_current_xact_id()");
    let blocker = the_blocker(&f, &store);
    assert_eq!((blocker.kind, blocker.age_s), (BlockerKind::Writer, None));
    assert_eq!(blocker.application, "nightly import");
    assert!(blocker.to_string().contains("pg_read_all_stats"), "{blocker}");
    f.run("GRANT pg_read_all_stats TO signer");
    holder.run("SELECT pg_sleep(5.1)");
    let told = store.blockers().unwrap();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|blocker| blocker.age_s.is_some_and(|age_s| age_s >= 5)), "{told:?}");
}
