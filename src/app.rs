//! The only wiring: from a configuration to running actors, and from a signal to their end.

mod connect;
mod kek;
pub mod signals;
mod token;

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, SyncArbiter};
use tokio::sync::{oneshot, watch};

use crate::actors::db_writer::{DbWriter, DbWriterSnapshot, StoreWorker};
use crate::actors::key_manager::{KeyManager, KeyManagerSettings, KeyManagerSnapshot};
use crate::actors::key_set::{KeySet, KeySetError};
use crate::actors::messages::{Drain, DrainReport, Nudge, Observe, Stop};
use crate::actors::off_thread;
use crate::actors::record_loader::RecordLoader;
use crate::actors::signer::{Signer, sign_records};
use crate::actors::supervisor::{
    Finished, Supervisor, SupervisorSettings, SupervisorSnapshot, Team,
};
use crate::actors::troubles::Troubles;
use crate::clock::{BootClock, Clock};
use crate::config::{Config, EngineName};
use crate::db::{HeldSigningLock, NodeReport, ReclaimScope, Ring, Store};
use crate::http::{Custody, Signing};
use crate::keyring::Kek;
use crate::keyring::pkcs11::Token;
use crate::metrics::Timings;
use crate::signing::Engine;
use crate::types::{NodeId, NodeState};

pub use connect::{
    Connected, MissingDatabase, ask_database, connect, wait_for_database, wait_for_signing_lock,
};
pub use kek::{KekSource, load_kek, load_or_make_kek};
pub use token::{keys_on_token, open_token};

/// A mistake of the user's, as opposed to a failure: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// This start of this process: name, process id and a random part.
///
/// # Errors
/// If the operating system gives no randomness.
pub fn node_id(config: &Config) -> anyhow::Result<NodeId> {
    let name: String = config
        .node
        .name
        .clone()
        .unwrap_or_else(|| config.node.host())
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(30)
        .collect();
    let random = getrandom::u32().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(NodeId(format!("{name}-{}-{random:08x}", std::process::id())))
}

/// Whether a node ends when everything is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does: `run`.
    UntilDone,
    /// It waits for more: `serve`.
    Forever,
}

/// A running node: one ring's actors.
pub struct Node {
    supervisor: Addr<Supervisor>,
    key_manager: Addr<KeyManager>,
    writer: Addr<DbWriter>,
    store: Arc<dyn Store>,
    report: NodeReport,
    troubles: Troubles,
    timings: Timings,
    stored: watch::Receiver<u64>,
    signers: usize,
    finished: oneshot::Receiver<Finished>,
    _lock: Option<HeldSigningLock>,
}

/// What a node is made of.
pub struct NodeParts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The configuration.
    pub config: Config,
    /// This start of this process.
    pub node: NodeId,
    /// The ring to sign.
    pub ring: Ring,
    /// The ring's private keys, unsealed, or their names on the token.
    pub keys: KeySet,
    /// The token, if they are on one.
    pub token: Option<Token>,
    /// The lock that a signing process must hold on SQLite.
    pub lock: Option<HeldSigningLock>,
    /// Whether to end when everything is signed.
    pub mode: Mode,
}

