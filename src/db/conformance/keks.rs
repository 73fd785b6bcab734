//! KEKs, data keys, and the change from one KEK to another.

use std::sync::Barrier;
use std::thread;

use super::actions::{RING, add_keys, new_key};
use super::fixture::Fixture;
use super::judge::assert_lawful;
use super::on_both;
use crate::db::{KekCheck, NewKey, Resealed, SealedKey, Store};
use crate::types::{DataKeyId, KeyEvent, KeyId, Kid};

on_both! {
    of_two_first_keks_one_is_the_database_s,
    a_ring_has_one_data_key_for_each_kek,
    a_seal_is_replaced_only_if_it_is_still_the_one_that_was_read,
    keys_of_every_status_but_destroyed_are_resealed,
    a_kek_is_forgotten_when_nothing_needs_it_and_not_before,
    a_data_key_that_a_key_needs_cannot_go,
}

fn add_kek(store: &dyn Store, kek_id: &str) {
    store.add_kek(&KekCheck { kek_id: kek_id.to_owned(), check_value: vec![2; 32] }).unwrap();
}

/// A key under a data key under a KEK; its id.
fn add_key(store: &dyn Store, kek_id: &str) -> KeyId {
    add_kek(store, kek_id);
    let data_key = Some(store.add_data_key(RING, kek_id, &[3; 73]).unwrap().id);
    let mut make = |id| {
        let sealed = SealedKey { blob: vec![1; 73], kek_id: kek_id.to_owned(), data_key };
        Ok(NewKey { sealed: Some(sealed), ..new_key(id) })
    };
    store.add_keys(RING, 1, false, "test", &mut make).unwrap()[0]
}

fn resealed(id: KeyId, instead_of: u8, blob: u8, data_key: DataKeyId) -> Resealed {
    Resealed {
        id,
        instead_of: vec![instead_of; 73],
        sealed_private_key: vec![blob; 73],
        kek_id: "new".to_owned(),
        data_key,
    }
}

