//! What keeps this node from its work, as its actors notice it: for the node's report and its
//! snapshots. The log has the details.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where a trouble shows. Each place has one at the most, the last one noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The checkout of batches, and the search for them.
    CheckOut,
    /// The store of signatures.
    Store,
    /// The renewal of leases, and the look at the keys.
    Housekeeping,
    /// The reclaim of expired uses.
    Reclaim,
    /// A ring without a key.
    Waiting,
    /// A token that does not sign.
    Token,
    /// A long transaction of somebody's.
    Blocker,
}

impl Place {
    fn word(self) -> &'static str {
        match self {
            Place::CheckOut => "checkout",
            Place::Store => "store",
            Place::Housekeeping => "renewal",
            Place::Reclaim => "reclaim",
            Place::Waiting => "no active key",
            Place::Token => "token",
            Place::Blocker => "long transaction",
        }
    }
}

/// The node's troubles, shared by its actors.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<Place, String>>>);

impl Troubles {
    /// Notes the result of some work: an error is a trouble until the same work succeeds.
    pub(super) fn note<T, E: ToString>(&self, place: Place, result: &Result<T, E>) {
        match result {
            Ok(_) => self.clear(place),
            Err(error) => self.set(place, error.to_string()),
        }
    }

    pub(super) fn set(&self, place: Place, trouble: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, trouble);
    }

    pub(super) fn clear(&self, place: Place) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
    }

    /// Where there are troubles that keep this node from its work, each place by a word. Somebody's
    /// long transaction is not among them: it slows all nodes down, and may harm nothing.
    #[must_use]
    pub fn places(&self) -> Vec<&'static str> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles
            .keys()
            .filter(|place| **place != Place::Blocker)
            .map(|place| place.word())
            .collect()
    }

    /// All of them in one line, each once; `None` if there are none.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said: Vec<&str> = Vec::new();
        for trouble in troubles.values() {
            if !said.contains(&trouble.as_str()) {
                said.push(trouble);
            }
        }
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// How long a trouble that lasts is not told again in the log.
const REMINDER_PAUSE: Duration = Duration::from_secs(10);

/// Whether a trouble that comes with every attempt is to be told now: at once, then now and again.
#[derive(Debug, Default)]
pub(super) struct Reminder(Option<Instant>);

impl Reminder {
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|told| told.elapsed() >= REMINDER_PAUSE);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }

    /// It is over: the next one is told at once.
    pub(super) fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_lasts_is_told_at_once_and_not_with_every_attempt() {
        let mut reminder = Reminder::default();
        assert!(reminder.is_due());
        assert!(!reminder.is_due());
        reminder.reset();
        assert!(reminder.is_due());
        reminder.0 = Instant::now().checked_sub(REMINDER_PAUSE);
        assert!(reminder.is_due());
    }

    #[test]
    fn a_trouble_lasts_until_the_same_work_succeeds() {
        let troubles = Troubles::default();
        assert_eq!(troubles.summary(), None);
        troubles.note(Place::CheckOut, &Err::<(), _>("the disk is full"));
        troubles.note(Place::Store, &Err::<(), _>("the disk is full"));
        troubles.note(Place::Waiting, &Err::<(), _>("no active key"));
        assert_eq!(troubles.summary().as_deref(), Some("the disk is full; no active key"));
        troubles.note(Place::Waiting, &Ok::<(), String>(()));
        troubles.note(Place::CheckOut, &Ok::<(), String>(()));
        assert_eq!(troubles.summary().as_deref(), Some("the disk is full"));
        troubles.note(Place::Store, &Ok::<(), String>(()));
        assert_eq!(troubles.summary(), None);
    }
}
