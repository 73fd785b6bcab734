//! Keys that come, go, or do not open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::database::{Database, another_kek_first};
use super::faulty_store::{Call, Fault};
use super::node::{Plan, TestNode, eventually, let_pass, most_looks};
use crate::actors::key_set::{KeySet, KeySetError};
use crate::actors::new_keys::generate_one;
use crate::actors::sealer::{Sealer, prove_keks};
use crate::actors::supervisor::Finished;
use crate::db::{KekCheck, Retirement, Store};
use crate::keyring::{Kek, Keks};
use crate::signing::PublicKey;
use crate::types::{KeyEvent, KeyStatus};

fn flip_a_bit(sealed: &mut [u8]) {
    *sealed.last_mut().unwrap() ^= 1;
}

/// A node that has stored something and is paused with nothing in flight.
async fn paused(database: &Database, plan: Plan) -> TestNode<'_> {
    let node = TestNode::start(database, plan);
    node.until("something is stored", |snapshot| snapshot.stored_batches > 0).await;
    node.pause().await;
    node.until("nothing is in flight", |snapshot| snapshot.in_flight == 0).await;
    node
}

#[actix::test]
async fn a_key_added_while_the_node_runs_is_used() {
    let database = Database::new(1, 200);
    let node = paused(&database, Plan::default()).await;
    let added = database.add_keys(1)[0];
    node.resume().await;
    node.finish_done().await;
    assert!(database.key(added).stored_uses > 5);
    assert_eq!(database.assert_all_signed(200).events.abandoned, 0);
}

#[actix::test]
async fn a_damaged_key_is_disabled_with_its_reason_and_the_others_go_on() {
    let database = Database::new(2, 200);
    let mut node = paused(&database, Plan::default()).await;
    let damaged = database.add_keys_sealed_by(&database.keks, 1, flip_a_bit)[0];
    node.resume().await;
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let key_manager = node.key_manager().await;
    assert_eq!((key_manager.damaged_keys, key_manager.keys), (1, 2));
    node.stop().await;
    let key = database.key(damaged);
    assert_eq!((key.status, key.stored_uses), (KeyStatus::Disabled, 0));
    assert!(key.status_reason.as_ref().unwrap().contains(&key.kid.0), "{key:?}");
    // It was checked out once, and given back without blame.
    assert_eq!(database.assert_all_signed(200).events.abandoned, 1);
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
}

#[actix::test]
async fn a_damaged_key_that_cannot_be_given_back_keeps_nobody_else_from_signing() {
    let database = Database::new(2, 200);
    let node = paused(&database, Plan::default()).await;
    database.add_keys_sealed_by(&database.keks, 1, flip_a_bit);
    database.store.plan(Call::GiveUp, [Fault::Unavailable]);
    node.resume().await;
    node.finish_done().await;
    assert!(database.store.plan_is_done());
    let verdict = database.assert_all_signed(200);
    assert_eq!((verdict.events.abandoned, verdict.events.reclaimed), (1, 0));
}

#[actix::test]
async fn a_ring_with_nothing_but_damaged_keys_ends_with_no_active_key() {
    let database = Database::new(0, 20);
    let damaged = database.add_keys_sealed_by(&database.keks, 3, flip_a_bit);
    let finished = TestNode::start(&database, Plan::default()).finish().await;
    assert!(matches!(finished, Finished::NoActiveKey(_)), "{finished:?}");
    for key in damaged {
        assert_eq!(database.key(key).status, KeyStatus::Disabled);
    }
}

#[test]
fn a_disabled_key_leaves_the_memory_though_another_s_data_key_is_damaged() {
    let database = Database::new(2, 0);
    let keks = Arc::new(another_kek_first());
    let store = Arc::clone(&database.store) as Arc<dyn Store>;
    let mut set = KeySet::new(store, database.ring, Arc::clone(&keks)).unwrap();
    set.refresh().unwrap();
    let other = keks.first();
    let check = KekCheck { kek_id: other.id().0, check_value: other.check_value() };
    database.store.add_kek(&check).unwrap();
    let damaged = database.store.add_data_key(database.ring, &check.kek_id, &[7; 72]).unwrap();
    let sealer = Sealer::new(database.store.as_ref(), database.ring, &database.keks).unwrap();
    let mut make = |id| {
        let mut key = generate_one(&sealer, id)?;
        let sealed = key.sealed.as_mut().unwrap();
        (sealed.kek_id, sealed.data_key) = (check.kek_id.clone(), Some(damaged.id));
        Ok(key)
    };
    database.store.add_keys(database.ring, 1, false, "test", &mut make).unwrap();

    let [disabled, kept, ..] = &database.store.keys(database.ring).unwrap()[..] else {
        panic!("there are three keys")
    };
    database.store.change_key(&disabled.kid, KeyEvent::Disabled, "test", None).unwrap();
    assert!(matches!(set.refresh(), Err(KeySetError::DataKey(_))));
    assert!(set.key(disabled.id).is_none());
    assert!(set.key(kept.id).is_some());
}

