//! The protocol's model, and its check in every order of events: `cargo test --test model_check`.
//!
//! The model is the protocol of docs/ARCHITECTURE.md as a few hundred lines of plain state and steps,
//! and [stateright](https://www.stateright.rs) explores it: not a sample of runs, but every state that
//! the steps can lead to in any order, within [`Bounds`].
//!
//! | file | what |
//! |---|---|
//! | `state.rs` | the tables, the nodes' memory, the faults that may still come |
//! | `database.rs` | locks, constraints, what a COMMIT changes |
//! | `protocol.rs` | the transactions, by their statements |
//! | `actions.rs` | all that can happen: steps of nodes, leases that run out, faults |
//! | `properties.rs` | what holds in every state, and what must be met in some |
//! | `graph.rs` | the explored graph, searched backwards from its final states |
//! | `mutants.rs` | wrong protocols, each of which must be caught |
//!
//! # What is checked
//!
//! - **The rules.** Each COMMIT hands its events to [`chancery::ledger`], the code that `audit` runs.
//!   No state's history breaks R1 to R4, and each tick is one event.
//! - **The signatures.** A stored batch has all of them, made with the key of its stored use; a
//!   signature lies in a stored batch; no key signs when its use is over.
//! - **The protocol needs no safety net.** No unique index and no trigger ever refuses a
//!   transaction, and nobody waits for locks in a circle.
//! - **Nothing is lost.** From every state the work can still be brought to its end: each batch stored
//!   or quarantined, no use open, no lock held. No further fault is needed for it, nor that a frozen
//!   process ever wakes up.
//! - **The check itself.** Each fault was met where it hurts, and each mutant is found out, by the
//!   property that it should break.
//!
//! # What is modelled
//!
//! Nodes that check out up to two batches at a time, sign, store in groups, give up, renew and reclaim;
//! row locks, SKIP LOCKED and READ COMMITTED; unique indexes and triggers. A process may be killed (a
//! new one with another id takes its place), or freeze at any point and for any time, inside a
//! transaction too, and wake up with all that it had in memory: a zombie. Connections die before the
//! COMMIT or between COMMIT and reply. A batch may fail by its own doing. Time is not counted: a lease
//! may run out as soon as its node does not renew it, in any order with everything else.
//!
//! # What is not
//!
//! - One record stands for a batch's records, and records are all there at the start: neither intake,
//!   nor the cursor over transaction ids, nor the sweep. One ring, and no key events but `added`.
//! - A node does one thing at a time. What the threads of one node do at once, two nodes do here.
//! - The local clock is trusted: the deadline passes before the lease ends in the database. A thread
//!   that is stopped in the midst of a signature may still compute it when it wakes up. No protocol
//!   can prevent that; what it computed is neither stored nor shown.
//! - Statements of the database are atomic; SQLite, where whole transactions are, has fewer orders.
//! - Whether the code does what the model does: that is for the tests against real databases.

mod actions;
mod database;
mod graph;
mod mutants;
mod properties;
mod protocol;
mod state;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::mutants::Mutant;
use crate::protocol::Protocol;
use crate::state::{Bounds, Faults, State};

const NO_FAULTS: Faults =
    Faults { crashes: 0, freezes: 0, connections: 0, failures: 0, intrusions: 0 };

/// Three nodes, two keys, three batches; a crash, a pause and a lost connection, each anywhere.
const LARGE: Bounds = Bounds {
    nodes: 3,
    keys: 2,
    batches: 3,
    max_attempts: 2,
    permits: 2,
    faults: Faults { crashes: 1, freezes: 1, connections: 1, ..NO_FAULTS },
};

/// Fewer nodes and batches, and a batch that fails as well.
const SMALL: Bounds = Bounds {
    nodes: 2,
    batches: 2,
    faults: Faults { crashes: 1, freezes: 1, connections: 1, failures: 1, intrusions: 0 },
    ..LARGE
};

/// Somebody with the rights to do so writes signatures into the table.
const INTRUDED: Bounds = Bounds {
    nodes: 2,
    batches: 2,
    faults: Faults { intrusions: 1, freezes: 1, ..NO_FAULTS },
    ..LARGE
};

/// Explores all of it. Asserts that no property fails and that completion stays within reach.
fn check(protocol: Protocol, least_states: usize) {
    let (bounds, began) = (protocol.bounds, Instant::now());
    let checker =
        protocol.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    checker.assert_properties();
    let graph = checker.model().explored();
    println!(
        "{bounds:?}: {} states, {} final, {} transitions, {:.1} s",
        graph.states(),
        graph.final_states(),
        graph.transitions(),
        began.elapsed().as_secs_f64()
    );
    assert_eq!(graph.states(), checker.unique_state_count());
    assert!(graph.states() >= least_states, "only {} states", graph.states());
    assert!(graph.final_states() > 0);
    if let Some(&stuck) = graph.stuck().first() {
        panic!("no way to completion after {:#?}", graph.path_to(stuck));
    }
}

#[test]
fn the_rules_hold_and_completion_is_reachable_in_every_order_of_events() {
    check(Protocol { looks_for_faults: true, ..Protocol::new(LARGE, None) }, 1_000_000);
}

