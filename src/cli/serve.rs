//! `chancery serve`

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Context as _;

use super::{Context, Outcome, SigningFlags, output, run};
use crate::actors::supervisor::Finished;
use crate::app::signals::Signals;
use crate::app::{self, MissingDatabase, Mode, Node, NodeParts};
use crate::http;

/// Sign what is there and what arrives, until SIGTERM or Ctrl-C
#[derive(clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    pub(super) signing: SigningFlags,
}

impl Serve {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let (kek, made) = app::load_or_make_kek(&context.config, database.store.as_ref())?;
        if let Some(path) = made {
            tracing::warn!(path = %path.display(), "made a key-encryption key; keep a copy of it");
        }
        let keys = app::unseal_keys(&context.config, &database.store, &ring, kek)?;
        let lock = app::wait_for_signing_lock(database.store.as_ref(), &context.node)?;
        let lease = context.config.lease.duration();
        let bind = context.config.http.bind;
        let parts = NodeParts {
            store: Arc::clone(&database.store),
            config: context.config.clone(),
            node: context.node.clone(),
            ring: ring.clone(),
            keys,
            lock,
            mode: Mode::Forever,
        };
        actix::System::new().block_on(async move {
            let mut signals = Signals::listen()?;
            let listener = TcpListener::bind(bind)
                .with_context(|| format!("cannot listen on {bind} (http.bind)"))?;
            tracing::info!(
                node = %parts.node, ring = ring.name, database = database.name, %bind,
                keys = parts.keys.len(), batch_size = parts.config.signing.batch_size.records(),
                "serving"
            );
            let mut node = Node::start(parts)?;
            let server = http::serve(listener, node.watched()).context("cannot serve HTTP")?;
            let handle = server.handle();
            actix::spawn(server);
            let finished = tokio::select! {
                finished = node.finished() => finished,
                signal = signals.next() => {
                    tracing::info!(signal, "finishing what is in flight; once more to end at once");
                    run::drain(&mut node, &mut signals, lease).await
                }
            };
            handle.stop(true).await;
            let done = node.observe().await.supervisor;
            node.stop().await;
            tracing::info!(records = done.signed_records, batches = done.stored_batches, "stopped");
            match finished {
                Finished::Failed(error) => {
                    let name = database.name;
                    Err(anyhow::Error::from(error).context(format!("cannot go on with {name}")))
                }
                Finished::Drained(report) if report.left_in_flight > 0 => {
                    let batches = output::counted(report.left_in_flight, "batch");
                    Err(anyhow::anyhow!(
                        "{batches} left unfinished; their leases bring the keys back"
                    ))
                }
                _ => Ok(Outcome::Done),
            }
        })
    }
}
