//! What a replay finds: which rule was broken, where, and how.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::{Event, OpenUse};
use crate::types::{BatchId, Fence, KeyEvent, KeyId, KeyStatus, Tick};

/// One breach of one rule at one tick.
///
/// As JSON it is flat: `rule`, `tick`, `key` and `batch` (null where none is concerned), and
/// `message`, the sentence of its [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    tick: Tick,
    key: Option<KeyId>,
    batch: Option<BatchId>,
    fault: Fault,
}

impl Violation {
    /// A fault of the event itself.
    pub(super) fn of(event: &Event, fault: Fault) -> Self {
        Violation { tick: event.tick(), key: Some(event.key()), batch: event.batch(), fault }
    }

    /// No event from `first` to `last`, both included.
    pub(super) fn missing_ticks(first: Tick, last: Tick) -> Self {
        Violation { tick: first, key: None, batch: None, fault: Fault::TicksMissing { last } }
    }

    /// Events up to `last`, above the ring's own tick.
    pub(super) fn beyond_the_ring(ring_tick: Tick, last: Tick) -> Self {
        let fault = Fault::BeyondTheRing { ring_tick };
        Violation { tick: last, key: None, batch: None, fault }
    }

    /// The rule that was broken.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.fault.rule()
    }

    /// The tick of the guilty event; for missing ticks, the first of them.
    #[must_use]
    pub fn tick(&self) -> Tick {
        self.tick
    }

    /// The key concerned, if any.
    #[must_use]
    pub fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// The batch concerned, if any.
    #[must_use]
    pub fn batch(&self) -> Option<BatchId> {
        self.batch
    }

    /// What was expected and what was found.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken at tick {}", self.rule(), self.tick)?;
        if let Some(key) = self.key {
            write!(f, ", key {key}")?;
        }
        if let Some(batch) = self.batch {
            write!(f, ", batch {batch}")?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl std::error::Error for Violation {}

impl Serialize for Violation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Violation", 5)?;
        fields.serialize_field("rule", &self.rule())?;
        fields.serialize_field("tick", &self.tick)?;
        fields.serialize_field("key", &self.key)?;
        fields.serialize_field("batch", &self.batch)?;
        fields.serialize_field("message", &self.fault.to_string())?;
        fields.end()
    }
}

/// The rules that a replay can judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Rule {
    /// Every tick from 1 to the ring's is exactly one event.
    #[serde(rename = "ticks")]
    Ticks,
    /// A batch is stored at most once.
    R1,
    /// A key is never used concurrently.
    R2,
    /// A batch has at most one open use, and an end closes the use that was opened.
    R3,
    /// The free key that was least recently used is taken; no other key ever.
    R4,
    /// A key's events follow one another as its life allows.
    #[serde(rename = "key_events")]
    KeyEvents,
    /// The administrators' log is a chain without a gap.
    #[serde(rename = "admin_log")]
    AdminLog,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rule::Ticks => "ticks",
            Rule::R1 => "R1",
            Rule::R2 => "R2",
            Rule::R3 => "R3",
            Rule::R4 => "R4",
            Rule::KeyEvents => "key events",
            Rule::AdminLog => "admin log",
        })
    }
}

