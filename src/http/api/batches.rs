//! Batches, and the way back for those in quarantine.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path, Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::page::{Page, after, limit};
use crate::db::{BatchView, Store, StoreError};
use crate::http::Shared;
use crate::http::auth::{As, Operator, Reader};
use crate::http::problem::{Problem, ProblemDocument};
use crate::types::{BatchId, BatchState, RingId};

/// A batch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchBody {
    /// Its id.
    id: i64,
    /// `open`, `stored`, `retry` or `quarantined`.
    state: &'static str,
    /// How many records it has.
    records: u32,
    /// How often it has failed.
    attempts: u32,
    /// Its last failure.
    failure: Option<String>,
    /// The key that has it, or that signed it.
    kid: Option<String>,
    /// The node that has it, or that stored it.
    node: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// When it was stored.
    #[schema(format = DateTime)]
    stored_at: Option<String>,
}

impl From<BatchView> for BatchBody {
    fn from(batch: BatchView) -> Self {
        BatchBody {
            id: batch.id.0,
            state: batch.state.as_str(),
            records: batch.record_count,
            attempts: batch.attempts,
            failure: batch.failure,
            kid: batch.kid.map(|kid| kid.0),
            node: batch.node,
            created_at: batch.created_at.to_string(),
            stored_at: batch.stored_at.map(|at| at.to_string()),
        }
    }
}

/// Which batches.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchesQuery {
    /// Only those in this state.
    #[param(value_type = Option<String>, pattern = "^(open|stored|retry|quarantined)$")]
    state: Option<BatchState>,
    /// Where the page before ended: its `next`.
    after: Option<String>,
    /// How many items at the most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

/// Batches of the ring, in order of id
#[utoipa::path(
    get, path = "/v1/batches", tag = "batches", security(("bearer" = ["reader"])),
    params(BatchesQuery),
    responses(
        (status = 200, body = Page<BatchBody>),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    _: As<Reader>,
    shared: Data<Shared>,
    query: Query<BatchesQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = limit(query.limit)?;
    let after = BatchId(after(query.after.as_deref())?);
    let (ring, state) = (shared.ring.id, query.state);
    let batches =
        shared.ask(move |store| store.list_batches(ring, state, after, limit + 1)).await?;
    Ok(Page::of(batches, limit, |batch| batch.id.to_string(), BatchBody::from).response())
}

/// One batch
#[utoipa::path(
    get, path = "/v1/batches/{id}", tag = "batches", security(("bearer" = ["reader"])),
    params(("id" = i64, Path, description = "The batch's id")),
    responses(
        (status = 200, body = BatchBody),
        (status = 404, description = "No such batch", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    _: As<Reader>,
    shared: Data<Shared>,
    id: Path<i64>,
) -> Result<HttpResponse, Problem> {
    let id = BatchId(id.into_inner());
    let ring = shared.ring.id;
    let batch = shared.ask(move |store| batch_of(store, ring, id)).await?;
    Ok(HttpResponse::Ok().json(BatchBody::from(batch)))
}

/// Send a quarantined batch back, with all its attempts before it again
#[utoipa::path(
    post, path = "/v1/batches/{id}/retry", tag = "batches", security(("bearer" = ["operator"])),
    params(("id" = i64, Path, description = "The batch's id")),
    responses(
        (status = 200, description = "The batch, which waits to be retried", body = BatchBody),
        (status = 404, description = "No such batch", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "It is not in quarantine", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    caller: As<Operator>,
    shared: Data<Shared>,
    id: Path<i64>,
) -> Result<HttpResponse, Problem> {
    let id = BatchId(id.into_inner());
    let (ring, actor) = (shared.ring.id, caller.0.actor());
    let batch = shared
        .ask(move |store| {
            batch_of(store, ring, id)?;
            store.retry_batch(id, &actor)?;
            store.batch(id)
        })
        .await?;
    shared.nudge();
    Ok(HttpResponse::Ok().json(BatchBody::from(batch)))
}

/// A batch of the ring; there is no other here.
fn batch_of(store: &dyn Store, ring: RingId, id: BatchId) -> Result<BatchView, StoreError> {
    let batch = store.batch(id)?;
    if batch.ring == ring {
        Ok(batch)
    } else {
        Err(StoreError::NotFound { what: "batch", name: id.to_string() })
    }
}
