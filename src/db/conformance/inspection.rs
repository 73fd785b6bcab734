//! What the store says of itself: histories, pages and numbers.

use super::actions::{
    RING, add_keys, check_out, give_up, insert, numbered, sign, sign_all, sign_and_store,
};
use super::fixture::{Fixture, Sqlite};
use super::judge::{assert_lawful, assert_signed, history};
use super::on_both;
use crate::db::{NewRecord, Progress, Remaining, Store, StoreOutcome};
use crate::ledger::Event;
use crate::types::{BatchId, KeyEvent, Kid, RecordId, RingId, Tick};

on_both! {
    a_history_is_the_same_in_pages_of_any_size,
    signed_records_come_in_pages_bounded_in_bytes,
    memberships_and_batches_come_in_pages,
    progress_and_remaining_count_what_is_there,
    each_stored_batch_names_its_key,
    open_uses_say_who_has_what,
}

/// Two batches stored, one in hand, one to be retried; some key events; two rings.
fn eventful<F: Fixture>(f: &F, store: &dyn Store) {
    f.run("INSERT INTO rings (name) VALUES ('other')");
    for ring in [RING, RingId(2)] {
        add_keys(store, ring, 4);
        insert(f, store, ring, 10);
        let batches = check_out(store, ring, 4, 3).batches;
        let signed = [sign(store, &batches[3]), sign(store, &batches[0])];
        assert_eq!(store.store_batches(ring, &signed).unwrap(), [StoreOutcome::Stored; 2]);
        store.give_up(ring, &[give_up(&batches[1], Some("a failure"))]).unwrap();
    }
    for event in [KeyEvent::Disabled, KeyEvent::Enabled, KeyEvent::Retired] {
        assert!(store.change_key(&Kid("kid-2".to_owned()), event, "test", None).unwrap());
    }
    assert_lawful(f, store);
}

fn a_history_is_the_same_in_pages_of_any_size<F: Fixture>(f: &F) {
    let store = f.open("a");
    eventful(f, &*store);
    let tick = store.ring("default").unwrap().tick;
    let whole = store.history(RING, Tick::ZERO, tick, 1000).unwrap();
    let ticks: Vec<i64> = whole.iter().map(|event| event.tick().0).collect();
    assert_eq!(ticks, (1..=tick.0).collect::<Vec<_>>(), "every tick is exactly one event");
    assert_eq!(ticks.len(), 4 + 4 + 3 + 3);
    for limit in [1, 2, 3, 7, 14] {
        assert_eq!(history(&*store, RING, tick, limit), whole, "in pages of {limit}");
    }
    // Bounds: from behind `after`, up to and with `until`.
    assert_eq!(store.history(RING, Tick(3), Tick(6), 1000).unwrap(), whole[3..6]);
    assert!(matches!(whole[4], Event::CheckedOut { .. }));
    assert_eq!(store.history(RING, tick, Tick(i64::MAX), 10).unwrap(), []);
    assert_eq!(store.history(RingId(2), Tick::ZERO, Tick(i64::MAX), 1000).unwrap().len(), 11);
}

fn signed_records_come_in_pages_bounded_in_bytes<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    let payloads: Vec<Vec<u8>> =
        [0, 100, 100, 0, 5000, 1, 0, 100].iter().map(|length| vec![9; *length]).collect();
    let new: Vec<NewRecord> = payloads
        .iter()
        .enumerate()
        .map(|(n, p)| NewRecord { external_id: Some(format!("x{n}")), payload: p.clone() })
        .collect();
    store.insert_records(RING, &new).unwrap();
    f.settle();
    sign_all(f, &*store, RING, 3);
    for (max_bytes, each_bytes) in [0, 1, 150, 6000, usize::MAX].into_iter().flat_map(|max_bytes| {
        [0, 1, 100, 5000, usize::MAX].map(|each_bytes| (max_bytes, each_bytes))
    }) {
        let mut found = Vec::new();
        let mut pages = 0;
        loop {
            let after = found.last().map(|(record, _, _): &(RecordId, _, _)| *record);
            let page = store.signed_records(after, max_bytes, each_bytes).unwrap();
            if page.is_empty() {
                break;
            }
            let bytes: usize = page.iter().map(|s| s.payload.as_ref().unwrap().len()).sum();
            let last = page[page.len() - 1].payload.as_ref().unwrap().len();
            assert!(bytes - last <= max_bytes, "one record more than fits, at the most");
            assert!(page.iter().all(|s| s.signature.len() == 64));
            found.extend(page.into_iter().map(|s| (s.record, s.external_id, s.payload)));
            pages += 1;
        }
        assert!(found.is_sorted_by_key(|(record, _, _)| *record));
        let contents: Vec<_> = found.into_iter().map(|(_, id, p)| (id, p.unwrap())).collect();
        let expected: Vec<_> =
            new.iter().map(|n| (n.external_id.clone(), n.payload.clone())).collect();
        assert!(contents == expected, "in pages of {max_bytes} bytes, of {each_bytes} each");
        if each_bytes == 0 {
            assert_eq!(pages == 1, max_bytes >= 6000, "{pages} pages of {max_bytes} bytes");
        }
    }
    // The batch that it names is the one the table has.
    for signed in store.signed_records(None, usize::MAX, 0).unwrap() {
        let query =
            format!("SELECT batch_id AS value FROM signatures WHERE record_id = {}", signed.record);
        assert_eq!(f.number(&query), signed.batch.0);
    }
    assert_signed(f, &*store, RING, 8);
}

