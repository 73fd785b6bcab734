//! Records that come one by one, their signatures, the feed, and lists in pages.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::actions::{RING, add_keys, check_out_one, insert, sign_all, sign_and_store};
use super::fixture::Fixture;
use super::judge::assert_signed;
use super::on_both;
use crate::db::{Added, FeedPosition, KeyCounts, NewRecord, RecordState, Store};
use crate::types::{BatchId, BatchState, KeyEvent, KeyId, KeyStatus, Kid, RecordId, RingId, Tick};

on_both! {
    each_record_is_told_what_became_of_it_in_order,
    the_same_external_id_from_many_at_once_is_stored_once,
    a_record_is_shown_with_its_signature,
    the_feed_has_each_signature_once_and_in_order,
    nothing_ever_appears_in_the_feed_before_what_was_seen,
    lists_are_read_in_pages_and_by_state,
    tallies_add_up_to_what_is_stored,
}

fn named(id: &str, payload: &str) -> NewRecord {
    NewRecord { external_id: Some(id.to_owned()), payload: payload.into() }
}

fn plain(payload: &str) -> NewRecord {
    NewRecord { external_id: None, payload: payload.into() }
}

fn each_record_is_told_what_became_of_it_in_order<F: Fixture>(f: &F) {
    let store = f.open("a");
    let records = [
        named("x", "1"),
        plain("2"),
        named("x", "1"),
        named("x", "other"),
        named("y", "3"),
        plain("2"),
    ];
    let added = store.add_records(RING, &records).unwrap();
    let x = added[0].id();
    assert_eq!(added[0], Added::New(x));
    assert_eq!((added[2], added[3]), (Added::Unchanged(x), Added::Conflict(x)));
    let new: Vec<RecordId> = [0, 1, 4, 5]
        .iter()
        .map(|n| match added[*n] {
            Added::New(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(new.is_sorted_by(|a, b| a < b), "{new:?}");
    for (n, record) in [(0, "1"), (1, "2"), (4, "3"), (5, "2")] {
        let shown = store.record(RING, added[n].id()).unwrap().unwrap();
        assert_eq!(shown.payload, record.as_bytes());
        assert_eq!(shown.external_id, records[n].external_id);
    }
    assert_eq!(store.add_records(RING, &[named("y", "4")]).unwrap(), [Added::Conflict(new[2])]);
    assert_eq!(store.add_records(RING, &[]).unwrap(), []);
    assert_eq!(store.record_count(RING).unwrap(), 4);
    // Another ring has external ids of its own.
    f.run("INSERT INTO rings (name) VALUES ('other')");
    let other = store.add_records(RingId(2), &[named("x", "1")]).unwrap();
    assert!(matches!(other[..], [Added::New(id)] if id != x), "{other:?}");
    assert_eq!(store.record_id(RING, "x").unwrap(), Some(x));
    assert_eq!(store.record_id(RING, "z").unwrap(), None);
    assert!(store.record(RING, other[0].id()).unwrap().is_none(), "of another ring");
}

fn the_same_external_id_from_many_at_once_is_stored_once<F: Fixture>(f: &F) {
    const IDS: usize = 40;
    let start = Barrier::new(F::THREADS);
    let added: Vec<Vec<Added>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..F::THREADS)
            .map(|n| {
                let store = f.open(&format!("node-{n}"));
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let records: Vec<NewRecord> =
                        (0..IDS).map(|id| named(&format!("{id}"), "same")).collect();
                    records.chunks(7).flat_map(|c| store.add_records(RING, c).unwrap()).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for id in 0..IDS {
        let of_id: Vec<Added> = added.iter().map(|of_thread| of_thread[id]).collect();
        let new = of_id.iter().filter(|added| matches!(added, Added::New(_))).count();
        let there: BTreeSet<RecordId> = of_id.iter().map(|added| added.id()).collect();
        assert_eq!((new, there.len()), (1, 1), "{of_id:?}");
    }
    assert_eq!(f.open("a").record_count(RING).unwrap(), IDS as u64);
}

fn a_record_is_shown_with_its_signature<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let id = store.add_records(RING, &[named("x", "payload")]).unwrap()[0].id();
    f.settle();
    let shown = store.record(RING, id).unwrap().unwrap();
    assert_eq!((shown.state, shown.signature), (RecordState::Pending, None));
    assert_eq!(store.signatures_of(&[id]).unwrap(), []);
    let batch = check_out_one(&*store, RING, 5);
    sign_and_store(&*store, &batch);
    let shown = store.record(RING, id).unwrap().unwrap();
    assert_eq!(shown.state, RecordState::Signed);
    let signature = shown.signature.unwrap();
    assert_eq!((signature.record, signature.batch), (id, batch.key_use.batch));
    assert_eq!(signature.kid, Kid("kid-1".to_owned()));
    assert_eq!(signature.signature.len(), 64);
    assert_eq!(store.signatures_of(&[RecordId(999), id]).unwrap(), [signature]);
    let ages = store.stored_ages(RING, Tick(0), 10).unwrap();
    assert_eq!(ages.len(), 1);
    assert_eq!(store.stored_ages(RING, ages[0].0, 10).unwrap(), []);
    assert_eq!(f.open("b").stored_ages(RING, Tick(0), 10).unwrap(), [], "another node's");
}

/// The whole feed in pages of so many.
fn feed(store: &dyn Store, ring: RingId, limit: u32) -> Vec<(FeedPosition, BatchId)> {
    let mut items = Vec::new();
    let mut after = FeedPosition::START;
    loop {
        let page = store.feed(ring, after, limit).unwrap();
        assert!(page.len() <= limit as usize);
        let Some(last) = page.last() else { return items };
        after = last.position;
        items.extend(page.iter().map(|item| (item.position, item.batch)));
    }
}

fn the_feed_has_each_signature_once_and_in_order<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    f.run("INSERT INTO rings (name) VALUES ('other')");
    insert(f, &*store, RING, 20);
    insert(f, &*store, RingId(2), 3);
    assert_eq!(store.feed(RING, FeedPosition::START, 10).unwrap(), []);
    // Stored in another order than they were checked out.
    let batches: Vec<_> = (0..4).map(|_| check_out_one(&*store, RING, 5)).collect();
    for n in [2, 0, 3, 1] {
        sign_and_store(&*store, &batches[n]);
    }
    let all = feed(&*store, RING, 1_000);
    assert_eq!(all.len(), 20);
    assert!(all.is_sorted_by(|a, b| a.0 < b.0), "{all:?}");
    let order: Vec<BatchId> = all.chunks(5).map(|of_batch| of_batch[0].1).collect();
    let stored: Vec<BatchId> = [2, 0, 3, 1].map(|n| batches[n].key_use.batch).to_vec();
    assert_eq!(order, stored);
    for limit in [1, 2, 5, 7, 19] {
        assert_eq!(feed(&*store, RING, limit), all, "in pages of {limit}");
    }
    assert_eq!(feed(&*store, RingId(2), 10), [], "another ring's are not signed");
}

fn nothing_ever_appears_in_the_feed_before_what_was_seen<F: Fixture>(f: &F) {
    const RECORDS: u32 = 200;
    let stores: Vec<_> = ["a", "b"].map(|node| f.open(node)).into();
    add_keys(&*stores[0], RING, 8);
    insert(f, &*stores[0], RING, RECORDS);
    let done = &AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = f.open("reader");
        let reading = scope.spawn(move || {
            let mut seen = Vec::new();
            let mut after = FeedPosition::START;
            loop {
                // Before the look: what was stored by then must be seen by it.
                let is_last = done.load(Ordering::SeqCst);
                let page = reader.feed(RING, after, 3).unwrap();
                if let Some(last) = page.last() {
                    after = last.position;
                } else if is_last {
                    return seen;
                }
                seen.extend(page.iter().map(|item| item.position));
            }
        });
        let signing: Vec<_> = stores
            .iter()
            .map(|store| {
                scope.spawn(|| {
                    while let Some(batch) =
                        super::actions::check_out(&**store, RING, 1, 3).batches.pop()
                    {
                        sign_and_store(&**store, &batch);
                    }
                })
            })
            .collect();
        signing.into_iter().for_each(|thread| thread.join().unwrap());
        sign_all(f, &*stores[0], RING, 3);
        done.store(true, Ordering::SeqCst);
        reading.join().unwrap()
    });
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert_eq!(seen.len(), RECORDS as usize, "missed by who went on from what was seen");
    assert_signed(f, &*stores[0], RING, RECORDS);
}

