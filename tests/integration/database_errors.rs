//! What PostgreSQL answers other than it should: a wrong login, no such database, a standby, no
//! connection left. What a retry can help is waited for, and nothing else.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use diesel::Connection;
use diesel::pg::PgConnection;
use testkit::StopMode;

use crate::support::database::Database;
use crate::support::judge::judge;
use crate::support::program::{Ended, Signal};
use crate::support::{Site, wait_until};

#[test]
fn what_no_retry_can_help_is_said_at_once() {
    let site = Site::postgres_alone();
    let server = site.database.server();
    site.database.execute(
        "CREATE ROLE locked LOGIN PASSWORD 'right'; CREATE ROLE banned LOGIN;
         CREATE ROLE silent NOLOGIN",
    );
    allow(
        server,
        "host all locked 127.0.0.1/32 scram-sha-256\n\
         host all banned 127.0.0.1/32 reject\n",
    );
    let banned = server.url_as("banned", "postgres");
    wait_until("the rules are in force", || PgConnection::establish(&banned).is_err());
    let address = format!("127.0.0.1:{}", server.port());
    let name = site.database.name().to_owned();
    for (url, expected) in [
        (format!("locked:secretly-wrong@{address}/{name}"), "password authentication failed"),
        (format!("locked@{address}/{name}"), "no password supplied"),
        (format!("nobody@{address}/{name}"), "role \"nobody\" does not exist"),
        (format!("silent@{address}/{name}"), "is not permitted to log in"),
        (format!("postgres@{address}/elsewhere"), "database \"elsewhere\" does not exist"),
        (format!("banned@{address}/{name}"), "pg_hba.conf rejects connection"),
        (format!("postgres@{address}/{name}?sslmode=require"), "server does not support SSL"),
    ] {
        let site = Site::sqlite().set("CHANCERY_DATABASE__URL", &format!("postgres://{url}"));
        for command in [&["run"][..], &["migrate"]] {
            let ended = refused(&site, command).expect_stderr("error: cannot use the database ");
            let ended = ended.expect_stderr(expected);
            assert!(!ended.stderr.contains("secretly-wrong"), "it shows the password: {ended}");
        }
    }
}

#[test]
fn a_server_that_loses_its_database_is_left() {
    let site = Site::postgres().set("CHANCERY_HTTP__BIND", "127.0.0.1:0").with(3, 50);
    let serve = site.start(&["serve"]);
    wait_until("all is signed", || site.signatures() == 50);
    let name = site.database.name();
    site.database.server().sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    let ended = serve.wait().expect_code(1).expect_stderr("cannot go on with ");
    ended.expect_stderr(&format!("database \"{name}\" does not exist"));
}

#[test]
fn a_login_that_is_taken_away_while_serving_ends_it_and_blames_no_batch() {
    let site = Site::postgres_alone().with(20, 20_000);
    site.database.execute("CREATE ROLE signer LOGIN SUPERUSER");
    let site = site.on_login("signer");
    let run = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    // First the one and then the other: in one transaction they would log in again before its end.
    site.database.execute("ALTER ROLE signer NOLOGIN");
    site.database
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'signer'");
    run.signal(Signal::CONT);
    let begin = Instant::now();
    let ended = run.wait().expect_code(1).expect_stderr("is not permitted to log in");
    assert!(begin.elapsed() < Duration::from_secs(30), "it took {:?}", begin.elapsed());
    assert!(!ended.stderr.contains("the database refused a batch"), "{ended}");
    site.database.execute("ALTER ROLE signer LOGIN");
    let attempts = "SELECT coalesce(sum(attempts), 0) AS value FROM batches";
    assert_eq!(site.database.number(attempts), 0);
    site.set("CHANCERY_LEASE__DURATION_S", "2").run(&["run"]).expect_code(0);
}

