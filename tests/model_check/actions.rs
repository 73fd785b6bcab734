//! Everything that can happen in a state: the nodes' statements, time, and the faults.

use chancery::types::Fence;

use crate::database::Refused;
use crate::mutants::Mutant;
use crate::protocol::Protocol;
use crate::state::{Kind, Maker, Node, Stage, State};

/// One step of one node, of time, or of misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The first statement of a transaction. A statement that would have to wait is no step.
    Begin { node: usize, kind: Kind },
    /// The second statement.
    Continue { node: usize },
    /// The rest of the statements, COMMIT, and its reply.
    Commit { node: usize },
    /// Signs the batches that it has checked out, or sees that their deadline has passed.
    Sign { node: usize },
    /// Renews its leases, of uses that nobody has locked.
    Renew { node: usize },
    /// Ends the session of a process whose transaction is older than a lease.
    EndOldSession { node: usize },
    /// The second transaction of [`Mutant::ReleaseBeforeStore`].
    StoreReleased { node: usize },
    /// The lease of a use runs out: nobody has renewed it in time.
    Expire { fence: Fence },
    /// A frozen process goes on, with all that it had in memory.
    Wake { node: usize },

    // Faults
    /// `kill -9`; another process starts in its place.
    Crash { node: usize },
    /// The process stops, wherever it is.
    Freeze { node: usize },
    /// COMMIT takes effect and its reply is lost.
    LoseReply { node: usize },
    /// The connection dies before COMMIT has taken effect.
    LoseConnection { node: usize },
    /// A batch fails to be signed by its own doing.
    Fail { node: usize, fence: Fence },
    /// A foreign hand stores a signature.
    Intrude { record: usize },
}

impl Action {
    /// Whether completion may count on it: no fault, and no process that might never wake up.
    pub(crate) fn is_dependable(self) -> bool {
        match self {
            Action::Begin { .. }
            | Action::Continue { .. }
            | Action::Commit { .. }
            | Action::Sign { .. }
            | Action::Renew { .. }
            | Action::EndOldSession { .. }
            | Action::StoreReleased { .. }
            | Action::Expire { .. } => true,
            Action::Wake { .. }
            | Action::Crash { .. }
            | Action::Freeze { .. }
            | Action::LoseReply { .. }
            | Action::LoseConnection { .. }
            | Action::Fail { .. }
            | Action::Intrude { .. } => false,
        }
    }
}

