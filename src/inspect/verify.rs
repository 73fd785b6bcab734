//! `chancery verify`: every stored signature against its record and its public key.
//!
//! One thread reads, others do the arithmetic, and the caller's collects what they find.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::Serialize;

use super::pages::{PAGE_BYTES, Page, SignedPages};
use crate::db::{BatchKey, SignedRecord, Store, StoreError};
use crate::keyring::jwk;
use crate::signing::{PublicKey, Signature, Verifiable, Verifier};
use crate::types::{BatchId, KeyId, Kid, RecordId, RingId};

/// How many bad signatures a report lists; it counts them all.
pub const MAX_LISTED: usize = 1_000;

/// Verifies every stored signature, or those of some rings, on `threads` threads (at least one).
///
/// `progress` is told how many have been checked so far, on the calling thread. At any time about
/// two pages a thread are in memory, each with some 4 MiB of payload or one larger record.
///
/// # Errors
/// Those of the store. What is wrong with a signature stands in the report.
pub fn verify(
    store: &dyn Store,
    rings: Option<&[RingId]>,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<VerifyReport, StoreError> {
    let threads = threads.max(1);
    let (page_sender, page_receiver) = mpsc::sync_channel(threads);
    // Only the workers own the receiver: should they all panic, the reader is not left waiting.
    let page_receiver = Arc::new(Mutex::new(page_receiver));
    let (verdict_sender, verdicts) = mpsc::channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || send_pages(store, rings, &page_sender));
        for _ in 0..threads {
            let (pages, verdicts) = (Arc::clone(&page_receiver), verdict_sender.clone());
            scope.spawn(move || {
                let mut judge = Judge::default();
                while let Some(page) = receive(&pages) {
                    if verdicts.send(judge.judge(&page)).is_err() {
                        return;
                    }
                }
            });
        }
        drop((page_receiver, verdict_sender));

        let mut tally = Tally::default();
        for verdict in verdicts {
            tally.add(verdict);
            progress(tally.checked);
        }
        match reader.join() {
            Ok(read) => read.map(|()| tally.into_report()),
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// What a run of [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// How many signatures there are.
    pub checked: u64,
    /// How many of them are valid.
    pub valid: u64,
    /// How many keys made the signatures, as far as these have a key.
    pub keys: u64,
    /// How many signatures are bad.
    pub bad_count: u64,
    /// The bad ones of the lowest record ids, in order, at most [`MAX_LISTED`].
    pub bad: Vec<BadRecord>,
}

impl VerifyReport {
    /// Whether every signature is valid.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_count == 0
    }
}

/// A signature that proves nothing, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadRecord {
    /// The signature's record.
    pub record: RecordId,
    /// The signature's batch.
    pub batch: BatchId,
    /// The key of the batch, if it has one.
    pub kid: Option<Kid>,
    /// What is wrong.
    pub reason: BadReason,
}

/// What can be wrong with a stored signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BadReason {
    /// It is none of the key's over the record's payload.
    DoesNotVerify,
    /// There is no such record.
    RecordMissing,
    /// Its batch has no stored key use, so no key can be named for it.
    NoStoredUse,
    /// The public key is no Ed25519 public key.
    PublicKeyMalformed,
    /// The public key is not the one whose thumbprint the kid is: it was replaced.
    PublicKeyReplaced,
    /// It does not have 64 bytes.
    WrongLength,
}

impl fmt::Display for BadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            BadReason::DoesNotVerify => "the signature does not verify",
            BadReason::RecordMissing => "the record is missing",
            BadReason::NoStoredUse => "the batch has no stored key use",
            BadReason::PublicKeyMalformed => "the public key is malformed",
            BadReason::PublicKeyReplaced => "the public key is not the one that its kid names",
            BadReason::WrongLength => "the signature does not have 64 bytes",
        })
    }
}

fn send_pages(
    store: &dyn Store,
    rings: Option<&[RingId]>,
    pages: &SyncSender<Page>,
) -> Result<(), StoreError> {
    let mut source = SignedPages::new(store, rings, PAGE_BYTES);
    while let Some(page) = source.next_page()? {
        if pages.send(page).is_err() {
            break;
        }
    }
    Ok(())
}

