//! The API under `/v1`, and its description.

mod admin_log;
mod audits;
mod batches;
mod bulk;
mod key_changes;
mod keys;
mod orders;
mod page;
mod records;
mod rings;
mod signatures;
mod status;

use actix_web::dev::{ServiceFactory, ServiceRequest};
use actix_web::middleware::from_fn;
use actix_web::web::{Data, ServiceConfig, resource, scope, to};
use actix_web::{Error, Scope};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

pub(super) use audits::Audits;

use self::rings::PerRing;
use super::Rings;
use super::auth::authenticate;
use super::routes::{get, post};
use crate::config::is_ring_name;

/// All of `/v1`, which is about the first ring, and that of each ring under its name. Whatever is in
/// here needs a token.
pub(super) fn endpoints(rings: &Rings) -> impl FnOnce(&mut ServiceConfig) {
    let rings = rings.0.clone();
    move |config| {
        let mut api = scope("/v1").wrap(from_fn(authenticate)).service(get("/rings", rings::list));
        for shared in rings.iter().filter(|shared| is_ring_name(&shared.ring.name)) {
            let ring = scope(&format!("/rings/{}", shared.ring.name));
            let ring = of_a_ring(ring.app_data(Data::clone(shared)));
            api = api.service(ring.default_service(to(super::problem::not_found)));
        }
        let unknown = resource(["/rings/{ring}", "/rings/{ring}/{rest:.*}"]);
        let api = of_a_ring(api)
            .service(unknown.to(rings::unknown))
            .service(get("/nodes", status::nodes))
            .service(post("/drain", orders::drain))
            .service(post("/audits", audits::start))
            .service(get("/audits/latest", audits::latest))
            .service(get("/audits/{id}", audits::show))
            .service(get("/admin-log", admin_log::list))
            .default_service(to(super::problem::not_found));
        config.service(api);
    }
}

/// What is about a ring: the one whose [`Shared`](super::Shared) the scope has.
fn of_a_ring<T>(scope: Scope<T>) -> Scope<T>
where
    T: ServiceFactory<ServiceRequest, Config = (), Error = Error, InitError = ()>,
{
    scope
        .service(get("/status", status::status))
        .service(get("/keys", keys::list))
        .service(post("/keys/generate", keys::generate))
        .service(post("/keys/import", keys::import))
        .service(post("/keys/change", key_changes::change_many))
        .service(get("/keys/{kid}", keys::show))
        .service(post("/keys/{kid}/{change}", key_changes::change))
        .service(get("/batches", batches::list))
        .service(get("/batches/{id}", batches::show))
        .service(post("/batches/{id}/retry", batches::retry))
        .service(post("/pause", orders::pause))
        .service(post("/resume", orders::resume))
        .service(post("/records", records::add))
        .service(post("/records/bulk", bulk::bulk))
        .service(get("/records/by-external-id/{external_id}", records::show_by_external_id))
        .service(get("/records/by-external-id/{external_id}/signature", signatures::of_external_id))
        .service(get("/records/{id}", records::show))
        .service(get("/records/{id}/signature", signatures::of_record))
        .service(get("/signatures", signatures::feed))
        .service(post("/verify", signatures::verify))
}

/// The description of the API, OpenAPI 3.1.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Chancery",
        description = "Signs every record exactly once, and shows it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        status::status, status::nodes, rings::list,
        keys::list, keys::show, keys::generate, keys::import,
        key_changes::change, key_changes::change_many,
        batches::list, batches::show, batches::retry,
        orders::pause, orders::resume, orders::drain,
        audits::start, audits::latest, audits::show, admin_log::list,
        records::add, bulk::bulk, records::show, records::show_by_external_id,
        signatures::of_record, signatures::of_external_id, signatures::feed, signatures::verify,
    ),
    components(schemas(bulk::LineResult<'_>)),
    modifiers(&Bearer, &PerRing),
    tags(
        (name = "records", description = "Bring records"),
        (name = "signatures", description = "Take signatures along, and check them"),
        (name = "status", description = "How nodes and ring are doing"),
        (name = "keys", description = "The ring's keys and their life"),
        (name = "batches", description = "Batches and their quarantine"),
        (name = "orders", description = "Pause, resume, drain"),
        (name = "audit", description = "What shows that the rules were kept"),
    )
)]
pub(super) struct Description;

/// Adds the token to the description.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("chy_ and 43 characters of base64url")
            .description(Some("A token, made by `chancery token create`"))
            .build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}
