//! OpenSSH's own format (PROTOCOL.key of OpenSSH), plain or encrypted.

use ssh_key::{Algorithm, Kdf};
use zeroize::Zeroizing;

use super::PrivateKeyError;
use crate::keyring::Passphrase;
use crate::signing::PrivateKey;

/// Reads one block of PEM.
pub(super) fn read(
    pem: &str,
    passphrase: Option<&Passphrase>,
) -> Result<PrivateKey, PrivateKeyError> {
    let key = ssh_key::PrivateKey::from_openssh(pem).map_err(|_| PrivateKeyError::OpenSsh)?;
    // An encrypted key still shows its public half, and so what it is.
    match key.algorithm() {
        Algorithm::Ed25519 => {}
        Algorithm::Rsa { .. } => return Err(PrivateKeyError::Algorithm("an RSA")),
        Algorithm::Ecdsa { .. } => {
            return Err(PrivateKeyError::Algorithm("an elliptic-curve (ECDSA)"));
        }
        Algorithm::Dsa => return Err(PrivateKeyError::Algorithm("a DSA")),
        Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => {
            return Err(PrivateKeyError::Algorithm("a security key's"));
        }
        _ => return Err(PrivateKeyError::OpenSsh),
    }
    if !key.is_encrypted() {
        return from_pair(&key);
    }
    if let Kdf::Bcrypt { rounds, .. } = key.kdf()
        && *rounds > MOST_ROUNDS
    {
        return Err(PrivateKeyError::Cost);
    }
    let passphrase = passphrase.ok_or(PrivateKeyError::NeedsPassphrase)?;
    let opened = key.decrypt(passphrase.as_bytes());
    from_pair(&opened.map_err(|_| PrivateKeyError::WrongPassphrase)?)
}

/// ssh-keygen's own choice is 16 or 24.
const MOST_ROUNDS: u32 = 1_000;

fn from_pair(key: &ssh_key::PrivateKey) -> Result<PrivateKey, PrivateKeyError> {
    let pair = key.key_data().ed25519().ok_or(PrivateKeyError::OpenSsh)?;
    let private_key = PrivateKey::from_seed(Zeroizing::new(pair.private.to_bytes()));
    // Both that beside the private key and that of the file's head.
    let own = private_key.public_key();
    let head = key.public_key().key_data().ed25519();
    if pair.public.0 == *own.as_bytes() && head.is_some_and(|head| head.0 == *own.as_bytes()) {
        Ok(private_key)
    } else {
        Err(PrivateKeyError::Mismatch)
    }
}
