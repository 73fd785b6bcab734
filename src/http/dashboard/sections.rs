//! The parts of the page that change, each with the id of its element.

use maud::{Markup, html};

use super::chart::chart;
use super::overview::{Overview, Viewer};
use super::ring::ring;
use super::tables;
use super::words::{count, duration, rate};

/// Each section's id and what is in it.
pub(super) fn sections(overview: &Overview, viewer: &Viewer) -> Vec<(&'static str, Markup)> {
    vec![
        ("state", state(overview)),
        ("orders", orders(overview, viewer)),
        ("banner", banner(overview)),
        ("numbers", numbers(overview)),
        ("progress", progress(overview)),
        ("rate", chart(&overview.rates)),
        ("keys", keys(overview)),
        ("in-flight", tables::in_flight(&overview.in_flight)),
        ("nodes", tables::nodes(&overview.nodes)),
        ("quarantine", tables::quarantine(&overview.quarantine, &overview.api, viewer)),
        ("actions", tables::actions(&overview.actions)),
    ]
}

/// What the node is doing, in a word.
fn state(overview: &Overview) -> Markup {
    let word = if overview.ring_paused { "ring paused" } else { overview.state };
    let kind = match word {
        "running" => "good",
        "paused" | "ring paused" | "draining" => "warn",
        "no signing" => "plain",
        _ => "bad",
    };
    html! { span class={ "badge " (kind) } { (word) } }
}

fn order(path: &str, scope: &str, label: &str, confirm: Option<&str>) -> Markup {
    let body = format!(r#"{{"scope":"{scope}"}}"#);
    html! {
        button type="button" data-post=(path) data-body=(body) data-confirm=[confirm] { (label) }
    }
}

/// What an operator may order.
fn orders(overview: &Overview, viewer: &Viewer) -> Markup {
    if !viewer.may_operate {
        return html! { p class="quiet" { "Orders need a token of the role operator." } };
    }
    let (node, api) = (&overview.node, &overview.api);
    let (pause, resume) = (format!("{api}/pause"), format!("{api}/resume"));
    let signs = !matches!(overview.state, "no signing" | "stopped");
    html! {
        @if overview.ring_paused {
            (order(&resume, "all", "Resume ring", None))
        } @else {
            (order(&pause, "all", "Pause ring",
                   Some("Pause the ring on all nodes? What is in flight is finished, and nothing new is \
                         started until the ring is resumed.")))
        }
        @if signs {
            @if overview.state == "paused" {
                (order(&resume, "node", "Resume node", None))
            } @else {
                (order(&pause, "node", "Pause node", None))
            }
            (order("/v1/drain", "node", "Drain node",
                   Some(&format!("Drain node {node}? It finishes what is in flight and ends, and this \
                                  page ends with it."))))
        }
        (order("/v1/drain", "all", "Drain all",
               Some("Drain all nodes? Each finishes what is in flight and ends.")))
    }
}

/// What somebody must hear first.
fn banner(overview: &Overview) -> Markup {
    let troubled = overview.nodes.iter().filter(|node| node.is_alive && node.trouble.is_some());
    let troubled = troubled.count() as u64;
    html! {
        @if !overview.database_answers {
            p class="banner bad" role="alert" {
                "The database does not answer. The numbers are the last that it gave."
            }
        } @else if overview.quarantined > 0 {
            p class="banner warn" {
                (count(overview.quarantined)) " records are in quarantine: see below."
            }
        } @else if troubled > 0 {
            p class="banner warn" { "Something keeps a node from its work: see Nodes." }
        }
    }
}

fn number(label: &str, value: &str, unit: &str) -> Markup {
    html! {
        div class="number" {
            dt { (label) }
            dd { (value) @if !unit.is_empty() { span class="unit" { " " (unit) } } }
        }
    }
}

fn numbers(overview: &Overview) -> Markup {
    let more = if overview.pending_is_a_minimum { "+" } else { "" };
    let oldest = overview.oldest_pending_s.map_or("none".to_owned(), duration);
    html! {
        dl class="numbers" {
            (number("Signed", &count(overview.signed), ""))
            (number("Pending", &format!("{}{more}", count(overview.pending)), ""))
            (number("Rate", &rate(overview.rate), "records/s"))
            (number("Oldest pending", &oldest, ""))
            (number("Quarantined", &count(overview.quarantined), ""))
        }
    }
}

fn progress(overview: &Overview) -> Markup {
    let all = overview.signed + overview.pending + overview.quarantined;
    let percent = if all == 0 { 100.0 } else { overview.signed as f64 * 100.0 / all as f64 };
    // Never 100 before it is.
    let percent = if overview.signed < all { percent.min(99.99) } else { percent };
    html! {
        progress max=(all.max(1)) value=(if all == 0 { 1 } else { overview.signed })
            aria-label="Records signed" {}
        p class="quiet" {
            @if all == 0 {
                "No records yet."
            } @else {
                (format!("{percent:.2} %")) " of " (count(all))
                @if overview.pending_is_a_minimum { " or more" }
                " records are signed"
                @if overview.rate > 0.0 && overview.pending > 0 && !overview.pending_is_a_minimum {
                    ", the rest in about " (duration(overview.pending as f64 / overview.rate))
                }
                "."
            }
        }
    }
}

fn keys(overview: &Overview) -> Markup {
    html! {
        @if overview.keys.is_empty() {
            p class="empty" { "The ring has no key: " code { "chancery keys generate" } "." }
        } @else {
            (ring(&overview.keys))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html_of(id: &str, overview: &Overview, may_operate: bool) -> String {
        let viewer = Viewer { name: "somebody".to_owned(), may_operate };
        let found = sections(overview, &viewer).into_iter().find(|(section, _)| *section == id);
        found.unwrap().1.into_string()
    }

    #[test]
    fn orders_are_for_operators_and_fit_the_state() {
        let running = Overview { state: "running", ..Overview::default() };
        assert!(!html_of("orders", &running, false).contains("button"));
        let html = html_of("orders", &running, true);
        for label in ["Pause ring", "Pause node", "Drain node", "Drain all"] {
            assert!(html.contains(label), "{label}: {html}");
        }
        let paused = Overview { ring_paused: true, state: "paused", ..Overview::default() };
        let html = html_of("orders", &paused, true);
        assert!(html.contains("Resume ring") && html.contains("Resume node"), "{html}");
        let api = Overview { state: "no signing", ..Overview::default() };
        assert!(!html_of("orders", &api, true).contains("node\""));
    }

    #[test]
    fn the_progress_is_never_whole_before_it_is() {
        let nearly = Overview { signed: 9_999_999, pending: 1, ..Overview::default() };
        assert!(html_of("progress", &nearly, false).contains("99.99 % of 10,000,000"));
        let done = Overview { signed: 10, ..Overview::default() };
        assert!(html_of("progress", &done, false).contains("100.00 %"));
        assert!(html_of("progress", &Overview::default(), false).contains("No records yet."));
    }

    #[test]
    fn a_database_that_does_not_answer_is_said_first() {
        let down = Overview { quarantined: 3, ..Overview::default() };
        assert!(html_of("banner", &down, false).contains("does not answer"));
        let up = Overview { database_answers: true, ..down };
        assert!(html_of("banner", &up, false).contains("3 records are in quarantine"));
        let well = Overview { database_answers: true, ..Overview::default() };
        assert_eq!(html_of("banner", &well, false), "");
    }
}
