//! A [`SignFn`](crate::actors::signer::SignFn) that a test can make fail, wait and count.
//!
//! It is a plain function, so it finds its test's script by the key that it is to sign with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::faulty_store::Gate;
use crate::signing::{Engine, PrivateKey, PublicKey, Signature, SigningError, sign_each};
use crate::types::Record;

/// What happens to a slice before it is signed, or to what comes of it.
#[derive(Clone, Debug)]
pub(super) enum SignFault {
    Panic(&'static str),
    Wait(&'static Gate),
    /// One bit of the last signature is wrong.
    FlipBit,
}

type OnSlice = Box<dyn FnMut(&[Record]) -> Option<SignFault> + Send>;

/// What a test wants of its signers, and what it wants to know.
#[derive(Default)]
pub(super) struct SigningScript {
    on_slice: Mutex<Option<OnSlice>>,
    counts: Mutex<SigningCounts>,
}

/// What the signers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SigningCounts {
    /// Slices that signers began, and signed to the end.
    pub(super) slices_begun: u64,
    pub(super) slices_signed: u64,
    /// Signatures computed, thrown away or not.
    pub(super) signatures: u64,
    /// Slices and payload bytes in the hands of signers: now, and at the worst moment.
    pub(super) slices_now: usize,
    pub(super) bytes_now: usize,
    pub(super) most_slices: usize,
    pub(super) most_bytes: usize,
}

static SCRIPTS: Mutex<Option<HashMap<[u8; 32], Arc<SigningScript>>>> = Mutex::new(None);

impl SigningScript {
    /// Makes this the script of a key.
    pub(super) fn take_on(self: &Arc<Self>, key: &PublicKey) {
        let mut scripts = SCRIPTS.lock().unwrap();
        scripts.get_or_insert_default().insert(*key.as_bytes(), Arc::clone(self));
    }

    /// `on_slice` sees every slice before it is signed.
    pub(super) fn on_slice(
        &self,
        on_slice: impl FnMut(&[Record]) -> Option<SignFault> + Send + 'static,
    ) {
        *self.on_slice.lock().unwrap() = Some(Box::new(on_slice));
    }

    pub(super) fn counts(&self) -> SigningCounts {
        *self.counts.lock().unwrap()
    }

    fn begin(&self, bytes: usize) {
        let mut counts = self.counts.lock().unwrap();
        counts.slices_begun += 1;
        counts.slices_now += 1;
        counts.bytes_now += bytes;
        counts.most_slices = counts.most_slices.max(counts.slices_now);
        counts.most_bytes = counts.most_bytes.max(counts.bytes_now);
    }

    fn end(&self, bytes: usize, signed: Option<usize>) {
        let mut counts = self.counts.lock().unwrap();
        counts.slices_now -= 1;
        counts.bytes_now -= bytes;
        if let Some(signatures) = signed {
            counts.slices_signed += 1;
            counts.signatures += signatures as u64;
        }
    }
}

pub(super) fn scripted_sign(
    engine: Engine,
    key: &PrivateKey,
    records: &[Record],
    may_go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Signature>, SigningError> {
    let public_key = key.public_key();
    let script = SCRIPTS.lock().unwrap().as_ref().unwrap()[public_key.as_bytes()].clone();
    let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
    script.begin(bytes);
    let fault = script.on_slice.lock().unwrap().as_mut().and_then(|see| see(records));
    let flip_bit = matches!(fault, Some(SignFault::FlipBit));
    match fault {
        Some(SignFault::Panic(message)) => {
            script.end(bytes, None);
            panic!("{message}");
        }
        Some(SignFault::Wait(gate)) => gate.pass(),
        Some(SignFault::FlipBit) | None => {}
    }
    let mut signed = sign_each(engine, key, records, may_go_on);
    if let Some(last) = signed.as_mut().ok().and_then(|all| all.last_mut()).filter(|_| flip_bit) {
        last.0[40] ^= 4;
    }
    script.end(bytes, signed.as_ref().ok().map(Vec::len));
    signed
}
