//! A node over HTTP: its API, its health, its metrics, and the public keys.
//!
//! Denied by default: what needs no token is named in `open_endpoints`, and everything else asks
//! for one before it does anything.

mod api;
mod auth;
mod body;
mod cached;
mod dashboard;
mod health;
mod intake;
mod jwks;
mod limits;
mod lines;
mod metrics;
mod problem;
mod request;
mod routes;
mod service;
mod spool;
mod tallies;
mod tls;
pub mod token;
mod waiters;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::KeepAlive;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, PathConfig, QueryConfig, ServiceConfig};
use actix_web::{App, HttpServer};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

pub use service::{Custody, Service, Signing};
pub use tls::TlsError;

use self::auth::{Caller, Tokens};
use self::cached::Cached;
use self::dashboard::Board;
use self::intake::Intake;
use self::limits::Limits;
use self::metrics::{Counters, DatabaseNumbers, Numbers};
use self::problem::Problem;
use self::service::NodeState;
use self::tallies::Tallies;
use self::waiters::Waiters;
use crate::actors::messages::Nudge;
use crate::actors::off_thread;
use crate::config::HttpConfig;
use crate::db::{Added, Ring, Store, StoreError};
use crate::types::NodeId;

/// How long an answer may wait for an actor or the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection may be silent between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long requests that are under way may take when the server stops, in seconds.
const LAST_REQUESTS_S: u64 = 10;

/// What all requests share.
struct Shared {
    config: HttpConfig,
    store: Arc<dyn Store>,
    ring: Ring,
    node: NodeId,
    node_name: String,
    version: &'static str,
    lease: Duration,
    signing: Option<Signing>,
    tokens: Tokens,
    limits: Limits,
    counters: Counters,
    intake: Intake,
    waiters: Waiters,
    audits: api::Audits,
    numbers: Numbers,
    tallies: Arc<Tallies>,
    board: Board,
    /// Turns true when the server stops: who waits or looks is sent away.
    stopping: watch::Sender<bool>,
}

impl Shared {
    /// Asks the database off the thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.store);
        Ok(off_thread(move || question(store.as_ref())).await?)
    }

    async fn node_state(&self) -> NodeState {
        NodeState::of(self.signing.as_ref()).await
    }

    /// What the database says in numbers, from now or a second ago.
    async fn numbers(&self) -> Option<Arc<DatabaseNumbers>> {
        let (store, ring) = (Arc::clone(&self.store), self.ring.id);
        let tallies = Arc::clone(&self.tallies);
        self.numbers.ask(move || DatabaseNumbers::read(store.as_ref(), ring, &tallies)).await
    }

    /// Waits until the server stops.
    async fn stopped(&self) {
        // The sender is here, so it is never gone.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Tells the Supervisor of this process that there may be work.
    fn nudge(&self) {
        if let Some(signing) = &self.signing
            && let Err(error) = signing.supervisor.try_send(Nudge)
        {
            tracing::debug!(%error, "could not nudge the supervisor");
        }
    }

    fn count_added(&self, added: &[Added]) {
        for added in added {
            match added {
                Added::New(_) => self.counters.records_accepted.inc(),
                Added::Unchanged(_) => self.counters.intake_duplicates.inc(),
                Added::Conflict(_) => self.counters.intake_conflicts.inc(),
            };
        }
    }
}

/// Checks what the configuration says of HTTP as a whole.
///
/// # Errors
/// What must not be served so.
pub fn check(config: &HttpConfig) -> Result<(), CheckError> {
    let is_plain = tls::load(config)?.is_none();
    if is_plain && !config.bind.ip().is_loopback() && !config.allow_plain_http {
        return Err(CheckError::PlainHttp { bind: config.bind });
    }
    Ok(())
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// TLS cannot be spoken as it is configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Tokens would travel in the open.
    #[error(
        "http.bind is {bind}, which is not a loopback address, and tokens would travel there in the \
         open: set http.tls_cert_file and http.tls_key_file, or http.allow_plain_http = true where \
         something in front speaks TLS"
    )]
    PlainHttp {
        /// The address.
        bind: SocketAddr,
    },
}

/// A server that runs.
pub struct Server {
    handle: ServerHandle,
    shared: Data<Shared>,
}

impl Server {
    /// Takes no more connections, and lets requests that are under way come to their end.
    pub async fn stop(self) {
        self.shared.stopping.send_replace(true);
        self.handle.stop(true).await;
    }
}

/// Serves, on the runtime of the caller: an actix system.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve(service: Service) -> std::io::Result<Server> {
    let tls = tls::load(&service.config).map_err(std::io::Error::other)?;
    let Service { listener, config, store, ring, node, node_name, lease, signing } = service;
    let supervisor = signing.as_ref().map(|signing| signing.supervisor.clone());
    let stored = signing.as_ref().map(|signing| signing.stored.clone());
    let shared = Data::new(Shared {
        tokens: Tokens::new(Arc::clone(&store)),
        limits: Limits::new(config.requests_per_s),
        counters: Counters::default(),
        intake: Intake::start(Arc::clone(&store), ring.id, supervisor),
        waiters: Waiters::start(Arc::clone(&store), stored),
        audits: api::Audits::default(),
        numbers: Cached::new(Duration::from_millis(900)),
        tallies: Arc::default(),
        board: Board::default(),
        stopping: watch::Sender::new(false),
        version: env!("CARGO_PKG_VERSION"),
        config: config.clone(),
        store,
        ring,
        node,
        node_name,
        lease,
        signing,
    });
    actix_web::rt::spawn(dashboard::watch(Data::clone(&shared)));
    let of_tokens = Data::clone(&shared);
    actix_web::rt::spawn(async move { of_tokens.tokens.follow().await });
    let health = Data::new(health::Health::default());
    let jwks = Data::new(jwks::PublicKeys::default());
    let of_server = Data::clone(&shared);
    let app = move || {
        App::new()
            .wrap(from_fn(request::answer))
            .app_data(Data::clone(&shared))
            .app_data(Data::clone(&health))
            .app_data(Data::clone(&jwks))
            .app_data(QueryConfig::default().error_handler(|error, _| {
                Problem::unprocessable(format!("The query does not fit: {error}.")).into()
            }))
            .app_data(PathConfig::default().error_handler(|error, _| {
                Problem::not_found(format!("There is nothing at this path: {error}.")).into()
            }))
            .app_data(dashboard::form_config())
            .configure(open_endpoints)
            .configure(api::endpoints)
            .configure(dashboard::endpoints)
            .service(routes::get("/metrics", metrics::metrics))
            .default_service(web::to(problem::not_found))
    };
    let server = HttpServer::new(app)
        .workers(config.workers)
        .max_connections(config.max_connections.div_ceil(config.workers))
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(config.request_timeout())
        .client_disconnect_timeout(Duration::from_secs(5))
        .shutdown_timeout(LAST_REQUESTS_S)
        .disable_signals();
    let server = match tls {
        None => server.listen(listener)?,
        Some(tls) => {
            actix_web::rt::spawn(tls.certificate.follow());
            server.listen_rustls_0_23(listener, tls.config)?
        }
    };
    // Port 0 was the system's to choose.
    for address in server.addrs() {
        tracing::info!(%address, "listening");
    }
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok(Server { handle, shared: of_server })
}

/// What needs no token.
fn open_endpoints(config: &mut ServiceConfig) {
    let description = api::Description::openapi();
    config
        .service(routes::get("/live", health::live))
        .service(routes::get("/ready", health::ready))
        .service(routes::get("/.well-known/jwks.json", jwks::jwks))
        .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", description));
}
