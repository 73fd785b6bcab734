//! Spans for an OTLP collector, which a little HTTP server plays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::Site;

on_both_databases! {
    spans_of_each_batch_reach_the_collector_and_no_secret_does,
    a_collector_that_is_not_there_or_says_nothing_changes_no_run,
}

/// The bodies of what it was sent.
type Sent = Arc<Mutex<Vec<u8>>>;

/// A collector that takes everything; its address.
fn collector() -> (String, Sent) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Sent::default();
    let to = Arc::clone(&sent);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let to = Arc::clone(&to);
            std::thread::spawn(move || take(connection.unwrap(), &to));
        }
    });
    (format!("http://{address}/v1/traces"), sent)
}

fn take(connection: TcpStream, to: &Sent) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        to.lock().unwrap().extend_from_slice(&body);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
    }
}

fn spans_of_each_batch_reach_the_collector_and_no_secret_does(site: Site) {
    let (endpoint, sent) = collector();
    let site = site.with(3, 1_000);
    assert!(sent.lock().unwrap().is_empty(), "sent without being told to");
    let site = site
        .set("CHANCERY_TELEMETRY__OTLP_ENDPOINT", &endpoint)
        .set("CHANCERY_TELEMETRY__SERVICE_NAME", "signing-desk")
        .set("CHANCERY_LOG__LEVEL", "error");
    site.run(&["run", "--batch-size", "100"]).expect_code(0);
    let sent = String::from_utf8_lossy(&sent.lock().unwrap()).into_owned();
    for name in ["batch", "sign", "store", "signing-desk", "service.version", "fence", "node"] {
        assert!(sent.contains(name), "no {name} in {} bytes", sent.len());
    }
    let kek = std::fs::read_to_string(site.path("kek")).unwrap();
    let secret = kek.trim().rsplit(':').next().unwrap().to_owned();
    assert!(secret.len() > 40 && !sent.contains(&secret), "the KEK is in a span");
}

fn a_collector_that_is_not_there_or_says_nothing_changes_no_run(site: Site) {
    let site = site.with(3, 0);
    // One that takes connections and never answers, and a port on which nobody listens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), closed] {
        site.seed(500);
        let endpoint = format!("http://{address}/v1/traces");
        let mut run = site.command(&["run"]);
        run.env("CHANCERY_TELEMETRY__OTLP_ENDPOINT", &endpoint);
        let begin = Instant::now();
        let output = run.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert!(log.contains("could not send spans"), "{log}");
        assert!(begin.elapsed() < Duration::from_secs(30), "held up by {endpoint}");
    }
    assert_eq!(site.signatures(), 1_000);
}
