//! The rules R1 to R4 as a replay of a ring's ticks.
//!
//! Hand the events of one ring to [`Ledger::apply`] in the order of their ticks, then the ring's
//! own tick to [`Ledger::finish`]: every breach of a rule comes back as a [`Violation`]. The
//! replay is pure, so the history of a database, of a test and of a model are judged by the same
//! code. That a stored batch has as many signatures as records, R1's other half, is not seen here.
//!
//! After a violation the ledger believes what the history says and goes on, so that one fault is
//! reported where it stands and seldom again. What it cannot know is what a missing event did: a
//! key whose checkout or key event is missing counts as passed over (R4) until its next event.

mod batch_set;
#[cfg(test)]
mod corruptions;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use self::batch_set::BatchSet;
pub use self::violation::{Fault, Rule, Violation};
use crate::types::{BatchId, Fence, KeyEvent, KeyId, KeyStatus, Outcome, Tick};

/// What happened at one tick of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A key was checked out for a batch; the tick is the fence.
    CheckedOut {
        /// The tick of the checkout, by which its end names it.
        fence: Fence,
        /// The key that was taken.
        key: KeyId,
        /// The batch it was taken for.
        batch: BatchId,
    },
    /// A key use ended.
    Ended {
        /// The tick of the end.
        tick: Tick,
        /// The fence of the use that ended.
        fence: Fence,
        /// The key of that use.
        key: KeyId,
        /// The batch of that use.
        batch: BatchId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Something happened to a key, apart from its uses.
    Key {
        /// The tick of the event.
        tick: Tick,
        /// The key.
        key: KeyId,
        /// What happened to it.
        event: KeyEvent,
    },
}

impl Event {
    /// The tick at which it happened.
    #[must_use]
    pub fn tick(&self) -> Tick {
        match *self {
            Event::CheckedOut { fence, .. } => fence.0,
            Event::Ended { tick, .. } | Event::Key { tick, .. } => tick,
        }
    }

    /// The key that it concerns.
    #[must_use]
    pub fn key(&self) -> KeyId {
        match *self {
            Event::CheckedOut { key, .. } | Event::Ended { key, .. } | Event::Key { key, .. } => {
                key
            }
        }
    }

    /// The batch that it concerns, if any.
    #[must_use]
    pub fn batch(&self) -> Option<BatchId> {
        match *self {
            Event::CheckedOut { batch, .. } | Event::Ended { batch, .. } => Some(batch),
            Event::Key { .. } => None,
        }
    }
}

/// A key use that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct OpenUse {
    /// The tick of its checkout.
    pub fence: Fence,
    /// The key in use.
    pub key: KeyId,
    /// The batch that it signs.
    pub batch: BatchId,
}

/// What the events so far say about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct KeyState {
    /// What it may be used for.
    pub status: KeyStatus,
    /// The tick at which its last use ended; zero if none has.
    pub last_tick: Tick,
    /// The fence of the use that holds it. Of overlapping uses, which R2 forbids, the latest.
    pub in_use: Option<Fence>,
}

impl KeyState {
    /// A key that was just added.
    const ADDED: KeyState =
        KeyState { status: KeyStatus::Active, last_tick: Tick::ZERO, in_use: None };

    /// Whether the key may be checked out.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.status == KeyStatus::Active && self.in_use.is_none()
    }
}

/// How many events of each kind a ledger has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Counts {
    /// Checkouts.
    pub checked_out: u64,
    /// Ends with the outcome `stored`.
    pub stored: u64,
    /// Ends with the outcome `reclaimed`.
    pub reclaimed: u64,
    /// Ends with the outcome `abandoned`.
    pub abandoned: u64,
    /// Key events.
    pub key_events: u64,
}

impl Counts {
    /// All events together; in a lawful history this is the last tick.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.checked_out + self.stored + self.reclaimed + self.abandoned + self.key_events
    }

    fn add(&mut self, event: &Event) {
        let count = match event {
            Event::CheckedOut { .. } => &mut self.checked_out,
            Event::Ended { outcome: Outcome::Stored, .. } => &mut self.stored,
            Event::Ended { outcome: Outcome::Reclaimed, .. } => &mut self.reclaimed,
            Event::Ended { outcome: Outcome::Abandoned, .. } => &mut self.abandoned,
            Event::Key { .. } => &mut self.key_events,
        };
        *count += 1;
    }
}

