//! Step 2: a batch's payloads in slices.

use super::actions::{RING, add_keys, check_out, check_out_one, sign_all};
use super::fixture::Fixture;
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{ClaimedBatch, NewRecord, Store};
use crate::types::Record;

on_both! {
    a_slice_takes_as_many_records_as_fit_but_at_least_one,
    a_batch_of_empty_payloads_is_loaded_to_its_end,
    large_payloads_come_whole_and_one_by_one,
    a_batch_holds_no_record_of_its_neighbours,
}

fn insert_payloads<F: Fixture>(f: &F, store: &dyn Store, payloads: &[Vec<u8>]) {
    let records: Vec<NewRecord> = payloads
        .iter()
        .map(|payload| NewRecord { external_id: None, payload: payload.clone() })
        .collect();
    assert_eq!(store.insert_records(RING, &records).unwrap().added, payloads.len() as u64);
    f.settle();
}

/// Every slice of a batch.
fn slices(store: &dyn Store, batch: &ClaimedBatch, max_bytes: usize) -> Vec<Vec<Record>> {
    let mut slices: Vec<Vec<Record>> = Vec::new();
    loop {
        let after = slices.last().and_then(|slice| slice.last()).map(|record| record.position);
        let slice = store.load_batch(RING, &batch.range, after, max_bytes).unwrap();
        if slice.is_empty() {
            return slices;
        }
        slices.push(slice);
        assert!(slices.len() <= batch.range.record_count as usize, "it ends");
    }
}

/// How many payloads each slice has, by the words of the contract.
fn expected(lengths: &[usize], max_bytes: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut bytes = 0;
    for length in lengths {
        bytes += length;
        match counts.last_mut() {
            Some(count) if bytes <= max_bytes => *count += 1,
            _ => {
                counts.push(1);
                bytes = *length;
            }
        }
    }
    counts
}

fn a_slice_takes_as_many_records_as_fit_but_at_least_one<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    let lengths = [0, 10, 20, 0, 0, 5, 100, 1, 0, 30, 30, 30, 0];
    let payloads: Vec<Vec<u8>> =
        lengths.iter().enumerate().map(|(n, length)| vec![n as u8; *length]).collect();
    insert_payloads(f, &*store, &payloads);
    let batch = check_out_one(&*store, RING, 100);
    for max_bytes in [0, 1, 10, 15, 30, 60, 99, 100, 226, 1_000_000, usize::MAX] {
        let slices = slices(&*store, &batch, max_bytes);
        let counts: Vec<usize> = slices.iter().map(Vec::len).collect();
        assert_eq!(counts, expected(&lengths, max_bytes), "in slices of {max_bytes} bytes");
        let records = slices.concat();
        assert!(records.is_sorted_by_key(|record| record.position));
        let loaded: Vec<Vec<u8>> = records.into_iter().map(|record| record.payload).collect();
        assert_eq!(loaded, payloads, "in slices of {max_bytes} bytes");
    }
    store.give_up(RING, &[super::actions::give_up(&batch, None)]).unwrap();
    sign_all(f, &*store, RING, 100);
    assert_signed(f, &*store, RING, 13);
}

fn a_batch_of_empty_payloads_is_loaded_to_its_end<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    insert_payloads(f, &*store, &vec![Vec::new(); 9]);
    let batch = check_out_one(&*store, RING, 100);
    for max_bytes in [0, 1, 1000] {
        let loaded = slices(&*store, &batch, max_bytes).concat();
        assert_eq!(loaded.len(), 9);
        assert!(loaded.iter().all(|record| record.payload.is_empty()));
    }
    assert_lawful(f, &*store);
}

fn large_payloads_come_whole_and_one_by_one<F: Fixture>(f: &F) {
    const MIB: usize = 1024 * 1024;
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let noise = |seed: usize, bytes: usize| -> Vec<u8> {
        (0..bytes).map(|n| (n.wrapping_mul(2_654_435_761 + seed) >> 13) as u8).collect()
    };
    let payloads: Vec<Vec<u8>> =
        [3 * MIB, MIB, MIB, 5 * MIB, 256].iter().enumerate().map(|(n, b)| noise(n, *b)).collect();
    insert_payloads(f, &*store, &payloads);
    let batch = check_out_one(&*store, RING, 100);
    let slices = slices(&*store, &batch, 2 * MIB);
    assert_eq!(slices.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
    let loaded: Vec<Vec<u8>> = slices.concat().into_iter().map(|r| r.payload).collect();
    assert!(loaded == payloads, "every byte is as it was handed in");
    assert_lawful(f, &*store);
}

fn a_batch_holds_no_record_of_its_neighbours<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    f.run("INSERT INTO rings (name) VALUES ('other')");
    let payload = |n: usize| vec![n as u8; 4];
    for n in 0..9 {
        insert_payloads(f, &*store, &[payload(n)]);
        // The other ring's records lie between those of this one.
        f.run("INSERT INTO records (ring_id, payload) SELECT 2, payload FROM records WHERE id = 1");
    }
    f.settle();
    let batches = check_out(&*store, RING, 3, 3).batches;
    assert_eq!(batches.len(), 3);
    for (n, batch) in batches.iter().enumerate() {
        let loaded: Vec<Vec<u8>> =
            slices(&*store, batch, 4).concat().into_iter().map(|r| r.payload).collect();
        assert_eq!(loaded, [payload(3 * n), payload(3 * n + 1), payload(3 * n + 2)]);
    }
    assert_lawful(f, &*store);
}
