//! Keys and their events.

use super::actions::{RING, add_keys, check_out, check_out_one, insert, new_key, sign_and_store};
use super::fixture::Fixture;
use super::judge::assert_lawful;
use super::on_both;
use crate::db::{KekCheck, Shortage, Store, StoreError, StoreOutcome};
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, Tick};

on_both! {
    added_keys_are_active_and_each_is_an_event_of_its_ring,
    a_ring_that_has_keys_is_not_filled_again,
    a_key_that_cannot_be_made_leaves_nothing_behind,
    a_key_s_status_changes_as_its_life_allows,
    a_change_leaves_its_actor_and_its_reason,
    a_disabled_key_is_passed_over_and_keeps_its_place,
    a_key_disabled_in_use_finishes_its_batch_and_does_not_return,
    a_destroyed_key_has_no_private_key_and_was_not_in_use,
    a_kek_s_check_value_is_remembered_once,
}

fn change(store: &dyn Store, key: i64, event: KeyEvent) -> Result<bool, StoreError> {
    store.change_key(&Kid(format!("kid-{key}")), event, "test", None)
}

fn added_keys_are_active_and_each_is_an_event_of_its_ring<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert_eq!(add_keys(&*store, RING, 3), [1, 2, 3].map(KeyId));
    assert_eq!(add_keys(&*store, RING, 2), [4, 5].map(KeyId));
    let keys = store.keys(RING).unwrap();
    assert_eq!(keys.len(), 5);
    for (n, key) in keys.iter().enumerate() {
        assert_eq!((key.id.0, key.ring, key.status), (n as i64 + 1, RING, KeyStatus::Active));
        assert_eq!((key.last_tick, key.in_use, key.stored_uses), (Tick::ZERO, false, 0));
        assert_eq!((key.algorithm.as_str(), key.public_key.len()), ("Ed25519", 32));
        assert_eq!(key.kid, Kid(format!("kid-{}", n + 1)));
    }
    let sealed = store.sealed_keys(RING).unwrap();
    assert_eq!(sealed.len(), 5);
    assert_eq!(sealed[0].sealed_private_key.as_deref(), Some([1; 48].as_slice()));
    assert_eq!(sealed[0].kek_id.as_deref(), Some("kek"));
    let events = f.rows(
        "SELECT tick || ' ' || key_id || ' ' || event || ' ' || actor AS value FROM key_events ORDER BY tick",
    );
    let expected: Vec<String> = (1..=5).map(|n| format!("{n} {n} added test")).collect();
    assert_eq!(events, expected);
    assert_lawful(f, &*store);
}

fn a_ring_that_has_keys_is_not_filled_again<F: Fixture>(f: &F) {
    let store = f.open("a");
    let check = KekCheck { kek_id: "kek".to_owned(), check_value: vec![2; 32] };
    store.add_kek(&check).unwrap();
    let fill = |count| store.add_keys(RING, count, true, "test", &mut |id| Ok(new_key(id)));
    assert_eq!(fill(2).unwrap().len(), 2);
    assert_eq!(fill(3).unwrap(), []);
    // A ring whose keys are all out of use is no empty ring.
    for key in [1, 2] {
        change(&*store, key, KeyEvent::Retired).unwrap();
    }
    assert_eq!(fill(3).unwrap(), []);
    assert_eq!(f.number("SELECT count(*) AS value FROM keys"), 2);
    assert_eq!(store.ring("default").unwrap().tick, Tick(4));
    assert_lawful(f, &*store);
}

