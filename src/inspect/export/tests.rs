//! What an export holds, read back and checked as a stranger would.

use std::cell::RefCell;
use std::collections::HashMap;

use super::*;
use crate::inspect::testbed::Testbed;
use crate::keyring::jwk;
use crate::signing::{PublicKey, Signature, verify_one};

/// Seven records, of which three batches of two are signed.
fn bed() -> Testbed {
    let bed = Testbed::new(2, 7, 2);
    bed.sign(&bed.check_out(2));
    bed.sign(&bed.check_out(1));
    bed
}

fn exported(bed: &Testbed, format: ExportFormat, page_bytes: usize) -> (u64, String) {
    let mut out = Vec::new();
    let written = export_by(&*bed.store, None, format, &mut out, &|_| {}, page_bytes).unwrap();
    (written, String::from_utf8(out).unwrap())
}

type Fields = HashMap<String, String>;

fn json_fields(line: &str) -> Fields {
    let object: HashMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
    let text = |value: serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text,
        number => number.to_string(),
    };
    object.into_iter().map(|(name, value)| (name, text(value))).collect()
}

fn assert_proves_itself(fields: &Fields, n: u64) {
    assert_eq!(fields.len(), COLUMNS.len());
    let bytes = |name: &str| STANDARD.decode(&fields[name]).unwrap();
    assert_eq!(fields["record_id"], n.to_string());
    let has_external_id = !n.is_multiple_of(3);
    let external_id = if has_external_id { format!("a \"quoted\", {n}") } else { String::new() };
    assert_eq!(fields["external_id"], external_id);
    assert_eq!(bytes("payload"), format!("payload {n}\n").into_bytes());
    let public_key = PublicKey::from_bytes(&bytes("public_key")).unwrap();
    assert_eq!(fields["kid"], jwk::kid(&public_key).0);
    let signature = Signature::try_from(bytes("signature").as_slice()).unwrap();
    assert_eq!(verify_one(&public_key, &bytes("payload"), &signature), Ok(()));
    assert_eq!(fields["algorithm"], "Ed25519");
    assert_eq!(fields["batch_id"], n.div_ceil(2).to_string());
    assert!(fields["signed_at"].parse::<jiff::Timestamp>().is_ok(), "{}", fields["signed_at"]);
}

#[test]
fn json_lines_hold_every_signed_record_in_order_with_all_it_takes_to_check_it() {
    let (written, text) = exported(&bed(), ExportFormat::Jsonl, PAGE_BYTES);
    assert_eq!((written, text.lines().count()), (6, 6));
    for (line, n) in text.lines().zip(1..) {
        assert_proves_itself(&json_fields(line), n);
    }
    let third = text.lines().nth(2).unwrap();
    assert!(third.starts_with(r#"{"record_id":3,"external_id":null,"payload":""#), "{third}");
}

#[test]
fn csv_holds_the_same_fields_under_a_header() {
    let (written, text) = exported(&bed(), ExportFormat::Csv, PAGE_BYTES);
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap(), COLUMNS.as_slice());
    let rows: Vec<Fields> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!((written, rows.len()), (6, 6));
    for (row, n) in rows.iter().zip(1..) {
        assert_proves_itself(row, n);
    }
}

#[test]
fn an_export_is_the_same_whatever_the_size_of_its_pages() {
    let bed = bed();
    for format in ExportFormat::ALL {
        assert_eq!(exported(&bed, *format, 1), exported(&bed, *format, PAGE_BYTES));
    }
}

#[test]
fn the_callback_is_told_how_many_records_are_written() {
    let told = RefCell::new(Vec::new());
    let progress = |written| told.borrow_mut().push(written);
    export_by(&*bed().store, None, ExportFormat::Jsonl, &mut io::sink(), &progress, 50).unwrap();
    assert_eq!(*told.borrow(), [5, 6]);
}

#[test]
fn nothing_signed_is_an_empty_export_with_its_header() {
    let bed = Testbed::new(1, 1, 1);
    assert_eq!(exported(&bed, ExportFormat::Jsonl, PAGE_BYTES), (0, String::new()));
    let header = COLUMNS.join(",") + "\n";
    assert_eq!(exported(&bed, ExportFormat::Csv, PAGE_BYTES), (0, header));
}

#[test]
fn a_signature_that_cannot_be_exported_is_an_error_and_never_left_out() {
    for (sql, record) in [
        ("DELETE FROM records WHERE id = 4", 4),
        ("UPDATE signatures SET batch_id = 99 WHERE record_id = 5", 5),
    ] {
        let bed = bed();
        bed.tamper(sql);
        let error =
            export(&*bed.store, None, ExportFormat::Csv, &mut io::sink(), &|_| {}).unwrap_err();
        assert!(
            matches!(error, ExportError::Incomplete { record: found, .. } if found.0 == record),
            "{error}"
        );
    }
}

#[test]
fn an_output_that_fails_ends_the_export() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let bed = bed();
    for format in ExportFormat::ALL {
        let error = export(&*bed.store, None, *format, &mut Full, &|_| {}).unwrap_err();
        assert!(
            matches!(&error, ExportError::Write(cause) if cause.kind() == io::ErrorKind::StorageFull),
            "{error}"
        );
        assert!(!error.is_retryable());
    }
}

#[test]
fn a_format_reads_back_from_its_name() {
    for format in ExportFormat::ALL {
        assert_eq!(format.to_string().parse().as_ref(), Ok(format));
    }
    assert!("lines".parse::<ExportFormat>().is_err());
}
