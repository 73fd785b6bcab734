//! Nodes whose clocks are wrong, by libfaketime: no rule depends on a node's clock.

use std::path::PathBuf;
use std::process::Command;

use crate::support::judge::judge;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

const RUN: [&str; 3] = ["run", "--batch-size", "20"];
const RECORDS: u32 = 4_000;

/// The library that stands between a program and its clocks; Debian's package `faketime`.
fn library() -> PathBuf {
    let places = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let places = places.chain([PathBuf::from("/usr/lib64"), PathBuf::from("/usr/local/lib")]);
    let file = "faketime/libfaketimeMT.so.1";
    let mut found = places.map(|place| place.join(file)).filter(|file| file.exists());
    found.next().expect("libfaketime is missing: scripts/test installs it")
}

/// A command whose clocks all run as `rate` says, see faketime(1).
fn with_clock(mut command: Command, rate: &str) -> Command {
    command.env("LD_PRELOAD", library()).env("FAKETIME", rate).env("FAKETIME_NO_CACHE", "1");
    command
}

fn start(site: &Site, rate: &str, failpoints: &str) -> Running {
    let mut command = with_clock(site.command(&RUN), rate);
    command.env("CHANCERY_FAILPOINTS", failpoints);
    site.start_command(command)
}

fn site() -> Site {
    let site = Site::postgres().set("CHANCERY_LEASE__DURATION_S", "1");
    site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000").with(12, RECORDS)
}

#[test]
fn the_fake_clock_is_what_the_program_sees() {
    let site = site();
    let log = start(&site, "+3600s", "batch.started=delay").wait().expect_code(0).stderr;
    let hour = |line: &str| line.get(11..13).and_then(|hour| hour.parse::<u32>().ok());
    let told = log.lines().find(|line| line.contains("failpoint batch.started")).unwrap();
    let now = site
        .database
        .number("SELECT extract(hour FROM clock_timestamp() AT TIME ZONE 'UTC')::BIGINT AS value");
    let ahead = (hour(told).unwrap() + 24 - now.unsigned_abs() as u32) % 24;
    // The hour may have struck between the two looks.
    assert!(ahead == 1 || ahead == 0 && told.contains(":59:"), "{told}");
}

#[test]
fn nodes_whose_clocks_are_hours_apart_sign_everything_once() {
    let site = site();
    let ahead = start(&site, "+3600s", "");
    let behind = start(&site, "-3600s", "");
    let right = site.start(&RUN);
    for node in [ahead, behind, right] {
        node.wait().expect_code(0);
    }
    judge(&site, RECORDS.into());
    let early = "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed' AND ended_at < expires_at";
    assert_eq!(site.database.number(early), 0, "uses reclaimed before their leases ended");
}

#[test]
fn a_node_an_hour_ahead_reclaims_no_use_before_its_lease_ends() {
    reclaims_after_the_lease("+3600s");
}

#[test]
fn a_node_an_hour_behind_reclaims_a_dead_node_s_uses() {
    reclaims_after_the_lease("-3600s");
}

fn reclaims_after_the_lease(rate: &str) {
    let site = site();
    let dead = start(&site, "+0s", "batch.signed=kill@3").wait();
    assert_eq!(dead.signal, Some(Signal::KILL.as_raw()), "{dead}");
    let orphaned = site.open_uses();
    assert!(orphaned > 0);
    start(&site, rate, "").wait().expect_code(0);
    let reclaimed = |condition: &str| {
        let query = format!(
            "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed' AND {condition}"
        );
        site.database.number(&query)
    };
    assert_eq!(reclaimed("ended_at >= expires_at"), orphaned);
    assert_eq!(reclaimed("ended_at < expires_at"), 0);
    judge(&site, RECORDS.into());
}

#[test]
fn a_zombie_whose_clock_hardly_moves_is_fenced() {
    let site = site();
    // It wakes with a clock that says its lease has hardly begun: only the fence keeps it from
    // storing.
    let zombie = start(&site, "+0 x0.02", "writer.storing=stop@2");
    wait_until("it stops", || zombie.is_stopped());
    start(&site, "+0s", "").wait().expect_code(0);
    zombie.signal(Signal::CONT);
    zombie.wait_for_stderr("fenced: threw away what another node signs");
    // Its timers are as slow.
    zombie.signal(Signal::KILL);
    zombie.wait();
    judge(&site, RECORDS.into());
}
