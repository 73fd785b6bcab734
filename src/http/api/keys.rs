//! The ring's keys and their life. A private key goes in, and never out.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path, Query};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroizing;

use super::page::{Page, after, limit};
use crate::actors::key_set::KeySetError;
use crate::actors::token_keys::TokenKeysError;
use crate::actors::{new_keys, off_thread, token_keys};
use crate::db::Key;
use crate::http::auth::{As, KeyAdmin, Reader};
use crate::http::body::{Json, JsonOrNone, SecretJson};
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::{Custody, Shared};
use crate::keyring::private;
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid};

/// How many keys one request makes, at the most: they are one transaction under the ring's lock, which
/// must end well within a lease.
const MOST_KEYS: u32 = 1_000;

/// A key's public part, and how it is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyBody {
    /// Its id.
    id: i64,
    /// Its name: the JWK thumbprint of RFC 7638.
    kid: String,
    /// `Ed25519`.
    algorithm: String,
    /// Its 32 bytes as base64.
    #[schema(format = "byte")]
    public_key: String,
    /// `active`, `disabled`, `retired` or `destroyed`.
    status: &'static str,
    /// Why, where somebody said so.
    status_reason: Option<String>,
    /// Whether a use of it is open.
    in_use: bool,
    /// The ring's tick at the end of its last use; 0 if it was never used.
    last_tick: i64,
    /// How many batches it has signed.
    stored_batches: u64,
    /// When it was added.
    #[schema(format = DateTime)]
    created_at: String,
}

impl From<Key> for KeyBody {
    fn from(key: Key) -> Self {
        KeyBody {
            id: key.id.0,
            kid: key.kid.0,
            algorithm: key.algorithm,
            public_key: STANDARD.encode(&key.public_key),
            status: key.status.as_str(),
            status_reason: key.status_reason,
            in_use: key.in_use,
            last_tick: key.last_tick.0,
            stored_batches: key.stored_uses,
            created_at: key.created_at.to_string(),
        }
    }
}

/// Which keys.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysQuery {
    /// Only those of this status.
    #[param(value_type = Option<String>, pattern = "^(active|disabled|retired|destroyed)$")]
    status: Option<KeyStatus>,
    /// Where the page before ended: its `next`.
    after: Option<String>,
    /// How many items at the most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

/// Keys of the ring, in order of id
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", security(("bearer" = ["reader"])), params(KeysQuery),
    responses(
        (status = 200, body = Page<KeyBody>),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    _: As<Reader>,
    shared: Data<Shared>,
    query: Query<KeysQuery>,
) -> Result<HttpResponse, Problem> {
    let limit = limit(query.limit)?;
    let after = KeyId(after(query.after.as_deref())?);
    let (ring, status) = (shared.ring.id, query.status);
    let keys = shared.ask(move |store| store.list_keys(ring, status, after, limit + 1)).await?;
    Ok(Page::of(keys, limit, |key| key.id.to_string(), KeyBody::from).response())
}

/// One key
#[utoipa::path(
    get, path = "/v1/keys/{kid}", tag = "keys", security(("bearer" = ["reader"])),
    params(("kid" = String, Path, description = "The key's thumbprint")),
    responses(
        (status = 200, body = KeyBody),
        (status = 404, description = "No such key", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    _: As<Reader>,
    shared: Data<Shared>,
    kid: Path<String>,
) -> Result<HttpResponse, Problem> {
    let kid = Kid(kid.into_inner());
    let key = shared.ask(move |store| store.key(&kid)).await?;
    Ok(HttpResponse::Ok().json(KeyBody::from(key)))
}

/// How many keys to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Generate {
    /// So many: the ring is locked meanwhile, and nothing is signed.
    #[schema(minimum = 1, maximum = 1000)]
    count: u32,
}

/// Keys that are new.
#[derive(Debug, Serialize, ToSchema)]
struct NewKeys {
    /// Their thumbprints, in order of id.
    kids: Vec<String>,
}

