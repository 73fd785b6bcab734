//! Private keys as others write them: PKCS#8, OpenSSH, JWK and raw seeds.
//!
//! Whatever holds a public key as well is held to it. No error quotes what it has read.

mod hex;
mod jwk;
mod openssh;
mod pem;
mod pkcs8;

use std::fmt;

pub use jwk::{from_jwk, is_for_signing};

use super::Passphrase;
use crate::signing::PrivateKey;

/// How private keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PKCS#8 (RFC 5958, RFC 8410), in DER or PEM, plain or encrypted by PBES2 (RFC 8018).
    Pkcs8,
    /// `openssh-key-v1`, as ssh-keygen writes it, plain or encrypted.
    OpenSsh,
    /// A JWK of the type OKP (RFC 8037), or a set of them (RFC 7517).
    Jwk,
    /// The seed of RFC 8032 as 64 hexadecimal digits, one a line.
    Hex,
}

/// Reads every private key of a file, in the format that it is in or, with `format`, in that one only.
///
/// # Errors
/// The first key that is none, or of another kind; and that there is no key at all.
pub fn read_keys(
    file: &[u8],
    format: Option<Format>,
    passphrase: Option<&Passphrase>,
) -> Result<Vec<PrivateKey>, KeyFileError> {
    let alone = |error| KeyFileError { entry: None, error };
    let format = match format {
        Some(format) => format,
        None => detect(file).ok_or_else(|| {
            let is_empty = file.iter().all(u8::is_ascii_whitespace);
            alone(if is_empty { PrivateKeyError::Empty } else { PrivateKeyError::Unknown })
        })?,
    };
    let keys = match format {
        Format::Pkcs8 if is_der(file) => {
            vec![pkcs8::from_der(file, passphrase)]
        }
        Format::Pkcs8 | Format::OpenSsh => pem::read(file, format, passphrase).map_err(alone)?,
        Format::Jwk => jwk::read(file).map_err(alone)?,
        Format::Hex => hex::read(file),
    };
    let is_one = keys.len() == 1;
    let numbered = keys.into_iter().enumerate().map(|(index, key)| {
        key.map_err(|error| KeyFileError { entry: (!is_one).then_some(index + 1), error })
    });
    let keys = numbered.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(alone(PrivateKeyError::Empty)) } else { Ok(keys) }
}

/// Whether a file is one SEQUENCE of DER (X.690, section 8.1), and no text that begins with a zero.
fn is_der(file: &[u8]) -> bool {
    match file {
        [0x30, length, rest @ ..] => *length >= 0x80 || usize::from(*length) == rest.len(),
        _ => false,
    }
}

fn detect(file: &[u8]) -> Option<Format> {
    let text = file.trim_ascii_start();
    if text.starts_with(b"{") {
        Some(Format::Jwk)
    } else if hex::looks_so(file) {
        Some(Format::Hex)
    } else if is_der(file) {
        Some(Format::Pkcs8)
    } else if let Ok(text) = std::str::from_utf8(file) {
        pem::detect(text)
    } else {
        None
    }
}

/// Why a file's keys cannot be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFileError {
    /// Which of its keys, from 1, if there are several.
    pub entry: Option<usize>,
    /// What is wrong with it.
    pub error: PrivateKeyError,
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.entry {
            write!(f, "key {entry} of it: ")?;
        }
        self.error.fmt(f)
    }
}

impl std::error::Error for KeyFileError {}

/// Why a private key cannot be taken in. It never quotes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateKeyError {
    /// There is none.
    #[error("there is no private key in it")]
    Empty,
    /// It is in none of the formats.
    #[error(
        "this is no private key that is known: it must be PKCS#8 (PEM or DER), an OpenSSH private key, \
         a JWK, or 64 hexadecimal digits"
    )]
    Unknown,
    /// It holds only what everybody may know.
    #[error("this is a public key or a certificate: the private key is needed")]
    Public,
    /// It is a key of another kind.
    #[error(
        "this is {0} key: Chancery signs with Ed25519, as `openssl genpkey -algorithm ed25519` makes"
    )]
    Algorithm(&'static str),
    /// It is no PKCS#8 private key.
    #[error(
        "this is no Ed25519 private key of PKCS#8 (RFC 8410), as `openssl genpkey -algorithm ed25519` \
         writes it"
    )]
    Pkcs8,
    /// It is no OpenSSH private key.
    #[error("this is no OpenSSH private key, as `ssh-keygen -t ed25519` writes it")]
    OpenSsh,
    /// It is encrypted.
    #[error("it is encrypted, and no passphrase was given")]
    NeedsPassphrase,
    /// The passphrase is not its own.
    #[error("it does not open: the passphrase is wrong, or it is damaged")]
    WrongPassphrase,
    /// It is encrypted in a way that is not known, or not safe.
    #[error("it is encrypted by a scheme that is not taken: it must be PBES2 with AES")]
    Scheme,
    /// Opening it would take too long, or too much memory.
    #[error(
        "opening it would cost too much: at most 10,000,000 rounds of PBKDF2, 1 GiB and 4 lanes of \
         scrypt, or 1,000 rounds of bcrypt, and 16 encrypted keys a file"
    )]
    Cost,
    /// It is no JSON, or not the members of a JWK.
    #[error("this is no JWK, nor a set of them (RFC 7517)")]
    Jwk,
    /// It is no JWK of Ed25519.
    #[error("the JWK must have kty OKP and crv Ed25519 (RFC 8037)")]
    JwkType,
    /// The JWK is not for signing.
    #[error("the JWK's alg, use or key_ops say that it is not for EdDSA signatures")]
    JwkUse,
    /// `d` or `x` are not 32 bytes.
    #[error("the JWK's d and x must be 32 bytes each, as base64url without padding")]
    JwkBytes,
    /// The line is no seed.
    #[error("a seed has 64 hexadecimal digits")]
    Hex,
    /// The public key is another's.
    #[error("the public key beside it is not that of the private key")]
    Mismatch,
}

#[cfg(test)]
mod tests;