#[test]
fn a_role_with_few_connections_makes_do_with_them() {
    let site = with_limited_role(2);
    let site = site.on_login(LIMITED);
    let ended = site.run(&["run", "--batch-size", "20"]).expect_code(0);
    let ended = ended.expect_stdout("signed 2,000 records");
    assert!(!ended.stderr.contains("could not"), "no work had to be done again: {ended}");
    judge(&site, 2_000);
}

#[test]
fn who_finds_no_connection_left_waits_for_one() {
    let site = with_limited_role(1);
    let url = site.database.url_as(LIMITED);
    let held = PgConnection::establish(&url).unwrap();
    let site = site.on_login(LIMITED);
    let run = site.start(&["run"]);
    run.wait_for_stderr("too many connections for role");
    drop(held);
    run.wait().expect_code(0).expect_stdout("signed 2,000 records");
    judge(&site, 2_000);
}

#[test]
fn a_run_on_a_standby_says_so_and_signs_when_it_is_promoted() {
    let primary = Site::postgres_alone().with(5, 1_000);
    let standby = primary.database.server().start_standby().unwrap();
    let kek = primary.path("kek").display().to_string();
    let database = standby.database(primary.database.name());
    let site = Site::on_database(Database::Postgres(database)).set("CHANCERY_KEYS__KEK_FILE", &kek);
    let run = site.start(&["run", "--batch-size", "20"]);
    run.wait_for_stderr("the database takes no writes: ");
    run.wait_for_stderr("it is a standby");
    let status = site.run(&["status"]).expect_code(0);
    status.expect_stdout("writes fail, or may soon: it is a standby that has not been promoted");
    assert!(run.is_alive());

    primary.database.server().stop(StopMode::Immediate).unwrap();
    standby.sql("postgres", "SELECT pg_promote()").unwrap();
    run.wait().expect_code(0).expect_stdout("signed 1,000 records");
    judge(&site, 1_000);
}

#[test]
fn the_server_is_asked_for_english_by_whom_it_lets() {
    let site = Site::postgres().set("CHANCERY_DATABASE__RUNTIME_ROLE", SPEAKER);
    let server = site.database.server();
    site.database.execute(&format!("CREATE ROLE {SPEAKER} LOGIN"));
    site.database.execute(&format!("ALTER ROLE {SPEAKER} SET lc_messages = 'C.UTF-8'"));
    let language = || {
        let mut connection = PgConnection::establish(&site.database.url_as(SPEAKER)).unwrap();
        let query = "SELECT current_setting('lc_messages') AS value";
        crate::support::database::values_of(&mut connection, query).unwrap()
    };
    assert_eq!(language(), ["C.UTF-8"]);
    site.run(&["migrate"]).expect_code(0);
    assert_eq!(language(), ["C"]);
    server.sql(site.database.name(), &format!("DROP OWNED BY {SPEAKER}")).unwrap();
    server.sql("postgres", &format!("DROP ROLE {SPEAKER}")).unwrap();
}

const LIMITED: &str = "limited_signer";
const SPEAKER: &str = "foreign_speaker";

/// A server of its own, where a role may have so many connections.
fn with_limited_role(connections: u32) -> Site {
    let site = Site::postgres_alone();
    site.database.execute(&format!("CREATE ROLE {LIMITED} LOGIN CONNECTION LIMIT {connections}"));
    site.set("CHANCERY_DATABASE__RUNTIME_ROLE", LIMITED).with(5, 2_000)
}

/// Puts rules before those of the server's pg_hba.conf; the server takes them up a moment later.
fn allow(server: &testkit::Postgres, rules: &str) {
    let path = server.folder().join("data").join("pg_hba.conf");
    let before = fs::read(&path).unwrap();
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    file.write_all(&before).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
}

/// Runs a command that must fail soon, not after `database.wait_s`.
#[track_caller]
fn refused(site: &Site, command: &[&str]) -> Ended {
    let begin = Instant::now();
    let ended = site.run(command).expect_code(1);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?}: {ended}");
    ended
}
