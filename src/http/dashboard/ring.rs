//! The key ring, drawn as a ring: a mark for each key, in order of id, from twelve o'clock on.
//!
//! A status is told by the mark's shape as well as its colour: a disc is free, a disc in a halo is in
//! use, a cross is disabled, a square retired, a point destroyed. The fuller a disc, the more lately its key
//! was used; the pointer shows the one that is next.

use std::f64::consts::TAU;

use maud::{Markup, html};

use super::overview::KeyDot;
use super::words::{count, counted, instant, short};

/// The side of the picture.
const SIDE: f64 = 400.0;

/// The radius of the outer circle.
const OUTER: f64 = 172.0;

/// Between two circles.
const GAP: f64 = 22.0;

/// The least room of a mark along its circle.
const ROOM: f64 = 9.5;

/// The largest radius of a mark.
const LARGEST: f64 = 9.0;

/// Where a mark stands, and how large it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    x: f64,
    y: f64,
    size: f64,
    angle: f64,
    circle: f64,
}

/// The ring with its legend.
pub(super) fn ring(keys: &[KeyDot]) -> Markup {
    let next = next_key(keys);
    let (free, in_use) = (keys.iter().filter(|k| is_free(k)).count(), in_use(keys));
    let active = keys.iter().filter(|key| key.status == "active").count();
    let places = places(keys.len());
    let shown = keys.iter().zip(&places);
    html! {
        div class="ring" {
            svg viewBox="0 0 400 400" role="group" aria-label=(summary(keys)) id="key-ring" {
                @for circle in circles(&places) {
                    circle class="track" cx="200" cy="200" r=(fixed(circle)) {}
                }
                text class="ring-number" x="200" y="200" text-anchor="middle" { (count(free as u64)) }
                text class="ring-words" x="200" y="224" text-anchor="middle" {
                    "free of " (count(active as u64)) " active"
                }
                @for (n, (key, place)) in shown.enumerate() {
                    (mark(key, *place, n == 0, next == Some(n)))
                }
            }
            p class="key-detail" id="key-detail" data-keep="" {
                "Point at a key, or move along the ring with the arrow keys."
            }
            ul class="legend" {
                (legend("free", free, html! { circle cx="8" cy="8" r="6" class="free" {} }))
                (legend("in use", in_use, html! {
                    circle cx="8" cy="8" r="7" class="halo" {}
                    circle cx="8" cy="8" r="4" class="in-use" {}
                }))
                @for status in ["disabled", "retired", "destroyed"] {
                    @let number = keys.iter().filter(|key| key.status == status).count();
                    @if number > 0 {
                        (legend(status, number, shape(status, 8.0, 8.0, 6.0)))
                    }
                }
            }
        }
    }
}

fn legend(word: &str, number: usize, shape: Markup) -> Markup {
    html! {
        li {
            svg viewBox="0 0 16 16" aria-hidden="true" { (shape) }
            (count(number as u64)) " " (word)
        }
    }
}

fn is_free(key: &KeyDot) -> bool {
    key.status == "active" && !key.in_use
}

fn in_use(keys: &[KeyDot]) -> usize {
    keys.iter().filter(|key| key.in_use).count()
}

/// The free key that was used the longest time ago; of those that never were, the first.
fn next_key(keys: &[KeyDot]) -> Option<usize> {
    let free = keys.iter().enumerate().filter(|(_, key)| is_free(key));
    free.min_by_key(|(n, key)| (key.last_tick, *n)).map(|(n, _)| n)
}

fn summary(keys: &[KeyDot]) -> String {
    let free = keys.iter().filter(|key| is_free(key)).count() as u64;
    let keys_in_words = counted(keys.len() as u64, "key", "keys");
    format!("Key ring: {keys_in_words}, {free} free, {} in use", in_use(keys))
}

fn mark(key: &KeyDot, place: Place, is_first: bool, is_next: bool) -> Markup {
    let Place { x, y, size, .. } = place;
    let state = if key.in_use {
        "in use"
    } else if is_free(key) {
        "free"
    } else {
        key.status
    };
    let last = match &key.last_used_at {
        Some(at) => format!("last used {}", instant(at)),
        None => "never used".to_owned(),
    };
    let batches = counted(key.stored_batches, "batch", "batches");
    let next = if is_next { ", next" } else { "" };
    let label = format!("{}: {state}{next}, {last}, {batches}", key.kid);
    html! {
        g class="key" role="img" tabindex=(if is_first { "0" } else { "-1" })
            aria-label=(label) data-kid=(short(&key.kid)) {
            @if is_next {
                path class="pointer" d=(pointer(place)) {}
            }
            @if key.in_use {
                circle class="halo" cx=(fixed(x)) cy=(fixed(y)) r=(fixed(size * 1.35)) {}
                circle class="in-use" cx=(fixed(x)) cy=(fixed(y)) r=(fixed(size * 0.8)) {}
            } @else if key.status == "active" {
                circle class="free" cx=(fixed(x)) cy=(fixed(y)) r=(fixed(size))
                    fill-opacity=(fixed(0.12 + 0.88 * key.recency.unwrap_or(0.0))) {}
            } @else {
                (shape(key.status, x, y, size))
            }
            circle class="reach" cx=(fixed(x)) cy=(fixed(y)) r=(fixed(size + 2.0)) {}
        }
    }
}

