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

#[cfg(test)]
mod tests {
    use crate::inspect::audit;
    use crate::inspect::testbed::Testbed;
    use crate::ledger::Rule;

    /// What an audit says of the log after the SQL has run.
    fn found_after(sql: &str) -> Vec<String> {
        let bed = Testbed::new(2, 6, 3);
        bed.sign_all();
        for paused in [true, false, true, false] {
            bed.store.set_paused(bed.store.ring("default").unwrap().id, paused, "me").unwrap();
        }
        bed.tamper(sql);
        let report = audit(&*bed.store, &|_| {}).unwrap();
        assert!(report.violations.iter().all(|finding| finding.rule == Rule::AdminLog), "{sql}");
        report.violations.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn an_entry_that_was_changed_removed_or_cut_off_is_found() {
        assert_eq!(found_after("SELECT 1"), Vec::<String>::new());
        for column in ["at", "actor", "action", "target", "detail"] {
            let found = found_after(&format!("UPDATE admin_log SET {column} = 'x' WHERE seq = 3"));
            assert_eq!(found, ["entry 3 is not what its hash was made of"], "{column}");
        }
        let gap = found_after("DELETE FROM admin_log WHERE seq = 3");
        assert!(gap.contains(&"expected entry 3 of the log, found 4".to_owned()), "{gap:?}");
        assert!(gap.contains(&"entry 4 does not follow the hash before it".to_owned()), "{gap:?}");
        let first = found_after("DELETE FROM admin_log WHERE seq = 1");
        assert!(first.contains(&"expected entry 1 of the log, found 2".to_owned()), "{first:?}");
        for cut in ["DELETE FROM admin_log WHERE seq = 5", "DELETE FROM admin_log"] {
            let found = found_after(cut);
            let words = "the log's head says entry 5, which is not there with its hash";
            assert_eq!(found, [words], "{cut}");
        }
        let rehashed = found_after("UPDATE admin_log SET hash = 'x' WHERE seq = 5");
        assert_eq!(rehashed.len(), 2, "{rehashed:?}");
    }
}
