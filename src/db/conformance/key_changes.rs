//! Changes of many keys at once, destruction by force, and keys that have signed for long enough.

use std::time::Duration;

use super::actions::{
    RING, add_keys, check_out_one, give_up, insert, new_key, sign, sign_all, sign_and_store,
};
use super::fixture::Fixture;
use super::judge::assert_lawful;
use super::on_both;
use crate::db::{KeyChange, Retirement, StoreError, StoreOutcome};
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, Outcome, Tick};

on_both! {
    keys_change_together_or_not_at_all,
    a_key_destroyed_by_force_fences_its_use_and_its_batch_is_signed_by_another,
    force_does_nothing_to_a_key_that_is_not_in_use,
    a_key_counts_the_signatures_that_are_stored,
    keys_that_have_signed_for_long_enough_are_replaced_once,
    a_key_that_is_old_enough_is_due,
}

fn kids(keys: &[KeyId]) -> Vec<Kid> {
    keys.iter().map(|key| Kid(format!("kid-{key}"))).collect()
}

fn change(event: KeyEvent, force: bool) -> KeyChange<'static> {
    KeyChange { event, actor: "test", reason: Some("a test"), force }
}

fn keys_change_together_or_not_at_all<F: Fixture>(f: &F) {
    let store = f.open("a");
    let keys = add_keys(&*store, RING, 4);
    let disable = change(KeyEvent::Disabled, false);
    assert_eq!(store.change_keys(RING, &kids(&keys[..2]), &disable).unwrap(), [true, true]);
    assert_eq!(store.change_keys(RING, &kids(&keys[1..3]), &disable).unwrap(), [false, true]);
    let tick = store.ring("default").unwrap().tick;
    assert_eq!(tick, Tick(4 + 3));

    store.change_keys(RING, &kids(&keys[2..3]), &change(KeyEvent::Retired, false)).unwrap();
    // The last of these is retired, and so cannot be enabled.
    let enabled = store.change_keys(RING, &kids(&keys[..3]), &change(KeyEvent::Enabled, false));
    assert!(matches!(enabled, Err(StoreError::IllegalChange { .. })), "{enabled:?}");
    let unknown = [kids(&keys[..1]), vec![Kid("nobody".to_owned())]].concat();
    let unknown = store.change_keys(RING, &unknown, &change(KeyEvent::Enabled, false));
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })), "{unknown:?}");
    let statuses: Vec<KeyStatus> = store.keys(RING).unwrap().iter().map(|key| key.status).collect();
    use KeyStatus::{Active, Disabled, Retired};
    assert_eq!(statuses, [Disabled, Disabled, Retired, Active]);
    let log = store.admin_log(0, 100).unwrap();
    let entry = log.iter().find(|entry| entry.action == "key.disabled").unwrap();
    assert_eq!(entry.target, "2 keys of ring default");
    assert!(entry.detail.contains("kid-1") && entry.detail.contains("kid-2"), "{}", entry.detail);
    assert_lawful(f, &*store);
}

fn a_key_destroyed_by_force_fences_its_use_and_its_batch_is_signed_by_another<F: Fixture>(f: &F) {
    let store = f.open("a");
    let keys = add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 3);
    let batch = check_out_one(&*store, RING, 3);
    let signed = sign(&*store, &batch);
    let in_use = kids(&keys[..1]);
    let refused = store.change_keys(RING, &in_use, &change(KeyEvent::Destroyed, false));
    assert!(matches!(refused, Err(StoreError::KeyInUse { .. })), "{refused:?}");
    assert_eq!(
        store.change_keys(RING, &in_use, &change(KeyEvent::Destroyed, true)).unwrap(),
        [true]
    );
    assert_eq!(
        store.store_batches(RING, &[signed]).unwrap(),
        [StoreOutcome::Fenced(Outcome::Reclaimed)]
    );
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 0);
    let again = check_out_one(&*store, RING, 3);
    assert_eq!((again.key_use.batch, again.key_use.key), (batch.key_use.batch, keys[1]));
    assert_eq!(sign_and_store(&*store, &again), StoreOutcome::Stored);
    assert_eq!(store.batches(None, 10).unwrap()[0].attempts, 0, "it was not to blame");
    let destroyed = store.key(&in_use[0]).unwrap();
    assert_eq!(destroyed.status, KeyStatus::Destroyed);
    assert_eq!((destroyed.signatures, destroyed.kek_id), (0, None));
    assert_lawful(f, &*store);
}

