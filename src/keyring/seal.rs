//! Sealing: a private key as a blob that opens only under its KEK and only in its own place.
//!
//! A blob has 73 bytes: the format version (1), a random nonce (24 bytes), the seed encrypted by
//! XChaCha20-Poly1305 (32 bytes; draft-irtf-cfrg-xchacha-03, section 2) and the tag (16 bytes).
//! The associated data are the format version (1 byte), each field of the [`KeyIdentity`] in its
//! order (numbers as 8 bytes, big-endian) and the KEK's id, each behind its length (8 bytes,
//! big-endian). So a blob that was moved to another row, ring or database stays shut.

use zeroize::Zeroizing;

use super::kek::{NONCE_BYTES, TAG_BYTES};
use super::{Algorithm, Kek, KekId, jwk};
use crate::signing::{PrivateKey, PublicKey};
use crate::types::{KeyId, Kid, RingId};

/// The place of a key, to which its blob is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyIdentity {
    /// The database's own unchanging name.
    pub database_id: String,
    /// The ring.
    pub ring: RingId,
    /// The row of `keys`.
    pub key: KeyId,
    /// The key's public name.
    pub kid: Kid,
    /// What the key computes.
    pub algorithm: Algorithm,
}

/// Seals a private key under `kek` for the place `identity`.
///
/// # Errors
/// [`SealError::AnotherKey`] if the identity's kid is not the key's, and
/// [`SealError::Randomness`].
pub fn seal(kek: &Kek, identity: &KeyIdentity, key: &PrivateKey) -> Result<Vec<u8>, SealError> {
    let kid = &identity.kid;
    let found = jwk::kid(&key.public_key());
    if found != *kid {
        return Err(SealError::AnotherKey { kid: kid.clone(), found });
    }
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|source| SealError::Randomness { kid: kid.clone(), source })?;
    let mut seed = key.seed();
    let tag = kek.encrypt(nonce, &associated_data(identity, &kek.id()), seed.as_mut_slice());
    Ok([&[FORMAT_VERSION], nonce.as_slice(), seed.as_slice(), &tag].concat())
}

/// Opens what [`seal`] made, and proves that it holds the private half of `public_key`.
///
/// # Errors
/// Every [`SealError`] but [`SealError::Randomness`]; each says which key and what is wrong.
pub fn unseal(
    kek: &Kek,
    identity: &KeyIdentity,
    public_key: &PublicKey,
    blob: &[u8],
) -> Result<PrivateKey, SealError> {
    let kid = &identity.kid;
    if let Some(&version) = blob.first()
        && version != FORMAT_VERSION
    {
        return Err(SealError::UnknownVersion { kid: kid.clone(), version });
    }
    let Some((nonce, seed, tag)) = split(blob) else {
        return Err(SealError::Length { kid: kid.clone(), bytes: blob.len() });
    };
    let mut seed = Zeroizing::new(*seed);
    kek.decrypt(*nonce, &associated_data(identity, &kek.id()), seed.as_mut_slice(), *tag)
        .map_err(|_| SealError::DoesNotOpen { kid: kid.clone(), kek: kek.id() })?;
    let key = PrivateKey::from_seed(seed);
    if key.public_key() != *public_key {
        let found = jwk::kid(&key.public_key());
        return Err(SealError::AnotherKey { kid: kid.clone(), found });
    }
    Ok(key)
}

/// The nonce, the encrypted seed and the tag.
fn split(blob: &[u8]) -> Option<(&[u8; NONCE_BYTES], &[u8; 32], &[u8; TAG_BYTES])> {
    let (_version, rest) = blob.split_first()?;
    let (nonce, rest) = rest.split_first_chunk()?;
    let (seed, tag) = rest.split_first_chunk()?;
    Some((nonce, seed, tag.try_into().ok()?))
}

