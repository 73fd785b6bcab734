//! What holds in every state, and what does happen in some.

use chancery::ledger::Rule;
use chancery::types::{BatchState, Outcome};
use stateright::{Model, Property};

use crate::actions::Action;
use crate::protocol::Protocol;
use crate::state::{Held, Kind, Maker, Stage, State, Transaction, UseRow};

// Always
pub(crate) const TICKS: &str = "ticks: each is exactly one event";
pub(crate) const R1_HISTORY: &str =
    "R1: no batch is stored twice, or checked out when it is stored";
pub(crate) const R2_HISTORY: &str = "R2: a key has one open use at a time";
pub(crate) const R3_HISTORY: &str = "R3: a batch has one open use at a time, which ends once";
pub(crate) const R4_HISTORY: &str = "R4: the least recently used of the free keys is taken";
pub(crate) const R1_NOTHING_LOST: &str = "R1: a stored batch has all its signatures";
pub(crate) const R1_NOTHING_SHOWN: &str = "R1: a signature belongs to a stored batch";
pub(crate) const R2_SIGNS_IN_USE: &str = "R2: a key signs only while its use is open";
pub(crate) const R3_ONE_KEY: &str = "R3: a stored batch is signed with the key of its stored use";
pub(crate) const NO_REFUSAL: &str = "no unique index and no trigger is ever needed";
pub(crate) const NO_DEADLOCK: &str = "nobody waits for a lock in a circle";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = State::new(&self.bounds);
        self.explored().add_first(&first);
        vec![first]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let next = self.step(state, action)?;
        self.explored().add(state, action, &next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            always(TICKS, |_, state| keeps(state, Rule::Ticks)),
            always(R1_HISTORY, |_, state| keeps(state, Rule::R1)),
            always(R2_HISTORY, |_, state| keeps(state, Rule::R2)),
            always(R3_HISTORY, |_, state| keeps(state, Rule::R3)),
            always(R4_HISTORY, |_, state| keeps(state, Rule::R4)),
            always(R1_NOTHING_LOST, |_, state| {
                !stored_batch_with(state, |made_by, _| made_by.is_none())
            }),
            always(R2_SIGNS_IN_USE, |_, state| !state.database.signed_late),
            always(R3_ONE_KEY, |_, state| {
                !stored_batch_with(state, |made_by, key| made_by.is_some_and(|maker| maker != key))
            }),
            always(NO_DEADLOCK, |model, state| !has_deadlock(model, state)),
        ];
        if self.looks_for_faults {
            properties.extend(what_happens());
        }
        if self.looks_for_faults && self.bounds.faults.failures > 0 {
            properties.extend(what_failures_do());
        }
        if self.bounds.faults.intrusions == 0 {
            properties.push(always(R1_NOTHING_SHOWN, |_, state| !shows_too_much(state)));
            properties.push(always(NO_REFUSAL, |_, state| !state.database.refused));
        }
        properties
    }
}

