//! Chance that is the same again for the same seed.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// One stream of random choices. Each purpose has a stream of its own, so that how often one of
/// them draws changes nothing for the others.
pub(crate) struct Chance(ChaCha8Rng);

impl Chance {
    /// The stream of a purpose.
    pub(crate) fn of(seed: u64, purpose: u64) -> Chance {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(purpose);
        Chance(random)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `first` to `last`.
    pub(crate) fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// So many milliseconds, from `first` to `last`.
    pub(crate) fn milliseconds(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_millis(self.between(first, last))
    }

    /// A time that is `mean` on average, between a quarter of it and seven.
    pub(crate) fn around(&mut self, mean: Duration) -> Duration {
        mean * u32::try_from(self.between(25, 175)).unwrap() / 100
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// An index into `len` things.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}
