//! Keeps the permits and pumps batches through the other actors.
//!
//! Invariant: no more batches are checked out than can start at once, and the end of a run is
//! declared only by the truth in the database, never by the cursor.

mod faults;
mod keys;
mod look;
mod orders;
mod report;
mod token;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{oneshot, watch};

pub use self::faults::FaultyMachine;
use super::batch_job::{self, Stations};
use super::budget::{Budget, Share};
use super::db_writer::DbWriter;
use super::key_manager::KeyManager;
use super::loading;
use super::messages::{BatchEnd, BatchSigned, CheckOut, DrainReport, Granted};
use super::on_the_way::OnTheWay;
use super::record_loader::RecordLoader;
use super::reports::Reports;
use super::signer::Signer;
use super::troubles::{Place, Reminder, Troubles};
use crate::clock::Clock;
use crate::db::{Remaining, Shortage, Store, StoreError};
use crate::failpoint::reach;
use crate::metrics::Timings;
use crate::types::{BatchSize, NodeId, RingId};

/// How long to stay idle at first, and at most; each idle look doubles it.
const SHORTEST_IDLE: Duration = Duration::from_millis(10);

/// What a Supervisor needs to know.
#[derive(Clone, Debug)]
pub struct SupervisorSettings {
    /// The ring.
    pub ring: RingId,
    /// The ring's name, for the log.
    pub ring_name: String,
    /// This start of this process, for the log.
    pub node: NodeId,
    /// Whether to end when everything is signed.
    pub until_done: bool,
    /// How many records a batch has at the most.
    pub batch_size: BatchSize,
    /// How many batches may be in flight while no other ring of the node has work.
    pub max_in_flight: u32,
    /// What the rings of the node share.
    pub budget: Budget,
    /// How many bytes of payload are loaded and signed at a time.
    pub slice_bytes: usize,
    /// The longest pause between two looks for work.
    pub longest_idle: Duration,
    /// The shortest pause between two searches through all records for what the cursor missed.
    pub look_every: Duration,
    /// How long some keys that are back wait for others, so that one check-out takes them all.
    pub key_patience: Duration,
    /// After how long a station that has not answered counts as failed.
    pub watchdog: Duration,
    /// After how many failures of its own the store quarantines a batch, for the log.
    pub max_attempts: u32,
    /// What the node says of itself; this ring's part is filled in.
    pub reports: Reports,
}

/// The actors that a Supervisor works with.
#[derive(Clone)]
pub struct Team {
    /// Checks out and returns keys.
    pub key_manager: Addr<KeyManager>,
    /// Reads payloads.
    pub loader: Addr<RecordLoader>,
    /// Signs.
    pub signer: Addr<Signer>,
    /// Stores.
    pub writer: Addr<DbWriter>,
    /// The batches that are on their way to it.
    pub on_the_way: OnTheWay,
    /// Where all of them note what keeps them from their work.
    pub troubles: Troubles,
    /// Where they note how long it took.
    pub timings: Timings,
    /// Where they say that a batch has been stored: the number so far.
    pub stored: watch::Sender<u64>,
}

/// How a Supervisor's work ended.
#[derive(Debug)]
pub enum Finished {
    /// Everything is signed, but for what is in quarantine.
    Done(Remaining),
    /// There is something to sign and no active key.
    NoActiveKey(Remaining),
    /// It was drained.
    Drained(DrainReport),
    /// It cannot go on.
    Failed(StoreError),
    /// It must not go on.
    Faulty(FaultyMachine),
}

