//! The data key of a ring: it seals the ring's private keys, and is itself wrapped by a KEK.
//!
//! A wrapped data key has 73 bytes: the format version (2), a random nonce (24 bytes), the data key
//! encrypted by XChaCha20-Poly1305 (32 bytes) and the tag (16 bytes). The associated data are the label
//! `chancery-data-key`, the format version (1 byte), the database's id, the ring (8 bytes, big-endian)
//! and the KEK's id, each behind its length (8 bytes, big-endian).

use std::fmt;

use super::cipher::{CipherKey, SEALED_BYTES, associated_data};
use super::seal::FORMAT_VERSION;
use super::{Kek, KekId};
use crate::types::RingId;

/// A data key, wiped from memory when it is dropped.
pub struct DataKey {
    cipher: CipherKey,
    kek: KekId,
}

/// The place of a data key, to which its wrapped form is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeyPlace {
    /// The database's own unchanging name.
    pub database_id: String,
    /// The ring.
    pub ring: RingId,
}

impl DataKey {
    /// A new data key, and its form wrapped by `kek` for `place`.
    ///
    /// # Errors
    /// If the operating system gives no randomness.
    pub fn generate(kek: &Kek, place: &DataKeyPlace) -> Result<(Self, Vec<u8>), DataKeyError> {
        let cipher = CipherKey::generate().map_err(DataKeyError::Randomness)?;
        let bound = place.associated_data(&kek.id());
        let sealed = kek.cipher().seal(&bound, cipher.as_bytes());
        let sealed = sealed.map_err(DataKeyError::Randomness)?;
        let wrapped = [&[FORMAT_VERSION], sealed.as_slice()].concat();
        Ok((DataKey { cipher, kek: kek.id() }, wrapped))
    }

    /// Opens what [`DataKey::generate`] wrapped.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn unwrap(kek: &Kek, place: &DataKeyPlace, wrapped: &[u8]) -> Result<Self, DataKeyError> {
        let ring = place.ring;
        let sealed: &[u8; SEALED_BYTES] = match wrapped.split_first() {
            Some((&FORMAT_VERSION, sealed)) => sealed
                .try_into()
                .map_err(|_| DataKeyError::Length { ring, bytes: wrapped.len() })?,
            Some((&version, _)) => return Err(DataKeyError::UnknownVersion { ring, version }),
            None => return Err(DataKeyError::Length { ring, bytes: 0 }),
        };
        let opened = kek.cipher().open(&place.associated_data(&kek.id()), sealed);
        let cipher = opened.ok().and_then(|bytes| CipherKey::copy_of(bytes.as_slice()));
        let cipher = cipher.ok_or_else(|| DataKeyError::DoesNotOpen { ring, kek: kek.id() })?;
        Ok(DataKey { cipher, kek: kek.id() })
    }

    /// The KEK that wraps it.
    #[must_use]
    pub fn kek(&self) -> &KekId {
        &self.kek
    }

    pub(super) fn cipher(&self) -> &CipherKey {
        &self.cipher
    }
}

impl DataKeyPlace {
    fn associated_data(&self, kek: &KekId) -> Vec<u8> {
        associated_data(&[
            b"chancery-data-key",
            &[FORMAT_VERSION],
            self.database_id.as_bytes(),
            &self.ring.0.to_be_bytes(),
            kek.0.as_bytes(),
        ])
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey(under {}, <redacted>)", self.kek)
    }
}

/// The length of a wrapped data key.
const WRAPPED_BYTES: usize = 1 + SEALED_BYTES;

