//! What others ask of a Supervisor, and tell it.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{SHORTEST_IDLE, State, Supervisor, SupervisorSnapshot};
use crate::actors::messages::{Drain, DrainReport, Nudge, Observe, Pause, Resume, Stop};

impl Handler<Nudge> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Nudge, context: &mut Self::Context) {
        self.idle = SHORTEST_IDLE;
        self.keys.forget();
        self.pump(context);
    }
}

impl Handler<Pause> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Pause, context: &mut Self::Context) {
        if self.state == State::Running {
            self.state = State::Paused;
            self.report(context);
        }
    }
}

impl Handler<Resume> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Resume, context: &mut Self::Context) {
        if self.state == State::Paused {
            self.state = State::Running;
            self.report(context);
            self.pump(context);
        }
    }
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<DrainReport>;

    fn handle(&mut self, message: Drain, context: &mut Self::Context) -> Self::Result {
        self.state = State::Draining;
        self.report(context);
        let (drain, report) = oneshot::channel();
        self.drains.push(drain);
        // A checkout under way may still bring batches; its reply comes before anything ends.
        let so_far = self.drain_report();
        context.run_later(message.deadline, |actor, _| actor.end_drains());
        self.end_drains_if_idle();
        Box::pin(async move { report.await.unwrap_or(so_far) })
    }
}

impl Handler<Observe<SupervisorSnapshot>> for Supervisor {
    type Result = SupervisorSnapshot;

    fn handle(&mut self, _: Observe<SupervisorSnapshot>, _: &mut Self::Context) -> Self::Result {
        SupervisorSnapshot {
            state: self.state,
            in_flight: self.in_flight,
            payload_bytes: self.stations.payload_permits.taken_bytes(),
            ..self.snapshot
        }
    }
}

impl Handler<Stop> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        context.stop();
    }
}
