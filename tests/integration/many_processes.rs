//! Several processes on one database at once.

use diesel::connection::SimpleConnection;

use crate::support::judge::judge;
use crate::support::program::{Ended, Running, Signal};
use crate::support::{Site, wait_until};

#[test]
fn two_processes_share_a_postgres() {
    share_a_postgres(2);
}

#[test]
fn four_processes_share_a_postgres() {
    share_a_postgres(4);
}

/// All processes are held at their first checkout until each has come to it, and none may have
/// more than its share of the keys: so each has work.
fn share_a_postgres(processes: usize) {
    let site = Site::postgres_alone().with(40, 20_000).set("CHANCERY_SIGNING__MAX_IN_FLIGHT", "8");
    let mut barrier = site.database.connect_postgres();
    barrier.batch_execute("BEGIN; SELECT 1 FROM rings WHERE id = 1 FOR UPDATE").unwrap();
    let runs: Vec<Running> =
        (0..processes).map(|_| site.start(&["run", "--batch-size", "100"])).collect();
    wait_until("every process waits for the ring", || {
        let waiting = "SELECT count(DISTINCT application_name) AS value FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name LIKE 'chancery/%'
                         AND wait_event_type = 'Lock'";
        site.database.number(waiting) == i64::try_from(processes).unwrap()
    });
    barrier.batch_execute("COMMIT").unwrap();

    let shares: Vec<u64> =
        runs.into_iter().map(|run| signed_by(&run.wait().expect_code(0))).collect();
    assert_eq!(shares.iter().sum::<u64>(), 20_000, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    let nodes = site.database.number("SELECT count(DISTINCT node) AS value FROM key_uses");
    assert_eq!(nodes, i64::try_from(processes).unwrap());
    judge(&site, 20_000);
}

#[test]
fn a_second_process_on_sqlite_waits_and_says_for_whom() {
    let site = Site::sqlite().with(20, 20_000).set("CHANCERY_NODE__NAME", "signer-a");
    let first = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    let second = site.start(&["run"]);
    let line = second.wait_for_stderr("waiting: one process at a time signs an SQLite database");
    let holder = format!("node signer-a-{id}-", id = first.id());
    let process = format!("(process {})", first.id());
    assert!(line.contains(&holder) && line.contains(&process), "{line}");
    first.signal(Signal::CONT);

    assert_eq!(signed_by(&first.wait().expect_code(0)), 20_000);
    assert_eq!(signed_by(&second.wait().expect_code(0)), 0);
    judge(&site, 20_000);
}

#[test]
fn a_process_that_waits_on_sqlite_takes_over_from_one_that_was_killed() {
    let site = Site::sqlite().with(20, 20_000);
    let first = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    let before = site.signatures();
    let second = site.start(&["run"]);
    second.wait_for_stderr("waiting: one process at a time signs an SQLite database");
    first.signal(Signal::KILL);
    assert_eq!(first.wait().signal, Some(Signal::KILL.as_raw()));

    let share = signed_by(&second.wait().expect_code(0));
    assert!(share > 0 && share <= 20_000 - before.unsigned_abs(), "{share}");
    judge(&site, 20_000);
}

/// How many records a run says it has signed.
#[track_caller]
fn signed_by(ended: &Ended) -> u64 {
    let rest = ended.stdout.strip_prefix("signed ").unwrap_or_else(|| panic!("{ended}"));
    let number = rest.split(' ').next().unwrap_or_default().replace(',', "");
    number.parse().unwrap_or_else(|_| panic!("{ended}"))
}
