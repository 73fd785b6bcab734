//! Statements that were first run on empty tables, on PostgreSQL only, keep no plan made for them.

use std::time::Instant;

use super::actions::{RING, add_keys, check_out, numbered, sign};
use super::fixture::{Fixture, Pg, wait_for};
use super::judge::assert_signed;
use crate::db::{SignedBatch, StoreOutcome};

const RECORDS: u32 = 50_000;

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

    let scans = |table: &str| {
        // The server's sessions hand in their counts when they are idle, within a second or so.
        f.number(&format!(
            "SELECT seq_tup_read AS value FROM pg_stat_user_tables WHERE relname = '{table}'"
        ))
    };
    let flushed = |what: &str, counted: &str, at_least: i64| {
        let mut clock = f.session();
        wait_for(what, || {
            clock.run("SELECT pg_stat_clear_snapshot(), pg_sleep(0.05)");
            (clock.number(counted) >= at_least).then_some(())
        });
    };
    flushed(
        "the intake's counts",
        "SELECT n_tup_ins AS value FROM pg_stat_user_tables WHERE relname = 'records'",
        RECORDS.into(),
    );
    let before = [scans("records"), scans("signatures")];

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
    let took = begun.elapsed();
    flushed(
        "the signing's counts",
        "SELECT n_tup_ins AS value FROM pg_stat_user_tables WHERE relname = 'signatures'",
        RECORDS.into(),
    );
    let during = [scans("records") - before[0], scans("signatures") - before[1]];
    // One checkout with a bad plan would read all of the table.
    assert!(during.iter().all(|tuples| *tuples < i64::from(RECORDS / 10)), "{during:?} in {took:?}");
    assert_signed(&f, &*store, RING, RECORDS);
}
