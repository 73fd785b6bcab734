//! What comes in, through the store and past it.

use std::sync::Barrier;

use super::actions::{RING, add_keys, insert, numbered, sign_all};
use super::fixture::Fixture;
use super::judge::assert_signed;
use super::on_both;
use crate::db::{Inserted, NewRecord, Refusal, StoreError};
use crate::types::RingId;

on_both! {
    records_keep_their_bytes_and_their_external_ids,
    a_known_external_id_is_compared_and_never_changed,
    duplicates_inside_one_call_are_compared_with_the_first,
    an_insert_that_fails_adds_nothing,
    rings_have_external_ids_of_their_own,
    plain_sql_intake_is_signed_like_any_other,
    the_same_ids_from_several_connections_go_in_once,
}

fn record(id: &str, payload: &[u8]) -> NewRecord {
    NewRecord { external_id: Some(id.to_owned()), payload: payload.to_vec() }
}

fn records_keep_their_bytes_and_their_external_ids<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let every_byte: Vec<u8> = (0..=255).collect();
    let strange = "id with 'quotes', \"more\", \\, {braces}, a comma and Größe 漢字";
    let new = [
        record(strange, &every_byte),
        NewRecord { external_id: None, payload: Vec::new() },
        record("empty", b""),
        NewRecord { external_id: None, payload: every_byte.repeat(1000) },
    ];
    let inserted = store.insert_records(RING, &new).unwrap();
    assert_eq!(inserted, Inserted { added: 4, unchanged: 0, conflicts: Vec::new() });
    assert_eq!(store.record_count(RING).unwrap(), 4);
    f.settle();
    sign_all(f, &*store, RING, 10);
    let signed = store.signed_records(None, usize::MAX, 0).unwrap();
    let mut found: Vec<_> =
        signed.into_iter().map(|s| (s.external_id, s.payload.unwrap())).collect();
    let mut expected: Vec<_> = new.into_iter().map(|n| (n.external_id, n.payload)).collect();
    found.sort();
    expected.sort();
    assert!(found == expected);
    assert_signed(f, &*store, RING, 4);
}

fn a_known_external_id_is_compared_and_never_changed<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    store.insert_records(RING, &[record("x", b"1"), record("y", b"2")]).unwrap();
    let again = [record("y", b"2"), record("x", b"other"), record("z", b"3"), record("x", b"")];
    let inserted = store.insert_records(RING, &again).unwrap();
    assert_eq!(inserted, Inserted { added: 1, unchanged: 1, conflicts: vec![1, 3] });
    f.settle();
    sign_all(f, &*store, RING, 10);
    let after = store.insert_records(RING, &[record("x", b"1"), record("x", b"2")]).unwrap();
    let expected = Inserted { added: 0, unchanged: 1, conflicts: vec![1] };
    assert_eq!(after, expected, "signed records are compared, too");
    let payloads: Vec<_> = store
        .signed_records(None, 1000, 0)
        .unwrap()
        .into_iter()
        .map(|s| s.payload.unwrap())
        .collect();
    assert_eq!(payloads, [b"1", b"2", b"3"]);
    assert_signed(f, &*store, RING, 3);
}

fn duplicates_inside_one_call_are_compared_with_the_first<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let new = [
        record("x", b"1"),
        NewRecord { external_id: None, payload: b"anonymous".to_vec() },
        record("x", b"1"),
        record("x", b"2"),
        NewRecord { external_id: None, payload: b"anonymous".to_vec() },
        record("y", b"1"),
        record("x", b"2"),
    ];
    let inserted = store.insert_records(RING, &new).unwrap();
    assert_eq!(inserted, Inserted { added: 4, unchanged: 1, conflicts: vec![3, 6] });
    let again = store.insert_records(RING, &new).unwrap();
    assert_eq!(again, Inserted { added: 2, unchanged: 3, conflicts: vec![3, 6] });
    f.settle();
    sign_all(f, &*store, RING, 10);
    assert_signed(f, &*store, RING, 6);
}

fn an_insert_that_fails_adds_nothing<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let new = [
        NewRecord { external_id: None, payload: b"1".to_vec() },
        record("x", b"2"),
        record("", b"an external id must not be empty"),
    ];
    let error = store.insert_records(RING, &new).unwrap_err();
    assert!(matches!(error, StoreError::Refused(Refusal::Constraint(_))), "{error:?}");
    assert_eq!(f.number("SELECT count(*) AS value FROM records"), 0);
    assert_eq!(store.insert_records(RING, &new[..2]).unwrap().added, 2);
    assert_eq!(store.insert_records(RING, &[]).unwrap(), Inserted::default());
    f.settle();
    sign_all(f, &*store, RING, 10);
    assert_signed(f, &*store, RING, 2);
}

fn rings_have_external_ids_of_their_own<F: Fixture>(f: &F) {
    let store = f.open("a");
    f.run("INSERT INTO rings (name) VALUES ('other')");
    let other = store.ring("other").unwrap().id;
    for ring in [RING, other] {
        add_keys(&*store, ring, 1);
        assert_eq!(store.insert_records(ring, &[record("x", b"1")]).unwrap().added, 1);
        assert_eq!(store.insert_records(ring, &[record("x", b"1")]).unwrap().unchanged, 1);
    }
    f.settle();
    for ring in [RING, other] {
        sign_all(f, &*store, ring, 10);
        assert_signed(f, &*store, ring, 1);
    }
    assert_eq!(store.record_count(RingId(99)).unwrap(), 0);
    let error = store.ring("nowhere").unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "ring", .. }), "{error:?}");
}

fn plain_sql_intake_is_signed_like_any_other<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 5);
    for n in 0..7 {
        f.run(&format!(
            "INSERT INTO records (ring_id, external_id, payload) SELECT 1, 'sql-{n}', payload FROM records WHERE id = 1"
        ));
    }
    f.run("INSERT INTO records (ring_id, payload) SELECT ring_id, payload FROM records");
    f.settle();
    assert_eq!(sign_all(f, &*store, RING, 10), 3);
    assert_signed(f, &*store, RING, 24);
}

fn the_same_ids_from_several_connections_go_in_once<F: Fixture>(f: &F) {
    const NODES: usize = 4;
    const IDS: usize = 40;
    let stores: Vec<_> = (0..NODES).map(|n| f.open(&format!("node-{n}"))).collect();
    add_keys(&*stores[0], RING, 2);
    let barrier = Barrier::new(NODES);
    let insert = |n: usize| {
        let mut new: Vec<NewRecord> =
            (0..IDS).map(|id| record(&format!("id-{id}"), format!("{id}").as_bytes())).collect();
        // Some in the opposite order, so that each waits for what the other has.
        if n % 2 == 1 {
            new.reverse();
        }
        new.extend(numbered(0, 1));
        barrier.wait();
        stores[n].insert_records(RING, &new)
    };
    let results: Vec<Inserted> = std::thread::scope(|scope| {
        let insert = &insert;
        let handles: Vec<_> = (0..NODES).map(|n| scope.spawn(move || insert(n))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap().unwrap()).collect()
    });
    assert_eq!(results.iter().map(|r| r.added).sum::<u64>() as usize, IDS + NODES);
    assert_eq!(results.iter().map(|r| r.unchanged).sum::<u64>() as usize, IDS * (NODES - 1));
    assert!(results.iter().all(|result| result.conflicts.is_empty()), "{results:?}");
    f.settle();
    sign_all(f, &*stores[0], RING, 10);
    assert_signed(f, &*stores[0], RING, (IDS + NODES) as u32);
}
