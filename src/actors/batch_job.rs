//! One batch from its checkout to its end: load, sign, store, return the key.
//!
//! A future of its own, spawned on the runtime: no actor's stop, no dropped message and no caller's
//! timeout can leave its key use without an end while this process lives.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;
use tracing::Instrument;

use super::db_writer::DbWriter;
use super::key_handle::KeyHandle;
use super::key_manager::KeyManager;
use super::loading::{Loaded, PayloadPermits, load_slice, load_together};
use super::messages::{
    BatchEnd, Checkout, Return, ReturnKey, SignBatch, SignFailure, StoreBatch, StoreReply,
};
use super::on_the_way::{OnTheWay, Travelling};
use super::record_loader::RecordLoader;
use super::signer::Signer;
use super::troubles::Troubles;
use crate::clock::Clock;
use crate::db::{KeyUse, SignedBatch, StoreError};
use crate::failpoint::reach;
use crate::keyring::jwk;
use crate::metrics::Timings;
use crate::signing::Signature;
use crate::types::{NodeId, Outcome, RecordId};

/// How long to wait between attempts while the database is not reachable.
const PAUSE: Duration = Duration::from_millis(250);

/// What all batches of a node share.
#[derive(Clone)]
pub(super) struct Stations {
    pub(super) key_manager: Addr<KeyManager>,
    pub(super) loader: Addr<RecordLoader>,
    pub(super) signer: Addr<Signer>,
    pub(super) writer: Addr<DbWriter>,
    pub(super) on_the_way: OnTheWay,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) payload_permits: Arc<PayloadPermits>,
    /// How many bytes of payload are loaded and signed at a time.
    pub(super) slice_bytes: usize,
    /// How many bytes the payload of a record had on average when one was loaded last; 0 at first.
    pub(super) record_bytes: Arc<AtomicU64>,
    /// After how long a station that has not answered counts as failed.
    pub(super) watchdog: Duration,
    /// After how many failures of its own the store quarantines a batch.
    pub(super) max_attempts: u32,
    /// Where what keeps the node from its work is noted.
    pub(super) troubles: Troubles,
    /// Where it is noted how long each step took.
    pub(super) timings: Timings,
    /// This start of this process, for the log.
    pub(super) node: NodeId,
    /// How many batches have been stored, for whoever waits for one.
    pub(super) stored: watch::Sender<u64>,
}

impl Stations {
    /// A station that has stopped, so that no batch can pass it any more.
    pub(super) fn gone(&self) -> Option<&'static str> {
        let stations = [
            ("loader", self.loader.connected()),
            ("signer", self.signer.connected()),
            ("writer", self.writer.connected()),
        ];
        stations.into_iter().find(|(_, connected)| !connected).map(|(station, _)| station)
    }
}

/// Why a batch was not stored.
pub(super) enum Failure {
    /// The batch's own doing; it counts as an attempt.
    Batch(String),
    /// The node's or the database's; it does not.
    Node(String),
    /// Signatures that do not verify. The machine's doing, and yet it counts as an attempt: what
    /// comes back with the batch, on whatever machine, must not go round for ever.
    Faulty { reason: String, record: RecordId, signatures: u64 },
    /// The token's; it does not either, and nothing more is worth a try before the token is back.
    Token(String),
    /// Its use had ended.
    Fenced(Outcome),
}

