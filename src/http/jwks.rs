//! `/.well-known/jwks.json`: the public keys that a verifier needs.
//!
//! Of every ring, those that are active, and those that are retired: they sign no more, and what they
//! signed stays good. A disabled key is under suspicion and not shown until it is enabled or retired;
//! nor is a destroyed one.

use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, ETag, EntityTag, Header, IfNoneMatch};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Shared;
use super::cached::Cached;
use super::problem::Problem;
use crate::db::{Store, StoreError};
use crate::keyring::jwk::Jwks;
use crate::signing::PublicKey;

/// The document as it was read a little while ago.
pub(super) struct PublicKeys(Cached<Document>);

impl Default for PublicKeys {
    fn default() -> Self {
        PublicKeys(Cached::new(Duration::from_secs(1)))
    }
}

/// The JWK set, and its strong entity tag.
struct Document {
    body: String,
    tag: EntityTag,
}

/// A verifier that meets a kid it does not know should ask again at once; else once a minute will do.
const FRESHNESS: (actix_web::http::header::HeaderName, &str) =
    (CACHE_CONTROL, "public, max-age=60");

pub(super) async fn jwks(
    request: HttpRequest,
    shared: Data<Shared>,
    keys: Data<PublicKeys>,
) -> Result<HttpResponse, Problem> {
    let store = shared.store.clone();
    let document = keys.0.ask(move || read(store.as_ref())).await;
    let document = document.ok_or_else(Problem::no_database)?;
    let tag = ETag(document.tag.clone());
    if is_known(&request, &document.tag) {
        let known =
            HttpResponse::NotModified().insert_header(FRESHNESS).insert_header(tag).finish();
        return Ok(known);
    }
    Ok(HttpResponse::Ok()
        .content_type("application/jwk-set+json")
        .insert_header(FRESHNESS)
        .insert_header(tag)
        .body(document.body.clone()))
}

fn read(store: &dyn Store) -> Result<Document, StoreError> {
    let mut keys = Vec::new();
    for key in store.public_keys()? {
        match PublicKey::from_bytes(&key) {
            Ok(key) => keys.push(key),
            Err(error) => tracing::error!(%error, "a public key in the database is none"),
        }
    }
    let jwks: Jwks = keys.iter().collect();
    let body = serde_json::to_string(&jwks)
        .map_err(|error| StoreError::Database(format!("the JWK set cannot be written: {error}")))?;
    let tag = EntityTag::new_strong(URL_SAFE_NO_PAD.encode(Sha256::digest(&body)));
    Ok(Document { body, tag })
}

/// Whether the client has this version (RFC 9110, section 13.1.2).
fn is_known(request: &HttpRequest, tag: &EntityTag) -> bool {
    match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(known)) => known.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    }
}
