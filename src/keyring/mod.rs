//! Keys at rest: the key-encryption key, sealed private keys, and public keys for others to read.
//!
//! Nothing here knows a database; what is sealed is handed over as bytes.

mod cipher;
mod data_key;
mod kek;
mod kek_file;
mod keks;
mod passphrase;
mod seal;
mod secret_source;

pub mod jwk;
pub mod pkcs11;
pub mod private;
pub mod private_file;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use data_key::{DataKey, DataKeyError, DataKeyPlace};
pub use kek::{Kek, KekId};
pub use kek_file::{KekError, LONGEST_KEK_TEXT};
pub use keks::{Keks, LoadedKek};
pub use passphrase::Passphrase;
pub use seal::{KeyIdentity, Opener, SealError, seal, unseal};
pub use secret_source::{SecretError, read_secret};

use crate::types::UnknownWord;

/// What a key computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Algorithm {
    /// Pure Ed25519 (RFC 8032).
    Ed25519,
}

impl Algorithm {
    /// The word that stands in the database, and in every sealed key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Ed25519 => "Ed25519",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "Ed25519" => Ok(Algorithm::Ed25519),
            _ => Err(UnknownWord { what: "algorithm", value: word.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_reads_back_from_its_name() {
        assert_eq!(Algorithm::Ed25519.to_string().parse(), Ok(Algorithm::Ed25519));
        assert_eq!(
            "ed25519".parse::<Algorithm>(),
            Err(UnknownWord { what: "algorithm", value: "ed25519".to_owned() })
        );
    }
}
