//! `chancery audit`

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::db::Store;
use crate::inspect::{AuditReport, AuditStep, Finding, Verdict, audit};

/// Replay the history of every ring and judge the rules R1 to R4 from the data alone
#[derive(clap::Args)]
pub(super) struct Audit {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let report = audit_with_bar(database.store.as_ref())?;
        if self.json {
            output::print_json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(if report.is_clean() { Outcome::Done } else { Outcome::Broken })
    }
}

/// Audits, with a progress bar over the signatures, which are most of the work.
pub(super) fn audit_with_bar(store: &dyn Store) -> anyhow::Result<AuditReport> {
    let bar = output::record_bar("auditing", store.signature_count()?);
    let report = audit(store, &|step| {
        if let AuditStep::Signatures { checked } = step {
            bar.set_position(checked);
        }
    });
    bar.finish_and_clear();
    Ok(report?)
}

/// The verdict in a few words.
pub(super) fn verdict(report: &AuditReport) -> String {
    if report.is_clean() {
        return "every rule kept".to_owned();
    }
    let broken: Vec<String> = report
        .rules
        .iter()
        .filter(|(_, verdict)| verdict.verdict == Verdict::Broken)
        .map(|(rule, verdict)| format!("{rule} broken {} times", output::count(verdict.violations)))
        .collect();
    broken.join(", ")
}

fn print(report: &AuditReport) -> anyhow::Result<()> {
    let count = output::count;
    for ring in &report.rings {
        output::print_line(&format!(
            "ring {}: {} ticks replayed: {} checkouts ({} stored, {} reclaimed, {} abandoned), \
             {} key events",
            ring.ring,
            count(ring.ticks.0.unsigned_abs()),
            count(ring.checkouts),
            count(ring.stored),
            count(ring.reclaimed),
            count(ring.abandoned),
            count(ring.key_events)
        ))?;
        output::print_line(&format!(
            "  {} in {}, {}",
            output::counted(ring.signatures, "signature"),
            output::counted(ring.batches, "batch"),
            output::counted(ring.keys, "key")
        ))?;
    }
    let entries = output::counted(report.admin_log_entries, "entry");
    output::print_line(&format!("administrators' log: {entries}"))?;
    for (rule, verdict) in &report.rules {
        let fared = match verdict.verdict {
            Verdict::Ok => "kept".to_owned(),
            Verdict::Broken => format!("BROKEN {} times", count(verdict.violations)),
        };
        output::print_line(&format!("  {:<11} {fared}", rule.to_string()))?;
    }
    for finding in &report.violations {
        print_finding(finding)?;
    }
    let listed = report.violations.len() as u64;
    if report.violation_count > listed {
        let more = count(report.violation_count - listed);
        output::print_line(&format!("... and {more} more"))?;
    }
    for note in &report.notes {
        output::print_line(&format!("note: {note}"))?;
    }
    output::print_line(&verdict(report))
}

fn print_finding(finding: &Finding) -> anyhow::Result<()> {
    let Finding { rule, ring, tick, key, kid, batch, record, message } = finding;
    let mut place = Vec::new();
    place.extend(ring.as_ref().map(|ring| format!("ring {ring}")));
    place.extend(tick.map(|tick| format!("tick {tick}")));
    place.extend(key.map(|key| match kid {
        Some(kid) => format!("key {key} ({kid})"),
        None => format!("key {key}"),
    }));
    place.extend(batch.map(|batch| format!("batch {batch}")));
    place.extend(record.map(|record| format!("record {record}")));
    output::print_line(&format!("{rule} broken at {}: {message}", place.join(", ")))
}
