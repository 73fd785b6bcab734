//! Several nodes on one PostgreSQL server, and everything that may befall them.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::Postgres;

use crate::Setting;
use crate::chance::Chance;
use crate::driver::{Driver, LEASE};
use crate::intake::Intake;
use crate::node::Node;
use crate::pace::{EndsWithMe, Pace};
use crate::replay::judge_history;
use crate::server::crash_again_and_again;
use crate::support::Site;
use crate::support::judge::{check_sample, judge_by_the_program, judge_data, judge_rules};
use crate::table::Table;

const KEYS: u32 = 20;
const BATCH_SIZE: &str = "5";

/// The time between two crashes of the server, on average; shorter where little time is given.
const CRASH_INTERVAL: Duration = Duration::from_secs(40);

/// From how many key uses on the order of the keys is judged by the replay alone.
const MANY_USES: usize = 5_000;

pub(crate) fn run(setting: &Setting) {
    let server = Postgres::start().unwrap();
    let copy_of_log = KeepsLog { server: &server, setting };
    let site = Site::on_server(&server)
        .set("CHANCERY_LEASE__DURATION_S", &LEASE.as_secs().to_string())
        // Batches that are in a node's hands when it is killed are innocent.
        .set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000")
        .set("CHANCERY_DATABASE__WAIT_S", "600")
        .set("CHANCERY_SIGNING__BATCH_SIZE", BATCH_SIZE)
        .set("CHANCERY_SIGNING__MAX_IN_FLIGHT", "8")
        .set("CHANCERY_SIGNING__SIGNERS", "1")
        .with(KEYS, 0);
    let url = site.database.url();
    let nodes: Vec<Node> =
        (1..=setting.nodes).map(|number| Node::start(&site, number, setting.folder)).collect();

    let begun = Instant::now();
    let (pace, crashes, intake) = (Pace::default(), AtomicU64::new(0), Intake::default());
    let own_pace = Pace::default();
    let mut driver = Driver::new(&site, nodes, &intake, setting.seed);
    let chance = |purpose| Chance::of(setting.seed, purpose);
    let interval = CRASH_INTERVAL.min(setting.duration / 5);
    thread::scope(|scope| {
        let _ends = EndsWithMe(&pace);
        scope.spawn(|| intake.bring_steadily(&url, &pace, chance(1)));
        scope.spawn(|| intake.bring_late(&url, &pace, chance(2)));
        scope.spawn(|| crash_again_and_again(&server, interval, &pace, chance(3), &crashes));
        driver.drive(setting.duration, &own_pace, &crashes);
    });
    let seconds = begun.elapsed().as_secs();
    driver.finish(&own_pace);
    driver.terminate_all(&own_pace);

    let crashes = crashes.load(Ordering::Relaxed);
    let records = i64::try_from(intake.accepted.load(Ordering::Relaxed)).unwrap();
    let uses = judge_history(&site.database);
    if uses <= MANY_USES {
        judge_data(&site.database, records, 0);
    } else {
        judge_rules(&site.database, records, 0);
        check_sample(&site.database, records);
    }
    judge_by_the_program(&site);
    report(&site, &driver, &intake, seconds, crashes, uses);
    judge_logs(&server, &driver);
    let missing = driver.kinds_without_count(crashes);
    assert!(missing.is_empty(), "did not happen: {missing:?}");
    assert!(records > 0 && intake.refused.load(Ordering::Relaxed) > 0, "{records} records");
    drop(copy_of_log);
}

fn report(site: &Site, driver: &Driver, intake: &Intake, seconds: u64, crashes: u64, uses: usize) {
    let count = |what: &str| site.database.number(&format!("SELECT count(*) AS value FROM {what}"));
    let with_outcome = |outcome: &str| count(&format!("key_uses WHERE outcome = '{outcome}'"));
    let counts = &driver.counts;
    Table::default()
        .row("seconds of faults", seconds)
        .row("nodes", driver.nodes.len())
        .row("records", count("records"))
        .row("signatures", count("signatures"))
        .row("records rolled back", intake.refused.load(Ordering::Relaxed))
        .row("inserts whose outcome was looked up", intake.looked_up.load(Ordering::Relaxed))
        .row("key uses, in strict order", uses)
        .row("  stored", with_outcome("stored"))
        .row("  reclaimed", with_outcome("reclaimed"))
        .row("  abandoned", with_outcome("abandoned"))
        .row("fenced stores", driver.lines_with("fenced:"))
        .row("SIGKILL", counts.killed)
        .row("  of them to a stopped node", counts.killed_while_stopped)
        .row("SIGSTOP past the lease, and SIGCONT", counts.stopped)
        .row("SIGSTOP to a node that held key uses", counts.stopped_with_uses)
        .row("SIGTERM", counts.terminated)
        .row("immediate stops of PostgreSQL", crashes)
        .row("connections cut", counts.connections_cut)
        .row("replies to COMMIT lost", driver.lost_commit_replies())
        .row("times of delay", counts.delays)
        .row("black holes", counts.black_holes)
        .row("longest end after SIGTERM", format!("{:.1?}", counts.longest_termination))
        .row("longest time without a batch stored", format!("{:.1?}", driver.longest_standstill()))
        .print();
}

/// What nobody may have had to say.
fn judge_logs(server: &Postgres, driver: &Driver) {
    // What is swept should have been signed before: the rescue of a mistake.
    let never = [" ERROR ", "panicked", "swept unsigned"];
    for node in &driver.nodes {
        let log = node.log();
        let wrong = log.lines().filter(|line| never.iter().any(|text| line.contains(text)));
        let wrong: Vec<&str> = wrong.take(10).collect();
        assert!(wrong.is_empty(), "node {} logged: {wrong:#?}", node.name);
    }
    let log = fs::read_to_string(server.log_path()).unwrap();
    for never in ["deadlock detected", "duplicate key", "PANIC:"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(never)).take(10).collect();
        assert!(lines.is_empty(), "the server logged: {lines:#?}");
    }
}

/// Puts the server's log beside those of the nodes, however the part ends.
struct KeepsLog<'a> {
    server: &'a Postgres,
    setting: &'a Setting<'a>,
}

impl Drop for KeepsLog<'_> {
    fn drop(&mut self) {
        // For a failure's sake, and none of its own.
        let _ = fs::copy(self.server.log_path(), self.setting.folder.join("server.log"));
    }
}
