//! What becomes of expired uses when the database could do no work for a while.
//!
//! A lease that runs out in an outage says nothing of its node, and to reclaim it would be one of the
//! batch's few attempts. So after an outage everybody gets half a lease to renew, and those of a
//! database that fails again and again no more than a lease in all: the dead must not be waited for.

use std::time::Duration;

/// The outages that a node has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outages {
    lease: Duration,
    state: State,
    /// When the respite began that one outage after another has put off.
    respite_since: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none: whose lease ran out did not renew it.
    None,
    /// It goes on.
    On { since: Duration },
    /// It ended, and until then everybody has time to renew.
    Over { until: Duration },
}

impl Outages {
    pub(super) fn new(lease: Duration) -> Self {
        Outages { lease, state: State::None, respite_since: None }
    }

    /// Notes that the database could do no work.
    pub(super) fn failed(&mut self, now: Duration) {
        if !matches!(self.state, State::On { .. }) {
            self.state = State::On { since: now };
        }
    }

    /// Notes that it did some.
    pub(super) fn succeeded(&mut self, now: Duration) {
        let State::On { since } = self.state else { return };
        let was_long = now.saturating_sub(since) >= self.lease;
        let respite_since = match self.respite_since {
            Some(began) if !was_long && now < began + 2 * self.lease => began,
            _ => now,
        };
        self.respite_since = Some(respite_since);
        let until = (now + self.lease / 2).min(respite_since + self.lease);
        self.state = if now < until { State::Over { until } } else { State::None };
    }

    /// Whether expired uses are left alone for now.
    pub(super) fn give_respite(&mut self, now: Duration) -> bool {
        if matches!(self.state, State::Over { until } if now >= until) {
            self.state = State::None;
        }
        self.state != State::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn after_an_outage_there_is_half_a_lease_to_renew() {
        let mut outages = Outages::new(LEASE);
        assert!(!outages.give_respite(at(0)));
        outages.failed(at(1));
        assert!(outages.give_respite(at(60)));
        outages.succeeded(at(60));
        assert!(outages.give_respite(at(64)));
        assert!(!outages.give_respite(at(65)));
        outages.succeeded(at(70));
        assert!(!outages.give_respite(at(70)));
    }

    #[test]
    fn outages_without_end_put_a_reclaim_off_for_a_lease_at_most() {
        let mut outages = Outages::new(LEASE);
        for second in 0..10 {
            outages.failed(at(second));
            outages.succeeded(at(second));
            assert!(outages.give_respite(at(second)), "{second}");
        }
        outages.failed(at(10));
        outages.succeeded(at(10));
        assert!(!outages.give_respite(at(10)));
    }

    #[test]
    fn a_long_outage_after_a_short_one_gives_a_respite_of_its_own() {
        let mut outages = Outages::new(LEASE);
        outages.failed(at(0));
        outages.succeeded(at(1));
        outages.failed(at(2));
        outages.succeeded(at(14));
        assert!(outages.give_respite(at(18)));
        assert!(!outages.give_respite(at(19)));
    }
}
