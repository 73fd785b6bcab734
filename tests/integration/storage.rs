//! Disks that fill in the middle of a run: under SQLite's file, PostgreSQL's data, and its log.

use std::time::{Duration, Instant};

use testkit::{Places, Postgres, SmallDisk};

use crate::support::judge::judge;
use crate::support::program::Signal;
use crate::support::{Site, wait_until};

/// Enough of them, in batches small enough, that a run is in the middle when its disk fills.
const RECORDS: u32 = 20_000;
const RUN: [&str; 3] = ["run", "--batch-size", "20"];

const LEASE: Duration = Duration::from_secs(2);
const MEGABYTE: u64 = 1024 * 1024;

/// With so short a lease that all of them run out while the disk is full, and so few attempts that
/// one of them too many would send a batch into quarantine.
fn prepare(site: Site) -> Site {
    site.set("CHANCERY_LEASE__DURATION_S", &LEASE.as_secs().to_string())
        .set("CHANCERY_LEASE__MAX_ATTEMPTS", "1")
        .with(20, RECORDS)
}

#[test]
fn a_run_on_sqlite_waits_while_its_disk_is_full_and_then_goes_on() {
    let disk = SmallDisk::new(96 * MEGABYTE).unwrap();
    let site = prepare(Site::sqlite_at(disk.path().join("chancery.db")));
    waits_for_room(&site, &disk, "database or disk is full");
    judge(&site, RECORDS.into());
}

#[test]
fn a_run_on_postgres_waits_while_the_disk_of_its_data_is_full_and_then_goes_on() {
    let disk = SmallDisk::new(128 * MEGABYTE).unwrap();
    let places = Places { data: Some(disk.path().to_owned()), ..Places::default() };
    let server = Postgres::start_at(&places).unwrap();
    let site = prepare(Site::on_server(&server));
    waits_for_room(&site, &disk, "No space left on device");
    judge(&site, RECORDS.into());
}

fn waits_for_room(site: &Site, disk: &SmallDisk, reason: &str) {
    let run = site.start_halted(&RUN, "writer.answered@10");
    let before = site.signatures();
    disk.fill().unwrap();
    run.signal(Signal::CONT);
    let full_since = Instant::now();
    run.wait_for_stderr("the database's storage fails: ");
    run.wait_for_stderr(reason);
    let stuck = site.signatures();
    assert!(before > 0 && stuck < RECORDS.into());

    site.run(&["status"]).expect_code(0).expect_stdout("writes fail, or may soon: ");
    // What is in hand expires, unless a renewal still finds room in the log that there is.
    wait_until("a lease has passed twice", || full_since.elapsed() > 2 * LEASE);
    // Longer than the shortest pause between two attempts: a longer outage makes no longer log.
    let lines = run.stderr().lines().count();
    assert!(lines < 15, "{lines} lines: {}", run.stderr());
    assert!(run.is_alive());

    disk.make_room().unwrap();
    run.wait().expect_code(0).expect_stdout("no record of ring default in ");
    assert_no_attempt_was_counted(site);
    let status = site.run(&["status"]).expect_code(0);
    assert!(!status.stdout.contains("writes fail"), "{status}");
}

#[test]
fn a_run_on_postgres_goes_on_when_the_server_that_a_full_log_disk_stopped_is_started_again() {
    let disk = SmallDisk::new(128 * MEGABYTE).unwrap();
    let places = Places { wal: Some(disk.path().to_owned()), ..Places::default() };
    let server = Postgres::start_at(&places).unwrap();
    let site = prepare(Site::on_server(&server));
    let run = site.start_halted(&RUN, "writer.answered@10");
    let before = site.signatures();
    disk.fill().unwrap();
    run.signal(Signal::CONT);
    run.wait_for_stderr("trying again");
    wait_until("PostgreSQL has stopped itself", || server.log_tail().contains("PANIC:"));
    assert!(run.is_alive());

    disk.make_room().unwrap();
    server.start_again().unwrap();
    run.wait().expect_code(0).expect_stdout("no record of ring default in ");
    assert!(before > 0);
    assert_no_attempt_was_counted(&site);
    judge(&site, RECORDS.into());
}

#[test]
fn a_run_that_begins_on_a_full_disk_waits_for_room() {
    let disk = SmallDisk::new(32 * MEGABYTE).unwrap();
    let site = Site::sqlite_at(disk.path().join("chancery.db")).with(2, 500);
    disk.fill().unwrap();
    let run = site.start(&["run"]);
    run.wait_for_stderr("the database's storage fails: ");
    disk.make_room().unwrap();
    run.wait().expect_code(0).expect_stdout("signed 500 records");
    judge(&site, 500);
}

/// SQLite itself has then ended the transaction.
#[test]
fn a_statement_that_finds_the_disk_full_says_that_and_no_consequence_of_it() {
    let disk = SmallDisk::new(24 * MEGABYTE).unwrap();
    let site = Site::sqlite_at(disk.path().join("chancery.db"));
    site.prepare();
    // More than SQLite keeps in memory, so that it writes before the transaction's end.
    let line = vec![b'x'; 32 * MEGABYTE as usize];
    let ended = site.run_with_input(&["import", "-", "--format", "lines"], line).expect_code(1);
    ended.expect_stderr("the database's storage fails: database or disk is full");
    assert_eq!(site.database.number("SELECT count(*) AS value FROM records"), 0);
}

#[track_caller]
fn assert_no_attempt_was_counted(site: &Site) {
    let attempts = "SELECT coalesce(sum(attempts), 0) AS value FROM batches";
    assert_eq!(site.database.number(attempts), 0);
    let reclaimed = "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed'";
    assert_eq!(site.database.number(reclaimed), 0);
}
