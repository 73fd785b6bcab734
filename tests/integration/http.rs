//! What can be seen over HTTP without a token, asked of the built program.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::database::unhex;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

on_both_databases! {
    public_keys_are_shown_while_they_are_active_or_retired_and_not_sent_twice,
    ready_says_which_part_is_not,
    errors_are_problems_with_a_request_id_and_tell_nothing_of_the_inside,
}

fn public_keys_are_shown_while_they_are_active_or_retired_and_not_sent_twice(site: Site) {
    let (site, serve, address) = serving(site);
    let first = get(&address, "/.well-known/jwks.json", "");
    assert_eq!(first.status, 200);
    assert_eq!(first.header("content-type"), Some("application/jwk-set+json"));
    assert_eq!(first.header("cache-control"), Some("public, max-age=60"));
    let tag = first.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.len() > 40, "{tag}");
    assert_eq!(kids(&first), kids_in(&site, "'active'"));
    assert_eq!(kids(&first).len(), 4);

    for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let again = get(&address, "/.well-known/jwks.json", &format!("If-None-Match: {known}\r\n"));
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{known}");
        assert_eq!(again.header("etag"), Some(tag.as_str()));
    }
    let other = get(&address, "/.well-known/jwks.json", "If-None-Match: \"other\"\r\n");
    assert_eq!(other.status, 200);

    site.database.execute(
        "UPDATE keys SET status = 'disabled' WHERE id = 1;
         UPDATE keys SET status = 'retired' WHERE id = 2",
    );
    let mut last = String::new();
    wait_until("the disabled key is not shown any more", || {
        let now = get(&address, "/.well-known/jwks.json", &format!("If-None-Match: {tag}\r\n"));
        let changed = now.status == 200;
        if changed {
            last = now.header("etag").unwrap().to_owned();
            assert_eq!(kids(&now), kids_in(&site, "'active', 'retired'"));
            assert_eq!(kids(&now).len(), 3);
        }
        changed
    });
    assert_ne!(last, tag);
    stop(serve);
}

fn ready_says_which_part_is_not(site: Site) {
    let (site, serve, address) = serving(site);
    let as_json = "Accept: text/plain;q=0.5, application/json\r\n";
    let ready = get(&address, "/ready", as_json);
    assert_eq!(ready.status, 200, "{}", ready.body);
    let body: Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(body["ready"], true);
    let parts: Vec<_> = body["parts"].as_array().unwrap().iter().map(|p| &p["part"]).collect();
    assert_eq!(parts, ["database", "migrations", "keys", "lag", "kek", "signing"]);
    assert_eq!(body["parts"][2]["detail"], "4 active");
    assert_eq!(get(&address, "/ready", "Accept: */*\r\n").body, "ready\n");

    site.database.execute("UPDATE keys SET status = 'disabled'");
    wait_until("the ring without a key is not ready", || {
        let answer = get(&address, "/ready", "");
        answer.status == 503
            && answer.body.contains("not ready: keys: the ring has no active key\n")
    });
    let body: Value = serde_json::from_str(&get(&address, "/ready", as_json).body).unwrap();
    assert_eq!(body["ready"], false);
    assert_eq!(body["parts"][0]["ready"], true);
    assert_eq!(body["parts"][2]["ready"], false);

    site.database.execute(
        "UPDATE keys SET status = 'active';
         INSERT INTO __diesel_schema_migrations (version) VALUES ('99999999')",
    );
    wait_until("a newer schema is not ready", || {
        let answer = get(&address, "/ready", "");
        answer.status == 503 && answer.body.contains("not ready: migrations: ")
    });
    assert_eq!(get(&address, "/live", "").body, "live\n");
    stop(serve);
}

