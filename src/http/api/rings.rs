//! The rings that the node serves, and the paths under `/v1/rings/{ring}`.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{ObjectBuilder, OpenApi, Required, schema::Type};
use utoipa::{Modify, ToSchema};

use crate::http::auth::{As, Reader};
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::{Rings, Shared};

/// What is of the node or of the whole database, and so under no ring.
const OF_NO_RING: [&str; 5] =
    ["/v1/nodes", "/v1/drain", "/v1/audits", "/v1/admin-log", "/v1/rings"];

/// The rings.
#[derive(Debug, Serialize, ToSchema)]
struct RingList {
    /// In the order in which the node was told of them: the first is the one that `/v1/...` is about.
    items: Vec<RingBody>,
}

/// A ring.
#[derive(Debug, Serialize, ToSchema)]
struct RingBody {
    /// Its name.
    name: String,
    /// Its clock.
    tick: i64,
    /// Whether it is paused on all nodes.
    paused: bool,
    /// Where its private keys are used: `software` or `pkcs11`.
    provider: &'static str,
    /// Records in a full batch, where this node signs.
    batch_size: Option<u32>,
}

/// Rings that this node serves
#[utoipa::path(
    get, path = "/v1/rings", tag = "status", security(("bearer" = ["reader"])),
    responses(
        (status = 200, body = RingList),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(_: As<Reader>, rings: Data<Rings>) -> Result<HttpResponse, Problem> {
    let mut items = Vec::new();
    for shared in &rings.0 {
        let numbers = shared.numbers().await.ok_or_else(Problem::no_database)?;
        items.push(RingBody {
            name: shared.ring.name.clone(),
            tick: numbers.progress.tick,
            paused: numbers.ring_paused,
            provider: shared.ring.provider.as_str(),
            batch_size: shared.signing.as_ref().map(|signing| signing.batch_size.records()),
        });
    }
    Ok(HttpResponse::Ok().json(RingList { items }))
}

/// For every path of a ring that this node does not serve.
pub(super) async fn unknown(
    request: HttpRequest,
    _: Data<Shared>,
) -> Result<HttpResponse, Problem> {
    let name = request.match_info().get("ring").unwrap_or_default();
    Err(Problem::not_found(format!("This node serves no ring {name:?}.")))
}

/// Describes what is about a ring a second time, under the ring's name.
pub(super) struct PerRing;

impl Modify for PerRing {
    fn modify(&self, openapi: &mut OpenApi) {
        let paths = &mut openapi.paths.paths;
        let is_of_ring = |path: &str| !OF_NO_RING.iter().any(|of_none| path.starts_with(of_none));
        let of_rings: Vec<(String, PathItem)> = paths
            .iter()
            .filter(|(path, _)| is_of_ring(path))
            .filter_map(|(path, item)| {
                let rest = path.strip_prefix("/v1")?;
                Some((format!("/v1/rings/{{ring}}{rest}"), under_ring(item.clone())))
            })
            .collect();
        paths.extend(of_rings);
    }
}

fn under_ring(mut item: PathItem) -> PathItem {
    for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
        add_ring(operation);
    }
    item
}

fn add_ring(operation: &mut Operation) {
    let ring = ParameterBuilder::new()
        .name("ring")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The ring's name"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    operation.parameters.get_or_insert_default().insert(0, ring.into());
    if let Some(id) = &mut operation.operation_id {
        id.push_str("_of_ring");
    }
}
