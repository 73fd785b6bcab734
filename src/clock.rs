//! Time as a node sees it: a clock that goes on while the machine sleeps, for leases.
//!
//! No rule depends on it. It only keeps a node from starting a signature whose store would be
//! fenced anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A source of monotonic time.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed instant, suspended time included.
    fn now(&self) -> Duration;
}

/// `CLOCK_BOOTTIME` where there is one, else `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(id);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(seconds, nanos)
    }
}

/// The instant after which a node starts no signature under a lease; a renewal moves it on.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<AtomicU64>);

impl Deadline {
    /// A deadline at `at` on the node's [`Clock`].
    #[must_use]
    pub fn new(at: Duration) -> Self {
        Deadline(Arc::new(AtomicU64::new(as_nanos(at))))
    }

    /// Moves the deadline to `at`, never backwards.
    pub fn extend(&self, at: Duration) {
        self.0.fetch_max(as_nanos(at), Ordering::AcqRel);
    }

    /// Whether it has passed.
    #[must_use]
    pub fn has_passed(&self, clock: &dyn Clock) -> bool {
        as_nanos(clock.now()) >= self.0.load(Ordering::Acquire)
    }
}

fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Duration);

    impl Clock for Fixed {
        fn now(&self) -> Duration {
            self.0
        }
    }

    #[test]
    fn a_deadline_passes_at_its_instant_and_only_moves_forward() {
        let deadline = Deadline::new(Duration::from_secs(10));
        assert!(!deadline.has_passed(&Fixed(Duration::from_millis(9_999))));
        assert!(deadline.has_passed(&Fixed(Duration::from_secs(10))));
        deadline.extend(Duration::from_secs(20));
        deadline.extend(Duration::from_secs(5));
        assert!(!deadline.has_passed(&Fixed(Duration::from_secs(19))));
    }

    #[test]
    fn the_boot_clock_does_not_go_backwards() {
        let first = BootClock.now();
        assert!(BootClock.now() >= first);
    }
}
