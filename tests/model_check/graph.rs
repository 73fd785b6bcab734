//! The explored graph, and the states from which completion is out of reach.
//!
//! Stateright's own `eventually` does not tell a cycle from a join, so what is asked here is asked of
//! the whole graph, backwards from its final states.

use std::collections::HashMap;

use crate::actions::Action;
use crate::state::State;

/// Every state that was met, and how it can go on without faults.
#[derive(Default)]
pub(crate) struct Graph {
    numbers: HashMap<u64, u32>,
    /// By number: by which action, from which state, it was met first.
    origins: Vec<Option<(u32, Action)>>,
    is_final: Vec<bool>,
    /// From, to: the dependable actions only.
    edges: Vec<(u32, u32)>,
    transitions: u64,
}

impl Graph {
    /// Notes a state at which exploration begins.
    pub(crate) fn add_first(&mut self, state: &State) {
        self.number(state, None);
    }

    pub(crate) fn add(&mut self, from: &State, action: Action, to: &State) {
        let from = self.number(from, None);
        let to = self.number(to, Some((from, action)));
        self.transitions += 1;
        if action.is_dependable() {
            self.edges.push((from, to));
        }
    }

    fn number(&mut self, state: &State, origin: Option<(u32, Action)>) -> u32 {
        let new = self.origins.len() as u32;
        let number = *self.numbers.entry(state.fingerprint()).or_insert(new);
        if number == new {
            self.origins.push(origin);
            self.is_final.push(state.is_complete());
        }
        number
    }

    pub(crate) fn states(&self) -> usize {
        self.origins.len()
    }

    pub(crate) fn transitions(&self) -> u64 {
        self.transitions
    }

    pub(crate) fn final_states(&self) -> usize {
        self.is_final.iter().filter(|is_final| **is_final).count()
    }

    /// The states from which no dependable actions lead to a final state, as they were met.
    pub(crate) fn stuck(&self) -> Vec<u32> {
        // The edges by their end, so that what leads to a state stands together.
        let mut starts = vec![0_usize; self.states() + 1];
        for (_, to) in &self.edges {
            starts[*to as usize + 1] += 1;
        }
        for n in 1..starts.len() {
            starts[n] += starts[n - 1];
        }
        let mut next = starts.clone();
        let mut sources = vec![0_u32; self.edges.len()];
        for (from, to) in &self.edges {
            sources[next[*to as usize]] = *from;
            next[*to as usize] += 1;
        }

        let mut completes = self.is_final.clone();
        let mut waiting: Vec<usize> = (0..self.states()).filter(|&n| completes[n]).collect();
        while let Some(to) = waiting.pop() {
            for &from in &sources[starts[to]..starts[to + 1]] {
                if !std::mem::replace(&mut completes[from as usize], true) {
                    waiting.push(from as usize);
                }
            }
        }
        (0..self.states()).filter(|&n| !completes[n]).map(|n| n as u32).collect()
    }

    /// The actions that first led to a state.
    pub(crate) fn path_to(&self, state: u32) -> Vec<Action> {
        let mut path = Vec::new();
        let mut at = state;
        while let Some((from, action)) = self.origins[at as usize] {
            path.push(action);
            at = from;
        }
        path.reverse();
        path
    }
}