impl Protocol {
    /// What may happen next. Some of these turn out to be no step: [`Protocol::step`] says so.
    pub(crate) fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        for (n, node) in state.nodes.iter().enumerate() {
            if *node == Node::default() && state.nodes[..n].contains(node) && !self.owns(state, n) {
                // Idle nodes are all alike: one of them is enough.
                continue;
            }
            if node.is_frozen {
                actions.push(Action::Wake { node: n });
                if node.transaction.is_some() && self.mutant != Some(Mutant::FrozenSessionsStay) {
                    actions.push(Action::EndOldSession { node: n });
                }
            } else if let Some(transaction) = &node.transaction {
                actions.push(match transaction.is_ready {
                    true => Action::Commit { node: n },
                    false => Action::Continue { node: n },
                });
            } else {
                self.possible_when_idle(state, n, actions);
            }
            if *node == Node::default() && !self.owns(state, n) {
                continue;
            }
            if left.crashes > 0 {
                actions.push(Action::Crash { node: n });
            }
            if left.freezes > 0 && !node.is_frozen {
                actions.push(Action::Freeze { node: n });
            }
            if left.connections > 0 && !node.is_frozen && node.transaction.is_some() {
                actions.push(Action::LoseReply { node: n });
                actions.push(Action::LoseConnection { node: n });
            }
        }
        for row in state.database.open_uses().filter(|row| !row.is_expired) {
            let fence = row.key_use.fence;
            if !row.node.is_some_and(|owner| self.renews(state, owner, fence)) {
                actions.push(Action::Expire { fence });
            }
        }
        if left.intrusions > 0 {
            actions.extend((0..self.bounds.batches).map(|record| Action::Intrude { record }));
        }
    }

    fn possible_when_idle(&self, state: &State, n: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[n];
        let begin = |kind| Action::Begin { node: n, kind };
        let has = |stage: fn(&Stage) -> bool| node.held.iter().any(|held| stage(&held.stage));
        if has(|stage| *stage == Stage::Claimed) {
            actions.push(Action::Sign { node: n });
        }
        if has(|stage| *stage == Stage::Signed) {
            actions.push(begin(Kind::Store));
        }
        if has(|stage| *stage == Stage::Released) {
            actions.push(Action::StoreReleased { node: n });
        }
        if has(|stage| matches!(stage, Stage::Failed { .. })) || node.has_lost_track {
            actions.push(begin(Kind::GiveUp));
        }
        if !node.has_lost_track {
            let free = self.bounds.permits - node.held.len();
            actions.extend((1..=free).map(|max_batches| begin(Kind::CheckOut { max_batches })));
        }
        if state.database.open_uses().any(|row| row.is_expired) {
            actions.push(begin(Kind::Reclaim));
            actions.push(Action::Renew { node: n });
        }
        if state.left.failures > 0 {
            let claimed = node.held.iter().filter(|held| held.stage == Stage::Claimed);
            actions.extend(claimed.map(|held| Action::Fail { node: n, fence: held.key_use.fence }));
        }
    }

    /// The state after an action; `None` where it is not possible or changes nothing.
    pub(crate) fn step(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action)?;
        next.settle();
        (next.fingerprint() != state.fingerprint()).then_some(next)
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Begin { node, kind } => self.begin(state, node, kind),
            Action::Continue { node } => self.go_on(state, node),
            Action::Commit { node } => self.commit(state, node, true),
            Action::Sign { node } => self.sign(state, node),
            Action::Renew { node } => self.renew(state, node),
            Action::StoreReleased { node } => self.store_released(state, node),
            Action::EndOldSession { node } => {
                // Some other process must be there to do it.
                let is_at_work = |(n, other): (usize, &Node)| n != node && !other.is_frozen;
                state.nodes.iter().enumerate().any(is_at_work).then_some(())?;
                roll_back(state, node)
            }
            Action::Expire { fence } => expire(state, fence),
            Action::Wake { node } => {
                state.nodes[node].is_frozen = false;
                Some(())
            }
            Action::Crash { node } => {
                state.left.crashes -= 1;
                state.nodes[node] = Node::default();
                for row in &mut state.database.uses {
                    row.node = row.node.filter(|&owner| owner != node);
                }
                Some(())
            }
            Action::Freeze { node } => {
                state.left.freezes -= 1;
                state.nodes[node].is_frozen = true;
                Some(())
            }
            Action::LoseReply { node } => {
                state.left.connections -= 1;
                self.commit(state, node, false)
            }
            Action::LoseConnection { node } => {
                state.left.connections -= 1;
                roll_back(state, node)
            }
            Action::Fail { node, fence } => {
                state.left.failures -= 1;
                let held = state.nodes[node].held.iter_mut();
                let failed = held.into_iter().find(|held| held.key_use.fence == fence)?;
                failed.stage = Stage::Failed { by_itself: true };
                Some(())
            }
            Action::Intrude { record } => {
                state.left.intrusions -= 1;
                let is_in_flight = state.nodes.iter().any(|node| node.transaction.is_some());
                if is_in_flight || state.database.signatures[record].is_some() {
                    return None;
                }
                state.database.signatures[record] = Some(Maker::Intruder);
                Some(())
            }
        }
    }

    fn owns(&self, state: &State, node: usize) -> bool {
        state.database.open_uses().any(|row| row.node == Some(node))
    }

    fn sign(&self, state: &mut State, node: usize) -> Option<()> {
        let database = &mut state.database;
        for held in &mut state.nodes[node].held {
            if held.stage != Stage::Claimed {
                continue;
            }
            let row = database.use_row(held.key_use.fence)?;
            let (is_past, is_over) = (row.is_expired, row.outcome.is_some());
            // The local deadline lies before the end of the lease.
            if is_past && self.mutant != Some(Mutant::NoDeadline) {
                held.stage = Stage::Failed { by_itself: false };
            } else {
                held.stage = Stage::Signed;
                database.signed_late |= is_over;
            }
        }
        Some(())
    }

    /// Whether the node's process renews the use: it runs and it remembers it.
    fn renews(&self, state: &State, node: usize, fence: Fence) -> bool {
        let remembers =
            state.nodes[node].knows(fence) || self.mutant == Some(Mutant::RenewWhatIsForgotten);
        !state.nodes[node].is_frozen && remembers
    }

    fn renew(&self, state: &mut State, node: usize) -> Option<()> {
        let mut rows = Vec::new();
        for (n, row) in state.database.uses.iter().enumerate() {
            let fence = row.key_use.fence;
            let is_own = row.node == Some(node) && row.outcome.is_none() && row.is_expired;
            let is_locked = state.use_holder(fence, node).is_some();
            if is_own && !is_locked && self.renews(state, node, fence) {
                rows.push(n);
            }
        }
        for n in &rows {
            state.database.uses[*n].is_expired = false;
        }
        (!rows.is_empty()).then_some(())
    }

    fn store_released(&self, state: &mut State, node: usize) -> Option<()> {
        let mut kept = Vec::new();
        for held in std::mem::take(&mut state.nodes[node].held) {
            if held.stage != Stage::Released {
                kept.push(held);
            } else if let Err(Refused) =
                state.database.insert_signature(&held.key_use, self.has_constraints)
            {
                state.database.refused = true;
            }
        }
        state.nodes[node].held = kept;
        Some(())
    }
}

fn expire(state: &mut State, fence: Fence) -> Option<()> {
    let row = state.database.uses.iter_mut().find(|row| row.key_use.fence == fence)?;
    row.is_expired = true;
    Some(())
}

/// The node's transaction ends without effect. What a checkout may have claimed is then unknown to it.
pub(crate) fn roll_back(state: &mut State, node: usize) -> Option<()> {
    let transaction = state.nodes[node].transaction.take()?;
    if matches!(transaction.kind, Kind::CheckOut { .. }) {
        state.nodes[node].has_lost_track = true;
    }
    Some(())
}