fn receive(pages: &Mutex<Receiver<Page>>) -> Option<Page> {
    pages.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// What a worker says of one page.
struct PageVerdict {
    checked: usize,
    keys: HashSet<KeyId>,
    bad: Vec<BadRecord>,
}

/// A worker, with what it knows of the keys that it has seen.
#[derive(Default)]
struct Judge {
    verifier: Verifier,
    /// By the thumbprint and the bytes that it should be of.
    faults: HashMap<(Kid, Vec<u8>), Option<BadReason>>,
}

impl Judge {
    fn judge(&mut self, page: &Page) -> PageVerdict {
        let mut batches: HashMap<BatchId, Option<BadReason>> = HashMap::new();
        let mut keys = HashSet::new();
        let mut bad = Vec::new();
        let mut to_verify = Vec::with_capacity(page.records.len());
        let mut verifiable = Vec::with_capacity(page.records.len());
        for signed in &page.records {
            let key = page.key(signed.batch);
            let key_fault = *batches.entry(signed.batch).or_insert_with(|| {
                keys.extend(key.map(|key| key.key));
                key.and_then(|key| self.fault_of(key))
            });
            match prepare(signed, key, key_fault) {
                Ok(item) => {
                    to_verify.push((signed, key));
                    verifiable.push(item);
                }
                Err(reason) => bad.push(bad_record(signed, key, reason)),
            }
        }
        for index in self.verifier.verify_all(&verifiable).err().unwrap_or_default() {
            let (signed, key) = to_verify[index];
            bad.push(bad_record(signed, key, BadReason::DoesNotVerify));
        }
        PageVerdict { checked: page.records.len(), keys, bad }
    }

    fn fault_of(&mut self, key: &BatchKey) -> Option<BadReason> {
        let known = (key.kid.clone(), key.public_key.clone());
        *self.faults.entry(known).or_insert_with(|| fault_of(key))
    }
}

fn prepare<'a>(
    signed: &'a SignedRecord,
    key: Option<&'a BatchKey>,
    key_fault: Option<BadReason>,
) -> Result<Verifiable<'a>, BadReason> {
    let payload = signed.payload.as_deref().ok_or(BadReason::RecordMissing)?;
    let key = key.ok_or(BadReason::NoStoredUse)?;
    if let Some(reason) = key_fault {
        return Err(reason);
    }
    if Signature::try_from(signed.signature.as_slice()).is_err() {
        return Err(BadReason::WrongLength);
    }
    Ok(Verifiable { public_key: &key.public_key, payload, signature: &signed.signature })
}

fn fault_of(key: &BatchKey) -> Option<BadReason> {
    match PublicKey::from_bytes(&key.public_key) {
        Err(_) => Some(BadReason::PublicKeyMalformed),
        Ok(public_key) if jwk::kid(&public_key) != key.kid => Some(BadReason::PublicKeyReplaced),
        Ok(_) => None,
    }
}

fn bad_record(signed: &SignedRecord, key: Option<&BatchKey>, reason: BadReason) -> BadRecord {
    BadRecord {
        record: signed.record,
        batch: signed.batch,
        kid: key.map(|key| key.kid.clone()),
        reason,
    }
}

/// The verdicts so far, which come in any order.
#[derive(Default)]
struct Tally {
    checked: u64,
    bad_count: u64,
    keys: HashSet<KeyId>,
    lowest_bad: BTreeMap<RecordId, BadRecord>,
}

impl Tally {
    fn add(&mut self, verdict: PageVerdict) {
        self.checked += verdict.checked as u64;
        self.bad_count += verdict.bad.len() as u64;
        self.keys.extend(verdict.keys);
        for bad in verdict.bad {
            self.lowest_bad.insert(bad.record, bad);
            if self.lowest_bad.len() > MAX_LISTED {
                self.lowest_bad.pop_last();
            }
        }
    }

    fn into_report(self) -> VerifyReport {
        VerifyReport {
            checked: self.checked,
            valid: self.checked - self.bad_count,
            keys: self.keys.len() as u64,
            bad_count: self.bad_count,
            bad: self.lowest_bad.into_values().collect(),
        }
    }
}
