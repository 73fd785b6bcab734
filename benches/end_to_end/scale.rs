//! One long run, seen as it goes: rate, check-out time, memory and size on disk, tenth by tenth.

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::UNDER_WAY;
use crate::place::{Place, Seeded};
use crate::plot::{Panel, panels};
use crate::table::median;

/// How the run stood at one moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    records: f64,
    check_out_ms: f64,
}

/// The process and the database at one moment.
#[derive(Clone, Copy)]
struct Size {
    at: Duration,
    resident_kib: f64,
    /// The most until then, between two looks too.
    peak_kib: f64,
    database_bytes: f64,
}

/// Signs all of a seeded database, and says how evenly; the table as Markdown, and a picture.
pub(crate) fn run(seeded: &Seeded, name: &str) -> (String, String) {
    let place = Place::of(seeded);
    let load = seeded.load();
    let mut child = place.start_observed();
    let log = BufReader::new(child.stderr.take().unwrap());
    let process = child.id();
    let begin = Instant::now();
    let is_over = AtomicBool::new(false);
    let (samples, sizes) = std::thread::scope(|scope| {
        let sizes = scope.spawn(|| {
            let mut sizes = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let kib = |name| status_kib(process, name).unwrap_or(f64::NAN);
                let (resident_kib, peak_kib) = (kib("VmRSS:"), kib("VmHWM:"));
                let database_bytes = place.database_bytes();
                sizes.push(Size { at: begin.elapsed(), resident_kib, peak_kib, database_bytes });
                std::thread::park_timeout(Duration::from_millis(1000));
            }
            sizes
        });
        let mut samples = Vec::new();
        let mut records = 0.0;
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap_or_default();
            let field = |name: &str| line["fields"][name].as_f64().or_else(|| line[name].as_f64());
            if let (Some(batches), Some(took_us)) = (field("batches"), field("took_us"))
                && batches > 0.0
            {
                records += batches * load.batch_size as f64;
                let check_out_ms = took_us / 1000.0;
                samples.push(Sample { at: begin.elapsed(), records, check_out_ms });
            }
        }
        is_over.store(true, Ordering::Relaxed);
        (samples, sizes.join().unwrap())
    });
    assert!(child.wait().unwrap().success());
    let total = begin.elapsed();
    report(name, load.records as f64, total, &samples, &sizes)
}

fn report(
    name: &str,
    records: f64,
    total: Duration,
    samples: &[Sample],
    sizes: &[Size],
) -> (String, String) {
    let mut table = format!(
        "\n### {name}: {records:.0} records, {:.1} s, {:.0} records/s\n\n\
         | tenth | records/s | check-out, ms, median | resident memory, MiB, most | database, bytes a record |\n\
         |--:|--:|--:|--:|--:|\n",
        total.as_secs_f64(),
        records / total.as_secs_f64()
    );
    let [mut rates, mut check_outs, mut memory, mut bytes] = [const { Vec::new() }; 4];
    // What is checked out and not yet signed would count for the first tenth alone.
    let is_full = |sample: &&Sample| sample.records >= UNDER_WAY as f64;
    let full = samples.iter().find(is_full).unwrap_or(&samples[0]);
    let mut last = full.at;
    let mut low = full.records;
    let each = (records - low) / 10.0;
    for tenth in 0..10 {
        let high = full.records + each * f64::from(tenth + 1);
        let within: Vec<&Sample> =
            samples.iter().filter(|s| s.records > low && s.records <= high).collect();
        let Some(&&Sample { at: end, records: signed, .. }) = within.last() else { continue };
        let rate = (signed - low) / (end - last).as_secs_f64();
        let check_out =
            median(&within.iter().map(|sample| sample.check_out_ms).collect::<Vec<_>>());
        let during = sizes.iter().filter(|size| size.at > last && size.at <= end);
        let most = during.clone().map(|size| size.resident_kib / 1024.0).fold(0.0, f64::max);
        let size =
            during.clone().next_back().map_or(f64::NAN, |size| size.database_bytes / records);
        table.push_str(&format!(
            "| {} | {rate:.0} | {check_out:.1} | {most:.0} | {size:.0} |\n",
            tenth + 1
        ));
        rates.push(rate / 1000.0);
        check_outs.push(check_out);
        memory.push(most);
        bytes.push(size);
        (last, low) = (end, signed);
    }
    let ratio = rates.last().unwrap() / rates.first().unwrap();
    let peak = sizes.iter().map(|size| size.peak_kib / 1024.0).fold(0.0, f64::max);
    table.push_str(&format!(
        "\nThe last tenth went at {ratio:.2} of the rate of the first. Peak memory: {peak:.0} MiB.\n"
    ));
    let picture = panels(&[
        Panel { title: "thousand records/s", points: rates },
        Panel { title: "check-out, ms", points: check_outs },
        Panel { title: "resident memory, MiB", points: memory },
        Panel { title: "database, bytes a record", points: bytes },
    ]);
    (table, picture)
}

/// A line of /proc/PID/status (proc(5)), in KiB.
fn status_kib(process: u32, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
