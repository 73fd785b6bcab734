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
        let rings = context.signed_rings(&database)?;
        let parts = if self.no_signing { None } else { Some(parts(context, &database, &rings)?) };
        actix::System::new().block_on(serve(context, database, rings, parts))
    }
}

/// What signs.
fn parts(context: &Context, database: &Connected, rings: &[Ring]) -> anyhow::Result<NodeParts> {
    let config = &context.config;
    let rings = app::ring_parts(config, &database.store, rings, || {
        let (keks, made) = app::load_or_make_keks(config, database.store.as_ref())?;
        if let Some(path) = made {
            tracing::warn!(path = %path.display(), "made a key-encryption key; keep a copy of it");
        }
        Ok(keks)
    })?;
    let lock = app::wait_for_signing_lock(database.store.as_ref(), &context.node)?;
    let parts = NodeParts {
        store: Arc::clone(&database.store),
        config: context.config.clone(),
        node: context.node.clone(),
        rings,
        lock,
        mode: Mode::Forever,
    };
    Ok(parts)
}

async fn serve(
    context: &Context,
    database: Connected,
    rings: Vec<Ring>,
    parts: Option<NodeParts>,
) -> anyhow::Result<Outcome> {
    let config = &context.config;
    let mut signals = Signals::listen()?;
    let bind = config.http.bind;
    let listener =
        TcpListener::bind(bind).with_context(|| format!("cannot listen on {bind} (http.bind)"))?;
    for (n, ring) in rings.iter().enumerate() {
        tracing::info!(
            node = %context.node, ring = ring.name, database = database.name, %bind,
            keys = parts.as_ref().map(|parts| parts.rings[n].keys.len()),
            batch_size = config.signing.batch_size_of(&ring.name).records(),
            "serving"
        );
    }
    let mut served: Vec<(Ring, Option<Signing>)> =
        rings.into_iter().map(|ring| (ring, None)).collect();
    let node = match parts {
        None => None,
        Some(parts) => {
            let node = Node::start(parts)?;
            let signing = node.signing().into_iter();
            served = signing.map(|(ring, signing)| (ring, Some(signing))).collect();
            Some(node)
        }
    };
    let server =
        http::serve(service(context, &database, served, listener)).context("cannot serve HTTP")?;
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
    rings: Vec<(Ring, Option<Signing>)>,
    listener: TcpListener,
) -> Service {
    Service {
        listener,
        config: context.config.http.clone(),
        store: Arc::clone(&database.store),
        rings,
        node: context.node.clone(),
        node_name: context.config.node.name_or_default(),
        lease: context.config.lease.duration(),
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
    let ends = tokio::select! {
        ends = node.finished() => ends,
        signal = signals.next() => {
            tracing::info!(signal, "finishing what is in flight; once more to end at once");
            run::drain(&mut node, &mut signals, lease).await
        }
    };
    server.stop().await;
    let done = node.observe().await;
    node.stop().await;
    let records: u64 = done.iter().map(|ring| ring.supervisor.signed_records).sum();
    let batches: u64 = done.iter().map(|ring| ring.supervisor.stored_batches).sum();
    tracing::info!(records, batches, "stopped");
    let mut left_in_flight = 0;
    for end in ends {
        match end.finished {
            Finished::Failed(error) => {
                let name = database.name;
                return Err(anyhow::Error::from(error).context(format!("cannot go on with {name}")));
            }
            Finished::Faulty(error) => return Err(error.into()),
            Finished::Drained(report) => left_in_flight += report.left_in_flight,
            Finished::Done(_) | Finished::NoActiveKey(_) => {}
        }
    }
    if left_in_flight > 0 {
        let batches = output::counted(left_in_flight, "batch");
        anyhow::bail!("{batches} left unfinished; their leases bring the keys back");
    }
    Ok(Outcome::Done)
}
