//! The ring's keys: what there is, and what comes in. A private key goes in, and never out.

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
use crate::db::{Key, Store, StoreError};
use crate::http::auth::{As, KeyAdmin, Reader};
use crate::http::body::{Json, SecretJson};
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::{Custody, Shared};
use crate::keyring::Passphrase;
use crate::keyring::private::{self, Format, PrivateKeyError};
use crate::signing::PrivateKey;
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, Provider, RingId};

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
    /// How many records it has signed.
    signatures: u64,
    /// The key-encryption key that it is sealed under; null if it is not sealed here.
    kek_id: Option<String>,
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
            signatures: key.signatures,
            kek_id: key.kek_id,
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
    let ring = shared.ring.id;
    let key = shared.ask(move |store| key_of(store, ring, &kid)).await?;
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
            Custody::Keks(keks) => {
                new_keys::generate(store.as_ref(), &ring, &keks, count, false, &actor)
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

/// A private key: exactly one of `pem`, `jwk` and `seed_hex`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// A private key in PEM: PKCS#8 (RFC 8410) or OpenSSH's, plain or encrypted.
    #[schema(value_type = Option<String>)]
    pem: Option<Zeroizing<String>>,
    /// The passphrase of an encrypted one.
    #[schema(value_type = Option<String>)]
    passphrase: Option<Zeroizing<String>>,
    /// A private JWK of the type OKP (RFC 8037): `kty`, `crv`, `d`, and `x`, which must be its public key.
    jwk: Option<ImportedJwk>,
    /// The seed of RFC 8032 as 64 hexadecimal digits.
    #[schema(value_type = Option<String>)]
    seed_hex: Option<Zeroizing<String>>,
}

impl Import {
    /// The one key.
    fn read(&self) -> Result<PrivateKey, Problem> {
        let Import { pem, passphrase, jwk, seed_hex } = self;
        let refused = |error: &dyn std::fmt::Display| Problem::unprocessable(format!("{error}."));
        let (text, format) = match (pem, jwk, seed_hex) {
            (Some(pem), None, None) => (pem, None),
            (None, None, Some(seed)) => (seed, Some(Format::Hex)),
            (None, Some(jwk), None) => {
                let (alg, usage) = (jwk.alg.as_deref(), jwk.usage.as_deref());
                if !private::is_for_signing(alg, usage, jwk.key_ops.as_deref()) {
                    return Err(refused(&PrivateKeyError::JwkUse));
                }
                let key = private::from_jwk(&jwk.kty, &jwk.crv, &jwk.x, &jwk.d);
                return key.map_err(|error| refused(&error));
            }
            _ => {
                return Err(Problem::unprocessable("Send exactly one of pem, jwk and seed_hex."));
            }
        };
        if text.matches("-----BEGIN ").count() > 1 {
            return Err(Problem::unprocessable("One key at a time."));
        }
        let passphrase =
            passphrase.as_ref().and_then(|text| Passphrase::of(text.as_bytes().to_vec()));
        let keys = private::read_keys(text.as_bytes(), format, passphrase.as_ref());
        let mut keys = keys.map_err(|error| refused(&error))?;
        match (keys.pop(), keys.is_empty()) {
            (Some(key), true) => Ok(key),
            _ => Err(Problem::unprocessable("One key at a time.")),
        }
    }
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
    /// If it is there: `EdDSA` or `Ed25519`.
    alg: Option<String>,
    /// If it is there: `sig`.
    #[serde(rename = "use")]
    usage: Option<String>,
    /// If they are there, `sign` is among them.
    key_ops: Option<Vec<String>>,
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
    let Custody::Keks(keks) = custody(&shared)? else {
        return Err(Problem::conflict(
            "The keys of this ring are made on its token and never leave it: none is taken in.",
        ));
    };
    let (store, ring, actor) = (Arc::clone(&shared.store), shared.ring.clone(), caller.0.actor());
    // A passphrase takes its time.
    let imported = off_thread(move || {
        Ok(body.0.read().map(|key| {
            new_keys::import(store.as_ref(), &ring, &keks, &[key], &actor).map_err(not_made)
        }))
    });
    let kids = imported.await???;
    let kid = kids.into_iter().next().ok_or_else(Problem::internal)?;
    Ok(HttpResponse::Created().json(ImportedKey { kid: kid.0 }))
}

/// A key of the ring; there is no other here.
fn key_of(store: &dyn Store, ring: RingId, kid: &Kid) -> Result<Key, StoreError> {
    let key = store.key(kid)?;
    if key.ring == ring {
        Ok(key)
    } else {
        Err(StoreError::NotFound { what: "key", name: kid.to_string() })
    }
}

/// Refuses a change that this node cannot make: keys on a token are destroyed where the token is.
pub(super) fn check_reach(shared: &Shared, event: KeyEvent) -> Result<(), Problem> {
    let on_token = shared.ring.provider == Provider::Pkcs11;
    if event == KeyEvent::Destroyed && on_token && shared.signing.is_none() {
        return Err(Problem::conflict(
            "The keys of this ring are on a token, which this node does not have: ask a node that signs.",
        ));
    }
    Ok(())
}

/// Wipes on the token what the database calls destroyed, now or from an earlier time; if that fails, it
/// is done by asking for the same again.
pub(super) async fn wipe_destroyed(shared: &Shared, event: KeyEvent) -> Result<(), Problem> {
    let custody = shared.signing.as_ref().map(|signing| signing.custody.clone());
    let (KeyEvent::Destroyed, Some(Custody::Token(token))) = (event, custody) else {
        return Ok(());
    };
    let (store, ring) = (Arc::clone(&shared.store), shared.ring.id);
    off_thread(move || Ok(token_keys::wipe_destroyed(store.as_ref(), ring, &token)))
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
