//! What an audit finds, and the report of it.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::MAX_LISTED;
use super::batches::Totals;
use super::history::RingHistory;
use crate::db::Key;
use crate::ledger::{Rule, Violation};
use crate::types::{BatchId, KeyId, Kid, RecordId, Tick};

/// What a run of [`audit`](super::audit) found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// The rings, in order of id.
    pub rings: Vec<RingAudit>,
    /// Entries of the administrators' log, each checked with its hash.
    pub admin_log_entries: u64,
    /// Each rule and how it fared.
    pub rules: BTreeMap<Rule, RuleVerdict>,
    /// How many breaches there are.
    pub violation_count: u64,
    /// The breaches in the order in which they were found, at most [`MAX_LISTED`].
    pub violations: Vec<Finding>,
    /// What could not be judged.
    pub notes: Vec<String>,
}

impl AuditReport {
    /// Whether no rule was found broken.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violation_count == 0
    }
}

/// How a rule fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RuleVerdict {
    /// Whether it was kept.
    pub verdict: Verdict,
    /// How many breaches of it there are.
    pub violations: u64,
}

/// Whether a rule was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everywhere.
    Ok,
    /// Not everywhere.
    Broken,
}

/// What was audited of one ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RingAudit {
    /// Its name.
    pub ring: String,
    /// Its clock.
    pub ticks: Tick,
    /// Events of its history: keys checked out.
    pub checkouts: u64,
    /// Events of its history: uses that ended with a store.
    pub stored: u64,
    /// Events of its history: uses that another node ended.
    pub reclaimed: u64,
    /// Events of its history: uses that their own node gave up.
    pub abandoned: u64,
    /// Events of its history that concern a key alone.
    pub key_events: u64,
    /// Its keys.
    pub keys: u64,
    /// Its batches.
    pub batches: u64,
    /// Signatures in its batches.
    pub signatures: u64,
}

impl RingAudit {
    pub(super) fn new(history: &RingHistory, keys: usize, totals: Totals) -> Self {
        let counts = history.ledger().counts();
        RingAudit {
            ring: history.name().to_owned(),
            ticks: history.clock(),
            checkouts: counts.checked_out,
            stored: counts.stored,
            reclaimed: counts.reclaimed,
            abandoned: counts.abandoned,
            key_events: counts.key_events,
            keys: keys as u64,
            batches: totals.batches,
            signatures: totals.signatures,
        }
    }
}

/// One breach of one rule, and whatever it concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The ring's name, if a ring is concerned.
    pub ring: Option<String>,
    /// The tick at which it happened, if it is an event.
    pub tick: Option<Tick>,
    /// The key.
    pub key: Option<KeyId>,
    /// The key's thumbprint, if there is such a key.
    pub kid: Option<Kid>,
    /// The batch.
    pub batch: Option<BatchId>,
    /// The record.
    pub record: Option<RecordId>,
    /// What was expected and what was found.
    pub message: String,
}

impl Finding {
    /// A breach that concerns nothing yet.
    pub(super) fn new(rule: Rule, message: String) -> Self {
        Finding {
            rule,
            ring: None,
            tick: None,
            key: None,
            kid: None,
            batch: None,
            record: None,
            message,
        }
    }

    /// A breach found by the replay.
    pub(super) fn of(violation: &Violation, ring: &str) -> Self {
        Finding {
            ring: Some(ring.to_owned()),
            tick: Some(violation.tick()),
            key: violation.key(),
            batch: violation.batch(),
            ..Finding::new(violation.rule(), violation.fault().to_string())
        }
    }
}

/// The breaches so far.
#[derive(Default)]
pub(super) struct Findings {
    listed: Vec<Finding>,
    counts: BTreeMap<Rule, u64>,
    notes: Vec<String>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        *self.counts.entry(finding.rule).or_default() += 1;
        if self.listed.len() < MAX_LISTED {
            self.listed.push(finding);
        }
    }

    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Fills in the thumbprints of these keys.
    pub(super) fn name_keys(&mut self, keys: &[Key]) {
        let kids: HashMap<KeyId, &Kid> = keys.iter().map(|key| (key.id, &key.kid)).collect();
        for finding in &mut self.listed {
            if let Some(kid) = finding.key.and_then(|key| kids.get(&key)) {
                finding.kid = Some((*kid).clone());
            }
        }
    }

    pub(super) fn into_report(self, rings: Vec<RingAudit>, admin_log_entries: u64) -> AuditReport {
        let verdict = |rule: Rule| {
            let violations = self.counts.get(&rule).copied().unwrap_or(0);
            let verdict = if violations == 0 { Verdict::Ok } else { Verdict::Broken };
            (rule, RuleVerdict { verdict, violations })
        };
        AuditReport {
            rings,
            admin_log_entries,
            rules: RULES.into_iter().map(verdict).collect(),
            violation_count: self.counts.values().sum(),
            violations: self.listed,
            notes: self.notes,
        }
    }
}

const RULES: [Rule; 7] =
    [Rule::Ticks, Rule::R1, Rule::R2, Rule::R3, Rule::R4, Rule::KeyEvents, Rule::AdminLog];
