//! A node: the actors of each of its rings, and the pools that all of them share.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, SyncArbiter};
use futures::future::{join_all, select_all};
use tokio::sync::{oneshot, watch};

use super::wait_for_database;
use crate::actors::budget::Budget;
use crate::actors::db_writer::{DbWriter, DbWriterSnapshot, StoreWorker};
use crate::actors::key_manager::{KeyManager, KeyManagerSettings, KeyManagerSnapshot};
use crate::actors::key_set::KeySet;
use crate::actors::messages::{Drain, DrainReport, Observe, Stop};
use crate::actors::off_thread;
use crate::actors::on_the_way::OnTheWay;
use crate::actors::record_loader::RecordLoader;
use crate::actors::reports::Reports;
use crate::actors::signer::{Signer, sign_records};
use crate::actors::supervisor::{
    Finished, Supervisor, SupervisorSettings, SupervisorSnapshot, Team,
};
use crate::actors::troubles::Troubles;
use crate::clock::{BootClock, Clock};
use crate::config::{Config, EngineName, VerifyBeforeStore};
use crate::db::{HeldSigningLock, NodeReport, ReclaimScope, Retirement, Ring, Store, StoreError};
use crate::http::{Custody, Signing};
use crate::keyring::pkcs11::Token;
use crate::metrics::Timings;
use crate::signing::Engine;
use crate::types::{BatchSize, NodeId, NodeState, Provider};

/// How long keys that are back wait for others: longer than it takes to tell of all batches that one
/// transaction has ended, and shorter than anybody would notice.
const KEY_PATIENCE: Duration = Duration::from_millis(20);

/// Whether a node ends when everything is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does: `run`.
    UntilDone,
    /// It waits for more: `serve`.
    Forever,
}

/// What a node is made of.
pub struct NodeParts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The configuration.
    pub config: Config,
    /// This start of this process.
    pub node: NodeId,
    /// The rings to sign, at least one.
    pub rings: Vec<RingParts>,
    /// The lock that a signing process must hold on SQLite.
    pub lock: Option<HeldSigningLock>,
    /// Whether to end when everything is signed.
    pub mode: Mode,
}

/// What a node needs to sign a ring.
pub struct RingParts {
    /// The ring.
    pub ring: Ring,
    /// Its private keys, unsealed, or their names on the token.
    pub keys: KeySet,
    /// Where new private keys go.
    pub custody: Custody,
}

/// A running node: the actors of each of its rings, in the order of [`NodeParts::rings`].
pub struct Node {
    rings: Vec<RingNode>,
    store: Arc<dyn Store>,
    reports: Reports,
    _lock: Option<HeldSigningLock>,
}

/// One ring's actors. Signers and loaders are the node's.
struct RingNode {
    ring: Ring,
    batch_size: BatchSize,
    supervisor: Addr<Supervisor>,
    key_manager: Addr<KeyManager>,
    writer: Addr<DbWriter>,
    troubles: Troubles,
    timings: Timings,
    stored: watch::Receiver<u64>,
    signers: usize,
    custody: Custody,
    finished: oneshot::Receiver<Finished>,
    end: Option<Finished>,
}

/// How a node's work on one ring ended.
#[derive(Debug)]
pub struct RingEnd {
    /// The ring.
    pub ring: Ring,
    /// How.
    pub finished: Finished,
}

/// What every ring of a node is started with.
struct Shared {
    store: Arc<dyn Store>,
    config: Config,
    node: NodeId,
    mode: Mode,
    clock: Arc<dyn Clock>,
    sizes: Sizes,
    budget: Budget,
    reports: Reports,
    loader: Addr<RecordLoader>,
    /// On SQLite, where one transaction writes at a time: then rings take turns. Elsewhere each ring has
    /// workers of its own, so that a lock on one ring's row keeps no other's from storing.
    workers: Option<Addr<StoreWorker>>,
    signers: SignerPools,
}

/// A pool of signers for each provider that a ring of the node has, started when it is first needed.
#[derive(Default)]
struct SignerPools(BTreeMap<Provider, Addr<Signer>>);

