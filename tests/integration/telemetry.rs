//! Spans for an OTLP collector, which a little HTTP server plays.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::program::Signal;
use crate::support::{Site, wait_until};

on_both_databases! {
    each_batch_is_a_span_with_its_signing_and_storing,
    a_service_sends_its_requests_and_no_secret,
    a_collector_that_is_not_there_or_says_nothing_changes_no_run,
}

const ENDPOINT: &str = "CHANCERY_TELEMETRY__OTLP_ENDPOINT";

fn each_batch_is_a_span_with_its_signing_and_storing(site: Site) {
    let collector = Collector::start("200 OK");
    // What other programs are told does not make this one send.
    let site = site
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector.endpoint)
        .set("CHANCERY_LOG__LEVEL", "warn")
        .with(3, 500);
    site.run(&["run", "--batch-size", "100"]).expect_code(0);
    assert_eq!(collector.requests(), 0, "sent without being told to");

    site.seed(1_000);
    let site = site
        .set(ENDPOINT, &collector.endpoint)
        .set("CHANCERY_TELEMETRY__SERVICE_NAME", "signing-desk")
        .set("CHANCERY_NODE__NAME", "desk-1");
    let ended = site.run(&["run", "--batch-size", "100"]).expect_code(0);
    assert_eq!(ended.stderr, "", "what is traced must not be logged");

    let sent = collector.sent();
    let spans = spans(&sent);
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let batches = named("batch");
    assert_eq!(batches.len(), 10);
    for step in ["sign", "store"] {
        for batch in &batches {
            let steps = named(step);
            let of_batch = steps.iter().filter(|span| span.parent == batch.id);
            assert_eq!(of_batch.filter(|span| span.trace == batch.trace).count(), 1, "{step}");
        }
    }
    assert_eq!(spans.len(), 30, "{spans:?}");
    for text in ["signing-desk", "service.version", "service.instance.id", "desk-1-", "fence"] {
        assert!(holds(&sent, text.as_bytes()), "no {text}");
    }
}

