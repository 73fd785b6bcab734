//! The faults that come by a schedule, how often each comes, and how often it came.

use std::time::Duration;

/// What is done to a node or to its way to the database. Crashes of the server have a thread of
/// their own, in `server.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and started again a moment later.
    Kill,
    /// SIGSTOP for longer than a lease, then SIGCONT.
    Stop,
    /// SIGTERM: it must end by itself, and is started again.
    Terminate,
    /// One connection to the database is cut.
    CutOne,
    /// All of a node's connections are cut.
    CutAll,
    /// The reply to the node's next COMMIT is dropped, and its connection cut.
    LoseCommitReply,
    /// The way to the database gets slow for a while.
    Delay,
    /// The way to the database swallows everything for a while, mostly longer than a lease.
    BlackHole,
}

impl Fault {
    pub(crate) const ALL: [Fault; 8] = [
        Fault::Kill,
        Fault::Stop,
        Fault::Terminate,
        Fault::CutOne,
        Fault::CutAll,
        Fault::LoseCommitReply,
        Fault::Delay,
        Fault::BlackHole,
    ];

    /// The time between two of them, on average.
    pub(crate) fn interval(self) -> Duration {
        Duration::from_millis(match self {
            Fault::Kill => 3_500,
            Fault::Stop => 2_500,
            Fault::Terminate => 9_000,
            Fault::CutOne => 5_000,
            Fault::CutAll => 12_000,
            Fault::LoseCommitReply => 4_000,
            Fault::Delay => 8_000,
            Fault::BlackHole => 13_000,
        })
    }

    /// Whether it keeps a node from its work, which must never be all nodes' lot at once.
    pub(crate) fn disables(self) -> bool {
        matches!(self, Fault::Kill | Fault::Stop | Fault::Terminate | Fault::BlackHole)
    }
}

/// How often each fault has struck.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) killed: u64,
    /// Of those killed, the ones that were stopped at that moment.
    pub(crate) killed_while_stopped: u64,
    /// Stopped for longer than a lease and continued.
    pub(crate) stopped: u64,
    /// Of those stopped, the ones that held key uses.
    pub(crate) stopped_with_uses: u64,
    pub(crate) terminated: u64,
    pub(crate) connections_cut: u64,
    pub(crate) delays: u64,
    pub(crate) black_holes: u64,
    pub(crate) longest_termination: Duration,
}
