//! The tables of the page.

use maud::{Markup, html};

use super::overview::{Action, InFlight, NodeRow, Quarantined, Viewer};
use super::words::{count, duration, instant, short};

/// A table that scrolls inside its own box.
fn table(caption: &str, heads: &[&str], rows: Markup) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr { @for head in heads { th scope="col" { (head) } } } }
                tbody { (rows) }
            }
        }
    }
}

fn empty(words: &str) -> Markup {
    html! { p class="empty" { (words) } }
}

pub(super) fn in_flight(batches: &[InFlight]) -> Markup {
    if batches.is_empty() {
        return empty("No batch is in flight.");
    }
    let rows = html! {
        @for batch in batches {
            tr {
                th scope="row" class="figure" { (batch.batch) }
                td class="figure" { (count(batch.records.into())) }
                td class="mono" title=(batch.kid) { (short(&batch.kid)) }
                td { (batch.node) }
                td class="figure" { (batch.fence) }
                td class="figure" { (duration(batch.since_s)) }
                td class="figure" {
                    @if batch.expires_in_s > 0.0 { (duration(batch.expires_in_s)) } @else { "expired" }
                }
            }
        }
    };
    let heads = ["Batch", "Records", "Key", "Node", "Fence", "Since", "Lease"];
    table("Batches in flight", &heads, rows)
}

pub(super) fn nodes(nodes: &[NodeRow]) -> Markup {
    if nodes.is_empty() {
        return empty("No node has reported yet.");
    }
    let rows = html! {
        @for node in nodes {
            @let (word, kind) = health(node);
            tr {
                th scope="row" title=(format!("{}, process {}", node.host, node.process_id)) {
                    (node.name)
                }
                td { span class={ "badge " (kind) } { (word) } }
                td class="figure" { (node.in_flight) }
                td { (node.version) }
                td class="figure" { (duration(node.silent_s)) " ago" }
                td class="wrap" { (node.trouble.as_deref().unwrap_or("none")) }
            }
        }
    };
    table("Nodes", &["Node", "State", "In flight", "Version", "Seen", "Trouble"], rows)
}

fn health(node: &NodeRow) -> (&'static str, &'static str) {
    match (node.state, node.is_alive, &node.trouble) {
        ("stopped", ..) => ("stopped", "plain"),
        (_, false, _) => ("silent", "bad"),
        (state, true, Some(_)) => (state, "warn"),
        ("running", true, None) => ("running", "good"),
        (state, true, None) => (state, "warn"),
    }
}

pub(super) fn quarantine(batches: &[Quarantined], api: &str, viewer: &Viewer) -> Markup {
    if batches.is_empty() {
        return empty("Nothing is in quarantine.");
    }
    let rows = html! {
        @for batch in batches {
            tr {
                th scope="row" class="figure" { (batch.batch) }
                td class="figure" { (count(batch.records.into())) }
                td class="figure" { (batch.attempts) }
                td class="wrap" { (batch.failure) }
                td {
                    @if viewer.may_operate {
                        button type="button" data-post=(format!("{api}/batches/{}/retry", batch.batch))
                            aria-label=(format!("Retry batch {}", batch.batch)) { "Retry" }
                    }
                }
            }
        }
    };
    table("Batches in quarantine", &["Batch", "Records", "Attempts", "Failure", "Order"], rows)
}

pub(super) fn actions(actions: &[Action]) -> Markup {
    if actions.is_empty() {
        return empty("No administrator has done anything yet.");
    }
    let rows = html! {
        @for action in actions {
            tr {
                th scope="row" class="figure" { (action.seq) }
                td class="figure" { (instant(&action.at)) }
                td { (action.actor) }
                td { (action.action) }
                td class="wrap" title=(action.detail) { (action.target) }
            }
        }
    };
    table("Recent administrative actions", &["No.", "At (UTC)", "Who", "What", "To what"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_from_outside_is_shown_as_text() {
        let viewer = Viewer { name: String::new(), may_operate: true };
        let failure = "<script>alert('x')</script>\" onload=\"x".to_owned();
        let batch = Quarantined { batch: 7, records: 1, attempts: 5, failure };
        let html = quarantine(&[batch], "/v1", &viewer).into_string();
        assert!(!html.contains("<script>") && !html.contains("\" onload"), "{html}");
        assert!(html.contains("&lt;script&gt;"), "{html}");
        assert!(html.contains("data-post=\"/v1/batches/7/retry\""), "{html}");
        let kid = "\"><script>".to_owned();
        let html = in_flight(&[InFlight { kid, ..InFlight::default() }]).into_string();
        assert!(!html.contains("<script>"), "{html}");
    }

    #[test]
    fn a_reader_is_shown_no_button() {
        let reader = Viewer { name: String::new(), may_operate: false };
        let html = quarantine(&[Quarantined::default()], "/v1", &reader).into_string();
        assert!(html.contains("<table") && !html.contains("<button"), "{html}");
    }

    #[test]
    fn a_silent_node_is_told_from_one_that_stopped() {
        let node = |state, is_alive, trouble: Option<&str>| NodeRow {
            state,
            is_alive,
            trouble: trouble.map(str::to_owned),
            ..NodeRow::default()
        };
        assert_eq!(health(&node("running", true, None)), ("running", "good"));
        assert_eq!(health(&node("running", true, Some("x"))), ("running", "warn"));
        assert_eq!(health(&node("running", false, None)), ("silent", "bad"));
        assert_eq!(health(&node("stopped", false, None)), ("stopped", "plain"));
    }

    #[test]
    fn every_table_says_that_it_is_empty() {
        let viewer = Viewer::default();
        for table in [in_flight(&[]), nodes(&[]), quarantine(&[], "/v1", &viewer), actions(&[])] {
            let html = table.into_string();
            assert!(html.contains("class=\"empty\"") && !html.contains("<table"), "{html}");
        }
    }
}
