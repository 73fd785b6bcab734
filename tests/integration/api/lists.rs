//! Lists to their end, filters, and what is shown of a node.

use serde_json::{Value, json};

use super::Served;
use crate::support::{Site, wait_until};

on_both_databases! {
    lists_are_read_to_their_end_in_a_stable_order,
    status_nodes_metrics_and_health_say_the_same,
}

fn ids(items: &[Value], field: &str) -> Vec<i64> {
    items.iter().map(|item| item[field].as_i64().unwrap()).collect()
}

fn lists_are_read_to_their_end_in_a_stable_order(site: Site) {
    let site = site.set("CHANCERY_SIGNING__BATCH_SIZE", "10").with(7, 95);
    let served = Served::start(site);
    wait_until("all are signed", || served.site.signatures() == 95);
    for limit in [1, 3, 7, 1000] {
        assert_eq!(ids(&served.all("/v1/keys", limit), "id"), (1..=7).collect::<Vec<_>>());
        let batches = served.all("/v1/batches?state=stored", limit);
        assert_eq!(ids(&batches, "id"), (1..=10).collect::<Vec<_>>());
        let records: i64 = ids(&batches, "records").iter().sum();
        assert_eq!(records, 95);
        assert!(batches.iter().all(|batch| batch["kid"].is_string() && batch["node"].is_string()));
    }
    assert_eq!(served.all("/v1/batches?state=retry", 10), [] as [Value; 0]);
    let kid = served.all("/v1/keys", 10)[2]["kid"].as_str().unwrap().to_owned();
    served.order(&format!("/v1/keys/{kid}/disable")).expect(200);
    assert_eq!(ids(&served.all("/v1/keys?status=disabled", 1), "id"), [3]);
    assert_eq!(served.all("/v1/keys?status=active", 2).len(), 6);
    assert_eq!(served.get(&format!("/v1/keys/{kid}")).expect(200)["status"], "disabled");
    assert_eq!(served.get("/v1/batches/4").expect(200)["state"], "stored");
    let log = served.all("/v1/admin-log", 2);
    assert_eq!(ids(&log, "seq"), (1..=log.len() as i64).collect::<Vec<_>>());
    assert_eq!(log.last().unwrap()["action"], "key.disabled");

    for (path, status, words) in [
        ("/v1/keys?limit=1001", 422, "from 1 to 1000"),
        ("/v1/keys?after=x", 422, "no cursor"),
        ("/v1/keys?status=lost", 422, "query"),
        ("/v1/keys?page=2", 422, "unknown field"),
        ("/v1/batches?state=lost", 422, "query"),
        ("/v1/nodes?after=nobody", 422, "no cursor"),
        ("/v1/batches/99", 404, "no batch"),
        ("/v1/keys/nobody", 404, "no key"),
    ] {
        served.get(path).expect_problem(status, words);
    }
    served.stop();
}

fn status_nodes_metrics_and_health_say_the_same(site: Site) {
    let served = Served::start(site.set("CHANCERY_NODE__NAME", "signer-1").with(4, 60));
    wait_until("all are signed", || served.site.signatures() == 60);
    let mut status = Value::Null;
    wait_until("the status has it", || {
        status = served.get("/v1/status").expect(200);
        status["ring"]["signed_records"] == 60
    });
    assert_eq!((&status["node"], &status["state"]), (&json!("signer-1"), &json!("running")));
    assert_eq!(status["ring"]["pending_records"], 0);
    assert_eq!(status["ring"]["keys"]["active"], 4);
    let nodes = served.all("/v1/nodes", 1);
    assert_eq!((&nodes[0]["name"], &nodes[0]["alive"]), (&json!("signer-1"), &json!(true)));

    let page = served.get("/metrics");
    assert_eq!(page.status, 200);
    for line in [
        "chancery_records_signed_total{ring=\"default\"} 60",
        "chancery_batches_total{ring=\"default\",outcome=\"stored\"} ",
        "chancery_keys{ring=\"default\",status=\"active\"} 4.0",
        "chancery_keys_free{ring=\"default\"} 4.0",
        "chancery_database_up 1.0",
        "chancery_node_state{state=\"running\"} 1.0",
        "chancery_build_info{version=",
        "chancery_sign_seconds_count{ring=\"default\"} ",
        "chancery_store_seconds_count{ring=\"default\"} ",
        "chancery_check_out_seconds_count{ring=\"default\"} ",
        "chancery_http_requests_total{method=\"GET\",path=\"/v1/status\",status=\"200\"} ",
        "# EOF",
    ] {
        assert!(page.text.contains(line), "{line} is not in {}", page.text);
    }
    wait_until("the ages of the batches are measured", || {
        let none = "chancery_end_to_end_seconds_count{ring=\"default\"} 0\n";
        !served.get("/metrics").text.contains(none)
    });
    let ready = served.ask(reqwest::Method::GET, "/ready").send().unwrap();
    assert_eq!(ready.status(), 200);
    served.stop();
}
