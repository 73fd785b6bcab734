//! The protocol's transactions, statement by statement.
//!
//! Each has two steps, for what interleaves:
//!
//! | transaction | first | then |
//! |---|---|---|
//! | check out | lock the ring, choose keys and batches | open the uses, COMMIT |
//! | store | lock the own open uses, insert the signatures | lock the ring, end the uses, COMMIT |
//! | give up | lock the own open uses | lock the ring, end the uses, batches to `retry`, COMMIT |
//! | reclaim | lock the ring, lock expired uses with SKIP LOCKED | end the uses, batches to `retry`, COMMIT |
//!
//! Two statements may share a step where no other order can be told from it. Who takes the ring's
//! lock hides nothing from those who do not want it; so whatever they do between that statement and
//! the next, they could have done before the first.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chancery::types::Outcome;

use crate::actions::roll_back;
use crate::database::Refused;
use crate::graph::Graph;
use crate::mutants::Mutant;
use crate::state::{Bounds, Claim, Held, KeyUse, Kind, Node, Stage, State, Transaction, UseRow};

/// The protocol, or one of its mutants, within bounds.
pub(crate) struct Protocol {
    pub(crate) bounds: Bounds,
    pub(crate) mutant: Option<Mutant>,
    /// Whether the database's unique indexes and triggers are there.
    pub(crate) has_constraints: bool,
    /// What was explored.
    /// Whether to look for what must be met in some state.
    pub(crate) looks_for_faults: bool,
    pub(crate) graph: Mutex<Graph>,
}

impl Protocol {
    pub(crate) fn new(bounds: Bounds, mutant: Option<Mutant>) -> Protocol {
        Protocol {
            bounds,
            mutant,
            has_constraints: true,
            looks_for_faults: false,
            graph: Mutex::default(),
        }
    }

