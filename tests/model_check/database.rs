//! The database of the model: locks, what a committed transaction changes, and the constraints.
//!
//! A transaction's changes are applied at its COMMIT, all at once: nobody could see them before
//! (READ COMMITTED), and who changes anything but signatures holds the ring's lock at that point.

use std::sync::Arc;

use chancery::ledger::{Event, Rule};
use chancery::types::{BatchId, BatchState, Fence, KeyId, Outcome, Tick};

use crate::state::{
    BatchRow, Claim, Database, KeyUse, Kind, Maker, State, Transaction, UseRow, Work,
};

/// A unique index or a trigger would be violated: the transaction fails as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl Database {
    pub(crate) fn last_tick(&self, key: KeyId) -> Tick {
        self.last_ticks[key.0 as usize - 1]
    }

    pub(crate) fn batch(&self, batch: BatchId) -> &BatchRow {
        &self.batches[batch.0 as usize - 1]
    }

    fn batch_mut(&mut self, batch: BatchId) -> &mut BatchRow {
        &mut self.batches[batch.0 as usize - 1]
    }

    pub(crate) fn use_row(&self, fence: Fence) -> Option<&UseRow> {
        self.uses.iter().find(|row| row.key_use.fence == fence)
    }

    pub(crate) fn open_uses(&self) -> impl Iterator<Item = &UseRow> {
        self.uses.iter().filter(|row| row.outcome.is_none())
    }

    /// The keys without an open use, the least recently used first.
    pub(crate) fn free_keys(&self) -> Vec<KeyId> {
        let mut free: Vec<KeyId> = (1..=self.last_ticks.len() as i64)
            .map(KeyId)
            .filter(|&key| self.open_uses().all(|row| row.key_use.key != key))
            .collect();
        free.sort_by_key(|&key| (self.last_tick(key), key));
        free
    }

    /// Batches to be retried, by id, then records behind the cursor.
    pub(crate) fn work(&self) -> Vec<Work> {
        let retried = self.batches.iter().enumerate().filter_map(|(n, batch)| {
            (batch.state == BatchState::Retry).then_some(Work::Retry(BatchId(n as i64 + 1)))
        });
        let fresh = (self.cursor..self.signatures.len()).map(|record| Work::Fresh { record });
        retried.chain(fresh).collect()
    }

    /// Sets the ring's clock to what somebody has read before.
    pub(crate) fn write_tick(&mut self, tick: Tick, constraints: bool) -> Result<(), Refused> {
        // rings_guard: the tick only rises. The primary key of key_uses: a fence is given out once.
        if constraints && tick != self.tick {
            return Err(Refused);
        }
        self.tick = tick;
        Ok(())
    }

    /// One tick, one event: the ledger judges it at once.
    fn record(&mut self, event: impl FnOnce(Tick) -> Event) -> Tick {
        self.tick = self.tick.next();
        let history = Arc::make_mut(&mut self.history);
        let mut found = history.apply(&event(self.tick));
        found.extend(history.finish(self.tick));
        for violation in found {
            self.mark_broken(violation.rule());
        }
        self.tick
    }

    fn mark_broken(&mut self, rule: Rule) {
        if !self.broken.contains(&rule) {
            self.broken.push(rule);
            self.broken.sort_unstable();
        }
    }

    /// Opens a use for a claim; what the node learns of it.
    pub(crate) fn open_use(
        &mut self,
        claim: &Claim,
        node: usize,
        constraints: bool,
    ) -> Result<KeyUse, Refused> {
        let batch = match claim.work {
            Work::Retry(batch) => batch,
            Work::Fresh { record } => {
                self.cursor = self.cursor.max(record + 1);
                let state = BatchState::Open;
                self.batches.push(BatchRow { record, state, attempts: 0, stored_with: None });
                BatchId(self.batches.len() as i64)
            }
        };
        // key_uses_one_open_per_key, key_uses_one_open_per_batch, batches_guard
        let is_taken =
            self.open_uses().any(|row| row.key_use.key == claim.key || row.key_use.batch == batch)
                || self.batch(batch).state == BatchState::Stored;
        if constraints && is_taken {
            return Err(Refused);
        }
        let key = claim.key;
        let fence = Fence(self.record(|tick| Event::CheckedOut { fence: Fence(tick), key, batch }));
        self.batch_mut(batch).state = BatchState::Open;
        let key_use = KeyUse { fence, key, batch };
        self.uses.push(UseRow { key_use, node: Some(node), is_expired: false, outcome: None });
        Ok(key_use)
    }

    /// Ends a use: a tick, the use's outcome and the key's `last_tick`.
    pub(crate) fn end_use(
        &mut self,
        key_use: &KeyUse,
        outcome: Outcome,
        stamps_key: bool,
        constraints: bool,
    ) -> Result<(), Refused> {
        // key_uses_guard: a closed use never changes. key_uses_one_stored_per_batch, batches_guard.
        let is_open = self.use_row(key_use.fence).is_some_and(|row| row.outcome.is_none());
        let is_stored = self.batch(key_use.batch).state == BatchState::Stored;
        if constraints && (!is_open || is_stored) {
            return Err(Refused);
        }
        let KeyUse { fence, key, batch } = *key_use;
        let tick = self.record(|tick| Event::Ended { tick, fence, key, batch, outcome });
        if let Some(row) = self.uses.iter_mut().find(|row| row.key_use.fence == fence) {
            row.outcome = Some(outcome);
        }
        if stamps_key {
            self.last_ticks[key.0 as usize - 1] = tick;
        }
        if outcome == Outcome::Stored {
            let batch = self.batch_mut(batch);
            batch.state = BatchState::Stored;
            batch.stored_with = Some(key);
        }
        Ok(())
    }

    /// Sends a batch back, or to quarantine after its last attempt.
    pub(crate) fn fail_batch(&mut self, batch: BatchId, counts: bool, max_attempts: u8) {
        let batch = self.batch_mut(batch);
        batch.attempts += u8::from(counts);
        let is_last = counts && batch.attempts >= max_attempts;
        batch.state = if is_last { BatchState::Quarantined } else { BatchState::Retry };
    }

    /// The signature of the batch's record, made by `key`. The primary key refuses a second one.
    pub(crate) fn insert_signature(
        &mut self,
        key_use: &KeyUse,
        constraints: bool,
    ) -> Result<(), Refused> {
        let record = self.batch(key_use.batch).record;
        if self.signatures[record].is_some() {
            if constraints {
                return Err(Refused);
            }
            self.mark_broken(Rule::R1);
        }
        self.signatures[record] = Some(Maker::Key(key_use.key));
        Ok(())
    }

    pub(crate) fn has_signature(&self, batch: BatchId) -> bool {
        self.signatures[self.batch(batch).record].is_some()
    }
}

