//! Brings payloads into memory, within what the node may hold of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::batch_job::{Failure, Stations, answer};
use super::messages::{Checkout, LoadBatch};
use crate::db::StoreError;
use crate::types::{BatchRange, Position, Record};

/// The unit of the permits on payload bytes.
const PERMIT_BYTES: usize = 1024;

/// How many records are loaded together for several batches, at the most.
pub(super) const MOST_TOGETHER: u32 = 4096;

/// How long to wait between attempts while the database is not reachable.
const PAUSE: Duration = Duration::from_millis(250);

/// Bounds the payload bytes in this node's memory.
pub(super) struct PayloadPermits {
    semaphore: Arc<Semaphore>,
    most: u32,
}

impl PayloadPermits {
    pub(super) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / PERMIT_BYTES as u64).unwrap_or(u32::MAX >> 3).max(1);
        PayloadPermits { semaphore: Arc::new(Semaphore::new(most as usize)), most }
    }

    fn permits(&self, bytes: usize) -> u32 {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        permits.clamp(1, self.most)
    }

    async fn acquire(&self, permits: u32) -> Result<OwnedSemaphorePermit, Failure> {
        let acquired = Arc::clone(&self.semaphore).acquire_many_owned(permits).await;
        acquired.map_err(|_| Failure::Node("the node is stopping".to_owned()))
    }

    /// How many bytes of payload are loaded, or may be at any moment, in whole permits.
    pub(super) fn taken_bytes(&self) -> u64 {
        let taken = (self.most as usize).saturating_sub(self.semaphore.available_permits());
        (taken * PERMIT_BYTES) as u64
    }
}

/// Records of a batch, with the permits for their payloads.
pub(super) struct Loaded {
    pub(super) records: Vec<Record>,
    _held: Arc<OwnedSemaphorePermit>,
}

/// Loads a slice while it holds permits for it. Records larger than expected raise `slice_bytes`,
/// what this batch takes permits for from then on.
pub(super) async fn load_slice(
    stations: &Stations,
    checkout: &Checkout,
    after: Option<Position>,
    slice_bytes: &mut usize,
) -> Result<Loaded, Failure> {
    let permits = &stations.payload_permits;
    loop {
        let wanted = permits.permits(*slice_bytes);
        let mut held = permits.acquire(wanted).await?;
        let records = load(stations, checkout, after).await?;
        let bytes = note_payload_bytes(stations, &records);
        let needed = permits.permits(bytes);
        if needed <= wanted {
            drop(held.split((wanted - needed) as usize));
            return Ok(Loaded { records, _held: Arc::new(held) });
        }
        *slice_bytes = bytes;
        let more = Arc::clone(&permits.semaphore).try_acquire_many_owned(needed - wanted);
        if let Ok(more) = more {
            held.merge(more);
            return Ok(Loaded { records, _held: Arc::new(held) });
        }
        // To wait for more while holding some could be a wait for each other: load it again.
    }
}

/// Loads a slice, again while the database is not reachable and the lease lasts.
async fn load(
    stations: &Stations,
    checkout: &Checkout,
    after: Option<Position>,
) -> Result<Vec<Record>, Failure> {
    loop {
        let error = match ask_loader(stations, checkout, checkout.batch.range, after).await? {
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

async fn ask_loader(
    stations: &Stations,
    checkout: &Checkout,
    range: BatchRange,
    after: Option<Position>,
) -> Result<Result<Vec<Record>, StoreError>, Failure> {
    let ring = checkout.batch.key_use.ring;
    let message = LoadBatch { ring, range, after, max_bytes: stations.slice_bytes };
    answer(stations, "loader", stations.loader.send(message)).await
}

/// The payloads' bytes; the next slices are expected to have as many for each record.
fn note_payload_bytes(stations: &Stations, records: &[Record]) -> usize {
    let bytes = records.iter().map(|record| record.payload.len()).sum();
    if let Some(mean) = usize::checked_div(bytes, records.len()) {
        stations.record_bytes.store(mean as u64, Ordering::Relaxed);
    }
    bytes
}

/// Puts together batches that follow upon each other, as many as one query is likely to load in one slice.
pub(super) fn together(stations: &Stations, checkouts: Vec<Checkout>) -> Vec<Vec<Checkout>> {
    let record_bytes = stations.record_bytes.load(Ordering::Relaxed).max(1);
    // Records differ in size, so half a slice is left to chance.
    let most = (stations.slice_bytes as u64 / (2 * record_bytes)).min(MOST_TOGETHER.into());
    let mut groups: Vec<Vec<Checkout>> = Vec::new();
    let mut records = 0;
    for checkout in checkouts {
        let own = u64::from(checkout.batch.range.record_count);
        records += own;
        match groups.last_mut() {
            Some(group) if records <= most && follows(&checkout, group) => {
                group.push(checkout);
            }
            _ => {
                records = own;
                groups.push(vec![checkout]);
            }
        }
    }
    groups
}

/// Whether a batch lies behind those of a group, which a retried one may not.
fn follows(checkout: &Checkout, group: &[Checkout]) -> bool {
    group.last().is_some_and(|last| {
        last.batch.range.high < checkout.batch.range.low
            && last.batch.attempts == 0
            && checkout.batch.attempts == 0
    })
}

/// Loads what it can of a group by one query. A batch for which there is nothing is to be loaded by
/// itself, which also tells why.
pub(super) async fn load_together(
    stations: &Stations,
    checkouts: &[Checkout],
) -> Vec<Option<Loaded>> {
    let nothing = || checkouts.iter().map(|_| None).collect();
    let ([first, .., last], permits) = (checkouts, &stations.payload_permits) else {
        return nothing();
    };
    let range = BatchRange {
        low: first.batch.range.low,
        high: last.batch.range.high,
        record_count: checkouts.iter().map(|checkout| checkout.batch.range.record_count).sum(),
    };
    let wanted = permits.permits(stations.slice_bytes);
    let Ok(mut held) = permits.acquire(wanted).await else { return nothing() };
    let records = match ask_loader(stations, first, range, None).await {
        Ok(Ok(records)) => records,
        Ok(Err(error)) => {
            if !error.is_retryable() {
                tracing::warn!(%error, "could not load batches together: each by itself");
            }
            return nothing();
        }
        Err(_) => return nothing(),
    };
    let needed = permits.permits(note_payload_bytes(stations, &records));
    if needed > wanted {
        return nothing();
    }
    drop(held.split((wanted - needed) as usize));
    let held = Arc::new(held);
    let mut records = records.into_iter().peekable();
    let deal = checkouts.iter().map(|checkout| {
        let BatchRange { low, high, record_count } = checkout.batch.range;
        // What lies between two batches belongs to neither.
        while records.next_if(|record| record.position < low).is_some() {}
        let mut own = Vec::with_capacity(record_count as usize);
        while let Some(record) = records.next_if(|record| record.position <= high) {
            own.push(record);
        }
        let is_whole = own.len() == record_count as usize
            && own.last().is_some_and(|record| record.position == high);
        is_whole.then(|| Loaded { records: own, _held: Arc::clone(&held) })
    });
    deal.collect()
}
