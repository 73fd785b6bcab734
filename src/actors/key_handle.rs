//! What a checkout hands to a signer: a private key in memory, or the name of one on a token.

use std::sync::Arc;

use crate::keyring::pkcs11::TokenKeyRef;
use crate::signing::{PrivateKey, PublicKey};

/// A key to sign with; clones are the same key.
#[derive(Clone, Debug)]
pub enum KeyHandle {
    /// In memory, unsealed.
    Software(Arc<PrivateKey>),
    /// On the token, which it never leaves.
    Token(Arc<TokenKeyRef>),
}

impl KeyHandle {
    /// The public half, which is the one that the database has: a key is taken into a set only so.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        match self {
            KeyHandle::Software(key) => key.public_key(),
            KeyHandle::Token(key) => key.public_key,
        }
    }
}