/// How a rule was broken: what was expected, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Ticks without an event, from the violation's tick on.
    #[error("expected one event at each tick, found none from here up to tick {last}")]
    TicksMissing {
        /// The last tick of the gap.
        last: Tick,
    },
    /// An event at a tick that is already past.
    #[error("expected an event after tick {last}, found a second or a late one")]
    TickTaken {
        /// The highest tick before the event.
        last: Tick,
    },
    /// Events above the ring's clock.
    #[error("expected no event after the ring's own tick {ring_tick}, found events up to here")]
    BeyondTheRing {
        /// The ring's clock.
        ring_tick: Tick,
    },
    /// A checkout of a batch whose signatures are stored.
    #[error("expected no checkout of a batch that is stored, found one")]
    StoredBatchCheckedOut,
    /// A second end of a batch as stored.
    #[error("expected one stored use of the batch, found a second with fence {fence}")]
    BatchStoredTwice {
        /// The second use.
        fence: Fence,
    },
    /// A checkout of a key that is in use.
    #[error(
        "expected a key that is not in use, found it in use since the checkout at tick {since}"
    )]
    KeyInUse {
        /// The use that holds the key.
        since: Fence,
    },
    /// A checkout of a batch that has an open use.
    #[error("expected a batch without an open use, found one open since tick {since}")]
    BatchInUse {
        /// The use that is open.
        since: Fence,
    },
    /// An end of a use that is not open.
    #[error("expected an open use with fence {fence}, found none")]
    NoOpenUse {
        /// The fence that the end names.
        fence: Fence,
    },
    /// An end that names another key or batch than its fence was given out for.
    #[error(
        "expected the end of the use with fence {} to name key {} and batch {}, found others",
        .open.fence, .open.key, .open.batch
    )]
    OtherUseEnded {
        /// The open use with that fence.
        open: OpenUse,
    },
    /// A checkout of a key while another free key was less recently used.
    #[error(
        "expected key {least}, last used at tick {least_tick}, \
         found one last used at tick {taken_tick}"
    )]
    KeyPassedOver {
        /// The key that should have been taken.
        least: KeyId,
        /// When that key was last used.
        least_tick: Tick,
        /// When the key that was taken was last used.
        taken_tick: Tick,
    },
    /// A checkout of a key that must not sign.
    #[error("expected an active key, found one that is {status}")]
    KeyNotActive {
        /// Its status.
        status: KeyStatus,
    },
    /// A checkout of a key that was never added.
    #[error("expected a key of the ring, found one that was never added")]
    KeyUnknown,
    /// A key event that the key's status does not allow.
    #[error("expected {} to be {event}, found {}", allowed(*.event), status_words(*.status))]
    KeyEventOutOfPlace {
        /// The event.
        event: KeyEvent,
        /// The key's status before it; `None` if the key was never added.
        status: Option<KeyStatus>,
    },
    /// A key destroyed while it is in use.
    #[error("expected no use of a key that is destroyed, found one open since tick {since}")]
    DestroyedInUse {
        /// The use that is open.
        since: Fence,
    },
}

impl Fault {
    /// The rule that it breaks.
    #[must_use]
    pub fn rule(&self) -> Rule {
        match self {
            Fault::TicksMissing { .. } | Fault::TickTaken { .. } | Fault::BeyondTheRing { .. } => {
                Rule::Ticks
            }
            Fault::StoredBatchCheckedOut | Fault::BatchStoredTwice { .. } => Rule::R1,
            Fault::KeyInUse { .. } => Rule::R2,
            Fault::BatchInUse { .. } | Fault::NoOpenUse { .. } | Fault::OtherUseEnded { .. } => {
                Rule::R3
            }
            Fault::KeyPassedOver { .. } | Fault::KeyNotActive { .. } | Fault::KeyUnknown => {
                Rule::R4
            }
            Fault::KeyEventOutOfPlace { .. } | Fault::DestroyedInUse { .. } => Rule::KeyEvents,
        }
    }
}

fn allowed(event: KeyEvent) -> &'static str {
    match event {
        KeyEvent::Added => "a key that is not in the ring",
        KeyEvent::Enabled => "a disabled key",
        KeyEvent::Disabled => "an active key",
        KeyEvent::Retired => "an active or disabled key",
        KeyEvent::Destroyed => "a key of the ring that is not yet destroyed",
    }
}

fn status_words(status: Option<KeyStatus>) -> &'static str {
    match status {
        None => "one that was never added",
        Some(KeyStatus::Active) => "one that is active",
        Some(KeyStatus::Disabled) => "one that is disabled",
        Some(KeyStatus::Retired) => "one that is retired",
        Some(KeyStatus::Destroyed) => "one that is destroyed",
    }
}
