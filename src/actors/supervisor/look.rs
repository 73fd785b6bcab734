//! How a Supervisor that has nothing to do finds out whether there is anything left to do.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::task::JoinHandle;

use super::{Finished, State, Supervisor};
use crate::actors::off_thread;
use crate::actors::troubles::Place;
use crate::db::{Remaining, Shortage, StoreError};

/// How long nothing is said again of what keeps records waiting.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// A node that waits for more spends no more than one part in so many of its time on looks for what is
/// left, which take the longer the more has been signed.
const LOOKS_SHARE: u32 = 20;

/// What a look around found.
enum Look {
    Done(Remaining),
    OthersWork,
    Swept(u64),
    NotYet(Remaining),
}

/// The question whether all records are in batches, asked while the last of these were in flight.
pub(super) struct Count {
    all_in_batches: JoinHandle<Result<bool, StoreError>>,
    /// The Supervisor's check-outs when it was asked; what is checked out later may come after the count.
    checkouts: u64,
}

impl Supervisor {
    /// Asks by a read without a lock, as long as there was nothing to check out.
    pub(super) fn look_for_work(&mut self, context: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let work = off_thread(move || store.has_work(ring));
        context.spawn(work.into_actor(self).map(|work, actor, context| {
            actor.asking = false;
            actor.stations.troubles.note(Place::CheckOut, &work);
            match work {
                Ok(true) => {
                    actor.quiet = false;
                    actor.pump(context);
                }
                // Its end brings the next look.
                Ok(false) if actor.in_flight > 0 => {}
                // Nothing is declared or swept meanwhile, so what is left need not be counted.
                Ok(false) if actor.snapshot.ring_paused => actor.rest(context),
                Ok(false) => {
                    actor.note_token_works();
                    actor.look_around(Shortage::NoWork, context);
                }
                Err(error) => actor.could_not(error, context),
            }
            actor.after_asking(context);
        }));
    }

    /// Nothing to check out, and the last batches are in flight: counts the records while these are
    /// signed, so that the look for what is left need not.
    pub(super) fn count_ahead(&mut self) {
        let is_under_way =
            self.count.as_ref().is_some_and(|count| !count.all_in_batches.is_finished());
        // A node that ends for another reason would wait for a count that nobody asks for.
        let is_of_use = self.settings.until_done
            && self.state == State::Running
            && self.finished.is_some()
            && self.failure.is_none();
        if !is_of_use || is_under_way || !self.may_look() {
            return;
        }
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let all_in_batches = tokio::task::spawn_blocking(move || store.all_in_batches(ring));
        self.count = Some(Count { all_in_batches, checkouts: self.checkouts });
    }

    /// Whether the last look for what is left is long enough ago.
    fn may_look(&self) -> bool {
        self.next_look.is_none_or(|next| self.stations.clock.now() >= next)
    }

    /// Nothing to check out and nothing in flight: is everything signed?
    pub(super) fn look_around(&mut self, shortage: Shortage, context: &mut Context<Self>) {
        // Who asked for work may hear that there is none when the end has been told.
        if self.state == State::Draining || self.finished.is_none() {
            return;
        }
        // It may take long, and what arrives meanwhile is not to wait for its end.
        self.rest(context);
        if self.looking || !self.may_look() {
            return;
        }
        let begun = self.stations.clock.now();
        self.next_look = Some(begun + self.settings.look_every);
        self.looking = true;
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let count = self.count.take();
        let find_out = move |all_in_batches: bool| {
            let progress = store.progress(ring)?;
            // Without a key, batches to be retried are nobody's work.
            let waits_for_key = shortage == Shortage::NoActiveKey && progress.open_batches == 0;
            if progress.open_batches + progress.retry_batches > 0 && !waits_for_key {
                return Ok(Look::OthersWork);
            }
            let remaining = if all_in_batches {
                store.remaining_in_batches(ring)?
            } else {
                store.remaining(ring)?
            };
            if remaining.is_done() {
                Ok(Look::Done(remaining))
            } else if remaining.behind_cursor > 0 {
                store.sweep(ring).map(Look::Swept)
            } else {
                Ok(Look::NotYet(remaining))
            }
        };
        let count = async move {
            let count = count?;
            // Where it failed, what follows fails for the same reason, or does without.
            matches!(count.all_in_batches.await, Ok(Ok(true))).then_some(count.checkouts)
        };
        let look = count.into_actor(self).then(move |all_in_batches, actor, _| {
            // What has been checked out since then may have come after it.
            let all_in_batches = all_in_batches == Some(actor.checkouts);
            off_thread(move || find_out(all_in_batches)).into_actor(actor)
        });
        context.spawn(look.map(move |look, actor, context| {
            actor.looking = false;
            if !actor.settings.until_done {
                let now = actor.stations.clock.now();
                let pause = now.saturating_sub(begun).saturating_mul(LOOKS_SHARE);
                actor.next_look = actor.next_look.max(Some(now + pause));
            }
            match look {
                // What was begun meanwhile looks again when it has ended; what was swept is swept.
                Ok(Look::Done(_) | Look::NotYet(_) | Look::OthersWork)
                    if actor.in_flight > 0 || actor.checks_out() => {}
                Ok(look) => actor.act_on(look, shortage, context),
                Err(error) => actor.could_not(error, context),
            }
        }));
    }

    /// Whether a check-out is under way, and not just a read that asks for work.
    fn checks_out(&self) -> bool {
        self.asking && !self.quiet
    }

    fn act_on(&mut self, look: Look, shortage: Shortage, context: &mut Context<Self>) {
        self.stations.troubles.clear(Place::CheckOut);
        if !matches!(look, Look::NotYet(_)) {
            self.stations.troubles.clear(Place::Waiting);
        }
        match look {
            Look::Done(remaining) if self.settings.until_done => {
                self.finish(Finished::Done(remaining));
            }
            Look::NotYet(remaining)
                if self.settings.until_done && shortage == Shortage::NoActiveKey =>
            {
                self.finish(Finished::NoActiveKey(remaining));
            }
            Look::Swept(records) if records > 0 => {
                let ring = &self.settings.ring_name;
                tracing::warn!(ring, records, "swept unsigned records from behind the cursor");
                self.snapshot.swept_records += records;
                self.quiet = false;
                self.pump(context);
            }
            // It rests already, since the look began.
            Look::NotYet(remaining) => self.complain(&remaining, shortage),
            Look::Done(_) | Look::Swept(_) | Look::OthersWork => {}
        }
    }

    /// Says that no key keeps records waiting: at once, and then now and again. Transactions that do
    /// are told with the node's reports.
    fn complain(&mut self, remaining: &Remaining, shortage: Shortage) {
        if shortage != Shortage::NoActiveKey {
            return self.stations.troubles.clear(Place::Waiting);
        }
        self.stations.troubles.set(Place::Waiting, "the ring has no active key".to_owned());
        let now = self.stations.clock.now();
        if self.next_complaint.is_none_or(|next| now >= next) {
            self.next_complaint = Some(now + COMPLAINT_PAUSE);
            let ring = &self.settings.ring_name;
            tracing::warn!(ring, unsigned = remaining.unsigned, "the ring has no active key");
        }
    }
}