fn a_key_that_cannot_be_made_leaves_nothing_behind<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let mut made = 0;
    let error = store.add_keys(RING, 3, false, "test", &mut |id| {
        made += 1;
        if made == 3 { Err("no entropy".into()) } else { Ok(new_key(id)) }
    });
    assert!(matches!(&error, Err(StoreError::MakeKey(why)) if why.to_string() == "no entropy"));
    let taken = store.add_keys(RING, 1, false, "test", &mut |id| {
        Ok(crate::db::NewKey { kid: Kid("kid-1".to_owned()), ..new_key(id) })
    });
    assert!(matches!(taken, Err(StoreError::Refused(_))), "{taken:?}");
    assert_eq!(f.number("SELECT count(*) AS value FROM keys"), 1);
    assert_eq!(store.ring("default").unwrap().tick, Tick(1));
    assert_eq!(add_keys(&*store, RING, 2).len(), 2);
    assert_lawful(f, &*store);
}

/// What each event does: a change, nothing, or a refusal.
type Ways = [(KeyEvent, Option<bool>); 5];

fn a_key_s_status_changes_as_its_life_allows<F: Fixture>(f: &F) {
    use KeyEvent::{Added, Destroyed, Disabled, Enabled, Retired};
    let store = f.open("a");
    let ways: [(&[KeyEvent], Ways); 4] = [
        (
            &[],
            [
                (Added, Some(false)),
                (Enabled, Some(false)),
                (Disabled, Some(true)),
                (Retired, Some(true)),
                (Destroyed, Some(true)),
            ],
        ),
        (
            &[Disabled],
            [
                (Added, None),
                (Enabled, Some(true)),
                (Disabled, Some(false)),
                (Retired, Some(true)),
                (Destroyed, Some(true)),
            ],
        ),
        (
            &[Retired],
            [
                (Added, None),
                (Enabled, None),
                (Disabled, None),
                (Retired, Some(false)),
                (Destroyed, Some(true)),
            ],
        ),
        (
            &[Destroyed],
            [
                (Added, None),
                (Enabled, None),
                (Disabled, None),
                (Retired, None),
                (Destroyed, Some(false)),
            ],
        ),
    ];
    let mut changes = 0;
    for (before, results) in ways {
        for (event, expected) in results {
            let key = add_keys(&*store, RING, 1)[0].0;
            for event in before {
                assert!(change(&*store, key, *event).unwrap());
            }
            let tick = store.ring("default").unwrap().tick;
            match (change(&*store, key, event), expected) {
                (Ok(changed), Some(expected)) => {
                    assert_eq!(changed, expected, "{event} after {before:?}");
                    assert_eq!(store.ring("default").unwrap().tick.0 - tick.0, i64::from(changed));
                    let status = &store.keys(RING).unwrap()[key as usize - 1].status;
                    assert_eq!(*status, event.status(), "{event} after {before:?}");
                }
                (Err(StoreError::IllegalChange { event: refused, .. }), None) => {
                    assert_eq!(refused, event);
                    assert_eq!(store.ring("default").unwrap().tick, tick);
                }
                (result, _) => panic!("{event} after {before:?}: {result:?}"),
            }
            changes += 1;
        }
    }
    assert_eq!(changes, 20);
    let error = change(&*store, 1000, KeyEvent::Disabled).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "key", .. }), "{error:?}");
    assert_lawful(f, &*store);
}

fn a_change_leaves_its_actor_and_its_reason<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let kid = Kid("kid-1".to_owned());
    assert!(store.change_key(&kid, KeyEvent::Disabled, "anna", Some("holiday")).unwrap());
    assert_eq!(store.keys(RING).unwrap()[0].status_reason.as_deref(), Some("holiday"));
    assert!(store.sealed_keys(RING).unwrap().is_empty(), "it is of no use to a signer");
    assert!(store.change_key(&kid, KeyEvent::Enabled, "bert", None).unwrap());
    assert_eq!(store.keys(RING).unwrap()[0].status_reason, None);
    let rows = f.rows(
        "SELECT event || ' ' || actor || ' ' || coalesce(reason, '-') AS value FROM key_events ORDER BY tick",
    );
    assert_eq!(rows, ["added test -", "disabled anna holiday", "enabled bert -"]);
    assert_lawful(f, &*store);
}

