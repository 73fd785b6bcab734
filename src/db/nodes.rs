//! The nodes of a database: who is there, since when, and what troubles them.
//!
//! For people and monitoring. No rule of signing reads this table.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text};

use super::models::{FlagRow, count, word};
use super::shared::{Bind, Session, TxResult};
use super::{Node, NodeOrders, NodeReport, StoreError};
use crate::types::{NodeId, RingId, Timestamp};

/// For how many days a node that is gone stays listed.
const KEPT_DAYS: i64 = 7;

/// Writes down what a node says of itself: its first word makes its row, and `stopped` is its last,
/// whatever comes late. Nodes that have been gone for long are forgotten meanwhile.
pub(super) fn report<S: Session>(s: &mut S, node: &NodeId, report: &NodeReport) -> TxResult<()> {
    let now = S::NOW;
    let statement = format!(
        "INSERT INTO nodes (id, name, host, process_id, version, state, in_flight, trouble, lease_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, in_flight = excluded.in_flight,
                                        trouble = excluded.trouble, last_seen_at = {now}
         WHERE nodes.state <> 'stopped'"
    );
    let lease_ms = i64::try_from(report.lease.as_millis()).unwrap_or(i64::MAX).max(1);
    let binds = [
        Bind::Text(&node.0),
        Bind::Text(&report.name),
        Bind::Text(&report.host),
        Bind::Int(report.process_id.into()),
        Bind::Text(&report.version),
        Bind::Text(report.state.as_str()),
        Bind::Int(report.in_flight.into()),
        Bind::OptionalText(report.trouble.as_deref()),
        Bind::Int(lease_ms),
    ];
    s.run(&statement, &binds)?;
    let seen = S::micros("last_seen_at");
    let now = S::micros(now);
    let forget = format!("DELETE FROM nodes WHERE {seen} < {now} - $1");
    s.run(&forget, &[Bind::Int(KEPT_DAYS * 86_400 * 1_000_000)])?;
    Ok(())
}

/// What administrators ask of a node and its ring.
pub(super) fn orders<S: Session>(s: &mut S, node: &NodeId, ring: RingId) -> TxResult<NodeOrders> {
    let query = "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1 AND drain_requested) AS value
                 UNION ALL
                 SELECT EXISTS (SELECT 1 FROM rings WHERE id = $2 AND paused)";
    let rows = s.rows::<FlagRow>(query, &[Bind::Text(&node.0), Bind::Int(ring.0)])?;
    let [drain, paused] = rows.as_slice() else {
        return Err(diesel::result::Error::NotFound.into());
    };
    Ok(NodeOrders { drain: drain.value, ring_paused: paused.value })
}

/// Every node that is listed, in order of its start.
pub(super) fn nodes<S: Session>(s: &mut S) -> TxResult<Vec<Node>> {
    let query = format!(
        "SELECT id, name, host, process_id, version, state, in_flight, trouble, lease_ms,
                {} AS started_at, {} AS last_seen_at, {} - {} AS silent_us
         FROM nodes ORDER BY 10, id",
        S::micros("started_at"),
        S::micros("last_seen_at"),
        S::micros(S::NOW),
        S::micros("last_seen_at")
    );
    Ok(s.rows::<NodeRow>(&query, &[])?
        .into_iter()
        .map(Node::try_from)
        .collect::<Result<Vec<_>, _>>()?)
}

#[derive(QueryableByName)]
struct NodeRow {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    host: String,
    #[diesel(sql_type = BigInt)]
    process_id: i64,
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    in_flight: i64,
    #[diesel(sql_type = Nullable<Text>)]
    trouble: Option<String>,
    #[diesel(sql_type = BigInt)]
    lease_ms: i64,
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = BigInt)]
    last_seen_at: i64,
    #[diesel(sql_type = BigInt)]
    silent_us: i64,
}

impl TryFrom<NodeRow> for Node {
    type Error = StoreError;

    fn try_from(row: NodeRow) -> Result<Self, StoreError> {
        Ok(Node {
            id: NodeId(row.id),
            report: NodeReport {
                name: row.name,
                host: row.host,
                process_id: count(row.process_id)?,
                version: row.version,
                lease: Duration::from_millis(row.lease_ms.unsigned_abs()),
                state: word(&row.state)?,
                in_flight: count(row.in_flight)?,
                trouble: row.trouble,
            },
            started_at: Timestamp(row.started_at),
            last_seen_at: Timestamp(row.last_seen_at),
            // A clock that was set back makes it negative.
            silent_for: Duration::from_micros(u64::try_from(row.silent_us).unwrap_or(0)),
        })
    }
}
