//! Verify on a healthy database, on one that is being signed, and on tampered ones.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::inspect::testbed::{Testbed, blob, private_key};
use crate::signing::{Engine, sign_each};
use crate::types::{Position, Record};

/// Twelve signed records: batches 1, 2 and 3 of 4 records, by keys 1, 2 and 3.
fn bed() -> Testbed {
    let bed = Testbed::new(3, 12, 4);
    bed.sign_all();
    bed
}

fn run(bed: &Testbed) -> VerifyReport {
    verify(&*bed.store, None, 2, &|_| {}).unwrap()
}

/// What verify finds after the SQL has run, as (record, batch, reason).
fn bad_after(sql: &str) -> Vec<(i64, i64, BadReason)> {
    let bed = bed();
    bed.tamper(sql);
    let report = run(&bed);
    assert_eq!(report.bad_count, report.bad.len() as u64);
    assert_eq!(report.valid + report.bad_count, report.checked);
    report.bad.iter().map(|bad| (bad.record.0, bad.batch.0, bad.reason)).collect()
}

#[test]
fn every_signature_of_a_healthy_database_is_valid() {
    let bed = bed();
    let told = Mutex::new(Vec::new());
    let report =
        verify(&*bed.store, None, 0, &|checked| told.lock().unwrap().push(checked)).unwrap();
    assert_eq!((report.checked, report.valid, report.keys), (12, 12, 3));
    assert!(report.is_clean() && report.bad.is_empty());
    assert_eq!(*told.lock().unwrap(), [12]);
}

#[test]
fn a_database_without_signatures_has_none_to_verify() {
    assert_eq!(run(&Testbed::new(1, 3, 2)), VerifyReport::default());
}

#[test]
fn a_changed_byte_of_a_signature_is_found() {
    let sql = "UPDATE signatures SET signature = CAST(x'00' || substr(signature, 2) AS BLOB)
               WHERE record_id = 6";
    assert_eq!(bad_after(sql), [(6, 2, BadReason::DoesNotVerify)]);
}

#[test]
fn a_changed_payload_is_found() {
    let sql = "UPDATE records SET payload = CAST('payload 5' AS BLOB) WHERE id = 5";
    assert_eq!(bad_after(sql), [(5, 2, BadReason::DoesNotVerify)]);
}

#[test]
fn two_swapped_signatures_of_one_batch_are_both_found() {
    let sql = "CREATE TABLE copy AS SELECT * FROM signatures;
               UPDATE signatures SET signature =
                   (SELECT signature FROM copy WHERE copy.record_id = 13 - signatures.record_id)
               WHERE record_id IN (6, 7)";
    let found = bad_after(sql);
    assert_eq!(found, [(6, 2, BadReason::DoesNotVerify), (7, 2, BadReason::DoesNotVerify)]);
}

#[test]
fn a_signature_in_the_batch_of_another_key_is_found() {
    let found = bad_after("UPDATE signatures SET batch_id = 3 WHERE record_id = 7");
    assert_eq!(found, [(7, 3, BadReason::DoesNotVerify)]);
}

#[test]
fn a_signature_without_its_record_is_found() {
    let found = bad_after("DELETE FROM records WHERE id = 1");
    assert_eq!(found, [(1, 1, BadReason::RecordMissing)]);
}

#[test]
fn a_signature_without_a_stored_use_is_found_and_names_no_key() {
    let bed = bed();
    bed.tamper("UPDATE signatures SET batch_id = 99 WHERE record_id = 12");
    let report = run(&bed);
    assert_eq!(report.bad.len(), 1);
    assert_eq!((report.bad[0].reason, &report.bad[0].kid), (BadReason::NoStoredUse, &None));

    let found = bad_after("UPDATE key_uses SET outcome = 'abandoned' WHERE batch_id = 3");
    assert_eq!(found, [9, 10, 11, 12].map(|record| (record, 3, BadReason::NoStoredUse)));
}

