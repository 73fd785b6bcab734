//! Pure computation: a key and payloads to signatures, and signatures to a verdict. No I/O.
//!
//! A signature is pure Ed25519 (RFC 8032, section 5.1) over the payload's exact bytes, so that any
//! other implementation can check it.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey, verify_batch};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::types::{Record, UnknownWord};

/// Signs each record by itself, in order, and answers with as many signatures.
///
/// `may_go_on` is asked before each signature.
///
/// # Errors
/// [`SigningError::PastDeadline`] as soon as `may_go_on` says no, [`SigningError::Engine`] if the engine
/// refuses; what was signed is dropped.
pub fn sign_each(
    engine: Engine,
    key: &PrivateKey,
    records: &[Record],
    mut may_go_on: impl FnMut() -> bool,
) -> Result<Vec<Signature>, SigningError> {
    let mut signatures = Vec::with_capacity(records.len());
    for record in records {
        if !may_go_on() {
            return Err(SigningError::PastDeadline);
        }
        signatures.push(sign_one(engine, key, &record.payload)?);
    }
    Ok(signatures)
}

fn sign_one(engine: Engine, key: &PrivateKey, payload: &[u8]) -> Result<Signature, SigningError> {
    match engine {
        Engine::AwsLc => {
            let signed = key.for_aws_lc()?.try_sign(payload);
            let signed = signed.map_err(|_| SigningError::Engine)?;
            Signature::try_from(signed.as_ref()).map_err(|_| SigningError::Engine)
        }
        Engine::Dalek => Ok(Signature(key.dalek.sign(payload).to_bytes())),
    }
}

/// Overwrites the stack behind the caller, where computing with a private key leaves copies of it: the
/// key expanded, blocks of its hash, and whatever was moved.
#[inline(never)]
pub fn wipe_stack() {
    // More than any computation here takes.
    let mut behind = [0_u64; 8 * 1024];
    // As a slice: an array is overwritten element by element, which takes many times as long.
    behind.as_mut_slice().zeroize();
    std::hint::black_box(&behind);
}

/// Checks one signature strictly: by RFC 8032, section 5.1.7, without the cofactor, and with
/// small-order points refused.
///
/// # Errors
/// [`BadSignature`] if it is none of this key's over this payload.
pub fn verify_one(
    public_key: &PublicKey,
    payload: &[u8],
    signature: &Signature,
) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(&public_key.0).map_err(|_| BadSignature)?;
    key.verify_strict(payload, &signature.to_dalek()).map_err(|_| BadSignature)
}

/// Checks many signatures: see [`Verifier::verify_all`].
///
/// # Errors
/// As there.
pub fn verify_all(items: &[Verifiable<'_>]) -> Result<(), Vec<usize>> {
    Verifier::default().verify_all(items)
}

/// Checks signatures, and remembers the public keys that it has read: to check that a key is sound costs
/// as much as a signature.
#[derive(Debug, Default)]
pub struct Verifier {
    keys: HashMap<Vec<u8>, Option<VerifyingKey>>,
}

impl Verifier {
    /// Checks many signatures, about three times as fast as one by one.
    ///
    /// Nobody without the private key can make a signature that passes here and fails [`verify_one`];
    /// who has it can, by a small-order part in the signature's point R, and gains nothing.
    ///
    /// # Errors
    /// The indexes of the bad ones, ascending: signatures that do not verify, that are not 64 bytes,
    /// or whose key is not a [`PublicKey`].
    pub fn verify_all(&mut self, items: &[Verifiable<'_>]) -> Result<(), Vec<usize>> {
        let mut bad = Vec::new();
        for (number, chunk) in items.chunks(VERIFY_CHUNK).enumerate() {
            let mut parsed = Vec::with_capacity(chunk.len());
            for (offset, item) in chunk.iter().enumerate() {
                let index = number * VERIFY_CHUNK + offset;
                let key = self.key(item.public_key);
                let signature = Signature::try_from(item.signature).ok();
                match key.zip(signature) {
                    Some((key, signature)) => parsed.push(Parsed {
                        index,
                        key,
                        payload: item.payload,
                        signature: signature.to_dalek(),
                    }),
                    None => bad.push(index),
                }
            }
            if !verifies_as_batch(&parsed) {
                bad.extend(parsed.iter().filter(|one| !one.verifies()).map(|one| one.index));
            }
        }
        bad.sort_unstable();
        if bad.is_empty() { Ok(()) } else { Err(bad) }
    }

    fn key(&mut self, bytes: &[u8]) -> Option<VerifyingKey> {
        if let Some(key) = self.keys.get(bytes) {
            return *key;
        }
        if self.keys.len() >= MOST_KEYS {
            self.keys.clear();
        }
        let key = parse(bytes).ok();
        self.keys.insert(bytes.to_vec(), key);
        key
    }
}

/// How many public keys a [`Verifier`] remembers, at some 300 bytes each.
const MOST_KEYS: usize = 10_000;

/// One bad signature costs the single verification of at most so many; larger batches gain little.
const VERIFY_CHUNK: usize = 1024;

/// A signature as it was stored, with all that it claims to belong to.
#[derive(Clone, Copy, Debug)]
pub struct Verifiable<'a> {
    /// The 32 bytes of a [`PublicKey`].
    pub public_key: &'a [u8],
    /// The exact bytes that were signed.
    pub payload: &'a [u8],
    /// The 64 bytes of a [`Signature`].
    pub signature: &'a [u8],
}

struct Parsed<'a> {
    index: usize,
    key: VerifyingKey,
    payload: &'a [u8],
    signature: ed25519_dalek::Signature,
}

