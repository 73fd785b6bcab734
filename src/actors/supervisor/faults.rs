//! When a node must not go on: its signatures do not verify.

use super::{Finished, Supervisor};

/// After how many batches with signatures that do not verify a node stops: a start gives it fresh
/// memory, and a processor that makes more of them is no good for signing.
const MOST_FAULTY_BATCHES: u64 = 3;

/// A node's signatures did not verify, in too many batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node made signatures that do not verify in {batches} batches: its memory or its processor is \
     faulty; nothing of these batches is stored"
)]
pub struct FaultyMachine {
    /// How many batches.
    pub batches: u64,
}

impl Supervisor {
    /// Stops the node when there are too many, before it brings whole batches into quarantine.
    pub(super) fn note_fault(&mut self, signatures: u64) {
        self.snapshot.faulty_batches += 1;
        self.snapshot.faulty_signatures += signatures;
        let batches = self.snapshot.faulty_batches;
        if batches >= MOST_FAULTY_BATCHES && self.failure.is_none() {
            let error = FaultyMachine { batches };
            tracing::error!(%error, "cannot go on");
            self.failure = Some(Finished::Faulty(error));
            self.end_failure_if_idle();
        }
    }
}
