//! The rows of the batches and of the signatures, against each other and against the history.

use super::report::{Finding, Findings};
use super::{AuditStep, Reader, RingUnderAudit, name_of};
use crate::db::{Batch, Membership, StoreError};
use crate::ledger::Rule;
use crate::types::{BatchId, BatchState, Position, RecordId, RingId};

/// What there is of one ring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) batches: u64,
    pub(super) signatures: u64,
}

/// Every batch with the number of its signatures, in order of id.
pub(super) struct Batches {
    batches: Vec<CountedBatch>,
}

struct CountedBatch {
    id: BatchId,
    ring: RingId,
    low: Position,
    high: Position,
    record_count: u32,
    state: BatchState,
    signatures: u64,
    /// The first of the records that have a signature in the batch.
    first_record: Option<RecordId>,
}

impl From<Batch> for CountedBatch {
    fn from(batch: Batch) -> Self {
        CountedBatch {
            id: batch.id,
            ring: batch.ring,
            low: batch.range.low,
            high: batch.range.high,
            record_count: batch.range.record_count,
            state: batch.state,
            signatures: 0,
            first_record: None,
        }
    }
}

impl Batches {
    /// Reads every batch.
    pub(super) fn read(reader: Reader<'_>) -> Result<Self, StoreError> {
        let mut batches: Vec<CountedBatch> = Vec::new();
        loop {
            let after = batches.last().map(|batch| batch.id);
            let page = reader.store.batches(after, reader.page)?;
            if page.is_empty() {
                return Ok(Batches { batches });
            }
            batches.extend(page.into_iter().map(CountedBatch::from));
            (reader.progress)(AuditStep::Batches { read: batches.len() as u64 });
        }
    }

    /// Counts the signatures of each batch, and judges where the record of each lies.
    pub(super) fn count_signatures(
        &mut self,
        reader: Reader<'_>,
        rings: &[RingUnderAudit],
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let mut last = None;
        let mut checked = 0;
        loop {
            let page = reader.store.memberships(last, reader.page)?;
            if page.is_empty() {
                return Ok(());
            }
            for signature in &page {
                if last == Some(signature.record) {
                    let message = "expected one signature of the record, found two".to_owned();
                    findings.add(of_signature(signature, Rule::R1, message));
                }
                last = Some(signature.record);
                let Some(batch) = self.find(reader, signature.batch)? else {
                    let message = "expected the signature in a batch, found none of that id";
                    findings.add(of_signature(signature, Rule::R1, message.to_owned()));
                    continue;
                };
                batch.signatures += 1;
                batch.first_record = batch.first_record.or(last);
                if let Some((rule, message)) = misplacement(batch, signature) {
                    let ring = Some(name_of(rings, batch.ring));
                    findings.add(Finding { ring, ..of_signature(signature, rule, message) });
                }
            }
            checked += page.len() as u64;
            (reader.progress)(AuditStep::Signatures { checked });
        }
    }

    /// Judges what every batch and the history say of each other, after the second replay.
    pub(super) fn judge(
        &mut self,
        reader: Reader<'_>,
        rings: &[RingUnderAudit],
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        for batch in &self.batches {
            let ring = rings.iter().find(|ring| ring.history.id() == batch.ring);
            for (rule, message) in faults(batch, ring) {
                let first_record = batch.first_record.filter(|_| rule == Rule::R1);
                findings.add(Finding {
                    ring: Some(name_of(rings, batch.ring)),
                    batch: Some(batch.id),
                    record: first_record,
                    ..Finding::new(rule, message)
                });
            }
        }
        for ring in rings {
            for named in ring.history.named_batches() {
                let message = match self.find(reader, named)?.map(|batch| batch.ring) {
                    Some(owner) if owner == ring.history.id() => continue,
                    Some(owner) => format!(
                        "expected the ring's history to name batches of the ring, found one of \
                         ring {}",
                        name_of(rings, owner)
                    ),
                    None => "expected the batch that the ring's history names, found none of \
                             that id"
                        .to_owned(),
                };
                findings.add(Finding {
                    ring: Some(ring.history.name().to_owned()),
                    batch: Some(named),
                    ..Finding::new(Rule::R3, message)
                });
            }
        }
        Ok(())
    }

    pub(super) fn totals(&self, ring: RingId) -> Totals {
        let mut totals = Totals::default();
        for batch in self.batches.iter().filter(|batch| batch.ring == ring) {
            totals.batches += 1;
            totals.signatures += batch.signatures;
        }
        totals
    }

    /// The batch, which may have been made after the batches were read.
    fn find(
        &mut self,
        reader: Reader<'_>,
        id: BatchId,
    ) -> Result<Option<&mut CountedBatch>, StoreError> {
        let place = match self.batches.binary_search_by_key(&id, |batch| batch.id) {
            Ok(place) => place,
            Err(place) => {
                let before = id.0.checked_sub(1).map(BatchId);
                let next = reader.store.batches(before, 1)?.pop();
                let Some(batch) = next.filter(|batch| batch.id == id) else { return Ok(None) };
                self.batches.insert(place, CountedBatch::from(batch));
                place
            }
        };
        Ok(self.batches.get_mut(place))
    }
}

fn of_signature(signature: &Membership, rule: Rule, message: String) -> Finding {
    let (batch, record) = (Some(signature.batch), Some(signature.record));
    Finding { batch, record, ..Finding::new(rule, message) }
}

/// What is wrong with the place of a signature's record.
fn misplacement(batch: &CountedBatch, signature: &Membership) -> Option<(Rule, String)> {
    let Some((ring, position)) = signature.place else {
        return Some((Rule::R1, "expected the signature's record, found none".to_owned()));
    };
    if ring != batch.ring {
        let message = format!("expected a record of the batch's ring, found one of ring {ring}");
        return Some((Rule::R3, message));
    }
    if position < batch.low || position > batch.high {
        let message = "expected a record in the batch's range, found one outside of it".to_owned();
        return Some((Rule::R3, message));
    }
    None
}

/// What is wrong with the number of a batch's signatures, and with its state.
///
/// What was stored before the signatures were counted must have all; what has any must have been
/// stored by the end of the second replay.
fn faults(batch: &CountedBatch, ring: Option<&RingUnderAudit>) -> Vec<(Rule, String)> {
    let Some(ring) = ring else {
        return vec![(Rule::R3, "expected the batch's ring, found none of that id".to_owned())];
    };
    let mut faults = Vec::new();
    let expected = u64::from(batch.record_count);
    let found = batch.signatures;
    let is_stored = ring.history.ledger().is_stored(batch.id);
    if found > expected || (found < expected && ring.window.was_stored(batch.id)) {
        faults.push((Rule::R1, format!("expected {expected} signatures, found {found}")));
    }
    if found > 0 && !is_stored {
        let message =
            format!("expected a stored use of the batch's {found} signatures, found none");
        faults.push((Rule::R1, message));
    }
    let allowed = ring.window.states(batch.id);
    if !allowed.contains(&batch.state) {
        let concerns_store = is_stored || batch.state == BatchState::Stored;
        let rule = if concerns_store { Rule::R1 } else { Rule::R3 };
        let allowed: Vec<&str> = allowed.iter().map(|state| state.as_str()).collect();
        let message = format!(
            "expected the batch to be {} by the history, found it {}",
            allowed.join(" or "),
            batch.state
        );
        faults.push((rule, message));
    }
    faults
}
