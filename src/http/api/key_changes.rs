//! What happens to keys: enable, disable, retire, destroy, one by one or many at a time.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::keys::{check_reach, wipe_destroyed};
use crate::db::{KeyChange, Store, StoreError};
use crate::http::Shared;
use crate::http::auth::{As, KeyAdmin};
use crate::http::body::{Json, JsonOrNone};
use crate::http::problem::{Problem, ProblemDocument};
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, RingId};

/// How many keys one transaction changes: the ring is locked meanwhile.
const PAGE: u32 = 200;

/// How many keys one request names, at the most.
const MOST_KIDS: usize = 1_000;

/// Why, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// Kept with the key and in its history.
    #[schema(max_length = 1000)]
    reason: Option<String>,
    /// With `destroy`: also a key that is in use. The use ends, what is being signed is thrown away, and
    /// its batch is signed by another key.
    #[serde(default)]
    force: bool,
}

/// What a key is now.
#[derive(Debug, Serialize, ToSchema)]
struct Changed {
    /// The key.
    kid: String,
    /// Its status.
    status: &'static str,
    /// Whether that is new.
    changed: bool,
}

/// Change a key's status
///
/// `enable` lets a disabled key sign again. `disable` keeps a key from signing, and `retire` does so for
/// good; a use that is under way ends as usual. `destroy` wipes its private part, and is refused
/// while the key is in use, unless `force` is true.
#[utoipa::path(
    post, path = "/v1/keys/{kid}/{change}", tag = "keys", security(("bearer" = ["key-admin"])),
    params(
        ("kid" = String, Path, description = "The key's thumbprint"),
        ("change" = String, Path, description = "What to do", pattern = "^(enable|disable|retire|destroy)$"),
    ),
    request_body(content = Option<Reason>, content_type = "application/json"),
    responses(
        (status = 200, body = Changed),
        (status = 404, description = "No such key or change", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "The key's status does not allow it, or the key is in use", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change(
    caller: As<KeyAdmin>,
    shared: Data<Shared>,
    path: Path<(String, String)>,
    body: JsonOrNone<Option<Reason>>,
) -> Result<HttpResponse, Problem> {
    let (kid, change) = path.into_inner();
    let event =
        event(&change).ok_or_else(|| Problem::not_found("There is nothing at this path."))?;
    let Reason { reason, force } = body.0.unwrap_or_default();
    check(reason.as_deref(), force, event)?;
    check_reach(&shared, event)?;
    let kid = Kid(kid);
    let (of, actor) = (kid.clone(), caller.0.actor());
    let ring = shared.ring.id;
    let changed = shared.ask(move |store| {
        let change = KeyChange { event, actor: &actor, reason: reason.as_deref(), force };
        Ok(store.change_keys(ring, &[of], &change)?.contains(&true))
    });
    let changed = changed.await;
    wipe_destroyed(&shared, event).await?;
    let changed = changed?;
    Ok(HttpResponse::Ok().json(Changed { kid: kid.0, status: event.status().as_str(), changed }))
}

/// Which keys, what to do with them, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ManyKeys {
    /// `enable`, `disable`, `retire` or `destroy`.
    #[schema(pattern = "^(enable|disable|retire|destroy)$")]
    change: String,
    /// These keys: all of them are changed, or none.
    #[serde(default)]
    #[schema(max_items = 1000)]
    kids: Vec<String>,
    /// Instead of `kids`: every key of the ring that it can happen to, some hundred at a time.
    #[serde(default)]
    all: bool,
    /// With `all`: only keys of this status.
    #[schema(value_type = Option<String>, pattern = "^(active|disabled|retired)$")]
    status: Option<KeyStatus>,
    /// Kept with the keys and in their history.
    #[schema(max_length = 1000)]
    reason: Option<String>,
    /// With `destroy`: also keys that are in use.
    #[serde(default)]
    force: bool,
}

/// What has changed.
#[derive(Debug, Serialize, ToSchema)]
struct ManyChanged {
    /// How many keys.
    changed: u64,
    /// Their status.
    status: &'static str,
}

/// Change the status of many keys, or of all
#[utoipa::path(
    post, path = "/v1/keys/change", tag = "keys", security(("bearer" = ["key-admin"])),
    request_body = ManyKeys,
    responses(
        (status = 200, body = ManyChanged),
        (status = 404, description = "No such key: none has changed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "A key's status does not allow it, or a key is in use", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change_many(
    caller: As<KeyAdmin>,
    shared: Data<Shared>,
    body: Json<ManyKeys>,
) -> Result<HttpResponse, Problem> {
    let ManyKeys { change, kids, all, status, reason, force } = body.0;
    let event = event(&change).ok_or_else(|| {
        Problem::unprocessable("change must be enable, disable, retire or destroy.")
    })?;
    check(reason.as_deref(), force, event)?;
    check_reach(&shared, event)?;
    if all != kids.is_empty() || kids.len() > MOST_KIDS {
        return Err(Problem::unprocessable(format!(
            "Send kids, at most {MOST_KIDS} of them, or all: true."
        )));
    }
    if status.is_some() && !all {
        return Err(Problem::unprocessable("status goes with all."));
    }
    let kids: Vec<Kid> = kids.into_iter().map(Kid).collect();
    let (ring, actor) = (shared.ring.id, caller.0.actor());
    let changed = shared.ask(move |store| {
        let change = KeyChange { event, actor: &actor, reason: reason.as_deref(), force };
        if all {
            change_all(store, ring, status, &change)
        } else {
            Ok(count(&store.change_keys(ring, &kids, &change)?))
        }
    });
    let changed = changed.await;
    wipe_destroyed(&shared, event).await?;
    let changed = changed?;
    Ok(HttpResponse::Ok().json(ManyChanged { changed, status: event.status().as_str() }))
}

/// Changes every key that it can happen to, in pages.
fn change_all(
    store: &dyn Store,
    ring: RingId,
    status: Option<KeyStatus>,
    change: &KeyChange<'_>,
) -> Result<u64, StoreError> {
    let mut changed = 0;
    let mut after = KeyId(0);
    loop {
        let page = store.list_keys(ring, status, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(changed) };
        after = last.id;
        let fits = page.into_iter().filter(|key| change.event.may_follow(key.status));
        let kids: Vec<Kid> = fits.map(|key| key.kid).collect();
        changed += count(&store.change_keys(ring, &kids, change)?);
    }
}

fn count(changed: &[bool]) -> u64 {
    changed.iter().filter(|changed| **changed).count() as u64
}

fn event(change: &str) -> Option<KeyEvent> {
    match change {
        "enable" => Some(KeyEvent::Enabled),
        "disable" => Some(KeyEvent::Disabled),
        "retire" => Some(KeyEvent::Retired),
        "destroy" => Some(KeyEvent::Destroyed),
        _ => None,
    }
}

fn check(reason: Option<&str>, force: bool, event: KeyEvent) -> Result<(), Problem> {
    if let Some(reason) = reason
        && (reason.chars().count() > 1000 || reason.contains('\0'))
    {
        return Err(Problem::unprocessable("reason: at most 1000 characters, none of them NUL."));
    }
    if force && event != KeyEvent::Destroyed {
        return Err(Problem::unprocessable("force goes with destroy."));
    }
    Ok(())
}
