//! Sealing: a private key as a blob that opens only under its ring's data key and only in its place.
//!
//! A blob has 73 bytes: the format version (2), a random nonce (24 bytes), the seed encrypted by
//! XChaCha20-Poly1305 (32 bytes; draft-irtf-cfrg-xchacha-03, section 2) and the tag (16 bytes).
//! The associated data are the format version (1 byte), each field of the [`KeyIdentity`] in its
//! order (numbers as 8 bytes, big-endian) and the id of the KEK that wraps the data key, each behind
//! its length (8 bytes, big-endian). So a blob that was moved to another row, ring or database stays
//! shut.
//!
//! Version 1 had no data key: the KEK itself encrypted the seed. It is read, and never written.

use super::cipher::{CipherKey, SEALED_BYTES, associated_data};
use super::{Algorithm, DataKey, Kek, KekId, jwk};
use crate::signing::PrivateKey;
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

/// Seals a private key under a data key for the place `identity`.
///
/// # Errors
/// [`SealError::AnotherKey`] if the identity's kid is not the key's, and
/// [`SealError::Randomness`].
pub fn seal(
    data_key: &DataKey,
    identity: &KeyIdentity,
    key: &PrivateKey,
) -> Result<Vec<u8>, SealError> {
    let kid = &identity.kid;
    let found = jwk::kid(&key.public_key());
    if found != *kid {
        return Err(SealError::AnotherKey { kid: kid.clone(), found });
    }
    let bound = identity.associated_data(FORMAT_VERSION, data_key.kek());
    let sealed = data_key.cipher().seal(&bound, &key.seed());
    let sealed = sealed.map_err(|source| SealError::Randomness { kid: kid.clone(), source })?;
    Ok([&[FORMAT_VERSION], sealed.as_slice()].concat())
}

/// What opens a blob, as its row says.
#[derive(Clone, Copy, Debug)]
pub enum Opener<'a> {
    /// A data key of its ring.
    DataKey(&'a DataKey),
    /// The KEK itself: a blob of version 1.
    Kek(&'a Kek),
}

impl Opener<'_> {
    fn parts(&self) -> (u8, &CipherKey, KekId) {
        match self {
            Opener::DataKey(key) => (FORMAT_VERSION, key.cipher(), key.kek().clone()),
            Opener::Kek(kek) => (1, kek.cipher(), kek.id()),
        }
    }
}

/// Opens what [`seal`] made, and proves that it holds the private half of `public_key`, whose 32 bytes
/// need no check of their own then.
///
/// # Errors
/// Every [`SealError`] but [`SealError::Randomness`]; each says which key and what is wrong.
pub fn unseal(
    opener: Opener<'_>,
    identity: &KeyIdentity,
    public_key: &[u8],
    blob: &[u8],
) -> Result<PrivateKey, SealError> {
    let kid = &identity.kid;
    let (version, cipher, kek) = opener.parts();
    let sealed: &[u8; SEALED_BYTES] = match blob.split_first() {
        Some((&found, _)) if found != version => {
            return Err(SealError::UnknownVersion { kid: kid.clone(), version: found });
        }
        Some((_, sealed)) => sealed
            .try_into()
            .map_err(|_| SealError::Length { kid: kid.clone(), bytes: blob.len() })?,
        None => return Err(SealError::Length { kid: kid.clone(), bytes: 0 }),
    };
    let opened = cipher.open(&identity.associated_data(version, &kek), sealed);
    let seed = opened.map_err(|_| SealError::DoesNotOpen { kid: kid.clone(), kek })?;
    let key = PrivateKey::from_seed(seed);
    if key.public_key().as_bytes() != public_key {
        let found = jwk::kid(&key.public_key());
        return Err(SealError::AnotherKey { kid: kid.clone(), found });
    }
    Ok(key)
}

impl KeyIdentity {
    fn associated_data(&self, version: u8, kek: &KekId) -> Vec<u8> {
        let KeyIdentity { database_id, ring, key, kid, algorithm } = self;
        associated_data(&[
            &[version],
            database_id.as_bytes(),
            &ring.0.to_be_bytes(),
            &key.0.to_be_bytes(),
            kid.0.as_bytes(),
            algorithm.as_str().as_bytes(),
            kek.0.as_bytes(),
        ])
    }
}

