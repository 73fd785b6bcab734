//! The node's word to those who look at the database: three times a lease, and at each change.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::{State, Supervisor};
use crate::actors::messages::Drain;
use crate::actors::off_thread;
use crate::actors::reports::RingReport;
use crate::actors::troubles::Place;
use crate::db::{Blocker, NodeOrders, StoreError};
use crate::types::{BlockerKind, NodeState};

/// How soon the node looks around for the first time: the first batches need the sessions that there are.
pub(super) const FIRST_LOOK: Duration = Duration::from_millis(100);

/// The longest pause between two reports.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long nothing is said again of others' transactions.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

impl From<State> for NodeState {
    fn from(state: State) -> Self {
        match state {
            State::Running => NodeState::Running,
            State::Paused => NodeState::Paused,
            State::Draining => NodeState::Draining,
        }
    }
}

impl Supervisor {
    /// Reports and looks around now, and again after a third of a lease or less.
    pub(super) fn report_for_ever(&mut self, context: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let paused = self.state == State::Paused;
        // Before the look, which may take its time.
        self.report(context);
        let told = self.stations.troubles.summary();
        let look = off_thread(move || {
            // Nothing else of a paused node looks for a database that went back in time.
            if paused {
                store.has_work(ring)?;
            }
            let mut blockers = store.blockers()?;
            // A writer harms nobody as long as nothing waits for it.
            if !blockers.is_empty() && !store.is_held_back(ring)? {
                blockers.retain(|blocker| blocker.kind == BlockerKind::Snapshot);
            }
            Ok((blockers, store.orders(ring)?))
        });
        context.spawn(look.into_actor(self).map(move |look, actor, context| {
            match look {
                Ok((blockers, orders)) => {
                    actor.note_blockers(&blockers);
                    actor.obey(orders, context);
                }
                Err(error @ StoreError::RolledBack { .. }) => actor.fail(error),
                // Any other shows where the work is done.
                Err(_) => {}
            }
            if actor.stations.troubles.summary() != told {
                actor.report(context);
            }
            // Not by an interval: that would make up for every report that a slow database missed.
            let pause = LONGEST_PAUSE.min(actor.settings.reports.lease() / 3);
            context.run_later(pause, Supervisor::report_for_ever);
        }));
    }

    /// Writes down what the node does and what troubles it.
    pub(super) fn report(&mut self, context: &mut Context<Self>) {
        let report = RingReport {
            state: Some(self.state.into()),
            in_flight: self.in_flight,
            trouble: self.stations.troubles.summary(),
            has_finished: self.finished.is_none(),
            ..RingReport::default()
        };
        self.settings.reports.note(self.settings.ring, report);
        let (store, reports) = (Arc::clone(&self.store), self.settings.reports.clone());
        let written = off_thread(move || reports.write(store.as_ref()));
        context.spawn(written.into_actor(self).map(|written, _, _| {
            if let Err(error) = written {
                tracing::debug!(%error, "could not write the node's report");
            }
        }));
    }

    /// Does what administrators ask of all nodes.
    fn obey(&mut self, orders: NodeOrders, context: &mut Context<Self>) {
        self.snapshot.ring_paused = orders.ring_paused;
        if orders.drain && self.state != State::Draining {
            let ring = &self.settings.ring_name;
            tracing::info!(ring, "an administrator asks all nodes to drain");
            context.notify(Drain { deadline: self.settings.reports.lease() });
        }
    }

    /// Says which transactions of others hold the work up: at once, and then now and again.
    fn note_blockers(&mut self, blockers: &[Blocker]) {
        let Some(oldest) = blockers.first() else {
            return self.stations.troubles.clear(Place::Blocker);
        };
        self.stations.troubles.set(Place::Blocker, oldest.to_string());
        let now = self.stations.clock.now();
        if self.next_blocker_complaint.is_none_or(|next| now >= next) {
            self.next_blocker_complaint = Some(now + COMPLAINT_PAUSE);
            for blocker in blockers {
                tracing::warn!("{blocker}");
            }
        }
    }
}
