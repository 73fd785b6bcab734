//! Group commit.

use std::sync::OnceLock;

use super::database::{Database, MAX_ATTEMPTS};
use super::faulty_store::{Call, Fault, Gate};
use super::node::{Plan, TestNode, eventually};
use super::scripted_signer::SignFault;
use crate::actors::supervisor::Finished;
use crate::db::Store;

/// A node whose first store waits at a gate, with three more batches behind it.
async fn with_three_waiting(database: &Database) -> (TestNode<'_>, &'static Gate) {
    let gate = Gate::closed();
    database.store.plan(Call::StoreBatches, [Fault::Wait(gate)]);
    let node = TestNode::start(database, Plan::default());
    eventually("a store hangs", || gate.waiting() == 1).await;
    while node.writer().await.waiting < 3 {
        tokio::task::yield_now().await;
    }
    (node, gate)
}

#[actix::test]
async fn what_waits_for_a_worker_goes_into_one_transaction() {
    let database = Database::new(8, 100);
    let (mut node, gate) = with_three_waiting(&database).await;
    gate.open();
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let groups = database.store.groups();
    assert_eq!(groups[..2], [1, 3]);
    let writer = node.writer().await;
    assert_eq!((writer.groups, writer.stored_batches), (groups.len() as u64, 20));
    node.stop().await;
    database.assert_all_signed(100);
}

#[actix::test]
async fn a_batch_does_not_wait_for_ever_for_those_that_are_on_their_way() {
    let database = Database::new(8, 50);
    let gate = Gate::closed();
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (2..=4).contains(&slices).then_some(SignFault::Wait(gate))
    });
    let node = TestNode::start(&database, Plan { signers: 4, ..Plan::default() });
    node.until("all others are stored", |snapshot| snapshot.stored_batches == 7).await;
    assert_eq!((gate.waiting(), node.team.on_the_way.batches()), (3, 3));
    gate.open();
    assert!(matches!(node.finish().await, Finished::Done(_)));
    database.assert_all_signed(50);
}

#[actix::test]
async fn a_guilty_batch_in_a_group_is_refused_alone() {
    let database = Database::new(8, 100);
    let guilty = OnceLock::new();
    database.store.fail_stores(move |batches| {
        if batches.len() > 1 {
            // The second of the first group.
            guilty.get_or_init(|| batches[1].key_use.batch);
        }
        let refused = batches.iter().any(|batch| guilty.get() == Some(&batch.key_use.batch));
        refused.then_some(Fault::Broken("it does not like this one"))
    });
    let (mut node, gate) = with_three_waiting(&database).await;
    gate.open();
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    // The group of three failed, and was repeated one by one.
    assert_eq!(database.store.groups()[1..5], [3, 1, 1, 1]);
    let writer = node.writer().await;
    assert_eq!((writer.refused, writer.stored_batches), (u64::from(MAX_ATTEMPTS), 19));
    assert!(writer.groups <= 19, "{writer:?}");
    node.stop().await;
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (95, 1, 0));
    let reason = verdict.quarantined[0].failure.as_deref().unwrap();
    assert!(reason.contains("it does not like this one"), "{reason}");
    let batches = database.store.batches(None, 100).unwrap();
    assert_eq!(batches.iter().filter(|batch| batch.attempts > 0).count(), 1);
}

#[actix::test]
async fn a_group_whose_store_panics_is_repeated_one_by_one_and_nobody_is_blamed() {
    let database = Database::new(8, 100);
    let (node, gate) = with_three_waiting(&database).await;
    database.store.plan(Call::StoreBatches, [Fault::Panic("in the group")]);
    gate.open();
    node.finish_done().await;
    assert_eq!(database.store.groups()[..5], [1, 3, 1, 1, 1]);
    assert_eq!(database.assert_all_signed(100).events.abandoned, 0);
}
