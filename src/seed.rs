//! Payloads for `chancery seed`: random to look at, and the same again for the same seed.

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The largest payload that can be asked for, in bytes (64 MiB).
pub const MAX_SEED_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

/// An endless iterator over payloads.
///
/// Payload number n, counted from 0, depends on the seed, on n and on the sizes alone. It is cut
/// from stream n of ChaCha8 (D. J. Bernstein's variant, with a 64-bit stream number) under the
/// seed as a little-endian key filled up with zeros: 8 bytes choose the size, the rest is payload.
#[derive(Clone, Debug)]
pub struct SeedPayloads {
    key: [u8; 32],
    sizes: PayloadSizes,
    number: u64,
}

impl SeedPayloads {
    /// The payloads of `random_seed`, from the first on.
    #[must_use]
    pub fn new(random_seed: u64, sizes: PayloadSizes) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&random_seed.to_le_bytes());
        SeedPayloads { key, sizes, number: 0 }
    }

    fn payload(&self, number: u64) -> Vec<u8> {
        let mut random = ChaCha8Rng::from_seed(self.key);
        random.set_stream(number);
        let mut payload = vec![0; self.sizes.pick(random.next_u64())];
        random.fill_bytes(&mut payload);
        payload
    }
}

impl Iterator for SeedPayloads {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let payload = self.payload(self.number);
        self.number += 1;
        Some(payload)
    }
}

/// How large payloads are, in bytes: written `256`, or `64..4096` with both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadSizes {
    min: usize,
    max: usize,
}

impl PayloadSizes {
    /// Sizes from `min` to `max` bytes, both included.
    ///
    /// # Errors
    /// When `min` is above `max`, or `max` above 64 MiB.
    pub fn new(min: usize, max: usize) -> Result<Self, PayloadSizesError> {
        if max > MAX_SEED_PAYLOAD_BYTES || min > MAX_SEED_PAYLOAD_BYTES {
            return Err(PayloadSizesError::TooLarge);
        }
        if min > max {
            return Err(PayloadSizesError::Reversed { min, max });
        }
        Ok(PayloadSizes { min, max })
    }

    /// A size for 64 random bits, each as good as equally often.
    fn pick(self, random: u64) -> usize {
        let count = (self.max - self.min) as u128 + 1;
        self.min + ((u128::from(random) * count) >> 64) as usize
    }
}

impl fmt::Display for PayloadSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}..{}", self.min, self.max)
        }
    }
}

impl FromStr for PayloadSizes {
    type Err = PayloadSizesError;

    fn from_str(text: &str) -> Result<Self, PayloadSizesError> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        PayloadSizes::new(parse_bytes(min, text)?, parse_bytes(max, text)?)
    }
}

fn parse_bytes(digits: &str, text: &str) -> Result<usize, PayloadSizesError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PayloadSizesError::NotSizes { text: text.to_owned() });
    }
    // Digits alone fail to parse only where they are too many.
    digits.parse().map_err(|_| PayloadSizesError::TooLarge)
}

/// Why a text does not say how large payloads are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadSizesError {
    /// Neither a number nor a range.
    #[error("{text:?} is not a size in bytes like 256, nor a range of sizes like 64..4096")]
    NotSizes {
        /// What was given.
        text: String,
    },
    /// A range that ends before it starts.
    #[error("the range {min}..{max} ends before it starts")]
    Reversed {
        /// Its start.
        min: usize,
        /// Its end.
        max: usize,
    },
    /// A size above the limit.
    #[error("a payload has at most {MAX_SEED_PAYLOAD_BYTES} bytes (64 MiB)")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn payloads(random_seed: u64, sizes: &str) -> SeedPayloads {
        SeedPayloads::new(random_seed, sizes.parse().expect("sizes"))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_first_bytes_never_change() {
        // Key 0 and nonce 0 of draft-strombergson-chacha-test-vectors-01, TC1, 8 rounds; the
        // keystream's first 8 bytes, 3e00ef2f895f40d6, choose the size.
        assert_eq!(
            payloads(0, "24").next().map(|p| hex(&p)).as_deref(),
            Some("7f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e")
        );
        let pinned: Vec<_> = payloads(42, "4..16").take(4).map(|p| hex(&p)).collect();
        assert_eq!(
            pinned,
            [
                "2bf79d16a48a2349",
                "496b156076abb433faeb9153a4e6",
                "b35b939595f2",
                "be0c4a3d7ab805ac3f"
            ]
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_payloads_in_chunks_of_any_size() {
        let at_once: Vec<_> = payloads(7, "0..600").take(100).collect();
        let mut stream = payloads(7, "0..600");
        let mut in_chunks = Vec::new();
        for chunk in [1, 9, 0, 40, 50] {
            in_chunks.extend(stream.by_ref().take(chunk));
        }
        assert_eq!(in_chunks.len(), 100);
        assert_eq!(in_chunks, at_once);
        assert_eq!(payloads(7, "0..600").nth(99), at_once.last().cloned());
    }

    #[test]
    fn payloads_and_seeds_differ_from_each_other() {
        let mut seen = HashSet::new();
        for random_seed in [0, 1, u64::MAX] {
            for payload in payloads(random_seed, "32").take(500) {
                assert!(seen.insert(payload));
            }
        }
        assert_eq!(seen.len(), 1500);
    }

    #[test]
    fn a_range_includes_both_its_ends_and_every_size_between() {
        let sizes: HashSet<_> = payloads(1, "3..6").take(200).map(|p| p.len()).collect();
        assert_eq!(sizes, HashSet::from([3, 4, 5, 6]));
        let sizes = PayloadSizes::new(64, 4096).expect("a range");
        assert_eq!((sizes.pick(0), sizes.pick(u64::MAX)), (64, 4096));
        assert_eq!(payloads(1, "0").next(), Some(Vec::new()));
    }

    #[test]
    fn sizes_read_back_as_they_are_written() {
        for text in ["256", "64..4096", "0..67108864"] {
            assert_eq!(text.parse::<PayloadSizes>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("5..5".parse::<PayloadSizes>(), "5".parse());
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "..", "1..", "..9", "a", "-1", "+1", "1 ", "1..=9", "1...9", "1k", "1..2..3"]
        {
            assert_eq!(
                text.parse::<PayloadSizes>(),
                Err(PayloadSizesError::NotSizes { text: text.to_owned() })
            );
        }
        for text in ["67108865", "1..67108865", "99999999999999999999999", "67108866..67108865"] {
            assert_eq!(text.parse::<PayloadSizes>(), Err(PayloadSizesError::TooLarge), "{text}");
        }
        assert_eq!(
            "9..1".parse::<PayloadSizes>().map_err(|error| error.to_string()),
            Err("the range 9..1 ends before it starts".to_owned())
        );
    }
}
