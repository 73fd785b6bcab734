//! Two rings behind one service: each has its paths, and neither shows in the other's.

use reqwest::Method;
use serde_json::{Value, json};

use super::Served;
use crate::support::judge::judge;
use crate::support::{Site, wait_until};

on_both_databases! {
    each_ring_is_served_under_its_name_and_the_first_without_one,
    a_node_that_signs_nothing_serves_the_same_rings,
    a_drain_is_for_all_rings_of_the_node,
}

fn two_rings(site: Site) -> Site {
    let site = site
        .set("CHANCERY_SIGNING__RING", "default,invoices")
        .set("CHANCERY_SIGNING__RING_BATCH_SIZES", "invoices=7");
    site.prepare();
    site.run(&["rings", "create", "invoices"]).expect_code(0);
    for (ring, keys) in [("default", "2"), ("invoices", "3")] {
        site.run(&["keys", "generate", "--count", keys, "--ring", ring]).expect_code(0);
    }
    site
}

fn kids(served: &Served, path: &str) -> Vec<String> {
    let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
    served.all(path, 10).iter().map(kid).collect()
}

/// Adds a record and waits for its signature; its id and its key.
fn sign_one(served: &Served, base: &str, payload: &str) -> (i64, String) {
    let answer = served.post(&format!("{base}/records"), &json!({ "payload": payload }));
    let added = answer.expect(201);
    // The way to it, which is that of its ring.
    served.get(answer.header("location").unwrap()).expect(200);
    let id = added["id"].as_i64().unwrap();
    let signed = served.get(&format!("{base}/records/{id}/signature?wait=30")).expect(200);
    (id, signed["kid"].as_str().unwrap().to_owned())
}

fn each_ring_is_served_under_its_name_and_the_first_without_one(site: Site) {
    let served = Served::start(two_rings(site));
    let rings = served.get("/v1/rings").expect(200);
    let shown = rings["items"].as_array().unwrap().iter().map(|ring| {
        assert_eq!((&ring["paused"], &ring["provider"]), (&json!(false), &json!("software")));
        (ring["name"].as_str().unwrap().to_owned(), ring["batch_size"].as_u64().unwrap())
    });
    let shown: Vec<_> = shown.collect();
    assert_eq!(shown, [("default".to_owned(), 500), ("invoices".to_owned(), 7)]);

    let (of_default, of_invoices) =
        (kids(&served, "/v1/keys"), kids(&served, "/v1/rings/invoices/keys"));
    assert_eq!((of_default.len(), of_invoices.len()), (2, 3));
    assert_eq!(kids(&served, "/v1/rings/default/keys"), of_default);
    let (first, kid) = sign_one(&served, "/v1", "a");
    assert!(of_default.contains(&kid), "{kid}");
    let (second, kid) = sign_one(&served, "/v1/rings/invoices", "b");
    assert!(of_invoices.contains(&kid), "{kid}");
    wait_until("it is counted, and for its ring", || {
        let named = served.get("/v1/rings/invoices/status").expect(200);
        assert_eq!(named["ring"]["name"], "invoices");
        named["ring"]["signed_records"] == 1
    });

    // What is the other's is not there.
    served.get(&format!("/v1/records/{second}")).expect_problem(404, "");
    served.get(&format!("/v1/rings/invoices/records/{first}")).expect_problem(404, "");
    served.get(&format!("/v1/keys/{kid}")).expect_problem(404, "There is no key");
    served.get(&format!("/v1/rings/invoices/keys/{kid}")).expect(200);
    served.order(&format!("/v1/keys/{kid}/disable")).expect_problem(404, "There is no key");
    let batch = served.all("/v1/rings/invoices/batches", 10)[0]["id"].as_i64().unwrap();
    served.get(&format!("/v1/batches/{batch}")).expect_problem(404, "There is no batch");
    served.order(&format!("/v1/batches/{batch}/retry")).expect_problem(404, "There is no batch");
    served.get("/v1/rings/nobody/keys").expect_problem(404, "This node serves no ring \"nobody\"");
    served.get("/v1/rings/nobody").expect_problem(404, "no ring \"nobody\"");
    served.get("/v1/rings/invoices/nodes").expect_problem(404, "nothing at this path");
    served.send(served.ask(Method::PATCH, "/v1/rings/invoices/pause")).expect_problem(405, "");

    // A pause is for one ring, and what is not ready says which.
    let paused = served.post("/v1/rings/invoices/pause", &json!({ "scope": "all" })).expect(200);
    assert_eq!(paused["detail"], "ring invoices is paused");
    wait_until("it is not ready", || {
        let ready = served.get("/ready");
        ready.status == 503
            && ready.text == "not ready: ring invoices: signing: the ring is paused\n"
    });
    served.post("/v1/rings/invoices/records", &json!({ "payload": "waits" })).expect(201);
    sign_one(&served, "/v1/rings/default", "goes on");
    assert_eq!(served.site.signatures(), 3);
    served.post("/v1/rings/invoices/resume", &json!({ "scope": "all" })).expect(200);
    wait_until("it is signed", || served.site.signatures() == 4);

    let metrics = served.get("/metrics").text;
    for line in [
        "chancery_records_accepted_total{ring=\"default\"} 2\n",
        "chancery_records_accepted_total{ring=\"invoices\"} 2\n",
        "chancery_keys{ring=\"invoices\",status=\"active\"} 3.0\n",
        "chancery_nodes_alive 1.0\n",
        "chancery_node_state{state=\"running\"} 1.0\n",
        "chancery_sign_seconds_count{ring=\"invoices\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let described = metrics.matches("# TYPE chancery_sign_seconds ").count();
    assert_eq!(described, 1, "a metric is described once: {metrics}");
    let jwks = served.get("/.well-known/jwks.json").expect(200);
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 5);
    assert_eq!(served.all("/v1/nodes", 10).len(), 1);
    let site = served.stop();
    judge(&site, 4);
}

fn a_node_that_signs_nothing_serves_the_same_rings(site: Site) {
    let served = Served::start_with(two_rings(site), &["serve", "--no-signing", "--ring", "*"]);
    let rings = served.get("/v1/rings").expect(200);
    assert_eq!(rings["items"][1]["name"], "invoices");
    assert_eq!(rings["items"][1]["batch_size"], Value::Null);
    served.post("/v1/rings/invoices/records", &json!({ "payload": "a" })).expect(201);
    assert_eq!(kids(&served, "/v1/rings/invoices/keys").len(), 3);
    assert_eq!(served.get("/ready").text, "ready\n");
    served.stop();
}

fn a_drain_is_for_all_rings_of_the_node(site: Site) {
    let served = Served::start(two_rings(site));
    sign_one(&served, "/v1/rings/invoices", "a");
    // A paused node starts nothing of any ring.
    served.post("/v1/rings/invoices/pause", &json!({ "scope": "node" })).expect(200);
    for status in ["/v1/status", "/v1/rings/invoices/status"] {
        assert_eq!(served.get(status).expect(200)["state"], "paused", "{status}");
    }
    served.post("/v1/resume", &json!({ "scope": "node" })).expect(200);
    sign_one(&served, "/v1", "b");
    served.post("/v1/drain", &json!({ "scope": "node" })).expect(202);
    served.serve.wait().expect_code(0);
    judge(&served.site, 2);
}