fn of_two_first_keks_one_is_the_database_s<F: Fixture>(f: &F) {
    let begin = Barrier::new(4);
    let won: u32 = thread::scope(|scope| {
        let add = |n: u8| {
            let store = f.open(&format!("node-{n}"));
            let check = KekCheck { kek_id: format!("kek-{n}"), check_value: vec![n; 32] };
            begin.wait();
            u32::from(store.add_first_kek(&check).unwrap())
        };
        let added: Vec<_> = (0..4).map(|n| scope.spawn(move || add(n))).collect();
        added.into_iter().map(|added| added.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
    assert_eq!(f.number("SELECT count(*) AS value FROM keks"), 1);
}

fn a_ring_has_one_data_key_for_each_kek<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_kek(&*store, "old");
    add_kek(&*store, "new");
    let first = store.add_data_key(RING, "old", &[1; 73]).unwrap();
    let again = store.add_data_key(RING, "old", &[2; 73]).unwrap();
    assert_eq!(again, first);
    assert_eq!(first.wrapped_key, [1; 73]);
    let other = store.add_data_key(RING, "new", &[3; 73]).unwrap();
    assert_eq!(store.data_keys(RING).unwrap(), [first, other]);
    assert!(store.add_data_key(RING, "unknown", &[3; 73]).is_err());
}

fn a_seal_is_replaced_only_if_it_is_still_the_one_that_was_read<F: Fixture>(f: &F) {
    let store = f.open("a");
    let key = add_key(&*store, "old");
    add_kek(&*store, "new");
    let data_key = store.add_data_key(RING, "new", &[4; 73]).unwrap().id;
    let tick = store.ring("default").unwrap().tick;
    assert_eq!(store.reseal_keys(RING, &[resealed(key, 9, 5, data_key)], "test").unwrap(), 0);
    assert_eq!(store.reseal_keys(RING, &[resealed(key, 1, 5, data_key)], "test").unwrap(), 1);
    assert_eq!(store.reseal_keys(RING, &[resealed(key, 1, 6, data_key)], "test").unwrap(), 0);
    let row = &store.sealed_keys(RING).unwrap()[0];
    assert_eq!(row.sealed_private_key.as_deref(), Some([5; 73].as_slice()));
    assert_eq!((row.kek_id.as_deref(), row.data_key), (Some("new"), Some(data_key)));
    assert_eq!(store.ring("default").unwrap().tick, tick, "no event");
    assert_lawful(f, &*store);
}

fn keys_of_every_status_but_destroyed_are_resealed<F: Fixture>(f: &F) {
    let store = f.open("a");
    let keys: Vec<KeyId> = (0..4).map(|_| add_key(&*store, "old")).collect();
    add_keys(&*store, RING, 1);
    for (key, event) in [(1, KeyEvent::Disabled), (2, KeyEvent::Retired), (3, KeyEvent::Destroyed)]
    {
        store.change_key(&Kid(format!("kid-{}", keys[key])), event, "test", None).unwrap();
    }
    add_kek(&*store, "new");
    let data_key = store.add_data_key(RING, "new", &[4; 73]).unwrap().id;
    let left = |after, limit| -> Vec<i64> {
        let keys = store.keys_to_reseal(RING, data_key, KeyId(after), limit).unwrap();
        keys.iter().map(|key| key.id.0).collect()
    };
    // The last one is sealed by the KEK itself.
    assert_eq!(left(0, 10), [1, 2, 3, 5]);
    assert_eq!(left(0, 2), [1, 2]);
    assert_eq!(left(2, 10), [3, 5]);
    let two = [resealed(KeyId(1), 1, 5, data_key), resealed(KeyId(3), 1, 5, data_key)];
    assert_eq!(store.reseal_keys(RING, &two, "test").unwrap(), 2);
    assert_eq!(left(0, 10), [2, 5]);
    // What was destroyed meanwhile does not come back.
    assert_eq!(store.reseal_keys(RING, &[resealed(KeyId(4), 1, 5, data_key)], "test").unwrap(), 0);
    let sealed = "SELECT count(*) AS value FROM keys WHERE id = 4 AND sealed_private_key IS NULL
                  AND kek_id IS NULL AND data_key_id IS NULL";
    assert_eq!(f.number(sealed), 1);
}

fn a_kek_is_forgotten_when_nothing_needs_it_and_not_before<F: Fixture>(f: &F) {
    let store = f.open("a");
    let key = add_key(&*store, "old");
    add_kek(&*store, "new");
    let data_key = store.add_data_key(RING, "new", &[4; 73]).unwrap().id;
    let usage = || -> Vec<(String, u64, u64)> {
        let usage = store.kek_usage().unwrap();
        let mut usage: Vec<_> =
            usage.into_iter().map(|kek| (kek.kek_id, kek.keys, kek.data_keys)).collect();
        usage.sort();
        usage
    };
    assert_eq!(usage(), [("new".to_owned(), 0, 1), ("old".to_owned(), 1, 1)]);
    assert!(!store.forget_kek("old", "test").unwrap());
    assert_eq!(store.reseal_keys(RING, &[resealed(key, 1, 5, data_key)], "test").unwrap(), 1);
    assert!(store.forget_kek("old", "test").unwrap());
    assert!(!store.forget_kek("old", "test").unwrap());
    assert_eq!(usage(), [("new".to_owned(), 1, 1)]);
    let actions = store.admin_log(0, 100).unwrap();
    let forgotten = actions.iter().filter(|entry| entry.action == "kek.forgotten").count();
    assert_eq!(forgotten, 1);
}

fn a_data_key_that_a_key_needs_cannot_go<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_key(&*store, "old");
    for statement in ["DELETE FROM data_keys", "DELETE FROM keks"] {
        let error = f.refused(statement).to_lowercase();
        assert!(error.contains("foreign key"), "{error}");
    }
    // Nor can a key be added under one that is gone.
    let sealed =
        SealedKey { blob: vec![1; 73], kek_id: "old".to_owned(), data_key: Some(DataKeyId(999)) };
    let added = store.add_keys(RING, 1, false, "test", &mut |id| {
        Ok(NewKey { sealed: Some(sealed.clone()), ..new_key(id) })
    });
    assert!(added.is_err());
    assert_eq!(f.number("SELECT count(*) AS value FROM keys"), 1);
}
