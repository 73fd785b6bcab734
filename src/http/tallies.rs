//! What has been signed so far, added up from where the last look ended: the cost of a look does not
//! grow with what is stored.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::db::{KeyTally, Progress, Store, StoreError};
use crate::types::{KeyId, RingId, Tick, Timestamp};

/// The sums.
#[derive(Default)]
pub(super) struct Tallies(Mutex<Sums>);

#[derive(Clone, Default)]
struct Sums {
    until: Tick,
    batches: u64,
    records: u64,
    keys: HashMap<KeyId, OfKey>,
}

/// What a key has signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfKey {
    pub(super) batches: u64,
    pub(super) last_at: Timestamp,
}

impl Tallies {
    /// Where the ring stands now, as [`Store::progress`] would say.
    pub(super) fn progress(&self, store: &dyn Store, ring: RingId) -> Result<Progress, StoreError> {
        let unfinished = store.unfinished(ring)?;
        // One at a time, or two would count the same batches.
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in store.tally(ring, sums.until)? {
            sums.add(tally);
        }
        Ok(Progress { stored_batches: sums.batches, signed_records: sums.records, ..unfinished })
    }

    /// What a key has signed, as of the last look.
    pub(super) fn of_key(&self, key: KeyId) -> Option<OfKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys.get(&key).copied()
    }
}

impl Sums {
    fn add(&mut self, tally: KeyTally) {
        self.until = self.until.max(tally.last_tick);
        self.batches += tally.batches;
        self.records += tally.records;
        let key = self.keys.entry(tally.key);
        let of_key = key.or_insert(OfKey { batches: 0, last_at: tally.last_at });
        of_key.batches += tally.batches;
        of_key.last_at = of_key.last_at.max(tally.last_at);
    }
}
