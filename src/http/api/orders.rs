//! Pause, resume and drain: of this node, or of all.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::actors::messages::{Drain, Pause, Resume};
use crate::db::AdminAction;
use crate::http::auth::{As, Operator};
use crate::http::body::Json;
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::service::Signing;
use crate::http::{Caller, Shared};

/// Whom an order is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    /// The node that answers, with all rings that it signs.
    Node,
    /// All nodes, through the database: of the ring, or for a drain as such.
    All,
}

/// An order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// Whom it is for.
    scope: Scope,
}

/// What came of an order.
#[derive(Debug, Serialize, ToSchema)]
struct Obeyed {
    /// What was done, for people.
    detail: String,
}

impl Obeyed {
    fn response(detail: impl Into<String>) -> HttpResponse {
        HttpResponse::Ok().json(Obeyed { detail: detail.into() })
    }
}

/// Start no new batches
///
/// What is in flight is finished. For all nodes it is the ring that is paused, in the database: nothing
/// is checked out any more, by no node, until the ring is resumed.
#[utoipa::path(
    post, path = "/v1/pause", tag = "orders", security(("bearer" = ["operator"])),
    request_body = Order,
    responses(
        (status = 200, body = Obeyed),
        (status = 409, description = "This node signs nothing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(
    caller: As<Operator>,
    shared: Data<Shared>,
    order: Json<Order>,
) -> Result<HttpResponse, Problem> {
    set_paused(&shared, &caller.0, order.0.scope, true).await
}

/// Go on
#[utoipa::path(
    post, path = "/v1/resume", tag = "orders", security(("bearer" = ["operator"])),
    request_body = Order,
    responses(
        (status = 200, body = Obeyed),
        (status = 409, description = "This node signs nothing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    caller: As<Operator>,
    shared: Data<Shared>,
    order: Json<Order>,
) -> Result<HttpResponse, Problem> {
    set_paused(&shared, &caller.0, order.0.scope, false).await
}

/// Pauses this node or the whole ring, or lets it go on.
async fn set_paused(
    shared: &Shared,
    caller: &Caller,
    scope: Scope,
    paused: bool,
) -> Result<HttpResponse, Problem> {
    if scope == Scope::Node {
        let signing = signing(shared)?;
        let action = if paused { "node.paused" } else { "node.resumed" };
        write_down(shared, caller, action).await?;
        for supervisor in signing.supervisors.iter() {
            let sent =
                if paused { supervisor.send(Pause).await } else { supervisor.send(Resume).await };
            sent.map_err(|_| stopped())?;
        }
        let now = if paused { "is paused" } else { "goes on" };
        return Ok(Obeyed::response(format!("node {} {now}", shared.node_name)));
    }
    let (ring, actor) = (shared.ring.id, caller.actor());
    let changed = shared.ask(move |store| store.set_paused(ring, paused, &actor)).await?;
    if !paused {
        shared.nudge();
    }
    let now = match (paused, changed) {
        (true, true) => "is paused",
        (true, false) => "was paused already",
        (false, true) => "goes on",
        (false, false) => "was not paused",
    };
    Ok(Obeyed::response(format!("ring {} {now}", shared.ring.name)))
}

/// Finish what is in flight, and end
///
/// A node that has drained ends with exit code 0. All nodes are those that run now; each hears of it
/// with its next report, within five seconds.
#[utoipa::path(
    post, path = "/v1/drain", tag = "orders", security(("bearer" = ["operator"])),
    request_body = Order,
    responses(
        (status = 202, body = Obeyed),
        (status = 409, description = "This node signs nothing", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drain(
    caller: As<Operator>,
    shared: Data<Shared>,
    order: Json<Order>,
) -> Result<HttpResponse, Problem> {
    let detail = match order.0.scope {
        Scope::All => {
            let actor = caller.0.actor();
            let asked = shared.ask(move |store| store.request_drain(&actor)).await?;
            format!("nodes that are asked to drain: {asked}")
        }
        Scope::Node => {
            let signing = signing(&shared)?;
            write_down(&shared, &caller.0, "node.drained").await?;
            for supervisor in signing.supervisors.iter() {
                let drain = supervisor.send(Drain { deadline: shared.lease });
                // Not waited for: the end of the drain is the end of this server.
                actix_web::rt::spawn(async move {
                    if drain.await.is_err() {
                        tracing::debug!("drained a supervisor that has stopped");
                    }
                });
            }
            format!("node {} drains", shared.node_name)
        }
    };
    Ok(HttpResponse::Accepted().json(Obeyed { detail }))
}

fn signing(shared: &Shared) -> Result<&Signing, Problem> {
    shared.signing.as_ref().ok_or_else(|| Problem::conflict("This node signs nothing."))
}

fn stopped() -> Problem {
    Problem::unavailable("This node is stopping.")
}

/// Before it is done: what cannot be written down is not done.
async fn write_down(shared: &Shared, caller: &Caller, action: &'static str) -> Result<(), Problem> {
    let actor = caller.actor();
    let target = format!("node {}", shared.node);
    let detail = serde_json::json!({});
    shared
        .ask(move |store| store.log_action(&AdminAction { actor: &actor, action, target, detail }))
        .await
}
