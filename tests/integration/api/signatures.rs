//! Signatures: waiting for one, the feed of all, and checks.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Served;
use crate::support::{Site, wait_until};

on_both_databases! {
    who_waits_is_woken_by_the_signature_and_told_when_there_is_none,
    a_quarantined_record_is_not_waited_for_and_its_batch_can_be_sent_back,
    the_feed_has_every_signature_once_and_in_order_while_more_are_stored,
    a_check_tells_a_signature_from_what_is_none,
}

fn who_waits_is_woken_by_the_signature_and_told_when_there_is_none(site: Site) {
    let served = Served::start(site.with(2, 0));
    served.post("/v1/pause", &json!({"scope": "all"})).expect(200);
    let record = json!({"payload": "a", "external_id": "a"});
    let id = served.post("/v1/records", &record).expect(201)["id"].as_i64().unwrap();
    let path = format!("/v1/records/{id}/signature");
    let pending = served.get(&path);
    assert_eq!(pending.expect(202), json!({"record_id": id, "state": "pending"}));
    assert_eq!(pending.header("retry-after"), Some("1"));
    assert_eq!(served.get(&format!("{path}?wait=0.2")).status, 202);

    let signature = std::thread::scope(|scope| {
        let waiting: Vec<_> = [
            format!("{path}?wait=60"),
            "/v1/records/by-external-id/a/signature?wait=60".to_owned(),
        ]
        .into_iter()
        .map(|path| {
            scope.spawn({
                let served = &served;
                move || served.get(&path)
            })
        })
        .collect();
        served.post("/v1/resume", &json!({"scope": "all"})).expect(200);
        let mut found = waiting.into_iter().map(|thread| thread.join().unwrap().expect(200));
        let first = found.next().unwrap();
        assert_eq!(first, found.next().unwrap());
        first
    });
    assert_eq!(signature["record_id"], id);
    assert_eq!(served.get(&path).expect(200), signature);
    served.get(&format!("{path}?wait=61")).expect_problem(422, "from 0 to 60");
    served.get(&format!("{path}?wait=-1")).expect_problem(422, "from 0 to 60");
    served.get(&format!("{path}?wait=soon")).expect_problem(422, "query");
    served.get("/v1/records/99/signature?wait=1").expect_problem(404, "no such record");
    served.stop();
}

fn a_quarantined_record_is_not_waited_for_and_its_batch_can_be_sent_back(site: Site) {
    // A key that signs nothing: each store of its batch is refused.
    let site = site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1").with(1, 0);
    let database = &site.database;
    let (refuse, allow) = if database.is_postgres() {
        (
            "CREATE FUNCTION no() RETURNS TRIGGER LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;
             CREATE TRIGGER no BEFORE INSERT ON signatures FOR EACH ROW EXECUTE FUNCTION no()",
            "DROP TRIGGER no ON signatures",
        )
    } else {
        (
            "CREATE TRIGGER no BEFORE INSERT ON signatures
             BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: no'); END",
            "DROP TRIGGER no",
        )
    };
    database.execute(refuse);
    let served = Served::start(site);
    let id = served.post("/v1/records", &json!({"payload": "a"})).expect(201)["id"].clone();
    let path = format!("/v1/records/{id}/signature?wait=30");
    let mut answer = Value::Null;
    wait_until("it is in quarantine", || {
        answer = served.get(&format!("/v1/records/{id}")).expect(200);
        answer["state"] == "quarantined"
    });
    assert_eq!(served.get(&path).expect(202)["state"], "quarantined");
    let batches = served.get("/v1/batches?state=quarantined").expect(200);
    let batch = batches["items"][0]["id"].as_i64().unwrap();
    assert_eq!(batches["items"][0]["attempts"], 1);
    assert!(batches["items"][0]["failure"].as_str().unwrap().contains("no"));

    served.site.database.execute(allow);
    let sent_back = served.order(&format!("/v1/batches/{batch}/retry")).expect(200);
    assert_eq!(sent_back["attempts"], 0);
    assert_eq!(served.get(&path).expect(200)["record_id"], id);
    served
        .order(&format!("/v1/batches/{batch}/retry"))
        .expect_problem(409, "only a quarantined batch");
    served.order("/v1/batches/999/retry").expect_problem(404, "no batch");
    let log = served.all("/v1/admin-log", 100);
    assert_eq!(log.last().unwrap()["action"], "batch.retried");
    served.stop();
}

