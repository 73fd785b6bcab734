//! Signatures: waiting for one, the feed of all, and checking what somebody shows.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::{Data, Path, Query};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::page::{Page, PageQuery, limit, no_cursor};
use super::records::{SignatureBody, find, no_record};
use crate::db::{FeedItem, FeedPosition, RecordState};
use crate::http::Shared;
use crate::http::auth::{As, Reader};
use crate::http::body::Json;
use crate::http::problem::{Problem, ProblemDocument};
use crate::signing::{PublicKey, Signature, verify_one};
use crate::types::{Kid, RecordId, Tick};

/// The longest wait, in seconds.
const LONGEST_WAIT_S: f64 = 60.0;

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Seconds to wait for the signature, if it is not there yet.
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: Option<f64>,
}

/// A record without a signature.
#[derive(Debug, Serialize, ToSchema)]
struct NotSigned {
    /// The record.
    record_id: i64,
    /// `pending` or `quarantined`.
    state: &'static str,
}

/// The signature of a record, waiting for it if asked to
#[utoipa::path(
    get, path = "/v1/records/{id}/signature", tag = "signatures",
    security(("bearer" = ["reader"])),
    params(("id" = i64, Path, description = "The record's id"), Wait),
    responses(
        (status = 200, body = SignatureBody),
        (status = 202, description = "It has none yet", body = NotSigned),
        (status = 404, description = "No such record", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn of_record(
    _: As<Reader>,
    shared: Data<Shared>,
    id: Path<i64>,
    query: Query<Wait>,
) -> Result<HttpResponse, Problem> {
    signature(&shared, RecordId(id.into_inner()), query.wait).await
}

/// The signature of a record by the client's own id, waiting for it if asked to
#[utoipa::path(
    get, path = "/v1/records/by-external-id/{external_id}/signature", tag = "signatures",
    security(("bearer" = ["reader"])),
    params(("external_id" = String, Path, description = "The client's own id"), Wait),
    responses(
        (status = 200, body = SignatureBody),
        (status = 202, description = "It has none yet", body = NotSigned),
        (status = 404, description = "No such record", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn of_external_id(
    _: As<Reader>,
    shared: Data<Shared>,
    external_id: Path<String>,
    query: Query<Wait>,
) -> Result<HttpResponse, Problem> {
    let id = find(&shared, external_id.into_inner()).await?;
    signature(&shared, id, query.wait).await
}

async fn signature(
    shared: &Shared,
    record: RecordId,
    wait_s: Option<f64>,
) -> Result<HttpResponse, Problem> {
    let wait_s = wait_s.unwrap_or(0.0);
    if !(0.0..=LONGEST_WAIT_S).contains(&wait_s) {
        return Err(Problem::unprocessable(format!(
            "wait is {wait_s}: it must be from 0 to {LONGEST_WAIT_S} seconds."
        )));
    }
    // Before the first look, so that nothing stored in between is missed.
    let coming = (wait_s > 0.0).then(|| shared.waiters.signature(record));
    let ring = shared.ring.id;
    let found = shared.ask(move |store| store.record(ring, record)).await?;
    let found = found.ok_or_else(no_record)?;
    if let Some(signature) = found.signature {
        return Ok(HttpResponse::Ok().json(SignatureBody::from(signature)));
    }
    if let Some(coming) = coming
        && found.state == RecordState::Pending
    {
        let signature = tokio::select! {
            signature = coming => signature,
            () = tokio::time::sleep(Duration::from_secs_f64(wait_s)) => None,
            () = shared.stopped() => None,
        };
        if let Some(signature) = signature {
            return Ok(HttpResponse::Ok().json(SignatureBody::from(signature)));
        }
    }
    let body = NotSigned { record_id: record.0, state: found.state.as_str() };
    Ok(HttpResponse::Accepted().insert_header((RETRY_AFTER, 1)).json(body))
}

/// A signature in the feed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FeedBody {
    /// The record.
    record_id: i64,
    /// The client's own id of it.
    external_id: Option<String>,
    /// The 64 bytes as base64.
    #[schema(format = "byte")]
    signature: String,
    /// The key.
    kid: String,
    /// The batch.
    batch_id: i64,
    /// The ring's tick at which the batch was stored.
    end_tick: i64,
    /// When that was.
    #[schema(format = DateTime)]
    signed_at: String,
}

impl From<FeedItem> for FeedBody {
    fn from(item: FeedItem) -> Self {
        FeedBody {
            record_id: item.position.record.0,
            external_id: item.external_id,
            signature: STANDARD.encode(&item.signature),
            kid: item.kid.0,
            batch_id: item.batch.0,
            end_tick: item.position.tick.0,
            signed_at: item.signed_at.to_string(),
        }
    }
}

/// Signatures of the ring in the order in which they were stored
///
/// Nothing ever appears before what was seen, so a client that goes on from its last `next` misses
/// nothing. `next` is null only while the feed is empty; a page that is not full is the end for now.
#[utoipa::path(
    get, path = "/v1/signatures", tag = "signatures", security(("bearer" = ["reader"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<FeedBody>),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn feed(
    _: As<Reader>,
    shared: Data<Shared>,
    query: Query<PageQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = limit(query.limit)?;
    let after = match &query.after {
        None => FeedPosition::START,
        Some(cursor) => position(cursor).ok_or_else(no_cursor)?,
    };
    let ring = shared.ring.id;
    let items = shared.ask(move |store| store.feed(ring, after, limit)).await?;
    let last = items.last().map(|item| item.position);
    let next = last.map(cursor).or_else(|| query.after.clone());
    let items = items.into_iter().map(FeedBody::from).collect();
    Ok(Page::with_next(items, next).response())
}

fn cursor(position: FeedPosition) -> String {
    format!("{}.{}", position.tick, position.record)
}

fn position(cursor: &str) -> Option<FeedPosition> {
    let (tick, record) = cursor.split_once('.')?;
    Some(FeedPosition { tick: Tick(tick.parse().ok()?), record: RecordId(record.parse().ok()?) })
}

/// A signature to be checked: with the number of a record of this ring, or with all that it is over.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Verify {
    /// A record, whose stored signature is checked.
    record_id: Option<i64>,
    /// The key.
    kid: Option<String>,
    /// The 64 bytes as base64.
    signature: Option<String>,
    /// The payload as text.
    payload: Option<String>,
    /// The payload as base64.
    payload_base64: Option<String>,
}

/// What a check found.
#[derive(Debug, Serialize, ToSchema)]
struct Verified {
    /// Whether the signature is the key's over the payload.
    valid: bool,
    /// The key.
    kid: String,
    /// The key's status now.
    key_status: &'static str,
}

/// Check a signature against a key of this database
#[utoipa::path(
    post, path = "/v1/verify", tag = "signatures", security(("bearer" = ["reader"])),
    request_body = Verify,
    responses(
        (status = 200, body = Verified),
        (status = 404, description = "No such key or record", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "The record has no signature yet", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn verify(
    _: As<Reader>,
    shared: Data<Shared>,
    body: Json<Verify>,
) -> Result<HttpResponse, Problem> {
    let (kid, signature, payload) = match body.0 {
        Verify {
            record_id: Some(id),
            kid: None,
            signature: None,
            payload: None,
            payload_base64: None,
        } => {
            let ring = shared.ring.id;
            let record = shared.ask(move |store| store.record(ring, RecordId(id))).await?;
            let record = record.ok_or_else(no_record)?;
            let signature = record.signature;
            let signature =
                signature.ok_or_else(|| Problem::conflict("The record has no signature yet."))?;
            (signature.kid, signature.signature, record.payload)
        }
        Verify {
            record_id: None,
            kid: Some(kid),
            signature: Some(signature),
            payload,
            payload_base64,
        } => {
            let payload = match (payload, payload_base64) {
                (Some(text), None) => text.into_bytes(),
                (None, Some(base64)) => decode("payload_base64", &base64)?,
                _ => return Err(unclear()),
            };
            (Kid(kid), decode("signature", &signature)?, payload)
        }
        _ => return Err(unclear()),
    };
    let of = kid.clone();
    let key = shared.ask(move |store| store.key(&of)).await?;
    let public_key = PublicKey::from_bytes(&key.public_key).map_err(|error| {
        tracing::error!(%error, kid = %key.kid, "a public key in the database is none");
        Problem::internal()
    })?;
    let signature = Signature::try_from(signature.as_slice()).ok();
    let valid = signature.is_some_and(|one| verify_one(&public_key, &payload, &one).is_ok());
    let key_status = key.status.as_str();
    Ok(HttpResponse::Ok().json(Verified { valid, kid: kid.0, key_status }))
}

fn unclear() -> Problem {
    Problem::unprocessable(
        "Send record_id alone, or kid and signature with exactly one of payload and payload_base64.",
    )
}

fn decode(name: &str, base64: &str) -> Result<Vec<u8>, Problem> {
    let decoded = STANDARD.decode(base64);
    decoded.map_err(|_| Problem::unprocessable(format!("{name} is no base64 with padding.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_the_feed_reads_back() {
        let there = FeedPosition { tick: Tick(12), record: RecordId(-3) };
        assert_eq!(position(&cursor(there)), Some(there));
        for bad in ["", "12", "12.", ".3", "a.b", "1.2.3"] {
            assert_eq!(position(bad), None, "{bad}");
        }
    }
}
