//! How a node, its ring and the other nodes are doing.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use serde::Serialize;
use utoipa::ToSchema;

use super::page::{Page, PageQuery, limit};
use crate::db::Node;
use crate::http::Shared;
use crate::http::auth::{As, Reader};
use crate::http::problem::{Problem, ProblemDocument};

/// How a node and its ring are doing.
#[derive(Debug, Serialize, ToSchema)]
struct Status {
    /// The node that answers.
    node: String,
    /// Its version.
    version: &'static str,
    /// `running`, `paused`, `draining`, `stopped`, or `no signing`.
    state: &'static str,
    /// Its batches in flight.
    in_flight: u32,
    /// What keeps it from its work, each by a word.
    troubles: Vec<&'static str>,
    /// The ring that it serves.
    ring: RingStatus,
}

/// How a ring is doing, on all nodes.
#[derive(Debug, Serialize, ToSchema)]
struct RingStatus {
    /// Its name.
    name: String,
    /// Whether it is paused on all nodes.
    paused: bool,
    /// Its clock.
    tick: i64,
    /// Records with a signature.
    signed_records: u64,
    /// Records without one, quarantined ones left out; those that no batch has taken yet are counted up
    /// to 100,000.
    pending_records: u64,
    /// Records in quarantined batches.
    quarantined_records: u64,
    /// How long the oldest pending record has waited, in seconds.
    oldest_pending_s: Option<f64>,
    /// Its batches, by state.
    batches: Batches,
    /// Its keys, by status.
    keys: Keys,
}

#[derive(Debug, Serialize, ToSchema)]
struct Batches {
    open: u64,
    retry: u64,
    stored: u64,
    quarantined: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Keys {
    active: u64,
    disabled: u64,
    retired: u64,
    destroyed: u64,
    /// Keys that are in use now.
    in_use: u64,
}

/// Status of this node and its ring
#[utoipa::path(
    get, path = "/v1/status", tag = "status", security(("bearer" = ["reader"])),
    responses(
        (status = 200, body = Status),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn status(_: As<Reader>, shared: Data<Shared>) -> Result<HttpResponse, Problem> {
    let node = shared.node_state().await;
    let numbers = shared.numbers().await.ok_or_else(Problem::no_database)?;
    let troubles = shared.signing.as_ref().map(|signing| signing.troubles.places());
    let (progress, backlog, keys) = (&numbers.progress, &numbers.backlog, &numbers.keys);
    Ok(HttpResponse::Ok().json(Status {
        node: shared.node_name.clone(),
        version: shared.version,
        state: node.state,
        in_flight: node.supervisor.in_flight,
        troubles: troubles.unwrap_or_default(),
        ring: RingStatus {
            name: shared.ring.name.clone(),
            paused: numbers.ring_paused,
            tick: progress.tick,
            signed_records: progress.signed_records,
            pending_records: backlog.waiting + backlog.in_batches,
            quarantined_records: progress.quarantined_records,
            oldest_pending_s: backlog.oldest.map(|oldest| oldest.as_secs_f64()),
            batches: Batches {
                open: progress.open_batches,
                retry: progress.retry_batches,
                stored: progress.stored_batches,
                quarantined: progress.quarantined_batches,
            },
            keys: Keys {
                active: keys.active,
                disabled: keys.disabled,
                retired: keys.retired,
                destroyed: keys.destroyed,
                in_use: keys.in_use,
            },
        },
    }))
}

/// A node: one start of one process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeBody {
    /// Its id, as in the key uses.
    id: String,
    /// Its name.
    name: String,
    /// The host that it runs on.
    host: String,
    /// Its process there.
    process_id: u32,
    /// Its version.
    version: String,
    /// `running`, `paused`, `draining` or `stopped`, as it said last.
    state: &'static str,
    /// Whether it has reported within its lease.
    alive: bool,
    /// Its batches in flight.
    in_flight: u32,
    /// What keeps it from its work.
    trouble: Option<String>,
    /// Since when it runs.
    #[schema(format = DateTime)]
    started_at: String,
    /// When it reported last.
    #[schema(format = DateTime)]
    last_seen_at: String,
}

impl From<Node> for NodeBody {
    fn from(node: Node) -> Self {
        NodeBody {
            alive: node.is_alive(),
            id: node.id.0,
            name: node.report.name,
            host: node.report.host,
            process_id: node.report.process_id,
            version: node.report.version,
            state: node.report.state.as_str(),
            in_flight: node.report.in_flight,
            trouble: node.report.trouble,
            started_at: node.started_at.to_string(),
            last_seen_at: node.last_seen_at.to_string(),
        }
    }
}

/// Nodes that have been seen within the last week, in order of their start
#[utoipa::path(
    get, path = "/v1/nodes", tag = "status", security(("bearer" = ["reader"])), params(PageQuery),
    responses(
        (status = 200, body = Page<NodeBody>),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn nodes(
    _: As<Reader>,
    shared: Data<Shared>,
    query: Query<PageQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = limit(query.limit)?;
    let mut nodes = shared.ask(|store| store.nodes()).await?;
    if let Some(after) = &query.after {
        // Their order is that of their starts, which an id does not tell: one that is gone is none.
        let place = nodes.iter().position(|node| node.id.0 == *after);
        let place = place.ok_or_else(super::page::no_cursor)?;
        nodes.drain(..=place);
    }
    Ok(Page::of(nodes, limit, |node| node.id.0.clone(), NodeBody::from).response())
}
