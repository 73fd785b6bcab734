//! One node: the program as a process, with a proxy as its way to the database.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::Proxy;

use crate::support::Site;

/// The latency of the way to the database, each way, while no fault makes it longer: enough that a
/// process is often caught in the middle of a transaction.
pub(crate) const LATENCY: Duration = Duration::from_millis(3);

/// What a node is doing, as far as the driver has brought it about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It runs, and may be starting.
    Running { since: Instant },
    /// It has got a SIGSTOP.
    Stopped { since: Instant, until: Instant },
    /// It has got a SIGTERM and is to end by itself.
    Terminating { since: Instant },
    /// It has ended.
    Down { until: Instant },
}

/// A node, whether its process lives or not.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) doing: Doing,
    pub(crate) proxy: Proxy,
    pub(crate) delayed_until: Option<Instant>,
    pub(crate) black_hole_until: Option<Instant>,
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts the node's first process.
    pub(crate) fn start(site: &Site, number: u16, folder: &Path) -> Node {
        let proxy = Proxy::in_front_of(site.database.server()).unwrap();
        proxy.set_delay(LATENCY);
        let name = format!("torture-{number}");
        let log = folder.join(format!("{name}.log"));
        let child = spawn(site, &name, &proxy, &log);
        let doing = Doing::Running { since: Instant::now() };
        Node { name, doing, proxy, delayed_until: None, black_hole_until: None, child, log }
    }

    /// Starts a process in the place of one that has ended.
    pub(crate) fn start_again(&mut self, site: &Site) {
        self.child = spawn(site, &self.name, &self.proxy, &self.log);
        self.doing = Doing::Running { since: Instant::now() };
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        // A child that has not been waited for keeps its process id, so the signal cannot stray.
        let id = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How the process has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Whether nothing keeps it from its work, for a second already.
    pub(crate) fn is_up(&self) -> bool {
        let settled = Duration::from_secs(1);
        matches!(self.doing, Doing::Running { since } if since.elapsed() > settled)
            && self.black_hole_until.is_none()
    }

    /// The beginning of its processes' ids in the database.
    pub(crate) fn id_prefix(&self) -> String {
        format!("{}-{}-", self.name, self.child.id())
    }

    /// Whether its process has come so far that it signs.
    pub(crate) fn has_served(&self) -> bool {
        self.log().contains(&format!("serving node={}", self.id_prefix()))
    }

    /// What all its processes have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The end of that, for a failure's message.
    pub(crate) fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail if it has been waited for, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(site: &Site, name: &str, proxy: &Proxy, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = site.command(&["serve"]);
    command
        .env("CHANCERY_NODE__NAME", name)
        .env("CHANCERY_DATABASE__URL", proxy.url(site.database.name()))
        .env("CHANCERY_HTTP__BIND", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command.spawn().unwrap()
}
