//! The driver: does to the nodes what chance says, and ends each fault when its time has come.

use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::Connection;
use diesel::pg::PgConnection;
use rustix::process::Signal;

use crate::chance::Chance;
use crate::faults::{Counts, Fault};
use crate::intake::Intake;
use crate::node::{Doing, LATENCY, Node};
use crate::pace::Pace;
use crate::support::Site;
use crate::support::database::values_of;

/// The lease of all nodes.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// How long a node may take to end after a SIGTERM, whatever else befalls it meanwhile.
const TERMINATION_LIMIT: Duration = Duration::from_secs(45);

/// How long nothing may be stored while records wait.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(60);

/// How long the driver goes on beyond its time, so that each kind of fault has struck.
const EXTENSION: Duration = Duration::from_secs(60);

/// From how many waiting records on no more arrive for a while.
const MOST_WAITING: u64 = 2_000;

const STEP: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Drives the nodes.
pub(crate) struct Driver<'a> {
    site: &'a Site,
    pub(crate) nodes: Vec<Node>,
    intake: &'a Intake,
    schedule: Vec<Scheduled>,
    connection: Option<PgConnection>,
    pub(crate) counts: Counts,
    progress: Progress,
}

/// A kind of fault: what decides about it, and when it comes next.
struct Scheduled {
    fault: Fault,
    chance: Chance,
    at: Instant,
}

/// What is stored, and since when it has not become more.
struct Progress {
    batches: i64,
    since: Instant,
    looked_at: Instant,
    longest_standstill: Duration,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(site: &'a Site, nodes: Vec<Node>, intake: &'a Intake, seed: u64) -> Self {
        let now = Instant::now();
        let schedule = (100..).zip(Fault::ALL).map(|(purpose, fault)| {
            let mut chance = Chance::of(seed, purpose);
            let at = now + chance.around(fault.interval());
            Scheduled { fault, chance, at }
        });
        Driver {
            site,
            nodes,
            intake,
            schedule: schedule.collect(),
            connection: None,
            counts: Counts::default(),
            progress: Progress {
                batches: 0,
                since: now,
                looked_at: now,
                longest_standstill: Duration::ZERO,
            },
        }
    }

    /// Drives for that long, and a bit longer where a kind of fault has not struck yet.
    pub(crate) fn drive(&mut self, duration: Duration, pace: &Pace, crashes: &AtomicU64) {
        let begun = Instant::now();
        loop {
            let elapsed = begun.elapsed();
            if elapsed > duration + EXTENSION {
                return;
            }
            if elapsed > duration
                && self.kinds_without_count(crashes.load(Ordering::Relaxed)).is_empty()
            {
                return;
            }
            for index in 0..self.schedule.len() {
                if self.schedule[index].at <= Instant::now() {
                    self.bring_about(index);
                }
            }
            self.step();
            pace.wait(STEP);
        }
    }

    /// Ends every fault, and waits until all that arrived is signed.
    pub(crate) fn finish(&mut self, pace: &Pace) {
        for node in &mut self.nodes {
            node.proxy.drop_commit_replies(0);
            if let Doing::Down { until } = &mut node.doing {
                *until = Instant::now();
            }
        }
        self.progress.since = Instant::now();
        let is_done = "
            SELECT (NOT EXISTS (SELECT 1 FROM batches WHERE state IN ('open', 'retry'))
                    AND (SELECT count(*) FROM signatures) = (SELECT count(*) FROM records)) AS value";
        while self.value(is_done).as_deref() != Some("true") || !self.nodes.iter().all(Node::is_up)
        {
            self.step();
            pace.wait(STEP * 5);
        }
    }

    /// Ends all nodes as an operator does.
    pub(crate) fn terminate_all(&mut self, pace: &Pace) {
        for node in &mut self.nodes {
            node.signal(Signal::TERM);
            node.doing = Doing::Terminating { since: Instant::now() };
        }
        for index in 0..self.nodes.len() {
            while matches!(self.nodes[index].doing, Doing::Terminating { .. }) {
                self.tend(index);
                pace.wait(STEP);
            }
        }
    }

