//! How a Supervisor that has nothing to do finds out whether there is anything left to do.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::{Finished, State, Supervisor};
use crate::actors::off_thread;
use crate::actors::troubles::Place;
use crate::db::{Remaining, Shortage};

/// How long nothing is said again of what keeps records waiting.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// What a look around found.
enum Look {
    Done(Remaining),
    OthersWork,
    Swept(u64),
    NotYet(Remaining),
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
                // Nothing is declared or swept meanwhile, so what is left need not be counted.
                Ok(false) if actor.snapshot.ring_paused => actor.rest(context),
                Ok(false) => actor.look_around(Shortage::NoWork, context),
                Err(error) => actor.could_not(error, context),
            }
            actor.after_asking(context);
        }));
    }

    /// Nothing to check out and nothing in flight: is everything signed?
    pub(super) fn look_around(&mut self, shortage: Shortage, context: &mut Context<Self>) {
        if self.state == State::Draining {
            return;
        }
        // It may take long, and what arrives meanwhile is not to wait for its end.
        self.rest(context);
        let now = self.stations.clock.now();
        if self.looking || self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = Some(now + self.settings.look_every);
        self.looking = true;
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let look = off_thread(move || {
            let progress = store.progress(ring)?;
            // Without a key, batches to be retried are nobody's work.
            let waits_for_key = shortage == Shortage::NoActiveKey && progress.open_batches == 0;
            if progress.open_batches + progress.retry_batches > 0 && !waits_for_key {
                return Ok(Look::OthersWork);
            }
            let remaining = store.remaining(ring)?;
            if remaining.is_done() {
                Ok(Look::Done(remaining))
            } else if remaining.behind_cursor > 0 {
                store.sweep(ring).map(Look::Swept)
            } else {
                Ok(Look::NotYet(remaining))
            }
        });
        context.spawn(look.into_actor(self).map(move |look, actor, context| {
            actor.looking = false;
            match look {
                // What was begun meanwhile looks again when it has ended.
                Ok(_) if actor.in_flight > 0 || actor.checks_out() => {}
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
