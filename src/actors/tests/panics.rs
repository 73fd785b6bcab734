//! Where code panics: the thread and the node live on, and the reason is kept.

use std::time::Duration;

use super::database::{Database, MAX_ATTEMPTS};
use super::faulty_store::{Call, Fault, Gate};
use super::node::{Plan, TestNode, eventually, for_a_while};
use super::scripted_signer::SignFault;
use crate::actors::supervisor::Finished;
use crate::db::Store;
use crate::types::RecordId;

/// One batch at a time, so that a plan of faults meets the batches in order.
fn one_by_one() -> Plan {
    Plan { max_in_flight: 1, ..Plan::default() }
}

/// Signs six batches, of which one fails once for `reason`.
async fn assert_one_batch_is_retried(database: &Database, plan: Plan, reason: &str) {
    let mut node = TestNode::start(database, plan);
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.given_up_batches, supervisor.stored_batches), (1, 6));
    assert_eq!(supervisor.signed_records, 30);
    node.stop().await;
    let verdict = database.assert_all_signed(30);
    assert_eq!((verdict.events.abandoned, verdict.events.checked_out), (1, 7));
    let failed: Vec<_> = database.store.batches(None, 100).unwrap();
    let failed: Vec<_> = failed.into_iter().filter(|batch| batch.attempts > 0).collect();
    assert_eq!((failed.len(), failed[0].attempts), (1, 1));
    assert!(failed[0].failure.as_ref().unwrap().contains(reason), "{failed:?}");
}

#[actix::test]
async fn a_batch_whose_signer_panicked_once_is_signed_by_the_next_try() {
    let database = Database::new(3, 30);
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 3).then_some(SignFault::Panic("a cosmic ray"))
    });
    // With one thread: it would be missed if it had died.
    let plan = Plan { signers: 1, ..Plan::default() };
    assert_one_batch_is_retried(&database, plan, "the signer panicked: a cosmic ray").await;
}

#[actix::test]
async fn a_batch_whose_loader_panicked_once_is_signed_by_the_next_try() {
    let database = Database::new(3, 30);
    // The first keeps batches from being loaded together, and costs nothing else.
    let faults = [Fault::Panic("another bug"), Fault::Panic("a loader's bug")];
    database.store.plan(Call::LoadBatch, faults);
    let plan = Plan::default();
    assert_one_batch_is_retried(&database, plan, "the loader panicked: a loader's bug").await;
}

#[actix::test]
async fn a_batch_whose_store_worker_panicked_is_signed_by_the_next_try() {
    let database = Database::new(3, 30);
    database.store.plan(Call::StoreBatches, [Fault::Panic("a writer's bug")]);
    let reason = "the writer panicked: a writer's bug";
    assert_one_batch_is_retried(&database, one_by_one(), reason).await;
}

#[actix::test]
async fn a_batch_that_always_makes_its_signer_panic_is_quarantined_and_holds_nobody_up() {
    let database = Database::new(3, 60);
    database.signing.on_slice(|records| {
        let poisoned = records.iter().any(|record| record.payload == b"record 17");
        poisoned.then_some(SignFault::Panic("poison"))
    });
    let remaining = TestNode::start(&database, Plan::default()).finish_done().await;
    assert_eq!((remaining.quarantined, remaining.unsigned), (5, 0));
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (55, 1, 0));
    assert_eq!(verdict.quarantined[0].attempts, MAX_ATTEMPTS);
    let reason = verdict.quarantined[0].failure.as_deref();
    assert_eq!(reason, Some("the signer panicked: poison"));
    assert_eq!(verdict.events.abandoned, u64::from(MAX_ATTEMPTS));
}

#[actix::test]
async fn a_batch_that_always_makes_its_loader_panic_is_quarantined_and_holds_nobody_up() {
    let database = Database::new(3, 60);
    database.store.fail_loads(|range| {
        let poisoned = range.low.id <= RecordId(17) && RecordId(17) <= range.high.id;
        poisoned.then_some(Fault::Panic("unreadable"))
    });
    let remaining = TestNode::start(&database, Plan::default()).finish_done().await;
    assert_eq!(remaining.quarantined, 5);
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (55, 1, 0));
    let reason = verdict.quarantined[0].failure.as_deref();
    assert_eq!(reason, Some("the database refused: the loader panicked: unreadable"));
}

#[actix::test]
async fn a_store_that_panics_after_its_commit_counts_as_the_store_that_it_was() {
    let database = Database::new(3, 30);
    database.store.plan(Call::StoreBatches, [Fault::PanicAfter("too late")]);
    let mut node = TestNode::start(&database, one_by_one());
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.stored_batches, supervisor.signed_records), (6, 30));
    assert_eq!(supervisor.given_up_batches, 0);
    node.stop().await;
    assert_eq!(database.assert_all_signed(30).events.abandoned, 0);
}

#[actix::test]
async fn a_checkout_that_panics_ends_the_run_with_its_reason() {
    let database = Database::new(3, 30);
    database.store.plan(Call::CheckOut, [Fault::Panic("a bug in the checkout")]);
    match TestNode::start(&database, Plan::default()).finish().await {
        Finished::Failed(error) => {
            assert!(error.to_string().contains("a bug in the checkout"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(database.judge_unfinished().open_uses, 0);
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn what_a_checkout_claimed_before_it_panicked_is_given_back() {
    let database = Database::new(3, 30);
    database.store.plan(Call::CheckOut, [Fault::PanicAfter("a bug behind the checkout")]);
    let plan = Plan { lease: Duration::from_millis(90), ..Plan::default() };
    let mut node = TestNode::start(&database, plan);
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Failed(_)), "{finished:?}");
    eventually("given back", || database.store.open_uses().unwrap().is_empty()).await;
    node.stop().await;
    assert_eq!(database.judge_unfinished().events.abandoned, 3);
    TestNode::start(&database, Plan::default()).finish_done().await;
    database.assert_all_signed(30);
}

#[actix::test]
async fn a_use_whose_giving_up_panicked_ends_with_its_lease() {
    let database = Database::with_lease(2, 30, Duration::from_millis(300));
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 1).then_some(SignFault::Panic("first"))
    });
    database.store.plan(Call::GiveUp, [Fault::Panic("second")]);
    let plan = Plan { lease: Duration::from_millis(150), ..Plan::default() };
    TestNode::start(&database, plan).finish_done().await;
    assert!(database.store.plan_is_done());
    let verdict = database.assert_all_signed(30);
    assert_eq!((verdict.events.reclaimed, verdict.events.abandoned), (1, 0));
}

#[actix::test]
async fn housekeeping_goes_on_after_a_panic_in_it() {
    let database = Database::new(2, 10);
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    database.store.plan(Call::Renew, [Fault::Panic("renew")]);
    database.store.plan(Call::Reclaim, [Fault::Panic("reclaim")]);
    let plan = Plan { lease: Duration::from_millis(60), ..Plan::default() };
    let node = TestNode::start(&database, plan);
    node.until("two batches wait", |snapshot| snapshot.in_flight == 2).await;
    eventually("both have panicked", || database.store.plan_is_done()).await;
    let reclaims = database.store.calls(Call::Reclaim);
    eventually("more rounds", || database.store.calls(Call::Reclaim) >= reclaims + 2).await;
    // A loop of its own, which on a busy machine may be rounds behind that of the reclaims.
    for_a_while("both are renewed", async || (node.key_manager().await.renewed >= 2).then_some(()))
        .await;
    gate.open();
    node.finish_done().await;
    database.assert_all_signed(10);
}
