//! What can be seen of a node over HTTP without a token: whether it lives and can work, and
//! the public keys.

mod cached;
mod health;
mod jwks;
mod problem;
mod request;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App, FromRequest, Handler, HttpServer, Resource, Responder};

use crate::actors::supervisor::Supervisor;
use crate::actors::troubles::Troubles;
use crate::db::Store;
use crate::types::RingId;

/// How long an answer may wait for an actor or the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// What may be seen of a node.
#[derive(Clone)]
pub struct Watched {
    /// Its Supervisor.
    pub supervisor: Addr<Supervisor>,
    /// What keeps it from its work.
    pub troubles: Troubles,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The ring that it signs.
    pub ring: RingId,
}

/// Answers on `listener`; the server runs when it is awaited or spawned.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve(listener: TcpListener, watched: Watched) -> std::io::Result<Server> {
    let health = Data::new(health::Health::default());
    let jwks = Data::new(jwks::PublicKeys::default());
    let watched = Data::new(watched);
    let app = move || {
        App::new()
            .wrap(from_fn(request::answer))
            .app_data(Data::clone(&watched))
            .app_data(Data::clone(&health))
            .app_data(Data::clone(&jwks))
            .configure(endpoints)
    };
    let server = HttpServer::new(app).workers(1).disable_signals().listen(listener)?;
    // Port 0 was the system's to choose.
    for address in server.addrs() {
        tracing::info!(%address, "listening");
    }
    Ok(server.run())
}

fn endpoints(config: &mut ServiceConfig) {
    config
        .service(shown("/live", health::live))
        .service(shown("/ready", health::ready))
        .service(shown("/.well-known/jwks.json", jwks::jwks))
        .default_service(web::to(problem::not_found));
}

/// What a path shows, and that there is nothing else to do with it.
fn shown<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(web::to(problem::method_not_allowed))
}
