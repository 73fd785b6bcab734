//! What the dashboard shows, as data: taken once a second while somebody looks.

/// A moment of a node and its database.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Overview {
    /// When it was taken, RFC 3339 in UTC.
    pub at: String,
    /// The node that shows it.
    pub node: String,
    pub version: &'static str,
    pub ring: String,
    /// running | paused | draining | stopped | no signing
    pub state: &'static str,
    /// The whole ring is paused, on every node.
    pub ring_paused: bool,
    /// `None` if the database did not answer: then the numbers below are the last known ones.
    pub database_answers: bool,
    pub signed: u64,
    pub pending: u64,
    /// More wait than are counted.
    pub pending_is_a_minimum: bool,
    pub quarantined: u64,
    pub oldest_pending_s: Option<f64>,
    /// Records signed a second, by all nodes, lately.
    pub rate: f64,
    /// Records signed in each of the last seconds, oldest first, up to 300.
    pub rates: Vec<f64>,
    /// In order of id.
    pub keys: Vec<KeyDot>,
    pub in_flight: Vec<InFlight>,
    pub nodes: Vec<NodeRow>,
    pub quarantine: Vec<Quarantined>,
    /// Newest first.
    pub actions: Vec<Action>,
}
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct KeyDot {
    pub kid: String,
    /// active | disabled | retired | destroyed
    pub status: &'static str,
    pub in_use: bool,
    /// The ring's tick at the end of its last use; 0 if it was never used.
    pub last_tick: i64,
    /// 1 for the one used last, towards 0 for the one that is next; `None` if never used.
    pub recency: Option<f64>,
    pub last_used_at: Option<String>,
    pub stored_batches: u64,
}
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct InFlight {
    pub batch: i64,
    pub fence: i64,
    pub kid: String,
    pub node: String,
    pub records: u32,
    pub since_s: f64,
    pub expires_in_s: f64,
}
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct NodeRow {
    pub name: String,
    pub host: String,
    pub process_id: u32,
    pub version: String,
    pub state: &'static str,
    pub in_flight: u32,
    pub trouble: Option<String>,
    pub silent_s: f64,
    pub is_alive: bool,
}
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Quarantined {
    pub batch: i64,
    pub records: u32,
    pub attempts: u32,
    pub failure: String,
}
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Action {
    pub seq: i64,
    pub at: String,
    pub actor: String,
    pub action: String,
    pub target: String,
    pub detail: String,
}
/// Who looks.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Viewer {
    pub name: String,
    pub may_operate: bool,
}
