//! Which rings are signed, and the batch sizes of those that have one of their own.

use std::fmt;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::value::{checked, is_plain};
use crate::types::BatchSize;

/// Whether a new ring may have that name: 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a
/// letter or a digit. It stands in paths, in lists with commas, and in labels.
#[must_use]
pub fn is_ring_name(name: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.starts_with(is_alphanumeric)
        && name.chars().all(|c| is_alphanumeric(c) || "._-".contains(c))
}

/// The rings that a process signs or serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingNames {
    /// Those that there are when it starts.
    All,
    /// These, each once and at least one.
    These(Vec<String>),
}

impl Default for RingNames {
    fn default() -> Self {
        RingNames::These(vec!["default".to_owned()])
    }
}

impl RingNames {
    fn read(text: &str) -> Option<RingNames> {
        if text.trim() == "*" {
            return Some(RingNames::All);
        }
        if !is_plain(text) {
            return None;
        }
        let mut names: Vec<String> = Vec::new();
        for name in text.split(',').map(str::trim) {
            let is_new = !names.iter().any(|known| known == name);
            if name.is_empty() || name == "*" || !is_new {
                return None;
            }
            names.push(name.to_owned());
        }
        Some(RingNames::These(names))
    }
}

impl fmt::Display for RingNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingNames::All => f.write_str("*"),
            RingNames::These(names) => f.write_str(&names.join(",")),
        }
    }
}

impl Serialize for RingNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RingNames {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        names(from)
    }
}

/// Names of rings.
pub(super) fn names<'de, D: Deserializer<'de>>(from: D) -> Result<RingNames, D::Error> {
    checked(
        from,
        "a ring's name, several different ones with commas between them, or \"*\"",
        RingNames::read,
    )
}

/// The batch sizes of rings that have one of their own, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingBatchSizes(Vec<(String, BatchSize)>);

impl RingBatchSizes {
    /// That of a ring, if it has one.
    #[must_use]
    pub fn of(&self, ring: &str) -> Option<BatchSize> {
        self.0.iter().find(|(name, _)| name == ring).map(|(_, size)| *size)
    }

    /// The rings that have one.
    pub fn rings(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn read(text: &str) -> Option<RingBatchSizes> {
        let mut sizes = RingBatchSizes::default();
        if text.is_empty() {
            return Some(sizes);
        }
        if !is_plain(text) {
            return None;
        }
        for one in text.split(',') {
            let (name, records) = one.split_once('=')?;
            let (name, records) = (name.trim(), records.trim().parse::<u32>().ok()?);
            if name.is_empty() || name == "*" || sizes.of(name).is_some() || records > 1_000_000 {
                return None;
            }
            sizes.0.push((name.to_owned(), BatchSize(records.try_into().ok()?)));
        }
        Some(sizes)
    }
}

impl fmt::Display for RingBatchSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, size)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{name}={}", size.records())?;
        }
        Ok(())
    }
}

impl Serialize for RingBatchSizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RingBatchSizes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        batch_sizes(from)
    }
}

/// Batch sizes by ring.
pub(super) fn batch_sizes<'de, D: Deserializer<'de>>(from: D) -> Result<RingBatchSizes, D::Error> {
    checked(
        from,
        "batch sizes from 1 to 1000000 by ring, each ring once, such as invoices=100,receipts=1000",
        RingBatchSizes::read,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_ring_has_a_name_that_fits_into_paths_lists_and_labels() {
        for good in ["default", "a", "0", "invoices-2026.q1_b", &"a".repeat(64)] {
            assert!(is_ring_name(good), "{good:?}");
        }
        for bad in
            ["", "A", "-a", ".a", "_a", "a b", "a,b", "a/b", "a=1", "*", "ä", &"a".repeat(65)]
        {
            assert!(!is_ring_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn rings_are_one_name_several_or_all_and_read_back_as_they_are_written() {
        let these = |names: &[&str]| {
            Some(RingNames::These(names.iter().map(|name| (*name).to_owned()).collect()))
        };
        assert_eq!(RingNames::read("default"), these(&["default"]));
        assert_eq!(RingNames::read(" a, b ,c"), these(&["a", "b", "c"]));
        assert_eq!(RingNames::read("*"), Some(RingNames::All));
        for bad in ["", " ", "a,", ",a", "a,,b", "a,a", "a,*", "a\n,b"] {
            assert_eq!(RingNames::read(bad), None, "{bad:?}");
        }
        for text in ["*", "a,b"] {
            assert_eq!(RingNames::read(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn batch_sizes_are_in_range_and_of_each_ring_once() {
        let sizes = RingBatchSizes::read("invoices=100, receipts = 1000000").unwrap();
        assert_eq!(sizes.of("invoices").unwrap().records(), 100);
        assert_eq!(sizes.of("receipts").unwrap().records(), 1_000_000);
        assert_eq!(sizes.of("default"), None);
        assert_eq!(sizes.to_string(), "invoices=100,receipts=1000000");
        assert_eq!(RingBatchSizes::read(""), Some(RingBatchSizes::default()));
        for bad in [
            " ",
            "\r",
            "a",
            "a=",
            "=1",
            "a=0",
            "a=1000001",
            "a=-1",
            "a=1,a=2",
            "a=1,",
            "*=1",
            "a=1.5",
        ] {
            assert_eq!(RingBatchSizes::read(bad), None, "{bad:?}");
        }
    }
}
