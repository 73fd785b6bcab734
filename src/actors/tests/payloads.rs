//! Payloads in slices, the bound on their bytes, and ranges that do not hold what they should.

use super::database::Database;
use super::faulty_store::{Call, Gate};
use super::node::{Plan, TestNode, eventually};
use super::scripted_signer::SignFault;
use crate::db::Store;
use crate::types::RecordId;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn with_payloads(keys: u32, records: usize, bytes: usize) -> Database {
    let database = Database::new(keys, 0);
    database.add_records((0..records).map(|n| vec![n as u8; bytes]));
    database
}

#[actix::test]
async fn batches_are_loaded_and_signed_in_slices_within_the_bound_on_bytes() {
    let database = with_payloads(10, 80, 16 * KIB);
    let plan = Plan {
        batch_size: 10,
        signers: 4,
        max_in_flight: 8,
        max_in_flight_bytes: 128 << 10,
        slice_bytes: 64 * KIB,
        ..Plan::default()
    };
    TestNode::start(&database, plan).finish_done().await;
    let verdict = database.assert_all_signed(80);
    assert_eq!(verdict.events.checked_out, 8);
    assert_eq!(database.store.most_loaded(), 4);
    let counts = database.signing.counts();
    assert_eq!(counts.slices_signed, 8 * 3);
    assert!(counts.most_bytes <= 128 * KIB, "{counts:?}");
}

#[actix::test]
async fn small_batches_are_loaded_together_and_each_gets_its_own_records() {
    let database = with_payloads(10, 100, 16);
    let plan = Plan { batch_size: 1, max_in_flight: 10, ..Plan::default() };
    TestNode::start(&database, plan).finish_done().await;
    let verdict = database.assert_all_signed(100);
    assert_eq!(verdict.events.checked_out, 100);
    let loads = database.store.calls(Call::LoadBatch);
    assert!((10..60).contains(&loads), "{loads}");
    assert!(database.store.most_loaded() > 1);
}

#[actix::test]
async fn what_was_loaded_together_counts_until_all_of_it_is_signed() {
    let database = with_payloads(6, 6, 10 * KIB);
    let gate = Gate::closed();
    database.signing.on_slice(|_| Some(SignFault::Wait(gate)));
    let plan = Plan { batch_size: 1, max_in_flight: 6, ..Plan::default() };
    let node = TestNode::start(&database, plan);
    eventually("both signers have a record", || gate.waiting() == 2).await;
    assert_eq!(database.store.calls(Call::LoadBatch), 1);
    assert_eq!(node.supervisor().await.payload_bytes, 60 << 10);
    gate.open();
    node.finish_done().await;
    database.assert_all_signed(6);
}

#[actix::test]
async fn what_does_not_fit_into_one_load_is_loaded_batch_by_batch() {
    let database = with_payloads(10, 3, 16);
    // The second look expects small records still, and a group of them that does not fit.
    database.add_records((0..21).map(|n| vec![n as u8; 30 * KIB]));
    let plan = Plan { batch_size: 3, max_in_flight: 8, ..Plan::default() };
    TestNode::start(&database, plan).finish_done().await;
    let verdict = database.assert_all_signed(24);
    assert_eq!((verdict.events.checked_out, verdict.events.abandoned), (8, 0));
    let counts = database.signing.counts();
    assert!(counts.most_bytes <= MIB, "{counts:?}");
}

#[actix::test]
async fn records_larger_than_a_slice_count_with_all_their_bytes() {
    let database = with_payloads(10, 10, MIB);
    let plan = Plan {
        batch_size: 2,
        signers: 4,
        max_in_flight: 5,
        max_in_flight_bytes: 2 << 20,
        slice_bytes: 64 * KIB,
        ..Plan::default()
    };
    TestNode::start(&database, plan).finish_done().await;
    database.assert_all_signed(10);
    assert_eq!(database.store.most_loaded(), 1);
    let counts = database.signing.counts();
    assert_eq!((counts.slices_signed, counts.signatures), (10, 10));
    assert!(counts.most_bytes <= 2 * MIB, "{counts:?}");
}

#[actix::test]
async fn a_record_larger_than_the_whole_bound_is_signed_alone() {
    let database = with_payloads(4, 4, 2 * MIB);
    let plan = Plan {
        batch_size: 2,
        signers: 4,
        max_in_flight_bytes: 1 << 20,
        slice_bytes: 64 * KIB,
        ..Plan::default()
    };
    TestNode::start(&database, plan).finish_done().await;
    database.assert_all_signed(4);
    let counts = database.signing.counts();
    assert_eq!((counts.most_slices, counts.slices_signed), (1, 4));
}

#[actix::test]
async fn slices_larger_than_the_bound_are_cut_down_to_it() {
    let database = with_payloads(4, 32, 16 * KIB);
    let plan = Plan {
        batch_size: 8,
        signers: 4,
        max_in_flight_bytes: 64 << 10,
        slice_bytes: MIB,
        ..Plan::default()
    };
    TestNode::start(&database, plan).finish_done().await;
    database.assert_all_signed(32);
    let counts = database.signing.counts();
    assert!(counts.most_bytes <= 64 * KIB, "{counts:?}");
}

#[actix::test]
async fn a_batch_whose_range_holds_fewer_records_than_it_was_made_with_is_quarantined() {
    let database = Database::new(3, 40);
    database.store.change_checked_out(|checked_out| {
        for batch in &mut checked_out.batches {
            if batch.range.low.id == RecordId(11) {
                batch.range.record_count = 6;
            }
        }
    });
    let remaining = TestNode::start(&database, Plan::default()).finish_done().await;
    assert_eq!(remaining.quarantined, 5);
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (35, 1, 0));
    let reason = verdict.quarantined[0].failure.as_deref();
    assert_eq!(reason, Some("its range holds 5 records, it was made with 6"));
}

#[actix::test]
async fn a_batch_whose_range_holds_more_records_than_it_was_made_with_is_quarantined() {
    // Four records fill a slice, so that the loop could end without seeing the other four.
    let database = with_payloads(3, 24, 16 * KIB);
    database.store.change_checked_out(|checked_out| {
        for batch in &mut checked_out.batches {
            if batch.range.low.id == RecordId(9) {
                batch.range.record_count = 4;
            }
        }
    });
    let plan = Plan { batch_size: 8, ..Plan::default() };
    let remaining = TestNode::start(&database, plan).finish_done().await;
    assert_eq!(remaining.quarantined, 8);
    let verdict = database.judge();
    assert_eq!((verdict.signed, verdict.quarantined.len(), verdict.open_uses), (16, 1, 0));
    let reason = verdict.quarantined[0].failure.as_deref();
    assert_eq!(reason, Some("its range holds more than the 4 records it was made with"));
    assert_eq!(database.store.batches(None, 100).unwrap().len(), 3);
}