fn the_feed_has_every_signature_once_and_in_order_while_more_are_stored(site: Site) {
    let site = site.set("CHANCERY_SIGNING__BATCH_SIZE", "7").with(5, 100);
    let served = Served::start(site);
    let mut feed: Vec<Value> = Vec::new();
    let mut after = String::new();
    let mut added = 100;
    wait_until("the feed has everything", || {
        if added < 400 {
            served.site.seed(100);
            added += 100;
        }
        let page = served.get(&format!("/v1/signatures?limit=37{after}")).expect(200);
        feed.extend(page["items"].as_array().unwrap().iter().cloned());
        if let Some(next) = page["next"].as_str() {
            after = format!("&after={next}");
        }
        feed.len() >= 400
    });
    let rest = served.get(&format!("/v1/signatures?limit=1000{after}")).expect(200);
    assert_eq!(rest["items"], json!([]));
    let places: Vec<(i64, i64)> = feed
        .iter()
        .map(|item| (item["end_tick"].as_i64().unwrap(), item["record_id"].as_i64().unwrap()))
        .collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    let records: BTreeSet<i64> = places.iter().map(|(_, record)| *record).collect();
    assert_eq!(records.len(), 400);
    // Again, one at a time, from the middle of a batch on.
    let (tick, record) = places[200];
    let mut after = format!("{tick}.{record}");
    for expected in &feed[201..230] {
        let page = served.get(&format!("/v1/signatures?limit=1&after={after}")).expect(200);
        assert_eq!(&page["items"][0], expected);
        after = page["next"].as_str().unwrap().to_owned();
    }
    served.get("/v1/signatures?after=7").expect_problem(422, "no cursor");
    served.get("/v1/signatures?limit=0").expect_problem(422, "from 1 to 1000");
    served.stop();
}

fn a_check_tells_a_signature_from_what_is_none(site: Site) {
    let served = Served::start(site.with(1, 0));
    let id = served.post("/v1/records", &json!({"payload": "a"})).expect(201)["id"].clone();
    let path = format!("/v1/records/{id}/signature?wait=60");
    let signature = served.get(&path).expect(200);
    let by_id = served.post("/v1/verify", &json!({"record_id": id})).expect(200);
    assert_eq!((&by_id["valid"], &by_id["kid"]), (&json!(true), &signature["kid"]));
    let check = |payload: &str, signature_text: &str| {
        let kid = &signature["kid"];
        let body = json!({"kid": kid, "signature": signature_text, "payload": payload});
        served.post("/v1/verify", &body).expect(200)["valid"] == true
    };
    let good = signature["signature"].as_str().unwrap();
    assert!(check("a", good));
    assert!(!check("b", good));
    assert!(!check("a", &STANDARD.encode([0; 64])));
    assert!(!check("a", "YQ=="));
    let with_base64 = json!({"kid": signature["kid"], "signature": good, "payload_base64": "YQ=="});
    assert_eq!(served.post("/v1/verify", &with_base64).expect(200)["valid"], true);
    for (body, status, words) in [
        (json!({}), 422, "record_id alone"),
        (json!({"record_id": 1, "payload": "a"}), 422, "record_id alone"),
        (json!({"kid": "x", "signature": "!", "payload": "a"}), 422, "no base64"),
        (json!({"kid": "x", "signature": "YQ==", "payload": "a"}), 404, "no key"),
        (json!({"record_id": 99}), 404, "no such record"),
    ] {
        served.post("/v1/verify", &body).expect_problem(status, words);
    }
    served.post("/v1/pause", &json!({"scope": "all"})).expect(200);
    let id = served.post("/v1/records", &json!({"payload": "b"})).expect(201)["id"].clone();
    served.post("/v1/verify", &json!({"record_id": id})).expect_problem(409, "no signature yet");
    served.stop();
}
