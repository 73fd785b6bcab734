//! Where the database is slow, gone or forgetful, or an actor is.

use std::time::{Duration, Instant};

use super::database::Database;
use super::faulty_store::{Call, Fault, Gate};
use super::node::{Plan, TestNode, eventually, let_pass};
use super::scripted_signer::SignFault;
use crate::actors::messages::{CheckOut, Stop};
use crate::actors::supervisor::Finished;
use crate::db::Store;

fn panic_at_the_first_slice(database: &Database) {
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 1).then_some(SignFault::Panic("unlucky"))
    });
}

#[actix::test]
async fn a_node_whose_checkout_hangs_still_answers_and_goes_on_after_it() {
    let database = Database::new(3, 30);
    let gate = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    assert_eq!(node.supervisor().await.in_flight, 0);
    assert_eq!(node.key_manager().await.keys, 3);
    assert_eq!(node.writer().await.waiting, 0);
    gate.open();
    node.finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn a_key_manager_stops_though_its_database_hangs() {
    let database = Database::new(3, 30);
    let gate = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    node.team.key_manager.send(Stop).await.unwrap();
    eventually("it has stopped", || !node.team.key_manager.connected()).await;
    assert_eq!(gate.waiting(), 1);
    gate.open();
    match node.finish().await {
        Finished::Failed(error) => assert!(error.to_string().contains("key manager"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn database_work_of_the_key_manager_is_done_one_piece_at_a_time() {
    let database = Database::new(3, 60);
    let (gate, sign) = (Gate::closed(), Gate::closed());
    database.signing.on_slice(move |_| Some(SignFault::Wait(sign)));
    database.store.plan(Call::CheckOut, [Fault::WaitAfter(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    let asked = actix::spawn(node.team.key_manager.send(CheckOut { max_batches: 1 }));
    let_pass(Duration::from_millis(50)).await;
    assert_eq!(database.store.calls(Call::CheckOut), 1);
    gate.open();
    // The node's checkout came first and took every key.
    assert!(asked.await.unwrap().unwrap().unwrap().checkouts.is_empty());
    assert!(database.store.calls(Call::CheckOut) >= 2);
    sign.open();
    node.finish_done().await;
    database.assert_all_signed(60);
}

#[actix::test]
async fn while_a_store_hangs_signers_go_on_up_to_the_permits_and_no_further() {
    let database = Database::new(8, 100);
    let gate = Gate::closed();
    database.store.plan(Call::StoreBatches, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("four batches are signed", || database.signing.counts().slices_signed == 4).await;
    let_pass(Duration::from_millis(50)).await;
    let snapshot = node.supervisor().await;
    assert_eq!((snapshot.in_flight, snapshot.stored_batches), (4, 0));
    assert_eq!(snapshot.payload_bytes, 0, "what is signed needs no payload any more");
    assert_eq!(node.writer().await.waiting, 3);
    assert_eq!(node.key_manager().await.open_uses, 4);
    assert_eq!(database.store.open_uses().unwrap().len(), 4);
    assert_eq!(database.signing.counts().slices_begun, 4);
    gate.open();
    node.finish_done().await;
    database.assert_all_signed(100);
}

#[actix::test]
async fn a_database_that_is_gone_for_a_while_costs_time_only() {
    let database = Database::new(3, 60);
    for (call, times) in [
        (Call::CheckOut, 3),
        (Call::LoadBatch, 2),
        (Call::StoreBatches, 3),
        (Call::Progress, 2),
        (Call::HasWork, 1),
    ] {
        database.store.plan(call, vec![Fault::Unavailable; times]);
    }
    let mut node = TestNode::start(&database, Plan::default());
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    assert!(database.store.plan_is_done());
    assert_eq!(node.writer().await.repeated, 3);
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.stored_batches, supervisor.given_up_batches), (12, 0));
    node.stop().await;
    assert_eq!(database.assert_all_signed(60).events.checked_out, 12);
}

#[actix::test]
async fn giving_a_batch_up_is_repeated_until_the_database_is_back() {
    let database = Database::new(1, 30);
    panic_at_the_first_slice(&database);
    database.store.plan(Call::GiveUp, vec![Fault::Unavailable; 2]);
    TestNode::start(&database, Plan::default()).finish_done().await;
    assert!(database.store.plan_is_done());
    let verdict = database.assert_all_signed(30);
    assert_eq!((verdict.events.abandoned, verdict.events.reclaimed), (1, 0));
}

#[actix::test]
async fn a_giving_up_whose_reply_is_lost_counts_once() {
    let database = Database::new(1, 30);
    panic_at_the_first_slice(&database);
    database.store.plan(Call::GiveUp, [Fault::LostReply]);
    TestNode::start(&database, Plan::default()).finish_done().await;
    assert_eq!(database.assert_all_signed(30).events.abandoned, 1);
    let batches = database.store.batches(None, 100).unwrap();
    assert_eq!(batches.iter().map(|batch| batch.attempts).sum::<u32>(), 1);
}

#[actix::test]
async fn a_store_whose_reply_is_lost_counts_once() {
    let database = Database::new(3, 60);
    database.store.plan(Call::StoreBatches, vec![Fault::LostReply; 2]);
    let mut node = TestNode::start(&database, Plan::default());
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.stored_batches, supervisor.signed_records), (12, 60));
    assert_eq!((supervisor.fenced_batches, supervisor.given_up_batches), (0, 0));
    let writer = node.writer().await;
    assert_eq!((writer.stored_batches, writer.signatures, writer.repeated), (12, 60, 2));
    assert_eq!(writer.groups, database.store.calls(Call::StoreBatches) - writer.repeated);
    node.stop().await;
    assert_eq!(database.assert_all_signed(60).events.checked_out, 12);
}

#[actix::test]
async fn a_checkout_whose_reply_is_lost_is_given_back_and_blames_no_batch() {
    // With one key and a lease of a minute: nothing goes on while the lost use is open.
    let database = Database::new(1, 30);
    database.store.plan(Call::CheckOut, [Fault::LostReply]);
    TestNode::start(&database, Plan::default()).finish_done().await;
    let verdict = database.assert_all_signed(30);
    assert_eq!((verdict.events.abandoned, verdict.events.checked_out), (1, 7));
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
}

#[actix::test]
async fn the_uses_of_another_node_are_not_taken_for_lost_ones() {
    let database = Database::new(2, 30);
    let other = database.other_node();
    let held = other.check_out(&super::flow::one_batch(&database)).unwrap().batches[0].key_use;
    database.store.plan(Call::CheckOut, [Fault::LostReply]);
    let node = TestNode::start(&database, Plan::default());
    node.until("the rest is stored", |snapshot| snapshot.stored_batches == 5).await;
    let open = database.store.open_uses().unwrap();
    assert_eq!(open.iter().map(|open| open.key_use).collect::<Vec<_>>(), [held]);
    super::flow::give_back(&other, held);
    node.finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn an_error_that_no_repetition_mends_ends_the_run_with_its_reason() {
    for call in [Call::CheckOut, Call::Progress] {
        let database = Database::new(3, 30);
        database.store.plan(call, [Fault::Broken("the disk is made of cheese")]);
        match TestNode::start(&database, Plan::default()).finish().await {
            Finished::Failed(error) => {
                assert!(error.to_string().contains("made of cheese"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(database.judge_unfinished().open_uses, 0);
    }
}

#[actix::test]
async fn a_failed_node_finishes_what_is_in_flight_before_it_says_so() {
    let database = Database::new(3, 100);
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let mut node = TestNode::start(&database, Plan::default());
    node.until("three batches wait", |snapshot| snapshot.in_flight == 3).await;
    database.store.plan(Call::CheckOut, [Fault::Broken("the disk is made of cheese")]);
    node.nudge().await;
    eventually("it has failed", || database.store.plan_is_done()).await;
    let_pass(Duration::from_millis(20)).await;
    assert!(node.finished.try_recv().is_err());
    gate.open();
    assert!(matches!(node.finish().await, Finished::Failed(_)));
    let verdict = database.judge_unfinished();
    assert_eq!((verdict.signed, verdict.open_uses), (15, 0));
}

#[actix::test]
async fn a_node_without_its_key_manager_says_so() {
    let database = Database::new(3, 30);
    let node = TestNode::start(&database, Plan::default());
    node.pause().await;
    node.until("nothing is in flight", |snapshot| snapshot.in_flight == 0).await;
    node.team.key_manager.send(Stop).await.unwrap();
    eventually("it has stopped", || !node.team.key_manager.connected()).await;
    node.resume().await;
    match node.finish().await {
        Finished::Failed(error) => {
            assert!(error.to_string().contains("the key manager is gone"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn a_node_without_its_writer_gives_its_batches_back_and_says_so() {
    let database = Database::new(3, 30);
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let node = TestNode::start(&database, Plan::default());
    node.until("three batches wait", |snapshot| snapshot.in_flight == 3).await;
    node.team.writer.send(Stop).await.unwrap();
    eventually("it has stopped", || !node.team.writer.connected()).await;
    gate.open();
    match node.finish().await {
        Finished::Failed(error) => {
            assert!(error.to_string().contains("the writer is gone"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(database.store.open_uses().unwrap().is_empty());
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn a_writer_that_stops_with_batches_in_hand_blames_none_and_doubles_nothing() {
    let database = Database::new(8, 100);
    let gate = Gate::closed();
    database.store.plan(Call::StoreBatches, [Fault::Wait(gate)]);
    let node = TestNode::start(&database, Plan::default());
    eventually("four batches are signed", || database.signing.counts().slices_signed == 4).await;
    eventually("a store hangs", || gate.waiting() == 1).await;
    node.team.writer.send(Stop).await.unwrap();
    node.until("all are given up", |snapshot| snapshot.given_up_batches == 4).await;
    // The store that hung comes too late, and finds its use ended.
    gate.open();
    assert!(matches!(node.finish().await, Finished::Failed(_)));
    assert_eq!(database.judge_unfinished().signed, 0);
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(100);
}

#[actix::test]
async fn a_signer_that_never_answers_costs_its_batch_a_try_and_nobody_else_anything() {
    let database = Database::new(3, 60);
    let gate = Gate::closed();
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 1).then_some(SignFault::Wait(gate))
    });
    let watchdog = Duration::from_millis(200);
    let mut node = TestNode::start(&database, Plan { watchdog, ..Plan::default() });
    let begin = Instant::now();
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    assert!(begin.elapsed() >= watchdog);
    assert_eq!(gate.waiting(), 1);
    let supervisor = node.supervisor().await;
    assert_eq!(supervisor.stored_batches, 12);
    assert!(supervisor.given_up_batches >= 1, "{supervisor:?}");
    gate.open();
    node.stop().await;
    database.assert_all_signed(60);
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
}
