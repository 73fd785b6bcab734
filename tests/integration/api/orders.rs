//! Pause, resume and drain, of one node and of all.

use serde_json::json;

use super::{Served, address_of};
use crate::support::judge::judge;
use crate::support::{Site, wait_until};

on_both_databases! {
    a_node_pauses_goes_on_and_drains,
    a_ring_that_is_paused_checks_nothing_out_until_it_is_resumed,
}

fn a_node_pauses_goes_on_and_drains(site: Site) {
    let served = Served::start(site.with(2, 0));
    served.post("/v1/pause", &json!({"scope": "node"})).expect(200);
    let id = served.post("/v1/records", &json!({"payload": "a"})).expect(201)["id"].clone();
    let path = format!("/v1/records/{id}/signature");
    assert_eq!(served.get(&format!("{path}?wait=0.3")).status, 202);
    assert_eq!(served.get("/v1/status").expect(200)["state"], "paused");
    served.post("/v1/resume", &json!({"scope": "node"})).expect(200);
    served.get(&format!("{path}?wait=60")).expect(200);
    served
        .post("/v1/pause", &json!({"scope": "everything"}))
        .expect_problem(422, "unknown variant");
    served.order("/v1/pause").expect_problem(415, "application/json");
    served.post("/v1/drain", &json!({"scope": "node"})).expect(202);
    let Served { site, serve, .. } = served;
    serve.wait().expect_code(0).expect_stderr("stopped");
    let actions = site.database.rows("SELECT action AS value FROM admin_log ORDER BY seq DESC");
    assert_eq!(actions[..3], ["node.drained", "node.resumed", "node.paused"]);
    judge(&site, 1);
}

fn a_ring_that_is_paused_checks_nothing_out_until_it_is_resumed(site: Site) {
    let served = Served::start(site.with(4, 0));
    let order = json!({"scope": "all"});
    served.post("/v1/pause", &order).expect(200);
    let again = served.post("/v1/pause", &order).expect(200);
    assert!(again["detail"].as_str().unwrap().contains("already"));
    served.site.seed(50);
    let fences = "SELECT count(*) AS value FROM key_uses";
    assert_eq!(served.get("/v1/signatures").expect(200)["items"], json!([]));
    wait_until("the node says that the ring is paused", || {
        let ready = served.ask(reqwest::Method::GET, "/ready").send().unwrap();
        ready.status() == 503 && ready.text().unwrap().contains("the ring is paused")
    });
    wait_until("the metrics say so", || {
        served.get("/metrics").text.contains("chancery_ring_paused{ring=\"default\"} 1.0\n")
    });
    assert_eq!(served.site.database.number(fences), 0);
    served.post("/v1/resume", &order).expect(200);
    wait_until("all are signed", || served.site.signatures() == 50);
    judge(&served.stop(), 50);
}

#[test]
fn all_nodes_drain_when_they_are_asked_to() {
    let site = Site::postgres().set("CHANCERY_LEASE__DURATION_S", "2").with(4, 100);
    let served = Served::start(site);
    let other = served.site.start(&["serve"]);
    address_of(&other);
    wait_until("all are signed", || served.site.signatures() == 100);
    wait_until("both are listed", || served.all("/v1/nodes", 10).len() == 2);
    let answer = served.post("/v1/drain", &json!({"scope": "all"})).expect(202);
    assert_eq!(answer["detail"], "nodes that are asked to drain: 2");
    other.wait().expect_code(0).expect_stderr("stopped");
    let Served { site, serve, .. } = served;
    serve.wait().expect_code(0).expect_stderr("stopped");
    // One that starts afterwards is not meant.
    let served = Served::start(site);
    served.site.seed(10);
    wait_until("what came later is signed", || served.site.signatures() == 110);
    judge(&served.stop(), 110);
}
