//! Signatures that a fault of memory or processor has spoilt: with `verify_before_store` none is stored.

use std::collections::HashSet;

use super::database::{Database, MAX_ATTEMPTS};
use super::node::{Plan, TestNode};
use super::scripted_signer::SignFault;
use crate::actors::supervisor::{FaultyMachine, Finished};
use crate::db::Store;
use crate::types::RecordId;

fn verifying() -> Plan {
    Plan { verify: true, max_in_flight: 1, ..Plan::default() }
}

#[actix::test]
async fn a_spoilt_signature_is_never_stored_and_its_batch_is_signed_by_the_next_try() {
    let database = Database::new(3, 30);
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 3).then_some(SignFault::FlipBit)
    });
    let mut node = TestNode::start(&database, verifying());
    let finished = (&mut node.finished).await.unwrap();
    assert!(matches!(finished, Finished::Done(_)), "{finished:?}");
    let supervisor = node.supervisor().await;
    assert_eq!((supervisor.faulty_batches, supervisor.faulty_signatures), (1, 1));
    assert_eq!((supervisor.given_up_batches, supervisor.signed_records), (1, 30));
    node.stop().await;
    // Every signature verifies, and the use that was given up left none.
    assert_eq!(database.assert_all_signed(30).events.abandoned, 1);
    let batches = database.store.batches(None, 100).unwrap();
    let failed: Vec<_> = batches.iter().filter(|batch| batch.attempts > 0).collect();
    assert_eq!((failed.len(), failed[0].attempts), (1, 1));
    let reason = failed[0].failure.as_ref().unwrap();
    let expected = "1 of its signatures did not verify, first that of record 15: ";
    assert!(reason.starts_with(expected), "{reason}");
}

#[actix::test]
async fn without_verification_a_spoilt_signature_is_stored() {
    let database = Database::new(3, 30);
    let mut slices = 0;
    database.signing.on_slice(move |_| {
        slices += 1;
        (slices == 3).then_some(SignFault::FlipBit)
    });
    TestNode::start(&database, Plan { verify: false, ..verifying() }).finish_done().await;
    assert_eq!(database.spoilt(), [RecordId(15)]);
}

#[actix::test]
async fn a_batch_that_is_always_spoilt_ends_in_quarantine_and_holds_nobody_up() {
    let database = Database::new(3, 60);
    // On as many machines as there are attempts, each of which stops before it spoils more.
    database.signing.on_slice(|records| {
        let spoilt = records.iter().any(|record| record.payload == b"record 17");
        spoilt.then_some(SignFault::FlipBit)
    });
    match TestNode::start(&database, verifying()).finish().await {
        Finished::Faulty(error) => assert_eq!(error, FaultyMachine { batches: 3 }),
        other => panic!("{other:?}"),
    }
    TestNode::start(&database, verifying()).finish_done().await;
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (55, 1, 0));
    assert_eq!(verdict.quarantined[0].attempts, MAX_ATTEMPTS);
    assert_eq!(verdict.events.abandoned, u64::from(MAX_ATTEMPTS));
}

#[actix::test]
async fn a_node_that_spoils_three_batches_stops_and_gives_its_keys_back() {
    let database = Database::new(8, 200);
    let mut seen = HashSet::new();
    // Each batch once, so that none is spoilt as often as makes it a case for quarantine.
    database
        .signing
        .on_slice(move |records| seen.insert(records[0].position.id).then_some(SignFault::FlipBit));
    let plan = Plan { verify: true, ..Plan::default() };
    match TestNode::start(&database, plan).finish().await {
        Finished::Faulty(error) => assert_eq!(error, FaultyMachine { batches: 3 }),
        other => panic!("{other:?}"),
    }
    let verdict = database.judge_unfinished();
    assert!(verdict.quarantined.is_empty(), "{:?}", verdict.quarantined);
    assert_eq!(verdict.open_uses, 0);
    assert!(verdict.events.abandoned >= 3, "{:?}", verdict.events);
    assert!(verdict.signed < 200, "{verdict:?}");

    // A sound machine signs the rest.
    database.signing.on_slice(|_| None);
    TestNode::start(&database, verifying()).finish_done().await;
    database.assert_all_signed(200);
}
