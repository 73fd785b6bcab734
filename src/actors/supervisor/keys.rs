//! What a Supervisor knows of its ring's keys, where these are scarcer than permits.

use std::time::Duration;

use actix::prelude::*;

use super::Supervisor;
use crate::actors::messages::Granted;
use crate::db::Shortage;

/// What the check-outs have shown.
#[derive(Default)]
pub(super) struct KeyWatch {
    /// With how many batches in flight there was no free key for one more.
    most: Option<u32>,
    /// Since when there is work and no free key, on the node's clock.
    lacking_since: Option<Duration>,
    /// The end of the time for which keys that are back wait for others.
    patience: Option<SpawnHandle>,
}

impl KeyWatch {
    /// There may be other keys than there were.
    pub(super) fn forget(&mut self) {
        self.most = None;
    }

    /// A check-out takes what is back.
    pub(super) fn no_longer_waits(&mut self, context: &mut Context<Supervisor>) {
        if let Some(patience) = self.patience.take() {
            context.cancel_future(patience);
        }
    }
}

impl Supervisor {
    /// Whether a check-out would find so few free keys that it is put off for a moment: one transaction
    /// ends many batches, and the Supervisor is told of each by itself.
    pub(super) fn waits_for_keys(&mut self, context: &mut Context<Self>) -> bool {
        let Some(most) = self.keys.most else { return false };
        let back = most.saturating_sub(self.in_flight);
        if self.in_flight == 0 || back >= (most / 4).max(1) {
            return false;
        }
        if back > 0 && self.keys.patience.is_none() {
            let patience = context.run_later(self.settings.key_patience, |actor, context| {
                actor.keys.patience = None;
                actor.keys.forget();
                actor.pump(context);
            });
            self.keys.patience = Some(patience);
        }
        true
    }

    /// Notes what a check-out says of the keys, which was asked for with so many batches in flight. The keys
    /// of those that have ended since may be free, so that what is in flight now would be too few.
    pub(super) fn note_keys(&mut self, granted: &Granted, in_flight_before: u32) {
        let came = u32::try_from(granted.checkouts.len()).unwrap_or(u32::MAX);
        let now = self.stations.clock.now();
        if came > 0
            && let Some(since) = self.keys.lacking_since.take()
        {
            self.stations.timings.key_wait.observe(now.saturating_sub(since).as_secs_f64());
        }
        self.keys.forget();
        match granted.shortage {
            Some(Shortage::NoFreeKey) => {
                self.keys.lacking_since.get_or_insert(now);
                self.keys.most = Some(in_flight_before.saturating_add(came));
            }
            // Nothing waits for a key any more, or not for one that somebody else has.
            Some(Shortage::NoWork | Shortage::NoActiveKey | Shortage::Paused) => {
                self.keys.lacking_since = None;
            }
            None => {}
        }
    }
}
