//! PKCS#8 (RFC 5958) with Ed25519 (RFC 8410), plain or encrypted by PBES2 (RFC 8018).

use ::pkcs8::pkcs5::pbes2::Kdf;
use ::pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use ed25519_dalek::pkcs8::KeypairBytes;
use zeroize::Zeroizing;

use super::PrivateKeyError;
use crate::keyring::Passphrase;
use crate::signing::PrivateKey;

/// Reads one key, whose public key, if there is one, must be its own.
pub(super) fn from_der(
    der: &[u8],
    passphrase: Option<&Passphrase>,
) -> Result<PrivateKey, PrivateKeyError> {
    if let Ok(info) = PrivateKeyInfoRef::try_from(der) {
        return from_info(info);
    }
    let encrypted =
        EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| PrivateKeyError::Pkcs8)?;
    let scheme = encrypted.encryption_algorithm.pbes2().ok_or(PrivateKeyError::Scheme)?;
    check_cost(&scheme.kdf)?;
    let passphrase = passphrase.ok_or(PrivateKeyError::NeedsPassphrase)?;
    let opened = encrypted.decrypt(passphrase.as_bytes());
    let document = opened.map_err(|_| PrivateKeyError::WrongPassphrase)?;
    // A wrong passphrase may, once in a while, leave what looks like padding and is no key.
    let info = PrivateKeyInfoRef::try_from(document.as_bytes())
        .map_err(|_| PrivateKeyError::WrongPassphrase)?;
    from_info(info)
}

fn from_info(info: PrivateKeyInfoRef<'_>) -> Result<PrivateKey, PrivateKeyError> {
    match info.algorithm.oid.to_string().as_str() {
        "1.3.101.112" => {}
        "1.2.840.113549.1.1.1" => return Err(PrivateKeyError::Algorithm("an RSA")),
        "1.2.840.10045.2.1" => {
            return Err(PrivateKeyError::Algorithm("an elliptic-curve (ECDSA)"));
        }
        "1.3.101.110" => return Err(PrivateKeyError::Algorithm("an X25519")),
        "1.3.101.111" => return Err(PrivateKeyError::Algorithm("an X448")),
        "1.3.101.113" => return Err(PrivateKeyError::Algorithm("an Ed448")),
        _ => return Err(PrivateKeyError::Pkcs8),
    }
    let pair = KeypairBytes::try_from(info).map_err(|_| PrivateKeyError::Pkcs8)?;
    let key = PrivateKey::from_seed(Zeroizing::new(pair.secret_key));
    match pair.public_key {
        Some(public) if public.to_bytes() != *key.public_key().as_bytes() => {
            Err(PrivateKeyError::Mismatch)
        }
        _ => Ok(key),
    }
}

/// A key may not ask for more than some seconds and a gigabyte.
fn check_cost(kdf: &Kdf) -> Result<(), PrivateKeyError> {
    let is_cheap = match kdf {
        Kdf::Pbkdf2(params) => params.iteration_count <= 10_000_000,
        Kdf::Scrypt(params) => {
            let bytes = 128_u64
                .checked_mul(params.cost_parameter)
                .and_then(|bytes| bytes.checked_mul(params.block_size.into()));
            bytes.is_some_and(|bytes| bytes <= 1 << 30) && params.parallelization <= 4
        }
        _ => return Err(PrivateKeyError::Scheme),
    };
    if is_cheap { Ok(()) } else { Err(PrivateKeyError::Cost) }
}
