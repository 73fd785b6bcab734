//! The key-encryption key: 32 random bytes that seal every private key, and are stored nowhere
//! beside them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::KekError;
use super::cipher::{CipherKey, NONCE_BYTES};

/// A key-encryption key, wiped from memory when it is dropped.
pub struct Kek(CipherKey);

impl Kek {
    /// A new KEK from the operating system's randomness, kept in memory only.
    ///
    /// # Errors
    /// [`KekError::Randomness`] if it has none to give.
    pub fn generate() -> Result<Self, KekError> {
        CipherKey::generate().map(Kek).map_err(KekError::Randomness)
    }

    /// A copy of 32 bytes; `None` if there are more or fewer.
    pub(super) fn copy_of(bytes: &[u8]) -> Option<Self> {
        CipherKey::copy_of(bytes).map(Kek)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(super) fn cipher(&self) -> &CipherKey {
        &self.0
    }

    /// The KEK's public name.
    #[must_use]
    pub fn id(&self) -> KekId {
        let hash = Sha256::new().chain_update(ID_LABEL).chain_update(self.as_bytes()).finalize();
        KekId(hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// What a database keeps to tell this KEK from another: a fixed text, encrypted and
    /// authenticated. The same KEK always gives the same value.
    #[must_use]
    pub fn check_value(&self) -> Vec<u8> {
        let mut value = CHECK_TEXT.to_vec();
        // A fixed nonce is sound here: under it a KEK never encrypts anything but this one text.
        let tag = self.0.encrypt([0; NONCE_BYTES], CHECK_LABEL, &mut value);
        value.extend_from_slice(&tag);
        value
    }

    /// Whether `check_value` was made by this KEK.
    #[must_use]
    pub fn proves(&self, check_value: &[u8]) -> bool {
        self.check_value() == check_value
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({}, <redacted>)", self.id())
    }
}

/// A KEK's public name: the first 16 hexadecimal digits of SHA-256 over the label
/// `chancery-kek-id-v1:` and the key's 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KekId(pub String);

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const ID_LABEL: &[u8] = b"chancery-kek-id-v1:";
const CHECK_LABEL: &[u8] = b"chancery-kek-check-v1";
const CHECK_TEXT: &[u8] = b"this is the right key-encryption key";

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::keyring::cipher::TAG_BYTES;

    #[test]
    fn a_kek_proves_itself_by_its_own_check_value_only() {
        let (kek, other) = (Kek::generate().unwrap(), Kek::generate().unwrap());
        let value = kek.check_value();
        assert!(kek.proves(&value));
        assert!(!other.proves(&value));
        assert!(!kek.proves(&[]));
        for index in 0..value.len() {
            let mut changed = value.clone();
            changed[index] ^= 1;
            assert!(!kek.proves(&changed), "byte {index} changed");
        }
    }

    #[test]
    fn a_check_value_does_not_show_its_text() {
        let value = Kek::generate().unwrap().check_value();
        assert_eq!(value.len(), CHECK_TEXT.len() + TAG_BYTES);
        assert!(!value.starts_with(&CHECK_TEXT[..8]));
    }

    #[test]
    fn stored_ids_and_check_values_stay_valid_in_later_versions() {
        let kek = Kek::copy_of(&[7; 32]).unwrap();
        assert_eq!(kek.id(), KekId("bddaee1240876dc6".to_owned()));
        let value = "RAiHsVZETRJ5DsIFbEyKKDj6r1W6uSVOz7YlA0GqSd9JSkx_LraV1VFaw_tmUw2tKH--4A";
        assert_eq!(URL_SAFE_NO_PAD.encode(kek.check_value()), value);
    }

    #[test]
    fn different_keks_have_different_ids() {
        assert_ne!(Kek::generate().unwrap().id(), Kek::generate().unwrap().id());
    }

    #[test]
    fn a_kek_shows_nothing_secret_in_debug_output() {
        let kek = Kek::copy_of(&[7; 32]).unwrap();
        assert_eq!(format!("{kek:?}"), format!("Kek({}, <redacted>)", kek.id()));
    }
}
