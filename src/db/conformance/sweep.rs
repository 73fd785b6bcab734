//! Step 7: records that the cursor has passed, and rings side by side.

use super::actions::{
    RING, add_keys, check_out, check_out_one, give_up, insert, sign_all, sign_and_store,
};
use super::fixture::Fixture;
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{Store, StoreOptions, StoreOutcome};
use crate::types::RingId;

on_both! {
    a_record_put_behind_the_cursor_is_swept_and_signed,
    a_record_put_between_signed_ones_is_swept_and_signed,
    many_strays_are_swept_without_disturbing_what_comes_after,
    while_all_are_in_batches_only_what_comes_in_order_is_looked_for,
    what_is_in_hand_or_in_quarantine_is_no_stray,
    rings_side_by_side_have_records_keys_and_clocks_of_their_own,
}

/// Inserts records past the store with ids of the caller's choice, at the very front of the order.
fn put<F: Fixture>(f: &F, ids: impl Iterator<Item = i64>) {
    let rows: Vec<String> =
        ids.map(|id| format!("({id}, 1, {}, {})", F::PAYLOAD, F::FIRST_XID)).collect();
    let columns = "id, ring_id, payload, inserted_xid";
    f.run(&format!("INSERT INTO records ({columns}) VALUES {}", rows.join(", ")));
}

/// Ten records with ids 101 to 110, all signed: room for others before and beyond.
fn signed_tail<F: Fixture>(f: &F, store: &dyn Store) {
    add_keys(store, RING, 3);
    put(f, 101..111);
    f.settle();
    sign_all(f, store, RING, 4);
    assert_signed(f, store, RING, 10);
}

fn a_record_put_behind_the_cursor_is_swept_and_signed<F: Fixture>(f: &F) {
    let store = f.open("a");
    signed_tail(f, &*store);
    put(f, [7].into_iter());
    assert!(!store.has_work(RING).unwrap(), "the cursor does not see it");
    let remaining = store.remaining(RING).unwrap();
    assert_eq!((remaining.unsigned, remaining.behind_cursor), (1, 1));
    assert!(!remaining.is_done(), "the end is declared by the truth, never by the cursor");
    assert_eq!(store.sweep(RING).unwrap(), 1);
    f.settle();
    assert_eq!(store.sweep(RING).unwrap(), 0, "once");
    assert!(store.has_work(RING).unwrap());
    sign_all(f, &*store, RING, 4);
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures WHERE record_id = 7"), 1);
    assert_signed(f, &*store, RING, 11);
}

fn a_record_put_between_signed_ones_is_swept_and_signed<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    put(f, [10, 20, 30, 40].into_iter());
    f.settle();
    sign_all(f, &*store, RING, 4);
    put(f, [15, 25, 26].into_iter());
    assert_eq!(store.sweep(RING).unwrap(), 3);
    f.settle();
    sign_all(f, &*store, RING, 4);
    assert_signed(f, &*store, RING, 7);
}

fn many_strays_are_swept_without_disturbing_what_comes_after<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    put(f, 5001..5011);
    f.settle();
    sign_all(f, &*store, RING, 100);
    put(f, (1..1201).chain(2000..2010));
    assert_eq!(store.remaining(RING).unwrap().behind_cursor, 1210);
    assert_eq!(store.sweep(RING).unwrap(), 1210);
    let rows: Vec<String> = (6001..6041).map(|id| format!("({id}, 1, {})", F::PAYLOAD)).collect();
    f.run(&format!("INSERT INTO records (id, ring_id, payload) VALUES {}", rows.join(", ")));
    f.settle();
    sign_all(f, &*store, RING, 100);
    assert_signed(f, &*store, RING, 10 + 1210 + 40);
}

