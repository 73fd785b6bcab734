//! The private server keeps what it promises: its data, its manners and its end.

#![allow(clippy::unwrap_used, reason = "clippy.toml reaches the tests, not their helpers")]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Error, Postgres, StopMode, TempDir};

#[test]
fn a_statement_returns_its_rows() {
    let rows = Postgres::shared().sql("postgres", "SELECT n, n * n FROM generate_series(1, 3) n");
    assert_eq!(rows.unwrap(), "1|1\n2|4\n3|9");
}

#[test]
fn a_refused_statement_is_an_error_with_the_servers_message() {
    let error = Postgres::shared().sql("postgres", "SELECT 1 / 0").unwrap_err();
    assert!(
        matches!(&error, Error::Failed { message, .. } if message.contains("division by zero"))
    );
}

#[test]
fn a_commit_is_durable_by_default() {
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings
        WHERE name IN ('fsync', 'max_connections', 'synchronous_commit')";
    assert_eq!(Postgres::shared().sql("postgres", settings).unwrap(), "on 200 on");
}

#[test]
fn databases_are_apart_and_dropped_even_while_in_use() {
    let server = Postgres::shared();
    let first = server.create_database().unwrap();
    let second = server.create_database().unwrap();
    first.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").unwrap();
    assert_eq!(first.sql("SELECT n FROM t").unwrap(), "7");
    assert_eq!(second.sql("SELECT to_regclass('t') IS NULL").unwrap(), "t");

    let name = first.name().to_owned();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| server.sql(&name, "SELECT pg_sleep(60)"));
        wait_until("the sleeper is connected", || {
            let count = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'");
            server.sql("postgres", &count).unwrap() == "1"
        });
        drop(first);
        assert!(sleeper.join().unwrap().is_err());
    });
    let left = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(server.sql("postgres", &left).unwrap(), "0");
}

#[test]
fn a_role_has_an_address_of_its_own() {
    let database = Postgres::shared().create_database().unwrap();
    database.sql("CREATE ROLE reader_of_addresses LOGIN").unwrap();
    assert!(database.url_as("reader_of_addresses").contains("//reader_of_addresses@127.0.0.1:"));
    database.sql("DROP ROLE reader_of_addresses").unwrap();
}

#[test]
fn an_immediate_stop_keeps_what_was_committed_and_the_address() {
    let server = Postgres::start().unwrap();
    let url = server.url("postgres");
    server.sql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) n").unwrap();

    server.stop(StopMode::Immediate).unwrap();
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    assert!(server.sql("postgres", "SELECT 1").is_err());

    server.start_again().unwrap();
    assert_eq!(server.url("postgres"), url);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM t").unwrap(), "1000");
    assert!(server.log_tail().contains("was not properly shut down"));
}

#[test]
fn every_way_to_stop_can_be_followed_by_a_start() {
    let server = Postgres::start().unwrap();
    for mode in [StopMode::Fast, StopMode::Smart, StopMode::Immediate] {
        server.stop(mode).unwrap();
        server.stop(mode).unwrap();
        server.start_again().unwrap();
        server.start_again().unwrap();
        assert_eq!(server.sql("postgres", "SELECT 1").unwrap(), "1");
    }
}

#[test]
fn servers_live_side_by_side_and_end_with_their_last_handle() {
    let first = Postgres::start().unwrap();
    let second = Postgres::start().unwrap();
    assert_ne!(first.port(), second.port());
    first.sql("postgres", "CREATE TABLE only_here (n int)").unwrap();
    let elsewhere = second.sql("postgres", "SELECT to_regclass('only_here') IS NULL");
    assert_eq!(elsewhere.unwrap(), "t");

    let (port, folder) = (first.port(), first.folder().to_owned());
    let handle = first.clone();
    drop(first);
    assert_eq!(handle.sql("postgres", "SELECT 1").unwrap(), "1");
    drop(handle);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!folder.exists());
    assert_eq!(second.sql("postgres", "SELECT 1").unwrap(), "1");
}

#[test]
fn a_server_is_gone_after_its_owner_was_killed() {
    let mut owner = Owner::start();
    assert!(owner.server_answers());
    // SIGKILL: the owner has no say in what follows.
    owner.process.kill().unwrap();
    owner.process.wait().unwrap();
    wait_until("the folder is removed", || !owner.folder.exists());
    assert!(!owner.server_answers());
}

#[test]
fn a_server_is_gone_after_its_owner_was_killed_while_it_was_frozen() {
    let mut owner = Owner::start();
    kill_process(owner.server_process(), Signal::STOP).unwrap();
    assert!(owner.server_answers(), "the system answers for a frozen server");
    owner.process.kill().unwrap();
    owner.process.wait().unwrap();
    wait_until("the folder is removed", || !owner.folder.exists());
    assert!(!owner.server_answers());
}

#[test]
fn a_killed_owner_leaves_nothing_at_whatever_moment_it_dies() {
    let folders = TempDir::new().unwrap();
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folders.path(), everyone).unwrap();
    let mut seen = 0;
    for step in 0..6 {
        let mut owner = Command::new(env!("CARGO_BIN_EXE_scratch-postgres"))
            .env("TMPDIR", folders.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let kill_at = Instant::now() + Duration::from_millis(5 + step * 150);
        wait_until("the moment has come", || Instant::now() >= kill_at);
        seen += entries(folders.path());
        owner.kill().unwrap();
        owner.wait().unwrap();
        wait_until("nothing is left", || entries(folders.path()) == 0);
    }
    assert!(seen > 0, "every owner died before it had a folder");
}

/// Another process that holds a server.
struct Owner {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Owner {
    fn start() -> Owner {
        let mut process = Command::new(env!("CARGO_BIN_EXE_scratch-postgres"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines.next().unwrap().unwrap();
        let port = url.strip_prefix("postgres://postgres@127.0.0.1:").unwrap();
        let port = port.strip_suffix("/postgres").unwrap().parse().unwrap();
        let folder = PathBuf::from(lines.next().unwrap().unwrap());
        assert!(folder.is_dir());
        Owner { process, port, folder }
    }

    fn server_process(&self) -> Pid {
        let lock = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        Pid::from_raw(lock.lines().next().unwrap().parse().unwrap()).unwrap()
    }

    fn server_answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[expect(clippy::disallowed_methods, reason = "it polls processes that send no event")]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
