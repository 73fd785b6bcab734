//! The words of Chancery as types: identifiers, logical time and the closed lists of states.
//!
//! Every identifier is a newtype, so that a key cannot be handed over where a batch is meant.
//! Nothing here knows a database, an actor or a secret.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A row of `rings`.
    RingId
}
id! {
    /// A row of `keys`.
    KeyId
}
id! {
    /// A row of `records`.
    RecordId
}
id! {
    /// A row of `batches`.
    BatchId
}
id! {
    /// A row of `tokens`.
    TokenId
}
id! {
    /// The ring's logical clock: plus one for each event on the ring, without a gap.
    Tick
}

impl Default for Tick {
    fn default() -> Self {
        Tick::ZERO
    }
}

impl Tick {
    /// The clock of a ring on which nothing has happened yet.
    pub const ZERO: Tick = Tick(0);

    /// The tick of the next event.
    #[must_use]
    pub fn next(self) -> Tick {
        Tick(self.0 + 1)
    }
}

/// The tick of a checkout; unique in its ring, and the token that a store must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub Tick);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One start of one process: the node's name, its process id and a random part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key's public name: its JWK thumbprint by RFC 7638 (SHA-256, base64url without padding).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kid(pub String);

impl fmt::Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many records a full batch holds: the user's choice, fixed while the process runs (R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchSize(pub NonZeroU32);

impl BatchSize {
    /// The number of records.
    #[must_use]
    pub fn records(self) -> u32 {
        self.0.get()
    }
}

/// A record's place in its ring's order of signing: by inserting transaction, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The inserting transaction's id plus the database's offset; 0 on SQLite.
    pub xid: i64,
    /// The record.
    pub id: RecordId,
}

impl Position {
    /// Before every record.
    pub const START: Position = Position { xid: -1, id: RecordId(-1) };
}

/// The records of a batch: those of its ring from `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRange {
    /// The first record.
    pub low: Position,
    /// The last record.
    pub high: Position,
    /// How many records the range held when the batch was made.
    pub record_count: u32,
}

/// A record as it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's place in the ring's order.
    pub position: Position,
    /// The exact bytes that are signed.
    pub payload: Vec<u8>,
}

/// A value that is not in a closed list, most likely written by a newer version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {value:?}")]
pub struct UnknownWord {
    /// The list.
    pub what: &'static str,
    /// The value found.
    pub value: String,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word that stands in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err(UnknownWord { what: $what, value: word.to_owned() }),
                }
            }
        }
    };
}

words! {
    /// What a key may be used for.
    KeyStatus, "key status" {
        /// It signs.
        Active = "active",
        /// It does not sign until it is enabled again.
        Disabled = "disabled",
        /// It never signs again; its public key stays published.
        Retired = "retired",
        /// Its private key has been wiped.
        Destroyed = "destroyed",
    }
}

words! {
    /// Where a batch stands.
    BatchState, "batch state" {
        /// A key use for it is open.
        Open = "open",
        /// All its signatures are stored.
        Stored = "stored",
        /// Its use ended without a store; the next checkout takes it first.
        Retry = "retry",
        /// It failed too often and holds nobody up any more.
        Quarantined = "quarantined",
    }
}

words! {
    /// How a key use ended.
    Outcome, "outcome" {
        /// With all signatures of its batch stored.
        Stored = "stored",
        /// Its lease ran out, and another ended it.
        Reclaimed = "reclaimed",
        /// Its own node gave it up.
        Abandoned = "abandoned",
    }
}

words! {
    /// What a node is doing.
    NodeState, "node state" {
        /// It starts new batches.
        Running = "running",
        /// It starts none until it is resumed.
        Paused = "paused",
        /// It finishes what is in flight, and then stops.
        Draining = "draining",
        /// It has ended in good order.
        Stopped = "stopped",
    }
}

words! {
    /// How somebody's long transaction holds Chancery up.
    BlockerKind, "kind of blocker" {
        /// It has written: what was inserted since it began is not signed before it ends.
        Writer = "writer",
        /// The same, by a transaction that was prepared for a two-phase commit and left so.
        Prepared = "prepared",
        /// It reads from an old snapshot: checkouts grow slower until it ends.
        Snapshot = "snapshot",
    }
}

words! {
    /// What a token's bearer may do over HTTP.
    Role, "role" {
        /// Look at everything but secrets, and pick signatures up.
        Reader = "reader",
        /// Steer: pause, resume, drain, retry, audit; and all that a reader may.
        Operator = "operator",
        /// Make keys and change their status; and all that a reader may.
        KeyAdmin = "key-admin",
        /// Add records, and nothing else.
        Writer = "writer",
    }
}

impl Role {
    /// Whether who has this role may do what `needed` is asked for.
    #[must_use]
    pub fn covers(self, needed: Role) -> bool {
        self == needed
            || (needed == Role::Reader && matches!(self, Role::Operator | Role::KeyAdmin))
    }
}

impl BlockerKind {
    /// What it does to the work, for a sentence about it.
    #[must_use]
    pub fn effect(self) -> &'static str {
        match self {
            BlockerKind::Writer | BlockerKind::Prepared => {
                "keeps records that were inserted since it began from being signed"
            }
            BlockerKind::Snapshot => "reads from an old snapshot, which slows checkouts down",
        }
    }
}

words! {
    /// Where the private keys of a ring are used.
    Provider, "provider" {
        /// In this program's memory, unsealed.
        Software = "software",
        /// In a token that is reached by PKCS#11, which they never leave.
        Pkcs11 = "pkcs11",
    }
}

words! {
    /// What may happen to a key, apart from its uses.
    KeyEvent, "key event" {
        /// It joined the ring, active.
        Added = "added",
        /// It became active again.
        Enabled = "enabled",
        /// It stopped signing for a time.
        Disabled = "disabled",
        /// It stopped signing for good.
        Retired = "retired",
        /// Its private key was wiped.
        Destroyed = "destroyed",
    }
}

impl KeyEvent {
    /// The status of the key after the event.
    #[must_use]
    pub fn status(self) -> KeyStatus {
        match self {
            KeyEvent::Added | KeyEvent::Enabled => KeyStatus::Active,
            KeyEvent::Disabled => KeyStatus::Disabled,
            KeyEvent::Retired => KeyStatus::Retired,
            KeyEvent::Destroyed => KeyStatus::Destroyed,
        }
    }
}

/// An instant of the database's clock, in microseconds since 1970-01-01T00:00:00Z.
///
/// For people and logs only: no rule depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl fmt::Display for Timestamp {
    /// RFC 3339, in UTC, to the microsecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => write!(f, "{at:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_itself() {
        for state in BatchState::ALL {
            assert_eq!(state.as_str().parse::<BatchState>().as_ref(), Ok(state));
        }
        for event in KeyEvent::ALL {
            assert_eq!(event.as_str().parse::<KeyEvent>().as_ref(), Ok(event));
        }
        assert_eq!(
            "lost".parse::<Outcome>(),
            Err(UnknownWord { what: "outcome", value: "lost".to_owned() })
        );
    }

    #[test]
    fn a_timestamp_is_written_as_rfc_3339() {
        assert_eq!(Timestamp(1_500_000).to_string(), "1970-01-01T00:00:01.500000Z");
    }
}
