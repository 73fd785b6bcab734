//! Records that arrive by plain SQL while others are signed, early, late or not at all.

use std::io::{Read, Write};
use std::net::TcpStream;

use diesel::connection::SimpleConnection;

use crate::support::database::values_of;
use crate::support::judge::judge;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

on_both_databases! {
    records_that_arrive_by_sql_during_a_run_are_signed_by_it,
    serve_signs_what_is_there_and_what_arrives,
}

fn records_that_arrive_by_sql_during_a_run_are_signed_by_it(site: Site) {
    let site = site.with(20, 20_000);
    // It halts between checkouts now and again: else a fast run could end before the insertion, which
    // has to wait for a moment without a writer on SQLite.
    let halts: Vec<String> =
        (3..9).map(|n| format!("key_manager.checking_out=delay@{n}")).collect();
    let mut command = site.command(&["run", "--batch-size", "20"]);
    command.env("CHANCERY_FAILPOINTS", halts.join(","));
    let run = site.start_command(command);
    site.wait_for_the_middle(20_000);
    insert(&site, "during", 1_000);
    run.wait().expect_code(0).expect_stdout("signed 21,000 records");
    judge(&site, 21_000);
}

fn serve_signs_what_is_there_and_what_arrives(site: Site) {
    let site = site.set("CHANCERY_HTTP__BIND", "127.0.0.1:0").with(10, 1_000);
    let serve = site.start(&["serve", "--batch-size", "50"]);
    let address = listens_at(&serve);
    wait_until("what was there is signed", || site.signatures() == 1_000);
    insert(&site, "later", 500);
    wait_until("what has arrived is signed", || site.signatures() == 1_500);
    assert_eq!(get(&address, "/live"), ("HTTP/1.1 200 OK".to_owned(), "live\n".to_owned()));
    assert_eq!(get(&address, "/ready"), ("HTTP/1.1 200 OK".to_owned(), "ready\n".to_owned()));

    serve.signal(Signal::TERM);
    serve.wait().expect_code(0).expect_stderr("stopped records=1500 ");
    judge(&site, 1_500);
}

#[test]
fn records_committed_behind_an_older_open_transaction_wait_for_its_commit() {
    let site = Site::postgres_alone().with(10, 0);
    let (mut older, run) = start_behind_an_open_transaction(&site);
    older.batch_execute("COMMIT").unwrap();
    run.wait().expect_code(0).expect_stdout("signed 2,010 records");
    judge(&site, 2_010);
}

#[test]
fn records_committed_behind_an_older_open_transaction_wait_for_its_rollback() {
    let site = Site::postgres_alone().with(10, 0);
    let (mut older, run) = start_behind_an_open_transaction(&site);
    older.batch_execute("ROLLBACK").unwrap();
    run.wait().expect_code(0).expect_stdout("signed 2,000 records");
    judge(&site, 2_000);
}

/// Ten records inserted and not committed, two thousand committed after them, and a run that waits.
fn start_behind_an_open_transaction(site: &Site) -> (diesel::pg::PgConnection, Running) {
    let mut older = site.database.connect_postgres();
    older.batch_execute("BEGIN").unwrap();
    older.batch_execute(&insertion(site, "older", 10)).unwrap();
    let older_id = values_of(&mut older, "SELECT pg_backend_pid() AS value").unwrap().remove(0);
    site.seed(2_000);
    let run = site.start(&["run", "--batch-size", "100"]);
    let line =
        run.wait_for_stderr("keeps records that were inserted since it began from being signed");
    assert!(line.contains(&format!(" process {older_id},")), "{line}");
    assert_eq!(site.signatures(), 0, "a record was signed before its turn");
    (older, run)
}

#[test]
fn the_runtime_role_does_the_whole_job_and_cannot_change_what_is_signed() {
    let owner = Site::postgres();
    let role = format!("runtime_of_{}", owner.database.name());
    let url = owner.database.url_as(&role);
    owner.database.execute(&format!("CREATE ROLE {role} LOGIN"));
    let owner = owner.set("CHANCERY_DATABASE__RUNTIME_ROLE", &role);
    owner.prepare();

    let runtime = owner.set("CHANCERY_DATABASE__URL", &url);
    runtime.run(&["keys", "generate", "--count", "10"]).expect_code(0);
    runtime.seed(2_000);
    runtime
        .run(&["run", "--batch-size", "100"])
        .expect_code(0)
        .expect_stdout("signed 2,000 records");
    for change in [
        "UPDATE signatures SET batch_id = 0",
        "DELETE FROM signatures",
        "TRUNCATE signatures",
        "DELETE FROM key_events",
        "DELETE FROM records",
    ] {
        let refused = runtime
            .database
            .server()
            .sql(runtime.database.name(), &format!("SET ROLE {role}; {change}"));
        let error = refused.expect_err(change).to_string();
        assert!(error.contains("permission denied"), "{change}: {error}");
    }
    judge(&runtime, 2_000);
}

fn insert(site: &Site, name: &str, records: u32) {
    site.database.execute(&insertion(site, name, records));
}

/// The statement that adds records with ids of their own.
fn insertion(site: &Site, name: &str, records: u32) -> String {
    let payload = if site.database.is_postgres() {
        "convert_to('payload ' || n, 'UTF8')"
    } else {
        "CAST('payload ' || n AS BLOB)"
    };
    format!(
        "INSERT INTO records (ring_id, external_id, payload)
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {records})
         SELECT 1, '{name}-' || n, {payload} FROM numbers"
    )
}

/// Where the service says that it listens.
fn listens_at(serve: &Running) -> String {
    let line = serve.wait_for_stderr("listening");
    let (_, address) = line.split_once("address=").unwrap_or_else(|| panic!("{line}"));
    address.split_whitespace().next().unwrap().to_owned()
}

/// The status line and the body of an answer.
fn get(address: &str, path: &str) -> (String, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}
