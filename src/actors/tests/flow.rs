//! Waiting, pausing, resuming and draining.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::database::Database;
use super::faulty_store::{Call, Fault, Gate};
use super::node::{PATIENCE, Plan, TestNode, eventually, let_pass, most_looks};
use super::scripted_signer::SignFault;
use crate::actors::messages::{Drain, DrainReport};
use crate::actors::supervisor::{Finished, State};
use crate::db::{CheckOut, GiveUp, KeyUse, Store};
use crate::types::BatchSize;

const LONG: Duration = Duration::from_secs(60);

/// What another node asks for to hold one key.
pub(super) fn one_batch(database: &Database) -> CheckOut {
    let batch_size = BatchSize(NonZeroU32::new(5).unwrap());
    CheckOut { ring: database.ring, max_batches: 1, batch_size }
}

pub(super) fn give_back(store: &dyn Store, key_use: KeyUse) {
    store.give_up(key_use.ring, &[GiveUp { key_use, failure: None }]).unwrap();
}

/// A node with four batches that wait in or before its signers until the gate opens.
async fn with_four_in_flight(database: &Database) -> (TestNode<'_>, &'static Gate) {
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let node = TestNode::start(database, Plan::default());
    node.until("four batches are in flight", |snapshot| snapshot.in_flight == 4).await;
    (node, gate)
}

