//! Every message that crosses from one actor to another; private ones stand beside their actor.

use std::marker::PhantomData;
use std::time::Duration;

use actix::Message;

use super::key_handle::KeyHandle;
use crate::clock::Deadline;
use crate::db::{ClaimedBatch, KeyUse, Shortage, SignedBatch, StoreError};
use crate::signing::Signature;
use crate::types::{BatchRange, Outcome, Position, Record, RecordId, RingId};

/// To the KeyManager: check out up to so many batches, each with the least recently used key.
#[derive(Debug, Message)]
#[rtype(result = "Result<Granted, StoreError>")]
pub struct CheckOut {
    /// How many at most: never more than can start at once.
    pub max_batches: u32,
}

/// The answer to [`CheckOut`].
#[derive(Debug, Default)]
pub struct Granted {
    /// The batches with their keys.
    pub checkouts: Vec<Checkout>,
    /// Why there are fewer than asked for.
    pub shortage: Option<Shortage>,
}

/// A batch, its key, and until when it may be signed.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The batch.
    pub batch: ClaimedBatch,
    /// The key, shared with the KeyManager and nobody else.
    pub key: KeyHandle,
    /// No signature starts after it; renewals move it on.
    pub deadline: Deadline,
}

/// To the KeyManager: a key use is over.
#[derive(Debug, Message)]
#[rtype(result = "Result<Outcome, StoreError>")]
pub struct ReturnKey {
    /// The use.
    pub key_use: KeyUse,
    /// How it ended.
    pub how: Return,
}

/// How a key use ended on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Return {
    /// The database has ended it already: stored, or fenced.
    Ended(Outcome),
    /// It is to be given up; with the batch's own failure if it is to blame.
    GiveUp {
        /// The failure.
        failure: Option<String>,
    },
}

/// To the RecordLoader: a slice of a batch.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<Record>, StoreError>")]
pub struct LoadBatch {
    /// The batch's ring.
    pub ring: RingId,
    /// The batch's records.
    pub range: BatchRange,
    /// Where the last slice ended.
    pub after: Option<Position>,
    /// How many bytes of payload, unless one record alone has more.
    pub max_bytes: usize,
}

/// To a Signer: sign each record with one key.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<(RecordId, Signature)>, SignFailure>")]
pub struct SignBatch {
    /// The key.
    pub key: KeyHandle,
    /// When to stop.
    pub deadline: Deadline,
    /// A batch, or a slice of one.
    pub records: Vec<Record>,
}

/// Why a slice was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignFailure {
    /// A store would be fenced.
    #[error("the lease ended before every record was signed")]
    PastDeadline,
    /// The signer panicked; its thread goes on.
    #[error("the signer panicked: {0}")]
    Panicked(String),
    /// The engine failed.
    #[error("{0}")]
    Engine(String),
    /// Signatures do not verify: a fault of the machine's, of its memory or its processor.
    #[error(
        "{signatures} of its signatures did not verify, first that of record {record}: a fault of memory \
         or processor"
    )]
    Faulty {
        /// The first record whose signature does not.
        record: RecordId,
        /// How many there are.
        signatures: u64,
    },
    /// The token failed, through no fault of what was to be signed.
    #[error("{0}")]
    Token(String),
}

/// To a Signer: does what it signs with answer? Without a token, it does.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), SignFailure>")]
pub struct Probe;

/// To the DbWriter: store a signed batch; it answers when that is settled.
#[derive(Debug, Message)]
#[rtype(result = "StoreReply")]
pub struct StoreBatch(pub SignedBatch);

/// What became of a [`StoreBatch`].
#[derive(Clone, Debug, PartialEq, Eq, actix::MessageResponse)]
pub enum StoreReply {
    /// It is stored, by this call or by one whose reply was lost.
    Stored,
    /// Its use had ended; nothing was stored.
    Fenced(Outcome),
    /// The database refused it, so that it must be given up; the reason.
    Refused(String),
    /// It did not come to that, through no fault of the batch's; the reason.
    Unsettled(String),
}

/// To the Supervisor: start no new batches. What is in flight goes on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Pause;

/// To the Supervisor: go on after a [`Pause`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Resume;

/// To the Supervisor: records may have arrived.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Nudge;

/// To the Supervisor: finish what is in flight and start nothing more.
#[derive(Debug, Message)]
#[rtype(result = "DrainReport")]
pub struct Drain {
    /// How long to wait for it.
    pub deadline: Duration,
}

/// The answer to [`Drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, actix::MessageResponse)]
pub struct DrainReport {
    /// Batches stored by this node in its life.
    pub stored_batches: u64,
    /// Batches still in flight at the deadline; their keys come back when their leases end.
    pub left_in_flight: u64,
}

/// To the Supervisor, from a batch's future: the batch is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct BatchSigned {
    /// The use it ran under.
    pub key_use: KeyUse,
    /// How it ended.
    pub end: BatchEnd,
}

/// How a batch ended on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// Stored, with so many records.
    Stored {
        /// The records.
        records: u64,
    },
    /// Somebody else had ended its use; nothing was stored.
    Fenced,
    /// Given up, for this reason.
    GivenUp {
        /// The reason.
        reason: String,
    },
    /// Given up, because this machine made signatures that do not verify.
    Faulty {
        /// The reason.
        reason: String,
        /// How many there are.
        signatures: u64,
    },
    /// Given up because the token failed, for this reason.
    TokenFailed {
        /// The reason.
        reason: String,
    },
}

/// To any actor: a typed snapshot of its state.
#[derive(Debug)]
pub struct Observe<S>(PhantomData<S>);

impl<S> Observe<S> {
    /// The question.
    #[must_use]
    pub fn new() -> Self {
        Observe(PhantomData)
    }
}

impl<S> Default for Observe<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: 'static> Message for Observe<S> {
    type Result = S;
}

/// To any actor: stop.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;
