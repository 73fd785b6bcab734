//! Step 3: what is stored, and what is fenced or refused.

use super::actions::{
    RING, add_keys, check_out, check_out_one, give_up, insert, sign, sign_all, sign_and_store,
};
use super::fixture::Fixture;
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{KeyUse, ReclaimScope, Refusal, SignedBatch, Store, StoreError, StoreOutcome};
use crate::types::{BatchId, Fence, KeyId, Outcome, RingId, Tick};

on_both! {
    a_group_is_stored_in_one_step_and_ends_its_uses_in_its_order,
    a_fenced_batch_in_a_group_holds_up_no_other,
    a_store_whose_reply_was_lost_is_repeated_without_effect,
    a_second_signature_for_a_record_is_refused_with_its_whole_group,
    a_batch_with_another_number_of_signatures_is_refused_with_its_whole_group,
    only_the_very_use_that_was_checked_out_may_store,
    what_a_zombie_computed_is_never_stored,
    an_empty_group_is_stored_without_a_trace,
}

/// The ring's tick and the number of signatures, by the tables.
fn state<F: Fixture>(f: &F) -> Vec<String> {
    f.rows(
        "SELECT tick || ' ' || (SELECT count(*) FROM signatures) AS value FROM rings WHERE id = 1",
    )
}

fn signed_batches(store: &dyn Store, count: u32, size: u32) -> Vec<SignedBatch> {
    let batches = check_out(store, RING, count, size).batches;
    assert_eq!(batches.len(), count as usize);
    batches.iter().map(|batch| sign(store, batch)).collect()
}

fn a_group_is_stored_in_one_step_and_ends_its_uses_in_its_order<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 40);
    let mut group = signed_batches(&*store, 4, 10);
    group.swap(0, 2);
    assert_eq!(store.store_batches(RING, &group).unwrap(), [StoreOutcome::Stored; 4]);
    // Keys 1 to 4 were added at ticks 1 to 4 and checked out at 5 to 8.
    let ends = f.rows("SELECT key_id || ' ' || end_tick AS value FROM key_uses ORDER BY end_tick");
    assert_eq!(ends, ["3 9", "2 10", "1 11", "4 12"]);
    let keys = store.keys(RING).unwrap();
    assert_eq!(keys.iter().map(|key| key.last_tick.0).collect::<Vec<_>>(), [11, 10, 9, 12]);
    assert!(keys.iter().all(|key| !key.in_use && key.stored_uses == 1));
    assert_signed(f, &*store, RING, 40);
}

fn a_fenced_batch_in_a_group_holds_up_no_other<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 20);
    let claimed = check_out(&*store, RING, 4, 5).batches;
    let group: Vec<SignedBatch> = claimed.iter().map(|batch| sign(&*store, batch)).collect();
    store.give_up(RING, &[give_up(&claimed[1], None)]).unwrap();
    f.expire(&format!("fence = {}", claimed[2].key_use.fence));
    assert_eq!(store.reclaim(RING, ReclaimScope::Expired).unwrap().uses.len(), 1);
    store.store_batches(RING, &group[3..]).unwrap();

    let outcomes = store.store_batches(RING, &group).unwrap();
    let expected = [
        StoreOutcome::Stored,
        StoreOutcome::Fenced(Outcome::Abandoned),
        StoreOutcome::Fenced(Outcome::Reclaimed),
        StoreOutcome::AlreadyStored,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 10);
    assert_eq!(sign_all(f, &*store, RING, 5), 2);
    assert_signed(f, &*store, RING, 20);
}

fn a_store_whose_reply_was_lost_is_repeated_without_effect<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 12);
    let group = signed_batches(&*store, 3, 4);
    drop(store.store_batches(RING, &group));
    let after_the_first = state(f);
    assert_eq!(after_the_first, ["9 12"]);
    for _ in 0..2 {
        let outcomes = store.store_batches(RING, &group).unwrap();
        assert_eq!(outcomes, [StoreOutcome::AlreadyStored; 3]);
    }
    assert_eq!(state(f), after_the_first);
    assert_signed(f, &*store, RING, 12);
}

fn a_second_signature_for_a_record_is_refused_with_its_whole_group<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 12);
    let group = signed_batches(&*store, 3, 4);
    store.store_batches(RING, &group[..1]).unwrap();
    let before = state(f);

    // A record of the batch that is stored, and one record twice: the count is right each time.
    let of_another = group[0].signatures[1];
    let twice = group[2].signatures[0];
    for double in [of_another, twice] {
        let mut guilty = group[2].clone();
        guilty.signatures[3] = double;
        let error = store.store_batches(RING, &[group[1].clone(), guilty]).unwrap_err();
        assert!(
            matches!(error, StoreError::Refused(Refusal::DoubleSign(_))),
            "an alarm, nothing that is passed over: {error:?}"
        );
        assert!(!error.is_retryable());
        assert_eq!(state(f), before, "nothing of the group is stored");
    }
    assert_eq!(f.number("SELECT count(*) AS value FROM key_uses WHERE end_tick IS NULL"), 2);
    assert_lawful(f, &*store);
    assert_eq!(store.store_batches(RING, &group[1..]).unwrap(), [StoreOutcome::Stored; 2]);
    assert_signed(f, &*store, RING, 12);
}

