//! Signs: pure computation over one key and one batch, or a slice of one; or the same by a token.
//!
//! Invariant: no I/O but the token's, no database, and nothing of a private key is kept between two
//! messages.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::prelude::*;

use super::key_handle::KeyHandle;
use super::messages::{Probe, SignBatch, SignFailure};
use crate::clock::Clock;
use crate::failpoint::reach;
use crate::keyring::pkcs11::{TokenError, TokenSession};
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
    /// What signs with keys on the token, if this pool is one of a token.
    pub token: Option<TokenSession>,
}

impl Actor for Signer {
    type Context = SyncContext<Self>;
}

impl Handler<SignBatch> for Signer {
    type Result = Result<Vec<(RecordId, Signature)>, SignFailure>;

    fn handle(&mut self, message: SignBatch, _: &mut Self::Context) -> Self::Result {
        let SignBatch { key, deadline, records } = message;
        let mut may_go_on = || !deadline.has_passed(self.clock.as_ref());
        // A panic would end this thread, and actix never replaces it.
        let signed = catch_unwind(AssertUnwindSafe(|| {
            reach("signer", "signing");
            let signed = match (&key, &mut self.token) {
                (KeyHandle::Software(key), _) => {
                    let signed = (self.sign)(self.engine, key, &records, &mut may_go_on);
                    signed.map_err(SignFailure::from)
                }
                (KeyHandle::Token(key), Some(token)) => {
                    let signed = token.sign_each(key, &records, &mut may_go_on);
                    signed.map_err(SignFailure::from)
                }
                (KeyHandle::Token(_), None) => {
                    Err(SignFailure::Token("this node is not told of a token".to_owned()))
                }
            };
            reach("signer", "signed");
            let signatures = signed?;
            if self.verify {
                verify(&key.public_key(), &records, &signatures)?;
            }
            Ok::<_, SignFailure>(signatures)
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

impl Handler<Probe> for Signer {
    type Result = Result<(), SignFailure>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let Some(session) = &self.token else { return Ok(()) };
        match catch_unwind(AssertUnwindSafe(|| session.token().probe())) {
            Ok(answer) => answer.map_err(SignFailure::from),
            Err(panic) => Err(SignFailure::Panicked(panic_message(panic.as_ref()))),
        }
    }
}

impl From<SigningError> for SignFailure {
    fn from(error: SigningError) -> Self {
        match error {
            SigningError::PastDeadline => SignFailure::PastDeadline,
            other => SignFailure::Engine(other.to_string()),
        }
    }
}

impl From<TokenError> for SignFailure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::PastDeadline => SignFailure::PastDeadline,
            error if error.is_of_the_payload() => SignFailure::Engine(error.to_string()),
            // Whatever else a token says, the batch can be signed once that is mended.
            error => SignFailure::Token(error.to_string()),
        }
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