impl From<SignFailure> for Failure {
    fn from(failure: SignFailure) -> Self {
        match failure {
            SignFailure::PastDeadline => Failure::Node(failure.to_string()),
            SignFailure::Faulty { record, signatures } => {
                Failure::Faulty { reason: failure.to_string(), record, signatures }
            }
            SignFailure::Token(reason) => Failure::Token(reason),
            SignFailure::Panicked(_) | SignFailure::Engine(_) => {
                Failure::Batch(failure.to_string())
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let reason = error.to_string();
        if error.is_of_the_work() { Failure::Batch(reason) } else { Failure::Node(reason) }
    }
}

/// Takes batches that were checked out together to their ends, each in a future of its own; `end` is told
/// of each.
pub(super) async fn run_together<E>(stations: Stations, checkouts: Vec<Checkout>, end: E)
where
    E: AsyncFn(KeyUse, BatchEnd) + Clone + 'static,
{
    let travelling: Vec<_> = checkouts.iter().map(|_| stations.on_the_way.set_out()).collect();
    let loaded = load_together(&stations, &checkouts).await;
    for ((checkout, loaded), travelling) in checkouts.into_iter().zip(loaded).zip(travelling) {
        let (stations, end) = (stations.clone(), end.clone());
        actix::spawn(async move {
            let key_use = checkout.batch.key_use;
            end(key_use, run(stations, checkout, loaded, travelling).await).await;
        });
    }
}

/// Takes a batch to its end, in a span of its own.
async fn run(
    stations: Stations,
    checkout: Checkout,
    loaded: Option<Loaded>,
    travelling: Travelling,
) -> BatchEnd {
    let KeyUse { ring, fence, batch, key } = checkout.batch.key_use;
    let span = tracing::info_span!(
        "batch", %ring, %batch, %key, %fence, node = %stations.node,
        records = checkout.batch.range.record_count
    );
    take_to_its_end(stations, checkout, loaded, travelling).instrument(span).await
}

async fn take_to_its_end(
    stations: Stations,
    checkout: Checkout,
    loaded: Option<Loaded>,
    travelling: Travelling,
) -> BatchEnd {
    let records = u64::from(checkout.batch.range.record_count);
    reach("batch", "started");
    match sign_and_store(&stations, &checkout, loaded, travelling).await {
        Ok(()) => {
            reach("batch", "stored");
            stations.stored.send_modify(|batches| *batches += 1);
            return_key(&stations, &checkout, Return::Ended(Outcome::Stored)).await;
            reach("batch", "ended");
            BatchEnd::Stored { records }
        }
        Err(Failure::Fenced(outcome)) => {
            return_key(&stations, &checkout, Return::Ended(outcome)).await;
            tracing::warn!(
                %outcome, "fenced: threw away what another node signs"
            );
            BatchEnd::Fenced
        }
        Err(Failure::Batch(reason)) => give_up(&stations, &checkout, records, reason, true).await,
        Err(Failure::Node(reason)) => give_up(&stations, &checkout, records, reason, false).await,
        Err(Failure::Faulty { reason, record, signatures }) => {
            let kid = jwk::kid(&checkout.key.public_key());
            tracing::error!(
                %kid, %record, signatures, "made signatures that do not verify; none is stored"
            );
            match give_up(&stations, &checkout, records, reason, true).await {
                BatchEnd::GivenUp { reason } => BatchEnd::Faulty { reason, signatures },
                other => other,
            }
        }
        Err(Failure::Token(reason)) => hand_back_to_token(&stations, &checkout, reason).await,
    }
}

async fn give_up(
    stations: &Stations,
    checkout: &Checkout,
    records: u64,
    reason: String,
    blame: bool,
) -> BatchEnd {
    tracing::warn!(attempts = checkout.batch.attempts, reason, "giving a batch up");
    let how = Return::GiveUp { failure: blame.then(|| reason.clone()) };
    match return_key(stations, checkout, how).await {
        // The reply of the store that succeeded was lost.
        Some(Outcome::Stored) => BatchEnd::Stored { records },
        outcome => {
            let last_attempt = blame && checkout.batch.attempts + 1 >= stations.max_attempts;
            if last_attempt && outcome == Some(Outcome::Abandoned) {
                tracing::error!(records, reason, "quarantined a batch that failed too often");
            }
            BatchEnd::GivenUp { reason }
        }
    }
}

/// Gives a batch back that the token did not sign; who waits for the token says why, and not every batch.
async fn hand_back_to_token(stations: &Stations, checkout: &Checkout, reason: String) -> BatchEnd {
    tracing::debug!(reason, "giving a batch back: the token failed");
    return_key(stations, checkout, Return::GiveUp { failure: None }).await;
    BatchEnd::TokenFailed { reason }
}

/// Gives a batch back that will not be started.
pub(super) async fn hand_back(stations: Stations, checkout: Checkout) {
    return_key(&stations, &checkout, Return::GiveUp { failure: None }).await;
}

/// Tells the KeyManager how the use ended, again while the database is not reachable; how it
/// stands there, if that is known.
async fn return_key(stations: &Stations, checkout: &Checkout, how: Return) -> Option<Outcome> {
    let key_use = checkout.batch.key_use;
    loop {
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
}

async fn sign_and_store(
    stations: &Stations,
    checkout: &Checkout,
    loaded: Option<Loaded>,
    travelling: Travelling,
) -> Result<(), Failure> {
    let begun = stations.clock.now();
    let signing = sign(stations, checkout, loaded).instrument(tracing::info_span!("sign"));
    let signatures = signing.await?;
    let signed = stations.clock.now();
    stations.timings.sign.observe(signed.saturating_sub(begun).as_secs_f64());
    reach("batch", "signed");
    let key_use = checkout.batch.key_use;
    let batch = SignedBatch { key_use, signatures };
    drop(travelling);
    // No watchdog here: the writer answers when the database has.
    let stored = stations.writer.send(StoreBatch(batch)).instrument(tracing::info_span!("store"));
    let reply = stored.await;
    stations.timings.store.observe(stations.clock.now().saturating_sub(signed).as_secs_f64());
    match reply {
        Ok(StoreReply::Stored) => Ok(()),
        Ok(StoreReply::Fenced(outcome)) => Err(Failure::Fenced(outcome)),
        Ok(StoreReply::Refused(reason)) => Err(Failure::Batch(reason)),
        Ok(StoreReply::Unsettled(reason)) => Err(Failure::Node(reason)),
        Err(error) => Err(Failure::Node(format!("the writer is gone: {error}"))),
    }
}

/// Loads and signs a batch slice by slice; the first slice may have been loaded already.
async fn sign(
    stations: &Stations,
    checkout: &Checkout,
    mut loaded: Option<Loaded>,
) -> Result<Vec<(RecordId, Signature)>, Failure> {
    let range = checkout.batch.range;
    let expected = range.record_count as usize;
    let mut signatures = Vec::with_capacity(expected);
    let mut after = None;
    let mut slice_bytes = stations.slice_bytes;
    while signatures.len() < expected {
        let mut slice = match loaded.take() {
            Some(slice) => slice,
            None => load_slice(stations, checkout, after, &mut slice_bytes).await?,
        };
        let Some(last) = slice.records.last() else { break };
        reach("batch", "loaded");
        after = Some(last.position);
        let mut rest = std::mem::take(&mut slice.records);
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(most_at_a_time(&checkout.key)));
            let message = SignBatch {
                key: checkout.key.clone(),
                deadline: checkout.deadline.clone(),
                records: std::mem::replace(&mut rest, later),
            };
            let signed = answer(stations, "signer", stations.signer.send(message)).await??;
            signatures.extend(signed);
        }
    }
    let found = signatures.len();
    if found != expected {
        Err(Failure::Batch(format!("its range holds {found} records, it was made with {expected}")))
    } else if after != Some(range.high) {
        let reason = format!("its range holds more than the {expected} records it was made with");
        Err(Failure::Batch(reason))
    } else {
        Ok(signatures)
    }
}

/// How many records a signer is handed at a time: a token may take a tenth of a second for each, and
/// must answer in the watchdog's time.
fn most_at_a_time(key: &KeyHandle) -> usize {
    match key {
        KeyHandle::Software(_) => usize::MAX,
        KeyHandle::Token(_) => 100,
    }
}

/// A station's answer; a missing one is a failure.
pub(super) async fn answer<T>(
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
