//! The service under load: how fast it takes records in, how soon they are signed, and what it costs
//! to watch it.
//!
//! ```sh
//! cargo build --release
//! cargo bench --bench service -- --program target/release/chancery             # all of it
//! cargo bench --bench service -- --program target/release/chancery bulk single # some of it
//! ```
//!
//! It starts a PostgreSQL server of its own, with fsync on, and a service for each measurement. Each is
//! taken several times, and the median is printed. Client, service and PostgreSQL share the machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on ends, and its message says why"
)]

mod client;
mod measure;
mod site;

use std::path::PathBuf;

use clap::Parser;

use site::Site;

/// A name, how it is measured, and what the figure is.
type Measurement = (&'static str, fn(&Site) -> f64, &'static str);

/// Measures the service.
#[derive(Parser)]
struct Arguments {
    /// The program [default: the one that was built with this benchmark, which has failpoints]
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chancery"))]
    program: PathBuf,
    /// How often each figure is taken
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// On PostgreSQL or on SQLite
    #[arg(long, default_value = "postgres", value_parser = ["postgres", "sqlite"])]
    on: String,
    /// What to measure: bulk, named, single, latency, watching; by default all
    names: Vec<String>,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let wanted =
        |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|n| n == name);
    let measurements: [Measurement; 6] = [
        ("bulk", measure::bulk, "records/s by bulk NDJSON, 256 bytes, signing paused"),
        ("named", measure::named, "records/s by bulk NDJSON with external ids, signing paused"),
        ("single", measure::single, "single POSTs/s from 32 connections, signing paused"),
        ("latency", measure::median_latency, "ms from POST to signature, p50, idle service"),
        ("latency", measure::late_latency, "ms from POST to signature, p99, idle service"),
        ("watching", measure::watching, "of the signing rate while scraped and watched"),
    ];
    for (name, measure, what) in measurements.iter().filter(|(name, ..)| wanted(name)) {
        let mut figures: Vec<f64> = (0..arguments.runs)
            .map(|_| measure(&Site::start(&arguments.program, arguments.on == "postgres")))
            .collect();
        figures.sort_by(f64::total_cmp);
        let all: Vec<String> = figures.iter().map(|figure| shown(*figure)).collect();
        let median = shown(figures[figures.len() / 2]);
        println!("{name:<9} {median:>10} {what} (of {})", all.join(", "));
    }
}

fn shown(figure: f64) -> String {
    if figure >= 1000.0 { format!("{figure:.0}") } else { format!("{figure:.3}") }
}
