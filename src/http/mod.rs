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
use self::metrics::{Counters, DatabaseNumbers, IntakeCounters, Numbers};
use self::problem::Problem;
use self::service::NodeState;
use self::tallies::Tallies;
use self::waiters::Waiters;
use crate::actors::messages::Nudge;
use crate::actors::off_thread;
use crate::config::{HttpConfig, is_ring_name};
use crate::db::{Added, Ring, Store, StoreError};
use crate::types::NodeId;

/// How long an answer may wait for an actor or the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection may be silent between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long requests that are under way may take when the server stops, in seconds.
const LAST_REQUESTS_S: u64 = 10;

/// What each ring has of [`Shared`]; the first is the one that paths without a ring are about.
struct Rings(Vec<Data<Shared>>);

/// What all requests about one ring share.
struct Shared {
    config: HttpConfig,
    store: Arc<dyn Store>,
    ring: Ring,
    /// The names of all rings that the node serves.
    ring_names: Arc<[String]>,
    node: NodeId,
    node_name: String,
    version: &'static str,
    lease: Duration,
    signing: Option<Signing>,
    tokens: Arc<Tokens>,
    limits: Arc<Limits>,
    counters: Counters,
    intake_counters: IntakeCounters,
    intake: Intake,
    waiters: Waiters,
    audits: Arc<api::Audits>,
    health: health::Health,
    numbers: Numbers,
    tallies: Arc<Tallies>,
    board: Board,
    /// Turns true when the server stops: who waits or looks is sent away.
    stopping: Arc<watch::Sender<bool>>,
}

impl Shared {
    fn is_first(&self) -> bool {
        self.ring_names.first() == Some(&self.ring.name)
    }

    /// Where the ring's API is.
    fn api(&self) -> String {
        if self.is_first() { "/v1".to_owned() } else { format!("/v1/rings/{}", self.ring.name) }
    }

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
                Added::New(_) => self.intake_counters.accepted.inc(),
                Added::Unchanged(_) => self.intake_counters.duplicates.inc(),
                Added::Conflict(_) => self.intake_counters.conflicts.inc(),
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
    stopping: Arc<watch::Sender<bool>>,
}

impl Server {
    /// Takes no more connections, and lets requests that are under way come to their end.
    pub async fn stop(self) {
        self.stopping.send_replace(true);
        self.handle.stop(true).await;
    }
}

/// Serves, on the runtime of the caller: an actix system.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve(service: Service) -> std::io::Result<Server> {
    let tls = tls::load(&service.config).map_err(std::io::Error::other)?;
    let Service { listener, config, store, rings, node, node_name, lease } = service;
    let tokens = Arc::new(Tokens::new(Arc::clone(&store)));
    let limits = Arc::new(Limits::new(config.requests_per_s));
    let counters = Counters::default();
    let audits = Arc::new(api::Audits::default());
    let stopping = Arc::new(watch::Sender::new(false));
    let ring_names: Arc<[String]> = rings.iter().map(|(ring, _)| ring.name.clone()).collect();
    let of_ring = |(ring, signing): (Ring, Option<Signing>)| {
        let supervisor = signing.as_ref().map(|signing| signing.supervisor.clone());
        let stored = signing.as_ref().map(|signing| signing.stored.clone());
        Data::new(Shared {
            tokens: Arc::clone(&tokens),
            limits: Arc::clone(&limits),
            counters: counters.clone(),
            intake_counters: IntakeCounters::default(),
            intake: Intake::start(Arc::clone(&store), ring.id, supervisor),
            waiters: Waiters::start(Arc::clone(&store), stored),
            audits: Arc::clone(&audits),
            health: health::Health::default(),
            numbers: Cached::new(Duration::from_millis(900)),
            tallies: Arc::default(),
            board: Board::default(),
            stopping: Arc::clone(&stopping),
            version: env!("CARGO_PKG_VERSION"),
            config: config.clone(),
            store: Arc::clone(&store),
            ring,
            ring_names: Arc::clone(&ring_names),
            node: node.clone(),
            node_name: node_name.clone(),
            lease,
            signing,
        })
    };
    let rings = Data::new(Rings(rings.into_iter().map(of_ring).collect()));
    let Some(first) = rings.0.first().cloned() else {
        return Err(std::io::Error::other("there is no ring to serve"));
    };
    for shared in &rings.0 {
        actix_web::rt::spawn(dashboard::watch(Data::clone(shared)));
        if !is_ring_name(&shared.ring.name) && !shared.is_first() {
            let ring = &shared.ring.name;
            tracing::warn!(ring, "is not served over HTTP: its name does not fit into a path");
        }
    }
    actix_web::rt::spawn(async move { tokens.follow().await });
    let jwks = Data::new(jwks::PublicKeys::default());
    let of_server = Arc::clone(&stopping);
    let app = move || {
        App::new()
            .wrap(from_fn(request::answer))
            .app_data(Data::clone(&first))
            .app_data(Data::clone(&rings))
            .app_data(Data::clone(&jwks))
            .app_data(QueryConfig::default().error_handler(|error, _| {
                Problem::unprocessable(format!("The query does not fit: {error}.")).into()
            }))
            .app_data(PathConfig::default().error_handler(|error, _| {
                Problem::not_found(format!("There is nothing at this path: {error}.")).into()
            }))
            .app_data(dashboard::form_config())
            .configure(open_endpoints)
            .configure(api::endpoints(&rings))
            .configure(dashboard::endpoints(&rings))
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
    Ok(Server { handle, stopping: of_server })
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