fn force_does_nothing_to_a_key_that_is_not_in_use<F: Fixture>(f: &F) {
    let store = f.open("a");
    let keys = add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 1);
    assert_eq!(sign_and_store(&*store, &check_out_one(&*store, RING, 1)), StoreOutcome::Stored);
    let tick = store.ring("default").unwrap().tick;
    let destroy = change(KeyEvent::Destroyed, true);
    assert_eq!(store.change_keys(RING, &kids(&keys), &destroy).unwrap(), [true, true]);
    assert_eq!(store.ring("default").unwrap().tick, Tick(tick.0 + 2));
    assert_lawful(f, &*store);
}

fn a_key_counts_the_signatures_that_are_stored<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 10);
    let batch = check_out_one(&*store, RING, 4);
    store.give_up(RING, &[give_up(&batch, None)]).unwrap();
    assert!(sign_all(f, &*store, RING, 4) > 0);
    let keys = store.keys(RING).unwrap();
    assert_eq!(keys.iter().map(|key| key.signatures).sum::<u64>(), 10);
    for key in keys {
        let stored = f.number(&format!(
            "SELECT CAST(coalesce(sum(b.record_count), 0) AS BIGINT) AS value FROM key_uses u
             JOIN batches b ON b.id = u.batch_id WHERE u.outcome = 'stored' AND u.key_id = {}",
            key.id
        ));
        assert_eq!(stored as u64, key.signatures);
    }
}

fn keys_that_have_signed_for_long_enough_are_replaced_once<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 5);
    assert_eq!(sign_and_store(&*store, &check_out_one(&*store, RING, 5)), StoreOutcome::Stored);
    let after = |signatures| Retirement { after_signatures: Some(signatures), after: None };
    assert_eq!(store.due_keys(RING, &after(6), 10).unwrap(), []);
    assert_eq!(store.due_keys(RING, &Retirement::default(), 10).unwrap(), []);
    let due = store.due_keys(RING, &after(5), 10).unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((&due[0].kid, due[0].signatures), (&Kid("kid-1".to_owned()), 5));

    let mut make = |id| Ok(new_key(id));
    assert_eq!(store.replace_keys(RING, &due, "chancery", &mut make).unwrap(), 1);
    assert_eq!(other.replace_keys(RING, &due, "chancery", &mut make).unwrap(), 0);
    let keys = store.keys(RING).unwrap();
    let statuses: Vec<KeyStatus> = keys.iter().map(|key| key.status).collect();
    assert_eq!(statuses, [KeyStatus::Retired, KeyStatus::Active, KeyStatus::Active]);
    let reason = keys[0].status_reason.as_deref().unwrap();
    assert_eq!(reason, "scheduled, after 5 signatures and 0 days");
    // Of three that are due none is replaced, if one replacement cannot be made.
    add_keys(&*store, RING, 2);
    let due = store.due_keys(RING, &after(0), 10).unwrap();
    assert_eq!(due.len(), 4);
    let mut made = 0;
    let failed = store.replace_keys(RING, &due, "chancery", &mut |id| {
        made += 1;
        if made == 3 { Err("no entropy".into()) } else { Ok(new_key(id)) }
    });
    assert!(matches!(failed, Err(StoreError::MakeKey(_))), "{failed:?}");
    assert_eq!(store.key_counts(RING).unwrap().active, 4);
    assert_eq!(store.due_keys(RING, &after(0), 3).unwrap().len(), 3);
    assert_lawful(f, &*store);
}

fn a_key_that_is_old_enough_is_due<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    f.run("UPDATE keys SET created_at = '2020-01-02T03:04:05.678Z' WHERE id = 2");
    let days = |days: u64| Retirement {
        after_signatures: None,
        after: Some(Duration::from_secs(days * 86_400)),
    };
    let due = store.due_keys(RING, &days(365), 10).unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].kid, Kid("kid-2".to_owned()));
    assert!(due[0].age > Duration::from_secs(6 * 365 * 86_400), "{due:?}");
    assert_eq!(store.due_keys(RING, &days(36_500), 10).unwrap(), []);
    let none = Retirement { after_signatures: Some(1), after: None };
    assert_eq!(store.due_keys(RING, &none, 10).unwrap(), []);
}