/// The actor.
pub struct Supervisor {
    settings: SupervisorSettings,
    store: Arc<dyn Store>,
    stations: Stations,
    state: State,
    /// A checkout, or a question whether there is work, is under way.
    asking: bool,
    /// A search for what is left is under way; it keeps nobody from checking out.
    looking: bool,
    /// Check-outs that brought batches.
    checkouts: u64,
    /// The ring's records, counted ahead of that search.
    count: Option<look::Count>,
    /// Something happened meanwhile, so that another look is due at once.
    ask_again: bool,
    /// The last checkout found no more work, or a paused ring, so that a read is enough to see whether
    /// there is any now.
    quiet: bool,
    idle: Duration,
    /// When the truth about what is left may be asked for again, on the node's clock.
    next_look: Option<Duration>,
    /// When the lack of a key may be told again, on the node's clock.
    next_complaint: Option<Duration>,
    /// When others' transactions may be told again, on the node's clock.
    next_blocker_complaint: Option<Duration>,
    failing_checkouts: Reminder,
    wake_up: Option<SpawnHandle>,
    token: token::TokenWatch,
    in_flight: u32,
    keys: keys::KeyWatch,
    share: Share,
    drains: Vec<oneshot::Sender<DrainReport>>,
    finished: Option<oneshot::Sender<Finished>>,
    /// Why nothing more is started; told when what is in flight has ended.
    failure: Option<Finished>,
    snapshot: SupervisorSnapshot,
}

/// Whether new batches are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Yes.
    #[default]
    Running,
    /// Not until it is resumed.
    Paused,
    /// Never again.
    Draining,
}

/// The state of a Supervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct SupervisorSnapshot {
    /// Whether it starts new batches.
    pub state: State,
    /// Batches in flight.
    pub in_flight: u32,
    /// Bytes of payload that all rings of the node have in memory, or may have at any moment.
    pub payload_bytes: u64,
    /// Batches stored.
    pub stored_batches: u64,
    /// Records in them.
    pub signed_records: u64,
    /// Batches fenced.
    pub fenced_batches: u64,
    /// Batches given up.
    pub given_up_batches: u64,
    /// Those of them with signatures that did not verify.
    pub faulty_batches: u64,
    /// Signatures that did not verify.
    pub faulty_signatures: u64,
    /// Records swept back before the cursor.
    pub swept_records: u64,
    /// The ring is paused, for all nodes.
    pub ring_paused: bool,
}

impl Supervisor {
    /// A Supervisor, and where it will say how its work ended.
    #[must_use]
    pub fn new(
        settings: SupervisorSettings,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        team: Team,
    ) -> (Self, oneshot::Receiver<Finished>) {
        let (finished, receiver) = oneshot::channel();
        let most_bytes = usize::try_from(settings.budget.max_bytes()).unwrap_or(usize::MAX);
        let stations = Stations {
            key_manager: team.key_manager,
            loader: team.loader,
            signer: team.signer,
            writer: team.writer,
            on_the_way: team.on_the_way,
            clock,
            payload_permits: Arc::clone(&settings.budget.payload_permits),
            slice_bytes: settings.slice_bytes.min(most_bytes),
            record_bytes: Arc::default(),
            watchdog: settings.watchdog,
            max_attempts: settings.max_attempts,
            troubles: team.troubles,
            timings: team.timings,
            node: settings.node.clone(),
            stored: team.stored,
        };
        let share = settings.budget.share(settings.max_in_flight);
        let supervisor = Supervisor {
            settings,
            store,
            stations,
            state: State::Running,
            asking: false,
            looking: false,
            checkouts: 0,
            count: None,
            ask_again: false,
            quiet: false,
            idle: SHORTEST_IDLE,
            next_look: None,
            next_complaint: None,
            next_blocker_complaint: None,
            failing_checkouts: Reminder::default(),
            wake_up: None,
            token: token::TokenWatch::default(),
            in_flight: 0,
            keys: keys::KeyWatch::default(),
            share,
            drains: Vec::new(),
            finished: Some(finished),
            failure: None,
            snapshot: SupervisorSnapshot::default(),
        };
        (supervisor, receiver)
    }