// Locks

impl State {
    fn transactions(&self) -> impl Iterator<Item = (usize, &Transaction)> {
        self.nodes.iter().enumerate().filter_map(|(n, node)| Some((n, node.transaction.as_ref()?)))
    }

    /// Who holds the ring's row.
    pub(crate) fn ring_holder(&self) -> Option<usize> {
        self.transactions().find(|(_, t)| t.holds_ring).map(|(n, _)| n)
    }

    /// Which node, other than `node`, holds the lock on the row of a use.
    pub(crate) fn use_holder(&self, fence: Fence, node: usize) -> Option<usize> {
        let holds = |t: &Transaction| t.locks_uses && t.uses.iter().any(|u| u.fence == fence);
        self.transactions().find(|(n, t)| *n != node && holds(t)).map(|(n, _)| n)
    }

    /// Which node, other than `node`, has inserted a signature of the batch's record and not yet
    /// committed it: another insert of it waits for that one's end.
    pub(crate) fn inserting(&self, batch: BatchId, node: usize) -> Option<usize> {
        let record = self.database.batch(batch).record;
        let inserts = |t: &Transaction| {
            t.kind == Kind::Store
                && t.uses.iter().any(|u| self.database.batch(u.batch).record == record)
        };
        self.transactions().find(|(n, t)| *n != node && inserts(t)).map(|(n, _)| n)
    }

    /// What checkouts that hold no ring's lock have chosen.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = &Claim> {
        self.transactions().flat_map(|(_, t)| &t.claims)
    }
}