fn lists_are_read_in_pages_and_by_state<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 5);
    insert(f, &*store, RING, 10);
    let first = check_out_one(&*store, RING, 3);
    let second = check_out_one(&*store, RING, 3);
    sign_and_store(&*store, &first);
    let change = |kid: &str, event| {
        assert!(store.change_key(&Kid(kid.to_owned()), event, "test", None).unwrap());
    };
    change("kid-4", KeyEvent::Disabled);
    change("kid-5", KeyEvent::Retired);
    let keys = |status, after, limit| -> Vec<i64> {
        let keys = store.list_keys(RING, status, KeyId(after), limit).unwrap();
        keys.iter().map(|key| key.id.0).collect()
    };
    assert_eq!(keys(None, i64::MIN, 3), [1, 2, 3]);
    assert_eq!(keys(None, 3, 3), [4, 5]);
    assert_eq!(keys(Some(KeyStatus::Active), 1, 9), [2, 3]);
    assert_eq!(keys(Some(KeyStatus::Disabled), i64::MIN, 9), [4]);
    let counts = KeyCounts { active: 3, disabled: 1, retired: 1, destroyed: 0, in_use: 1 };
    assert_eq!(store.key_counts(RING).unwrap(), counts);
    assert_eq!(store.key(&Kid("kid-1".to_owned())).unwrap().stored_uses, 1);
    assert!(store.key(&Kid("nobody".to_owned())).is_err());
    let glances = store.glance_at_keys(RING).unwrap();
    assert_eq!(glances.iter().filter(|key| key.in_use).count(), 1);
    assert_eq!(glances.len(), 5);

    let batches = |state, after| -> Vec<BatchId> {
        let batches = store.list_batches(RING, state, after, 10).unwrap();
        batches.iter().map(|batch| batch.id).collect()
    };
    let (first, second) = (first.key_use.batch, second.key_use.batch);
    assert_eq!(batches(None, BatchId(i64::MIN)), [first, second]);
    assert_eq!(batches(None, first), [second]);
    assert_eq!(batches(Some(BatchState::Stored), BatchId(i64::MIN)), [first]);
    assert_eq!(batches(Some(BatchState::Open), BatchId(i64::MIN)), [second]);
    assert_eq!(batches(Some(BatchState::Quarantined), BatchId(i64::MIN)), []);
    let open = store.batch(second).unwrap();
    assert_eq!((open.kid.is_some(), open.node.as_deref()), (true, Some("a")));
    assert_eq!((open.record_count, open.stored_at), (3, None));
    assert!(store.batch(first).unwrap().stored_at.is_some());
    assert!(store.pool_state().in_use + store.pool_state().idle > 0);
}

fn tallies_add_up_to_what_is_stored<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 30);
    let (mut records, mut batches, mut until) = (0, 0, Tick(0));
    for round in 0..6 {
        let batch = check_out_one(&*store, RING, 4);
        if round == 2 {
            let give_up = crate::db::GiveUp { key_use: batch.key_use, failure: None };
            store.give_up(RING, &[give_up]).unwrap();
        } else {
            sign_and_store(&*store, &batch);
        }
        for tally in store.tally(RING, until).unwrap() {
            records += tally.records;
            batches += tally.batches;
            until = until.max(tally.last_tick);
        }
        let progress = store.progress(RING).unwrap();
        assert_eq!((records, batches), (progress.signed_records, progress.stored_batches));
        let unfinished = store.unfinished(RING).unwrap();
        assert_eq!(unfinished.retry_batches, progress.retry_batches);
        assert_eq!((unfinished.signed_records, unfinished.stored_batches), (0, 0));
    }
    assert_eq!(batches, 5);
}
