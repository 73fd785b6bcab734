//! Step 1: which keys and which records a checkout hands out.

use super::actions::{
    RING, add_keys, check_out, check_out_one, give_up, insert, sign, sign_all, sign_and_store,
};
use super::fixture::Fixture;
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{ClaimedBatch, Shortage, StoreOutcome};
use crate::types::{Fence, KeyEvent, KeyId, Kid, Position, Tick};

on_both! {
    keys_never_used_come_first_by_id_and_then_the_least_recently_used,
    one_checkout_hands_out_several_batches_in_order,
    batches_have_the_size_asked_for_and_only_the_last_may_be_smaller,
    a_range_counts_the_records_in_it_and_the_cursor_stands_at_its_end,
    a_large_batch_may_hold_records_of_several_transactions,
    a_checkout_says_why_it_hands_out_less,
    batches_to_be_retried_come_first_oldest_first_and_keep_their_size,
    work_is_seen_where_a_checkout_would_find_a_batch,
    nodes_share_a_ring_without_sharing_a_batch_or_a_key,
}

fn keys_of(batches: &[ClaimedBatch]) -> Vec<i64> {
    batches.iter().map(|batch| batch.key_use.key.0).collect()
}

fn keys_never_used_come_first_by_id_and_then_the_least_recently_used<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert_eq!(add_keys(&*store, RING, 5), [1, 2, 3, 4, 5].map(KeyId));
    insert(f, &*store, RING, 20);

    let first = check_out(&*store, RING, 3, 1).batches;
    assert_eq!(keys_of(&first), [1, 2, 3]);
    // Used is stamped when a use ends: so the order of the ends counts, however they end.
    assert_eq!(sign_and_store(&*store, &first[2]), StoreOutcome::Stored);
    store.give_up(RING, &[give_up(&first[0], None)]).unwrap();
    f.expire("key_id = 2");
    assert_eq!(store.reclaim(RING, crate::db::ReclaimScope::Expired).unwrap().uses.len(), 1);

    let second = check_out(&*store, RING, 5, 1).batches;
    assert_eq!(keys_of(&second), [4, 5, 3, 1, 2]);
    let signed: Vec<_> =
        [4, 0, 2, 3, 1].iter().map(|n: &usize| sign(&*store, &second[*n])).collect();
    store.store_batches(RING, &signed).unwrap();
    assert_eq!(keys_of(&check_out(&*store, RING, 5, 1).batches), [2, 4, 3, 1, 5]);
    assert_lawful(f, &*store);
}

fn one_checkout_hands_out_several_batches_in_order<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 25);
    let batches = check_out(&*store, RING, 3, 7).batches;
    let fences: Vec<Fence> = batches.iter().map(|batch| batch.key_use.fence).collect();
    assert_eq!(fences, [5, 6, 7].map(|tick| Fence(Tick(tick))), "each tick is one event");
    assert!(batches.is_sorted_by_key(|batch| batch.range.low));
    for pair in batches.windows(2) {
        assert!(pair[0].range.high < pair[1].range.low);
        assert!(pair[0].key_use.batch < pair[1].key_use.batch);
    }
    assert_eq!(store.ring("default").unwrap().tick, Tick(7));
    assert_eq!(f.number("SELECT count(*) AS value FROM key_uses WHERE node = 'a'"), 3);
    let signed: Vec<_> = batches.iter().map(|batch| sign(&*store, batch)).collect();
    assert_eq!(store.store_batches(RING, &signed).unwrap(), [StoreOutcome::Stored; 3]);
    assert_eq!(sign_all(f, &*store, RING, 7), 1);
    assert_signed(f, &*store, RING, 25);
}

