//! What the rings of a node share: how many batches each may have in flight, and the payload bytes of
//! all of them.
//!
//! Signers, loaders and writers answer in the order in which they were asked. So a ring waits for what
//! the others have in flight at the most, and that is what is shared out: equally among those that have
//! work, so that a ring without any costs the others nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::loading::PayloadPermits;

/// A node's budget; clones are the same one.
#[derive(Clone)]
pub struct Budget {
    busy_rings: Arc<AtomicU32>,
    pub(super) payload_permits: Arc<PayloadPermits>,
    max_bytes: u64,
}

impl Budget {
    /// With so many bytes of payload in memory at once, handed out in the order of asking.
    #[must_use]
    pub fn new(max_in_flight_bytes: u64) -> Self {
        Budget {
            busy_rings: Arc::default(),
            payload_permits: Arc::new(PayloadPermits::new(max_in_flight_bytes)),
            max_bytes: max_in_flight_bytes,
        }
    }

    /// How many bytes of payload all rings have in memory, or may have at any moment.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_permits.taken_bytes()
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// The share of one more ring, which would have `alone` batches in flight if it were the only one.
    /// It has work until it says that it has none: who starts first takes no more than its part.
    pub(super) fn share(&self, alone: u32) -> Share {
        let mut share = Share { budget: self.clone(), alone, is_busy: false };
        share.set_busy(true);
        share
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy_rings = self.busy_rings.load(Ordering::Relaxed);
        f.debug_struct("Budget").field("busy_rings", &busy_rings).finish_non_exhaustive()
    }
}

/// A ring's share of its node's budget.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    alone: u32,
    is_busy: bool,
}

impl Share {
    /// How many batches the ring may have in flight now, at least one. It falls when another ring gets
    /// work: what is in flight then goes on, and no more is started until it fits.
    pub(super) fn most(&self) -> u32 {
        let busy = self.budget.busy_rings.load(Ordering::Relaxed) + u32::from(!self.is_busy);
        (self.alone / busy.max(1)).max(1)
    }

    /// Says whether the ring has work.
    pub(super) fn set_busy(&mut self, is_busy: bool) {
        if is_busy == self.is_busy {
            return;
        }
        self.is_busy = is_busy;
        if is_busy {
            self.budget.busy_rings.fetch_add(1, Ordering::Relaxed);
        } else {
            self.budget.busy_rings.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_that_have_work_share_equally_and_one_without_takes_nothing() {
        let budget = Budget::new(1 << 20);
        let (big, mut small, mut idle) = (budget.share(12), budget.share(99), budget.share(12));
        assert_eq!((big.most(), small.most(), idle.most()), (4, 33, 4), "before any has looked");
        idle.set_busy(false);
        idle.set_busy(false);
        assert_eq!((big.most(), small.most()), (6, 49));
        assert_eq!(idle.most(), 4, "who comes counts itself");
        small.set_busy(false);
        assert_eq!((big.most(), small.most()), (12, 49));
        small.set_busy(true);
        drop(small);
        assert_eq!(big.most(), 12);
    }

    #[test]
    fn every_ring_may_have_a_batch_in_flight_however_many_there_are() {
        let budget = Budget::new(1 << 20);
        let shares: Vec<Share> = (0..5).map(|_| budget.share(2)).collect();
        assert!(shares.iter().all(|share| share.most() == 1));
    }
}
