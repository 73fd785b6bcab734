//! Where a lease runs out, is renewed, or is taken away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::database::{Database, another_kek_first};
use super::faulty_store::{Call, Fault, Gate};
use super::node::{Plan, TestNode, eventually, let_pass, most_looks};
use super::scripted_signer::SignFault;
use crate::actors::supervisor::Finished;
use crate::db::{ReclaimScope, Store};

/// A node with both of its batches at the gate before their first signature.
async fn at_the_gate(database: &Database, plan: Plan) -> (TestNode<'_>, &'static Gate) {
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let node = TestNode::start(database, plan);
    eventually("two batches wait at the gate", || gate.waiting() == 2).await;
    (node, gate)
}

/// Moves the clock on, in steps shorter than a lease, and waits for renewals after each.
async fn outlive_three_leases(node: &TestNode<'_>, database: &Database, lease: Duration) {
    for _ in 0..6 {
        node.clock.advance(lease / 2);
        // The first of them may have been sent before the clock moved.
        let renewals = database.store.calls(Call::Renew);
        eventually("renewed", || database.store.calls(Call::Renew) >= renewals + 3).await;
    }
}

#[actix::test]
async fn past_its_deadline_no_signature_starts_and_the_batch_is_given_up_without_blame() {
    let database = Database::new(2, 20);
    let plan = Plan::default();
    let (mut node, gate) = at_the_gate(&database, plan).await;
    node.clock.advance(plan.lease);
    gate.open();
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    assert_eq!(node.supervisor().await.given_up_batches, 2);
    node.stop().await;
    let verdict = database.assert_all_signed(20);
    assert_eq!(verdict.events.abandoned, 2);
    // The two that were late computed none.
    assert_eq!(database.signing.counts().signatures, 20);
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
}

#[actix::test]
async fn a_node_that_is_too_slow_for_every_lease_does_not_spin() {
    let database = Database::new(1, 10);
    let plan = Plan { until_done: false, ..Plan::default() };
    let begin = Instant::now();
    let node = TestNode::start(&database, plan);
    let clock = Arc::downgrade(&node.clock);
    database.signing.on_slice(move |_| {
        clock.upgrade().unwrap().advance(plan.lease);
        None
    });
    let_pass(Duration::from_millis(400)).await;
    eventually("some tries", || database.store.calls(Call::GiveUp) >= 3).await;
    let tries = database.store.calls(Call::GiveUp);
    assert!(tries <= most_looks(begin.elapsed()), "{tries} tries");
    database.signing.on_slice(|_| None);
    node.until("signed", |snapshot| snapshot.signed_records == 10).await;
    node.stop().await;
    database.assert_all_signed(10);
}

#[actix::test]
async fn a_checkout_that_took_longer_than_its_lease_starts_no_signature() {
    let database = Database::new(2, 20);
    let gate = Gate::closed();
    database.store.plan(Call::CheckOut, [Fault::Wait(gate)]);
    let plan = Plan::default();
    let node = TestNode::start(&database, plan);
    eventually("the checkout hangs", || gate.waiting() == 1).await;
    node.clock.advance(plan.lease);
    gate.open();
    node.finish_done().await;
    assert_eq!(database.assert_all_signed(20).events.abandoned, 2);
    assert_eq!(database.signing.counts().signatures, 20);
}

#[actix::test]
async fn renewals_keep_a_slow_batch_alive_beyond_its_lease() {
    let database = Database::new(2, 20);
    let lease = Duration::from_millis(60);
    let (node, gate) = at_the_gate(&database, Plan { lease, ..Plan::default() }).await;
    outlive_three_leases(&node, &database, lease).await;
    gate.open();
    node.finish_done().await;
    let verdict = database.assert_all_signed(20);
    assert_eq!((verdict.events.abandoned, verdict.events.checked_out), (0, 4));
}

#[actix::test]
async fn what_ran_out_while_the_database_was_gone_is_renewed_and_not_reclaimed() {
    let lease = Duration::from_millis(200);
    let database = Database::with_lease(2, 20, lease);
    let (node, gate) = at_the_gate(&database, Plan { lease, ..Plan::default() }).await;
    database.store.plan(Call::Reclaim, [Fault::Unavailable]);
    eventually("the database is gone", || database.store.plan_is_done()).await;
    // Two rounds in a third of the lease ask for one.
    database.store.plan(Call::Renew, vec![Fault::Unavailable; 20]);
    eventually("the database is back", || database.store.plan_is_done()).await;
    let (renewals, reclaims) =
        (database.store.calls(Call::Renew), database.store.calls(Call::Reclaim));
    eventually("renewed", || database.store.calls(Call::Renew) >= renewals + 3).await;
    assert_eq!(database.store.calls(Call::Reclaim), reclaims, "others had no time to renew");
    node.clock.advance(lease / 2);
    eventually("reclaimed again", || database.store.calls(Call::Reclaim) > reclaims).await;
    gate.open();
    node.finish_done().await;
    let verdict = database.assert_all_signed(20);
    assert_eq!((verdict.events.reclaimed, verdict.events.abandoned), (0, 0));
}