fn a_batch_with_another_number_of_signatures_is_refused_with_its_whole_group<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 12);
    let group = signed_batches(&*store, 2, 4);
    let before = state(f);
    let too_few = group[1].signatures[..3].to_vec();
    let too_many = [group[1].signatures.clone(), vec![group[0].signatures[0]]].concat();
    for (signatures, count) in [(too_few, 3), (too_many, 5), (Vec::new(), 0)] {
        let guilty = SignedBatch { key_use: group[1].key_use, signatures };
        match store.store_batches(RING, &[group[0].clone(), guilty]).unwrap_err() {
            StoreError::Refused(Refusal::Count { expected: 4, found }) => assert_eq!(found, count),
            other => panic!("{other:?}"),
        }
        assert_eq!(state(f), before, "nothing of the group is stored");
    }
    assert_eq!(store.store_batches(RING, &group).unwrap(), [StoreOutcome::Stored; 2]);
    sign_all(f, &*store, RING, 4);
    assert_signed(f, &*store, RING, 12);
}

fn only_the_very_use_that_was_checked_out_may_store<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    add_keys(&*store, RING, 3);
    f.run("INSERT INTO rings (name) VALUES ('other')");
    insert(f, &*store, RING, 8);
    let group = signed_batches(&*store, 2, 4);
    let before = state(f);
    let held = group[0].key_use;
    let showing = |key_use: KeyUse| [SignedBatch { key_use, ..group[0].clone() }];
    let fenced = |outcomes: Vec<StoreOutcome>, what: &str| {
        assert!(matches!(outcomes[..], [StoreOutcome::Fenced(_)]), "{what}: {outcomes:?}");
        assert_eq!(state(f), before, "{what}: nothing is stored");
    };
    for (what, key_use) in [
        ("another's fence", KeyUse { fence: group[1].key_use.fence, ..held }),
        ("a fence of nobody", KeyUse { fence: Fence(Tick(1000)), ..held }),
        ("another's batch", KeyUse { batch: group[1].key_use.batch, ..held }),
        ("a batch of nobody", KeyUse { batch: BatchId(1000), ..held }),
        ("another's key", KeyUse { key: group[1].key_use.key, ..held }),
        ("a key of nobody", KeyUse { key: KeyId(1000), ..held }),
        ("another ring", KeyUse { ring: RingId(2), ..held }),
    ] {
        fenced(store.store_batches(RING, &showing(key_use)).unwrap(), what);
        let ended = store.give_up(RING, &[crate::db::GiveUp { key_use, failure: None }]).unwrap();
        assert_eq!((ended.len(), state(f)), (1, before.clone()), "{what}: nothing is given up");
    }
    fenced(store.store_batches(RingId(2), &showing(held)).unwrap(), "in another ring's name");
    fenced(other.store_batches(RING, &showing(held)).unwrap(), "another node");
    assert!(other.renew(RING, &[held.fence]).unwrap().is_empty(), "another node");
    store.give_up(RingId(2), &[crate::db::GiveUp { key_use: held, failure: None }]).unwrap();
    assert_eq!(f.number("SELECT count(*) AS value FROM key_uses WHERE end_tick IS NULL"), 2);

    assert_eq!(store.store_batches(RING, &group).unwrap(), [StoreOutcome::Stored; 2]);
    let outcomes = other.store_batches(RING, &group[..1]).unwrap();
    assert!(matches!(outcomes[..], [StoreOutcome::Fenced(_)]), "not even when it is stored");
    assert_signed(f, &*store, RING, 8);
}

fn what_a_zombie_computed_is_never_stored<F: Fixture>(f: &F) {
    let (zombie, store) = (f.open("zombie"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 5);
    let asleep = check_out_one(&*zombie, RING, 10);
    let computed = [sign(&*zombie, &asleep)];
    f.expire("node = 'zombie'");
    let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
    assert_eq!(reclaimed.uses, [(asleep.key_use, crate::types::NodeId("zombie".to_owned()))]);

    let fenced = [StoreOutcome::Fenced(Outcome::Reclaimed)];
    assert_eq!(zombie.store_batches(RING, &computed).unwrap(), fenced, "while nobody has it");
    let again = check_out_one(&*store, RING, 10);
    assert_eq!(again.key_use.batch, asleep.key_use.batch);
    assert_ne!(again.key_use.key, asleep.key_use.key);
    assert_eq!(zombie.store_batches(RING, &computed).unwrap(), fenced, "while another signs it");
    assert!(zombie.renew(RING, &[asleep.key_use.fence]).unwrap().is_empty());
    assert_eq!(sign_and_store(&*store, &again), StoreOutcome::Stored);
    assert_eq!(zombie.store_batches(RING, &computed).unwrap(), fenced, "after another stored it");
    let given_up = zombie.give_up(RING, &[give_up(&asleep, Some("late"))]).unwrap();
    assert_eq!(given_up, [Outcome::Reclaimed]);
    assert_signed(f, &*store, RING, 5);
}

fn an_empty_group_is_stored_without_a_trace<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    assert!(store.store_batches(RING, &[]).unwrap().is_empty());
    assert!(store.give_up(RING, &[]).unwrap().is_empty());
    assert!(store.renew(RING, &[]).unwrap().is_empty());
    assert_eq!(state(f), ["1 0"]);
    assert_lawful(f, &*store);
}