/// What must be met, or the check has checked too little.
fn what_happens() -> Vec<Property<Protocol>> {
    vec![
        sometimes("every record is stored", |_, state| {
            state.is_complete()
                && state.database.batches.iter().all(|batch| batch.state == BatchState::Stored)
        }),
        sometimes("a batch is quarantined, and everything is done", |_, state| {
            state.is_complete()
                && state.database.batches.iter().any(|b| b.state == BatchState::Quarantined)
        }),
        sometimes("all keys are in use, by several nodes", |_, state| {
            let mut nodes: Vec<_> = state.database.open_uses().map(|row| row.node).collect();
            nodes.dedup();
            nodes.len() == state.database.last_ticks.len() && nodes.iter().all(Option::is_some)
        }),
        sometimes("a process is killed with a use open", |_, state| {
            state.database.open_uses().any(|row| row.node.is_none())
        }),
        sometimes("a process freezes with the ring's lock", |_, state| {
            state.ring_holder().is_some_and(|node| state.nodes[node].is_frozen)
        }),
        sometimes("a lease runs out under a store's lock", |_, state| {
            state.database.open_uses().any(|row| {
                let holder = state.use_holder(row.key_use.fence, usize::MAX);
                let transaction = holder.and_then(|node| state.nodes[node].transaction.as_ref());
                row.is_expired && transaction.is_some_and(|t| t.kind == Kind::Store)
            })
        }),
        sometimes("a zombie holds signatures of a use that was reclaimed", |_, state| {
            holds_ended(state, Stage::Signed, Outcome::Reclaimed)
        }),
        sometimes("a zombie has not yet signed what was reclaimed", |_, state| {
            holds_ended(state, Stage::Claimed, Outcome::Reclaimed)
        }),
        sometimes("a zombie's batch is stored by another", |_, state| {
            is_held(state, |held| {
                held.stage == Stage::Signed
                    && state.database.batch(held.key_use.batch).state == BatchState::Stored
                    && ended(state, held) == Some(Outcome::Reclaimed)
            })
        }),
        sometimes("the reply to a store's COMMIT is lost", |_, state| {
            holds_ended(state, Stage::Signed, Outcome::Stored)
        }),
        sometimes("the reply to a checkout's COMMIT is lost", |_, state| {
            let lost = |row: &UseRow| {
                row.node.is_some_and(|node| {
                    let node = &state.nodes[node];
                    node.has_lost_track && !node.knows(row.key_use.fence)
                })
            };
            state.database.open_uses().any(lost)
        }),
        sometimes("a connection dies before a store's COMMIT", |model, state| {
            state.left.connections < model.bounds.faults.connections
                && is_held(state, |held| {
                    held.stage == Stage::Signed && ended(state, held).is_none()
                })
        }),
        sometimes("two batches are stored in one transaction", |_, state| {
            let stores = |t: &Transaction| t.kind == Kind::Store && t.uses.len() == 2;
            state.nodes.iter().any(|node| node.transaction.as_ref().is_some_and(stores))
        }),
    ]
}

/// The same, where batches may fail by their own doing.
fn what_failures_do() -> Vec<Property<Protocol>> {
    vec![
        sometimes("a batch fails by its own doing", |_, state| {
            is_held(state, |held| held.stage == Stage::Failed { by_itself: true })
        }),
        sometimes("the reply to a give-up's COMMIT is lost", |_, state| {
            holds_ended(state, Stage::Failed { by_itself: true }, Outcome::Abandoned)
        }),
    ]
}

fn always(name: &'static str, holds: fn(&Protocol, &State) -> bool) -> Property<Protocol> {
    Property::always(name, holds)
}

fn sometimes(name: &'static str, holds: fn(&Protocol, &State) -> bool) -> Property<Protocol> {
    Property::sometimes(name, holds)
}

fn keeps(state: &State, rule: Rule) -> bool {
    !state.database.broken.contains(&rule)
}

/// Whether a stored batch's signature and the key of its stored use are so.
fn stored_batch_with(state: &State, is_so: fn(Option<Maker>, Maker) -> bool) -> bool {
    state.database.batches.iter().any(|batch| {
        let made_by = state.database.signatures[batch.record];
        batch.state == BatchState::Stored
            && batch.stored_with.is_some_and(|key| is_so(made_by, Maker::Key(key)))
    })
}

/// Whether there is a signature of a record that lies in no stored batch.
fn shows_too_much(state: &State) -> bool {
    let is_stored = |record: usize| {
        let mut batches = state.database.batches.iter().filter(|batch| batch.record == record);
        batches.any(|batch| batch.state == BatchState::Stored)
    };
    let signatures = state.database.signatures.iter().enumerate();
    signatures.filter(|(_, made_by)| made_by.is_some()).any(|(record, _)| !is_stored(record))
}

fn has_deadlock(model: &Protocol, state: &State) -> bool {
    (0..state.nodes.len()).any(|first| {
        let mut node = first;
        for _ in 0..state.nodes.len() {
            match model.waits_for(state, node) {
                None => return false,
                Some(other) if other == first => return true,
                Some(other) => node = other,
            }
        }
        false
    })
}

fn is_held(state: &State, is_so: impl Fn(&Held) -> bool) -> bool {
    state.nodes.iter().flat_map(|node| &node.held).any(is_so)
}

fn ended(state: &State, held: &Held) -> Option<Outcome> {
    state.database.use_row(held.key_use.fence).and_then(|row| row.outcome)
}

fn holds_ended(state: &State, stage: Stage, outcome: Outcome) -> bool {
    is_held(state, |held| held.stage == stage && ended(state, held) == Some(outcome))
}
