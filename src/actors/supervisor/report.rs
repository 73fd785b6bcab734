//! The node's word to those who look at the database: three times a lease, and at each change.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::{State, Supervisor};
use crate::actors::off_thread;
use crate::actors::troubles::Place;
use crate::db::{Blocker, NodeReport};
use crate::types::{BlockerKind, NodeState};

/// How long nothing is said again of an old snapshot.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

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
    /// Reports now, and again after a third of a lease.
    pub(super) fn report_for_ever(&mut self, context: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let look = off_thread(move || store.blockers());
        context.spawn(look.into_actor(self).map(|blockers, actor, context| {
            // An error here shows where the work is done.
            if let Ok(blockers) = blockers {
                actor.note_snapshots(&blockers);
            }
            actor.report(context);
            // Not by an interval: that would make up for every report that a slow database missed.
            context.run_later(actor.settings.report.lease / 3, Supervisor::report_for_ever);
        }));
        self.report(context);
    }

    /// Writes down what the node does and what troubles it.
    pub(super) fn report(&mut self, context: &mut Context<Self>) {
        let report = NodeReport {
            state: self.state.into(),
            in_flight: self.in_flight,
            trouble: self.stations.troubles.summary(),
            ..self.settings.report.clone()
        };
        let store = Arc::clone(&self.store);
        let written = off_thread(move || store.report(&report));
        context.spawn(written.into_actor(self).map(|written, _, _| {
            if let Err(error) = written {
                tracing::debug!(%error, "could not write the node's report");
            }
        }));
    }

    /// An old snapshot slows every checkout down, so it is told while the work goes on.
    fn note_snapshots(&mut self, blockers: &[Blocker]) {
        let oldest = blockers.iter().find(|blocker| blocker.kind == BlockerKind::Snapshot);
        let Some(blocker) = oldest else {
            return self.stations.troubles.clear(Place::Snapshot);
        };
        self.stations.troubles.set(Place::Snapshot, blocker.to_string());
        let now = self.stations.clock.now();
        if self.next_snapshot_complaint.is_none_or(|next| now >= next) {
            self.next_snapshot_complaint = Some(now + COMPLAINT_PAUSE);
            tracing::warn!("{blocker}");
        }
    }
}
