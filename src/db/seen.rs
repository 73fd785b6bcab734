//! The rollback guard: the highest tick of each ring that this node has seen committed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::StoreError;
use crate::types::{RingId, Tick};

#[derive(Default)]
pub(super) struct SeenTicks(Mutex<HashMap<RingId, Tick>>);

impl SeenTicks {
    /// The highest tick seen so far; zero if none.
    pub(super) fn highest(&self, ring: RingId) -> Tick {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&ring).copied().unwrap_or(Tick::ZERO)
    }

    /// Refuses a tick, read under the ring's lock, that is lower than one seen committed.
    pub(super) fn check(&self, ring: RingId, now: Tick) -> Result<(), StoreError> {
        no_step_back(ring, self.highest(ring), now)
    }

    /// Remembers a tick that has been committed.
    pub(super) fn saw(&self, ring: RingId, tick: Tick) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let highest = seen.entry(ring).or_insert(tick);
        *highest = tick.max(*highest);
    }

    /// Checks and remembers a tick that `read` returns without the ring's lock.
    ///
    /// What counts is what was seen before the read: other threads of this node go on meanwhile.
    pub(super) fn check_read<T>(
        &self,
        ring: RingId,
        read: impl FnOnce() -> Result<(T, Tick), StoreError>,
    ) -> Result<T, StoreError> {
        let seen = self.highest(ring);
        let (value, now) = read()?;
        no_step_back(ring, seen, now)?;
        self.saw(ring, now);
        Ok(value)
    }
}

fn no_step_back(ring: RingId, seen: Tick, now: Tick) -> Result<(), StoreError> {
    if now < seen { Err(StoreError::RolledBack { ring, seen, now }) } else { Ok(()) }
}
