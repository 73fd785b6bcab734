//! Crashes of the PostgreSQL server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use testkit::{Postgres, StopMode};

use crate::chance::Chance;
use crate::pace::Pace;

/// Stops the server as a crash would, and starts it again, until it is over; then it runs.
pub(crate) fn crash_again_and_again(
    server: &Postgres,
    interval: Duration,
    pace: &Pace,
    mut chance: Chance,
    crashes: &AtomicU64,
) {
    while pace.wait(chance.around(interval)) {
        server.stop(StopMode::Immediate).unwrap();
        pace.wait(chance.milliseconds(0, 2500));
        server.start_again().unwrap();
        crashes.fetch_add(1, Ordering::Relaxed);
    }
}