#[test]
fn they_hold_too_where_batches_fail_and_end_in_quarantine() {
    check(Protocol { looks_for_faults: true, ..Protocol::new(SMALL, None) }, 400_000);
}

#[test]
fn a_foreign_signature_is_never_taken_for_one_of_ours() {
    check(Protocol::new(INTRUDED, None), 10_000);
}

/// Explores a mutant until the property is seen to fail.
fn assert_breaks(mutant: Mutant, has_constraints: bool, bounds: Bounds, property: &'static str) {
    let protocol = Protocol { has_constraints, ..Protocol::new(bounds, Some(mutant)) };
    let until = HasDiscoveries::AnyOf([property].into());
    let checker = protocol.checker().threads(1).finish_when(until).spawn_bfs().join();
    let found: Vec<_> = checker.discoveries().into_keys().collect();
    println!(
        "{mutant:?}, constraints {has_constraints}: {found:?} after {} states",
        checker.unique_state_count()
    );
    assert!(found.contains(&property), "{mutant:?} was not caught by {property:?}, only {found:?}");
}

#[test]
fn each_unsafe_mutant_is_caught_by_the_property_that_it_breaks() {
    use crate::properties::*;
    // Where the constraints stand, unless it says that they are taken away.
    for (mutant, property) in [
        (Mutant::NoRingLock, R4_HISTORY),
        (Mutant::ChooseBeforeRingLock, R4_HISTORY),
        (Mutant::TickFromMemory, NO_REFUSAL),
        (Mutant::NoFence, R3_ONE_KEY),
        (Mutant::ConflictInsteadOfFence, R1_NOTHING_SHOWN),
        (Mutant::ReleaseBeforeStore, R1_NOTHING_LOST),
        (Mutant::ReclaimWithoutLocks, NO_REFUSAL),
        (Mutant::ReclaimWaitsForUses, NO_DEADLOCK),
        (Mutant::OnlyStoresStampKeys, R4_HISTORY),
        (Mutant::NoDeadline, R2_SIGNS_IN_USE),
    ] {
        assert_breaks(mutant, true, LARGE, property);
    }
    for (mutant, property) in [
        (Mutant::ChooseBeforeRingLock, R2_HISTORY),
        (Mutant::TickFromMemory, TICKS),
        (Mutant::ReclaimWithoutLocks, R3_HISTORY),
        (Mutant::ReclaimWithoutLocks, R1_HISTORY),
    ] {
        assert_breaks(mutant, false, LARGE, property);
    }
    assert_breaks(Mutant::OnConflictDoNothing, true, INTRUDED, R3_ONE_KEY);
}

/// The canonical form must not take two states for one that go on differently. Here the states are told
/// apart by all that they hold, and compared where their canonical forms are the same.
#[test]
fn states_of_one_canonical_form_go_on_alike() {
    let faults = Faults { freezes: 1, connections: 1, ..NO_FAULTS };
    let protocol = Protocol::new(Bounds { faults, ..SMALL }, None);
    let first = State::new(&protocol.bounds);
    let mut met = HashSet::from([format!("{first:?}")]);
    let mut waiting = vec![first];
    let mut ways: HashMap<u64, (bool, BTreeSet<u64>)> = HashMap::new();
    while let Some(state) = waiting.pop() {
        let mut actions = Vec::new();
        protocol.possible(&state, &mut actions);
        let next: Vec<State> =
            actions.into_iter().filter_map(|action| protocol.step(&state, action)).collect();
        let way = (state.is_complete(), next.iter().map(State::fingerprint).collect());
        let known = ways.entry(state.fingerprint()).or_insert_with(|| way.clone());
        assert_eq!(*known, way, "{state:#?} goes on otherwise than one of the same form");
        waiting.extend(next.into_iter().filter(|next| met.insert(format!("{next:?}"))));
    }
    println!("{} states have {} canonical forms", met.len(), ways.len());
    assert!(ways.len() > 10_000 && 2 * met.len() > 3 * ways.len());
}

#[test]
fn each_mutant_that_loses_work_is_caught_by_the_search_for_completion() {
    for mutant in [
        Mutant::NoReclaim,
        Mutant::GiveUpForgetsBatch,
        Mutant::FrozenSessionsStay,
        Mutant::RenewWhatIsForgotten,
    ] {
        let faults = Faults { failures: 0, ..SMALL.faults };
        let faults = match mutant {
            Mutant::GiveUpForgetsBatch => Faults { failures: 1, ..NO_FAULTS },
            _ => faults,
        };
        let protocol = Protocol::new(Bounds { faults, ..SMALL }, Some(mutant));
        let checker = protocol.checker().threads(1).spawn_bfs().join();
        // Nothing but the search for completion finds these.
        checker.assert_properties();
        let graph = checker.model().explored();
        let stuck = graph.stuck();
        println!("{mutant:?}: {} of {} states are stuck", stuck.len(), graph.states());
        let path = graph.path_to(*stuck.first().expect("a state without a way to completion"));
        assert!(!path.is_empty());
        println!("    first after {path:?}");
    }
}