/// Make keys, sealed under the node's key-encryption key
#[utoipa::path(
    post, path = "/v1/keys/generate", tag = "keys", security(("bearer" = ["key-admin"])),
    request_body = Generate,
    responses(
        (status = 201, body = NewKeys),
        (status = 409, description = "This node signs nothing, and so has no key-encryption key", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn generate(
    caller: As<KeyAdmin>,
    shared: Data<Shared>,
    body: Json<Generate>,
) -> Result<HttpResponse, Problem> {
    let count = body.0.count;
    if !(1..=MOST_KEYS).contains(&count) {
        return Err(Problem::unprocessable(format!(
            "count is {count}: it must be from 1 to {MOST_KEYS}."
        )));
    }
    let custody = custody(&shared)?;
    let (store, ring, actor) = (Arc::clone(&shared.store), shared.ring.clone(), caller.0.actor());
    let kids = off_thread(move || {
        let added = match custody {
            Custody::Kek(kek) => {
                new_keys::generate(store.as_ref(), &ring, &kek, count, false, &actor)
                    .map_err(not_made)
            }
            Custody::Token(token) => {
                token_keys::generate(store.as_ref(), &ring, &token, count, false, &actor)
                    .map_err(not_made_on_token)
            }
        };
        Ok(added.map(|ids| {
            let first = ids.first().map_or(KeyId(0), |id| KeyId(id.0 - 1));
            store.list_keys(ring.id, None, first, count)
        }))
    });
    let keys = kids.await???;
    let kids = keys.into_iter().map(|key| key.kid.0).collect();
    Ok(HttpResponse::Created().json(NewKeys { kids }))
}

/// A private key: exactly one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// A PKCS#8 private key in PEM (RFC 8410), not encrypted.
    #[schema(value_type = Option<String>)]
    pem: Option<Zeroizing<String>>,
    /// A private JWK of the type OKP (RFC 8037): `kty`, `crv`, `d`, and `x`, which must be its public key.
    jwk: Option<ImportedJwk>,
}

/// A private JWK.
#[derive(Deserialize, ToSchema)]
pub(super) struct ImportedJwk {
    /// `OKP`
    kty: String,
    /// `Ed25519`
    crv: String,
    /// The public key, 32 bytes as base64url.
    x: String,
    /// The private key, 32 bytes as base64url.
    #[schema(value_type = String)]
    d: Zeroizing<String>,
}

/// A key that was taken in.
#[derive(Debug, Serialize, ToSchema)]
struct ImportedKey {
    /// Its thumbprint.
    kid: String,
}

/// Take a private key in, and seal it
#[utoipa::path(
    post, path = "/v1/keys/import", tag = "keys", security(("bearer" = ["key-admin"])),
    request_body = Import,
    responses(
        (status = 201, body = ImportedKey),
        (status = 409, description = "The key is there already, or this node has no key-encryption key", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "It is no such key", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn import(
    caller: As<KeyAdmin>,
    shared: Data<Shared>,
    body: SecretJson<Import>,
) -> Result<HttpResponse, Problem> {
    let read = match (&body.0.pem, &body.0.jwk) {
        (Some(pem), None) => private::from_pem(pem),
        (None, Some(jwk)) => private::from_jwk(&jwk.kty, &jwk.crv, &jwk.x, &jwk.d),
        _ => return Err(Problem::unprocessable("Send exactly one of pem and jwk.")),
    };
    let private_key = read.map_err(|error| Problem::unprocessable(format!("{error}.")))?;
    let Custody::Kek(kek) = custody(&shared)? else {
        return Err(Problem::conflict(
            "The keys of this ring are made on its token and never leave it: none is taken in.",
        ));
    };
    let (store, ring, actor) = (Arc::clone(&shared.store), shared.ring.clone(), caller.0.actor());
    let imported =
        off_thread(move || Ok(new_keys::import(store.as_ref(), &ring, &kek, &private_key, &actor)));
    let kid = imported.await?.map_err(not_made)?;
    Ok(HttpResponse::Created().json(ImportedKey { kid: kid.0 }))
}

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// Kept with the key and in its history.
    #[schema(max_length = 1000)]
    reason: Option<String>,
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
/// while the key is in use.
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
    let event = match change.as_str() {
        "enable" => KeyEvent::Enabled,
        "disable" => KeyEvent::Disabled,
        "retire" => KeyEvent::Retired,
        "destroy" => KeyEvent::Destroyed,
        _ => return Err(Problem::not_found("There is nothing at this path.")),
    };
    let reason = body.0.unwrap_or_default().reason;
    if let Some(reason) = &reason
        && (reason.chars().count() > 1000 || reason.contains('\0'))
    {
        return Err(Problem::unprocessable("reason: at most 1000 characters, none of them NUL."));
    }
    let kid = Kid(kid);
    let (of, actor) = (kid.clone(), caller.0.actor());
    let changed =
        shared.ask(move |store| store.change_key(&of, event, &actor, reason.as_deref())).await?;
    if event == KeyEvent::Destroyed {
        destroy_on_token(&shared, kid.clone()).await?;
    }
    Ok(HttpResponse::Ok().json(Changed { kid: kid.0, status: event.status().as_str(), changed }))
}

/// Wipes on the token what the database calls destroyed already; if that fails, it is done by asking
/// for the same again.
async fn destroy_on_token(shared: &Shared, kid: Kid) -> Result<(), Problem> {
    let Some(Custody::Token(token)) = shared.signing.as_ref().map(|signing| &signing.custody)
    else {
        return Ok(());
    };
    let token = token.clone();
    off_thread(move || Ok(token_keys::destroy(&token, &kid).map_err(TokenKeysError::from)))
        .await?
        .map_err(not_made_on_token)
}

fn not_made_on_token(error: TokenKeysError) -> Problem {
    match error {
        TokenKeysError::Store(error) => error.into(),
        error => {
            tracing::error!(%error, "the token did not do what an administrator asked for");
            Problem::conflict(format!("{error}."))
        }
    }
}

fn custody(shared: &Shared) -> Result<Custody, Problem> {
    let custody = shared.signing.as_ref().map(|signing| signing.custody.clone());
    custody.ok_or_else(|| {
        Problem::conflict(
            "This node signs nothing and has no key-encryption key: ask a node that signs.",
        )
    })
}

fn not_made(error: KeySetError) -> Problem {
    match error {
        KeySetError::Store(error) => error.into(),
        KeySetError::Duplicate { kid } => {
            Problem::conflict(format!("Key {} is there already.", kid.0))
        }
        other => {
            tracing::error!(error = %other, "could not seal a key");
            Problem::internal()
        }
    }
}
