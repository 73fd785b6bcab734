//! What a checkout hands to a signer: a private key in memory, or the name of one on a token.

use std::sync::Arc;

use crate::keyring::pkcs11::TokenKeyRef;
use crate::signing::PrivateKey;

/// A key to sign with; clones are the same key.
#[derive(Clone, Debug)]
pub enum KeyHandle {
    /// In memory, unsealed.
    Software(Arc<PrivateKey>),
    /// On the token, which it never leaves.
    Token(Arc<TokenKeyRef>),
}
