//! A set of batch ids, held as ranges.
//!
//! Batch ids are handed out in sequence, so the stored batches of a long history are a few ranges
//! with holes where a batch is open, quarantined or of another ring.

use std::collections::BTreeMap;

use crate::types::BatchId;

/// A set of batches; equal sets have equal ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct BatchSet {
    /// From the first id of each range to its last, both included; ranges neither meet nor touch.
    ranges: BTreeMap<i64, i64>,
}

impl BatchSet {
    /// Whether the batch is in the set, in O(log ranges).
    pub(super) fn contains(&self, batch: BatchId) -> bool {
        self.range_up_to(batch.0).is_some_and(|(_, last)| batch.0 <= last)
    }

    /// Adds a batch in O(log ranges), and says whether it is new.
    pub(super) fn insert(&mut self, batch: BatchId) -> bool {
        let id = batch.0;
        let mut first = id;
        if let Some((lower_first, lower_last)) = self.range_up_to(id) {
            if id <= lower_last {
                return false;
            }
            if lower_last + 1 == id {
                first = lower_first;
            }
        }
        let upper_last = id.checked_add(1).and_then(|upper_first| self.ranges.remove(&upper_first));
        self.ranges.insert(first, upper_last.unwrap_or(id));
        true
    }

    /// The last range that starts at or below `id`.
    fn range_up_to(&self, id: i64) -> Option<(i64, i64)> {
        self.ranges.range(..=id).next_back().map(|(&first, &last)| (first, last))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set_of(ids: &[i64]) -> BatchSet {
        let mut set = BatchSet::default();
        for &id in ids {
            set.insert(BatchId(id));
        }
        set
    }

    #[test]
    fn ids_that_touch_become_one_range() {
        assert_eq!(set_of(&[1, 3, 5]).ranges.len(), 3);
        assert_eq!(set_of(&[1, 3, 5, 2, 4]).ranges, BTreeMap::from([(1, 5)]));
    }

    #[test]
    fn the_ends_of_the_number_range_are_ids_like_others() {
        let set = set_of(&[i64::MIN, i64::MAX, i64::MAX - 1]);
        assert!(set.contains(BatchId(i64::MIN)) && set.contains(BatchId(i64::MAX)));
        assert!(!set.contains(BatchId(0)));
        assert_eq!(set.ranges.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn ranges_hold_what_a_plain_set_holds(ids in prop::collection::vec(0_i64..60, 1..80)) {
            let mut plain = BTreeSet::new();
            let mut set = BatchSet::default();
            for &id in &ids {
                prop_assert_eq!(set.insert(BatchId(id)), plain.insert(id));
            }
            for id in -1..61 {
                prop_assert_eq!(set.contains(BatchId(id)), plain.contains(&id));
            }
            let runs = plain.iter().filter(|&&id| !plain.contains(&(id - 1))).count();
            prop_assert_eq!(set.ranges.len(), runs);
        }
    }
}