#[actix::test]
async fn a_wrong_kek_is_refused_before_any_key_is_touched() {
    let database = Database::new(3, 10);
    let tick = database.store.ring("default").unwrap().tick;
    let wrong = Keks::one(Kek::generate().unwrap(), "a test".to_owned());
    let found = prove_keks(database.store.as_ref(), &wrong);
    let expected = vec![database.keks.first().id().0];
    assert!(
        matches!(&found, Err(KeySetError::WrongKek { expected: e, .. }) if *e == expected),
        "{found:?}"
    );
    let store = Arc::clone(&database.store) as Arc<dyn Store>;
    let refused = KeySet::new(store, database.ring, Arc::new(wrong));
    assert!(matches!(refused, Err(KeySetError::WrongKek { .. })));
    assert_eq!(database.store.calls(Call::SealedKeys), 0);
    assert_eq!(database.store.ring("default").unwrap().tick, tick);
    let keys = database.store.keys(database.ring).unwrap();
    assert!(keys.iter().all(|key| key.status == KeyStatus::Active), "{keys:?}");
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(10);
}

#[actix::test]
async fn a_key_of_another_kek_is_left_alone_and_makes_no_busy_loop() {
    let database = Database::new(1, 60);
    // With one permit the checkout is not short of keys by itself.
    let plan = Plan { until_done: false, max_in_flight: 1, ..Plan::default() };
    let node = paused(&database, plan).await;
    let ours = database.store.keys(database.ring).unwrap().remove(0);
    let foreign = database.add_keys_sealed_by(&another_kek_first(), 1, |_| {})[0];
    database.store.change_key(&ours.kid, KeyEvent::Disabled, "test", None).unwrap();
    let before = database.store.calls(Call::CheckOut);
    let begin = Instant::now();
    node.resume().await;
    let_pass(Duration::from_millis(400)).await;
    eventually("some looks", || database.store.calls(Call::CheckOut) >= before + 3).await;
    let checkouts = database.store.calls(Call::CheckOut) - before;
    assert!(checkouts <= most_looks(begin.elapsed()), "{checkouts} checkouts");
    assert_eq!(database.key(foreign).status, KeyStatus::Active);
    database.store.change_key(&ours.kid, KeyEvent::Enabled, "test", None).unwrap();
    node.until("signed", |snapshot| snapshot.signed_records == 60).await;
    node.stop().await;
    assert_eq!(database.key(foreign).stored_uses, 0);
    database.assert_all_signed(60);
}

#[actix::test]
async fn a_disabled_key_leaves_the_memory_even_beside_a_key_of_another_kek() {
    let database = Database::new(3, 0);
    let lease = Duration::from_millis(60);
    let node = TestNode::start(&database, Plan { until_done: false, lease, ..Plan::default() });
    assert_eq!(node.key_manager().await.keys, 3);
    database.add_keys_sealed_by(&another_kek_first(), 1, |_| {});
    let key = database.store.keys(database.ring).unwrap().remove(0);
    database.store.change_key(&key.kid, KeyEvent::Disabled, "test", None).unwrap();
    let rounds = database.store.calls(Call::SealedKeys);
    eventually("two rounds", || database.store.calls(Call::SealedKeys) >= rounds + 2).await;
    assert_eq!(node.key_manager().await.keys, 2);
    node.stop().await;
}

#[actix::test]
async fn a_key_that_has_signed_for_long_enough_is_replaced_and_its_successor_signs() {
    let database = Database::new(1, 5);
    let lease = Duration::from_millis(60);
    let retirement = Retirement { after_signatures: Some(5), after: None };
    let plan = Plan { until_done: false, lease, retirement, ..Plan::default() };
    let node = TestNode::start(&database, plan);
    node.until("signed", |snapshot| snapshot.signed_records == 5).await;
    let first = database.store.keys(database.ring).unwrap().remove(0);
    eventually("its retirement", || database.key(first.id).status == KeyStatus::Retired).await;
    let keys = database.store.keys(database.ring).unwrap();
    let successor = keys.iter().find(|key| key.status == KeyStatus::Active).unwrap();
    let sealed = database.store.sealed_keys(database.ring).unwrap();
    database.signing.take_on(&PublicKey::from_bytes(&sealed[0].public_key).unwrap());
    assert_eq!(sealed[0].id, successor.id);
    database.add_records([b"one more".to_vec()]);
    node.until("signed", |snapshot| snapshot.signed_records == 6).await;
    node.stop().await;
    assert_eq!(database.key(successor.id).signatures, 1);
    database.assert_all_signed(6);
}