fn while_all_are_in_batches_only_what_comes_in_order_is_looked_for<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert!(store.all_in_batches(RING).unwrap(), "none is");
    signed_tail(f, &*store);
    assert!(store.all_in_batches(RING).unwrap());
    assert_eq!(store.remaining_in_batches(RING).unwrap(), store.remaining(RING).unwrap());

    insert(f, &*store, RING, 4);
    assert!(!store.all_in_batches(RING).unwrap());
    let remaining = store.remaining_in_batches(RING).unwrap();
    assert_eq!((remaining.records, remaining.unsigned), (14, 4), "they have come since");
    let batch = check_out_one(&*store, RING, 4);
    assert!(store.all_in_batches(RING).unwrap(), "one that is open");
    let remaining = store.remaining_in_batches(RING).unwrap();
    assert_eq!((remaining.unfinished_batches, remaining.is_done()), (1, false));
    sign_and_store(&*store, &batch);
    let remaining = store.remaining_in_batches(RING).unwrap();
    assert_eq!((remaining.records, remaining.is_done()), (14, true));

    // What no intake does: it is the price of the count that is saved, and the next one finds it.
    put(f, [7].into_iter());
    assert!(!store.all_in_batches(RING).unwrap());
    assert!(store.remaining_in_batches(RING).unwrap().is_done());
    assert_eq!(store.remaining(RING).unwrap().behind_cursor, 1);
    store.sweep(RING).unwrap();
    f.settle();
    sign_all(f, &*store, RING, 4);
    assert_signed(f, &*store, RING, 15);
}

fn what_is_in_hand_or_in_quarantine_is_no_stray<F: Fixture>(f: &F) {
    let store = f.open_with(&StoreOptions { max_attempts: 1, ..super::fixture::options("a") });
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 12);
    let batches = check_out(&*store, RING, 3, 3).batches;
    store.give_up(RING, &[give_up(&batches[0], None), give_up(&batches[1], Some("bad"))]).unwrap();
    let remaining = store.remaining(RING).unwrap();
    assert_eq!((remaining.unsigned, remaining.quarantined), (9, 3));
    assert_eq!((remaining.behind_cursor, remaining.unfinished_batches), (0, 2));
    assert_eq!(store.sweep(RING).unwrap(), 0);
    assert_eq!(sign_and_store(&*store, &batches[2]), StoreOutcome::Stored);
    assert_eq!(check_out_one(&*store, RING, 3).key_use.batch, batches[0].key_use.batch);
    assert_lawful(f, &*store);
}

fn rings_side_by_side_have_records_keys_and_clocks_of_their_own<F: Fixture>(f: &F) {
    let store = f.open("a");
    f.run("INSERT INTO rings (name) VALUES ('other')");
    let other = store.ring("other").unwrap().id;
    assert_eq!(other, RingId(2));
    for _ in 0..3 {
        for ring in [RING, other] {
            add_keys(&*store, ring, 1);
            insert(f, &*store, ring, 4);
        }
    }
    let mut claimed = Vec::new();
    for ring in [other, RING, other, RING] {
        claimed.push(check_out_one(&*store, ring, 3));
    }
    let keys: Vec<i64> = claimed.iter().map(|batch| batch.key_use.key.0).collect();
    assert_eq!(keys, [2, 1, 4, 3], "each ring has the keys that were added to it");
    for batch in &claimed {
        assert_eq!(sign_and_store(&*store, batch), StoreOutcome::Stored);
    }
    for ring in [RING, other] {
        assert_eq!(sign_all(f, &*store, ring, 3), 2);
        assert_signed(f, &*store, ring, 12);
    }
    let names: Vec<String> = store.rings().unwrap().into_iter().map(|ring| ring.name).collect();
    assert_eq!(names, ["default", "other"]);
    let mixed = "SELECT count(*) AS value FROM key_uses u JOIN batches b ON b.id = u.batch_id
                 JOIN keys k ON k.id = u.key_id WHERE u.ring_id <> b.ring_id OR u.ring_id <> k.ring_id";
    assert_eq!(f.number(mixed), 0);
}
