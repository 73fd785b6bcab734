//! Signs: pure computation over one key and one batch, or a slice of one.
//!
//! Invariant: no I/O, no database, and nothing of a key is kept between two messages.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::prelude::*;

use super::messages::{SignBatch, SignFailure};
use crate::clock::Clock;
use crate::failpoint::reach;
use crate::signing::{
    Engine, PrivateKey, PublicKey, Signature, SigningError, Verifiable, sign_each, verify_all,
    wipe_stack,
};
use crate::types::{Record, RecordId};

/// How a slice is signed: [`sign_each`], but for tests.
pub type SignFn = fn(
    Engine,
    &PrivateKey,
    &[Record],
    &mut dyn FnMut() -> bool,
) -> Result<Vec<Signature>, SigningError>;

/// The [`SignFn`] that signs.
///
/// # Errors
/// As [`sign_each`].
pub fn sign_records(
    engine: Engine,
    key: &PrivateKey,
    records: &[Record],
    may_go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Signature>, SigningError> {
    sign_each(engine, key, records, may_go_on)
}

/// The actor; a pool of `signers` of them runs in a `SyncArbiter`.
pub struct Signer {
    /// The implementation.
    pub engine: Engine,
    /// The clock of the deadlines.
    pub clock: Arc<dyn Clock>,
    /// How it signs.
    pub sign: SignFn,
    /// Whether it verifies what it has signed.
    pub verify: bool,
}

impl Actor for Signer {
    type Context = SyncContext<Self>;
}

impl Handler<SignBatch> for Signer {
    type Result = Result<Vec<(RecordId, Signature)>, SignFailure>;

    fn handle(&mut self, message: SignBatch, _: &mut Self::Context) -> Self::Result {
        let SignBatch { key, public_key, deadline, records } = message;
        let mut may_go_on = || !deadline.has_passed(self.clock.as_ref());
        // A panic would end this thread, and actix never replaces it.
        let signed = catch_unwind(AssertUnwindSafe(|| {
            reach("signer", "signing");
            let signed = (self.sign)(self.engine, &key, &records, &mut may_go_on);
            reach("signer", "signed");
            let signatures = signed.map_err(|error| match error {
                SigningError::PastDeadline => SignFailure::PastDeadline,
                error => SignFailure::Engine(error.to_string()),
            })?;
            if self.verify {
                verify(&public_key, &records, &signatures)?;
            }
            Ok(signatures)
        }));
        wipe_stack();
        let signatures =
            signed.map_err(|panic| SignFailure::Panicked(panic_message(panic.as_ref())))??;
        Ok(records.iter().map(|record| record.position.id).zip(signatures).collect())
    }
}

fn verify(
    public_key: &PublicKey,
    records: &[Record],
    signatures: &[Signature],
) -> Result<(), SignFailure> {
    let items: Vec<Verifiable<'_>> = records
        .iter()
        .zip(signatures)
        .map(|(record, signature)| Verifiable {
            public_key: public_key.as_bytes(),
            payload: &record.payload,
            signature: signature.as_bytes(),
        })
        .collect();
    let Err(bad) = verify_all(&items) else { return Ok(()) };
    let first = bad.first().map_or(0, |index| *index);
    Err(SignFailure::Faulty { record: records[first].position.id, signatures: bad.len() as u64 })
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