impl Node {
    /// Starts the actors. Must be called inside an actix system.
    ///
    /// With the signing lock in hand, what an earlier process had checked out is reclaimed first:
    /// the free lock proved it dead.
    ///
    /// # Errors
    /// What the database says to that reclaim.
    pub fn start(parts: NodeParts) -> anyhow::Result<Node> {
        let NodeParts { store, config, node, ring, keys, token, lock, mode } = parts;
        if lock.is_some() {
            let reclaim = || store.reclaim(ring.id, ReclaimScope::All);
            let reclaimed = wait_for_database(&config, reclaim)?;
            crate::actors::key_manager::log_reclaim(&reclaimed);
        }
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let troubles = Troubles::default();
        let timings = Timings::default();
        let (stored_batches, stored) = watch::channel(0);
        let report = first_report(&config);
        let sizes = Sizes::of(&config, token.is_some());
        let lease = config.lease.duration();

        let key_manager = KeyManager::new(
            KeyManagerSettings {
                ring: ring.id,
                node: node.clone(),
                batch_size: config.signing.batch_size,
                lease,
            },
            Arc::clone(&store),
            Arc::clone(&clock),
            keys,
            troubles.clone(),
            timings.clone(),
        )
        .start();
        let loader = SyncArbiter::start(sizes.loaders, {
            let store = Arc::clone(&store);
            move || RecordLoader { store: Arc::clone(&store) }
        });
        let signer = SyncArbiter::start(sizes.signers, {
            let clock = Arc::clone(&clock);
            let engine = match config.signing.engine {
                EngineName::Dalek => Engine::Dalek,
            };
            move || Signer {
                engine,
                clock: Arc::clone(&clock),
                sign: sign_records,
                token: token.as_ref().map(Token::session),
            }
        });
        let workers = SyncArbiter::start(config.signing.writers, {
            let store = Arc::clone(&store);
            move || StoreWorker { store: Arc::clone(&store) }
        });
        let writer = DbWriter::new(workers, config.signing.writers, troubles.clone()).start();
        let team = Team {
            key_manager: key_manager.clone(),
            loader,
            signer,
            writer: writer.clone(),
            troubles: troubles.clone(),
            timings: timings.clone(),
            stored: stored_batches,
        };
        let until_done = mode == Mode::UntilDone;
        let settings = SupervisorSettings {
            ring: ring.id,
            node,
            until_done,
            max_in_flight: sizes.max_in_flight,
            max_in_flight_bytes: config.signing.max_in_flight_bytes,
            slice_bytes: sizes.slice_bytes,
            longest_idle: Duration::from_millis(if until_done { 500 } else { 1000 }),
            look_every: Duration::from_secs(if until_done { 0 } else { 60 }),
            watchdog: (lease * 2).max(Duration::from_secs(30)),
            max_attempts: config.lease.max_attempts,
            report: report.clone(),
        };
        let (supervisor, finished) = Supervisor::new(settings, Arc::clone(&store), clock, team);
        let supervisor = supervisor.start();
        Ok(Node {
            supervisor,
            key_manager,
            writer,
            store,
            report,
            troubles,
            timings,
            stored,
            signers: sizes.signers,
            finished,
            _lock: lock,
        })
    }

    /// Waits until the node's work has ended. The node stays observable, and must be stopped.
    pub async fn finished(&mut self) -> Finished {
        match (&mut self.finished).await {
            Ok(finished) => finished,
            Err(_) => Finished::Failed(crate::db::StoreError::Database(
                "the supervisor is gone; the log says why".to_owned(),
            )),
        }
    }

    /// What may be seen of it over HTTP, and steered; `custody` is where keys that are added so go.
    #[must_use]
    pub fn signing(&self, custody: Custody) -> Signing {
        Signing {
            supervisor: self.supervisor.clone(),
            key_manager: self.key_manager.clone(),
            writer: self.writer.clone(),
            troubles: self.troubles.clone(),
            timings: self.timings.clone(),
            stored: self.stored.clone(),
            signers: self.signers,
            custody,
        }
    }

    /// Finishes what is in flight, for `deadline` at the most.
    pub async fn drain(&self, deadline: Duration) -> Option<DrainReport> {
        self.supervisor.send(Drain { deadline }).await.ok()
    }

    /// Says that records have arrived.
    pub async fn nudge(&self) {
        if self.supervisor.send(Nudge).await.is_err() {
            tracing::debug!("nudged a supervisor that has stopped");
        }
    }

    /// How many batches are in flight: the Supervisor answers at once, whatever the database does.
    pub async fn in_flight(&self) -> u32 {
        self.supervisor.send(Observe::new()).await.map_or(0, |snapshot| snapshot.in_flight)
    }

