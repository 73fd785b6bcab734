//! `chancery audit`: replays the history of every ring and judges R1 to R4 from the data alone.
//!
//! Five steps: replay each ring's history; look at every batch and every signature; replay what
//! has happened meanwhile; compare the rows of the keys; follow the chain of the administrators'
//! log. The two replays enclose the reading
//! between, so that a database in use is judged fairly: what no event touched meanwhile must be
//! exactly as the history says, what an event touched may be as it was before or after.

mod admin_log;
mod batches;
mod history;
mod keys;
mod report;
#[cfg(test)]
mod tests;

use self::batches::Batches;
use self::history::{RingHistory, Window};
use self::report::Findings;
pub use self::report::{AuditReport, Finding, RingAudit, RuleVerdict, Verdict};
use crate::db::{Ring, Store, StoreError};
use crate::types::{RingId, Tick};

/// How many findings a report lists; it counts them all.
pub const MAX_LISTED: usize = 1_000;

/// Audits every ring. `progress` is told of each step taken.
///
/// Memory: some 100 bytes a batch, whatever the number of records. On an idle database the report
/// is always the same.
///
/// # Errors
/// Those of the store. What is wrong with the data stands in the report.
pub fn audit(store: &dyn Store, progress: &dyn Fn(AuditStep)) -> Result<AuditReport, StoreError> {
    audit_by(Reader { store, page: PAGE, progress })
}

/// How far an audit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditStep {
    /// Events of a ring have been replayed.
    History {
        /// The ring.
        ring: String,
        /// Up to this tick.
        tick: Tick,
        /// The ring's clock.
        of: Tick,
    },
    /// Batches have been read.
    Batches {
        /// So many.
        read: u64,
    },
    /// Signatures have been looked up in their batches.
    Signatures {
        /// So many.
        checked: u64,
    },
    /// Keys of a ring have been read.
    Keys {
        /// The ring.
        ring: String,
    },
    /// Entries of the administrators' log have been checked.
    AdminLog {
        /// So many.
        checked: u64,
    },
}

/// How many rows a page has.
const PAGE: u32 = 10_000;

/// Where an audit reads, and whom it tells.
#[derive(Clone, Copy)]
struct Reader<'a> {
    store: &'a dyn Store,
    page: u32,
    progress: &'a dyn Fn(AuditStep),
}

/// A ring under audit.
struct RingUnderAudit {
    history: RingHistory,
    window: Window,
}

fn audit_by(reader: Reader<'_>) -> Result<AuditReport, StoreError> {
    let mut findings = Findings::default();
    let mut rings = Vec::new();
    for ring in reader.store.rings()? {
        let mut history = RingHistory::new(&ring);
        history.catch_up(reader, &mut findings, |_| {})?;
        rings.push(RingUnderAudit { window: Window::open(&history), history });
    }

    let mut batches = Batches::read(reader)?;
    batches.count_signatures(reader, &rings, &mut findings)?;

    for ring in new_rings(reader.store.rings()?, &rings) {
        let history = RingHistory::new(&ring);
        rings.push(RingUnderAudit { window: Window::open(&history), history });
    }
    for ring in &mut rings {
        let window = &mut ring.window;
        ring.history.catch_up(reader, &mut findings, |event| window.see(event))?;
    }
    batches.judge(reader, &rings, &mut findings)?;

    let mut audits = Vec::new();
    for ring in &mut rings {
        let keys = keys::judge(reader, &mut ring.history, &mut findings)?;
        ring.history.judge_end(&mut findings);
        findings.name_keys(&keys);
        audits.push(RingAudit::new(&ring.history, keys.len(), batches.totals(ring.history.id())));
    }
    let admin_log_entries = admin_log::judge(reader, &mut findings)?;
    Ok(findings.into_report(audits, admin_log_entries))
}

fn new_rings(now: Vec<Ring>, known: &[RingUnderAudit]) -> Vec<Ring> {
    let is_known = |ring: &Ring| known.iter().any(|known| known.history.id() == ring.id);
    now.into_iter().filter(|ring| !is_known(ring)).collect()
}

/// The name of the ring, or its id if there is no such ring.
fn name_of(rings: &[RingUnderAudit], id: RingId) -> String {
    let known = rings.iter().find(|ring| ring.history.id() == id);
    known.map_or_else(|| id.to_string(), |ring| ring.history.name().to_owned())
}
