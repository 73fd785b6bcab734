//! Tokens as their bearers have them.
//!
//! A token is `chy_` and 32 random bytes as base64url (RFC 4648, section 5). The prefix lets scanners
//! for leaked secrets find one. The database has its SHA-256 only; 256 random bits need no salt.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const PREFIX: &str = "chy_";

/// The length of a token in characters.
const LENGTH: usize = PREFIX.len() + 43;

/// A new token, and what the database keeps of it.
///
/// # Errors
/// If the operating system gives no randomness.
pub fn generate() -> Result<(Zeroizing<String>, [u8; 32]), getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())?;
    let mut token = Zeroizing::new(String::with_capacity(LENGTH));
    token.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut token);
    let hash = hash(&token);
    Ok((token, hash))
}

/// What the database keeps of a token; `None` if the text is no token.
pub(super) fn hash_if_token(text: &str) -> Option<[u8; 32]> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let is_token = text.len() == LENGTH && text.starts_with(PREFIX) && text.bytes().all(plain);
    is_token.then(|| hash(text))
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_random_and_known_by_its_hash() {
        let (one, one_hash) = generate().unwrap();
        let (other, _) = generate().unwrap();
        assert_ne!(one, other);
        assert_eq!(one.len(), LENGTH);
        assert_eq!(hash_if_token(&one), Some(one_hash));
        assert_ne!(hash_if_token(&other), Some(one_hash));
        for no_token in ["", "chy_", &one[1..], &format!("{}x", *one), &one.replace('_', " ")] {
            assert_eq!(hash_if_token(no_token), None, "{no_token}");
        }
    }
}
