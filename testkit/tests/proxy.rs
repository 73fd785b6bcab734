//! The proxy does to connections what it is told, and else nothing.

#![allow(clippy::unwrap_used, reason = "clippy.toml reaches the tests, not their helpers")]

use std::time::{Duration, Instant};

use testkit::{Database, Error, Postgres, Proxy, StopMode};

/// A database with an empty table, and a proxy before it.
fn table_behind_a_proxy() -> (Database, Proxy) {
    let database = Postgres::shared().create_database().unwrap();
    database.sql("CREATE TABLE t (n int)").unwrap();
    let proxy = Proxy::in_front_of(database.server()).unwrap();
    (database, proxy)
}

fn sql_through(proxy: &Proxy, database: &Database, statement: &str) -> Result<String, Error> {
    database.server().sql_at(&proxy.url(database.name()), statement)
}

#[test]
fn statements_and_large_answers_pass_unchanged() {
    let (database, proxy) = table_behind_a_proxy();
    let insert = "BEGIN; INSERT INTO t SELECT generate_series(1, 100000); COMMIT";
    sql_through(&proxy, &database, insert).unwrap();
    let all = "SELECT n FROM t ORDER BY n";
    let rows = sql_through(&proxy, &database, all).unwrap();
    assert_eq!(rows, database.sql(all).unwrap());
    assert_eq!(rows.lines().count(), 100_000);
    wait_until("the clients' leaving is noticed", || proxy.connections() == 0);
    assert_eq!(proxy.dropped_commit_replies(), 0);
}

#[test]
fn a_dropped_reply_leaves_the_commit_on_the_server_and_the_client_in_the_dark() {
    let (database, proxy) = table_behind_a_proxy();
    proxy.drop_commit_replies(2);
    for n in 1..=3 {
        let insert = format!("BEGIN; INSERT INTO t VALUES ({n}); COMMIT");
        let told = sql_through(&proxy, &database, &insert);
        assert_eq!(told.is_ok(), n == 3, "{told:?}");
        assert_eq!(database.sql("SELECT max(n) FROM t").unwrap(), n.to_string());
    }
    assert_eq!(proxy.dropped_commit_replies(), 2);
}

#[test]
fn a_rollback_is_no_commit() {
    let (database, proxy) = table_behind_a_proxy();
    proxy.drop_commit_replies(1);
    sql_through(&proxy, &database, "BEGIN; INSERT INTO t VALUES (1); ROLLBACK").unwrap();
    sql_through(&proxy, &database, "INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(proxy.dropped_commit_replies(), 0);
}

#[test]
fn one_connection_or_all_of_them_are_cut() {
    let (database, proxy) = table_behind_a_proxy();
    std::thread::scope(|scope| {
        let sleep = || sql_through(&proxy, &database, "SELECT pg_sleep(60)");
        let sleepers: Vec<_> = (0..3).map(|_| scope.spawn(sleep)).collect();
        wait_until("three sleep", || sleeping(&database) == "3");
        assert_eq!(proxy.connections(), 3);
        assert!(proxy.cut_one(7));
        wait_until("one has been told", || sleepers.iter().any(|sleeper| sleeper.is_finished()));
        assert_eq!(sleepers.iter().filter(|sleeper| sleeper.is_finished()).count(), 1);
        assert_eq!(proxy.cut_all(), 2);
        for sleeper in sleepers {
            assert!(sleeper.join().unwrap().is_err());
        }
    });
    assert_eq!(proxy.connections(), 0);
    assert!(!proxy.cut_one(0));
    assert_eq!(sql_through(&proxy, &database, "SELECT 1").unwrap(), "1");
}

#[test]
fn a_black_hole_holds_everything_back_until_it_is_off() {
    let (database, proxy) = table_behind_a_proxy();
    proxy.set_black_hole(true);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| sql_through(&proxy, &database, "INSERT INTO t VALUES (1)"));
        wait_until("a client has come", || proxy.connections() == 1);
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()";
        assert_eq!(database.sql(sessions).unwrap(), "1");
        assert!(!client.is_finished());
        proxy.set_black_hole(false);
        client.join().unwrap().unwrap();
    });
    assert_eq!(database.sql("SELECT n FROM t").unwrap(), "1");
}

#[test]
fn a_connection_in_a_black_hole_can_be_cut() {
    let (database, proxy) = table_behind_a_proxy();
    proxy.set_black_hole(true);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| sql_through(&proxy, &database, "INSERT INTO t VALUES (1)"));
        wait_until("a client has come", || proxy.connections() == 1);
        assert_eq!(proxy.cut_all(), 1);
        assert!(client.join().unwrap().is_err());
    });
    assert_eq!(database.sql("SELECT count(*) FROM t").unwrap(), "0");
}

#[test]
fn a_delay_holds_each_piece_of_both_directions() {
    let (database, proxy) = table_behind_a_proxy();
    let delay = Duration::from_millis(100);
    proxy.set_delay(delay);
    let begun = Instant::now();
    sql_through(&proxy, &database, "SELECT 1").unwrap();
    // The start of the session and its answer, the statement and its answer.
    assert!(begun.elapsed() >= delay * 4, "{:?}", begun.elapsed());
    proxy.set_delay(Duration::ZERO);
    sql_through(&proxy, &database, "SELECT 1").unwrap();
}

#[test]
fn a_server_that_is_down_closes_the_connection_and_one_that_is_back_answers() {
    let server = Postgres::start().unwrap();
    let proxy = Proxy::in_front_of(&server).unwrap();
    let url = proxy.url("postgres");
    server.stop(StopMode::Immediate).unwrap();
    assert!(server.sql_at(&url, "SELECT 1").is_err());
    server.start_again().unwrap();
    assert_eq!(server.sql_at(&url, "SELECT 1").unwrap(), "1");
}

fn sleeping(database: &Database) -> String {
    let count = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep'";
    database.sql(count).unwrap()
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "it polls what sends no event")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
