//! One batch from its checkout to its end: load, sign, store, return the key.
//!
//! A future of its own, spawned on the runtime: no actor's stop, no dropped message and no caller's
//! timeout can leave its key use without an end while this process lives.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::Semaphore;

use super::db_writer::DbWriter;
use super::key_manager::KeyManager;
use super::messages::{
    BatchEnd, Checkout, LoadBatch, Return, ReturnKey, SignBatch, SignFailure, StoreBatch,
    StoreReply,
};
use super::record_loader::RecordLoader;
use super::signer::Signer;
use crate::clock::Clock;
use crate::db::{SignedBatch, StoreError};
use crate::signing::Signature;
use crate::types::{Outcome, Position, Record, RecordId};

/// The unit of the permits on payload bytes.
const PERMIT_BYTES: usize = 1024;

/// How long to wait between attempts while the database is not reachable.
const PAUSE: Duration = Duration::from_millis(250);

/// How often a use is given up before its lease is left to do it.
const GIVE_UP_ATTEMPTS: u32 = 20;

/// What all batches of a node share.
#[derive(Clone)]
pub(super) struct Stations {
    pub(super) key_manager: Addr<KeyManager>,
    pub(super) loader: Addr<RecordLoader>,
    pub(super) signer: Addr<Signer>,
    pub(super) writer: Addr<DbWriter>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) payload_permits: Arc<PayloadPermits>,
    /// How many bytes of payload are loaded and signed at a time.
    pub(super) slice_bytes: usize,
    /// After how long a station that has not answered counts as failed.
    pub(super) watchdog: Duration,
}

/// Bounds the payload bytes in this node's memory.
pub(super) struct PayloadPermits {
    semaphore: Semaphore,
    most: u32,
}

impl PayloadPermits {
    pub(super) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / PERMIT_BYTES as u64).unwrap_or(u32::MAX >> 3).max(1);
        PayloadPermits { semaphore: Semaphore::new(most as usize), most }
    }

    fn permits(&self, bytes: usize) -> u32 {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        permits.clamp(1, self.most)
    }

    /// How many bytes of payload may be loaded now.
    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> usize {
        self.semaphore.available_permits() * PERMIT_BYTES
    }
}

/// Why a batch was not stored.
enum Failure {
    /// The batch's own doing; it counts as an attempt.
    Batch(String),
    /// The node's or the database's; it does not.
    Node(String),
    /// Its use had ended.
    Fenced(Outcome),
}