fn associated_data(identity: &KeyIdentity, kek: &KekId) -> Vec<u8> {
    let KeyIdentity { database_id, ring, key, kid, algorithm } = identity;
    let mut data = Vec::new();
    for field in [
        &[FORMAT_VERSION],
        database_id.as_bytes(),
        &ring.0.to_be_bytes(),
        &key.0.to_be_bytes(),
        kid.0.as_bytes(),
        algorithm.as_str().as_bytes(),
        kek.0.as_bytes(),
    ] {
        data.extend_from_slice(&(field.len() as u64).to_be_bytes());
        data.extend_from_slice(field);
    }
    data
}

const FORMAT_VERSION: u8 = 1;
const BLOB_BYTES: usize = 1 + NONCE_BYTES + 32 + TAG_BYTES;

/// Why a private key cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no nonce to seal it with.
    #[error("key {kid}: the operating system gives no randomness to seal it")]
    Randomness {
        /// The key.
        kid: Kid,
        /// What the operating system said.
        source: getrandom::Error,
    },
    /// Most likely it was sealed by a newer version.
    #[error("key {kid}: sealed in the unknown format version {version}")]
    UnknownVersion {
        /// The key.
        kid: Kid,
        /// The first byte of the blob.
        version: u8,
    },
    /// It is cut off, or was never a sealed key.
    #[error("key {kid}: a sealed key has {BLOB_BYTES} bytes, not {bytes}")]
    Length {
        /// The key.
        kid: Kid,
        /// The length found.
        bytes: usize,
    },
    /// The KEK or the place is wrong, or the blob is damaged: they cannot be told apart.
    #[error(
        "key {kid}: does not open under KEK {kek}: \
         sealed under another KEK, or for another place, or changed since"
    )]
    DoesNotOpen {
        /// The key.
        kid: Kid,
        /// The KEK that was tried.
        kek: KekId,
    },
    /// The private key is sound, but not the one that belongs here.
    #[error("key {kid}: the private key is that of another key, {found}")]
    AnotherKey {
        /// The key that was meant.
        kid: Kid,
        /// The key that it is.
        found: Kid,
    },
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    struct Sealed {
        kek: Kek,
        identity: KeyIdentity,
        key: PrivateKey,
        blob: Vec<u8>,
    }

    impl Sealed {
        fn new() -> Self {
            let kek = Kek::from_bytes(Zeroizing::new([7; 32]));
            let key = PrivateKey::from_seed(Zeroizing::new([8; 32]));
            let identity = KeyIdentity {
                database_id: "a database".to_owned(),
                ring: RingId(1),
                key: KeyId(2),
                kid: jwk::kid(&key.public_key()),
                algorithm: Algorithm::Ed25519,
            };
            let blob = seal(&kek, &identity, &key).unwrap();
            Sealed { kek, identity, key, blob }
        }

        fn unseal(&self, blob: &[u8]) -> Result<PrivateKey, SealError> {
            unseal(&self.kek, &self.identity, &self.key.public_key(), blob)
        }
    }

    #[test]
    fn a_sealed_key_opens_again() {
        let sealed = Sealed::new();
        assert_eq!(sealed.blob.len(), BLOB_BYTES);
        assert_eq!(sealed.unseal(&sealed.blob).unwrap().seed(), sealed.key.seed());
    }

    #[test]
    fn a_blob_of_this_version_opens_in_later_ones() {
        // Made by another implementation, from the description at the head of this file.
        let blob = "AQABAgMEBQYHCAkKCwwNDg8QERITFBUWF6Afo43yFFOtLc-JT-\
                    7qp6RX3jAfHP8_efsVv4mSxJyfGj8UjcC4IqucQ9rjdBaeOA";
        let blob = URL_SAFE_NO_PAD.decode(blob).unwrap();
        assert_eq!(*Sealed::new().unseal(&blob).unwrap().seed(), [8; 32]);
    }

    #[test]
    fn no_two_blobs_are_alike_and_none_shows_the_seed() {
        let (first, second) = (Sealed::new().blob, Sealed::new().blob);
        assert_ne!(first[1..25], second[1..25]);
        assert_ne!(first[25..57], second[25..57]);
        assert_ne!(first[25..57], [8; 32]);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let sealed = Sealed::new();
        let mut flipped = 0;
        for bit in 0..8 * sealed.blob.len() {
            let mut blob = sealed.blob.clone();
            blob[bit / 8] ^= 1 << (bit % 8);
            let error = sealed.unseal(&blob).unwrap_err();
            match bit {
                0..8 => assert!(matches!(error, SealError::UnknownVersion { .. }), "{error}"),
                _ => assert!(matches!(error, SealError::DoesNotOpen { .. }), "{error}"),
            }
            flipped += 1;
        }
        assert_eq!(flipped, 584);
    }

    #[test]
    fn every_other_length_is_refused() {
        let sealed = Sealed::new();
        for length in 0..BLOB_BYTES {
            let error = sealed.unseal(&sealed.blob[..length]).unwrap_err();
            assert!(matches!(error, SealError::Length { bytes, .. } if bytes == length), "{error}");
        }
        let longer = [sealed.blob.as_slice(), &[0]].concat();
        assert!(matches!(sealed.unseal(&longer), Err(SealError::Length { bytes: 74, .. })));
    }

    #[test]
    fn a_blob_stays_shut_in_every_other_place() {
        let sealed = Sealed::new();
        let here = &sealed.identity;
        let elsewhere = [
            KeyIdentity { database_id: "another".to_owned(), ..here.clone() },
            KeyIdentity { database_id: String::new(), ..here.clone() },
            KeyIdentity { ring: RingId(2), ..here.clone() },
            KeyIdentity { key: KeyId(1), ..here.clone() },
            KeyIdentity { ring: RingId(2), key: KeyId(1), ..here.clone() },
            KeyIdentity { kid: Kid("another".to_owned()), ..here.clone() },
        ];
        for identity in elsewhere {
            let error = unseal(&sealed.kek, &identity, &sealed.key.public_key(), &sealed.blob);
            assert!(matches!(error, Err(SealError::DoesNotOpen { .. })), "{identity:?}");
        }
    }

    #[test]
    fn the_fields_of_a_place_do_not_run_into_each_other() {
        let here = Sealed::new().identity;
        let bind = |database_id: &str, kid: &str, kek: &str| {
            let (database_id, kid) = (database_id.to_owned(), Kid(kid.to_owned()));
            let identity = KeyIdentity { database_id, kid, ..here.clone() };
            associated_data(&identity, &KekId(kek.to_owned()))
        };
        assert_ne!(bind("d", "kEd25519", "k"), bind("d", "k", "Ed25519k"));
        assert_ne!(bind("d", "k", "k"), bind("d", "k", "l"));
    }

    #[test]
    fn the_wrong_kek_opens_nothing_and_is_named() {
        let sealed = Sealed::new();
        let other = Kek::generate().unwrap();
        let public_key = sealed.key.public_key();
        let error = unseal(&other, &sealed.identity, &public_key, &sealed.blob).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&sealed.identity.kid.0), "{message}");
        assert!(message.contains(&other.id().0), "{message}");
    }

    #[test]
    fn a_key_that_is_not_the_one_meant_is_refused_on_both_ways() {
        let sealed = Sealed::new();
        let other = PrivateKey::generate().unwrap();
        let (kid, other_kid) = (&sealed.identity.kid, jwk::kid(&other.public_key()));

        let opened = unseal(&sealed.kek, &sealed.identity, &other.public_key(), &sealed.blob);
        assert!(matches!(opened, Err(SealError::AnotherKey { found, .. }) if found == *kid));
        let made = seal(&sealed.kek, &sealed.identity, &other);
        assert!(matches!(made, Err(SealError::AnotherKey { found, .. }) if found == other_kid));
    }
}
