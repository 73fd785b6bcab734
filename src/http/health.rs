//! `/live` and `/ready`: whether the process runs, and whether it can do its work.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{Accept, CACHE_CONTROL, Header, Quality};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use futures::future::join_all;
use serde::Serialize;

use super::cached::Cached;
use super::service::Custody;
use super::{Rings, Shared};
use crate::db::{Backlog, StoreError};

/// Records that wait are counted up to so many.
pub(super) const MOST_COUNTED: u32 = 100_000;

/// What the database said a little while ago.
pub(super) struct Health(Cached<Database>);

impl Default for Health {
    fn default() -> Self {
        Health(Cached::new(Duration::from_secs(1)))
    }
}

struct Database {
    schema_fits: bool,
    active_keys: usize,
    backlog: Backlog,
    ring_paused: bool,
}

/// Whether the node can work, and each part that it takes.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    part: &'static str,
    /// The ring that it is about, where the node serves several.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<String>,
    ready: bool,
    detail: String,
}

impl Part {
    fn new(part: &'static str, ready: bool, detail: impl Into<String>) -> Part {
        Part { part, ring: None, ready, detail: detail.into() }
    }
}

/// The process runs.
pub(super) async fn live() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("live\n")
}

/// Each part that the node's work takes, and whether all are ready.
pub(super) async fn ready(request: HttpRequest, rings: Data<Rings>) -> HttpResponse {
    let looks = join_all(rings.0.iter().map(|shared| look(shared))).await;
    let mut parts = of_database(looks.iter().find_map(|look| look.as_deref()));
    for (shared, look) in rings.0.iter().zip(&looks) {
        let mut of_ring = of_ring(look.as_deref());
        of_ring.extend(signing(shared, look.as_deref()).await);
        for part in &mut of_ring {
            part.ring = (rings.0.len() > 1).then(|| shared.ring.name.clone());
        }
        parts.extend(of_ring);
    }
    let readiness = Readiness { ready: parts.iter().all(|part| part.ready), parts };
    let mut answer =
        if readiness.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.insert_header((CACHE_CONTROL, "no-store"));
    if wants_json(&request) {
        answer.json(readiness)
    } else {
        answer.content_type("text/plain").body(in_words(&readiness))
    }
}

/// What the database says of a ring; `None` if it does not answer.
async fn look(shared: &Shared) -> Option<Arc<Database>> {
    let store = Arc::clone(&shared.store);
    let ring = shared.ring.id;
    let database = shared.health.0.ask(move || {
        let schema_fits = match store.check_schema() {
            Ok(()) => true,
            Err(StoreError::Schema(_)) => false,
            Err(error) => return Err(error),
        };
        Ok(Database {
            schema_fits,
            active_keys: store.sealed_keys(ring)?.len(),
            backlog: store.backlog(ring, MOST_COUNTED)?,
            ring_paused: store.orders(ring)?.ring_paused,
        })
    });
    database.await
}

fn of_database(database: Option<&Database>) -> Vec<Part> {
    let Some(Database { schema_fits, .. }) = database else {
        return vec![
            Part::new("database", false, "it does not answer; the log says why"),
            Part::new("migrations", false, UNKNOWN),
        ];
    };
    let schema = if *schema_fits {
        "up to date"
    } else {
        "the schema is not the one that this program knows"
    };
    vec![Part::new("database", true, "it answers"), Part::new("migrations", *schema_fits, schema)]
}

const UNKNOWN: &str = "unknown without the database";

fn of_ring(database: Option<&Database>) -> Vec<Part> {
    let Some(Database { active_keys, backlog, .. }) = database else {
        return vec![Part::new("keys", false, UNKNOWN)];
    };
    let keys = match active_keys {
        0 => "the ring has no active key".to_owned(),
        keys => format!("{keys} active"),
    };
    // Work that waits is no reason to take a node out of service: it is what the node is for.
    let lag = match backlog.oldest {
        None => "nothing waits".to_owned(),
        Some(oldest) => {
            let waiting = backlog.waiting + backlog.in_batches;
            format!("{waiting} records wait, the oldest for {:.1} s", oldest.as_secs_f64())
        }
    };
    vec![Part::new("keys", *active_keys > 0, keys), Part::new("lag", true, lag)]
}

/// The KEK and the signers; nothing for a node that signs nothing.
async fn signing(shared: &Shared, database: Option<&Database>) -> Vec<Part> {
    let Some(signing) = &shared.signing else { return Vec::new() };
    let ring_paused = database.is_some_and(|database| database.ring_paused);
    let troubles = signing.troubles.places();
    let custody = match &signing.custody {
        Custody::Keks(keks) => Part::new("kek", true, format!("{} seals", keks.first().id())),
        Custody::Token(token) if troubles.contains(&"token") => {
            Part::new("token", false, format!("token {:?} does not sign", token.label()))
        }
        Custody::Token(token) => {
            Part::new("token", true, format!("token {:?} has the keys", token.label()))
        }
    };
    let (ready, detail) = match shared.node_state().await.state {
        "running" if ring_paused => (false, "the ring is paused".to_owned()),
        "running" if troubles.is_empty() => {
            (true, format!("running with {} signers", signing.signers))
        }
        "running" => (false, format!("in trouble: {}", troubles.join(", "))),
        state => (false, state.to_owned()),
    };
    vec![custody, Part::new("signing", ready, detail)]
}

fn in_words(readiness: &Readiness) -> String {
    if readiness.ready {
        return "ready\n".to_owned();
    }
    let missing = readiness.parts.iter().filter(|part| !part.ready);
    let of = |ring: &Option<String>| ring.as_ref().map(|ring| format!("ring {ring}: "));
    let in_words = |part: &Part| {
        let ring = of(&part.ring).unwrap_or_default();
        format!("not ready: {ring}{}: {}\n", part.part, part.detail)
    };
    missing.map(in_words).collect()
}

/// Whether the client prefers JSON (RFC 9110, section 12.5.1).
fn wants_json(request: &HttpRequest) -> bool {
    let Ok(mut accept) = Accept::parse(request) else { return false };
    accept.0.retain(|item| item.quality > Quality::ZERO);
    let ranked = accept.ranked();
    let known = ["application/json", "text/plain", "text/*", "*/*"];
    let first = ranked.iter().map(|mime| mime.essence_str()).find(|mime| known.contains(mime));
    first == Some("application/json")
}
