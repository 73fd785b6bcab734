//! A node of a test's own, wired as the application wires one.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{oneshot, watch};

use super::database::Database;
use super::scripted_signer::scripted_sign;
use crate::actors::budget::Budget;
use crate::actors::db_writer::{DbWriter, DbWriterSnapshot, StoreWorker};
use crate::actors::key_manager::{KeyManager, KeyManagerSettings, KeyManagerSnapshot};
use crate::actors::key_set::KeySet;
use crate::actors::messages::{Drain, DrainReport, Nudge, Observe, Pause, Resume, Stop};
use crate::actors::on_the_way::OnTheWay;
use crate::actors::record_loader::RecordLoader;
use crate::actors::reports::Reports;
use crate::actors::signer::Signer;
use crate::actors::supervisor::{
    Finished, Supervisor, SupervisorSettings, SupervisorSnapshot, Team,
};
use crate::actors::troubles::Troubles;
use crate::clock::Clock;
use crate::db::{NodeReport, Remaining, Retirement, Store};
use crate::metrics::Timings;
use crate::signing::Engine;
use crate::types::{BatchSize, NodeId, NodeState};

/// How long a test waits for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// What a test wants its node to be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) batch_size: u32,
    pub(super) signers: usize,
    pub(super) writers: usize,
    pub(super) max_in_flight: u32,
    pub(super) max_in_flight_bytes: u64,
    pub(super) slice_bytes: usize,
    pub(super) lease: Duration,
    pub(super) retirement: Retirement,
    pub(super) key_patience: Duration,
    pub(super) watchdog: Duration,
    pub(super) until_done: bool,
    pub(super) verify: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            batch_size: 5,
            signers: 2,
            writers: 1,
            max_in_flight: 4,
            max_in_flight_bytes: 1 << 20,
            slice_bytes: 64 << 10,
            lease: Duration::from_secs(60),
            retirement: Retirement::default(),
            key_patience: Duration::from_millis(20),
            watchdog: Duration::from_secs(60),
            until_done: true,
            verify: false,
        }
    }
}

/// A clock that only a test moves.
#[derive(Debug, Default)]
pub(super) struct TestClock(AtomicU64);

impl TestClock {
    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

pub(super) struct TestNode<'a> {
    database: &'a Database,
    pub(super) clock: Arc<TestClock>,
    pub(super) team: Team,
    pub(super) supervisor: Addr<Supervisor>,
    pub(super) finished: oneshot::Receiver<Finished>,
}

fn first_report(lease: Duration) -> NodeReport {
    NodeReport {
        name: "a".to_owned(),
        host: "here".to_owned(),
        process_id: 1,
        version: "0".to_owned(),
        lease,
        state: NodeState::Running,
        in_flight: 0,
        trouble: None,
    }
}

impl<'a> TestNode<'a> {
    pub(super) fn start(database: &'a Database, plan: Plan) -> Self {
        let store: Arc<dyn Store> = Arc::clone(&database.store) as Arc<dyn Store>;
        let test_clock = Arc::new(TestClock::default());
        let clock: Arc<dyn Clock> = Arc::clone(&test_clock) as Arc<dyn Clock>;
        let ring = database.ring;
        let mut keys = KeySet::new(Arc::clone(&store), ring, Arc::clone(&database.keks)).unwrap();
        keys.refresh().unwrap();
        let troubles = Troubles::default();
        let timings = Timings::default();
        let key_manager = KeyManager::new(
            KeyManagerSettings {
                ring,
                node: NodeId("node-a".to_owned()),
                batch_size: BatchSize(NonZeroU32::new(plan.batch_size).unwrap()),
                lease: plan.lease,
                retirement: plan.retirement,
            },
            Arc::clone(&store),
            Arc::clone(&clock),
            keys,
            troubles.clone(),
            timings.clone(),
        )
        .start();
        let loader = SyncArbiter::start(2, {
            let store = Arc::clone(&store);
            move || RecordLoader { store: Arc::clone(&store) }
        });
        let signer = SyncArbiter::start(plan.signers, {
            let clock = Arc::clone(&clock);
            move || Signer {
                engine: Engine::Dalek,
                clock: Arc::clone(&clock),
                sign: scripted_sign,
                verify: plan.verify,
                token: None,
            }
        });
        let workers = SyncArbiter::start(plan.writers, {
            let store = Arc::clone(&store);
            move || StoreWorker { store: Arc::clone(&store) }
        });
        let on_the_way = OnTheWay::default();
        let writer =
            DbWriter::new(workers, plan.writers, on_the_way.clone(), troubles.clone()).start();
        let team = Team {
            key_manager,
            loader,
            signer,
            writer,
            on_the_way,
            troubles,
            timings,
            stored: watch::Sender::new(0),
        };
        let settings = SupervisorSettings {
            ring,
            ring_name: "default".to_owned(),
            node: NodeId("node-a".to_owned()),
            until_done: plan.until_done,
            batch_size: BatchSize(NonZeroU32::new(plan.batch_size).unwrap()),
            max_in_flight: plan.max_in_flight,
            budget: Budget::new(plan.max_in_flight_bytes),
            slice_bytes: plan.slice_bytes,
            longest_idle: Duration::from_millis(100),
            look_every: Duration::ZERO,
            key_patience: plan.key_patience,
            watchdog: plan.watchdog,
            max_attempts: super::database::MAX_ATTEMPTS,
            reports: Reports::new(first_report(plan.lease), [(ring, "default".to_owned())]),
        };
        let (supervisor, finished) = Supervisor::new(settings, store, clock, team.clone());
        let supervisor = supervisor.start();
        TestNode { database, clock: test_clock, team, supervisor, finished }
    }

