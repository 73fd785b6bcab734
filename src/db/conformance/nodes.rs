//! The list of nodes: what each says of itself.

use std::time::Duration;

use super::actions::RING;
use super::fixture::Fixture;
use super::on_both;
use crate::db::{Node, NodeReport, Store};
use crate::types::{NodeId, NodeState};

on_both! {
    a_node_s_first_report_lists_it_and_the_next_ones_change_what_it_says,
    a_report_that_comes_late_does_not_bring_a_stopped_node_back,
    a_node_that_is_silent_for_longer_than_its_lease_counts_as_gone,
    a_node_that_has_been_gone_for_a_week_is_forgotten,
    a_report_is_no_event_of_any_ring,
}

pub(super) fn report() -> NodeReport {
    NodeReport {
        name: "signer-1".to_owned(),
        host: "there".to_owned(),
        process_id: 4_000_000_000,
        version: "1.2.3".to_owned(),
        lease: Duration::from_secs(15),
        state: NodeState::Running,
        in_flight: 0,
        trouble: None,
    }
}

fn only(store: &dyn Store) -> Node {
    let mut nodes = store.nodes().unwrap();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    nodes.remove(0)
}

fn a_node_s_first_report_lists_it_and_the_next_ones_change_what_it_says<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert_eq!(store.nodes().unwrap(), []);
    store.report(&report()).unwrap();
    let first = only(&*store);
    assert_eq!((&first.id, &first.report), (&NodeId("a".to_owned()), &report()));
    assert!(first.is_alive());
    assert!(first.silent_for < Duration::from_secs(15), "{first:?}");

    let busy = NodeReport {
        in_flight: 7,
        state: NodeState::Draining,
        trouble: Some("the disk is full".to_owned()),
        ..report()
    };
    store.report(&busy).unwrap();
    let second = only(&*store);
    assert_eq!(second.report, busy);
    assert_eq!(second.started_at, first.started_at);
    assert!(second.last_seen_at >= first.last_seen_at);

    store.report(&NodeReport { state: NodeState::Stopped, ..report() }).unwrap();
    assert!(!only(&*store).is_alive());
    assert_eq!(only(&*store).report.trouble, None);

    f.open("b").report(&report()).unwrap();
    let ids: Vec<String> = store.nodes().unwrap().into_iter().map(|node| node.id.0).collect();
    assert_eq!(ids, ["a", "b"], "in order of their start");
}

fn a_report_that_comes_late_does_not_bring_a_stopped_node_back<F: Fixture>(f: &F) {
    let store = f.open("a");
    store.report(&report()).unwrap();
    store.report(&NodeReport { state: NodeState::Stopped, ..report() }).unwrap();
    store.report(&NodeReport { state: NodeState::Draining, in_flight: 3, ..report() }).unwrap();
    assert_eq!(only(&*store).report, NodeReport { state: NodeState::Stopped, ..report() });
}

/// Moves the last report of node a so many seconds into the past.
fn age<F: Fixture>(f: &F, seconds: u32) {
    f.run(&format!("UPDATE nodes SET last_seen_at = {} WHERE id = 'a'", F::ago(seconds)));
}

fn a_node_that_is_silent_for_longer_than_its_lease_counts_as_gone<F: Fixture>(f: &F) {
    let store = f.open("a");
    store.report(&report()).unwrap();
    age(f, 10);
    assert!(only(&*store).is_alive());
    age(f, 20);
    let silent = only(&*store);
    assert!(!silent.is_alive());
    let silence = Duration::from_secs(20)..Duration::from_secs(200);
    assert!(silence.contains(&silent.silent_for), "{silent:?}");
    store.report(&report()).unwrap();
    assert!(only(&*store).is_alive(), "it is back");
}

fn a_node_that_has_been_gone_for_a_week_is_forgotten<F: Fixture>(f: &F) {
    f.open("a").report(&report()).unwrap();
    let store = f.open("b");
    age(f, 167 * 3600);
    store.report(&report()).unwrap();
    assert_eq!(store.nodes().unwrap().len(), 2);
    age(f, 169 * 3600);
    store.report(&report()).unwrap();
    assert_eq!(only(&*store).id, NodeId("b".to_owned()));
}

fn a_report_is_no_event_of_any_ring<F: Fixture>(f: &F) {
    let store = f.open("a");
    store.report(&report()).unwrap();
    assert_eq!(store.progress(RING).unwrap().tick, 0);
}
