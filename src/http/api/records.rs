//! Records: taking them in one by one, and showing what became of them.

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use actix_web::web::{Bytes, Data, Path, Query};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use utoipa::{IntoParams, ToSchema};

use crate::db::{Added, NewRecord, RecordSignature, StoredRecord};
use crate::http::Shared;
use crate::http::auth::{As, Reader, Writer};
use crate::http::body::{Whole, media_type, parse};
use crate::http::problem::{Problem, ProblemDocument};
use crate::intake::check_external_id;
use crate::types::RecordId;

/// A record: its payload in exactly one of two forms.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRecordBody<'a> {
    /// The client's own id, with which a record is never stored twice: up to 1024 bytes, no NUL.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 1024)]
    external_id: Option<Cow<'a, str>>,
    /// The payload as text: its UTF-8 bytes are signed.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    payload: Option<Cow<'a, str>>,
    /// The payload as base64 (RFC 4648, section 4): the bytes that it stands for are signed.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = "byte")]
    payload_base64: Option<Cow<'a, str>>,
}

impl NewRecordBody<'_> {
    /// The record, or what is wrong with it.
    pub(super) fn record(self) -> Result<NewRecord, String> {
        let payload = match (self.payload, self.payload_base64) {
            (Some(text), None) => text.into_owned().into_bytes(),
            (None, Some(base64)) => STANDARD
                .decode(base64.as_bytes())
                .map_err(|_| "payload_base64 is no base64 with padding".to_owned())?,
            _ => return Err("exactly one of payload and payload_base64 is needed".to_owned()),
        };
        let external_id = self.external_id.map(Cow::into_owned).map(check_external_id).transpose();
        Ok(NewRecord { external_id: external_id.map_err(|fault| fault.to_string())?, payload })
    }
}

/// A record that was taken in.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// The record's id.
    id: i64,
    /// `added`, or `unchanged` if it was there already with the same payload.
    status: &'static str,
}

/// The id of a record whose payload is the whole body.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ExternalId {
    /// The client's own id, for a body that is the payload itself.
    #[param(min_length = 1, max_length = 1024)]
    external_id: Option<String>,
}