impl SignerPools {
    fn of(
        &mut self,
        custody: &Custody,
        threads: usize,
        config: &Config,
        clock: &Arc<dyn Clock>,
    ) -> Addr<Signer> {
        let (provider, token) = match custody {
            Custody::Keks(_) => (Provider::Software, None),
            Custody::Token(token) => (Provider::Pkcs11, Some(token.clone())),
        };
        let start = || start_signers(threads, config, clock, token);
        self.0.entry(provider).or_insert_with(start).clone()
    }
}

fn start_signers(
    threads: usize,
    config: &Config,
    clock: &Arc<dyn Clock>,
    token: Option<Token>,
) -> Addr<Signer> {
    let clock = Arc::clone(clock);
    let engine = match config.signing.engine {
        EngineName::AwsLc => Engine::AwsLc,
        EngineName::Dalek => Engine::Dalek,
    };
    let verify = config.signing.verify_before_store == VerifyBeforeStore::Batch;
    SyncArbiter::start(threads, move || Signer {
        engine,
        clock: Arc::clone(&clock),
        sign: sign_records,
        verify,
        token: token.as_ref().map(Token::session),
    })
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
        let NodeParts { store, config, node, rings, lock, mode } = parts;
        if lock.is_some() {
            for RingParts { ring, .. } in &rings {
                let reclaim = || store.reclaim(ring.id, ReclaimScope::All);
                let reclaimed = wait_for_database(&config, reclaim)?;
                crate::actors::key_manager::log_reclaim(&reclaimed);
            }
        }
        let sizes = Sizes::of(&config);
        let of_rings = rings.iter().map(|parts| (parts.ring.id, parts.ring.name.clone()));
        let reports = Reports::new(first_report(&config), of_rings);
        let loader = SyncArbiter::start(sizes.loaders, {
            let store = Arc::clone(&store);
            move || RecordLoader { store: Arc::clone(&store) }
        });
        let workers = lock.as_ref().map(|_| store_workers(&store, &config));
        let mut shared = Shared {
            store: Arc::clone(&store),
            node,
            mode,
            clock: Arc::new(BootClock),
            sizes,
            budget: Budget::new(config.signing.max_in_flight_bytes),
            reports: reports.clone(),
            loader,
            workers,
            signers: SignerPools::default(),
            config,
        };
        let rings = rings.into_iter().map(|parts| shared.start(parts));
        let rings = rings.collect();
        Ok(Node { rings, store, reports, _lock: lock })
    }

    /// Waits until the node's work on every ring has ended. If one of them fails, the others finish
    /// what they have in flight, for a lease at the most. The node stays observable, and must be
    /// stopped.
    ///
    /// May be dropped and called again.
    pub async fn finished(&mut self) -> Vec<RingEnd> {
        loop {
            let open = self.rings.iter_mut().filter(|ring| ring.end.is_none());
            let waits: Vec<_> = open.map(|ring| Box::pin(ring.wait())).collect();
            if waits.is_empty() {
                break;
            }
            let (has_failed, ..) = select_all(waits).await;
            if has_failed {
                self.drain_beside();
            }
        }
        let ends = self.rings.iter_mut().filter_map(|ring| {
            Some(RingEnd { ring: ring.ring.clone(), finished: ring.end.take()? })
        });
        ends.collect()
    }

    /// Begins to drain what has not ended.
    fn drain_beside(&self) {
        for ring in self.rings.iter().filter(|ring| ring.end.is_none()) {
            tracing::info!(ring = ring.ring.name, "finishing what is in flight");
            let drain = ring.supervisor.send(Drain { deadline: self.reports.lease() });
            actix::spawn(async move {
                // One that is gone has ended.
                let _ = drain.await;
            });
        }
    }

    /// What may be seen of each ring over HTTP, and steered.
    #[must_use]
    pub fn signing(&self) -> Vec<(Ring, Signing)> {
        let supervisors: Arc<[_]> = self.rings.iter().map(|ring| ring.supervisor.clone()).collect();
        let signing = self.rings.iter().map(|ring| {
            let signing = Signing {
                supervisor: ring.supervisor.clone(),
                supervisors: Arc::clone(&supervisors),
                key_manager: ring.key_manager.clone(),
                writer: ring.writer.clone(),
                troubles: ring.troubles.clone(),
                timings: ring.timings.clone(),
                stored: ring.stored.clone(),
                signers: ring.signers,
                batch_size: ring.batch_size,
                custody: ring.custody.clone(),
            };
            (ring.ring.clone(), signing)
        });
        signing.collect()
    }

    /// Finishes what is in flight, for `deadline` at the most; what became of all rings together.
    /// `None` if the actors of a ring are gone.
    pub async fn drain(&self, deadline: Duration) -> Option<DrainReport> {
        let drains = self.rings.iter().map(|ring| ring.supervisor.send(Drain { deadline }));
        let mut all = DrainReport { stored_batches: 0, left_in_flight: 0 };
        for report in join_all(drains).await {
            let report = report.ok()?;
            all.stored_batches += report.stored_batches;
            all.left_in_flight += report.left_in_flight;
        }
        Some(all)
    }

    /// How many batches are in flight: the Supervisors answer at once, whatever the database does.
    pub async fn in_flight(&self) -> u32 {
        let seen = self.rings.iter().map(|ring| ring.supervisor.send(Observe::new()));
        let seen = join_all(seen).await;
        seen.into_iter().map(|snapshot| snapshot.map_or(0, |snapshot| snapshot.in_flight)).sum()
    }

    /// What the node has done and is doing for each ring. It waits for database work that is under
    /// way.
    pub async fn observe(&self) -> Vec<NodeSnapshot> {
        join_all(self.rings.iter().map(RingNode::observe)).await
    }

    /// Stops every actor, and says so in the database; the sync pools end with their last address.
    pub async fn stop(self) {
        let in_flight = self.in_flight().await;
        for ring in &self.rings {
            // An actor that has stopped already is what was asked for.
            let _ = ring.supervisor.send(Stop).await;
            let _ = ring.key_manager.send(Stop).await;
            let _ = ring.writer.send(Stop).await;
        }
        for ring in &self.rings {
            if let Custody::Token(token) = &ring.custody {
                let token = token.clone();
                let shut_down = off_thread(move || {
                    token.shut_down();
                    Ok(())
                });
                // A module that hangs keeps no process from its end.
                let _ = tokio::time::timeout(Duration::from_secs(2), shut_down).await;
            }
        }
        let last = self.reports.last(in_flight);
        if let Err(error) = off_thread(move || self.store.report(&last)).await {
            tracing::debug!(%error, "could not write down that the node has stopped");
        }
    }
}

