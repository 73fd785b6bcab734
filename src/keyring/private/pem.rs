//! Files of PEM (RFC 7468): one key or more, each in its block.

use ::pkcs8::SecretDocument;

use super::{Format, PrivateKeyError, openssh, pkcs8};
use crate::keyring::Passphrase;
use crate::signing::PrivateKey;

/// What the first block of a text is.
pub(super) fn detect(text: &str) -> Option<Format> {
    match blocks(text).next()?.label {
        "OPENSSH PRIVATE KEY" => Some(Format::OpenSsh),
        _ => Some(Format::Pkcs8),
    }
}

pub(super) fn read(
    file: &[u8],
    format: Format,
    passphrase: Option<&Passphrase>,
) -> Result<Vec<Result<PrivateKey, PrivateKeyError>>, PrivateKeyError> {
    let unreadable = match format {
        Format::OpenSsh => PrivateKeyError::OpenSsh,
        _ => PrivateKeyError::Pkcs8,
    };
    let text = std::str::from_utf8(file).map_err(|_| unreadable)?;
    let mut keys = Vec::new();
    let mut encrypted = 0;
    for block in blocks(text) {
        encrypted += usize::from(block.may_be_encrypted());
        // What one key may cost is bounded, and so is what a file of them may.
        let key = match encrypted {
            0..=MOST_ENCRYPTED => block.read(unreadable, passphrase),
            _ => Err(PrivateKeyError::Cost),
        };
        let is_last = key.is_err();
        keys.push(key);
        if is_last {
            break;
        }
    }
    if keys.is_empty() && !text.trim_ascii().is_empty() { Err(unreadable) } else { Ok(keys) }
}

/// From a line `-----BEGIN LABEL-----` to its end.
struct Block<'a> {
    label: &'a str,
    text: &'a str,
}

impl Block<'_> {
    fn may_be_encrypted(&self) -> bool {
        matches!(self.label, "OPENSSH PRIVATE KEY" | "ENCRYPTED PRIVATE KEY")
    }

    fn read(
        &self,
        unreadable: PrivateKeyError,
        passphrase: Option<&Passphrase>,
    ) -> Result<PrivateKey, PrivateKeyError> {
        match self.label {
            "OPENSSH PRIVATE KEY" => openssh::read(self.text, passphrase),
            "PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                let document = SecretDocument::from_pem(self.text);
                let (_, der) = document.map_err(|_| PrivateKeyError::Pkcs8)?;
                pkcs8::from_der(der.as_bytes(), passphrase).map_err(|error| match error {
                    PrivateKeyError::Pkcs8 if self.may_be_encrypted() => PrivateKeyError::Scheme,
                    error => error,
                })
            }
            "RSA PRIVATE KEY" => Err(PrivateKeyError::Algorithm("an RSA")),
            "EC PRIVATE KEY" => Err(PrivateKeyError::Algorithm("an elliptic-curve (ECDSA)")),
            "DSA PRIVATE KEY" => Err(PrivateKeyError::Algorithm("a DSA")),
            label if label.contains("PUBLIC KEY") || label.contains("CERTIFICATE") => {
                Err(PrivateKeyError::Public)
            }
            _ => Err(unreadable),
        }
    }
}

fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let begin = rest.find(BEGIN)?;
        let from = &rest[begin..];
        let label = from[BEGIN.len()..].lines().next()?.trim_end().strip_suffix("-----");
        // A block that does not end is read to the end of the text, and refused there.
        let end = format!("-----END {}-----", label.unwrap_or_default());
        let length = from.find(&end).map_or(from.len(), |at| at + end.len());
        rest = &from[length..];
        Some(Block { label: label.unwrap_or_default(), text: &from[..length] })
    })
}

/// How many encrypted keys one file may have.
const MOST_ENCRYPTED: usize = 16;

const BEGIN: &str = "-----BEGIN ";
