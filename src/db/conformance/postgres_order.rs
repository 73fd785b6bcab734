//! Transactions side by side, on PostgreSQL only: what commits late is neither lost nor passed.

use super::actions::{
    RING, add_keys, check_out, check_out_one, insert, numbered, sign, sign_all, sign_and_store,
};
use super::fixture::{Fixture, Pg};
use super::judge::{assert_lawful, assert_signed};
use crate::db::{Shortage, StoreOutcome};

/// A plain insert of one record.
const INSERT: &str = "INSERT INTO records (ring_id, payload) VALUES (1, 'by another client')";

#[test]
fn a_record_with_a_lower_id_than_the_cursor_that_commits_later_is_signed() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    let mut slow = f.session();
    let id = slow.number("SELECT nextval(pg_get_serial_sequence('records', 'id')) AS value");
    store.insert_records(RING, &numbered(0, 10)).unwrap();
    f.settle();
    sign_all(&f, &*store, RING, 5);
    let cursor = store.ring("default").unwrap().cursor;
    assert!(id < cursor.id.0);
    slow.run(&format!("INSERT INTO records (id, ring_id, payload) VALUES ({id}, 1, 'late')"));
    f.settle();
    assert!(store.has_work(RING).unwrap());
    assert_eq!(sign_and_store(&*store, &check_out_one(&*store, RING, 5)), StoreOutcome::Stored);
    assert_eq!(
        f.number(&format!("SELECT count(*) AS value FROM signatures WHERE record_id = {id}")),
        1
    );
    assert_eq!(store.remaining(RING).unwrap().behind_cursor, 0, "no sweep was needed");
    assert_signed(&f, &*store, RING, 11);
}

#[test]
fn an_insert_that_stays_open_holds_back_what_came_after_it_and_nothing_else() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    store.insert_records(RING, &numbered(0, 4)).unwrap();
    let mut open = f.session();
    open.run(&format!("BEGIN; {INSERT}; {INSERT}"));
    store.insert_records(RING, &numbered(4, 8)).unwrap();

    let before = check_out(&*store, RING, 4, 3);
    assert_eq!(before.batches.iter().map(|b| b.range.record_count).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(before.shortage, Some(Shortage::NoWork));
    assert!(!store.has_work(RING).unwrap());
    for batch in &before.batches {
        assert_eq!(sign_and_store(&*store, batch), StoreOutcome::Stored);
    }
    for _ in 0..5 {
        assert!(check_out(&*store, RING, 4, 3).batches.is_empty());
    }
    let remaining = store.remaining(RING).unwrap();
    assert_eq!((remaining.unsigned, remaining.behind_cursor), (4, 0));
    assert!(!remaining.is_done());
    assert_eq!(store.sweep(RING).unwrap(), 0, "what is held back is no stray");

    open.run("COMMIT");
    f.settle();
    let after = check_out_one(&*store, RING, 100);
    assert_eq!(after.range.record_count, 6);
    assert_eq!(sign_and_store(&*store, &after), StoreOutcome::Stored);
    assert_signed(&f, &*store, RING, 10);
}

#[test]
fn no_large_batch_reaches_behind_an_insert_that_stays_open() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    store.insert_records(RING, &numbered(0, 100)).unwrap();
    let mut open = f.session();
    open.run(&format!("BEGIN; {INSERT}; {INSERT}"));
    store.insert_records(RING, &numbered(100, 200)).unwrap();

    let before = check_out(&*store, RING, 4, 40);
    assert_eq!(
        before.batches.iter().map(|b| b.range.record_count).collect::<Vec<_>>(),
        [40, 40, 20]
    );
    assert_eq!(before.shortage, Some(Shortage::NoWork));
    for batch in &before.batches {
        assert_eq!(sign_and_store(&*store, batch), StoreOutcome::Stored);
    }
    open.run("COMMIT");
    f.settle();
    sign_all(&f, &*store, RING, 40);
    assert_signed(&f, &*store, RING, 202);
}

#[test]
fn inserts_that_commit_in_any_order_or_not_at_all_lose_nothing() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    let mut committed = 0;
    for round in 0..6 {
        let mut sessions: Vec<_> = (0..5).map(|_| f.session()).collect();
        for session in &mut sessions {
            session.run(&format!("BEGIN; {INSERT}; {INSERT}"));
        }
        // The last one first, in another order each round, and one not at all.
        for n in [4, 1, 3, 0, 2].map(|n| (n + round) % 5) {
            if n == round % 5 {
                sessions[n].run("ROLLBACK");
            } else {
                sessions[n].run("COMMIT");
                committed += 2;
            }
            for batch in check_out(&*store, RING, 4, 1).batches {
                assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
            }
            let remaining = store.remaining(RING).unwrap();
            assert_eq!(remaining.behind_cursor, 0, "the cursor passes nothing");
            assert_lawful(&f, &*store);
        }
    }
    f.settle();
    sign_all(&f, &*store, RING, 3);
    assert_eq!(committed, 48);
    assert_signed(&f, &*store, RING, committed);
}

#[test]
fn a_dump_s_offset_keeps_new_records_behind_the_old_ones() {
    let f = Pg::new();
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    store.insert_records(RING, &numbered(0, 5)).unwrap();
    f.settle();
    sign_all(&f, &*store, RING, 5);
    let cursor = store.ring("default").unwrap().cursor;
    f.run(
        "CREATE OR REPLACE FUNCTION chancery_xid_offset() RETURNS BIGINT
           LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 1000000000::BIGINT",
    );
    let store = f.open("b");
    store.insert_records(RING, &numbered(5, 9)).unwrap();
    f.run(INSERT);
    let lowest = f.number("SELECT min(inserted_xid) AS value FROM records WHERE id > 5");
    assert!(lowest > cursor.xid + 900_000_000, "the column's default adds it");
    super::fixture::wait_for("the records to be eligible", || {
        store.has_work(RING).unwrap().then_some(())
    });
    super::fixture::wait_for("all to be signed", || {
        for batch in check_out(&*store, RING, 2, 3).batches {
            assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
        }
        store.remaining(RING).unwrap().is_done().then_some(())
    });
    assert_signed(&f, &*store, RING, 10);
}

#[test]
fn what_is_committed_while_a_store_waits_for_the_ring_stays_as_it_is() {
    let f = Pg::new();
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    insert(&f, &*store, RING, 5);
    let batch = check_out_one(&*store, RING, 5);
    let signed = sign(&*store, &batch);
    let mut other = f.session();
    other.run(
        "BEGIN; UPDATE rings SET tick = tick + 10;
         UPDATE keys SET status_reason = 'looked at', signature_count = signature_count + 100",
    );
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| store.store_batches(RING, &[signed]).unwrap());
        f.wait_until_blocked("chancery/a");
        other.run("COMMIT");
        assert_eq!(storing.join().unwrap(), [StoreOutcome::Stored]);
    });
    let tick = batch.key_use.fence.0.0 + 11;
    assert_eq!(store.ring("default").unwrap().tick.0, tick);
    let as_expected = format!(
        "SELECT count(*) AS value
         FROM keys k JOIN key_uses u ON u.key_id = k.id JOIN batches b ON b.id = u.batch_id
         WHERE k.status_reason = 'looked at' AND k.signature_count = 105 AND k.last_tick = {tick}
           AND u.end_tick = {tick} AND u.outcome = 'stored' AND b.state = 'stored'"
    );
    assert_eq!(f.number(&as_expected), 1);
}