/// Why there is no data key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataKeyError {
    /// None could be made.
    #[error("the operating system gives no randomness for a data key")]
    Randomness(#[source] getrandom::Error),
    /// Most likely it was wrapped by a newer version.
    #[error("the data key of ring {ring} is wrapped in the unknown format version {version}")]
    UnknownVersion {
        /// The ring.
        ring: RingId,
        /// The first byte.
        version: u8,
    },
    /// It is cut off, or was never a wrapped data key.
    #[error("the data key of ring {ring} has {bytes} bytes, not {WRAPPED_BYTES}")]
    Length {
        /// The ring.
        ring: RingId,
        /// The length found.
        bytes: usize,
    },
    /// The KEK or the place is wrong, or it is damaged: they cannot be told apart.
    #[error(
        "the data key of ring {ring} does not open under KEK {kek}: it was wrapped for another \
         place, or changed since"
    )]
    DoesNotOpen {
        /// The ring.
        ring: RingId,
        /// The KEK.
        kek: KekId,
    },
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn kek(byte: u8) -> Kek {
        Kek::copy_of(&[byte; 32]).unwrap()
    }

    fn place() -> DataKeyPlace {
        DataKeyPlace { database_id: "a database".to_owned(), ring: RingId(1) }
    }

    #[test]
    fn a_wrapped_data_key_opens_under_its_kek_in_its_place_only() {
        let (key, wrapped) = DataKey::generate(&kek(7), &place()).unwrap();
        assert_eq!(wrapped.len(), WRAPPED_BYTES);
        let opened = DataKey::unwrap(&kek(7), &place(), &wrapped).unwrap();
        assert_eq!(opened.cipher.as_bytes(), key.cipher.as_bytes());
        assert!(!wrapped.windows(8).any(|part| part == &key.cipher.as_bytes()[..8]));

        let shut = |kek: &Kek, place: &DataKeyPlace, wrapped: &[u8]| {
            let error = DataKey::unwrap(kek, place, wrapped).unwrap_err();
            assert!(matches!(error, DataKeyError::DoesNotOpen { .. }), "{error}");
        };
        shut(&kek(8), &place(), &wrapped);
        shut(&kek(7), &DataKeyPlace { ring: RingId(2), ..place() }, &wrapped);
        let elsewhere = DataKeyPlace { database_id: "another".to_owned(), ..place() };
        shut(&kek(7), &elsewhere, &wrapped);
        for bit in 8..8 * wrapped.len() {
            let mut flipped = wrapped.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            shut(&kek(7), &place(), &flipped);
        }
    }

    #[test]
    fn other_versions_and_lengths_are_refused_by_name() {
        let (_, wrapped) = DataKey::generate(&kek(7), &place()).unwrap();
        for length in 0..WRAPPED_BYTES {
            let error = DataKey::unwrap(&kek(7), &place(), &wrapped[..length]).unwrap_err();
            assert!(matches!(error, DataKeyError::Length { bytes, .. } if bytes == length));
        }
        let newer = [&[3], &wrapped[1..]].concat();
        let error = DataKey::unwrap(&kek(7), &place(), &newer).unwrap_err();
        assert!(matches!(error, DataKeyError::UnknownVersion { version: 3, .. }), "{error}");
    }

    /// The test vector of docs/SECURITY.md.
    #[test]
    fn stored_data_keys_stay_readable_in_later_versions() {
        let wrapped = URL_SAFE_NO_PAD.decode(VECTOR).unwrap();
        let key = DataKey::unwrap(&kek(7), &place(), &wrapped).unwrap();
        assert_eq!(key.cipher.as_bytes(), &[9; 32]);
    }

    const VECTOR: &str = "AgECAwQFBgcICQoLDA0ODxAREhMUFRYXGEvMV-km9XTnn2aAgbJg_6Bme8YqHhi0\
                         mhi_hW58bmlntyOk5JY-gbZKYfCmsedG1Q";

    #[test]
    fn a_data_key_shows_nothing_secret_in_debug_output() {
        let (key, _) = DataKey::generate(&kek(7), &place()).unwrap();
        assert_eq!(format!("{key:?}"), format!("DataKey(under {}, <redacted>)", kek(7).id()));
    }
}
