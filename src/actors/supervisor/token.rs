//! Waiting for a token that failed: nothing is checked out meanwhile, since every checkout and its end
//! take ticks of the ring, and the node says what it waits for.

use std::time::Duration;

use actix::prelude::*;

use super::Supervisor;
use crate::actors::messages::{Probe, SignFailure};
use crate::actors::troubles::{Place, Reminder};

/// How long to wait for a token at first, and at most; each time in vain doubles it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a Supervisor thinks of its token; a ring without one never learns otherwise.
pub(super) struct TokenWatch {
    state: TokenState,
    pause: Duration,
    reminder: Reminder,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenState {
    Works,
    /// It failed, and has not answered since.
    Failed,
    /// It answers again; one batch shows whether it signs.
    Answers,
}

impl Default for TokenWatch {
    fn default() -> Self {
        let reminder = Reminder::default();
        TokenWatch { state: TokenState::Works, pause: SHORTEST_PAUSE, reminder }
    }
}

impl TokenWatch {
    /// How many batches may be in flight, of `most`.
    pub(super) fn limit(&self, most: u32) -> u32 {
        match self.state {
            TokenState::Works => most,
            TokenState::Failed => 0,
            TokenState::Answers => most.min(1),
        }
    }
}

impl Supervisor {
    /// Says what is wrong with the token, and asks it again after a pause.
    pub(super) fn wait_for_token(&mut self, reason: String, context: &mut Context<Self>) {
        if self.token.reminder.is_due() {
            tracing::warn!(reason, "the token does not sign: the ring waits for it");
        }
        self.stations.troubles.set(Place::Token, reason);
        // One of the batches that failed together is enough to wait.
        if self.token.state == TokenState::Failed {
            return;
        }
        self.token.state = TokenState::Failed;
        self.report(context);
        self.ask_token_later(context);
    }

    fn ask_token_later(&mut self, context: &mut Context<Self>) {
        let pause = self.token.pause;
        self.token.pause = (pause * 2).min(LONGEST_PAUSE);
        context.run_later(pause, Supervisor::ask_token);
    }

    fn ask_token(&mut self, context: &mut Context<Self>) {
        // A signer that hangs in the token's module answers never, and another may.
        let asked = tokio::time::timeout(self.settings.watchdog, self.stations.signer.send(Probe));
        context.spawn(asked.into_actor(self).map(|answer, actor, context| {
            let failure = match answer {
                Ok(Ok(Ok(()))) => {
                    actor.token.state = TokenState::Answers;
                    return actor.pump(context);
                }
                Ok(Ok(Err(failure))) => failure,
                Ok(Err(error)) => {
                    return actor.station_is_gone("signer", &error.to_string());
                }
                Err(_) => SignFailure::Token("the token does not answer at all".to_owned()),
            };
            if actor.token.reminder.is_due() {
                tracing::warn!(reason = %failure, "the token does not sign: the ring waits for it");
            }
            actor.stations.troubles.set(Place::Token, failure.to_string());
            actor.ask_token_later(context);
        }));
    }

    /// After a failure of the token, a batch was stored, or nothing waits for the token any more.
    pub(super) fn note_token_works(&mut self) {
        if self.token.state == TokenState::Answers {
            tracing::info!("the token signs again");
            self.stations.troubles.clear(Place::Token);
            self.token = TokenWatch::default();
        }
    }
}
