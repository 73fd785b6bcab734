//! `chancery verify`

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::db::Store;
use crate::inspect::{VerifyReport, verify};
use crate::types::RingId;

/// Check every stored signature, or with --ring those of a ring, against its record and public key
#[derive(clap::Args)]
pub(super) struct Verify {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let rings = context.named_rings(&database)?;
        let report = verify_with_bar(database.store.as_ref(), rings.as_deref())?;
        if self.json {
            output::print_json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(if report.is_clean() { Outcome::Done } else { Outcome::Broken })
    }
}

/// Verifies on every core, with a progress bar.
pub(super) fn verify_with_bar(
    store: &dyn Store,
    rings: Option<&[RingId]>,
) -> anyhow::Result<VerifyReport> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let bar = output::record_bar("verifying", store.signature_count()?);
    let report = verify(store, rings, threads, &|checked| bar.set_position(checked));
    bar.finish_and_clear();
    Ok(report?)
}

fn print(report: &VerifyReport) -> anyhow::Result<()> {
    for bad in &report.bad {
        let key = bad.kid.as_ref().map_or("none".to_owned(), ToString::to_string);
        output::print_line(&format!(
            "record {} (batch {}, key {key}): {}",
            bad.record, bad.batch, bad.reason
        ))?;
    }
    let listed = report.bad.len() as u64;
    if report.bad_count > listed {
        output::print_line(&format!("... and {} more", output::count(report.bad_count - listed)))?;
    }
    let checked = output::counted(report.checked, "signature");
    if report.is_clean() {
        output::print_line(&format!("{checked} checked: all valid"))
    } else {
        output::print_line(&format!("{checked} checked: {} BAD", output::count(report.bad_count)))
    }
}
