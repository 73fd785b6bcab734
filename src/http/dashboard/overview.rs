//! What the dashboard shows, as data: a moment of a node and its database.

/// A moment of a node and its database.
#[derive(Clone, Debug, Default)]
pub(super) struct Overview {
    /// The node that shows it.
    pub(super) node: String,
    /// Its version.
    pub(super) version: &'static str,
    /// The ring.
    pub(super) ring: String,
    /// Where the ring's events are, without `/events`.
    pub(super) base: String,
    /// Where the ring's API is: `/v1`, or `/v1/rings/NAME`.
    pub(super) api: String,
    /// All rings that the node serves.
    pub(super) rings: Vec<RingLink>,
    /// `running`, `paused`, `draining`, `stopped`, or `no signing`.
    pub(super) state: &'static str,
    /// The whole ring is paused, on every node.
    pub(super) ring_paused: bool,
    /// If not, the numbers are the last known ones.
    pub(super) database_answers: bool,
    /// Records with a signature.
    pub(super) signed: u64,
    /// Records that wait for one.
    pub(super) pending: u64,
    /// More wait than are counted.
    pub(super) pending_is_a_minimum: bool,
    /// Records in quarantine.
    pub(super) quarantined: u64,
    /// How long the oldest pending record has waited.
    pub(super) oldest_pending_s: Option<f64>,
    /// Records signed a second, by all nodes, lately.
    pub(super) rate: f64,
    /// Records signed in each of the last seconds, oldest first.
    pub(super) rates: Vec<f64>,
    /// The keys, in order of id.
    pub(super) keys: Vec<KeyDot>,
    /// The batches in flight, on all nodes.
    pub(super) in_flight: Vec<InFlight>,
    /// The nodes, newest first.
    pub(super) nodes: Vec<NodeRow>,
    /// The batches in quarantine.
    pub(super) quarantine: Vec<Quarantined>,
    /// What administrators did, newest first.
    pub(super) actions: Vec<Action>,
}

/// The way to the page of a ring.
#[derive(Clone, Debug, Default)]
pub(super) struct RingLink {
    pub(super) name: String,
    pub(super) place: String,
    pub(super) is_shown: bool,
}

/// A key of the ring.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyDot {
    pub(super) kid: String,
    /// `active`, `disabled`, `retired` or `destroyed`.
    pub(super) status: &'static str,
    pub(super) in_use: bool,
    /// The ring's tick at the end of its last use; 0 if it was never used.
    pub(super) last_tick: i64,
    /// 1 for the key that was used last, towards 0 for the one that is next; `None` if never used.
    pub(super) recency: Option<f64>,
    pub(super) last_used_at: Option<String>,
    pub(super) stored_batches: u64,
}

/// A batch in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    pub(super) batch: i64,
    pub(super) fence: i64,
    pub(super) kid: String,
    pub(super) node: String,
    pub(super) records: u32,
    pub(super) since_s: f64,
    pub(super) expires_in_s: f64,
}

/// A node.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeRow {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) process_id: u32,
    pub(super) version: String,
    pub(super) state: &'static str,
    pub(super) in_flight: u32,
    pub(super) trouble: Option<String>,
    pub(super) silent_s: f64,
    pub(super) is_alive: bool,
}

/// A batch in quarantine.
#[derive(Clone, Debug, Default)]
pub(super) struct Quarantined {
    pub(super) batch: i64,
    pub(super) records: u32,
    pub(super) attempts: u32,
    pub(super) failure: String,
}

/// Something that an administrator did.
#[derive(Clone, Debug, Default)]
pub(super) struct Action {
    pub(super) seq: i64,
    pub(super) at: String,
    pub(super) actor: String,
    pub(super) action: String,
    pub(super) target: String,
    pub(super) detail: String,
}

/// Who looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Viewer {
    pub(super) name: String,
    pub(super) may_operate: bool,
}