fn batches_have_the_size_asked_for_and_only_the_last_may_be_smaller<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    let mut signed = 0;
    for (size, sizes) in [(1, vec![1; 10]), (7, vec![7, 3]), (5, vec![5, 5]), (1000, vec![10])] {
        insert(f, &*store, RING, 10);
        assert_eq!(sign_all(f, &*store, RING, size), sizes.len() as u32);
        let expected: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        let made = format!(
            "SELECT record_count AS value FROM (SELECT id, record_count FROM batches ORDER BY id DESC LIMIT {}) b ORDER BY id",
            sizes.len()
        );
        assert_eq!(f.rows(&made), expected);
        signed += 10;
        assert_signed(f, &*store, RING, signed);
    }
    // A size beyond any count of records is as good as no limit.
    insert(f, &*store, RING, 10);
    assert_eq!(check_out_one(&*store, RING, u32::MAX).range.record_count, 10);
}

fn a_range_counts_the_records_in_it_and_the_cursor_stands_at_its_end<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 5);
    assert_eq!(store.ring("default").unwrap().cursor, Position::START);
    for _ in 0..3 {
        insert(f, &*store, RING, 4);
    }
    let batches = check_out(&*store, RING, 5, 5).batches;
    assert_eq!(batches.iter().map(|b| b.range.record_count).collect::<Vec<_>>(), [5, 5, 2]);
    for ClaimedBatch { range, key_use, .. } in &batches {
        let (low, high) = (range.low, range.high);
        let held = f.number(&format!(
            "SELECT count(*) AS value FROM records WHERE ring_id = 1
             AND (inserted_xid, id) >= ({}, {}) AND (inserted_xid, id) <= ({}, {})",
            low.xid, low.id, high.xid, high.id
        ));
        assert_eq!(held, i64::from(range.record_count));
        let row = format!("SELECT record_count AS value FROM batches WHERE id = {}", key_use.batch);
        assert_eq!(f.number(&row), held);
    }
    assert_eq!(store.ring("default").unwrap().cursor, batches[2].range.high);
    assert_lawful(f, &*store);
}

fn a_large_batch_may_hold_records_of_several_transactions<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    for (xid, ids) in [(F::FIRST_XID, 1_001..1_101), (F::FIRST_XID + 1, 1..31)] {
        let rows: Vec<String> =
            ids.map(|id: i64| format!("({id}, 1, {}, {xid})", F::PAYLOAD)).collect();
        let columns = "id, ring_id, payload, inserted_xid";
        f.run(&format!("INSERT INTO records ({columns}) VALUES {}", rows.join(", ")));
    }
    f.settle();
    // The first brings the cursor among the records.
    let mut batches = check_out(&*store, RING, 1, 40).batches;
    batches.extend(check_out(&*store, RING, 3, 40).batches);
    let ranges: Vec<_> = batches
        .iter()
        .map(|batch| (batch.range.low.id.0, batch.range.high.id.0, batch.range.record_count))
        .collect();
    assert_eq!(ranges, [(1_001, 1_040, 40), (1_041, 1_080, 40), (1_081, 20, 40), (21, 30, 10)]);
    let signed: Vec<_> = batches.iter().map(|batch| sign(&*store, batch)).collect();
    store.store_batches(RING, &signed).unwrap();
    assert_signed(f, &*store, RING, 130);
}

fn a_checkout_says_why_it_hands_out_less<F: Fixture>(f: &F) {
    let store = f.open("a");
    insert(f, &*store, RING, 3);
    let shortage = |max: u32| {
        let answer = check_out(&*store, RING, max, 1);
        (answer.batches.len(), answer.shortage)
    };
    assert_eq!(shortage(1), (0, Some(Shortage::NoActiveKey)));
    add_keys(&*store, RING, 2);
    assert_eq!(shortage(0), (0, None), "all that was asked for");
    assert_eq!(shortage(1), (1, None));
    assert_eq!(shortage(2), (1, Some(Shortage::NoFreeKey)));
    assert_eq!(shortage(1), (0, Some(Shortage::NoFreeKey)));
    f.expire("key_id = 1");
    store.reclaim(RING, crate::db::ReclaimScope::Expired).unwrap();
    assert_eq!(shortage(1), (1, None));

    f.expire("key_id = 1");
    store.reclaim(RING, crate::db::ReclaimScope::Expired).unwrap();
    let disable = |key: i64| {
        store.change_key(&Kid(format!("kid-{key}")), KeyEvent::Disabled, "test", None).unwrap()
    };
    assert!(disable(1));
    assert_eq!(shortage(1), (0, Some(Shortage::NoFreeKey)), "key 2 is active, and in use");
    assert!(disable(2));
    assert_eq!(shortage(1), (0, Some(Shortage::NoActiveKey)));

    add_keys(&*store, RING, 4);
    assert_eq!(shortage(4), (2, Some(Shortage::NoWork)), "one to be retried, one new");
    assert_eq!(shortage(1), (0, Some(Shortage::NoWork)));
    assert_lawful(f, &*store);
}

