//! Where nothing goes wrong.

use super::database::Database;
use super::faulty_store::Call;
use super::node::{Plan, TestNode};
use crate::actors::supervisor::Finished;
use crate::db::Store;
use crate::types::KeyEvent;

/// Signs a database to the end and checks every number that comes with it.
async fn assert_signs(keys: u32, records: u64, plan: Plan) {
    let database = Database::new(keys, records as usize);
    let mut node = TestNode::start(&database, plan);
    let finished = (&mut node.finished).await.unwrap();
    let Finished::Done(remaining) = finished else { panic!("{keys} keys, {plan:?}: {finished:?}") };
    assert!(remaining.is_done());
    assert_eq!((remaining.records, remaining.quarantined), (records, 0));

    let batches = records.div_ceil(u64::from(plan.batch_size));
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.stored_batches, supervisor.signed_records), (batches, records));
    assert_eq!((supervisor.fenced_batches, supervisor.given_up_batches), (0, 0));
    assert_eq!((supervisor.in_flight, supervisor.payload_bytes), (0, 0));
    let key_manager = node.key_manager().await;
    assert_eq!((key_manager.checked_out, key_manager.open_uses), (batches, 0));
    assert_eq!(key_manager.keys, keys as usize);
    let writer = node.writer().await;
    assert_eq!((writer.stored_batches, writer.signatures), (batches, records));
    assert_eq!((writer.waiting, writer.fenced, writer.refused, writer.repeated), (0, 0, 0, 0));
    assert_eq!(writer.groups, database.store.calls(Call::StoreBatches));
    node.stop().await;

    let verdict = database.assert_all_signed(records);
    assert_eq!((verdict.events.checked_out, verdict.events.stored), (batches, batches));
    assert_eq!(database.signing.counts().signatures, records);
}

#[actix::test]
async fn a_node_signs_everything_whatever_the_batch_size_and_the_number_of_keys() {
    for keys in [1, 3] {
        for batch_size in [1, 7, 1000] {
            assert_signs(keys, 40, Plan { batch_size, ..Plan::default() }).await;
        }
    }
}

#[actix::test]
async fn a_node_with_more_signers_than_keys_and_one_with_fewer_sign_everything() {
    assert_signs(2, 60, Plan { signers: 6, max_in_flight: 12, ..Plan::default() }).await;
    assert_signs(12, 60, Plan { signers: 1, max_in_flight: 12, ..Plan::default() }).await;
}

#[actix::test]
async fn a_node_with_one_permit_signs_everything() {
    assert_signs(3, 40, Plan { max_in_flight: 1, ..Plan::default() }).await;
}

#[actix::test]
async fn several_writers_sign_everything() {
    assert_signs(8, 200, Plan { writers: 3, max_in_flight: 8, ..Plan::default() }).await;
}

#[actix::test]
async fn an_empty_database_is_done_at_once_and_unwritten() {
    assert_signs(1, 0, Plan::default()).await;
    assert_signs(0, 0, Plan::default()).await;
}

#[actix::test]
async fn without_a_key_a_node_says_so() {
    let database = Database::new(0, 10);
    match TestNode::start(&database, Plan::default()).finish().await {
        Finished::NoActiveKey(remaining) => assert_eq!(remaining.unsigned, 10),
        other => panic!("{other:?}"),
    }
    assert_eq!(database.judge_unfinished().signed, 0);
}

#[actix::test]
async fn a_node_whose_keys_are_disabled_under_it_finishes_what_it_has_and_says_so() {
    let database = Database::new(2, 100);
    let node = TestNode::start(&database, Plan { max_in_flight: 2, ..Plan::default() });
    node.until("some batches are stored", |snapshot| snapshot.stored_batches >= 3).await;
    node.pause().await;
    for key in database.store.keys(database.ring).unwrap() {
        database.store.change_key(&key.kid, KeyEvent::Disabled, "test", None).unwrap();
    }
    node.resume().await;
    let finished = node.finish().await;
    let verdict = database.judge_unfinished();
    match finished {
        Finished::NoActiveKey(remaining) => {
            assert_eq!(remaining.unsigned, 100 - verdict.signed);
            assert_eq!(remaining.unfinished_batches, 0);
        }
        other => panic!("{other:?}"),
    }
    assert!(verdict.signed >= 15 && verdict.signed < 100, "{verdict:?}");
    assert_eq!(verdict.open_uses, 0);
}

#[actix::test]
async fn a_node_that_waits_for_more_signs_what_it_is_nudged_about() {
    let database = Database::new(2, 0);
    let node = TestNode::start(&database, Plan { until_done: false, ..Plan::default() });
    for round in 1..=3 {
        database.add_records((0..7).map(|n| vec![n]));
        node.nudge().await;
        node.until("signed", |snapshot| snapshot.signed_records == round * 7).await;
    }
    assert!(node.supervisor.connected());
    node.stop().await;
    database.assert_all_signed(21);
}
