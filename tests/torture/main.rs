//! Torture: processes that sign are killed, stopped, cut off and starved of their database again and
//! again while records arrive, and in the end nothing may be lost, doubled or out of order.
//!
//! ```sh
//! cargo test --test torture                                                    # the short form
//! cargo test --test torture -- --seconds 1800 --seed 7 --nodes 4               # the long one
//! cargo test --test torture -- sqlite --kills 500                              # one part
//! ```
//!
//! The seed decides the schedule of the faults; what each of them hits is up to the machine. A
//! failure prints the seed and the folder that keeps the logs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails, and its message says why"
)]

mod chance;
mod driver;
mod faults;
mod intake;
mod node;
mod on_postgres;
mod on_sqlite;
mod pace;
mod replay;
mod server;
#[allow(dead_code, unused_macros, reason = "the integration tests use more of it")]
#[path = "../integration/support/mod.rs"]
mod support;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

/// Tortures Chancery on PostgreSQL and on SQLite.
#[derive(Parser)]
struct Arguments {
    /// How long the nodes on PostgreSQL are tortured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What decides the schedule; by default another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes on PostgreSQL, 2 or more
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..))]
    nodes: u16,
    /// How often the process on SQLite is killed; by default a third of the seconds, at least 40
    #[arg(long)]
    kills: Option<u64>,
    /// Only the parts whose name contains one of these
    names: Vec<String>,
    #[command(flatten)]
    libtest: Libtest,
}

/// What `cargo test` hands to every test binary alike; most of it means nothing here.
#[derive(clap::Args)]
#[command(next_help_heading = "Taken for cargo's sake")]
struct Libtest {
    /// Only name the parts
    #[arg(long)]
    list: bool,
    /// Only a part of exactly that name
    #[arg(long)]
    exact: bool,
    /// No part is ignored, so none runs
    #[arg(long)]
    ignored: bool,
    /// Not the parts whose name contains this
    #[arg(long)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
}

/// What a part is told.
pub(crate) struct Setting<'a> {
    /// Decides the schedule.
    pub(crate) seed: u64,
    /// How long faults happen on PostgreSQL.
    pub(crate) duration: Duration,
    /// How many nodes sign on PostgreSQL.
    pub(crate) nodes: u16,
    /// How often the process on SQLite is killed.
    pub(crate) kills: u64,
    /// Where logs go.
    pub(crate) folder: &'a Path,
}

/// A part: its name, and what it does; it panics where it fails.
type Part = (&'static str, fn(&Setting));

const PARTS: [Part; 2] = [
    ("torture::nodes_on_postgres_survive_every_fault", on_postgres::run),
    ("torture::processes_on_sqlite_survive_being_killed", on_sqlite::run),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen: Vec<Part> =
        PARTS.into_iter().filter(|(name, _)| is_chosen(&arguments, name)).collect();
    if arguments.libtest.list {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let seed = arguments.seed.unwrap_or_else(|| getrandom::u64().unwrap() >> 32);
    println!("\nrunning {} tests, seed {seed}", chosen.len());
    let failed = chosen.iter().filter(|part| !passes(part, &arguments, seed)).count();
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        PARTS.len() - chosen.len(),
        begun.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let Arguments { names, libtest, .. } = arguments;
    let fits = |filter: &String| if libtest.exact { name == filter } else { name.contains(filter) };
    !libtest.ignored
        && (names.is_empty() || names.iter().any(fits))
        && !libtest.skip.iter().any(fits)
}

fn passes((name, run): &Part, arguments: &Arguments, seed: u64) -> bool {
    let mut folder = tempfile::Builder::new().prefix("chancery-torture-").tempdir().unwrap();
    let setting = Setting {
        seed,
        duration: Duration::from_secs(arguments.seconds),
        nodes: arguments.nodes,
        kills: arguments.kills.unwrap_or((arguments.seconds / 3).max(40)),
        folder: folder.path(),
    };
    let passes = catch_unwind(AssertUnwindSafe(|| run(&setting))).is_ok();
    if passes {
        println!("test {name} ... ok");
    } else {
        println!("test {name} ... FAILED: seed {seed}, logs in {}", folder.path().display());
        folder.disable_cleanup(true);
    }
    passes
}
