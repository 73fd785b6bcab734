//! Implementations that somebody might plausibly have written instead, each one step away from the
//! protocol. The check must tell every one of them from it.

/// One thing done otherwise than the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A checkout takes no ring's lock; keys and batches are chosen with SKIP LOCKED instead.
    NoRingLock,
    /// A checkout chooses by a statement that began before it got the ring's lock.
    ChooseBeforeRingLock,
    /// A checkout reads the tick, takes no lock, and writes back what it has counted up itself.
    TickFromMemory,
    /// A store looks for an open use of its batch, whoever's it is, not for its own fence.
    NoFence,
    /// A store takes no fence either, since its signatures are inserted with ON CONFLICT DO NOTHING and
    /// "nothing can happen twice". The use is ended where it is still open.
    ConflictInsteadOfFence,
    /// The use is ended and its key set free first, the signatures are stored in a second transaction.
    ReleaseBeforeStore,
    /// Reclaim reads what has expired without any lock, and ends it in a later statement.
    ReclaimWithoutLocks,
    /// Reclaim waits for locked uses, holding the ring's lock, instead of passing over them.
    ReclaimWaitsForUses,
    /// Signatures that exist already are skipped, and nobody counts.
    OnConflictDoNothing,
    /// A key's `last_tick` is set when its use is stored, and not when it is reclaimed or abandoned.
    OnlyStoresStampKeys,
    /// A process that wakes up signs what it has, without a look at its deadline.
    NoDeadline,
    /// Nobody reclaims.
    NoReclaim,
    /// A batch that is given up is not sent back to be retried.
    GiveUpForgetsBatch,
    /// The sessions of frozen processes are not ended.
    FrozenSessionsStay,
    /// A checkout whose reply was lost is forgotten, and the node renews all that is its own.
    RenewWhatIsForgotten,
}
