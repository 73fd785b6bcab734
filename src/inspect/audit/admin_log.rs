//! The administrators' log: a chain of hashes from the first entry to the head.

use super::report::{Finding, Findings};
use super::{AuditStep, Reader};
use crate::db::{AdminEntry, StoreError};
use crate::ledger::Rule;

/// Follows the chain; how many entries it has.
///
/// Whoever rewrites the log as a whole, head included, is not found so: an auditor keeps the hash of
/// the last entry that he has seen.
pub(super) fn judge(reader: Reader<'_>, findings: &mut Findings) -> Result<u64, StoreError> {
    let mut break_at = |message: String| findings.add(Finding::new(Rule::AdminLog, message));
    let mut last_seq = 0;
    let mut last_hash = AdminEntry::NO_HASH.to_owned();
    let mut checked = 0;
    // What is added meanwhile lies behind this.
    let (head_seq, head_hash) = reader.store.admin_log_head()?;
    let mut found_head = head_seq == 0 && head_hash == last_hash;
    loop {
        let entries = reader.store.admin_log(last_seq, reader.page)?;
        let is_last = entries.len() < reader.page as usize;
        for entry in entries {
            if entry.seq != last_seq + 1 {
                let (expected, found) = (last_seq + 1, entry.seq);
                break_at(format!("expected entry {expected} of the log, found {found}"));
            }
            if entry.previous_hash != last_hash {
                break_at(format!("entry {} does not follow the hash before it", entry.seq));
            }
            if entry.hash != entry.computed_hash() {
                break_at(format!("entry {} is not what its hash was made of", entry.seq));
            }
            found_head |= entry.seq == head_seq && entry.hash == head_hash;
            last_seq = entry.seq;
            last_hash = entry.hash;
            checked += 1;
        }
        (reader.progress)(AuditStep::AdminLog { checked });
        if is_last {
            break;
        }
    }
    if !found_head {
        break_at(format!("the log's head says entry {head_seq}, which is not there with its hash"));
    }
    Ok(checked)
}