fn batches_to_be_retried_come_first_oldest_first_and_keep_their_size<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 6);
    insert(f, &*store, RING, 30);
    let sevens = check_out(&*store, RING, 3, 7).batches;
    let returned = [give_up(&sevens[2], None), give_up(&sevens[0], Some("it did not work"))];
    store.give_up(RING, &returned).unwrap();
    let moved = store.ring("default").unwrap().cursor;

    let one = check_out_one(&*store, RING, 3);
    assert_eq!((one.key_use.batch, one.range), (sevens[0].key_use.batch, sevens[0].range));
    assert_eq!(one.attempts, 1);
    assert_eq!(store.ring("default").unwrap().cursor, moved, "a retry moves no cursor");
    let more = check_out(&*store, RING, 3, 3).batches;
    assert_eq!((more[0].key_use.batch, more[0].range), (sevens[2].key_use.batch, sevens[2].range));
    assert_eq!(more[0].attempts, 0);
    assert_eq!(more[1..].iter().map(|b| b.range.record_count).collect::<Vec<_>>(), [3, 3]);

    for batch in more.iter().chain([&one, &sevens[1]]) {
        assert_eq!(sign_and_store(&*store, batch), StoreOutcome::Stored);
    }
    sign_all(f, &*store, RING, 3);
    assert_signed(f, &*store, RING, 30);
}

fn work_is_seen_where_a_checkout_would_find_a_batch<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    assert!(!store.has_work(RING).unwrap(), "no record");
    insert(f, &*store, RING, 2);
    assert!(store.has_work(RING).unwrap(), "new records");
    let batch = check_out_one(&*store, RING, 10);
    assert!(!store.has_work(RING).unwrap(), "all in hand");
    store.give_up(RING, &[give_up(&batch, None)]).unwrap();
    assert!(store.has_work(RING).unwrap(), "a batch to be retried");
    insert(f, &*store, RING, 1);
    store.set_paused(RING, true, "somebody").unwrap();
    assert!(!store.has_work(RING).unwrap(), "a paused ring");
    store.set_paused(RING, false, "somebody").unwrap();
    assert!(store.has_work(RING).unwrap(), "resumed");
    sign_all(f, &*store, RING, 10);
    assert!(!store.has_work(RING).unwrap(), "all signed");
    assert_signed(f, &*store, RING, 3);
}

fn nodes_share_a_ring_without_sharing_a_batch_or_a_key<F: Fixture>(f: &F) {
    let nodes = [f.open("a"), f.open("b"), f.open("c")];
    add_keys(&*nodes[0], RING, 7);
    insert(f, &*nodes[0], RING, 60);
    let mut claimed = Vec::new();
    for round in 0..7 {
        let node = &nodes[round % 3];
        claimed.push((node, check_out_one(&**node, RING, 5)));
    }
    for (node, batch) in claimed.iter().rev() {
        assert_eq!(sign_and_store(&***node, batch), StoreOutcome::Stored);
    }
    assert_eq!(f.number("SELECT count(DISTINCT batch_id) AS value FROM key_uses"), 7);
    assert_eq!(f.number("SELECT count(DISTINCT key_id) AS value FROM key_uses"), 7);
    assert_eq!(f.number("SELECT count(DISTINCT node) AS value FROM key_uses"), 3);
    assert_eq!(sign_all(f, &*nodes[1], RING, 5), 5);
    assert_signed(f, &*nodes[2], RING, 60);
}