    /// Checks out as many batches as there are permits, unless few are free while others work, or few keys
    /// are: a checkout transaction is dear, and is made to count.
    fn pump(&mut self, context: &mut Context<Self>) {
        if self.state != State::Running || self.finished.is_none() || self.failure.is_some() {
            return;
        }
        if self.asking {
            self.ask_again = true;
            return;
        }
        let most = self.token.limit(self.share.most());
        // Another ring may have got work, and with it a part of what this one has in flight.
        let mut free = most.saturating_sub(self.in_flight);
        if free == 0 || (self.in_flight > 0 && free < most / 4) || self.waits_for_keys(context) {
            return;
        }
        if self.in_flight == 0 {
            // As many as are loaded together, so that these are signed while the others are checked out.
            free = free.min((loading::MOST_TOGETHER / self.settings.batch_size.records()).max(1));
        }
        self.asking = true;
        if self.quiet {
            self.look_for_work(context);
        } else {
            self.check_out(free, context);
        }
    }

    fn check_out(&mut self, max_batches: u32, context: &mut Context<Self>) {
        self.keys.no_longer_waits(context);
        let in_flight = self.in_flight;
        let request = self.stations.key_manager.send(CheckOut { max_batches });
        context.spawn(request.into_actor(self).map(move |reply, actor, context| {
            actor.asking = false;
            match reply {
                Ok(Ok(granted)) => {
                    actor.stations.troubles.clear(Place::CheckOut);
                    actor.failing_checkouts.reset();
                    if !granted.checkouts.is_empty() {
                        actor.stations.troubles.clear(Place::Waiting);
                    }
                    actor.note_keys(&granted, in_flight);
                    actor.snapshot.ring_paused = granted.shortage == Some(Shortage::Paused);
                    actor.start(granted, context);
                }
                Ok(Err(error)) => actor.could_not(error, context),
                Err(error) => actor.station_is_gone("key manager", &error.to_string()),
            }
            actor.after_asking(context);
        }));
    }

    fn after_asking(&mut self, context: &mut Context<Self>) {
        if std::mem::take(&mut self.ask_again) {
            self.pump(context);
        }
        self.end_drains_if_idle();
        self.end_failure_if_idle();
    }

    fn start(&mut self, granted: Granted, context: &mut Context<Self>) {
        self.share.set_busy(!granted.checkouts.is_empty() || self.in_flight > 0);
        self.checkouts += u64::from(!granted.checkouts.is_empty());
        if self.finished.is_none() {
            // They came after the end that was told, and nobody waits for them any more.
            for checkout in granted.checkouts {
                actix::spawn(batch_job::hand_back(self.stations.clone(), checkout));
            }
        } else if self.failure.is_some() {
            for checkout in granted.checkouts {
                self.in_flight += 1;
                let (stations, supervisor) = (self.stations.clone(), context.address());
                actix::spawn(async move {
                    let key_use = checkout.batch.key_use;
                    batch_job::hand_back(stations, checkout).await;
                    let end = BatchEnd::GivenUp { reason: "the node starts no more".to_owned() };
                    let _ = supervisor.send(BatchSigned { key_use, end }).await;
                });
            }
        } else {
            for checkouts in loading::together(&self.stations, granted.checkouts) {
                reach("supervisor", "starting");
                self.in_flight += u32::try_from(checkouts.len()).unwrap_or(u32::MAX);
                let supervisor = context.address();
                let end = async move |key_use, end| {
                    // A batch may end after its Supervisor.
                    let _ = supervisor.send(BatchSigned { key_use, end }).await;
                };
                // Not the actor's own future: they must end their key uses even if this actor stops.
                actix::spawn(batch_job::run_together(self.stations.clone(), checkouts, end));
            }
        }
        match granted.shortage {
            None => self.pump(context),
            // The end of a batch in flight frees a key, and brings a look for more.
            Some(Shortage::NoFreeKey) if self.in_flight > 0 => {}
            Some(Shortage::NoFreeKey) => self.rest(context),
            Some(Shortage::Paused) => {
                self.quiet = true;
                self.rest(context);
            }
            Some(shortage @ (Shortage::NoWork | Shortage::NoActiveKey)) => {
                self.quiet = shortage == Shortage::NoWork;
                if self.in_flight == 0 {
                    self.note_token_works();
                    self.look_around(shortage, context);
                } else if self.quiet {
                    self.count_ahead();
                }
            }
        }
    }