fn shape(status: &str, x: f64, y: f64, size: f64) -> Markup {
    let s = size * 0.75;
    html! {
        @match status {
            "disabled" => {
                path class="disabled" d=(format!(
                    "M{} {}L{} {}M{} {}L{} {}",
                    fixed(x - s), fixed(y - s), fixed(x + s), fixed(y + s),
                    fixed(x + s), fixed(y - s), fixed(x - s), fixed(y + s)
                )) {}
            }
            "retired" => {
                rect class="retired" x=(fixed(x - s)) y=(fixed(y - s))
                    width=(fixed(2.0 * s)) height=(fixed(2.0 * s)) {}
            }
            _ => { circle class="destroyed" cx=(fixed(x)) cy=(fixed(y)) r=(fixed(size * 0.3)) {} }
        }
    }
}

/// A triangle outside the circle that points at a mark.
fn pointer(place: Place) -> String {
    let at = |radius: f64, turn: f64| {
        let angle = place.angle + turn;
        let (x, y) = (SIDE / 2.0 + radius * angle.sin(), SIDE / 2.0 - radius * angle.cos());
        format!("{} {}", fixed(x), fixed(y))
    };
    let tip = place.circle + place.size + 4.0;
    let turn = 4.0 / place.circle;
    format!("M{}L{}L{}Z", at(tip, 0.0), at(tip + 13.0, turn), at(tip + 13.0, -turn))
}

/// As many circles as it takes, the outer one first, each with marks at even distances.
fn places(keys: usize) -> Vec<Place> {
    let mut places = Vec::with_capacity(keys);
    let mut circle = OUTER;
    while places.len() < keys {
        let room = (TAU * circle / ROOM).floor().max(1.0) as usize;
        let on_circle = room.min(keys - places.len());
        let distance = TAU * circle / on_circle as f64;
        let size = (distance * 0.36).clamp(2.0, LARGEST);
        for n in 0..on_circle {
            let angle = TAU * n as f64 / on_circle as f64;
            let x = SIDE / 2.0 + circle * angle.sin();
            let y = SIDE / 2.0 - circle * angle.cos();
            places.push(Place { x, y, size, angle, circle });
        }
        circle = (circle - GAP).max(ROOM);
    }
    places
}

fn circles(places: &[Place]) -> Vec<f64> {
    let mut circles: Vec<f64> = places.iter().map(|place| place.circle).collect();
    circles.dedup();
    circles
}

fn fixed(number: f64) -> String {
    format!("{number:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(number: usize) -> Vec<KeyDot> {
        (0..number)
            .map(|n| KeyDot {
                kid: format!("kid-{n}"),
                status: "active",
                last_tick: 100 - n as i64,
                recency: Some(0.5),
                ..KeyDot::default()
            })
            .collect()
    }

    #[test]
    fn every_key_stands_on_a_circle_and_none_on_another() {
        for number in [1, 2, 100, 113, 114, 400] {
            let places = places(number);
            assert_eq!(places.len(), number);
            for (n, place) in places.iter().enumerate() {
                let radius = (place.x - 200.0).hypot(place.y - 200.0);
                assert!((radius - place.circle).abs() < 1e-6, "{place:?}");
                for other in &places[..n] {
                    let distance = (place.x - other.x).hypot(place.y - other.y);
                    assert!(distance > place.size, "{place:?} and {other:?}");
                }
            }
        }
        assert_eq!(circles(&places(100)).len(), 1);
        assert!(circles(&places(400)).len() > 2);
    }

    #[test]
    fn the_next_key_is_the_free_one_that_was_used_the_longest_time_ago() {
        let mut keys = keys(10);
        assert_eq!(next_key(&keys), Some(9));
        keys[9].in_use = true;
        keys[8].status = "disabled";
        assert_eq!(next_key(&keys), Some(7));
        keys[3].last_tick = 0;
        keys[2].last_tick = 0;
        assert_eq!(next_key(&keys), Some(2));
        assert_eq!(next_key(&[]), None);
    }

    #[test]
    fn each_status_has_a_shape_and_each_key_a_label() {
        let mut keys = keys(5);
        keys[0].in_use = true;
        for (n, status) in ["disabled", "retired", "destroyed"].into_iter().enumerate() {
            keys[n + 1].status = status;
        }
        let html = ring(&keys).into_string();
        for class in ["halo", "free", "disabled", "retired", "destroyed", "pointer"] {
            assert!(html.contains(&format!("class=\"{class}\"")), "{class}");
        }
        assert_eq!(html.matches("role=\"img\"").count(), 5);
        assert!(html.contains("aria-label=\"kid-0: in use, never used, 0 batches\""), "{html}");
        assert!(html.contains("Key ring: 5 keys, 1 free, 1 in use"), "{html}");
    }
}