/// The state of one ring as its events tell it, and the judge of the next event.
///
/// An event costs O(log keys + log open uses). Memory is O(keys + open uses), and for R1 the set
/// of the stored batches, held as ranges of ids: one range for each run of ids without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    last_tick: Tick,
    last_event: Option<Event>,
    keys: BTreeMap<KeyId, KeyState>,
    /// The keys that are free: the order of the pairs is the order of R4.
    free: BTreeSet<(Tick, KeyId)>,
    open: BTreeSet<OpenUse>,
    /// The latest open use of each batch that has one.
    open_batches: BTreeMap<BatchId, Fence>,
    stored: BatchSet,
    counts: Counts,
}

impl Ledger {
    /// The ledger of a ring on which nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Ledger {
            last_tick: Tick::ZERO,
            last_event: None,
            keys: BTreeMap::new(),
            free: BTreeSet::new(),
            open: BTreeSet::new(),
            open_batches: BTreeMap::new(),
            stored: BatchSet::default(),
            counts: Counts::default(),
        }
    }

    /// Takes the next event into account, and returns the rules that it breaks, mostly none.
    ///
    /// The very same event twice in a row is reported as a taken tick and otherwise ignored. Any
    /// other event is believed, whatever it breaks.
    pub fn apply(&mut self, event: &Event) -> Vec<Violation> {
        let mut found = Vec::new();
        self.advance(event, &mut found);
        if self.last_event.replace(*event) == Some(*event) {
            return found;
        }
        self.counts.add(event);
        match *event {
            Event::CheckedOut { fence, key, batch } => {
                self.judge_checkout(event, key, batch, &mut found);
                self.open_use(OpenUse { fence, key, batch });
            }
            Event::Ended { tick, fence, key, batch, outcome } => {
                let ended = self.matching_use(event, OpenUse { fence, key, batch }, &mut found);
                self.close_use(ended, tick);
                if outcome == Outcome::Stored && !self.stored.insert(ended.batch) {
                    found.push(Violation::of(event, Fault::BatchStoredTwice { fence }));
                }
            }
            Event::Key { key, event: key_event, .. } => {
                self.judge_key_event(event, key, key_event, &mut found);
                self.keys.entry(key).or_insert(KeyState::ADDED);
                self.change_key(key, |state| state.status = key_event.status());
            }
        }
        found
    }

    /// Judges the end of the history: `ring_tick`, the ring's own clock, must be the last tick.
    #[must_use]
    pub fn finish(&self, ring_tick: Tick) -> Vec<Violation> {
        if ring_tick > self.last_tick {
            vec![Violation::missing_ticks(self.last_tick.next(), ring_tick)]
        } else if ring_tick < self.last_tick {
            vec![Violation::beyond_the_ring(ring_tick, self.last_tick)]
        } else {
            Vec::new()
        }
    }

    /// The highest tick seen; zero before the first event.
    #[must_use]
    pub fn last_tick(&self) -> Tick {
        self.last_tick
    }

    /// The uses that have not ended, by fence.
    pub fn open_uses(&self) -> impl ExactSizeIterator<Item = OpenUse> {
        self.open.iter().copied()
    }

    /// The keys that may be checked out, the least recently used first.
    pub fn free_keys(&self) -> impl ExactSizeIterator<Item = KeyId> {
        self.free.iter().map(|&(_, key)| key)
    }

    /// Every key of the ring, by id.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (KeyId, KeyState)> {
        self.keys.iter().map(|(&id, &state)| (id, state))
    }

    /// The state of one key, or `None` if the history does not know it.
    #[must_use]
    pub fn key(&self, key: KeyId) -> Option<KeyState> {
        self.keys.get(&key).copied()
    }

    /// Whether a use of the batch has ended as stored.
    #[must_use]
    pub fn is_stored(&self, batch: BatchId) -> bool {
        self.stored.contains(batch)
    }

    /// How many events of each kind have been taken into account.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Moves the clock to the event's tick, which must be the next one.
    fn advance(&mut self, event: &Event, found: &mut Vec<Violation>) {
        let tick = event.tick();
        if tick <= self.last_tick {
            found.push(Violation::of(event, Fault::TickTaken { last: self.last_tick }));
            return;
        }
        let expected = self.last_tick.next();
        if tick > expected {
            found.push(Violation::missing_ticks(expected, Tick(tick.0 - 1)));
        }
        self.last_tick = tick;
    }

    /// R1, R2, R3 and R4 at a checkout.
    fn judge_checkout(
        &self,
        event: &Event,
        key: KeyId,
        batch: BatchId,
        found: &mut Vec<Violation>,
    ) {
        let mut report = |fault| found.push(Violation::of(event, fault));
        if self.stored.contains(batch) {
            report(Fault::StoredBatchCheckedOut);
        }
        if let Some(&since) = self.open_batches.get(&batch) {
            report(Fault::BatchInUse { since });
        }
        let Some(state) = self.keys.get(&key) else {
            report(Fault::KeyUnknown);
            return;
        };
        if let Some(since) = state.in_use {
            report(Fault::KeyInUse { since });
        }
        if state.status != KeyStatus::Active {
            report(Fault::KeyNotActive { status: state.status });
        }
        if state.is_free()
            && let Some(&(least_tick, least)) = self.free.first()
            && least != key
        {
            report(Fault::KeyPassedOver { least, least_tick, taken_tick: state.last_tick });
        }
    }

    /// The open use that the event ends: the one it names, or else the one with its fence.
    fn matching_use(&self, event: &Event, named: OpenUse, found: &mut Vec<Violation>) -> OpenUse {
        if self.open.contains(&named) {
            return named;
        }
        let lowest = OpenUse { fence: named.fence, key: KeyId(i64::MIN), batch: BatchId(i64::MIN) };
        match self.open.range(lowest..).next() {
            Some(&other) if other.fence == named.fence => {
                found.push(Violation::of(event, Fault::OtherUseEnded { open: other }));
                other
            }
            _ => {
                found.push(Violation::of(event, Fault::NoOpenUse { fence: named.fence }));
                named
            }
        }
    }

    /// Key events in an order that a key's life allows.
    fn judge_key_event(
        &self,
        event: &Event,
        key: KeyId,
        key_event: KeyEvent,
        found: &mut Vec<Violation>,
    ) {
        let state = self.keys.get(&key);
        let status = state.map(|state| state.status);
        let lawful = match key_event {
            KeyEvent::Added => status.is_none(),
            KeyEvent::Enabled => status == Some(KeyStatus::Disabled),
            KeyEvent::Disabled => status == Some(KeyStatus::Active),
            KeyEvent::Retired => {
                matches!(status, Some(KeyStatus::Active | KeyStatus::Disabled))
            }
            KeyEvent::Destroyed => status.is_some_and(|status| status != KeyStatus::Destroyed),
        };
        if !lawful {
            let fault = Fault::KeyEventOutOfPlace { event: key_event, status };
            found.push(Violation::of(event, fault));
        }
        if key_event == KeyEvent::Destroyed
            && let Some(since) = state.and_then(|state| state.in_use)
        {
            found.push(Violation::of(event, Fault::DestroyedInUse { since }));
        }
    }

    /// Opens a use. One that already held the key or the batch no longer does, but stays open, so
    /// that its end, if it still comes, finds it.
    fn open_use(&mut self, opened: OpenUse) {
        self.keys.entry(opened.key).or_insert(KeyState::ADDED);
        self.change_key(opened.key, |state| state.in_use = Some(opened.fence));
        self.open_batches.insert(opened.batch, opened.fence);
        self.open.insert(opened);
    }

    /// Closes a use and stamps its key, even if the use was not open: its checkout may be what is
    /// missing from the history.
    fn close_use(&mut self, ended: OpenUse, tick: Tick) {
        self.open.remove(&ended);
        if self.open_batches.get(&ended.batch) == Some(&ended.fence) {
            self.open_batches.remove(&ended.batch);
        }
        self.change_key(ended.key, |state| {
            state.last_tick = state.last_tick.max(tick);
            state.in_use = state.in_use.filter(|&fence| fence != ended.fence);
        });
    }

    /// Changes a key that is known, and its place among the free keys with it.
    fn change_key(&mut self, id: KeyId, change: impl FnOnce(&mut KeyState)) {
        let Some(state) = self.keys.get_mut(&id) else { return };
        self.free.remove(&(state.last_tick, id));
        change(state);
        if state.is_free() {
            self.free.insert((state.last_tick, id));
        }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger::new()
    }
}
