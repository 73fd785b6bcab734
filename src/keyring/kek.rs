//! The key-encryption key: 32 random bytes that seal every private key, and are stored nowhere
//! beside them.

use std::fmt;

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::KekError;

/// A key-encryption key, wiped from memory when it is dropped.
// Boxed, so that moving it leaves no copies behind.
pub struct Kek(Box<Zeroizing<[u8; 32]>>);

impl Kek {
    /// A new KEK from the operating system's randomness, kept in memory only.
    ///
    /// # Errors
    /// [`KekError::Randomness`] if it has none to give.
    pub fn generate() -> Result<Self, KekError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(KekError::Randomness)?;
        Ok(Self::from_bytes(bytes))
    }

    pub(super) fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Kek(Box::new(bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
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
        let tag = self.encrypt([0; NONCE_BYTES], CHECK_LABEL, &mut value);
        value.extend_from_slice(&tag);
        value
    }

    /// Whether `check_value` was made by this KEK.
    #[must_use]
    pub fn proves(&self, check_value: &[u8]) -> bool {
        self.check_value() == check_value
    }

    /// Encrypts `text` in place by XChaCha20-Poly1305 and answers with the tag.
    pub(super) fn encrypt(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated_data: &[u8],
        text: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let text = InOutBuf::from(text);
        let sealed =
            self.cipher().encrypt_inout_detached(&XNonce::from(nonce), associated_data, text);
        // Unwrap safety: only a text of 256 GiB or more is refused; ours have a few dozen bytes.
        #[expect(clippy::expect_used, reason = "cannot fail for a text this short")]
        sealed.expect("a text far shorter than 256 GiB").into()
    }

    /// Decrypts `text` in place, if it is what [`Kek::encrypt`] made with the same arguments.
    pub(super) fn decrypt(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated_data: &[u8],
        text: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> Result<(), DoesNotOpen> {
        let text = InOutBuf::from(text);
        self.cipher()
            .decrypt_inout_detached(&XNonce::from(nonce), associated_data, text, &tag.into())
            .map_err(|_| DoesNotOpen)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.as_bytes().into())
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

/// Another KEK, other associated data, or a changed text, nonce or tag.
#[derive(Debug)]
pub(super) struct DoesNotOpen;

/// The length of XChaCha20-Poly1305's nonce.
pub(super) const NONCE_BYTES: usize = 24;
/// The length of Poly1305's tag.
pub(super) const TAG_BYTES: usize = 16;

const ID_LABEL: &[u8] = b"chancery-kek-id-v1:";
const CHECK_LABEL: &[u8] = b"chancery-kek-check-v1";
const CHECK_TEXT: &[u8] = b"this is the right key-encryption key";

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

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
        let kek = Kek::from_bytes(Zeroizing::new([7; 32]));
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
        let kek = Kek::from_bytes(Zeroizing::new([7; 32]));
        assert_eq!(format!("{kek:?}"), format!("Kek({}, <redacted>)", kek.id()));
    }
}
