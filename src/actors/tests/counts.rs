//! What is left at the end, by a count that is made while the last batches are signed.

use std::time::Duration;

use super::database::Database;
use super::faulty_store::{Call, Fault, Gate};
use super::node::{Plan, TestNode, eventually};
use super::scripted_signer::SignFault;
use crate::actors::messages::Drain;
use crate::actors::supervisor::State;

/// A node whose last three batches wait for the gate, at most two of them in its signers.
async fn at_the_last_batches(database: &Database) -> (TestNode<'_>, &'static Gate) {
    let gate = Gate::closed();
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        match slices {
            1 | 2 => Some(SignFault::Wait(gate)),
            3 => Some(SignFault::Panic("the third fails")),
            _ => None,
        }
    });
    let node = TestNode::start(database, Plan::default());
    node.until("three batches are in flight", |snapshot| snapshot.in_flight == 3).await;
    (node, gate)
}

#[actix::test]
async fn records_are_counted_while_the_last_batches_are_signed_and_only_then() {
    let database = Database::new(4, 15);
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let node = TestNode::start(&database, Plan::default());
    eventually("they are counted", || database.store.calls(Call::AllInBatches) == 1).await;
    assert_eq!(node.supervisor().await.signed_records, 0);
    gate.open();
    assert_eq!(node.finish_done().await.records, 15);
    let counts = [Call::AllInBatches, Call::Remaining].map(|call| database.store.calls(call));
    assert_eq!(counts, [1, 0]);
    database.assert_all_signed(15);
}

#[actix::test]
async fn a_node_that_waits_for_more_counts_nothing() {
    let database = Database::new(4, 15);
    let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
    node.until("they are signed", |snapshot| snapshot.signed_records == 15).await;
    node.stop().await;
    assert_eq!(database.store.calls(Call::AllInBatches), 0);
}

#[actix::test]
async fn a_node_that_is_drained_while_it_checks_out_counts_nothing() {
    let database = Database::new(4, 15);
    let checked_out = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::WaitAfter(checked_out)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout is made", || checked_out.waiting() == 1).await;
    let drain = node.supervisor.send(Drain { deadline: Duration::from_secs(60) });
    let drain = actix::spawn(drain);
    node.until("it drains", |snapshot| snapshot.state == State::Draining).await;
    checked_out.open();
    assert_eq!(drain.await.unwrap().unwrap().stored_batches, 3);
    node.stop().await;
    assert_eq!(database.store.calls(Call::AllInBatches), 0);
    database.assert_all_signed(15);
}

#[actix::test]
async fn a_record_that_comes_after_the_count_is_signed_before_the_end() {
    let database = Database::new(4, 15);
    let counted = Gate::closed();
    database.store.plan(Call::AllInBatches, [Fault::WaitAfter(counted)]);
    let (node, gate) = at_the_last_batches(&database).await;
    eventually("they are counted", || counted.waiting() == 1).await;
    database.add_records([b"one more".to_vec()]);
    counted.open();
    gate.open();
    assert_eq!(node.finish_done().await.records, 16);
    database.assert_all_signed(16);
}

#[actix::test]
async fn what_was_counted_before_another_checkout_is_counted_again() {
    let database = Database::new(4, 15);
    let counted = Gate::closed();
    database.store.plan(Call::AllInBatches, [Fault::WaitAfter(counted)]);
    let (node, gate) = at_the_last_batches(&database).await;
    eventually("they are counted", || counted.waiting() == 1).await;
    // Where the cursor has been, so that only a count finds it; the batch that fails is checked out again.
    database.add_stray(b"out of order");
    gate.open();
    node.until("all others are signed", |snapshot| snapshot.signed_records >= 15).await;
    counted.open();
    assert_eq!(node.finish_done().await.records, 16);
    database.assert_all_signed(16);
}

#[actix::test]
async fn what_was_counted_before_a_checkout_that_the_end_saw_is_counted_again() {
    let database = Database::new(4, 15);
    let counted = Gate::closed();
    database.store.plan(Call::AllInBatches, [Fault::WaitAfter(counted)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("they are counted", || counted.waiting() == 1).await;
    node.until("they are signed", |snapshot| snapshot.signed_records == 15).await;
    let questions = database.store.calls(Call::HasWork) + 2;
    eventually("the end waits for the count", || database.store.calls(Call::HasWork) > questions)
        .await;
    database.add_stray(b"out of order");
    database.add_records([b"one more".to_vec()]);
    node.until("it is signed", |snapshot| snapshot.signed_records == 16).await;
    counted.open();
    assert_eq!(node.finish_done().await.records, 17);
    database.assert_all_signed(17);
}

#[actix::test]
async fn a_look_ends_the_run_though_something_was_signed_meanwhile() {
    let database = Database::new(4, 15);
    let looked = Gate::closed();
    database.store.plan(Call::AllInBatches, [Fault::Unavailable]);
    database.store.plan(Call::Remaining, [Fault::WaitAfter(looked)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("it has looked", || looked.waiting() == 1).await;
    database.add_records([b"one more".to_vec()]);
    node.until("it is signed", |snapshot| snapshot.signed_records == 16).await;
    looked.open();
    assert_eq!(node.finish_done().await.records, 15, "as many as there were");
    assert_eq!(database.store.calls(Call::Remaining), 1);
    database.assert_all_signed(16);
}

#[actix::test]
async fn a_count_that_fails_is_made_up_for_at_the_end() {
    let database = Database::new(4, 15);
    database.store.plan(Call::AllInBatches, [Fault::Unavailable]);
    let (node, gate) = at_the_last_batches(&database).await;
    eventually("it has failed", || database.store.calls(Call::AllInBatches) == 1).await;
    gate.open();
    assert_eq!(node.finish_done().await.records, 15);
    database.assert_all_signed(15);
}

#[actix::test]
async fn a_node_that_waits_for_more_spends_a_small_part_of_its_time_on_looks() {
    let database = Database::new(2, 0);
    let gate = Gate::closed();
    database.store.plan(Call::Remaining, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
    eventually("it looks", || gate.waiting() == 1).await;
    node.clock.advance(Duration::from_secs(10));
    gate.open();
    let looks = || database.store.calls(Call::Remaining);
    let ask_for_work_again = async || {
        let questions = database.store.calls(Call::HasWork) + 5;
        eventually("it asks for work", || database.store.calls(Call::HasWork) > questions).await;
    };
    ask_for_work_again().await;
    node.clock.advance(Duration::from_secs(199));
    ask_for_work_again().await;
    assert_eq!(looks(), 1, "a look of 10 s is the last one for 200 s");
    node.clock.advance(Duration::from_secs(2));
    eventually("it looks again", || looks() > 1).await;
    node.stop().await;
}
