//! A passphrase, which opens what is encrypted under it.

use std::fmt;

use zeroize::Zeroizing;

/// The bytes of a passphrase, wiped from memory when they are dropped.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// These bytes, without a last line break; `None` if nothing is left.
    #[must_use]
    pub fn of(bytes: Vec<u8>) -> Option<Self> {
        let mut bytes = Zeroizing::new(bytes);
        for end in [b'\n', b'\r'] {
            if bytes.last() == Some(&end) {
                bytes.pop();
            }
        }
        (!bytes.is_empty()).then_some(Passphrase(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_ends_before_its_line_break_and_shows_nothing() {
        for text in ["secret", "secret\n", "secret\r\n"] {
            let passphrase = Passphrase::of(text.as_bytes().to_vec()).unwrap();
            assert_eq!(passphrase.as_bytes(), b"secret");
            assert_eq!(format!("{passphrase:?}"), "Passphrase(<redacted>)");
        }
        assert!(Passphrase::of(b"\n".to_vec()).is_none());
    }
}
