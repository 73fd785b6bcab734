//! What a node does with a store, in the few words that the tests need.

use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::fixture::Fixture;
use crate::db::{
    CheckOut, CheckedOut, ClaimedBatch, GiveUp, KekCheck, NewKey, NewRecord, SealedKey, Shortage,
    SignedBatch, Store, StoreOutcome,
};
use crate::signing::{PrivateKey, Signature};
use crate::types::{BatchSize, KeyId, Kid, RecordId, RingId};

/// The ring that every database begins with.
pub(super) const RING: RingId = RingId(1);

pub(super) fn size(records: u32) -> BatchSize {
    BatchSize(records.try_into().unwrap())
}

/// A key that no other call has made.
pub(super) fn new_key(id: KeyId) -> NewKey {
    static MADE: AtomicU64 = AtomicU64::new(1);
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&MADE.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    NewKey {
        kid: Kid(format!("kid-{id}")),
        algorithm: "Ed25519",
        public_key: PrivateKey::from_seed(Zeroizing::new(seed)).public_key(),
        sealed: Some(SealedKey { blob: vec![1; 48], kek_id: "kek".to_owned() }),
    }
}

pub(super) fn add_keys(store: &dyn Store, ring: RingId, count: u32) -> Vec<KeyId> {
    store.add_kek(&KekCheck { kek_id: "kek".to_owned(), check_value: vec![2; 32] }).unwrap();
    let added = store.add_keys(ring, count, false, "test", &mut |id| Ok(new_key(id))).unwrap();
    assert_eq!(added.len(), count as usize);
    added
}

/// Records `from` up to `to`, without it, that say their number.
pub(super) fn numbered(from: u32, to: u32) -> Vec<NewRecord> {
    (from..to)
        .map(|n| NewRecord { external_id: None, payload: format!("record {n}").into_bytes() })
        .collect()
}

/// Inserts `count` records and waits until they can be checked out.
pub(super) fn insert<F: Fixture>(f: &F, store: &dyn Store, ring: RingId, count: u32) {
    let inserted = store.insert_records(ring, &numbered(0, count)).unwrap();
    assert_eq!(inserted.added, u64::from(count));
    f.settle();
}

pub(super) fn check_out(
    store: &dyn Store,
    ring: RingId,
    max_batches: u32,
    batch_size: u32,
) -> CheckedOut {
    store.check_out(&CheckOut { ring, max_batches, batch_size: size(batch_size) }).unwrap()
}

/// Checks out exactly one batch.
pub(super) fn check_out_one(store: &dyn Store, ring: RingId, batch_size: u32) -> ClaimedBatch {
    let mut batches = check_out(store, ring, 1, batch_size).batches;
    assert_eq!(batches.len(), 1);
    batches.remove(0)
}

/// A signature that names its record and its key, and that no key needs to make.
pub(super) fn signature(record: RecordId, key: KeyId) -> Signature {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&record.0.to_be_bytes());
    bytes[8..16].copy_from_slice(&key.0.to_be_bytes());
    Signature(bytes)
}

/// Loads a batch and signs it.
pub(super) fn sign(store: &dyn Store, batch: &ClaimedBatch) -> SignedBatch {
    let key_use = batch.key_use;
    let records = store.load_batch(key_use.ring, &batch.range, None, usize::MAX).unwrap();
    assert_eq!(records.len(), batch.range.record_count as usize, "a batch holds its records");
    let signatures =
        records.iter().map(|r| (r.position.id, signature(r.position.id, key_use.key))).collect();
    SignedBatch { key_use, signatures }
}

/// Signs and stores a batch alone.
pub(super) fn sign_and_store(store: &dyn Store, batch: &ClaimedBatch) -> StoreOutcome {
    let signed = sign(store, batch);
    let outcomes = store.store_batches(batch.key_use.ring, &[signed]).unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes[0]
}

pub(super) fn give_up(batch: &ClaimedBatch, failure: Option<&str>) -> GiveUp {
    GiveUp { key_use: batch.key_use, failure: failure.map(str::to_owned) }
}

/// Signs until no record of the ring is left; how many batches that took.
pub(super) fn sign_all<F: Fixture>(f: &F, store: &dyn Store, ring: RingId, batch_size: u32) -> u32 {
    let mut stored = 0;
    let mut idle = 0;
    loop {
        let CheckedOut { batches, shortage } = check_out(store, ring, 4, batch_size);
        if batches.is_empty() {
            assert_eq!(shortage, Some(Shortage::NoWork), "all keys are free");
            if store.remaining(ring).unwrap().is_done() {
                return stored;
            }
            idle += 1;
            assert!(idle < 3, "work is left that neither a checkout nor a sweep finds");
            store.sweep(ring).unwrap();
            f.settle();
            continue;
        }
        idle = 0;
        let signed: Vec<SignedBatch> = batches.iter().map(|batch| sign(store, batch)).collect();
        for outcome in store.store_batches(ring, &signed).unwrap() {
            assert_eq!(outcome, StoreOutcome::Stored);
            stored += 1;
        }
    }
}
