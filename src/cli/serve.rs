//! `chancery serve`

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Context as _;

use super::{Context, Outcome, SigningFlags, output, run};
use crate::actors::supervisor::Finished;
use crate::app::signals::Signals;
use crate::app::{self, Connected, MissingDatabase, Mode, Node, NodeParts, UsageError};
use crate::db::Ring;
use crate::http::{self, Service, Signing};
use crate::keyring::Kek;

/// Sign what is there and what arrives, with endpoints over HTTP, until SIGTERM or Ctrl-C
#[derive(clap::Args)]
#[command(after_help = "\
What needs no token: /live, /ready, /.well-known/jwks.json, /openapi.json, /docs/. Everything else asks
for one: `chancery token create`. The dashboard is at /.")]
pub(super) struct Serve {
    #[command(flatten)]
    pub(super) signing: SigningFlags,
    /// Only answer over HTTP: never load the key-encryption key or a private key
    #[arg(long, conflicts_with_all = ["batch_size", "signers"])]
    no_signing: bool,
}

impl Serve {
    pub(super) fn loads_keys(&self) -> bool {
        !self.no_signing
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        http::check(&context.config.http).map_err(|error| UsageError(error.to_string()))?;
        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let parts = if self.no_signing { None } else { Some(parts(context, &database, &ring)?) };
        actix::System::new().block_on(serve(context, database, ring, parts))
    }
}

/// What signs.
fn parts(
    context: &Context,
    database: &Connected,
    ring: &Ring,
) -> anyhow::Result<(NodeParts, Arc<Kek>)> {
    let (kek, made) = app::load_or_make_kek(&context.config, database.store.as_ref())?;
    if let Some(path) = made {
        tracing::warn!(path = %path.display(), "made a key-encryption key; keep a copy of it");
    }
    let kek = Arc::new(kek);
    let keys = app::unseal_keys(&context.config, &database.store, ring, Arc::clone(&kek))?;
    let lock = app::wait_for_signing_lock(database.store.as_ref(), &context.node)?;
    let parts = NodeParts {
        store: Arc::clone(&database.store),
        config: context.config.clone(),
        node: context.node.clone(),
        ring: ring.clone(),
        keys,
        lock,
        mode: Mode::Forever,
    };
    Ok((parts, kek))
}

async fn serve(
    context: &Context,
    database: Connected,
    ring: Ring,
    parts: Option<(NodeParts, Arc<Kek>)>,
) -> anyhow::Result<Outcome> {
    let config = &context.config;
    let mut signals = Signals::listen()?;
    let bind = config.http.bind;
    let listener =
        TcpListener::bind(bind).with_context(|| format!("cannot listen on {bind} (http.bind)"))?;
    tracing::info!(
        node = %context.node, ring = ring.name, database = database.name, %bind,
        keys = parts.as_ref().map(|(parts, _)| parts.keys.len()),
        batch_size = config.signing.batch_size.records(),
        "serving"
    );
    let mut signing = None;
    let node = match parts {
        None => None,
        Some((parts, kek)) => {
            let node = Node::start(parts)?;
            signing = Some(node.signing(kek));
            Some(node)
        }
    };
    let server = http::serve(service(context, &database, ring, listener, signing))
        .context("cannot serve HTTP")?;
    match node {
        None => {
            let signal = signals.next().await;
            tracing::info!(signal, "answering what is under way");
            server.stop().await;
            tracing::info!("stopped");
            Ok(Outcome::Done)
        }
        Some(node) => sign_until_the_end(context, database, node, server, signals).await,
    }
}

fn service(
    context: &Context,
    database: &Connected,
    ring: Ring,
    listener: TcpListener,
    signing: Option<Signing>,
) -> Service {
    Service {
        listener,
        config: context.config.http.clone(),
        store: Arc::clone(&database.store),
        ring,
        node: context.node.clone(),
        node_name: context.config.node.name_or_default(),
        lease: context.config.lease.duration(),
        signing,
    }
}

async fn sign_until_the_end(
    context: &Context,
    database: Connected,
    mut node: Node,
    server: http::Server,
    mut signals: Signals,
) -> anyhow::Result<Outcome> {
    let lease = context.config.lease.duration();
    let finished = tokio::select! {
        finished = node.finished() => finished,
        signal = signals.next() => {
            tracing::info!(signal, "finishing what is in flight; once more to end at once");
            run::drain(&mut node, &mut signals, lease).await
        }
    };
    server.stop().await;
    let done = node.observe().await.supervisor;
    node.stop().await;
    tracing::info!(records = done.signed_records, batches = done.stored_batches, "stopped");
    match finished {
        Finished::Failed(error) => {
            let name = database.name;
            Err(anyhow::Error::from(error).context(format!("cannot go on with {name}")))
        }
        Finished::Faulty(error) => Err(error.into()),
        Finished::Drained(report) if report.left_in_flight > 0 => {
            let batches = output::counted(report.left_in_flight, "batch");
            Err(anyhow::anyhow!("{batches} left unfinished; their leases bring the keys back"))
        }
        _ => Ok(Outcome::Done),
    }
}