#[actix::test]
async fn a_node_without_a_free_key_waits_in_patience_until_one_is_returned() {
    let database = Database::new(2, 30);
    let other = database.other_node();
    let all = CheckOut { max_batches: 2, ..one_batch(&database) };
    let held = other.check_out(&all).unwrap().batches;
    assert_eq!(held.len(), 2);

    let begin = Instant::now();
    let node = TestNode::start(&database, Plan::default());
    let_pass(Duration::from_millis(400)).await;
    eventually("some looks", || database.store.calls(Call::CheckOut) >= 3).await;
    let calls = database.store.calls(Call::CheckOut);
    assert!(calls <= most_looks(begin.elapsed()), "{calls} checkouts");
    assert_eq!(node.supervisor().await.stored_batches, 0);

    give_back(&other, held[0].key_use);
    // The first batch of the other node is to be retried; its second stays with it for now.
    node.until("what is free is signed", |snapshot| snapshot.stored_batches == 5).await;
    give_back(&other, held[1].key_use);
    node.finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn a_record_that_arrives_during_a_long_look_for_what_is_left_is_signed_at_once() {
    let database = Database::new(2, 0);
    let gate = Gate::closed();
    database.store.plan(Call::Progress, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
    eventually("the look is under way", || gate.waiting() == 1).await;
    database.add_records([b"a".to_vec()]);
    node.nudge().await;
    node.until("it is signed", |snapshot| snapshot.signed_records == 1).await;
    assert_eq!(gate.waiting(), 1, "the look goes on");
    gate.open();
    database.add_records([b"b".to_vec()]);
    node.nudge().await;
    node.until("another one is signed", |snapshot| snapshot.signed_records == 2).await;
    node.stop().await;
    database.assert_all_signed(2);
}

#[actix::test]
async fn a_look_that_finds_everything_signed_ends_the_work_though_somebody_asks_for_more() {
    let database = Database::new(2, 0);
    let (look, question) = (Gate::closed(), Gate::closed());
    database.store.plan(Call::Progress, [Fault::Wait(look)]);
    database.store.plan(Call::HasWork, [Fault::Wait(question)]);
    let mut node = TestNode::start(&database, Plan::default());
    eventually("both are under way", || look.waiting() == 1 && question.waiting() == 1).await;
    look.open();
    let finished = tokio::time::timeout(PATIENCE, &mut node.finished).await;
    assert!(matches!(finished, Ok(Ok(Finished::Done(_)))), "{finished:?}");
    let looks = database.store.calls(Call::Progress);
    question.open();
    eventually("it hears that there is no work", || question.waiting() == 0).await;
    let_pass(Duration::from_millis(100)).await;
    assert_eq!(database.store.calls(Call::Progress), looks, "it looks no more");
    node.stop().await;
}

#[actix::test]
async fn a_key_that_comes_back_while_a_checkout_is_under_way_is_not_forgotten() {
    let database = Database::new(2, 30);
    let (quick, slow, reply) = (Gate::closed(), Gate::closed(), Gate::closed());
    database.signing.on_slice(|records| match records[0].payload.as_slice() {
        b"record 0" => Some(SignFault::Wait(quick)),
        b"record 5" => Some(SignFault::Wait(slow)),
        _ => None,
    });
    let node = TestNode::start(&database, Plan::default());
    eventually("both keys are in use", || quick.waiting() + slow.waiting() == 2).await;
    database.store.plan(Call::CheckOut, [Fault::WaitAfter(reply)]);
    node.nudge().await;
    eventually("a checkout found no free key", || reply.waiting() == 1).await;
    quick.open();
    node.until("one is back", |snapshot| snapshot.stored_batches == 1).await;
    reply.open();
    node.until("it signs the rest", |snapshot| snapshot.stored_batches == 5).await;
    slow.open();
    node.finish_done().await;
    database.assert_all_signed(30);
}

/// A node with eight batches in flight, as many as there are keys and half as many as it may have; the
/// first two wait for gates of their own, the others for the last.
async fn with_all_keys_in_use(
    database: &Database,
    key_patience: Duration,
) -> (TestNode<'_>, [&'static Gate; 3]) {
    let [first, second, rest] = std::array::from_fn(|_| Gate::closed());
    database.signing.on_slice(|records| match records[0].payload.as_slice() {
        b"record 0" => Some(SignFault::Wait(first)),
        b"record 5" => Some(SignFault::Wait(second)),
        _ => Some(SignFault::Wait(rest)),
    });
    let plan = Plan { max_in_flight: 16, key_patience, ..Plan::default() };
    let node = TestNode::start(database, plan);
    node.until("all keys are in use", |snapshot| snapshot.in_flight == 8).await;
    (node, [first, second, rest])
}

#[actix::test]
async fn a_node_that_has_all_keys_asks_for_more_when_a_quarter_of_them_are_back() {
    let database = Database::new(8, 60);
    let (node, [first, second, rest]) = with_all_keys_in_use(&database, LONG).await;
    let checkouts = database.store.calls(Call::CheckOut);
    first.open();
    node.until("one is back", |snapshot| snapshot.stored_batches == 1).await;
    let_pass(Duration::from_millis(50)).await;
    assert_eq!(database.store.calls(Call::CheckOut), checkouts);
    second.open();
    node.until("two are in use again", |snapshot| {
        snapshot.stored_batches == 2 && snapshot.in_flight == 8
    })
    .await;
    assert_eq!(database.store.calls(Call::CheckOut), checkouts + 1);
    rest.open();
    node.finish_done().await;
    database.assert_all_signed(60);
}

#[actix::test]
async fn a_key_that_is_back_alone_does_not_wait_for_others_for_long() {
    let database = Database::new(8, 60);
    let short = Duration::from_millis(1);
    let (node, [first, second, rest]) = with_all_keys_in_use(&database, short).await;
    first.open();
    node.until("its key is in use again", |snapshot| {
        snapshot.stored_batches == 1 && snapshot.in_flight == 8
    })
    .await;
    second.open();
    rest.open();
    node.finish_done().await;
    database.assert_all_signed(60);
}

#[actix::test]
async fn an_idle_node_asks_for_work_by_a_read_without_a_lock() {
    let database = Database::new(2, 10);
    let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
    node.until("signed", |snapshot| snapshot.signed_records == 10).await;
    eventually("idle", || database.store.calls(Call::HasWork) > 0).await;
    let checkouts = database.store.calls(Call::CheckOut);
    eventually("some looks", || database.store.calls(Call::HasWork) >= 5).await;
    assert_eq!(database.store.calls(Call::CheckOut), checkouts);
    // Nobody nudges it.
    database.add_records([vec![1], vec![2]]);
    node.until("signed", |snapshot| snapshot.signed_records == 12).await;
    node.stop().await;
    database.assert_all_signed(12);
}

#[actix::test]
async fn a_node_of_a_paused_ring_waits_by_reads_without_a_lock() {
    let database = Database::new(2, 10);
    database.store.set_paused(database.ring, true, "test").unwrap();
    let node = TestNode::start(&database, Plan::default());
    eventually("some looks", || database.store.calls(Call::HasWork) >= 5).await;
    assert_eq!(database.store.calls(Call::CheckOut), 1);
    assert_eq!(database.store.calls(Call::Progress), 0, "nothing is counted meanwhile");
    // Nobody nudges it.
    database.store.set_paused(database.ring, false, "test").unwrap();
    node.finish_done().await;
    database.assert_all_signed(10);
}

#[actix::test]
async fn a_paused_node_finishes_what_is_in_flight_and_starts_nothing_until_it_is_resumed() {
    let database = Database::new(8, 100);
    let (node, gate) = with_four_in_flight(&database).await;
    node.pause().await;
    assert_eq!(node.supervisor().await.state, State::Paused);
    gate.open();
    node.until("they are finished", |snapshot| snapshot.in_flight == 0).await;
    let checkouts = database.store.calls(Call::CheckOut);
    node.nudge().await;
    let_pass(Duration::from_millis(50)).await;
    let snapshot = node.supervisor().await;
    assert_eq!((snapshot.stored_batches, snapshot.in_flight), (4, 0));
    assert_eq!(database.store.calls(Call::CheckOut), checkouts);
    assert!(database.store.open_uses().unwrap().is_empty());
    node.resume().await;
    node.finish_done().await;
    database.assert_all_signed(100);
}

#[actix::test]
async fn a_drain_finishes_what_is_in_flight_and_returns_the_keys() {
    let database = Database::new(8, 100);
    let (node, gate) = with_four_in_flight(&database).await;
    let drain = actix::spawn(node.supervisor.send(Drain { deadline: LONG }));
    let again = actix::spawn(node.supervisor.send(Drain { deadline: LONG }));
    node.until("draining", |snapshot| snapshot.state == State::Draining).await;
    node.resume().await;
    let_pass(Duration::from_millis(20)).await;
    assert!(!drain.is_finished());
    gate.open();
    let report = drain.await.unwrap().unwrap();
    assert_eq!(report, DrainReport { stored_batches: 4, left_in_flight: 0 });
    assert_eq!(again.await.unwrap().unwrap(), report);
    assert_eq!(node.drain(LONG).await, report);
    match node.finish().await {
        Finished::Drained(drained) => assert_eq!(drained, report),
        other => panic!("{other:?}"),
    }
    let verdict = database.judge_unfinished();
    assert_eq!((verdict.signed, verdict.open_uses), (20, 0));
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(100);
}

#[actix::test]
async fn an_idle_or_paused_node_drains_at_once() {
    for pause in [false, true] {
        let database = Database::new(2, 10);
        let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
        node.until("signed", |snapshot| snapshot.signed_records == 10).await;
        if pause {
            node.pause().await;
        }
        let report = node.drain(LONG).await;
        assert_eq!(report, DrainReport { stored_batches: 2, left_in_flight: 0 });
        node.finish().await;
        database.assert_all_signed(10);
    }
}

#[actix::test]
async fn a_drain_says_at_its_deadline_what_it_leaves_behind() {
    let database = Database::new(8, 100);
    let gate = Gate::closed();
    database.store.plan(Call::StoreBatches, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("a store hangs", || gate.waiting() == 1).await;
    node.until("four batches are in flight", |snapshot| snapshot.in_flight == 4).await;
    let report = node.drain(Duration::from_millis(50)).await;
    assert_eq!(report, DrainReport { stored_batches: 0, left_in_flight: 4 });
    gate.open();
    // They end all the same, if the process lives on.
    node.until("they are finished", |snapshot| snapshot.in_flight == 0).await;
    match node.finish().await {
        Finished::Drained(drained) => assert_eq!(drained, report),
        other => panic!("{other:?}"),
    }
    let verdict = database.judge_unfinished();
    assert_eq!((verdict.signed, verdict.open_uses), (20, 0));
}

#[actix::test]
async fn a_drain_waits_for_a_checkout_under_way_and_for_what_it_brings() {
    let database = Database::new(8, 100);
    let gate = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    let drain = actix::spawn(node.supervisor.send(Drain { deadline: LONG }));
    node.until("draining", |snapshot| snapshot.state == State::Draining).await;
    let_pass(Duration::from_millis(20)).await;
    assert!(!drain.is_finished());
    gate.open();
    let report = drain.await.unwrap().unwrap();
    assert_eq!(report, DrainReport { stored_batches: 4, left_in_flight: 0 });
    node.finish().await;
    let verdict = database.judge_unfinished();
    assert_eq!((verdict.signed, verdict.open_uses), (20, 0));
}

#[actix::test]
async fn what_a_checkout_brings_after_the_deadline_of_a_drain_is_given_back_unsigned() {
    let database = Database::new(8, 100);
    let gate = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    let report = node.drain(Duration::from_millis(20)).await;
    assert_eq!(report, DrainReport { stored_batches: 0, left_in_flight: 0 });
    gate.open();
    eventually("checked out", || !database.store.batches(None, 100).unwrap().is_empty()).await;
    eventually("given back", || database.store.open_uses().unwrap().is_empty()).await;
    assert_eq!(node.supervisor().await.in_flight, 0);
    node.finish().await;
    let verdict = database.judge_unfinished();
    assert_eq!((verdict.signed, verdict.events.abandoned), (0, 4));
    assert_eq!(database.signing.counts().slices_begun, 0);
}
