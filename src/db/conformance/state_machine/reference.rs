//! What a store must do to one ring, as plain lists and the rules in their own words.
//!
//! What only the database decides is told to it: the ids of new keys and batches, the places of
//! new records. Everything else it predicts.

use std::collections::BTreeMap;

use super::operations::{Client, Flaw};
use crate::db::{
    Inserted, KeyUse, NewRecord, Progress, ReclaimScope, Reclaimed, Remaining, Shortage,
    StoreOutcome,
};
use crate::ledger::Event;
use crate::types::{
    BatchId, BatchRange, BatchState, Fence, KeyEvent, KeyId, KeyStatus, NodeId, Outcome, Position,
    RecordId, RingId, Tick,
};

/// A ring.
pub(super) struct Reference {
    pub(super) ring: RingId,
    /// Whether transactions run side by side, so that only an expired lease proves anything and a
    /// record can be moved to the end.
    side_by_side: bool,
    max_attempts: u32,
    pub(super) tick: i64,
    /// The last record that was put into a new batch.
    pub(super) cursor: Position,
    /// The id of a transaction that has not ended: its records and those of later ones wait for it.
    pub(super) open_transaction: Option<i64>,
    pub(super) records: Vec<RecordLine>,
    pub(super) keys: Vec<KeyLine>,
    /// In order of id.
    pub(super) batches: Vec<BatchLine>,
    /// In order of fence.
    pub(super) uses: Vec<UseLine>,
    pub(super) events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub(super) struct RecordLine {
    external_id: Option<String>,
    pub(super) payload: Vec<u8>,
    /// `None` until the database has said it.
    position: Option<Position>,
    pub(super) batch: Option<BatchId>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyLine {
    pub(super) id: KeyId,
    pub(super) status: KeyStatus,
    pub(super) last_tick: i64,
}

#[derive(Clone, Debug)]
pub(super) struct BatchLine {
    pub(super) id: BatchId,
    pub(super) range: BatchRange,
    pub(super) state: BatchState,
    pub(super) attempts: u32,
    /// Words that its failure must hold.
    pub(super) failure: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct UseLine {
    pub(super) key_use: KeyUse,
    pub(super) client: Client,
    pub(super) expired: bool,
    pub(super) outcome: Option<Outcome>,
}

/// What a change of a key must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyChange {
    Changed,
    Unchanged,
    Illegal,
    InUse,
}

impl Reference {
    pub(super) fn new(ring: RingId, side_by_side: bool, max_attempts: u32) -> Self {
        Reference {
            ring,
            side_by_side,
            max_attempts,
            tick: 0,
            cursor: Position::START,
            open_transaction: None,
            records: Vec::new(),
            keys: Vec::new(),
            batches: Vec::new(),
            uses: Vec::new(),
            events: Vec::new(),
        }
    }

    // Records

    pub(super) fn insert(&mut self, new: &[NewRecord]) -> Inserted {
        let mut inserted = Inserted::default();
        for (n, record) in new.iter().enumerate() {
            let there = self
                .records
                .iter()
                .find(|line| line.external_id.is_some() && line.external_id == record.external_id);
            match there {
                None => {
                    self.add_record(record, None);
                    inserted.added += 1;
                }
                Some(line) if line.payload == record.payload => inserted.unchanged += 1,
                Some(_) => inserted.conflicts.push(n),
            }
        }
        inserted
    }

    pub(super) fn add_record(&mut self, record: &NewRecord, position: Option<Position>) {
        self.records.push(RecordLine {
            external_id: record.external_id.clone(),
            payload: record.payload.clone(),
            position,
            batch: None,
        });
    }

    /// Takes the places of new records from the ring's order, in which all others stand unmoved.
    pub(super) fn learn(&mut self, order: &[(Position, Vec<u8>)]) {
        let found: BTreeMap<&[u8], Position> =
            order.iter().map(|(position, payload)| (payload.as_slice(), *position)).collect();
        assert_eq!(found.len(), order.len(), "each payload is there once");
        let cursor = self.cursor;
        for line in &mut self.records {
            let position = found.get(line.payload.as_slice()).copied();
            assert!(position.is_some(), "{line:?} is not in the database");
            assert!(line.position.is_some() || position > Some(cursor), "{line:?} is passed over");
            line.position = line.position.or(position);
            assert_eq!(line.position, position, "a record has moved");
        }
        assert_eq!(self.records.len(), order.len(), "records that nobody inserted");
        self.records.sort_by_key(|line| line.position);
    }

    /// The ring's records in order.
    pub(super) fn order(&self) -> impl Iterator<Item = (Position, &RecordLine)> {
        self.records.iter().filter_map(|line| Some((line.position?, line)))
    }

    /// Those that the next new batches are made of, in order.
    pub(super) fn waiting(&self) -> Vec<Position> {
        let is_visible = |at: Position| self.open_transaction.is_none_or(|open| at.xid < open);
        self.order()
            .filter(|(at, line)| line.batch.is_none() && *at > self.cursor && is_visible(*at))
            .map(|(at, _)| at)
            .collect()
    }

    fn is_stray(&self, at: Position, line: &RecordLine) -> bool {
        line.batch.is_none() && at <= self.cursor
    }

    pub(super) fn strays(&self) -> u64 {
        self.order().filter(|(at, line)| self.is_stray(*at, line)).count() as u64
    }

    /// The records of a batch in order.
    pub(super) fn records_of(&self, batch: BatchId) -> Vec<(Position, Vec<u8>)> {
        self.order()
            .filter(|(_, line)| line.batch == Some(batch))
            .map(|(at, line)| (at, line.payload.clone()))
            .collect()
    }

    /// Strays that lie next to each other become a batch, or all strays move to the end.
    pub(super) fn sweep(&mut self, ids: &[BatchId]) -> u64 {
        let swept = self.strays();
        let mut runs: Vec<Vec<Position>> = vec![Vec::new()];
        for (at, line) in self.order() {
            match runs.last_mut() {
                Some(run) if self.is_stray(at, line) => run.push(at),
                _ => runs.push(Vec::new()),
            }
        }
        runs.retain(|run| !run.is_empty());
        if self.side_by_side {
            let moved: Vec<Position> = runs.concat();
            for line in &mut self.records {
                line.position = line.position.filter(|at| !moved.contains(at));
            }
        } else {
            for (n, run) in runs.iter().enumerate() {
                self.add_batch(ids.get(n), run, BatchState::Retry);
            }
        }
        swept
    }

    // Keys

    pub(super) fn add_keys(&mut self, ids: &[KeyId]) {
        for id in ids {
            self.keys.push(KeyLine { id: *id, status: KeyStatus::Active, last_tick: 0 });
            self.key_event(*id, KeyEvent::Added);
        }
    }

    pub(super) fn change_key(&mut self, key: KeyId, event: KeyEvent) -> KeyChange {
        use KeyStatus::{Active, Destroyed, Disabled};
        let line = self.keys.iter_mut().find(|line| line.id == key).unwrap();
        let is_legal = match event {
            KeyEvent::Added => false,
            KeyEvent::Enabled | KeyEvent::Disabled | KeyEvent::Retired => {
                [Active, Disabled].contains(&line.status)
            }
            KeyEvent::Destroyed => true,
        };
        if line.status == event.status() {
            return KeyChange::Unchanged;
        }
        if !is_legal {
            return KeyChange::Illegal;
        }
        let in_use = self.uses.iter().any(|u| u.key_use.key == key && u.outcome.is_none());
        if event.status() == Destroyed && in_use {
            return KeyChange::InUse;
        }
        line.status = event.status();
        self.key_event(key, event);
        KeyChange::Changed
    }

    fn key_event(&mut self, key: KeyId, event: KeyEvent) {
        let tick = self.next_tick();
        self.events.push(Event::Key { tick, key, event });
    }

    pub(super) fn is_in_use(&self, key: KeyId) -> bool {
        self.open_uses().any(|u| u.key_use.key == key)
    }

    /// How many batches a key has signed.
    pub(super) fn stored_uses(&self, key: KeyId) -> u64 {
        let stored = |u: &&UseLine| u.key_use.key == key && u.outcome == Some(Outcome::Stored);
        self.uses.iter().filter(stored).count() as u64
    }

    pub(super) fn has_active_key(&self) -> bool {
        self.keys.iter().any(|key| key.status == KeyStatus::Active)
    }

    // Uses

    /// Checks out: the least recently used free keys, for the oldest batches to be retried and
    /// then for new ones, which get their `ids` in order.
    pub(super) fn check_out(
        &mut self,
        client: Client,
        max_batches: usize,
        batch_size: usize,
        ids: &[BatchId],
    ) -> (Vec<(KeyUse, BatchRange, u32)>, Option<Shortage>) {
        let mut free: Vec<KeyLine> = self.keys.clone();
        free.retain(|key| key.status == KeyStatus::Active && !self.is_in_use(key.id));
        free.sort_by_key(|key| (key.last_tick, key.id));
        free.truncate(max_batches);

        let is_retry = |batch: &&BatchLine| batch.state == BatchState::Retry;
        let retry = self.batches.iter().filter(is_retry).map(|batch| batch.id);
        let mut taken: Vec<BatchId> = retry.take(free.len()).collect();
        for records in self.waiting().chunks(batch_size).take(free.len() - taken.len()) {
            taken.push(self.add_batch(ids.get(taken.len()), records, BatchState::Open));
            self.cursor = records[records.len() - 1];
        }

        let mut claimed = Vec::new();
        for (key, batch) in free.iter().zip(&taken) {
            let tick = self.next_tick();
            let key_use =
                KeyUse { ring: self.ring, fence: Fence(tick), batch: *batch, key: key.id };
            let (fence, key, batch) = (key_use.fence, key_use.key, key_use.batch);
            self.events.push(Event::CheckedOut { fence, key, batch });
            self.uses.push(UseLine { key_use, client, expired: false, outcome: None });
            let line = self.batch_mut(batch);
            line.state = BatchState::Open;
            claimed.push((key_use, line.range, line.attempts));
        }
        let shortage = if claimed.len() == max_batches {
            None
        } else if claimed.len() < free.len() {
            Some(Shortage::NoWork)
        } else if self.has_active_key() {
            Some(Shortage::NoFreeKey)
        } else {
            Some(Shortage::NoActiveKey)
        };
        (claimed, shortage)
    }

    /// `None` if the client holds the use, else how it ended for it.
    pub(super) fn standing(&self, client: Client, fence: Fence) -> Option<Outcome> {
        let line = self.use_line(fence);
        if line.client == client { line.outcome } else { Some(Outcome::Reclaimed) }
    }

    /// Stores what is held, one by one in the order given; or nothing, where something held is
    /// flawed.
    pub(super) fn store(
        &mut self,
        client: Client,
        uses: &[(Fence, Option<Flaw>)],
    ) -> Result<Vec<StoreOutcome>, Flaw> {
        for (fence, flaw) in uses {
            if let Some(flaw) = flaw
                && self.standing(client, *fence).is_none()
            {
                return Err(*flaw);
            }
        }
        let mut outcomes = Vec::new();
        for (fence, _) in uses {
            outcomes.push(match self.standing(client, *fence) {
                None => {
                    let batch = self.end(*fence, Outcome::Stored);
                    self.batch_mut(batch).state = BatchState::Stored;
                    StoreOutcome::Stored
                }
                Some(Outcome::Stored) => StoreOutcome::AlreadyStored,
                Some(other) => StoreOutcome::Fenced(other),
            });
        }
        Ok(outcomes)
    }

    pub(super) fn give_up(
        &mut self,
        client: Client,
        fences: &[Fence],
        failure: Option<&str>,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for fence in fences {
            let standing = self.standing(client, *fence);
            if standing.is_none() {
                let batch = self.end(*fence, Outcome::Abandoned);
                self.send_back(batch, failure);
            }
            outcomes.push(standing.unwrap_or(Outcome::Abandoned));
        }
        outcomes
    }

    /// The uses that are renewed.
    pub(super) fn renew(&mut self, client: Client, fences: &[Fence]) -> Vec<Fence> {
        let mut renewed = fences.to_vec();
        renewed.retain(|fence| self.standing(client, *fence).is_none());
        self.set_expired(&renewed, false);
        renewed
    }

    pub(super) fn set_expired(&mut self, fences: &[Fence], expired: bool) {
        for line in &mut self.uses {
            if fences.contains(&line.key_use.fence) && line.outcome.is_none() {
                line.expired = expired;
            }
        }
    }

    pub(super) fn reclaim(&mut self, scope: ReclaimScope) -> Reclaimed {
        let all = scope == ReclaimScope::All && !self.side_by_side;
        let lost: Vec<UseLine> = self.open_uses().filter(|u| u.expired || all).cloned().collect();
        let mut reclaimed = Reclaimed::default();
        for UseLine { key_use, client, .. } in lost {
            self.end(key_use.fence, Outcome::Reclaimed);
            self.send_back(key_use.batch, Some(&format!("node {}", client.node())));
            if self.batch_mut(key_use.batch).state == BatchState::Quarantined {
                reclaimed.quarantined.push(key_use.batch);
            }
            reclaimed.uses.push((key_use, NodeId(client.node().to_owned())));
        }
        reclaimed
    }

    pub(super) fn open_uses(&self) -> impl Iterator<Item = &UseLine> {
        self.uses.iter().filter(|line| line.outcome.is_none())
    }

    pub(super) fn use_line(&self, fence: Fence) -> &UseLine {
        self.uses.iter().find(|line| line.key_use.fence == fence).unwrap()
    }

    /// Ends a use; its batch.
    fn end(&mut self, fence: Fence, outcome: Outcome) -> BatchId {
        let tick = self.next_tick();
        let line = self.uses.iter_mut().find(|line| line.key_use.fence == fence).unwrap();
        line.outcome = Some(outcome);
        let KeyUse { key, batch, .. } = line.key_use;
        self.events.push(Event::Ended { tick, fence, key, batch, outcome });
        self.keys.iter_mut().find(|line| line.id == key).unwrap().last_tick = tick.0;
        batch
    }

    /// Only a failure counts as an attempt, and the last one leads into quarantine.
    fn send_back(&mut self, batch: BatchId, failure: Option<&str>) {
        let max_attempts = self.max_attempts;
        let line = self.batch_mut(batch);
        line.state = BatchState::Retry;
        if let Some(failure) = failure {
            line.attempts += 1;
            line.failure = Some(failure.to_owned());
            if line.attempts == max_attempts {
                line.state = BatchState::Quarantined;
            }
        }
    }

    // Batches

    fn add_batch(
        &mut self,
        id: Option<&BatchId>,
        records: &[Position],
        state: BatchState,
    ) -> BatchId {
        // Where the database has made fewer batches, any id shows the difference.
        let id = id.copied().unwrap_or(BatchId(i64::MAX));
        assert!(self.batches.iter().all(|line| line.id < id), "batches are numbered in order");
        let (low, high) = (records[0], records[records.len() - 1]);
        let range = BatchRange { low, high, record_count: records.len() as u32 };
        self.batches.push(BatchLine { id, range, state, attempts: 0, failure: None });
        for line in &mut self.records {
            if line.position.is_some_and(|at| records.contains(&at)) {
                line.batch = Some(id);
            }
        }
        id
    }

    pub(super) fn batch(&self, id: BatchId) -> &BatchLine {
        self.batches.iter().find(|line| line.id == id).unwrap()
    }

    fn batch_mut(&mut self, id: BatchId) -> &mut BatchLine {
        self.batches.iter_mut().find(|line| line.id == id).unwrap()
    }

    fn next_tick(&mut self) -> Tick {
        self.tick += 1;
        Tick(self.tick)
    }

    // What is asked of the whole

    /// How many batches are in a state, and how many records are in them.
    fn count(&self, state: BatchState) -> (u64, u64) {
        let of = self.batches.iter().filter(|line| line.state == state);
        let sizes: Vec<u64> = of.map(|line| line.range.record_count.into()).collect();
        (sizes.len() as u64, sizes.iter().sum())
    }

    pub(super) fn progress(&self) -> Progress {
        let (stored_batches, signed_records) = self.count(BatchState::Stored);
        let (quarantined_batches, quarantined_records) = self.count(BatchState::Quarantined);
        Progress {
            open_batches: self.count(BatchState::Open).0,
            retry_batches: self.count(BatchState::Retry).0,
            stored_batches,
            quarantined_batches,
            signed_records,
            quarantined_records,
            tick: self.tick,
        }
    }

    pub(super) fn remaining(&self) -> Remaining {
        let progress = self.progress();
        let records = self.records.len() as u64;
        Remaining {
            records,
            unsigned: records - progress.signed_records - progress.quarantined_records,
            behind_cursor: self.strays(),
            unfinished_batches: progress.open_batches + progress.retry_batches,
            quarantined: progress.quarantined_records,
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.count(BatchState::Retry).0 > 0 || !self.waiting().is_empty()
    }

    /// The records that have a signature, each with its batch, in order of id.
    pub(super) fn signed(&self) -> Vec<(RecordId, BatchId)> {
        let is_stored = |id: BatchId| self.batch(id).state == BatchState::Stored;
        let signed = self.order().filter_map(|(at, line)| Some((at.id, line.batch?)));
        let mut signed: Vec<_> = signed.filter(|(_, batch)| is_stored(*batch)).collect();
        signed.sort_unstable();
        signed
    }
}