fn errors_are_problems_with_a_request_id_and_tell_nothing_of_the_inside(site: Site) {
    let (site, serve, address) = serving(site);
    let missing = get(&address, "/nothing?secret=1", "X-Request-Id: from.me_1-2\r\n");
    assert_eq!(missing.header("content-type"), Some("application/problem+json"));
    assert_eq!(missing.header("x-request-id"), Some("from.me_1-2"));
    assert_eq!(
        serde_json::from_str::<Value>(&missing.body).unwrap(),
        json!({
            "type": "about:blank", "title": "Not Found", "status": 404,
            "detail": "There is nothing at this path.", "request_id": "from.me_1-2",
        })
    );
    for odd in ["a b", "a\"b", "", &"x".repeat(65)] {
        let answer = get(&address, "/live", &format!("X-Request-Id: {odd}\r\n"));
        let id = answer.header("x-request-id").unwrap();
        assert!(id.len() == 16 && id.chars().all(|c| c.is_ascii_hexdigit()), "{odd}: {id}");
    }
    let refused = ask(&address, "DELETE", "/ready", "");
    assert_eq!(refused.status, 405);
    assert_eq!(refused.header("allow"), Some("GET, HEAD"));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    let head = ask(&address, "HEAD", "/live", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    // A database that refuses: its words are for the log, under the request's id.
    site.database.execute("ALTER TABLE keys RENAME TO hidden_keys");
    let mut answer = get(&address, "/.well-known/jwks.json", "X-Request-Id: canary\r\n");
    wait_until("the keys cannot be read", || {
        answer = get(&address, "/.well-known/jwks.json", "X-Request-Id: canary\r\n");
        answer.status == 503
    });
    let unready = get(&address, "/ready", "Accept: application/json\r\n");
    let told = serve.wait_for_stderr("could not ask the database");
    assert!(told.contains("request_id") && told.contains("canary"), "{told}");
    site.database.execute("ALTER TABLE hidden_keys RENAME TO keys");

    let sealed = site
        .database
        .rows(&format!("SELECT {} AS value FROM keys", site.database.hex("sealed_private_key")));
    let kek = std::fs::read_to_string(site.path("kek")).unwrap();
    let mut secrets: Vec<String> = sealed.iter().map(|key| base64_of(&unhex(key))).collect();
    secrets.extend(sealed);
    secrets.extend(kek.split_whitespace().filter(|w| w.len() > 20).map(str::to_owned));
    assert!(secrets.len() > 8, "nothing to look for");
    let said = [&answer.body, &unready.body, &missing.body, &refused.body];
    for text in said {
        for inside in ["SELECT", "keys k", "hidden_keys", "/tmp", "sqlite", "postgres"] {
            assert!(!text.contains(inside), "{inside}: {text}");
        }
    }
    let jwks = get(&address, "/.well-known/jwks.json", "").body;
    let log = serve.stderr();
    for text in said.into_iter().chain([&jwks, &log]) {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "a secret in {text}");
        }
    }
    drop(serve);
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A service with four keys that has signed a hundred records, and its address.
fn serving(site: Site) -> (Site, Running, String) {
    let site = site.set("CHANCERY_HTTP__BIND", "127.0.0.1:0").with(4, 100);
    let serve = site.start(&["serve"]);
    let line = serve.wait_for_stderr("listening");
    let (_, address) = line.split_once("address=").unwrap_or_else(|| panic!("{line}"));
    let address = address.split_whitespace().next().unwrap().to_owned();
    wait_until("what was there is signed", || site.signatures() == 100);
    (site, serve, address)
}

fn stop(serve: Running) {
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);
}

fn kids(answer: &Answer) -> Vec<String> {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let keys = body["keys"].as_array().unwrap();
    assert!(keys.iter().all(|key| key.get("d").is_none()), "a private key: {}", answer.body);
    keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn kids_in(site: &Site, statuses: &str) -> Vec<String> {
    let query = format!("SELECT kid AS value FROM keys WHERE status IN ({statuses}) ORDER BY id");
    site.database.rows(&query)
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(n, _)| n == name);
        header.map(|(_, value)| value.as_str())
    }
}

fn get(address: &str, path: &str, headers: &str) -> Answer {
    ask(address, "GET", path, headers)
}

/// Asks over a connection of its own; `headers` are whole lines.
fn ask(address: &str, method: &str, path: &str, headers: &str) -> Answer {
    let mut connection = TcpStream::connect(address).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}