fn memberships_and_batches_come_in_pages<F: Fixture>(f: &F) {
    let store = f.open("a");
    eventful(f, &*store);
    for limit in [1, 3, 1000] {
        let mut found = Vec::new();
        while let page = store.memberships(found.last().copied(), limit).unwrap()
            && !page.is_empty()
        {
            assert!(page.len() <= limit as usize);
            for membership in page {
                let (ring, position) = membership.place.unwrap();
                assert_eq!(position.id, membership.record);
                let batch = &store.batches(Some(BatchId(membership.batch.0 - 1)), 1).unwrap()[0];
                assert_eq!((batch.id, batch.ring), (membership.batch, ring));
                assert!(batch.range.low <= position && position <= batch.range.high);
                found.push(membership.record);
            }
        }
        // Batches of 3 and 1 of each ring are stored.
        assert_eq!(found.len(), 8, "in pages of {limit}");
        let rows = f.rows("SELECT record_id AS value FROM signatures ORDER BY record_id");
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), rows);

        let mut batches = Vec::new();
        while let page = store.batches(batches.last().copied(), limit).unwrap()
            && !page.is_empty()
        {
            batches.extend(page.iter().map(|batch| batch.id));
        }
        let rows = f.rows("SELECT id AS value FROM batches ORDER BY id");
        assert_eq!(batches.iter().map(ToString::to_string).collect::<Vec<_>>(), rows);
    }
}

fn progress_and_remaining_count_what_is_there<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert!(store.remaining(RING).unwrap().is_done(), "nothing is all done");
    eventful(f, &*store);
    store.insert_records(RING, &numbered(0, 6)).unwrap();
    let tick = store.ring("default").unwrap().tick.0;
    let progress = Progress {
        open_batches: 1,
        retry_batches: 1,
        stored_batches: 2,
        quarantined_batches: 0,
        signed_records: 4,
        quarantined_records: 0,
        tick,
    };
    assert_eq!(store.progress(RING).unwrap(), progress);
    let remaining = Remaining {
        records: 16,
        unsigned: 12,
        behind_cursor: 0,
        unfinished_batches: 2,
        quarantined: 0,
    };
    assert_eq!(store.remaining(RING).unwrap(), remaining);
    assert!(!remaining.is_done());
    assert_eq!(store.record_count(RING).unwrap(), 16);
    assert_eq!(store.signature_count().unwrap(), 8, "of both rings");
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 8);
    assert_lawful(f, &*store);
}

fn each_stored_batch_names_its_key<F: Fixture>(f: &F) {
    let store = f.open("a");
    eventful(f, &*store);
    let all: Vec<BatchId> = store.batches(None, 100).unwrap().iter().map(|b| b.id).collect();
    let mut keys = store.batch_keys(&all).unwrap();
    keys.sort_by_key(|key| key.batch);
    let found: Vec<String> = keys
        .iter()
        .map(|k| {
            assert_eq!((k.algorithm.as_str(), k.public_key.len()), ("Ed25519", 32));
            assert!(k.stored_at.is_some());
            format!("{} {} {}", k.batch, k.key, k.kid)
        })
        .collect();
    let rows = f.rows(
        "SELECT u.batch_id || ' ' || u.key_id || ' ' || k.kid AS value
         FROM key_uses u JOIN keys k ON k.id = u.key_id WHERE u.outcome = 'stored' ORDER BY u.batch_id",
    );
    assert_eq!(rows.len(), 4);
    assert_eq!(found, rows);
    assert!(store.batch_keys(&[]).unwrap().is_empty());
}

fn open_uses_say_who_has_what<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    eventful(f, &*store);
    let theirs = check_out(&*other, RING, 1, 3).batches;
    let open = store.open_uses().unwrap();
    let found: Vec<String> =
        open.iter().map(|u| format!("{} {} {}", u.key_use.ring, u.key_use.fence, u.node)).collect();
    let rows = f.rows(
        "SELECT ring_id || ' ' || fence || ' ' || node AS value FROM key_uses
         WHERE end_tick IS NULL ORDER BY ring_id, fence",
    );
    assert_eq!(rows.len(), 3);
    assert_eq!(found, rows);
    assert!(open.iter().any(|u| u.key_use == theirs[0].key_use));
    assert!(open.iter().all(|u| u.checked_out_at < u.expires_at));
    assert!(store.server_version().unwrap().contains("SQL"));
    assert_lawful(f, &*store);
}

#[test]
fn nothing_holds_back_the_cursor_on_sqlite() {
    let f = Sqlite::new();
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    insert(&f, &*store, RING, 1);
    assert!(store.blockers().unwrap().is_empty());
    let batch = check_out(&*store, RING, 1, 1).batches.remove(0);
    assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
    assert_signed(&f, &*store, RING, 1);
}