fn a_service_sends_its_requests_and_no_secret(site: Site) {
    // RFC 8037, appendix A.
    const PRIVATE: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let collector = Collector::start("200 OK");
    let site = site
        .set("CHANCERY_HTTP__BIND", "127.0.0.1:0")
        .set(ENDPOINT, &collector.endpoint)
        .set("CHANCERY_LOG__LEVEL", "info,chancery=trace")
        .with(0, 0);
    let roles = ["token", "create", "--name", "test", "--role", "key-admin", "--role", "writer"];
    let made = site.run(&roles).expect_code(0);
    let words = made.stdout.split_whitespace().chain(made.stderr.split_whitespace());
    let token = words.clone().find(|word| word.starts_with("chy_")).unwrap().to_owned();

    let serve = site.start(&["serve"]);
    let line = serve.wait_for_stderr("listening");
    let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap();
    let key =
        format!(r#"{{"jwk":{{"kty":"OKP","crv":"Ed25519","d":"{PRIVATE}","x":"{PUBLIC}"}}}}"#);
    post(address, &token, "/v1/keys/import", &key);
    post(address, &token, "/v1/records", r#"{"payload":"canary-of-a-payload"}"#);
    wait_until("the record is signed", || site.signatures() == 1);
    // A request with a line in the log.
    let wrong = format!("chy_{}", "w".repeat(43));
    let headers = format!("Authorization: Bearer {wrong}\r\n");
    assert!(ask(address, "GET /v1/status", &headers, "").starts_with("HTTP/1.1 401"));
    let told = serve.wait_for_stderr("refused a token");
    assert!(told.contains("request_id"), "not in the request's span: {told}");
    serve.signal(Signal::TERM);
    let ended = serve.wait().expect_code(0);

    let sent = collector.sent();
    let mut names = BTreeMap::<String, u32>::new();
    for span in spans(&sent) {
        assert_eq!(span.events, 0, "lines of the log were sent: {span:?}");
        *names.entry(span.name).or_default() += 1;
    }
    assert_eq!(names["request"], 3, "{names:?}");
    assert!(!holds(&sent, b"refused a token"), "a line of the log was sent");
    assert_eq!((names["batch"], names["sign"], names["store"]), (1, 1, 1), "{names:?}");
    let private = URL_SAFE_NO_PAD.decode(PRIVATE).unwrap();
    let as_hex: String = private.iter().map(|byte| format!("{byte:02x}")).collect();
    let kek = std::fs::read_to_string(site.path("kek")).unwrap();
    let kek = kek.split_whitespace().flat_map(|word| word.split(':')).find(|word| word.len() > 40);
    let secrets =
        [PRIVATE.as_bytes(), &private, as_hex.as_bytes(), token.as_bytes(), wrong.as_bytes()];
    for secret in secrets.into_iter().chain([kek.unwrap().as_bytes(), b"canary-of-a-payload"]) {
        assert!(!holds(&sent, secret), "sent {}", String::from_utf8_lossy(secret));
        assert!(!holds(ended.stderr.as_bytes(), secret), "logged a secret: {ended}");
    }
}

fn a_collector_that_is_not_there_or_says_nothing_changes_no_run(site: Site) {
    let site = site.with(3, 500);
    let begin = Instant::now();
    let undisturbed = site.run(&["run"]).expect_code(0);
    let usual = begin.elapsed();
    assert!(!undisturbed.stderr.contains("spans"), "{undisturbed}");
    // One that takes connections and never answers, a port on which nobody listens, one that refuses,
    // and one that names another, to which nothing may go.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    // The near end of a connection: while that lasts, nobody else gets the port to listen on.
    let held = TcpStream::connect(silent.local_addr().unwrap()).unwrap();
    let closed = held.local_addr().unwrap();
    let refuses = Collector::start("400 Bad Request");
    let other = Collector::start("200 OK");
    let redirects = Collector::start(&format!("307 Elsewhere\r\nlocation: {}", other.endpoint));
    let bad = [
        (format!("http://{}/", silent.local_addr().unwrap()), "timeout"),
        (format!("http://user:hunter2@{closed}/v1/traces"), "Connection refused"),
        (refuses.endpoint.clone(), "400"),
        (redirects.endpoint.clone(), "307"),
    ];
    let mut signed = 500;
    for (endpoint, reason) in bad {
        site.seed(500);
        let mut run = site.command(&["run"]);
        run.env(ENDPOINT, &endpoint);
        let begin = Instant::now();
        let ended = site.run_command(run).expect_code(0).expect_stdout("signed 500 records");
        let longer = begin.elapsed().saturating_sub(usual);
        assert!(longer < Duration::from_secs(10), "{longer:?} longer by {endpoint}");
        let told: Vec<_> = ended.stderr.lines().filter(|line| line.contains("spans")).collect();
        assert_eq!(told.len(), 2, "{ended}");
        assert!(told[0].contains("could not send spans"), "{ended}");
        assert!(told[0].contains(reason), "{reason}: {ended}");
        assert!(told[1].contains("have not reached the collector"), "{ended}");
        assert!(!ended.stderr.contains("hunter2"), "a password is in the log: {ended}");
        signed += 500;
        assert_eq!(site.signatures(), signed);
    }
    assert!(redirects.requests() > 0);
    assert_eq!(other.requests(), 0, "followed a collector elsewhere");
}

#[test]
fn an_endpoint_that_is_no_url_is_the_users_mistake() {
    let site = Site::sqlite().set(ENDPOINT, "http://[::1/v1/traces");
    let ended = site.run(&["status"]).expect_code(2);
    ended.expect_stderr("telemetry.otlp_endpoint: no URL such as http://localhost:4318/v1/traces");
}

#[test]
fn a_password_in_the_endpoint_is_sent_and_never_shown() {
    let collector = Collector::start("200 OK");
    let with_password = collector.endpoint.replace("http://", "http://user:hunter2@");
    let site = Site::sqlite().with(1, 10).set(ENDPOINT, &with_password);

    let hidden = collector.endpoint.replace("http://", "http://user:***@");
    let line = format!("otlp_endpoint = \"{hidden}\"  # environment variable {ENDPOINT}");
    let shown = site.run(&["config"]).expect_code(0).expect_stdout(&line);
    let ran = site.set("CHANCERY_LOG__LEVEL", "trace").run(&["run"]).expect_code(0);
    for ended in [&shown, &ran] {
        assert!(!format!("{ended}").contains("hunter2"), "{ended}");
    }
    // The collector tells names apart by no case.
    let authorization = "authorization: basic dxnlcjpodw50zxiy\r\n";
    let heads = collector.heads.lock().unwrap();
    assert!(!heads.is_empty(), "nothing was sent");
    assert!(heads.iter().all(|head| head.contains(authorization)), "{heads:?}");

    for bad in ["http://user:hunt@er2@host/", "https://user:hunter2@host/"] {
        let ended = Site::sqlite().set(ENDPOINT, bad).run(&["run"]).expect_code(2);
        let ended = ended.expect_stderr("telemetry.otlp_endpoint: no URL such as");
        assert!(!format!("{ended}").contains("er2"), "{ended}");
    }
}

/// A collector that gives every request the same answer.
struct Collector {
    endpoint: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    /// In small letters.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// With that status line, and perhaps headers.
    fn start(status: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (bodies, heads) = (Arc::default(), Arc::default());
        let to = (Arc::clone(&bodies), Arc::clone(&heads));
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let ((bodies, heads), answer) = (to.clone(), answer.clone());
                std::thread::spawn(move || take(connection.unwrap(), &bodies, &heads, &answer));
            }
        });
        Collector { endpoint, bodies, heads }
    }

    fn requests(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    /// Everything that it got, as one message: protobuf messages that follow each other are merged.
    fn sent(&self) -> Vec<u8> {
        let bodies = self.bodies.lock().unwrap();
        assert!(!bodies.is_empty(), "nothing was sent");
        bodies.concat()
    }
}

/// Takes one request after the other from a connection.
fn take(
    connection: TcpStream,
    bodies: &Mutex<Vec<Vec<u8>>>,
    heads: &Mutex<Vec<String>>,
    answer: &str,
) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("post "), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        heads.lock().unwrap().push(head);
        bodies.lock().unwrap().push(body);
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
    }
}

#[derive(Debug, Default)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    events: usize,
}

/// The spans of an ExportTraceServiceRequest (opentelemetry-proto, trace/v1/trace.proto).
fn spans(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in of_field(request, 1) {
        for scope_spans in of_field(resource_spans, 2) {
            for span in of_field(scope_spans, 2) {
                let one = |field| of_field(span, field).pop().unwrap_or_default().to_vec();
                let name = String::from_utf8(one(5)).unwrap();
                let events = of_field(span, 11).len();
                spans.push(Span { trace: one(1), id: one(2), parent: one(4), name, events });
            }
        }
    }
    spans
}

/// The values with lengths of a field of a protobuf message.
fn of_field(mut message: &[u8], wanted: u64) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = message.split_at(length);
        message = rest;
        if tag >> 3 == wanted && tag & 7 == 2 {
            found.push(value);
        }
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().unwrap();
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint without an end");
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn post(address: &str, token: &str, path: &str, body: &str) {
    let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
    let answer = ask(address, &format!("POST {path}"), &headers, body);
    assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
}

/// Asks over a connection of its own; `headers` are whole lines.
fn ask(address: &str, what: &str, headers: &str, body: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    let request = format!(
        "{what} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}
