//! A PostgreSQL server that stops, comes back, comes late or never.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use testkit::{Proxy, StopMode};

use crate::support::judge::judge;
use crate::support::program::Signal;
use crate::support::{Site, wait_until};

#[test]
fn a_run_goes_on_after_the_server_was_stopped_and_started_again() {
    survives_a_stop(StopMode::Fast);
}

#[test]
fn a_run_goes_on_after_the_server_crashed_and_was_started_again() {
    survives_a_stop(StopMode::Immediate);
}

fn survives_a_stop(mode: StopMode) {
    // A checkout whose reply was lost comes back when its lease ends.
    let site = Site::postgres_alone().set("CHANCERY_LEASE__DURATION_S", "2").with(20, 20_000);
    let server = site.database.server();
    let run = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    assert!(site.signatures() > 0);
    server.stop(mode).unwrap();
    run.signal(Signal::CONT);
    run.wait_for_stderr("trying again");
    server.start_again().unwrap();
    let ended = run.wait().expect_code(0);
    ended.expect_stdout("no record of ring default in ");
    judge(&site, 20_000);
}

#[test]
fn a_server_that_comes_up_late_is_waited_for() {
    let site = Site::postgres_alone().with(2, 100);
    let server = site.database.server();
    server.stop(StopMode::Fast).unwrap();
    let run = site.start(&["run"]);
    run.wait_for_stderr("waiting for the database");
    server.start_again().unwrap();
    run.wait().expect_code(0).expect_stdout("signed 100 records");
    judge(&site, 100);
}

#[test]
fn a_start_that_is_cut_off_again_and_again_goes_on() {
    let site = Site::postgres().with(2, 10);
    let proxy = Proxy::in_front_of(site.database.server()).unwrap();
    let url = proxy.url(site.database.name());
    let site = site.set("CHANCERY_DATABASE__URL", &url);
    // So slow that the start takes many times the step from one cut to the next.
    proxy.set_delay(Duration::from_millis(5));
    let run = site.start(&["run"]);
    let mut cut = 0;
    for step in 0..15 {
        let later = Duration::from_millis(20) * step;
        let mut connected = None;
        wait_until("it has been connected for a while", || {
            if proxy.connections() > 0 && connected.is_none() {
                connected = Some(Instant::now());
            }
            connected.is_some_and(|at| at.elapsed() >= later) || !run.is_alive()
        });
        cut += proxy.cut_all();
    }
    run.wait().expect_code(0).expect_stdout("signed 10 records");
    assert!(cut > 5, "{cut} connections cut");
}

#[test]
fn a_server_that_never_comes_is_given_up_after_the_wait() {
    // Bound and never accepting is not refused; closed again it is.
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let url = format!("postgres://nobody@127.0.0.1:{port}/nothing");
    let site = Site::sqlite().set("CHANCERY_DATABASE__URL", &url);
    let site = site.set("CHANCERY_DATABASE__WAIT_S", "1");
    let begin = Instant::now();
    let ended = site.run(&["run"]).expect_code(1);
    let waited = begin.elapsed();
    ended.expect_stderr("gave up on the database").expect_stderr("after 1 s (database.wait_s)");
    let bounds = Duration::from_secs(1)..Duration::from_secs(10);
    assert!(bounds.contains(&waited), "it took {waited:?}");
}