/// Take a record in
///
/// As JSON, or with `text/plain` or `application/octet-stream` the body's exact bytes are the payload.
/// The answer comes when the record is stored.
#[utoipa::path(
    post, path = "/v1/records", tag = "records", security(("bearer" = ["writer"])),
    params(ExternalId),
    request_body(content(
        (NewRecordBody<'_> = "application/json"),
        (String = "text/plain"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 201, description = "It is new", body = Accepted, headers(("location" = String, description = "Where it is"))),
        (status = 200, description = "It was there already, with the same payload", body = Accepted),
        (status = 409, description = "Its external id is there with another payload", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn add(
    _: As<Writer>,
    request: HttpRequest,
    shared: Data<Shared>,
    query: Query<ExternalId>,
    body: Whole,
) -> Result<HttpResponse, Problem> {
    let external_id = query.into_inner().external_id;
    let record = read(media_type(&request).as_deref(), external_id, &body.0)?;
    let added = shared.intake.add(record).await?;
    shared.count_added(&[added]);
    let id = added.id().0;
    match added {
        Added::New(_) => Ok(HttpResponse::Created()
            .insert_header((LOCATION, format!("{}/records/{id}", shared.api())))
            .json(Accepted { id, status: "added" })),
        Added::Unchanged(_) => Ok(HttpResponse::Ok().json(Accepted { id, status: "unchanged" })),
        Added::Conflict(_) => Err(conflict(id)),
    }
}

fn conflict(id: i64) -> Problem {
    Problem::conflict(format!("The external_id is there as record {id}, with another payload."))
}

fn read(
    media_type: Option<&str>,
    external_id: Option<String>,
    body: &Bytes,
) -> Result<NewRecord, Problem> {
    let fault = |fault: String| Problem::unprocessable(format!("{fault}."));
    match media_type {
        Some("application/json") => {
            if external_id.is_some() {
                return Err(fault("external_id belongs into the JSON body".to_owned()));
            }
            parse::<NewRecordBody<'_>>(body)?.record().map_err(fault)
        }
        Some("text/plain" | "application/octet-stream") => {
            let external_id = external_id.map(check_external_id).transpose();
            let external_id = external_id.map_err(|error| fault(error.to_string()))?;
            Ok(NewRecord { external_id, payload: body.to_vec() })
        }
        _ => Err(Problem::unsupported_media_type(
            "application/json, text/plain or application/octet-stream",
        )),
    }
}

/// A record.
#[derive(Debug, Serialize, ToSchema)]
struct RecordBody {
    /// Its id.
    id: i64,
    /// The client's own id.
    external_id: Option<String>,
    /// The bytes that are signed, as base64.
    #[schema(format = "byte")]
    payload_base64: String,
    /// `pending`, `signed` or `quarantined`.
    state: &'static str,
    /// When it was taken in.
    #[schema(format = DateTime)]
    created_at: String,
    /// Its signature, once there is one.
    signature: Option<SignatureBody>,
}

/// A signature: pure Ed25519 (RFC 8032) over the payload's exact bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SignatureBody {
    /// The record.
    record_id: i64,
    /// The 64 bytes as base64.
    #[schema(format = "byte")]
    signature: String,
    /// The key, whose public part is in `/.well-known/jwks.json`.
    kid: String,
    /// `Ed25519`
    algorithm: &'static str,
    /// The batch that it was signed in.
    batch_id: i64,
    /// When it was stored.
    #[schema(format = DateTime)]
    signed_at: String,
}

impl From<RecordSignature> for SignatureBody {
    fn from(signature: RecordSignature) -> Self {
        SignatureBody {
            record_id: signature.record.0,
            signature: STANDARD.encode(&signature.signature),
            kid: signature.kid.0,
            algorithm: "Ed25519",
            batch_id: signature.batch.0,
            signed_at: signature.signed_at.to_string(),
        }
    }
}

impl From<StoredRecord> for RecordBody {
    fn from(record: StoredRecord) -> Self {
        RecordBody {
            id: record.id.0,
            external_id: record.external_id,
            payload_base64: STANDARD.encode(&record.payload),
            state: record.state.as_str(),
            created_at: record.created_at.to_string(),
            signature: record.signature.map(SignatureBody::from),
        }
    }
}

/// One record, with its signature if it has one
#[utoipa::path(
    get, path = "/v1/records/{id}", tag = "records", security(("bearer" = ["reader"])),
    params(("id" = i64, Path, description = "The record's id")),
    responses(
        (status = 200, body = RecordBody),
        (status = 404, description = "No such record", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    _: As<Reader>,
    shared: Data<Shared>,
    id: Path<i64>,
) -> Result<HttpResponse, Problem> {
    show_record(&shared, RecordId(id.into_inner())).await
}

/// One record by the client's own id
#[utoipa::path(
    get, path = "/v1/records/by-external-id/{external_id}", tag = "records",
    security(("bearer" = ["reader"])),
    params(("external_id" = String, Path, description = "The client's own id")),
    responses(
        (status = 200, body = RecordBody),
        (status = 404, description = "No such record", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show_by_external_id(
    _: As<Reader>,
    shared: Data<Shared>,
    external_id: Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = find(&shared, external_id.into_inner()).await?;
    show_record(&shared, id).await
}

async fn show_record(shared: &Shared, id: RecordId) -> Result<HttpResponse, Problem> {
    let ring = shared.ring.id;
    let record = shared.ask(move |store| store.record(ring, id)).await?;
    let record = record.ok_or_else(no_record)?;
    Ok(HttpResponse::Ok().json(RecordBody::from(record)))
}

/// The record of that external id.
pub(super) async fn find(shared: &Shared, external_id: String) -> Result<RecordId, Problem> {
    let ring = shared.ring.id;
    // No record has an id that could not have been stored, and a database may stumble over one.
    let external_id = check_external_id(external_id).map_err(|_| no_record())?;
    let id = shared.ask(move |store| store.record_id(ring, &external_id)).await?;
    id.ok_or_else(no_record)
}

pub(super) fn no_record() -> Problem {
    Problem::not_found("There is no such record in this ring.")
}
