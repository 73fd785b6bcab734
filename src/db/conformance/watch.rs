//! What those who watch a service ask: what waits, and which public keys verifiers need.

use std::time::Duration;

use super::actions::{RING, add_keys, check_out_one, insert, sign_all, sign_and_store};
use super::fixture::Fixture;
use super::judge::assert_signed;
use super::on_both;
use crate::db::Backlog;
use crate::types::{KeyEvent, Kid};

on_both! {
    the_backlog_is_what_lies_behind_the_cursor_and_in_unfinished_batches,
    the_public_keys_are_those_of_active_and_retired_keys,
    the_schema_is_checked_over_an_open_store,
}

fn the_backlog_is_what_lies_behind_the_cursor_and_in_unfinished_batches<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    assert_eq!(store.backlog(RING, 100).unwrap(), Backlog::default());
    insert(f, &*store, RING, 10);
    let batch = check_out_one(&*store, RING, 4);
    let backlog = store.backlog(RING, 100).unwrap();
    assert_eq!((backlog.waiting, backlog.in_batches), (6, 4));
    let minute = Duration::from_secs(60);
    assert!(backlog.oldest.is_some_and(|oldest| oldest < minute), "{backlog:?}");
    assert_eq!(store.backlog(RING, 5).unwrap().waiting, 5, "counted up to a limit");

    sign_and_store(&*store, &batch);
    let backlog = store.backlog(RING, 100).unwrap();
    assert_eq!((backlog.waiting, backlog.in_batches), (6, 0));
    f.run(&format!("UPDATE records SET created_at = {} WHERE id = 5", F::ago(90)));
    let oldest = store.backlog(RING, 100).unwrap().oldest.unwrap();
    assert!(oldest >= Duration::from_secs(90), "{oldest:?}");
    sign_all(f, &*store, RING, 4);
    assert_eq!(store.backlog(RING, 100).unwrap(), Backlog::default());
    assert_signed(f, &*store, RING, 10);
}

fn the_public_keys_are_those_of_active_and_retired_keys<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    let all: Vec<Vec<u8>> =
        store.keys(RING).unwrap().into_iter().map(|key| key.public_key).collect();
    assert_eq!(store.public_keys().unwrap(), all);
    let change = |kid: &str, event| {
        assert!(store.change_key(&Kid(kid.to_owned()), event, "test", None).unwrap());
    };
    change("kid-1", KeyEvent::Disabled);
    change("kid-2", KeyEvent::Disabled);
    change("kid-2", KeyEvent::Retired);
    assert_eq!(store.public_keys().unwrap(), all[1..]);
    change("kid-2", KeyEvent::Destroyed);
    assert_eq!(store.public_keys().unwrap(), all[2..]);
}

fn the_schema_is_checked_over_an_open_store<F: Fixture>(f: &F) {
    let store = f.open("a");
    store.check_schema().unwrap();
    f.run("DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)");
    assert!(store.check_schema().is_err());
}
