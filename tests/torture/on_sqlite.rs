//! One process at a time on SQLite, killed at any moment and started again, hundreds of times.

use std::fs::File;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;

use crate::Setting;
use crate::chance::Chance;
use crate::pace::{EndsWithMe, Pace};
use crate::replay::judge_history;
use crate::support::Site;
use crate::support::judge::{check_sample, judge_by_the_program, judge_rules};
use crate::table::Table;

const KEYS: u32 = 20;
const STEP: Duration = Duration::from_millis(2);

/// How long a process may take to be where it is to be killed.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn run(setting: &Setting) {
    let site = Site::sqlite()
        .set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000")
        .set("CHANCERY_SIGNING__BATCH_SIZE", "10")
        .set("CHANCERY_HTTP__BIND", "127.0.0.1:0")
        .with(KEYS, 0);
    let begun = Instant::now();
    let (pace, accepted) = (Pace::default(), AtomicU64::new(0));
    let mut chance = Chance::of(setting.seed, 10);
    let mut rounds = Rounds { site: &site, setting, killed: 0, done_first: 0 };
    thread::scope(|scope| {
        let _ends = EndsWithMe(&pace);
        scope.spawn(|| bring(&site, &pace, Chance::of(setting.seed, 11), &accepted));
        while rounds.killed < setting.kills {
            rounds.kill_one(&mut chance);
        }
    });
    let seconds = begun.elapsed().as_secs();
    let before = site.signatures();
    site.run(&["run"]).expect_code(0);

    let records = i64::try_from(accepted.load(Ordering::Relaxed)).unwrap();
    let check = "SELECT integrity_check AS value FROM pragma_integrity_check";
    assert_eq!(site.database.rows(check), ["ok"]);
    let uses = judge_history(&site.database);
    judge_rules(&site.database, records, 0);
    check_sample(&site.database, records);
    judge_by_the_program(&site);
    let reclaimed = "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed'";
    let reclaimed = site.database.number(reclaimed);
    Table::default()
        .row("seconds of faults", seconds)
        .row("records", records)
        .row("signatures", site.signatures())
        .row("  of them before the last run", before)
        .row("key uses, in strict order", uses)
        .row("  reclaimed", reclaimed)
        .row("SIGKILL", rounds.killed)
        .row("runs that were done before they were killed", rounds.done_first)
        .print();
    assert!(before > 0 && reclaimed > 0, "{before} signatures, {reclaimed} reclaimed");
}

/// The processes, one after the other.
struct Rounds<'a> {
    site: &'a Site,
    setting: &'a Setting<'a>,
    killed: u64,
    done_first: u64,
}

impl Rounds<'_> {
    /// Starts a process and kills it, at a time or at a number of signatures that chance decides.
    fn kill_one(&mut self, chance: &mut Chance) {
        let command = if chance.one_in(2) { "run" } else { "serve" };
        let time = chance.milliseconds(0, 700);
        let signatures = i64::try_from(chance.between(1, 150)).unwrap();
        let goes_by_time = chance.one_in(2);
        let goal = self.site.signatures() + signatures;
        let mut child = self.start(command);
        let begun = Instant::now();
        let pace = Pace::default();
        let is_there = || {
            if goes_by_time { begun.elapsed() >= time } else { self.site.signatures() >= goal }
        };
        while !is_there() {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(
                    status.success() && command == "run",
                    "{command} ended by itself: {status}"
                );
                self.done_first += 1;
                return;
            }
            if begun.elapsed() > LIMIT {
                let _ = child.kill();
                panic!("{command} signed fewer than {signatures} records in {LIMIT:?}");
            }
            pace.wait(STEP);
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.code().is_none() {
            self.killed += 1;
        } else {
            assert!(status.success() && command == "run", "{command} ended by itself: {status}");
            self.done_first += 1;
        }
    }

    fn start(&self, command: &str) -> Child {
        let log = self.setting.folder.join("sqlite.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.site.command(&[command]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }
}

/// Inserts records all the time, by plain SQL. Now and then it takes some back.
fn bring(site: &Site, pace: &Pace, mut chance: Chance, accepted: &AtomicU64) {
    let mut connection = site.database.connect_sqlite();
    while pace.wait(chance.milliseconds(10, 60)) {
        let records = chance.between(1, 60);
        let end = if chance.one_in(5) { "ROLLBACK" } else { "COMMIT" };
        let transaction = format!(
            "BEGIN IMMEDIATE;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {records})
             INSERT INTO records (ring_id, payload) SELECT 1, randomblob(32 + i * 16) FROM n;
             {end}"
        );
        connection.batch_execute(&transaction).unwrap();
        if end == "COMMIT" {
            accepted.fetch_add(records, Ordering::Relaxed);
        }
    }
}
