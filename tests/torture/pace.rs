//! Waits of a schedule, which end early when the whole does.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Says to all threads when it is over.
#[derive(Default)]
pub(crate) struct Pace {
    is_over: Mutex<bool>,
    changed: Condvar,
}

/// Ends a pace when it is dropped, so also when its holder panics: the other threads follow.
pub(crate) struct EndsWithMe<'a>(pub(crate) &'a Pace);

impl Pace {
    /// Waits for that long; whether it goes on after that.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut is_over = self.is_over.lock().unwrap();
        while !*is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            is_over = self.changed.wait_timeout(is_over, left).unwrap().0;
        }
        false
    }

    /// Ends all waits, from now on.
    pub(crate) fn end(&self) {
        *self.is_over.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Drop for EndsWithMe<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
