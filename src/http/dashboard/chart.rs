//! The rate over the last minutes, as an area.

use maud::{Markup, html};

use super::words::{duration, rate};

/// The width of the picture, and what is left free for the axes.
const WIDTH: f64 = 640.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 152.0;

/// How many seconds the axis shows.
const SECONDS: usize = 300;

/// A chart of records a second, the last one at its right end.
pub(super) fn chart(rates: &[f64]) -> Markup {
    let top = nice(rates.iter().copied().fold(0.0, f64::max));
    let now = rates.last().copied().unwrap_or(0.0);
    let label = format!(
        "Records signed a second over the last {}: now {}, at most {}",
        duration(rates.len() as f64),
        rate(now),
        rate(rates.iter().copied().fold(0.0, f64::max))
    );
    html! {
        svg class="chart" viewBox="0 0 640 180" role="img" aria-label=(label) {
            @for (height, value) in [(BOTTOM, 0.0), (middle(), top / 2.0), (TOP, top)] {
                line class="grid" x1=(LEFT) x2=(WIDTH) y1=(height) y2=(height) {}
                text class="axis" x=(LEFT - 8.0) y=(height + 4.0) text-anchor="end" { (rate(value)) }
            }
            @for (minutes, x) in [(5, LEFT), (4, x(60)), (3, x(120)), (2, x(180)), (1, x(240))] {
                text class=(if minutes == 5 { "axis" } else { "axis between" }) x=(x) y="172"
                    text-anchor=(if minutes == 5 { "start" } else { "middle" }) {
                    "-" (minutes) " min"
                }
            }
            text class="axis" x=(WIDTH) y="172" text-anchor="end" { "now" }
            @if rates.len() > 1 {
                path class="area" d=(area(rates, top)) {}
                path class="line" d=(line(rates, top)) {}
            }
        }
    }
}

fn middle() -> f64 {
    (TOP + BOTTOM) / 2.0
}

/// The place of a second of the axis, the last of which is now.
fn x(second: usize) -> f64 {
    LEFT + (WIDTH - LEFT) * second as f64 / (SECONDS - 1) as f64
}

fn y(value: f64, top: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * (value / top).clamp(0.0, 1.0)
}

fn line(rates: &[f64], top: f64) -> String {
    let first = SECONDS.saturating_sub(rates.len());
    let mut path = String::new();
    for (n, value) in rates.iter().enumerate() {
        let step = if n == 0 { 'M' } else { 'L' };
        path.push_str(&format!("{step}{:.1} {:.1}", x(first + n), y(*value, top)));
    }
    path
}

fn area(rates: &[f64], top: f64) -> String {
    let first = x(SECONDS.saturating_sub(rates.len()));
    format!("{}L{WIDTH} {BOTTOM}L{first:.1} {BOTTOM}Z", line(rates, top))
}

/// The next of 1, 2, 5, 10, 20, ... that is not smaller.
fn nice(most: f64) -> f64 {
    let mut step = 10.0;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if step * factor >= most {
                return step * factor;
            }
        }
        step *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (most, top) in [(0.0, 10.0), (11.0, 20.0), (4_999.0, 5_000.0), (51_000.0, 100_000.0)] {
            assert_eq!(nice(most), top);
        }
    }

    #[test]
    fn the_last_second_is_at_the_right_end_and_nothing_leaves_the_picture() {
        for seconds in [2, 10, 300] {
            let rates: Vec<f64> = (0..seconds).map(|n| f64::from(n) * 10.0).collect();
            let path = line(&rates, 1_000.0);
            assert!(
                path.ends_with(&format!(
                    "{WIDTH:.1} {:.1}",
                    y(rates[seconds as usize - 1], 1_000.0)
                ))
            );
            for point in path.trim_start_matches('M').split('L') {
                let (x, y) = point.split_once(' ').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (LEFT - 0.1..=WIDTH).contains(&x) && (TOP..=BOTTOM).contains(&y),
                    "{point}"
                );
            }
        }
        assert!(!chart(&[]).into_string().contains("<path"));
    }
}
