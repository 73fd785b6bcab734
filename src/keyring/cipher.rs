//! XChaCha20-Poly1305 under 32 secret bytes (draft-irtf-cfrg-xchacha-03, section 2).
//!
//! A nonce has 192 random bits, so that one key may seal far more texts than there will ever be: after
//! 2^80 of them the chance that two nonces are alike is still below one in 2^32.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// 32 secret bytes that encrypt, wiped from memory when they are dropped.
// Boxed, so that moving them leaves no copies behind.
pub(super) struct CipherKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl CipherKey {
    /// A new key from the operating system's randomness.
    pub(super) fn generate() -> Result<Self, getrandom::Error> {
        let mut key = CipherKey(Box::default());
        getrandom::fill(key.0.as_mut_slice())?;
        Ok(key)
    }

    /// A copy of these bytes, which must have the right length.
    pub(super) fn copy_of(bytes: &[u8]) -> Option<Self> {
        let mut key = CipherKey(Box::default());
        if bytes.len() != KEY_BYTES {
            return None;
        }
        key.0.copy_from_slice(bytes);
        Some(key)
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Seals 32 bytes: the random nonce, the encrypted bytes and the tag.
    pub(super) fn seal(
        &self,
        associated_data: &[u8],
        secret: &[u8; 32],
    ) -> Result<[u8; SEALED_BYTES], getrandom::Error> {
        let mut sealed = [0; SEALED_BYTES];
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)?;
        let mut text = Zeroizing::new(*secret);
        let tag = self.encrypt(nonce, associated_data, text.as_mut_slice());
        sealed[..NONCE_BYTES].copy_from_slice(&nonce);
        sealed[NONCE_BYTES..NONCE_BYTES + 32].copy_from_slice(text.as_slice());
        sealed[NONCE_BYTES + 32..].copy_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens what [`CipherKey::seal`] made with the same key and associated data.
    pub(super) fn open(
        &self,
        associated_data: &[u8],
        sealed: &[u8; SEALED_BYTES],
    ) -> Result<Zeroizing<[u8; 32]>, DoesNotOpen> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(DoesNotOpen)?;
        let (encrypted, tag) = rest.split_first_chunk::<32>().ok_or(DoesNotOpen)?;
        let tag: [u8; TAG_BYTES] = tag.try_into().map_err(|_| DoesNotOpen)?;
        let mut text = Zeroizing::new(*encrypted);
        self.cipher()
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                associated_data,
                InOutBuf::from(text.as_mut_slice()),
                &tag.into(),
            )
            .map_err(|_| DoesNotOpen)?;
        Ok(text)
    }

    /// Encrypts `text` in place and answers with the tag.
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

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.as_bytes().into())
    }
}

/// Fields as associated data: each behind its length (8 bytes, big-endian), so that no two lists of
/// fields are alike.
pub(super) fn associated_data(fields: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for field in fields {
        data.extend_from_slice(&(field.len() as u64).to_be_bytes());
        data.extend_from_slice(field);
    }
    data
}

/// Another key, other associated data, or a changed nonce, text or tag.
#[derive(Debug)]
pub(super) struct DoesNotOpen;

/// The length of a key.
pub(super) const KEY_BYTES: usize = 32;
/// The length of XChaCha20-Poly1305's nonce.
pub(super) const NONCE_BYTES: usize = 24;
/// The length of Poly1305's tag.
pub(super) const TAG_BYTES: usize = 16;
/// A nonce, 32 encrypted bytes and a tag.
pub(super) const SEALED_BYTES: usize = NONCE_BYTES + 32 + TAG_BYTES;