impl From<SignFailure> for Failure {
    fn from(failure: SignFailure) -> Self {
        match failure {
            SignFailure::PastDeadline => Failure::Node(failure.to_string()),
            SignFailure::Panicked(_) | SignFailure::Engine(_) => {
                Failure::Batch(failure.to_string())
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Batch(error.to_string())
    }
}

/// Takes a batch to its end.
pub(super) async fn run(stations: Stations, checkout: Checkout) -> BatchEnd {
    let key_use = checkout.batch.key_use;
    let records = u64::from(checkout.batch.range.record_count);
    match sign_and_store(&stations, &checkout).await {
        Ok(()) => {
            return_key(&stations, &checkout, Return::Ended(Outcome::Stored)).await;
            BatchEnd::Stored { records }
        }
        Err(Failure::Fenced(outcome)) => {
            return_key(&stations, &checkout, Return::Ended(outcome)).await;
            tracing::warn!(
                ring = %key_use.ring, fence = %key_use.fence, batch = %key_use.batch,
                key = %key_use.key, %outcome, "fenced: threw away what another node signs"
            );
            BatchEnd::Fenced
        }
        Err(Failure::Batch(reason)) => give_up(&stations, &checkout, records, reason, true).await,
        Err(Failure::Node(reason)) => give_up(&stations, &checkout, records, reason, false).await,
    }
}

async fn give_up(
    stations: &Stations,
    checkout: &Checkout,
    records: u64,
    reason: String,
    blame: bool,
) -> BatchEnd {
    let key_use = checkout.batch.key_use;
    tracing::warn!(
        ring = %key_use.ring, fence = %key_use.fence, batch = %key_use.batch,
        key = %key_use.key, attempts = checkout.batch.attempts, reason, "giving a batch up"
    );
    let how = Return::GiveUp { failure: blame.then(|| reason.clone()) };
    match return_key(stations, checkout, how).await {
        // The reply of the store that succeeded was lost.
        Some(Outcome::Stored) => BatchEnd::Stored { records },
        _ => BatchEnd::GivenUp { reason },
    }
}

/// Tells the KeyManager how the use ended; how it stands in the database, if that is known.
async fn return_key(stations: &Stations, checkout: &Checkout, how: Return) -> Option<Outcome> {
    let key_use = checkout.batch.key_use;
    for _ in 0..GIVE_UP_ATTEMPTS {
        let message = ReturnKey { key_use, how: how.clone() };
        match stations.key_manager.send(message).await {
            Ok(Ok(outcome)) => return Some(outcome),
            Ok(Err(error)) if error.is_retryable() => tokio::time::sleep(PAUSE).await,
            Ok(Err(error)) => {
                tracing::error!(fence = %key_use.fence, %error, "could not give a key use up");
                return None;
            }
            Err(_) => return None,
        }
    }
    tracing::warn!(fence = %key_use.fence, "left a key use to its lease: no answer to giving it up");
    None
}

async fn sign_and_store(stations: &Stations, checkout: &Checkout) -> Result<(), Failure> {
    let signatures = sign(stations, checkout).await?;
    let key_use = checkout.batch.key_use;
    let batch = SignedBatch { key_use, signatures };
    // No watchdog here: the writer answers when the database has.
    match stations.writer.send(StoreBatch(batch)).await {
        Ok(StoreReply::Stored) => Ok(()),
        Ok(StoreReply::Fenced(outcome)) => Err(Failure::Fenced(outcome)),
        Ok(StoreReply::Refused(reason)) => Err(Failure::Batch(reason)),
        Ok(StoreReply::Unsettled(reason)) => Err(Failure::Node(reason)),
        Err(error) => Err(Failure::Node(format!("the writer is gone: {error}"))),
    }
}

/// Loads and signs a batch slice by slice.
async fn sign(
    stations: &Stations,
    checkout: &Checkout,
) -> Result<Vec<(RecordId, Signature)>, Failure> {
    let expected = checkout.batch.range.record_count as usize;
    let mut signatures = Vec::with_capacity(expected);
    let mut after = None;
    while signatures.len() < expected {
        let permits = &stations.payload_permits;
        let wanted = permits.permits(stations.slice_bytes);
        let mut held = permits
            .semaphore
            .acquire_many(wanted)
            .await
            .map_err(|_| Failure::Node("the node is stopping".to_owned()))?;
        let records = load(stations, checkout, after).await?;
        let Some(last) = records.last() else { break };
        after = Some(last.position);
        let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        let needed = permits.permits(bytes);
        if let Some(spare) = wanted.checked_sub(needed).filter(|spare| *spare > 0) {
            drop(held.split(spare as usize));
        }
        let message = SignBatch {
            key: Arc::clone(&checkout.key),
            deadline: checkout.deadline.clone(),
            records,
        };
        let signed = answer(stations, "signer", stations.signer.send(message)).await??;
        signatures.extend(signed);
    }
    if signatures.len() == expected {
        Ok(signatures)
    } else {
        let found = signatures.len();
        Err(Failure::Batch(format!("its range holds {found} records, it was made with {expected}")))
    }
}

/// Loads a slice, again while the database is not reachable and the lease lasts.
async fn load(
    stations: &Stations,
    checkout: &Checkout,
    after: Option<Position>,
) -> Result<Vec<Record>, Failure> {
    loop {
        let message = LoadBatch {
            ring: checkout.batch.key_use.ring,
            range: checkout.batch.range,
            after,
            max_bytes: stations.slice_bytes,
        };
        let error = match answer(stations, "loader", stations.loader.send(message)).await? {
            Ok(records) => return Ok(records),
            Err(error) => error,
        };
        if !error.is_retryable() {
            return Err(error.into());
        }
        if checkout.deadline.has_passed(stations.clock.as_ref()) {
            return Err(Failure::Node(error.to_string()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A station's answer; a missing one is a failure.
async fn answer<T>(
    stations: &Stations,
    station: &str,
    sent: impl Future<Output = Result<T, MailboxError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(stations.watchdog, sent).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure::Node(format!("the {station} is gone: {error}"))),
        Err(_) => {
            Err(Failure::Node(format!("no answer from the {station} in {:?}", stations.watchdog)))
        }
    }
}
