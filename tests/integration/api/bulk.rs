//! Records in bulk.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use reqwest::Method;
use reqwest::blocking::Body;
use serde_json::{Value, json};

use super::Served;
use crate::support::judge::judge;
use crate::support::{Site, wait_until};

on_both_databases! {
    each_line_has_its_result_in_order,
    a_client_may_send_everything_before_it_reads_anything,
    what_was_stored_before_a_client_went_away_stays_and_is_signed,
    a_gigabyte_would_take_no_more_memory_than_this,
}

fn results(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn send(served: &Served, body: impl Into<Body>) -> Vec<Value> {
    let request = served.ask(Method::POST, "/v1/records/bulk");
    let answer = served.send(request.header("Content-Type", "application/x-ndjson").body(body));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    results(&answer.text)
}

fn each_line_has_its_result_in_order(site: Site) {
    let served = Served::start(site.set("CHANCERY_HTTP__MAX_BODY_BYTES", "2000").with(3, 0));
    let long = format!("{{\"payload\":\"{}\"}}", "x".repeat(2000));
    let body = [
        r#"{"payload":"a","external_id":"1"}"#,
        "",
        r#"{"payload":"a","external_id":"1"}"#,
        r#"{"payload":"b","external_id":"1"}"#,
        "  \t",
        "nonsense",
        &long,
        r#"{"payload_base64":"YWI="}"#,
        r#"{"payload":"no newline at the end"}"#,
    ];
    let found = send(&served, body.join("\n"));
    let status: Vec<(u64, &str)> = found
        .iter()
        .map(|line| (line["line"].as_u64().unwrap(), line["status"].as_str().unwrap()))
        .collect();
    assert_eq!(
        status,
        [
            (1, "added"),
            (3, "unchanged"),
            (4, "conflict"),
            (6, "invalid"),
            (7, "invalid"),
            (8, "added"),
            (9, "added"),
        ]
    );
    assert_eq!(found[0]["id"], found[1]["id"]);
    assert_eq!(found[0]["id"], found[2]["id"]);
    assert!(found[3]["detail"].as_str().unwrap().contains("at column 2"), "{}", found[3]);
    assert!(found[4]["detail"].as_str().unwrap().contains("2000 bytes"), "{}", found[4]);
    assert_eq!(send(&served, ""), [] as [Value; 0]);
    let again = send(&served, body[0].to_owned());
    assert_eq!(again[0]["status"], "unchanged");
    let request = served.ask(Method::POST, "/v1/records/bulk").json(&json!({"payload": "a"}));
    served.send(request).expect_problem(415, "application/x-ndjson");
    wait_until("all are signed", || served.site.signatures() == 3);
    judge(&served.stop(), 3);
}

/// A connection on which the head of a bulk request has been sent, for a body in chunks.
fn begun(served: &Served) -> TcpStream {
    let mut connection = TcpStream::connect(&served.address).unwrap();
    let head = format!(
        "POST /v1/records/bulk HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        served.token
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection
}

fn write_chunk(connection: &mut TcpStream, text: &str) {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    connection.write_all(chunk.as_bytes()).unwrap();
}

fn a_client_may_send_everything_before_it_reads_anything(site: Site) {
    let served = Served::start(site.with(1, 0));
    served.post("/v1/pause", &json!({"scope": "all"})).expect(200);
    let mut connection = begun(&served);
    let lines = "{\"payload\":\"\"}\n".repeat(1_000);
    for _ in 0..120 {
        write_chunk(&mut connection, &lines);
    }
    connection.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{}", &answer[..200]);
    assert_eq!(answer.matches("\"added\"").count(), 120_000);
    assert!(answer.contains("{\"line\":120000,\"status\":\"added\""));
    served.stop();
}

fn what_was_stored_before_a_client_went_away_stays_and_is_signed(site: Site) {
    let served = Served::start(site.with(2, 0));
    let mut connection = begun(&served);
    write_chunk(&mut connection, "{\"payload\":\"1\"}\n{\"payload\":\"2\"}\n{\"payl");
    let mut answer = String::new();
    let mut piece = [0; 4096];
    while !answer.contains("\"line\":2") {
        let read = connection.read(&mut piece).unwrap();
        assert!(read > 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    connection.shutdown(Shutdown::Both).unwrap();
    wait_until("both are signed", || served.site.signatures() == 2);
    judge(&served.stop(), 2);
}

fn a_gigabyte_would_take_no_more_memory_than_this(site: Site) {
    let served = Served::start(site.with(1, 0));
    served.post("/v1/pause", &json!({"scope": "all"})).expect(200);
    let line = format!("{{\"payload\":\"{}\"}}\n", "x".repeat(4_000));
    let send_mb = |megabytes: usize| {
        let mut connection = begun(&served);
        let mut reader = connection.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).map(|_| answer)
        });
        let chunk = line.repeat(250);
        for _ in 0..megabytes {
            write_chunk(&mut connection, &chunk);
        }
        connection.write_all(b"0\r\n\r\n").unwrap();
        let answer = String::from_utf8(reading.join().unwrap().unwrap()).unwrap();
        assert_eq!(answer.matches("\"added\"").count(), megabytes * 250);
        served.serve.peak_memory().unwrap()
    };
    let after_little = send_mb(30);
    let after_much = send_mb(150);
    let more = after_much.saturating_sub(after_little);
    assert!(more < 24 * 1024 * 1024, "{more} bytes more for five times as much");
    served.stop();
}
