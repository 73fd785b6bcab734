//! Records, one at a time.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::json;

use super::Served;
use crate::support::judge::judge;
use crate::support::{Site, wait_until};

on_both_databases! {
    a_record_is_taken_in_each_form_and_signed,
    a_record_that_cannot_be_taken_is_refused_with_what_is_wrong,
    the_same_external_id_is_never_stored_twice,
    records_of_many_clients_are_each_stored_once,
}

fn a_record_is_taken_in_each_form_and_signed(site: Site) {
    let served = Served::start(site.with(3, 0));
    let text = served.post("/v1/records", &json!({"payload": "größe", "external_id": "a"}));
    assert_eq!(text.expect(201)["status"], "added");
    let location = text.header("location").unwrap().to_owned();
    let bytes = [0, 255, 10, 13];
    let base64 = json!({"payload_base64": STANDARD.encode(bytes)});
    let base64 = served.post("/v1/records", &base64).expect(201)["id"].as_i64().unwrap();
    let raw = |media_type: &str, path: &str, body: &[u8]| {
        let request = served.ask(Method::POST, path).header("Content-Type", media_type);
        served.send(request.body(body.to_vec())).expect(201)["id"].as_i64().unwrap()
    };
    let raw_id = raw("application/octet-stream", "/v1/records?external_id=b%2Fc", &bytes);
    let plain = raw("text/plain; charset=utf-8", "/v1/records", b"text");
    let empty = raw("application/octet-stream", "/v1/records", b"");

    let shown = served.get(&location).expect(200);
    assert_eq!(shown["external_id"], "a");
    assert_eq!(shown["payload_base64"], STANDARD.encode("größe"));
    for (id, payload) in
        [(base64, bytes.as_slice()), (raw_id, &bytes), (plain, b"text"), (empty, b"")]
    {
        let shown = served.get(&format!("/v1/records/{id}")).expect(200);
        assert_eq!(shown["payload_base64"], STANDARD.encode(payload));
    }
    assert_eq!(served.get("/v1/records/by-external-id/b%2Fc").expect(200)["id"], raw_id);
    wait_until("all are signed", || served.site.signatures() == 5);
    let signed = served.get(&location).expect(200);
    assert_eq!(signed["state"], "signed");
    assert_eq!(signed["signature"]["algorithm"], "Ed25519");
    judge(&served.stop(), 5);
}

fn a_record_that_cannot_be_taken_is_refused_with_what_is_wrong(site: Site) {
    let site = site.set("CHANCERY_HTTP__MAX_BODY_BYTES", "2000").with(1, 0);
    let served = Served::start(site);
    let long = "x".repeat(1025);
    for (body, words) in [
        (json!({}), "exactly one of payload and payload_base64"),
        (json!({"payload": "a", "payload_base64": "YQ=="}), "exactly one"),
        (json!({"payload_base64": "YQ"}), "no base64"),
        (json!({"payload": 7}), "expected a string"),
        (json!({"payload": "a", "extra": 1}), "unknown field `extra`"),
        (json!({"payload": "a", "external_id": ""}), "the external id is empty"),
        (json!({"payload": "a", "external_id": "a\0"}), "NUL"),
        (json!({"payload": "a", "external_id": long}), "longer than the 1024 bytes"),
        (json!([]), "invalid"),
    ] {
        served.post("/v1/records", &body).expect_problem(422, words);
    }
    let with_body = |media_type: &str, path: &str, body: &str| {
        let request = served.ask(Method::POST, path).header("Content-Type", media_type);
        served.send(request.body(body.to_owned()))
    };
    let path = "/v1/records";
    with_body("application/json", path, "{").expect_problem(400, "not JSON");
    with_body("application/xml", path, "<a/>").expect_problem(415, "application/json, text/plain");
    with_body("text/plain", path, &"x".repeat(2001)).expect_problem(413, "2000 bytes");
    with_body("text/plain", "/v1/records?external_id=", "x").expect_problem(422, "is empty");
    with_body("text/plain", "/v1/records?id=7", "x").expect_problem(422, "unknown field");
    let twice = "/v1/records?external_id=a";
    with_body("application/json", twice, "{\"payload\":\"a\"}").expect_problem(422, "JSON body");
    served.get("/v1/records/7").expect_problem(404, "no such record");
    served.get("/v1/records/seven").expect_problem(404, "nothing at this path");
    served.get("/v1/records/by-external-id/a%00b").expect_problem(404, "no such record");
    assert_eq!(served.site.database.number("SELECT count(*) AS value FROM records"), 0);
    served.stop();
}

fn the_same_external_id_is_never_stored_twice(site: Site) {
    let served = Served::start(site.with(1, 0));
    let record = json!({"payload": "one", "external_id": "a"});
    let first = served.post("/v1/records", &record).expect(201);
    let again = served.post("/v1/records", &record).expect(200);
    assert_eq!((&again["id"], &again["status"]), (&first["id"], &json!("unchanged")));
    let other = json!({"payload": "two", "external_id": "a"});
    served.post("/v1/records", &other).expect_problem(409, "with another payload");

    // From many connections at once: one of them adds it.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask =
            || served.post("/v1/records", &json!({"payload": "x", "external_id": "b"})).status;
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 15, "{statuses:?}");
    assert_eq!(served.site.database.number("SELECT count(*) AS value FROM records"), 2);
    served.stop();
}

fn records_of_many_clients_are_each_stored_once(site: Site) {
    let served = Served::start(site.with(8, 0));
    let ids: Vec<i64> = std::thread::scope(|scope| {
        let served = &served;
        let post = |client: usize| {
            move || -> Vec<i64> {
                let payload = |n: usize| json!({"payload": format!("{client}-{n}")});
                let post = |n| served.post("/v1/records", &payload(n)).expect(201)["id"].as_i64();
                (0..50).map(|n| post(n).unwrap()).collect()
            }
        };
        let threads: Vec<_> = (0..8).map(|client| scope.spawn(post(client))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut different = ids.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 400);
    wait_until("all are signed", || served.site.signatures() == 400);
    let metrics = served.get("/metrics").text;
    let accepted = "chancery_records_accepted_total{ring=\"default\"} 400\n";
    assert!(metrics.contains(accepted), "{metrics}");
    judge(&served.stop(), 400);
}
