//! What can go wrong between Chancery and its database.

use std::fmt;

use super::migrate;
use crate::types::{BatchId, KeyEvent, KeyStatus, Kid, RingId, Tick};

/// What can go wrong between Chancery and its database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The connection failed. Whether a commit under way took effect is unknown.
    #[error("the database is not reachable: {0}")]
    Unavailable(String),
    /// The database gave way to somebody else; the transaction did not happen.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// The database has no room or its storage fails; the transaction may not have happened.
    #[error("the database's storage fails: {0}")]
    Storage(String),
    /// The database takes no writes, until it is promoted or its setting is changed.
    #[error(
        "the database takes no writes: {0} (it is a standby that has not been promoted, or \
         default_transaction_read_only is on)"
    )]
    Standby(String),
    /// The database's file takes no writes.
    #[error("the database's file takes no writes: {0}")]
    ReadOnly(String),
    /// The database's file does not hold what it should.
    #[error(
        "the database's file is damaged: {0}; stop every process that uses it, keep a copy of it, \
         and restore it from a backup"
    )]
    Damaged(String),
    /// The database cannot be used as it was named.
    #[error("{0}")]
    Connect(String),
    /// A batch (of one ring's group; which one is known only in a group of one) breaks a rule.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The database is in an older state than one this process has seen committed.
    #[error(
        "ring {ring} is at tick {now}, but this node has seen tick {seen} committed: the database \
         has gone back to an older state (an old backup, or a fail-over that lost commits); \
         restore the newer state, or restart this node once you accept the loss"
    )]
    RolledBack {
        /// The ring.
        ring: RingId,
        /// The highest tick seen.
        seen: Tick,
        /// The tick found.
        now: Tick,
    },
    /// Nothing of that name.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// A ring, a key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A ring of that name is there already.
    #[error("there is a ring {name:?} already")]
    RingExists {
        /// Its name.
        name: String,
    },
    /// A key's status does not allow the change.
    #[error("key {kid} is {status} and cannot be {event}")]
    IllegalChange {
        /// The key.
        kid: Kid,
        /// Its status.
        status: KeyStatus,
        /// The change.
        event: KeyEvent,
    },
    /// A key that is in use cannot be destroyed.
    #[error("key {kid} is in use: disable it and destroy it when its batch has ended, or by force")]
    KeyInUse {
        /// The key.
        kid: Kid,
    },
    /// Only a quarantined batch can be sent back.
    #[error("batch {batch} is {state}: only a quarantined batch can be retried")]
    NotQuarantined {
        /// The batch.
        batch: BatchId,
        /// Its state.
        state: String,
    },
    /// The schema does not fit this program.
    #[error(transparent)]
    Schema(#[from] migrate::SchemaError),
    /// A key could not be made.
    #[error("making a key failed: {0}")]
    MakeKey(MakeKeyError),
    /// Anything else that the database said.
    #[error("the database refused: {0}")]
    Database(String),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable(_)
                | StoreError::Busy(_)
                | StoreError::Storage(_)
                | StoreError::Standby(_)
        )
    }

    /// Whether the database can do nobody's work, or not for this node, until that has passed.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.is_retryable() && !matches!(self, StoreError::Busy(_))
    }

    /// Whether the database's say was about the work that it was given, and not about itself: the
    /// batch is to blame.
    #[must_use]
    pub fn is_of_the_work(&self) -> bool {
        matches!(self, StoreError::Refused(_) | StoreError::Database(_))
    }
}

/// Why the database would not take a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A record of it has a signature already: an alarm, since the fence should have kept it out.
    DoubleSign(String),
    /// The batch has another number of records than it was made with.
    Count {
        /// As in `batches.record_count`.
        expected: u64,
        /// As handed in.
        found: u64,
    },
    /// It breaks another constraint.
    Constraint(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::DoubleSign(detail) => write!(f, "double signing prevented: {detail}"),
            Refusal::Count { expected, found } => {
                write!(f, "the batch was made with {expected} records, and {found} were signed")
            }
            Refusal::Constraint(detail) => write!(f, "a constraint refused it: {detail}"),
        }
    }
}

/// Why a new key could not be made.
pub type MakeKeyError = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_by_itself_is_tried_again_and_a_refusal_is_not() {
        let why = || "why".to_owned();
        for passing in [
            StoreError::Unavailable(why()),
            StoreError::Busy(why()),
            StoreError::Storage(why()),
            StoreError::Standby(why()),
        ] {
            assert!(passing.is_retryable(), "{passing}");
            assert!(!passing.is_of_the_work(), "{passing}");
        }
        for lasting in [
            StoreError::Connect(why()),
            StoreError::ReadOnly(why()),
            StoreError::Damaged(why()),
            StoreError::Database(why()),
            StoreError::Refused(Refusal::DoubleSign(why())),
            StoreError::RolledBack { ring: RingId(1), seen: Tick(2), now: Tick(1) },
        ] {
            assert!(!lasting.is_retryable(), "{lasting}");
        }
    }
}