    /// Looks for work again after a pause that doubles each time.
    fn rest(&mut self, context: &mut Context<Self>) {
        if let Some(wake_up) = self.wake_up.take() {
            context.cancel_future(wake_up);
        }
        let pause = self.idle;
        self.idle = (self.idle * 2).min(self.settings.longest_idle);
        self.wake_up = Some(context.notify_later(Pump, pause));
    }

    fn could_not(&mut self, error: StoreError, context: &mut Context<Self>) {
        self.stations.troubles.set(Place::CheckOut, error.to_string());
        if error.is_retryable() {
            if self.failing_checkouts.is_due() {
                tracing::warn!(
                    ring = self.settings.ring_name, %error, "could not check out, trying again"
                );
            }
            self.rest(context);
        } else {
            self.fail(error);
        }
    }

    fn station_is_gone(&mut self, station: &str, why: &str) {
        self.fail(StoreError::Database(format!("the {station} is gone: {why}")));
    }

    fn fail(&mut self, error: StoreError) {
        tracing::error!(ring = self.settings.ring_name, %error, "cannot go on");
        self.failure.get_or_insert(Finished::Failed(error));
        self.end_failure_if_idle();
    }

    /// Not before: whoever waits for the end stops the actors that give keys back.
    fn end_failure_if_idle(&mut self) {
        if self.in_flight == 0
            && !self.asking
            && let Some(how) = self.failure.take()
        {
            self.finish(how);
        }
    }

    fn finish(&mut self, how: Finished) {
        if let Some(finished) = self.finished.take() {
            self.share.set_busy(false);
            // Whoever waited may be gone.
            let _ = finished.send(how);
        }
    }

    fn drain_report(&self) -> DrainReport {
        DrainReport {
            stored_batches: self.snapshot.stored_batches,
            left_in_flight: self.in_flight.into(),
        }
    }

    fn end_drains_if_idle(&mut self) {
        if self.state == State::Draining && self.in_flight == 0 && !self.asking {
            self.end_drains();
        }
    }

    fn end_drains(&mut self) {
        let report = self.drain_report();
        for drain in self.drains.drain(..) {
            // Whoever asked may be gone.
            let _ = drain.send(report);
        }
        let how = self.failure.take().unwrap_or(Finished::Drained(report));
        self.finish(how);
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // Whoever lists the nodes finds it from its first signature on.
        self.report(context);
        self.pump(context);
        context.run_later(report::FIRST_LOOK, Supervisor::report_for_ever);
    }
}

/// To itself: look for work.
#[derive(Message)]
#[rtype(result = "()")]
struct Pump;

impl Handler<Pump> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Pump, context: &mut Self::Context) {
        self.wake_up = None;
        self.pump(context);
    }
}

impl Handler<BatchSigned> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: BatchSigned, context: &mut Self::Context) {
        reach("supervisor", "settled");
        self.in_flight -= 1;
        match &message.end {
            BatchEnd::Stored { records } => {
                self.idle = SHORTEST_IDLE;
                self.snapshot.stored_batches += 1;
                self.snapshot.signed_records += *records;
                self.note_token_works();
            }
            BatchEnd::Fenced => self.snapshot.fenced_batches += 1,
            BatchEnd::GivenUp { .. } | BatchEnd::TokenFailed { .. } => {
                self.snapshot.given_up_batches += 1;
            }
            BatchEnd::Faulty { signatures, .. } => {
                self.snapshot.given_up_batches += 1;
                self.note_fault(*signatures);
            }
        }
        if self.state != State::Running && self.in_flight == 0 {
            self.share.set_busy(false);
        }
        if self.state == State::Draining {
            self.end_drains_if_idle();
        } else if self.failure.is_some() {
            self.end_failure_if_idle();
        } else if let BatchEnd::GivenUp { reason } | BatchEnd::Faulty { reason, .. } = &message.end
        {
            match self.stations.gone() {
                Some(station) => self.station_is_gone(station, reason),
                // Not at once: what failed for one reason would fail again for the same.
                None => self.rest(context),
            }
        } else if let BatchEnd::TokenFailed { reason } = message.end {
            self.wait_for_token(reason, context);
        } else {
            self.pump(context);
        }
    }
}