#[test]
fn a_signature_of_another_length_is_found() {
    let sql = "UPDATE signatures SET signature = substr(signature, 1, 63) WHERE record_id = 2";
    assert_eq!(bad_after(sql), [(2, 1, BadReason::WrongLength)]);
}

#[test]
fn a_malformed_public_key_spoils_every_signature_of_its_batches() {
    for key in ["x'00'", &blob(&[0xff; 32]), &blob(&[0; 32])] {
        let found = bad_after(&format!("UPDATE keys SET public_key = {key} WHERE id = 3"));
        assert_eq!(found, [9, 10, 11, 12].map(|id| (id, 3, BadReason::PublicKeyMalformed)));
    }
}

#[test]
fn a_replaced_public_key_is_found_though_a_signature_fits_it() {
    let forger = private_key(KeyId(77));
    let payload = b"another payload".to_vec();
    let record = Record { position: Position::START, payload: payload.clone() };
    let signature = sign_each(Engine::Dalek, &forger, &[record], || true).unwrap()[0];
    let bed = bed();
    bed.tamper(&format!(
        "UPDATE keys SET public_key = {} WHERE id = 3;
         UPDATE records SET payload = {} WHERE id = 9;
         UPDATE signatures SET signature = {} WHERE record_id = 9;",
        blob(forger.public_key().as_bytes()),
        blob(&payload),
        blob(signature.as_bytes()),
    ));
    let report = run(&bed);
    let kid = jwk::kid(&private_key(KeyId(3)).public_key());
    assert_eq!(report.bad.len(), 4);
    for bad in &report.bad {
        assert_eq!((bad.reason, bad.kid.as_ref()), (BadReason::PublicKeyReplaced, Some(&kid)));
    }
}

#[test]
fn all_bad_signatures_are_counted_and_the_first_thousand_listed_whatever_the_threads() {
    let bed = Testbed::new(4, 9_000, 500);
    bed.sign_all();
    bed.tamper("UPDATE signatures SET batch_id = batch_id + 100 WHERE record_id % 2 = 0");
    for threads in [1, 3] {
        let report = verify(&*bed.store, None, threads, &|_| {}).unwrap();
        assert_eq!((report.checked, report.valid, report.bad_count), (9_000, 4_500, 4_500));
        let listed: Vec<i64> = report.bad.iter().map(|bad| bad.record.0).collect();
        assert_eq!(listed, (1..=1_000).map(|n| 2 * n).collect::<Vec<_>>());
    }
}

#[test]
fn a_database_that_is_being_signed_verifies_at_any_time() {
    let bed = Testbed::new(4, 2_000, 20);
    let is_signed = AtomicBool::new(false);
    let mut runs_meanwhile = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            bed.sign_all();
            is_signed.store(true, Ordering::Release);
        });
        while !is_signed.load(Ordering::Acquire) {
            assert_eq!(run(&bed).bad, []);
            runs_meanwhile += 1;
        }
    });
    assert!(runs_meanwhile > 0);
    assert_eq!(run(&bed).valid, 2_000);
}

#[test]
fn an_error_of_the_store_ends_the_run() {
    let bed = bed();
    bed.tamper("DROP VIEW signed_records; DROP TABLE key_uses");
    assert!(matches!(verify(&*bed.store, None, 3, &|_| {}), Err(StoreError::Database(_))));
}

#[test]
fn a_report_is_flat_json() {
    let bed = bed();
    bed.tamper("UPDATE signatures SET batch_id = 99 WHERE record_id = 12");
    assert_eq!(
        serde_json::to_value(run(&bed)).unwrap(),
        serde_json::json!({
            "checked": 12, "valid": 11, "keys": 3, "bad_count": 1,
            "bad": [{"record": 12, "batch": 99, "kid": null, "reason": "no_stored_use"}],
        })
    );
}
