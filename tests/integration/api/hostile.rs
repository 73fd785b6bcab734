//! Clients that are slow, many, rude or gone, and services that end under load.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use reqwest::Method;
use serde_json::json;

use super::{Answer, Served};
use crate::support::judge::judge_data;
use crate::support::program::Signal;
use crate::support::{LIMIT, Site, wait_until};

on_both_databases! {
    a_client_that_is_slow_is_sent_away_and_holds_up_nobody,
    ten_thousand_requests_go_over_one_connection,
    what_was_answered_is_stored_when_a_service_is_ended_under_load,
    what_was_answered_is_stored_when_a_service_is_killed_under_load,
    a_client_that_asks_too_much_is_told_to_slow_down,
}

fn connect(served: &Served) -> TcpStream {
    let connection = TcpStream::connect(&served.address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    connection
}

fn read_all(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    // Whoever is sent away may find the connection reset.
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn a_client_that_is_slow_is_sent_away_and_holds_up_nobody(site: Site) {
    let site = site.set("CHANCERY_HTTP__REQUEST_TIMEOUT_S", "1");
    let served = Served::start(site.with(1, 0));
    // Connections that say nothing, that never end their head, and that stop in their body.
    let silent: Vec<TcpStream> = (0..50).map(|_| connect(&served)).collect();
    let mut slow_head = connect(&served);
    slow_head.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    let mut slow_body = connect(&served);
    let head = format!(
        "POST /v1/records HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf",
        served.token
    );
    slow_body.write_all(head.as_bytes()).unwrap();
    served.post("/v1/records", &json!({"payload": "a"})).expect(201);
    let told = read_all(slow_body);
    assert!(told.starts_with("HTTP/1.1 408"), "{told}");
    assert!(told.contains("The body did not come in time."), "{told}");
    let told = read_all(slow_head);
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 408"), "{told}");
    for connection in silent {
        drop(read_all(connection));
    }
    let mut large = connect(&served);
    let head = format!("GET /live HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(300_000));
    let _ = large.write_all(head.as_bytes());
    let told = read_all(large);
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told}");
    let nonsense = connect(&served);
    (&nonsense).write_all(b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n").unwrap();
    assert!(read_all(nonsense).starts_with("HTTP/1.1 400"));
    assert_eq!(served.get("/live").text, "live\n");
    served.stop();
}

fn ten_thousand_requests_go_over_one_connection(site: Site) {
    const REQUESTS: usize = 10_000;
    let site = site.set("CHANCERY_HTTP__REQUESTS_PER_S", "0");
    let served = Served::start(site.with(1, 0));
    let connection = connect(&served);
    let mut writer = connection.try_clone().unwrap();
    let request = format!(
        "GET /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        served.token
    );
    // Sent without waiting for answers.
    let sending = std::thread::spawn(move || {
        for _ in 0..REQUESTS {
            writer.write_all(request.as_bytes()).unwrap();
        }
    });
    let mut answered = 0;
    let mut lines = BufReader::new(connection);
    let mut line = Vec::new();
    while answered < REQUESTS {
        line.clear();
        assert!(lines.read_until(b'\n', &mut line).unwrap() > 0, "closed after {answered}");
        if let Some(at) = line.windows(9).position(|window| window == b"HTTP/1.1 ") {
            assert_eq!(&line[at + 9..at + 12], b"200");
            answered += 1;
        }
    }
    sending.join().unwrap();
    served.stop();
}

/// Posts from many connections until the service ends by that signal; what clients were told is stored,
/// by external id.
fn load(served: &Served, signal: Signal) -> BTreeSet<String> {
    let accepted = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for n in 0..32 {
            let accepted = &accepted;
            scope.spawn(move || {
                for m in 0.. {
                    let id = format!("{n}-{m}");
                    let record = json!({"payload": id, "external_id": id});
                    let request =
                        served.ask(Method::POST, "/v1/records").bearer_auth(&served.token);
                    match request.json(&record).send() {
                        Ok(answer) if answer.status() == 201 => {
                            accepted.lock().unwrap().insert(id);
                        }
                        Ok(answer) => panic!("{:?}", Answer::of(answer)),
                        // It has ended.
                        Err(_) => return,
                    }
                }
            });
        }
        wait_until("the load is under way", || accepted.lock().unwrap().len() > 500);
        served.serve.signal(signal);
    });
    accepted.into_inner().unwrap()
}

/// All of them are there, and are signed by the next run.
fn expect_stored(site: &Site, accepted: &BTreeSet<String>) {
    let there: BTreeSet<String> =
        site.database.rows("SELECT external_id AS value FROM records").into_iter().collect();
    let lost: Vec<&String> = accepted.difference(&there).collect();
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    assert!(accepted.len() > 500);
    site.run(&["run"]).expect_code(0);
    judge_data(&site.database, there.len() as i64, 0);
}

fn what_was_answered_is_stored_when_a_service_is_ended_under_load(site: Site) {
    let site = site.set("CHANCERY_LEASE__DURATION_S", "2");
    let served = Served::start(site.with(8, 0));
    let accepted = load(&served, Signal::TERM);
    let Served { site, serve, .. } = served;
    serve.wait().expect_code(0);
    expect_stored(&site, &accepted);
}

fn what_was_answered_is_stored_when_a_service_is_killed_under_load(site: Site) {
    let site = site.set("CHANCERY_LEASE__DURATION_S", "2");
    let served = Served::start(site.with(8, 0));
    let accepted = load(&served, Signal::KILL);
    let Served { site, serve, .. } = served;
    assert_eq!(serve.wait().signal, Some(9));
    expect_stored(&site, &accepted);
}

fn a_client_that_asks_too_much_is_told_to_slow_down(site: Site) {
    let site = site.set("CHANCERY_HTTP__REQUESTS_PER_S", "5");
    let served = Served::start(site.with(1, 0));
    let mut refused = None;
    for _ in 0..50 {
        let answer = served.get("/v1/keys");
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("nobody was refused");
    refused.expect_problem(429, "slow down");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&seconds), "{seconds}");
    let mut told = 0;
    for _ in 0..40 {
        let request =
            served.ask(Method::GET, "/v1/keys").bearer_auth(format!("chy_{}", "x".repeat(43)));
        let status = request.send().unwrap().status().as_u16();
        assert!([401, 429].contains(&status), "{status}");
        told += usize::from(status == 429);
    }
    assert!(told > 0, "who tries tokens in vain was heard each time");
    served.stop();
}

#[test]
fn a_service_answers_while_its_database_is_gone_and_goes_on_when_it_is_back() {
    let site = Site::postgres_alone().with(2, 10);
    let served = Served::start(site);
    wait_until("all are signed", || served.site.signatures() == 10);
    served.site.database.server().stop(testkit::StopMode::Immediate).unwrap();
    let refused = served.post("/v1/records", &json!({"payload": "a"}));
    refused.expect_problem(503, "");
    assert_eq!(refused.header("retry-after"), Some("5"));
    served.get("/v1/keys").expect_problem(503, "database does not answer");
    assert_eq!(served.get("/live").status, 200);
    wait_until("the metrics say that it is down", || {
        let page = served.get("/metrics");
        page.status == 200 && page.text.contains("chancery_database_up 0.0\n")
    });
    served.site.database.server().start_again().unwrap();
    let record = json!({"payload": "b", "external_id": "b"});
    wait_until("records are taken in again", || {
        [200, 201].contains(&served.post("/v1/records", &record).status)
    });
    served.get("/v1/records/by-external-id/b/signature?wait=60").expect(200);
    served.stop();
}
