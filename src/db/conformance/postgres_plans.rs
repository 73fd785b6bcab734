//! How PostgreSQL finds rows: statements that were first run on empty tables keep no plan made for them,
//! and what came in at once is readied to be read.

use std::time::Instant;

use super::actions::{RING, add_keys, check_out, numbered, sign};
use super::fixture::{Fixture, Pg, wait_for};
use super::judge::assert_signed;
use crate::db::{SignedBatch, StoreOutcome};

const RECORDS: u32 = 50_000;

#[test]
fn after_a_vacuum_by_the_owner_every_page_of_records_is_known_to_be_visible_to_all() {
    let f = Pg::new();
    // It would do the same, or keep the table from being vacuumed.
    f.run("ALTER TABLE records SET (autovacuum_enabled = FALSE)");
    let store = f.open("a");
    store.insert_records(RING, &numbered(0, 1_000)).unwrap();
    f.settle();
    store.analyze().unwrap();
    store.vacuum().unwrap();
    let pages = |column: &str| {
        f.number(&format!(
            "SELECT {column}::BIGINT AS value FROM pg_class WHERE relname = 'records'"
        ))
    };
    assert!(pages("relpages") > 1);
    assert_eq!(pages("relallvisible"), pages("relpages"));
    assert_eq!(pages("reltuples"), 1_000);
}

#[test]
fn a_store_that_began_on_empty_tables_reads_by_index_when_they_are_full() {
    let f = Pg::new();
    let store = f.open("a");
    add_keys(&*store, RING, 16);
    for _ in 0..12 {
        assert!(check_out(&*store, RING, 4, 500).batches.is_empty());
        assert!(!store.has_work(RING).unwrap());
    }
    store.insert_records(RING, &numbered(0, RECORDS)).unwrap();
    store.analyze().unwrap();
    f.settle();

    let begun = Instant::now();
    let mut stored = 0;
    while stored < RECORDS / 500 {
        let batches = check_out(&*store, RING, 4, 500).batches;
        let signed: Vec<SignedBatch> = batches.iter().map(|batch| sign(&*store, batch)).collect();
        for outcome in store.store_batches(RING, &signed).unwrap() {
            assert_eq!(outcome, StoreOutcome::Stored);
            stored += 1;
        }
    }
    assert!(!store.has_work(RING).unwrap());
    let took = begun.elapsed();
    // A server's session hands in its counts when it ends.
    drop(store);
    let scanned = |table: &str| {
        f.number(&format!(
            "SELECT seq_tup_read AS value FROM pg_stat_user_tables WHERE relname = '{table}'"
        ))
    };
    let inserted =
        "SELECT n_tup_ins AS value FROM pg_stat_user_tables WHERE relname = 'signatures'";
    wait_for("the session's counts", || {
        f.run("DO 'BEGIN PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END'");
        (f.number(inserted) == i64::from(RECORDS)).then_some(())
    });
    let [records, signatures] = ["records", "signatures"].map(scanned);
    let small = ["batches", "key_uses"].map(scanned);
    // One checkout with a bad plan, or one question for work, would read all of the table.
    let most = i64::from(RECORDS / 10);
    assert!(records < most && signatures < most, "{records}, {signatures} in {took:?}");
    // These are small still, so that a plan that reads them whole looks good; it is kept when they grow.
    assert_eq!(small, [0, 0], "rows of batches and key_uses");
    assert_signed(&f, &*f.open("b"), RING, RECORDS);
}