    /// Waits for the end of the work, and stops every actor.
    pub(super) async fn finish(mut self) -> Finished {
        let finished = tokio::time::timeout(PATIENCE, &mut self.finished).await;
        let finished = finished.expect("the node did not finish").unwrap();
        self.stop().await;
        finished
    }

    /// [`TestNode::finish`] where everything that can be signed is.
    pub(super) async fn finish_done(self) -> Remaining {
        match self.finish().await {
            Finished::Done(remaining) => remaining,
            other => panic!("not done: {other:?}"),
        }
    }

    /// Stops every actor, and sees that none is left running.
    pub(super) async fn stop(self) {
        let TestNode { database, clock, team, supervisor, finished: _ } = self;
        let snapshot = observe::<_, SupervisorSnapshot>(&supervisor).await;
        if snapshot.in_flight == 0 {
            assert_eq!(snapshot.payload_bytes, 0, "permits were not given back");
        }
        // An actor that has stopped already is what was asked for.
        let _ = supervisor.send(Stop).await;
        let _ = team.key_manager.send(Stop).await;
        let _ = team.writer.send(Stop).await;
        eventually("every actor has stopped", || {
            !supervisor.connected() && !team.key_manager.connected() && !team.writer.connected()
        })
        .await;
        drop((team, supervisor));
        // The pools' threads have the store or the clock for as long as they live.
        eventually("every thread has ended", || {
            Arc::strong_count(&database.store) == 1 && Arc::strong_count(&clock) == 1
        })
        .await;
    }

    pub(super) async fn supervisor(&self) -> SupervisorSnapshot {
        observe(&self.supervisor).await
    }

    pub(super) async fn key_manager(&self) -> KeyManagerSnapshot {
        observe(&self.team.key_manager).await
    }

    pub(super) async fn writer(&self) -> DbWriterSnapshot {
        observe(&self.team.writer).await
    }

    /// Waits until the Supervisor's snapshot is as wanted.
    pub(super) async fn until(
        &self,
        what: &str,
        wanted: impl Fn(&SupervisorSnapshot) -> bool,
    ) -> SupervisorSnapshot {
        for_a_while(what, async || {
            let snapshot = self.supervisor().await;
            wanted(&snapshot).then_some(snapshot)
        })
        .await
    }

    pub(super) async fn pause(&self) {
        self.supervisor.send(Pause).await.unwrap();
    }

    pub(super) async fn resume(&self) {
        self.supervisor.send(Resume).await.unwrap();
    }

    pub(super) async fn nudge(&self) {
        self.supervisor.send(Nudge).await.unwrap();
    }

    pub(super) async fn drain(&self, deadline: Duration) -> DrainReport {
        let drained = tokio::time::timeout(PATIENCE, self.supervisor.send(Drain { deadline }));
        drained.await.expect("the drain did not end").unwrap()
    }
}

async fn observe<A, S>(actor: &Addr<A>) -> S
where
    A: Actor<Context = Context<A>> + Handler<Observe<S>>,
    S: Send + 'static,
{
    let answer = tokio::time::timeout(PATIENCE, actor.send(Observe::new())).await;
    answer.expect("no snapshot").unwrap()
}

/// Waits until `wanted` holds.
pub(super) async fn eventually(what: &str, wanted: impl Fn() -> bool) {
    for_a_while(what, async || wanted().then_some(())).await;
}

/// Asks until there is an answer.
pub(super) async fn for_a_while<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The most looks for work that a node at rest makes in `time`: each pause doubles, to 100 ms.
pub(super) fn most_looks(time: Duration) -> u64 {
    6 + time.as_millis() as u64 / 100
}

/// Lets everything run that can, before a test says that something did not happen.
pub(super) async fn let_pass(time: Duration) {
    tokio::time::sleep(time).await;
}