    /// What the node has done and is doing. It waits for database work that is under way.
    pub async fn observe(&self) -> NodeSnapshot {
        NodeSnapshot {
            supervisor: self.supervisor.send(Observe::new()).await.unwrap_or_default(),
            key_manager: self.key_manager.send(Observe::new()).await.unwrap_or_default(),
            writer: self.writer.send(Observe::new()).await.unwrap_or_default(),
        }
    }

    /// Stops every actor, and says so in the database; the sync pools end with their last address.
    pub async fn stop(self) {
        let in_flight = self.in_flight().await;
        // An actor that has stopped already is what was asked for.
        let _ = self.supervisor.send(Stop).await;
        let _ = self.key_manager.send(Stop).await;
        let _ = self.writer.send(Stop).await;
        let last = NodeReport { state: NodeState::Stopped, in_flight, ..self.report };
        if let Err(error) = off_thread(move || self.store.report(&last)).await {
            tracing::debug!(%error, "could not write down that the node has stopped");
        }
    }
}

/// What a node says of itself when it starts.
fn first_report(config: &Config) -> NodeReport {
    let host = config.node.host();
    NodeReport {
        name: config.node.name_or_default(),
        host,
        process_id: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lease: config.lease.duration(),
        state: NodeState::Running,
        in_flight: 0,
        trouble: None,
    }
}

/// A snapshot of each of a node's actors.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeSnapshot {
    /// The Supervisor's.
    pub supervisor: SupervisorSnapshot,
    /// The KeyManager's.
    pub key_manager: KeyManagerSnapshot,
    /// The DbWriter's.
    pub writer: DbWriterSnapshot,
}

/// The configuration's `auto` values, resolved for this machine.
struct Sizes {
    signers: usize,
    loaders: usize,
    max_in_flight: u32,
    slice_bytes: usize,
}

impl Sizes {
    fn of(config: &Config, on_token: bool) -> Self {
        let signing = &config.signing;
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let signers = signing.signers.resolve(cores);
        // Enough records for every stage to have work while the others do theirs.
        let batch_size = signing.batch_size.records() as usize;
        let suggested = if on_token {
            // What waits for a slow token must not wait longer than a lease or the watchdog.
            2 * signers
        } else {
            16_384_usize.div_ceil(batch_size).min(256).max(4 * signers)
        };
        let max_in_flight = signing.max_in_flight.resolve(suggested);
        let slice_bytes = signing.slice_bytes.min(signing.max_in_flight_bytes);
        Sizes {
            signers,
            loaders: signing.loaders.resolve(2),
            max_in_flight: u32::try_from(max_in_flight).unwrap_or(u32::MAX),
            slice_bytes: usize::try_from(slice_bytes).unwrap_or(usize::MAX),
        }
    }
}

/// Unseals a ring's keys, and disables those that are damaged.
///
/// # Errors
/// A [`UsageError`] if the KEK is wrong, and the database's.
pub fn unseal_keys(
    config: &Config,
    store: &Arc<dyn Store>,
    ring: &Ring,
    kek: Arc<Kek>,
) -> anyhow::Result<KeySet> {
    let mut keys =
        ask_for_keys(config, || KeySet::new(Arc::clone(store), ring.id, Arc::clone(&kek)))?;
    for key in ask_for_keys(config, || keys.refresh())? {
        tracing::error!(kid = %key.kid, reason = key.reason, "disabled a damaged key");
    }
    Ok(keys)
}

/// As [`ask_database`]; what is wrong with the KEK is the user's.
fn ask_for_keys<T>(
    config: &Config,
    mut ask: impl FnMut() -> Result<T, KeySetError>,
) -> anyhow::Result<T> {
    let answer = ask_database(config, || match ask() {
        Err(KeySetError::Store(error)) => Err(error),
        answer => Ok(answer),
    });
    answer?.map_err(|error| UsageError(error.to_string()).into())
}
