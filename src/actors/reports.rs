//! What a node says of itself to those who look at the database: one row a process, put together of
//! what each of its rings does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::db::{NodeReport, Store, StoreError};
use crate::types::{NodeState, RingId};

/// A node's report; clones are the same one.
#[derive(Clone, Debug)]
pub struct Reports(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    first: NodeReport,
    rings: Mutex<BTreeMap<RingId, RingReport>>,
    /// Held while a report is put together and written, so that the last one written is the newest.
    writing: Mutex<()>,
}

/// What one ring's Supervisor says.
#[derive(Clone, Debug, Default)]
pub(super) struct RingReport {
    pub(super) name: String,
    /// Not before it has said so.
    pub(super) state: Option<NodeState>,
    pub(super) in_flight: u32,
    pub(super) trouble: Option<String>,
    /// Its work on the ring has ended, which says nothing of the node's.
    pub(super) has_finished: bool,
}

impl Reports {
    /// What `first` says, with state, batches in flight and troubles filled in by the rings.
    #[must_use]
    pub fn new(first: NodeReport, rings: impl IntoIterator<Item = (RingId, String)>) -> Self {
        let rings = rings.into_iter();
        let rings = rings.map(|(id, name)| (id, RingReport { name, ..RingReport::default() }));
        let rings = Mutex::new(rings.collect());
        Reports(Arc::new(Inner { first, rings, writing: Mutex::default() }))
    }

    /// How long a checkout of the node is good for without renewal.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.0.first.lease
    }

    /// Takes down what a ring says.
    pub(super) fn note(&self, ring: RingId, mut report: RingReport) {
        let mut rings = self.rings();
        let known = rings.entry(ring).or_default();
        report.name = std::mem::take(&mut known.name);
        *known = report;
    }

    /// Writes down what all rings have said by now.
    pub(super) fn write(&self, store: &dyn Store) -> Result<(), StoreError> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let report = self.now();
        store.report(&report)
    }

    /// The node's last word.
    #[must_use]
    pub fn last(&self, in_flight: u32) -> NodeReport {
        NodeReport { state: NodeState::Stopped, in_flight, ..self.0.first.clone() }
    }

    fn rings(&self) -> MutexGuard<'_, BTreeMap<RingId, RingReport>> {
        self.0.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> NodeReport {
        let rings = self.rings();
        let at_work = rings.values().filter(|ring| !ring.has_finished);
        let mut states: Vec<NodeState> = at_work.filter_map(|ring| ring.state).collect();
        if states.is_empty() {
            states = rings.values().filter_map(|ring| ring.state).collect();
        }
        let busiest = [NodeState::Running, NodeState::Draining, NodeState::Paused];
        let state = busiest.into_iter().find(|state| states.contains(state));
        NodeReport {
            state: state.unwrap_or(self.0.first.state),
            in_flight: rings.values().map(|ring| ring.in_flight).sum(),
            trouble: troubles(&rings),
            ..self.0.first.clone()
        }
    }
}

/// The rings' troubles, each once: with its ring's name, unless it is that of all.
fn troubles(rings: &BTreeMap<RingId, RingReport>) -> Option<String> {
    let mut said: Vec<(&str, Vec<&str>)> = Vec::new();
    for ring in rings.values() {
        let Some(trouble) = &ring.trouble else { continue };
        match said.iter_mut().find(|(known, _)| known == trouble) {
            Some((_, names)) => names.push(&ring.name),
            None => said.push((trouble, vec![&ring.name])),
        }
    }
    let in_words = |(trouble, names): &(&str, Vec<&str>)| {
        if names.len() == rings.len() {
            (*trouble).to_owned()
        } else {
            format!("ring {}: {trouble}", names.join(", "))
        }
    };
    let all: Vec<String> = said.iter().map(in_words).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(rings: &[(i64, &str)]) -> Reports {
        let first = NodeReport {
            name: "node".to_owned(),
            host: "host".to_owned(),
            process_id: 1,
            version: "1".to_owned(),
            lease: Duration::from_secs(15),
            state: NodeState::Running,
            in_flight: 0,
            trouble: None,
        };
        Reports::new(first, rings.iter().map(|(id, name)| (RingId(*id), (*name).to_owned())))
    }

    fn says(state: NodeState, in_flight: u32, trouble: Option<&str>) -> RingReport {
        let trouble = trouble.map(str::to_owned);
        RingReport { state: Some(state), in_flight, trouble, ..RingReport::default() }
    }

    #[test]
    fn a_node_runs_as_long_as_any_of_its_rings_does_and_its_batches_are_theirs() {
        let reports = reports(&[(1, "a"), (2, "b")]);
        assert_eq!(reports.now().state, NodeState::Running);
        reports.note(RingId(1), says(NodeState::Paused, 2, None));
        reports.note(RingId(2), says(NodeState::Running, 3, None));
        assert_eq!((reports.now().state, reports.now().in_flight), (NodeState::Running, 5));
        reports.note(RingId(2), says(NodeState::Draining, 1, None));
        assert_eq!(reports.now().state, NodeState::Draining);
        // A ring that is done says nothing of the others.
        let done = RingReport { has_finished: true, ..says(NodeState::Running, 0, None) };
        reports.note(RingId(2), done.clone());
        assert_eq!(reports.now().state, NodeState::Paused);
        reports.note(RingId(1), done);
        assert_eq!(reports.now().state, NodeState::Running);
        assert_eq!(reports.last(0).state, NodeState::Stopped);
    }

    #[test]
    fn troubles_stand_behind_their_ring_unless_all_rings_have_them() {
        let reports = reports(&[(1, "a"), (2, "b")]);
        let runs = |trouble| says(NodeState::Running, 0, trouble);
        assert_eq!(reports.now().trouble, None);
        reports.note(RingId(2), runs(Some("no key")));
        assert_eq!(reports.now().trouble.as_deref(), Some("ring b: no key"));
        reports.note(RingId(1), runs(Some("the disk is full")));
        let both = reports.now().trouble;
        assert_eq!(both.as_deref(), Some("ring a: the disk is full; ring b: no key"));
        reports.note(RingId(2), runs(Some("the disk is full")));
        assert_eq!(reports.now().trouble.as_deref(), Some("the disk is full"));
    }

    #[test]
    fn the_troubles_of_a_node_with_one_ring_stand_as_they_are() {
        let reports = reports(&[(1, "a")]);
        reports.note(RingId(1), says(NodeState::Running, 0, Some("no key")));
        assert_eq!(reports.now().trouble.as_deref(), Some("no key"));
    }
}