impl RingNode {
    /// Waits for the end of the work on the ring; whether it failed.
    async fn wait(&mut self) -> bool {
        let finished = (&mut self.finished).await.unwrap_or_else(|_| {
            Finished::Failed(StoreError::Database(
                "the supervisor is gone; the log says why".to_owned(),
            ))
        });
        let has_failed = matches!(finished, Finished::Failed(_) | Finished::Faulty(_));
        self.end = Some(finished);
        has_failed
    }

    async fn observe(&self) -> NodeSnapshot {
        NodeSnapshot {
            supervisor: self.supervisor.send(Observe::new()).await.unwrap_or_default(),
            key_manager: self.key_manager.send(Observe::new()).await.unwrap_or_default(),
            writer: self.writer.send(Observe::new()).await.unwrap_or_default(),
        }
    }
}

impl Shared {
    /// Starts the actors of one ring.
    fn start(&mut self, parts: RingParts) -> RingNode {
        let RingParts { ring, keys, custody } = parts;
        let Shared { store, config, node, clock, .. } = &*self;
        let (store, node, clock) = (Arc::clone(store), node.clone(), Arc::clone(clock));
        let batch_size = config.signing.batch_size_of(&ring.name);
        let lease = config.lease.duration();
        let signers = self.sizes.signers;
        let signer = self.signers.of(&custody, signers, &self.config, &clock);
        let config = &self.config;
        let troubles = Troubles::default();
        let timings = Timings::default();
        let (stored_batches, stored) = watch::channel(0);

        let key_manager = KeyManager::new(
            KeyManagerSettings {
                ring: ring.id,
                node: node.clone(),
                batch_size,
                lease,
                retirement: retirement(config, &ring),
            },
            Arc::clone(&store),
            Arc::clone(&clock),
            keys,
            troubles.clone(),
            timings.clone(),
        )
        .start();
        let workers = self.workers.clone().unwrap_or_else(|| store_workers(&store, config));
        let on_the_way = OnTheWay::default();
        let writers = config.signing.writers;
        let writer = DbWriter::new(workers, writers, on_the_way.clone(), troubles.clone()).start();
        let team = Team {
            key_manager: key_manager.clone(),
            loader: self.loader.clone(),
            signer,
            writer: writer.clone(),
            on_the_way,
            troubles: troubles.clone(),
            timings: timings.clone(),
            stored: stored_batches,
        };
        let until_done = self.mode == Mode::UntilDone;
        let settings = SupervisorSettings {
            ring: ring.id,
            ring_name: ring.name.clone(),
            node,
            until_done,
            batch_size,
            max_in_flight: max_in_flight(config, batch_size, signers, ring.provider),
            budget: self.budget.clone(),
            slice_bytes: self.sizes.slice_bytes,
            longest_idle: Duration::from_millis(if until_done { 500 } else { 1000 }),
            look_every: Duration::from_secs(if until_done { 0 } else { 60 }),
            key_patience: KEY_PATIENCE,
            watchdog: (lease * 2).max(Duration::from_secs(30)),
            max_attempts: config.lease.max_attempts,
            reports: self.reports.clone(),
        };
        let (supervisor, finished) = Supervisor::new(settings, store, clock, team);
        let supervisor = supervisor.start();
        RingNode {
            ring,
            batch_size,
            supervisor,
            key_manager,
            writer,
            troubles,
            timings,
            stored,
            signers,
            custody,
            finished,
            end: None,
        }
    }
}