    /// What has been explored so far.
    pub(crate) fn explored(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn skips_conflicts(&self) -> bool {
        self.is(Mutant::OnConflictDoNothing) || self.is(Mutant::ConflictInsteadOfFence)
    }

    /// The node whose lock the next statement of `node`'s transaction waits for.
    pub(crate) fn waits_for(&self, state: &State, node: usize) -> Option<usize> {
        let transaction = state.nodes[node].transaction.as_ref()?;
        if !transaction.holds_ring {
            // Whatever has begun without the ring's lock needs it next.
            return state.ring_holder();
        }
        if transaction.kind != Kind::Reclaim {
            return None;
        }
        if self.is(Mutant::ReclaimWaitsForUses) && !transaction.is_ready {
            let mut expired = state.database.open_uses().filter(|row| row.is_expired);
            return expired.find_map(|row| state.use_holder(row.key_use.fence, node));
        }
        None
    }

    // First statements

    pub(crate) fn begin(&self, state: &mut State, node: usize, kind: Kind) -> Option<()> {
        let begun = match kind {
            Kind::CheckOut { max_batches } => self.begin_check_out(state, max_batches)?,
            Kind::Store => return self.begin_store(state, node),
            Kind::GiveUp => return self.begin_give_up(state, node),
            Kind::Reclaim => self.begin_reclaim(state, node)?,
        };
        state.nodes[node].transaction = Some(Transaction { kind, ..begun });
        Some(())
    }

    fn begin_check_out(&self, state: &State, max_batches: usize) -> Option<Transaction> {
        if state.database.work().is_empty() {
            return None;
        }
        let mutants = [Mutant::NoRingLock, Mutant::ChooseBeforeRingLock, Mutant::TickFromMemory];
        if mutants.into_iter().any(|mutant| self.is(mutant)) {
            let claims = self.choose(state, max_batches);
            let is_ready = !self.is(Mutant::ChooseBeforeRingLock);
            let tick_read = self.is(Mutant::TickFromMemory).then_some(state.database.tick);
            let begun = Transaction { claims, is_ready, tick_read, ..BEGUN };
            return (!begun.claims.is_empty()).then_some(begun);
        }
        state.ring_holder().is_none().then_some(())?;
        let claims = self.choose(state, max_batches);
        (!claims.is_empty()).then_some(Transaction {
            claims,
            holds_ring: true,
            is_ready: true,
            ..BEGUN
        })
    }

    fn begin_reclaim(&self, state: &State, node: usize) -> Option<Transaction> {
        let expired = state.database.open_uses().filter(|row| row.is_expired);
        let mut uses: Vec<KeyUse> = expired.map(|row| row.key_use).collect();
        if uses.is_empty() || self.is(Mutant::NoReclaim) {
            return None;
        } else if self.is(Mutant::ReclaimWithoutLocks) {
            return Some(Transaction { uses, is_ready: true, ..BEGUN });
        }
        state.ring_holder().is_none().then_some(())?;
        if self.is(Mutant::ReclaimWaitsForUses) {
            return Some(Transaction { holds_ring: true, ..BEGUN });
        }
        uses.retain(|key_use| state.use_holder(key_use.fence, node).is_none());
        (!uses.is_empty()).then_some(Transaction {
            uses,
            locks_uses: true,
            holds_ring: true,
            is_ready: true,
            ..BEGUN
        })
    }

    fn begin_store(&self, state: &mut State, node: usize) -> Option<()> {
        let signed: Vec<KeyUse> = state.nodes[node].held_as(|stage| stage == Stage::Signed);
        if self.is(Mutant::ConflictInsteadOfFence) {
            let waits = signed.iter().any(|own| state.inserting(own.batch, node).is_some());
            let begun = Transaction { kind: Kind::Store, is_ready: true, uses: signed, ..BEGUN };
            state.nodes[node].transaction = (!waits).then_some(begun);
            return (!waits).then_some(());
        }
        let mut uses = Vec::new();
        for own in signed {
            let row = match self.is(Mutant::NoFence) {
                false => open_use_of(state, node, &own),
                true => state.database.open_uses().find(|row| row.key_use.batch == own.batch),
            };
            let Some(row) = row.map(|row| row.key_use) else {
                // Stored by an attempt whose reply was lost, or fenced: either way it is over.
                state.nodes[node].forget(&own);
                continue;
            };
            let waits = state.use_holder(row.fence, node).is_some()
                || state.inserting(own.batch, node).is_some();
            if waits {
                return None;
            }
            let inserts = !self.skips_conflicts() && !self.is(Mutant::ReleaseBeforeStore);
            if inserts && self.has_constraints && state.database.has_signature(own.batch) {
                state.database.refused = true;
                state.nodes[node].fail(&own);
                continue;
            }
            uses.push(row);
        }
        if !uses.is_empty() {
            uses.sort_by_key(|key_use| key_use.fence);
            state.nodes[node].transaction =
                Some(Transaction { kind: Kind::Store, uses, ..LOCKING_USES });
        }
        Some(())
    }

    /// Gives up what has failed, and what a lost checkout left behind.
    fn begin_give_up(&self, state: &mut State, node: usize) -> Option<()> {
        let mut uses = Vec::new();
        for own in state.nodes[node].held_as(|stage| matches!(stage, Stage::Failed { .. })) {
            if open_use_of(state, node, &own).is_some() {
                uses.push(own);
            } else {
                state.nodes[node].forget(&own);
            }
        }
        if state.nodes[node].has_lost_track && !self.is(Mutant::RenewWhatIsForgotten) {
            let knows = |row: &&UseRow| state.nodes[node].knows(row.key_use.fence);
            let own = state.database.open_uses().filter(|row| row.node == Some(node));
            uses.extend(own.filter(|row| !knows(row)).map(|row| row.key_use));
        }
        if uses.iter().any(|key_use| state.use_holder(key_use.fence, node).is_some()) {
            return None;
        }
        if uses.is_empty() {
            state.nodes[node].has_lost_track = false;
        } else {
            uses.sort_by_key(|key_use| key_use.fence);
            state.nodes[node].transaction =
                Some(Transaction { kind: Kind::GiveUp, uses, ..LOCKING_USES });
        }
        Some(())
    }

    /// The second statement, where a mutant has one that may wait while it holds a lock.
    pub(crate) fn go_on(&self, state: &mut State, node: usize) -> Option<()> {
        if self.waits_for(state, node).is_some() {
            return None;
        }
        let mut transaction = state.nodes[node].transaction.take().filter(|t| !t.is_ready)?;
        if transaction.kind == Kind::Reclaim {
            let expired = state.database.open_uses().filter(|row| row.is_expired);
            transaction.uses = expired.map(|row| row.key_use).collect();
            transaction.locks_uses = true;
            if transaction.uses.is_empty() {
                return Some(());
            }
        }
        transaction.holds_ring = true;
        transaction.is_ready = true;
        state.nodes[node].transaction = Some(transaction);
        Some(())
    }

    /// Keys in their order, each with the next work.
    fn choose(&self, state: &State, max_batches: usize) -> Vec<Claim> {
        let skips_locked = self.is(Mutant::NoRingLock);
        let is_chosen = |is_it: &dyn Fn(&Claim) -> bool| skips_locked && state.chosen().any(is_it);
        let mut keys = state.database.free_keys();
        keys.retain(|key| !is_chosen(&|claim| claim.key == *key));
        let mut work = state.database.work();
        work.retain(|work| !is_chosen(&|claim| claim.work == *work));
        let pairs = keys.into_iter().zip(work);
        pairs.take(max_batches).map(|(key, work)| Claim { key, work }).collect()
    }

    // COMMIT

    pub(crate) fn commit(&self, state: &mut State, node: usize, is_answered: bool) -> Option<()> {
        let transaction = state.nodes[node].transaction.as_ref().filter(|t| t.is_ready)?.clone();
        let has_locked = |key_use: &KeyUse| state.use_holder(key_use.fence, node).is_some();
        if self.waits_for(state, node).is_some()
            || (!transaction.locks_uses && transaction.uses.iter().any(has_locked))
        {
            return None;
        }
        let before = state.database.clone();
        let committed = match transaction.kind {
            Kind::CheckOut { .. } => self.commit_check_out(state, node, &transaction, is_answered),
            Kind::Store => self.commit_store(state, node, &transaction, is_answered),
            Kind::GiveUp => self.commit_give_up(state, node, &transaction, is_answered),
            Kind::Reclaim => self.commit_reclaim(state, &transaction),
        };
        if committed.is_err() {
            state.database = before;
            state.database.refused = true;
            for key_use in &transaction.uses {
                match transaction.kind {
                    Kind::Store => state.nodes[node].fail(key_use),
                    _ => state.nodes[node].forget(key_use),
                }
            }
        }
        match (is_answered, committed) {
            (false, Ok(())) => roll_back_memory(state, node),
            _ => state.nodes[node].transaction = None,
        }
        Some(())
    }

    fn commit_check_out(
        &self,
        state: &mut State,
        node: usize,
        transaction: &Transaction,
        is_answered: bool,
    ) -> Result<(), Refused> {
        if let Some(tick) = transaction.tick_read {
            state.database.write_tick(tick, self.has_constraints)?;
        }
        let mut held = Vec::new();
        for claim in &transaction.claims {
            let key_use = state.database.open_use(claim, node, self.has_constraints)?;
            held.push(Held { key_use, stage: Stage::Claimed });
        }
        if is_answered {
            state.nodes[node].held.extend(held);
        }
        Ok(())
    }

    fn commit_store(
        &self,
        state: &mut State,
        node: usize,
        transaction: &Transaction,
        is_answered: bool,
    ) -> Result<(), Refused> {
        for locked in &transaction.uses {
            let own = match self.is(Mutant::NoFence) {
                false => *locked,
                true => state.nodes[node].signed_of(locked),
            };
            let is_there = state.database.has_signature(own.batch);
            let skips = self.is(Mutant::ReleaseBeforeStore) || (self.skips_conflicts() && is_there);
            if !skips {
                state.database.insert_signature(&own, self.has_constraints)?;
            }
            let is_over = self.is(Mutant::ConflictInsteadOfFence)
                && open_use_of(state, node, locked).is_none();
            if !is_over {
                state.database.end_use(locked, Outcome::Stored, true, self.has_constraints)?;
            }
            if is_answered && self.is(Mutant::ReleaseBeforeStore) {
                state.nodes[node].set_stage(&own, Stage::Released);
            } else if is_answered {
                state.nodes[node].forget(&own);
            }
        }
        Ok(())
    }

    fn commit_give_up(
        &self,
        state: &mut State,
        node: usize,
        transaction: &Transaction,
        is_answered: bool,
    ) -> Result<(), Refused> {
        let stamps_key = !self.is(Mutant::OnlyStoresStampKeys);
        for own in &transaction.uses {
            let counts = state.nodes[node].held.iter().any(|held| {
                held.key_use == *own && held.stage == Stage::Failed { by_itself: true }
            });
            state.database.end_use(own, Outcome::Abandoned, stamps_key, self.has_constraints)?;
            if !self.is(Mutant::GiveUpForgetsBatch) {
                state.database.fail_batch(own.batch, counts, self.bounds.max_attempts);
            }
            if is_answered {
                state.nodes[node].forget(own);
            }
        }
        if is_answered {
            state.nodes[node].has_lost_track = false;
        }
        Ok(())
    }

    fn commit_reclaim(&self, state: &mut State, transaction: &Transaction) -> Result<(), Refused> {
        let stamps_key = !self.is(Mutant::OnlyStoresStampKeys);
        for key_use in &transaction.uses {
            state.database.end_use(
                key_use,
                Outcome::Reclaimed,
                stamps_key,
                self.has_constraints,
            )?;
            state.database.fail_batch(key_use.batch, true, self.bounds.max_attempts);
        }
        Ok(())
    }
}

/// A transaction that holds nothing yet.
const BEGUN: Transaction = Transaction {
    kind: Kind::Reclaim,
    is_ready: false,
    holds_ring: false,
    uses: Vec::new(),
    locks_uses: false,
    claims: Vec::new(),
    tick_read: None,
};

/// One that has locked its uses: what is left is the ring's lock and COMMIT.
const LOCKING_USES: Transaction = Transaction {
    kind: Kind::Store,
    is_ready: true,
    holds_ring: false,
    uses: Vec::new(),
    locks_uses: true,
    claims: Vec::new(),
    tick_read: None,
};

/// A node that got no reply does not know whether its COMMIT took effect: to its memory this is the
/// same as a rollback.
fn roll_back_memory(state: &mut State, node: usize) {
    let known = roll_back(state, node);
    debug_assert!(known.is_some());
}

/// The row of a use, if it is open and the node's.
fn open_use_of<'a>(state: &'a State, node: usize, own: &KeyUse) -> Option<&'a UseRow> {
    let row = state.database.use_row(own.fence)?;
    (row.node == Some(node) && row.outcome.is_none()).then_some(row)
}

impl Node {
    fn held_as(&self, is_stage: impl Fn(Stage) -> bool) -> Vec<KeyUse> {
        self.held.iter().filter(|held| is_stage(held.stage)).map(|held| held.key_use).collect()
    }

    /// What it has signed of the batch, by whatever use.
    fn signed_of(&self, locked: &KeyUse) -> KeyUse {
        let mut signed = self.held_as(|stage| stage == Stage::Signed).into_iter();
        signed.find(|own| own.batch == locked.batch).unwrap_or(*locked)
    }

    fn forget(&mut self, own: &KeyUse) {
        self.held.retain(|held| held.key_use.fence != own.fence);
    }

    fn fail(&mut self, own: &KeyUse) {
        self.set_stage(own, Stage::Failed { by_itself: true });
    }

    fn set_stage(&mut self, own: &KeyUse, stage: Stage) {
        for held in self.held.iter_mut().filter(|held| held.key_use.fence == own.fence) {
            held.stage = stage;
        }
    }
}
