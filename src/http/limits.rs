//! How much each client may ask: requests by token, or else by address, and tokens tried in vain.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::problem::Problem;
use crate::types::TokenId;

/// How many tokens that are none an address may try in a second.
const FAILURES_PER_S: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// How many clients are remembered; beyond that all are forgotten, which costs one burst each.
const MOST_CLIENTS: usize = 10_000;

/// What clients may still ask.
pub(super) struct Limits {
    by_token: Option<Buckets<TokenId>>,
    by_address: Option<Buckets<Option<IpAddr>>>,
    failures: Buckets<Option<IpAddr>>,
}

impl Limits {
    /// With so many requests a second for each client; without a limit for 0.
    pub(super) fn new(requests_per_s: u32) -> Self {
        let per_s = NonZeroU32::new(requests_per_s);
        Limits {
            by_token: per_s.map(Buckets::new),
            by_address: per_s.map(Buckets::new),
            failures: Buckets::new(FAILURES_PER_S),
        }
    }

    pub(super) fn check_token(&self, token: TokenId) -> Result<(), Problem> {
        self.by_token.as_ref().map_or(Ok(()), |buckets| buckets.take(token))
    }

    pub(super) fn check_address(&self, address: Option<IpAddr>) -> Result<(), Problem> {
        self.by_address.as_ref().map_or(Ok(()), |buckets| buckets.take(address))
    }

    /// Notes that an address has tried a token that is none. A valid one from there is heard all the
    /// same: 256 bits are not guessed, and others may share the address.
    pub(super) fn note_failure(&self, address: Option<IpAddr>) -> Result<(), Problem> {
        self.failures.take(address)
    }
}

/// A bucket for each client, made when it first asks.
struct Buckets<K> {
    quota: Quota,
    buckets: Mutex<HashMap<K, Arc<DefaultDirectRateLimiter>>>,
    clock: DefaultClock,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(per_s: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_s);
        Buckets { quota, buckets: Mutex::default(), clock: DefaultClock::default() }
    }

    fn bucket(&self, client: K) -> Arc<DefaultDirectRateLimiter> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_CLIENTS && !buckets.contains_key(&client) {
            buckets.clear();
        }
        let new = || Arc::new(RateLimiter::direct(self.quota));
        Arc::clone(buckets.entry(client).or_insert_with(new))
    }

    fn take(&self, client: K) -> Result<(), Problem> {
        self.bucket(client).check().map_err(|refused| {
            Problem::too_many_requests(refused.wait_time_from(self.clock.now()).as_secs() + 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_asks_too_much_is_refused_and_others_are_not() {
        let limits = Limits::new(3);
        let (one, other) = (TokenId(1), TokenId(2));
        let taken = (0..10).filter(|_| limits.check_token(one).is_ok()).count();
        assert!((3..=5).contains(&taken), "{taken}");
        assert!(limits.check_token(other).is_ok());
        assert!(limits.check_address(None).is_ok());
    }

    #[test]
    fn without_a_limit_nobody_is_refused() {
        let limits = Limits::new(0);
        assert!((0..100_000).all(|_| limits.check_token(TokenId(1)).is_ok()));
    }

    #[test]
    fn who_tries_tokens_in_vain_is_told_to_slow_down() {
        let limits = Limits::new(0);
        let from = |n: u8| Some(IpAddr::from([127, 0, 0, n]));
        let told = (0..100).filter(|_| limits.note_failure(from(1)).is_err()).count();
        assert!(told > 50, "{told}");
        assert!(limits.note_failure(from(2)).is_ok());
    }

    #[test]
    fn what_is_remembered_of_clients_is_bounded() {
        let limits = Limits::new(1);
        for n in 0..3 * MOST_CLIENTS {
            let _ = limits.check_token(TokenId(n as i64));
        }
        let buckets = limits.by_token.as_ref().unwrap();
        assert!(buckets.buckets.lock().unwrap().len() <= MOST_CLIENTS);
    }
}
