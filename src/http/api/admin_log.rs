//! The administrators' log.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use serde::Serialize;
use utoipa::ToSchema;

use super::page::{Page, PageQuery, after, limit};
use crate::db::AdminEntry;
use crate::http::Shared;
use crate::http::auth::{As, Reader};
use crate::http::problem::{Problem, ProblemDocument};

/// What an administrator did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryBody {
    /// Its number, from 1 on without a gap.
    seq: i64,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// Who.
    actor: String,
    /// What, as `noun.verb`.
    action: String,
    /// To what.
    target: String,
    /// More about it, as the JSON text that the hash covers.
    detail: String,
    /// The hash of the entry before it.
    previous_hash: String,
    /// SHA-256 of the compact JSON array of `previous_hash`, `seq`, `at`, `actor`, `action`, `target` and
    /// `detail`.
    hash: String,
}

impl From<AdminEntry> for EntryBody {
    fn from(entry: AdminEntry) -> Self {
        let AdminEntry { seq, at, actor, action, target, detail, previous_hash, hash } = entry;
        EntryBody { seq, at, actor, action, target, detail, previous_hash, hash }
    }
}

/// What administrators did, oldest first
#[utoipa::path(
    get, path = "/v1/admin-log", tag = "audit", security(("bearer" = ["reader"])),
    params(PageQuery),
    responses(
        (status = 200, body = Page<EntryBody>),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    _: As<Reader>,
    shared: Data<Shared>,
    query: Query<PageQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = limit(query.limit)?;
    let after = after(query.after.as_deref())?;
    let entries = shared.ask(move |store| store.admin_log(after, limit + 1)).await?;
    Ok(Page::of(entries, limit, |entry| entry.seq.to_string(), EntryBody::from).response())
}