    /// The kinds of faults that have not struck, and a zombie's store that was not fenced.
    pub(crate) fn kinds_without_count(&self, crashes: u64) -> Vec<&'static str> {
        let Counts { killed, stopped, stopped_with_uses, terminated, connections_cut, .. } =
            self.counts;
        let Counts { delays, black_holes, .. } = self.counts;
        let kinds = [
            ("SIGKILL", killed),
            ("SIGSTOP", stopped),
            ("SIGSTOP of a node that held key uses", stopped_with_uses),
            ("SIGTERM", terminated),
            ("crash of the server", crashes),
            ("cut connection", connections_cut),
            ("lost reply to a COMMIT", self.lost_commit_replies()),
            ("delay", delays),
            ("black hole", black_holes),
        ];
        let missing = kinds.into_iter().filter(|(_, count)| *count == 0).map(|(kind, _)| kind);
        let mut missing: Vec<&str> = missing.collect();
        if self.lines_with("fenced:") == 0 {
            missing.push("fenced store");
        }
        missing
    }

    /// How many replies to a COMMIT got lost.
    pub(crate) fn lost_commit_replies(&self) -> u64 {
        self.nodes.iter().map(|node| node.proxy.dropped_commit_replies()).sum()
    }

    /// How many lines of the nodes' logs hold a text.
    pub(crate) fn lines_with(&self, text: &str) -> usize {
        let lines_of = |node: &Node| node.log().lines().filter(|line| line.contains(text)).count();
        self.nodes.iter().map(lines_of).sum()
    }

    /// The longest time without a batch stored.
    pub(crate) fn longest_standstill(&self) -> Duration {
        self.progress.longest_standstill
    }

    fn step(&mut self) {
        for index in 0..self.nodes.len() {
            self.tend(index);
        }
        if self.progress.looked_at.elapsed() >= LOOK_EVERY {
            self.look();
        }
    }

    /// Does what is due to one node after another until it fits one; if it fits none, it is tried
    /// again soon.
    fn bring_about(&mut self, index: usize) {
        let Scheduled { fault, chance, .. } = &mut self.schedule[index];
        let fault = *fault;
        let first = chance.index(self.nodes.len());
        let mut order = (0..self.nodes.len()).map(|n| (first + n) % self.nodes.len());
        let found = order.find(|node| self.is_fit(fault, *node));
        if let Some(node) = found {
            self.strike(index, node);
        }
        let Scheduled { fault, chance, at } = &mut self.schedule[index];
        let pause = chance.around(fault.interval());
        *at = Instant::now() + if found.is_some() { pause } else { pause / 10 };
    }

    /// Whether the fault makes sense at a node, and leaves another one at its work.
    fn is_fit(&self, fault: Fault, index: usize) -> bool {
        let node = &self.nodes[index];
        let is_running = matches!(node.doing, Doing::Running { .. });
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        if fault.disables() && !others.into_iter().any(|(_, other)| other.is_up()) {
            return false;
        }
        match fault {
            // One time in four a stopped node will do: most of these are to wake up again.
            Fault::Kill if matches!(node.doing, Doing::Stopped { .. }) => {
                self.counts.killed.is_multiple_of(4)
            }
            Fault::Kill => is_running,
            Fault::Stop | Fault::Terminate => is_running,
            Fault::CutOne | Fault::CutAll => node.proxy.connections() > 0,
            Fault::LoseCommitReply => is_running,
            Fault::Delay => node.delayed_until.is_none(),
            Fault::BlackHole => is_running && node.black_hole_until.is_none(),
        }
    }

    fn strike(&mut self, schedule: usize, index: usize) {
        let Scheduled { fault, chance, .. } = &mut self.schedule[schedule];
        let node = &mut self.nodes[index];
        let now = Instant::now();
        match fault {
            Fault::Kill => {
                self.counts.killed_while_stopped +=
                    u64::from(matches!(node.doing, Doing::Stopped { .. }));
                let until = now + chance.milliseconds(0, 1500);
                node.kill();
                node.doing = Doing::Down { until };
                self.counts.killed += 1;
            }
            Fault::Stop => {
                let time = LEASE + chance.milliseconds(300, 2500);
                self.stop(index, time);
            }
            Fault::Terminate => {
                node.signal(Signal::TERM);
                node.doing = Doing::Terminating { since: now };
                self.counts.terminated += 1;
            }
            Fault::CutOne => {
                let choice = chance.index(1000);
                self.counts.connections_cut += u64::from(node.proxy.cut_one(choice));
            }
            Fault::CutAll => self.counts.connections_cut += node.proxy.cut_all() as u64,
            Fault::LoseCommitReply => node.proxy.drop_commit_replies(1),
            Fault::Delay => {
                node.proxy.set_delay(chance.milliseconds(5, 60));
                node.delayed_until = Some(now + chance.milliseconds(1000, 5000));
                self.counts.delays += 1;
            }
            Fault::BlackHole => {
                node.proxy.set_black_hole(true);
                node.black_hole_until = Some(now + chance.milliseconds(500, 5000));
                self.counts.black_holes += 1;
            }
        }
    }

    /// Stops a node, if it can be in the middle of its work: for a moment it waits for that.
    fn stop(&mut self, index: usize, time: Duration) {
        let patience = Instant::now();
        let mut held = self.open_uses(index);
        while held == Some(0) && patience.elapsed() < Duration::from_millis(300) {
            held = self.open_uses(index);
        }
        let node = &mut self.nodes[index];
        let now = Instant::now();
        node.signal(Signal::STOP);
        node.doing = Doing::Stopped { since: now, until: now + time };
        let held = self.open_uses(index).unwrap_or(0);
        self.counts.stopped_with_uses += u64::from(held > 0);
    }

    /// Ends the faults of a node whose time has come.
    fn tend(&mut self, index: usize) {
        let now = Instant::now();
        let node = &mut self.nodes[index];
        if node.delayed_until.is_some_and(|until| until <= now) {
            node.delayed_until = None;
            node.proxy.set_delay(LATENCY);
        }
        if node.black_hole_until.is_some_and(|until| until <= now) {
            node.black_hole_until = None;
            node.proxy.set_black_hole(false);
        }
        match node.doing {
            Doing::Running { .. } => {
                if let Some(status) = node.ended() {
                    fail(node, &format!("ended by itself: {status}"));
                }
            }
            Doing::Stopped { since, until } => {
                // It shall wake up as a zombie: what it held is another's by then.
                let is_late = until + LEASE * 2 < now;
                if until <= now && (is_late || self.open_uses(index) == Some(0)) {
                    assert!(since.elapsed() > LEASE);
                    let node = &mut self.nodes[index];
                    node.signal(Signal::CONT);
                    node.doing = Doing::Running { since: now };
                    self.counts.stopped += 1;
                }
            }
            Doing::Terminating { since } => match node.ended() {
                Some(status) if is_clean(status) || !node.has_served() => {
                    let took = &mut self.counts.longest_termination;
                    *took = (*took).max(since.elapsed());
                    node.doing = Doing::Down { until: now };
                }
                Some(status) => fail(node, &format!("ended after SIGTERM with {status}")),
                None if since.elapsed() > TERMINATION_LIMIT => {
                    fail(node, &format!("did not end within {TERMINATION_LIMIT:?} of a SIGTERM"));
                }
                None => {}
            },
            Doing::Down { until } if until <= now => node.start_again(self.site),
            Doing::Down { .. } => {}
        }
    }

    /// Looks whether something gets done.
    fn look(&mut self) {
        self.progress.looked_at = Instant::now();
        let stored = "SELECT count(*) || ' ' || coalesce(sum(record_count), 0) AS value
                      FROM batches WHERE state = 'stored'";
        let progress = &mut self.progress;
        progress.longest_standstill = progress.longest_standstill.max(progress.since.elapsed());
        if progress.since.elapsed() > STANDSTILL_LIMIT {
            let ends: Vec<String> = self.nodes.iter().map(Node::end_of_log).collect();
            panic!("nothing was stored for {STANDSTILL_LIMIT:?}:\n{}", ends.join("\n\n"));
        }
        let Some(value) = self.value(stored) else { return };
        let (batches, records) = value.split_once(' ').unwrap();
        let (batches, records): (i64, u64) = (batches.parse().unwrap(), records.parse().unwrap());
        let waiting = self.intake.accepted.load(Ordering::Relaxed).saturating_sub(records);
        self.intake.is_held.store(waiting > MOST_WAITING, Ordering::Relaxed);
        if batches > self.progress.batches || waiting == 0 {
            self.progress.batches = batches;
            self.progress.since = Instant::now();
        }
    }

    /// How many key uses a node has open; none if the server is down.
    fn open_uses(&mut self, index: usize) -> Option<i64> {
        let prefix = self.nodes[index].id_prefix();
        let query = format!(
            "SELECT count(*) AS value FROM key_uses
             WHERE end_tick IS NULL AND node LIKE '{prefix}%'"
        );
        self.value(&query)?.parse().ok()
    }

    /// The one value of a query, straight from the server; none if it is down.
    fn value(&mut self, query: &str) -> Option<String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let url = self.site.database.url();
                self.connection.insert(PgConnection::establish(&url).ok()?)
            }
        };
        match values_of(connection, query) {
            Ok(mut values) => values.pop(),
            Err(_) => {
                self.connection = None;
                None
            }
        }
    }
}

/// A node may say that its leases have to bring something back, and nothing worse.
fn is_clean(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 1))
}

fn fail(node: &Node, what: &str) -> ! {
    panic!("node {} {what}\n{}", node.name, node.end_of_log());
}
