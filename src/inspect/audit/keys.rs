//! The rows of the keys against what the history says of them.

use std::collections::{BTreeMap, BTreeSet};

use super::history::RingHistory;
use super::report::{Finding, Findings};
use super::{AuditStep, Reader};
use crate::db::{Key, StoreError};
use crate::ledger::{KeyState, Rule};
use crate::types::KeyId;

/// How often a ring's keys are read before those that were in use every time are given up.
const ROUNDS: u32 = 20;

/// Compares the keys of a ring with its history; the keys as last read.
///
/// A key that an event touches while the rows are read cannot be compared, and is tried again.
pub(super) fn judge(
    reader: Reader<'_>,
    history: &mut RingHistory,
    findings: &mut Findings,
) -> Result<Vec<Key>, StoreError> {
    let mut judged = BTreeSet::new();
    let mut round = 1;
    loop {
        history.catch_up(reader, findings, |_| {})?;
        let told: BTreeMap<KeyId, KeyState> = history.ledger().keys().collect();
        let keys = reader.store.keys(history.id())?;
        (reader.progress)(AuditStep::Keys { ring: history.name().to_owned() });
        let mut touched = BTreeSet::new();
        history.catch_up(reader, findings, |event| {
            touched.insert(event.key());
        })?;

        let rows: BTreeMap<KeyId, &Key> = keys.iter().map(|key| (key.id, key)).collect();
        let ids: BTreeSet<KeyId> = told.keys().chain(rows.keys()).copied().collect();
        let mut waiting = 0;
        for id in ids {
            if judged.contains(&id) {
                continue;
            }
            if touched.contains(&id) {
                waiting += 1;
                continue;
            }
            judged.insert(id);
            for (rule, message) in compare(told.get(&id), rows.get(&id).copied()) {
                let ring = Some(history.name().to_owned());
                findings.add(Finding { ring, key: Some(id), ..Finding::new(rule, message) });
            }
        }
        if waiting > 0 && round == ROUNDS {
            findings.note(format!(
                "ring {}: {waiting} keys were in use whenever they were read, and their rows have \
                 not been compared with the history; an audit of the idle database will do it",
                history.name()
            ));
        }
        if waiting == 0 || round == ROUNDS {
            return Ok(keys);
        }
        round += 1;
    }
}

/// The differences between a key's history and its row.
fn compare(told: Option<&KeyState>, row: Option<&Key>) -> Vec<(Rule, String)> {
    let (told, row) = match (told, row) {
        (Some(told), Some(row)) => (told, row),
        (None, _) => {
            let message = "expected an event for each key of the ring, found a key without one";
            return vec![(Rule::KeyEvents, message.to_owned())];
        }
        (_, None) => {
            let message = "expected the ring's history to name keys of the ring, found another";
            return vec![(Rule::KeyEvents, message.to_owned())];
        }
    };
    let mut differences = Vec::new();
    let mut differ = |rule, what: &str, told: String, found: String| {
        if told != found {
            let message = format!("expected {what} {told} by the history, found {found}");
            differences.push((rule, message));
        }
    };
    let in_use = |is_in_use| if is_in_use { "in use" } else { "not in use" }.to_owned();
    differ(Rule::KeyEvents, "status", told.status.to_string(), row.status.to_string());
    differ(Rule::R4, "last_tick", told.last_tick.to_string(), row.last_tick.to_string());
    differ(Rule::R2, "the key", in_use(told.in_use.is_some()), in_use(row.in_use));
    differences
}