/// The version of everything that is sealed now.
pub(super) const FORMAT_VERSION: u8 = 2;
const BLOB_BYTES: usize = 1 + SEALED_BYTES;

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
    #[error("key {kid}: sealed in the format version {version}, which its row does not allow")]
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

    use zeroize::Zeroizing;

    use super::*;
    use crate::keyring::DataKeyPlace;

    struct Sealed {
        data_key: DataKey,
        identity: KeyIdentity,
        key: PrivateKey,
        blob: Vec<u8>,
    }

    fn kek() -> Kek {
        Kek::copy_of(&[7; 32]).unwrap()
    }

    fn place() -> DataKeyPlace {
        DataKeyPlace { database_id: "a database".to_owned(), ring: RingId(1) }
    }

    impl Sealed {
        fn new() -> Self {
            let (data_key, _) = DataKey::generate(&kek(), &place()).unwrap();
            let key = PrivateKey::from_seed(Zeroizing::new([8; 32]));
            let identity = KeyIdentity {
                database_id: "a database".to_owned(),
                ring: RingId(1),
                key: KeyId(2),
                kid: jwk::kid(&key.public_key()),
                algorithm: Algorithm::Ed25519,
            };
            let blob = seal(&data_key, &identity, &key).unwrap();
            Sealed { data_key, identity, key, blob }
        }

        fn unseal(&self, blob: &[u8]) -> Result<PrivateKey, SealError> {
            self.unseal_by(Opener::DataKey(&self.data_key), blob)
        }

        fn unseal_by(&self, opener: Opener<'_>, blob: &[u8]) -> Result<PrivateKey, SealError> {
            unseal(opener, &self.identity, self.key.public_key().as_bytes(), blob)
        }
    }

    #[test]
    fn a_sealed_key_opens_again() {
        let sealed = Sealed::new();
        assert_eq!(sealed.blob.len(), BLOB_BYTES);
        assert_eq!(sealed.unseal(&sealed.blob).unwrap().seed(), sealed.key.seed());
    }

    /// The test vectors of docs/SECURITY.md, made by another implementation.
    #[test]
    fn stored_blobs_stay_readable_in_later_versions() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let sealed = Sealed::new();
        let wrapped = "AgECAwQFBgcICQoLDA0ODxAREhMUFRYXGEvMV-km9XTnn2aAgbJg_6Bme8YqHhi0\
                       mhi_hW58bmlntyOk5JY-gbZKYfCmsedG1Q";
        let data_key = DataKey::unwrap(&kek(), &place(), &decode(wrapped)).unwrap();
        let blob = "AgECAwQFBgcICQoLDA0ODxAREhMUFRYXGDqK-ZnnSxAKFDByCtCbZB0TW0cLkxvF\
                    fOBgxC4d3tgLa4CuF8tXCrDH97vtdKPBjA";
        let opened = sealed.unseal_by(Opener::DataKey(&data_key), &decode(blob)).unwrap();
        assert_eq!(*opened.seed(), [8; 32]);

        let version_1 = "AQABAgMEBQYHCAkKCwwNDg8QERITFBUWF6Afo43yFFOtLc-JT-\
                         7qp6RX3jAfHP8_efsVv4mSxJyfGj8UjcC4IqucQ9rjdBaeOA";
        let opened = sealed.unseal_by(Opener::Kek(&kek()), &decode(version_1)).unwrap();
        assert_eq!(*opened.seed(), [8; 32]);
    }

    #[test]
    fn a_blob_s_version_is_its_row_s_to_say() {
        let sealed = Sealed::new();
        let error = sealed.unseal_by(Opener::Kek(&kek()), &sealed.blob).unwrap_err();
        assert!(matches!(error, SealError::UnknownVersion { version: 2, .. }), "{error}");
        let renamed = [&[1], &sealed.blob[1..]].concat();
        for opener in [Opener::Kek(&kek()), Opener::DataKey(&sealed.data_key)] {
            assert!(sealed.unseal_by(opener, &renamed).is_err());
        }
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
            let opener = Opener::DataKey(&sealed.data_key);
            let error = unseal(opener, &identity, sealed.key.public_key().as_bytes(), &sealed.blob);
            assert!(matches!(error, Err(SealError::DoesNotOpen { .. })), "{identity:?}");
        }
    }

    #[test]
    fn the_fields_of_a_place_do_not_run_into_each_other() {
        let here = Sealed::new().identity;
        let bind = |database_id: &str, kid: &str, kek: &str| {
            let (database_id, kid) = (database_id.to_owned(), Kid(kid.to_owned()));
            let identity = KeyIdentity { database_id, kid, ..here.clone() };
            identity.associated_data(FORMAT_VERSION, &KekId(kek.to_owned()))
        };
        assert_ne!(bind("d", "kEd25519", "k"), bind("d", "k", "Ed25519k"));
        assert_ne!(bind("d", "k", "k"), bind("d", "k", "l"));
    }

    #[test]
    fn another_data_key_opens_nothing_and_its_kek_is_named() {
        let sealed = Sealed::new();
        let (other, _) = DataKey::generate(&kek(), &place()).unwrap();
        let error = sealed.unseal_by(Opener::DataKey(&other), &sealed.blob).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&sealed.identity.kid.0), "{message}");
        assert!(message.contains(&kek().id().0), "{message}");
    }

    #[test]
    fn a_key_that_is_not_the_one_meant_is_refused_on_both_ways() {
        let sealed = Sealed::new();
        let other = PrivateKey::generate().unwrap();
        let (kid, other_kid) = (&sealed.identity.kid, jwk::kid(&other.public_key()));

        let opener = Opener::DataKey(&sealed.data_key);
        let opened = unseal(opener, &sealed.identity, other.public_key().as_bytes(), &sealed.blob);
        assert!(matches!(opened, Err(SealError::AnotherKey { found, .. }) if found == *kid));
        let made = seal(&sealed.data_key, &sealed.identity, &other);
        assert!(matches!(made, Err(SealError::AnotherKey { found, .. }) if found == other_kid));
    }
}