fn a_disabled_key_is_passed_over_and_keeps_its_place<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 20);
    for key in [1, 2, 3] {
        let batch = check_out_one(&*store, RING, 1);
        assert_eq!(batch.key_use.key.0, key);
        assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
    }
    assert!(change(&*store, 1, KeyEvent::Disabled).unwrap());
    let used: Vec<i64> =
        check_out(&*store, RING, 3, 1).batches.iter().map(|b| b.key_use.key.0).collect();
    assert_eq!(used, [2, 3]);
    assert!(change(&*store, 1, KeyEvent::Enabled).unwrap());
    assert_eq!(store.keys(RING).unwrap()[0].last_tick, Tick(5), "an event is no use");
    assert_eq!(check_out_one(&*store, RING, 1).key_use.key, KeyId(1));
    assert_lawful(f, &*store);
}

fn a_key_disabled_in_use_finishes_its_batch_and_does_not_return<F: Fixture>(f: &F) {
    let store = f.open("a");
    for event in [KeyEvent::Disabled, KeyEvent::Retired] {
        let key = add_keys(&*store, RING, 1)[0];
        insert(f, &*store, RING, 2);
        let batch = check_out_one(&*store, RING, 1);
        assert_eq!(batch.key_use.key, key);
        assert!(change(&*store, key.0, event).unwrap());
        assert!(store.keys(RING).unwrap()[key.0 as usize - 1].in_use);
        assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
        let row = &store.keys(RING).unwrap()[key.0 as usize - 1];
        assert_eq!((row.status, row.in_use, row.stored_uses), (event.status(), false, 1));
        let answer = check_out(&*store, RING, 1, 1);
        assert_eq!((answer.batches.len(), answer.shortage), (0, Some(Shortage::NoActiveKey)));
    }
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 2);
    assert_lawful(f, &*store);
}

fn a_destroyed_key_has_no_private_key_and_was_not_in_use<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 2);
    let batch = check_out_one(&*store, RING, 2);
    let tick = store.ring("default").unwrap().tick;
    let error = change(&*store, 1, KeyEvent::Destroyed).unwrap_err();
    assert!(matches!(error, StoreError::KeyInUse { .. }), "{error:?}");
    assert!(change(&*store, 1, KeyEvent::Retired).unwrap());
    assert!(change(&*store, 1, KeyEvent::Destroyed).is_err(), "still in use");
    assert_eq!(store.ring("default").unwrap().tick.0, tick.0 + 1);
    let sealed = "SELECT count(*) AS value FROM keys WHERE sealed_private_key IS NOT NULL";
    assert_eq!(f.number(sealed), 2);

    assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
    assert!(change(&*store, 1, KeyEvent::Destroyed).unwrap());
    assert!(change(&*store, 2, KeyEvent::Destroyed).unwrap());
    assert_eq!(f.number(sealed), 0);
    let keys = store.keys(RING).unwrap();
    assert!(keys.iter().all(|k| k.status == KeyStatus::Destroyed && k.public_key.len() == 32));
    assert_lawful(f, &*store);
}

fn a_kek_s_check_value_is_remembered_once<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert!(store.kek_checks().unwrap().is_empty());
    let check = |id: &str, value| KekCheck { kek_id: id.to_owned(), check_value: vec![value; 32] };
    for check in [check("first", 1), check("second", 2), check("first", 3)] {
        store.add_kek(&check).unwrap();
    }
    let mut checks = store.kek_checks().unwrap();
    checks.sort_by(|a, b| a.kek_id.cmp(&b.kek_id));
    assert_eq!(checks, [check("first", 1), check("second", 2)]);
    let id = store.database_id().unwrap();
    assert_eq!(f.rows("SELECT database_id AS value FROM database_identity"), [id.as_str()]);
    assert!(id.len() >= 32, "{id}");
}
