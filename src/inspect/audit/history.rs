//! The replay of one ring's history, and what of it may have changed while other rows were read.

use std::collections::{HashMap, HashSet};

use super::report::{Finding, Findings};
use super::{AuditStep, Reader};
use crate::db::{Ring, StoreError};
use crate::ledger::{Event, Ledger};
use crate::types::{BatchId, BatchState, Outcome, RingId, Tick};

/// A ring's history, replayed as far as it has been read.
pub(super) struct RingHistory {
    id: RingId,
    name: String,
    ledger: Ledger,
    /// The ring's clock just before and just after the last page of events was read.
    clock: (Tick, Tick),
    /// The batches that events name, many of them more than once.
    named: Vec<BatchId>,
}

impl RingHistory {
    /// A history of which nothing has been read.
    pub(super) fn new(ring: &Ring) -> Self {
        RingHistory {
            id: ring.id,
            name: ring.name.clone(),
            ledger: Ledger::new(),
            clock: (Tick::ZERO, Tick::ZERO),
            named: Vec::new(),
        }
    }

    /// Replays all that has happened since the last call, and shows it to `watch`.
    pub(super) fn catch_up(
        &mut self,
        reader: Reader<'_>,
        findings: &mut Findings,
        mut watch: impl FnMut(&Event),
    ) -> Result<(), StoreError> {
        loop {
            let before = reader.store.ring(&self.name)?.tick;
            // Up to the end of all ticks: events above the ring's own clock must not stay unseen.
            let after = self.ledger.last_tick();
            let end = Tick(i64::MAX);
            let events = reader.store.history(self.id, after, end, reader.page)?;
            self.clock = (before, reader.store.ring(&self.name)?.tick);
            for event in &events {
                for violation in self.ledger.apply(event) {
                    findings.add(Finding::of(&violation, &self.name));
                }
                if event.batch().is_some() && event.batch() != self.named.last().copied() {
                    self.named.extend(event.batch());
                }
                watch(event);
            }
            let tick = self.ledger.last_tick();
            let step = AuditStep::History { ring: self.name.clone(), tick, of: self.clock() };
            (reader.progress)(step);
            // A page that is not the last may lack its last tick, but never half of its events.
            if events.len() < reader.page as usize / 2 || events.is_empty() {
                return Ok(());
            }
        }
    }

    /// Judges the clock: the last event must stand at the ring's own tick.
    ///
    /// What stood there before the events were read must be among them, and none of them can be
    /// above what stood there afterwards.
    pub(super) fn judge_end(&self, findings: &mut Findings) {
        let (before, after) = self.clock;
        let fair_tick = self.ledger.last_tick().clamp(before.min(after), before.max(after));
        for violation in self.ledger.finish(fair_tick) {
            findings.add(Finding::of(&violation, &self.name));
        }
    }

    pub(super) fn id(&self) -> RingId {
        self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The ring's clock.
    pub(super) fn clock(&self) -> Tick {
        self.clock.1
    }

    /// The batches that events name, each once, in order of id.
    pub(super) fn named_batches(&self) -> Vec<BatchId> {
        let mut named = self.named.clone();
        named.sort_unstable();
        named.dedup();
        named
    }
}

/// The states that a ring's batches can have been read in, by the history: those they were in when
/// the window was opened, and those that events have put them in since.
pub(super) struct Window {
    at_start: Ledger,
    open_at_start: HashSet<BatchId>,
    touched: HashMap<BatchId, Vec<BatchState>>,
}

impl Window {
    /// Opens a window at the end of what has been replayed.
    pub(super) fn open(history: &RingHistory) -> Self {
        Window {
            at_start: history.ledger.clone(),
            open_at_start: history.ledger.open_uses().map(|open| open.batch).collect(),
            touched: HashMap::new(),
        }
    }

    /// Takes an event inside the window into account.
    pub(super) fn see(&mut self, event: &Event) {
        let (batch, after) = match *event {
            Event::CheckedOut { batch, .. } => (batch, OPEN),
            Event::Ended { batch, outcome: Outcome::Stored, .. } => (batch, STORED),
            Event::Ended { batch, .. } => (batch, IDLE),
            Event::Key { .. } => return,
        };
        let before = self.states_at_start(batch);
        self.touched.entry(batch).or_insert_with(|| before.to_vec()).extend(after);
    }

    /// Whether the batch was stored when the window was opened.
    pub(super) fn was_stored(&self, batch: BatchId) -> bool {
        self.at_start.is_stored(batch)
    }

    /// The states that the history allows the batch.
    pub(super) fn states(&self, batch: BatchId) -> &[BatchState] {
        match self.touched.get(&batch) {
            Some(states) => states,
            None => self.states_at_start(batch),
        }
    }

    fn states_at_start(&self, batch: BatchId) -> &'static [BatchState] {
        if self.at_start.is_stored(batch) {
            STORED
        } else if self.open_at_start.contains(&batch) {
            OPEN
        } else {
            IDLE
        }
    }
}

const OPEN: &[BatchState] = &[BatchState::Open];
const STORED: &[BatchState] = &[BatchState::Stored];
/// Without an open use. A batch that a sweep has made was never checked out.
const IDLE: &[BatchState] = &[BatchState::Retry, BatchState::Quarantined];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Rule;
    use crate::types::{KeyEvent, KeyId, Position, Provider};

    /// What the end of a history up to tick 3 is found to break, if the clock was read as `before`
    /// and `after` around the last page.
    fn judged(before: i64, after: i64) -> Vec<(Rule, Option<Tick>)> {
        let cursor = Position::START;
        let ring = Ring {
            id: RingId(1),
            name: "default".to_owned(),
            tick: Tick(3),
            cursor,
            paused: false,
            provider: Provider::Software,
        };
        let mut history = RingHistory::new(&ring);
        for tick in 1..=3 {
            let (tick, key) = (Tick(tick), KeyId(tick));
            let event = Event::Key { tick, key, event: KeyEvent::Added };
            assert_eq!(history.ledger.apply(&event), []);
        }
        history.clock = (Tick(before), Tick(after));
        let mut findings = Findings::default();
        history.judge_end(&mut findings);
        let report = findings.into_report(Vec::new(), 0);
        report.violations.iter().map(|finding| (finding.rule, finding.tick)).collect()
    }

    #[test]
    fn the_last_event_may_stand_anywhere_between_two_readings_of_the_clock() {
        for (before, after) in [(3, 3), (2, 3), (3, 4), (1, 9)] {
            assert_eq!(judged(before, after), [], "{before}, {after}");
        }
        assert_eq!(judged(4, 5), [(Rule::Ticks, Some(Tick(4)))]);
        assert_eq!(judged(1, 2), [(Rule::Ticks, Some(Tick(3)))]);
    }
}
