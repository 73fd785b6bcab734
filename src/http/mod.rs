//! What the service says over HTTP: whether it lives, and whether it can work.

use std::net::SocketAddr;
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::web::{self, Data};
use actix_web::{App, HttpResponse, HttpServer};

use crate::actors::off_thread;
use crate::db::Store;

/// What the handlers share.
struct Shared {
    store: Arc<dyn Store>,
    ring: String,
}

/// Binds the endpoints; the server runs when it is awaited or spawned.
///
/// # Errors
/// If the address is not to be had.
pub fn bind(address: SocketAddr, store: Arc<dyn Store>, ring: String) -> std::io::Result<Server> {
    let shared = Data::new(Shared { store, ring });
    let app = move || {
        App::new()
            .app_data(Data::clone(&shared))
            .route("/live", web::get().to(live))
            .route("/ready", web::get().to(ready))
    };
    let server = HttpServer::new(app).workers(1).disable_signals().bind(address)?;
    // Port 0 was the system's to choose.
    for address in server.addrs() {
        tracing::info!(%address, "listening");
    }
    Ok(server.run())
}

/// The process runs.
async fn live() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("live\n")
}

/// The database answers, and the ring has a key that may sign.
async fn ready(shared: Data<Shared>) -> HttpResponse {
    let work = {
        let shared = Data::clone(&shared);
        move || {
            let ring = shared.store.ring(&shared.ring)?;
            Ok(!shared.store.sealed_keys(ring.id)?.is_empty())
        }
    };
    let (ready, reason) = match off_thread(work).await {
        Ok(true) => (true, "ready\n"),
        Ok(false) => (false, "not ready: the ring has no active key\n"),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            (false, "not ready: the database does not answer\n")
        }
    };
    let mut answer = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    answer.content_type("text/plain").body(reason)
}