/// When the keys of a ring retire by themselves. On a token keys are made by people only.
fn retirement(config: &Config, ring: &Ring) -> Retirement {
    let retirement = Retirement {
        after_signatures: config.keys.retire_after_signatures,
        after: config.keys.retire_after(),
    };
    if ring.provider == Provider::Software || retirement.is_never() {
        return retirement;
    }
    tracing::warn!(ring = ring.name, "keys on a token do not retire on schedule");
    Retirement::default()
}

fn store_workers(store: &Arc<dyn Store>, config: &Config) -> Addr<StoreWorker> {
    let store = Arc::clone(store);
    SyncArbiter::start(config.signing.writers, move || StoreWorker { store: Arc::clone(&store) })
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

/// A snapshot of each of the actors of a ring.
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
    slice_bytes: usize,
}

impl Sizes {
    fn of(config: &Config) -> Self {
        let signing = &config.signing;
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let slice_bytes = signing.slice_bytes.min(signing.max_in_flight_bytes);
        Sizes {
            signers: signing.signers.resolve(cores),
            loaders: signing.loaders.resolve(2),
            slice_bytes: usize::try_from(slice_bytes).unwrap_or(usize::MAX),
        }
    }
}

/// How many batches of that size may be in flight: enough records for every stage to have work while
/// the others do theirs.
fn max_in_flight(
    config: &Config,
    batch_size: BatchSize,
    signers: usize,
    provider: Provider,
) -> u32 {
    let suggested = match provider {
        Provider::Software => {
            16_384_usize.div_ceil(batch_size.records() as usize).min(256).max(4 * signers)
        }
        // What waits for a slow token must not wait longer than a lease or the watchdog.
        Provider::Pkcs11 => 2 * signers,
    };
    u32::try_from(config.signing.max_in_flight.resolve(suggested)).unwrap_or(u32::MAX)
}