#[actix::test]
async fn renewals_go_on_though_reclaiming_and_reading_the_keys_fail() {
    let database = Database::new(2, 20);
    let lease = Duration::from_millis(60);
    let (node, gate) = at_the_gate(&database, Plan { lease, ..Plan::default() }).await;
    database.store.plan(Call::Reclaim, vec![Fault::Unavailable; 1000]);
    database.add_keys_sealed_by(&another_kek_first(), 1, |_| {});
    outlive_three_leases(&node, &database, lease).await;
    gate.open();
    node.finish_done().await;
    let verdict = database.assert_all_signed(20);
    let batches = database.store.batches(None, 100).unwrap();
    assert!(batches.iter().all(|batch| batch.attempts == 0), "{batches:?}");
    assert_eq!(database.signing.counts().signatures, 20);
    assert_eq!(verdict.events.stored, 4);
}

#[actix::test]
async fn housekeeping_that_was_held_up_is_not_made_up_for_in_a_burst() {
    let database = Database::new(2, 20);
    let slow = Gate::closed();
    database.store.plan(Call::Reclaim, [Fault::Wait(slow)]);
    let lease = Duration::from_millis(30);
    let (node, gate) = at_the_gate(&database, Plan { lease, ..Plan::default() }).await;
    eventually("housekeeping hangs", || slow.waiting() == 1).await;
    let_pass(Duration::from_millis(400)).await;
    assert_eq!(database.store.calls(Call::Reclaim), 1);
    let begin = Instant::now();
    slow.open();
    let_pass(Duration::from_millis(100)).await;
    eventually("more rounds", || database.store.calls(Call::Reclaim) >= 3).await;
    let rounds = database.store.calls(Call::Reclaim);
    let most = 3 + begin.elapsed().as_millis() as u64 / 10;
    assert!(rounds <= most, "{rounds} rounds");
    gate.open();
    node.finish_done().await;
    database.assert_all_signed(20);
}

#[actix::test]
async fn a_use_reclaimed_while_it_is_signed_is_fenced_and_nothing_is_doubled() {
    let database = Database::new(2, 20);
    let (mut node, gate) = at_the_gate(&database, Plan::default()).await;
    let other = database.other_node();
    let reclaimed = other.reclaim(database.ring, ReclaimScope::All).unwrap();
    assert_eq!(reclaimed.uses.len(), 2);
    let again = other.check_out(&super::flow::one_batch(&database)).unwrap().batches;
    gate.open();
    node.until("both are fenced", |snapshot| snapshot.fenced_batches == 2).await;
    super::flow::give_back(&other, again[0].key_use);
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.fenced_batches, supervisor.stored_batches), (2, 4));
    assert_eq!((supervisor.signed_records, supervisor.given_up_batches), (20, 0));
    let writer = node.writer().await;
    assert_eq!((writer.fenced, writer.signatures), (2, 20));
    assert_eq!(node.key_manager().await.open_uses, 0);
    node.stop().await;
    let verdict = database.assert_all_signed(20);
    assert_eq!((verdict.events.reclaimed, verdict.events.abandoned), (2, 1));
    // The two that were fenced were signed in vain.
    assert_eq!(database.signing.counts().signatures, 30);
}

#[actix::test]
async fn an_expired_use_of_a_dead_node_is_reclaimed_and_its_batch_signed() {
    let database = Database::with_lease(1, 10, Duration::from_millis(200));
    // A node that checks out and is never heard of again.
    let dead = database.dead_node(Duration::from_millis(200));
    let left = dead.check_out(&super::flow::one_batch(&database)).unwrap().batches;
    assert_eq!(left.len(), 1);
    let lease = Duration::from_millis(60);
    let mut node = TestNode::start(&database, Plan { lease, ..Plan::default() });
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    assert_eq!(node.key_manager().await.reclaimed, 1);
    node.stop().await;
    assert_eq!(database.assert_all_signed(10).events.reclaimed, 1);
}