impl Parsed<'_> {
    fn verifies(&self) -> bool {
        self.key.verify_strict(self.payload, &self.signature).is_ok()
    }
}

fn verifies_as_batch(items: &[Parsed<'_>]) -> bool {
    let payloads: Vec<_> = items.iter().map(|item| item.payload).collect();
    let signatures: Vec<_> = items.iter().map(|item| item.signature).collect();
    let keys: Vec<_> = items.iter().map(|item| item.key).collect();
    verify_batch(&payloads, &signatures, &keys).is_ok()
}

/// An Ed25519 private key, wiped from memory when it is dropped.
pub struct PrivateKey {
    /// Boxed, so that moving it leaves no copies of the seed behind.
    dalek: Box<SigningKey>,
    /// The same for AWS-LC, once it has signed. It wipes the memory that it frees.
    aws_lc: OnceLock<Ed25519KeyPair>,
}

impl PrivateKey {
    /// A new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`SigningError::Randomness`] if it has none to give.
    pub fn generate() -> Result<Self, SigningError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(SigningError::Randomness)?;
        Ok(Self::from_seed(seed))
    }

    /// The key that the 32 bytes of RFC 8032, section 5.1.5, stand for.
    #[must_use]
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        PrivateKey { dalek: Box::new(SigningKey::from_bytes(&seed)), aws_lc: OnceLock::new() }
    }

    /// The 32 secret bytes.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.dalek.as_bytes())
    }

    /// The key that verifies what this one signs.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.dalek.verifying_key().to_bytes())
    }

    fn for_aws_lc(&self) -> Result<&Ed25519KeyPair, SigningError> {
        if let Some(key) = self.aws_lc.get() {
            return Ok(key);
        }
        let key = Ed25519KeyPair::from_seed_unchecked(self.dalek.as_bytes());
        let key = key.map_err(|_| SigningError::Engine)?;
        if key.public_key().as_ref() != self.public_key().as_bytes() {
            return Err(SigningError::Engine);
        }
        Ok(self.aws_lc.get_or_init(|| key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(<redacted>)")
    }
}

/// An Ed25519 public key: a point of prime order, in its canonical 32 bytes (RFC 8032, 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// What is wrong with it: see [`PublicKeyError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        parse(bytes).map(|key| PublicKey(key.to_bytes()))
    }

    /// The 32 raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn parse(bytes: &[u8]) -> Result<VerifyingKey, PublicKeyError> {
    let bytes: &[u8; 32] =
        bytes.try_into().map_err(|_| PublicKeyError::Length { bytes: bytes.len() })?;
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| PublicKeyError::NotAPoint)?;
    let point = key.to_edwards();
    if point.compress().to_bytes() != *bytes {
        return Err(PublicKeyError::NotCanonical);
    }
    if point.is_small_order() || !point.is_torsion_free() {
        return Err(PublicKeyError::Weak);
    }
    Ok(key)
}

/// The 64 bytes of a signature (RFC 8032, section 5.1.6); nothing says yet that it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Signature {
    /// The 64 raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    fn to_dalek(self) -> ed25519_dalek::Signature {
        ed25519_dalek::Signature::from_bytes(&self.0)
    }
}

impl TryFrom<&[u8]> for Signature {
    type Error = BadSignature;

    fn try_from(bytes: &[u8]) -> Result<Self, BadSignature> {
        bytes.try_into().map(Signature).map_err(|_| BadSignature)
    }
}

/// The implementation that computes signatures; all give the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Engine {
    /// AWS-LC, through the `aws-lc-rs` crate: its arithmetic is assembly that has been verified formally
    /// (s2n-bignum). About twice as fast as the other.
    #[default]
    AwsLc,
    /// The `ed25519-dalek` crate, in Rust.
    Dalek,
}

impl Engine {
    /// Every engine.
    pub const ALL: &[Engine] = &[Engine::AwsLc, Engine::Dalek];

    /// The word that stands in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::AwsLc => "aws_lc",
            Engine::Dalek => "dalek",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "aws_lc" => Ok(Engine::AwsLc),
            "dalek" => Ok(Engine::Dalek),
            _ => Err(UnknownWord { what: "signing engine", value: word.to_owned() }),
        }
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// A store of these signatures would be fenced.
    #[error("the deadline passed before every record was signed")]
    PastDeadline,
    /// The engine refuses, though nothing is wrong with what it was given.
    #[error("the signing engine failed")]
    Engine,
    /// No key could be generated.
    #[error("the operating system gives no randomness")]
    Randomness(#[source] getrandom::Error),
}

impl SigningError {
    /// Whether the same work can succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            SigningError::PastDeadline => true,
            SigningError::Engine | SigningError::Randomness(_) => false,
        }
    }
}

/// Why bytes are no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublicKeyError {
    /// It has the wrong length.
    #[error("an Ed25519 public key has 32 bytes, not {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// No point of the curve has this encoding.
    #[error("not a point of the curve edwards25519")]
    NotAPoint,
    /// The point has a shorter, canonical encoding, and only that one is accepted.
    #[error("not the canonical encoding of its point")]
    NotCanonical,
    /// The point is of small order or has a part that is, so it was not made from a private key.
    #[error("a weak key: not of prime order")]
    Weak,
}

/// The signature is not one of the key over the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;
