//! The main job as a whole: how fast records are signed with every rule on, beside a bare pipeline that
//! keeps no rule, in turn in the same run.
//!
//! ```sh
//! cargo bench --bench end_to_end                          # builds the release program, and measures all
//! cargo bench --bench end_to_end -- --runs 3 batch-size   # one axis
//! cargo bench --bench end_to_end -- --write docs/benchmarks
//! cargo bench --bench end_to_end -- --scale --records 10000000 --write docs/benchmarks
//! ```
//!
//! It starts a PostgreSQL server of its own, with fsync on, and makes SQLite files beside it. The program
//! is the real one, started anew for each figure on a fresh copy of a seeded database; its rate is the one
//! that `chancery run` prints, from the unsealed keys to the last look at what is left. Program, bare
//! pipeline and PostgreSQL share the machine. Medians, and their ratios, are printed as Markdown.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on ends, and its message says why"
)]

mod bare;
mod place;
mod plot;
mod scale;
mod table;
mod work;

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;

use bare::Bare;
use place::{Place, Seeded};
use table::{Cell, Figure, Line};
use work::Work;

/// Measures the main job.
#[derive(Parser)]
struct Arguments {
    /// The program [default: the release build, which is made first]
    #[arg(long)]
    program: Option<PathBuf>,
    /// How often each figure is taken
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only on this database
    #[arg(long, value_parser = ["postgres", "sqlite"])]
    on: Option<String>,
    /// Records of each run, but where an axis says otherwise
    #[arg(long, default_value_t = 100_000)]
    records: usize,
    /// Writes the table and a plot into this folder
    #[arg(long)]
    write: Option<PathBuf>,
    /// A Python with psycopg and cryptography, to measure benches/end_to_end/baseline.py beside it
    #[arg(long)]
    python: Option<PathBuf>,
    /// One long run on each database instead, tenth by tenth, verified and audited
    #[arg(long)]
    scale: bool,
    /// What to vary: payload, batch-size, signers, nodes, records; by default all
    axes: Vec<String>,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// About as many records the program has checked out and not yet stored.
pub(crate) const UNDER_WAY: usize = 16_384;

/// One point of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) records: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) batch_size: usize,
    pub(crate) signers: usize,
    pub(crate) nodes: usize,
}

/// An axis: its name, and its points.
type Axis = (&'static str, Vec<Load>);

fn axes(records: usize) -> Vec<Axis> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let usual = Load { records, payload_bytes: 256, batch_size: 500, signers: cores, nodes: 1 };
    let batch_size = |batch_size| Load {
        batch_size,
        // One by one they are slow, and the rate is even.
        records: if batch_size == 1 { records / 5 } else { records },
        ..usual
    };
    vec![
        ("batch-size", [1, 10, 100, 500, 5_000].map(batch_size).to_vec()),
        ("payload", [64, 256, 4_096].map(|payload_bytes| Load { payload_bytes, ..usual }).to_vec()),
        ("signers", [1, 2, 4].map(|signers| Load { signers, ..usual }).to_vec()),
        ("nodes", [1, 2, 3, 4].map(|nodes| Load { nodes, ..usual }).to_vec()),
        ("records", [records, 10 * records].map(|records| Load { records, ..usual }).to_vec()),
    ]
}

fn main() {
    let arguments = Arguments::parse();
    let program = arguments.program.clone().unwrap_or_else(build_program);
    let program = program.canonicalize().unwrap();
    let wanted = |name: &str| arguments.axes.is_empty() || arguments.axes.iter().any(|n| n == name);
    let databases = ["postgres", "sqlite"].into_iter();
    let databases = databases.filter(|one| arguments.on.as_ref().is_none_or(|on| on == one));
    if arguments.scale {
        databases.for_each(|database| measure_scale(&arguments, &program, database));
        return;
    }
    let mut lines = Vec::new();
    for database in databases {
        for (axis, loads) in axes(arguments.records).into_iter().filter(|(name, _)| wanted(name)) {
            if axis == "nodes" && database == "sqlite" {
                continue;
            }
            println!("\n{database}, {axis}\n\n{}", table::HEAD);
            for load in loads {
                let line = Line {
                    database,
                    axis,
                    load,
                    cell: measure(&arguments, &program, database, load),
                };
                println!("{line}");
                lines.push(line);
            }
        }
    }
    if let Some(folder) = &arguments.write {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("end_to_end.md"), table::page(&lines, arguments.runs)).unwrap();
        std::fs::write(folder.join("end_to_end.svg"), plot::plot(&lines)).unwrap();
    }
}

/// One run on one database, which is verified and audited then.
fn measure_scale(arguments: &Arguments, program: &std::path::Path, database: &str) {
    let load = Load {
        records: arguments.records,
        payload_bytes: 256,
        batch_size: 500,
        signers: 0,
        nodes: 1,
    };
    let seeded = Seeded::new(program, database == "postgres", load);
    let (table, picture) = scale::run(&seeded, database);
    let page = format!("{table}\n{}", seeded.check());
    println!("{page}");
    if let Some(folder) = &arguments.write {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(format!("scale_{database}.md")), page).unwrap();
        std::fs::write(folder.join(format!("scale_{database}.svg")), picture).unwrap();
    }
}

fn measure(arguments: &Arguments, program: &std::path::Path, on: &str, load: Load) -> Cell {
    let seeded = Seeded::new(program, on == "postgres", load);
    let bare = Bare::new();
    let mut cell = Cell::default();
    // The first of each warms the machine's caches up, and counts for nothing.
    for run in 0..=arguments.runs {
        let place = Place::copy_of(&seeded);
        let chancery = figure(&place, load, || place.sign());
        drop(place);
        let place = Place::copy_of(&seeded);
        let bare = figure(&place, load, || bare.sign(&place, load));
        let python = arguments.python.as_ref().filter(|_| on == "postgres").map(|python| {
            drop(place);
            Place::copy_of(&seeded).sign_by_python(python)
        });
        if run > 0 || arguments.runs == 1 {
            cell.add(chancery, bare, python);
        }
    }
    cell
}

/// What one run showed.
fn figure(place: &Place<'_>, load: Load, sign: impl FnOnce() -> f64) -> Figure {
    let before = Work::so_far(place.server());
    let rate = sign();
    let work = Option::zip(Work::so_far(place.server()), before);
    let a_record = |seconds: f64| seconds * 1e6 / load.records as f64;
    let work = work.map(|(after, before)| after.since(before));
    let work = work.map(|Work { client, server }| (a_record(client), a_record(server)));
    Figure { rate, work }
}

/// The program as it is shipped: without the failpoints that cargo builds into what a benchmark brings.
fn build_program() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--bin", "chancery", "--message-format=json"]);
    let output = build.args(["--manifest-path", manifest]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let program = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.unwrap()
}
