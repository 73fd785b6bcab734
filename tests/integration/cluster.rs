//! Several nodes on one PostgreSQL: they join, are listed, die and leave, and the others go on.

use std::time::Duration;

use serde_json::Value;

use crate::support::judge::judge;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

/// A cluster that signs a stream of records, with short leases.
struct Cluster {
    site: Site,
    nodes: Vec<Running>,
}

impl Cluster {
    fn start(site: Site, names: &[&str]) -> Cluster {
        let site = site
            .set("CHANCERY_LEASE__DURATION_S", "2")
            .set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000")
            .set("CHANCERY_HTTP__BIND", "127.0.0.1:0")
            .with(12, 0);
        let mut cluster = Cluster { site, nodes: Vec::new() };
        for name in names {
            cluster.join(name);
        }
        cluster
    }

    fn join(&mut self, name: &str) {
        self.join_with(name, "");
    }

    fn join_with(&mut self, name: &str, failpoints: &str) {
        let mut command = self.site.command(&["serve", "--batch-size", "10"]);
        command.env("CHANCERY_NODE__NAME", name).env("CHANCERY_FAILPOINTS", failpoints);
        self.nodes.push(self.site.start_command(command));
    }

    fn status(&self) -> Value {
        let ended = self.site.run(&["status", "--json"]).expect_code(0);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// Waits until the node of that name is in that state and alive, or not.
    fn wait_for_state(&self, name: &str, state: &str, alive: bool) {
        wait_until(&format!("{name} is {state}, alive: {alive}"), || {
            let status = self.status();
            let node = find(&status, name);
            node.is_some_and(|node| node["state"] == state && node["alive"] == alive)
        });
    }

    /// Waits until `status` says so: under load a node may seem silent for a moment.
    fn wait_for_words(&self, words: &str) {
        wait_until(&format!("status says {words:?}"), || {
            self.site.run(&["status"]).expect_code(0).stdout.contains(words)
        });
    }

    /// Inserts so many records and waits until they are all signed.
    fn sign(&self, records: u32) {
        self.site.seed(records);
        let unsigned = "SELECT count(*) AS value FROM records
                        WHERE id NOT IN (SELECT record_id FROM signatures)";
        wait_until("all is signed", || self.site.database.number(unsigned) == 0);
    }
}

fn find<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name)
}

#[test]
fn nodes_join_and_leave_and_status_lists_them() {
    let mut cluster = Cluster::start(Site::postgres(), &["anvil", "bellows"]);
    cluster.wait_for_state("anvil", "running", true);
    cluster.wait_for_state("bellows", "running", true);
    cluster.sign(200);
    cluster.join("crucible");
    cluster.wait_for_state("crucible", "running", true);
    let status = cluster.status();
    let node = find(&status, "crucible").unwrap();
    assert_eq!(node["process_id"], cluster.nodes[2].id());
    assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(node["lease_s"], 2.0);
    assert_eq!(node["trouble"], Value::Null);
    assert!(node["silent_s"].as_f64().is_some_and(|silent_s| silent_s >= 0.0), "{node}");
    cluster.wait_for_words("node crucible, running, with 0 batches in hand");

    let left = cluster.nodes.remove(0);
    left.signal(Signal::TERM);
    left.wait().expect_code(0);
    cluster.wait_for_state("anvil", "stopped", false);
    let killed = cluster.nodes.remove(0);
    killed.signal(Signal::KILL);
    killed.wait();
    cluster.wait_for_state("bellows", "running", false);
    cluster.sign(200);
    cluster.wait_for_words("2 nodes of the last seven days gone, with nothing in hand");
    judge(&cluster.site, 400);
}

#[test]
fn a_node_without_a_name_is_called_by_its_host_and_process() {
    let mut cluster = Cluster::start(Site::postgres(), &[]);
    let command = cluster.site.command(&["serve"]);
    cluster.nodes.push(cluster.site.start_command(command));
    wait_until("the node is listed", || {
        let status = cluster.status();
        let names = status["nodes"].as_array().unwrap().iter().map(|node| &node["name"]);
        let process = format!("-{}", cluster.nodes[0].id());
        names.into_iter().any(|name| name.as_str().unwrap().ends_with(&process))
    });
}

#[test]
fn when_one_of_three_is_killed_the_others_go_on_and_sign_what_it_had_in_hand() {
    let mut cluster = Cluster::start(Site::postgres(), &["anvil", "bellows"]);
    // It dies with whatever its second group of batches is, computed and not stored.
    cluster.join_with("crucible", "writer.storing=kill@2");
    let crucible = "node LIKE 'crucible-%'";
    let count = |condition: &str| {
        let query = format!("SELECT count(*) AS value FROM key_uses WHERE {condition}");
        cluster.site.database.number(&query)
    };
    let mut records = 0;
    wait_until("the third node dies", || {
        cluster.site.seed(100);
        records += 100;
        !cluster.nodes[2].is_alive()
    });
    let orphaned = count(&format!("{crucible} AND coalesce(outcome, '') <> 'stored'"));
    assert!(orphaned > 0, "it died with nothing in hand");

    // Until its lease ends, the others sign what arrives.
    let others = "outcome = 'stored' AND NOT node LIKE 'crucible-%'";
    let before = count(others);
    cluster.site.seed(100);
    records += 100;
    wait_until("the others sign on", || count(others) > before);
    wait_until("all is signed", || cluster.site.signatures() == records);
    for node in &cluster.nodes[..2] {
        assert!(node.is_alive(), "{}", node.stderr());
    }
    let reclaimed = count(&format!("{crucible} AND outcome = 'reclaimed'"));
    assert_eq!(reclaimed, orphaned);
    judge(&cluster.site, records);

    let late_ms = cluster.site.database.number(
        "SELECT (extract(epoch FROM max(s.ended_at - r.expires_at)) * 1000)::BIGINT AS value
         FROM key_uses r JOIN key_uses s USING (ring_id, batch_id)
         WHERE r.outcome = 'reclaimed' AND s.outcome = 'stored'",
    );
    println!("what the dead node had in hand was signed {late_ms} ms after its lease");
    // Far more than the two seconds that are promised: a busy machine is no broken promise.
    assert!(late_ms < Duration::from_secs(10).as_millis() as i64);
}

#[test]
fn a_transaction_elsewhere_that_keeps_records_from_being_signed_is_named() {
    let server = testkit::Postgres::start().unwrap();
    let elsewhere = Site::on_server(&server);
    let cluster = Cluster::start(Site::on_server(&server), &["anvil"]);
    cluster.sign(10);
    let mut holder = elsewhere.database.connect_postgres();
    diesel::connection::SimpleConnection::batch_execute(
        &mut holder,
        "SET application_name = 'year-end'; BEGIN; SELECT pg_current_xact_id()",
    )
    .unwrap();
    cluster.site.seed(10);
    let told = cluster.nodes[0].wait_for_stderr("keeps records that were inserted since it began");
    let database = format!("in database {}", elsewhere.database.name());
    assert!(told.contains("\"year-end\"") && told.contains(&database), "{told}");
    wait_until("the node's trouble is listed", || {
        let status = cluster.status();
        let trouble = &find(&status, "anvil").unwrap()["trouble"];
        trouble.as_str().is_some_and(|trouble| trouble.contains("\"year-end\""))
    });
    let status = cluster.status();
    assert_eq!(status["blockers"][0]["application"], "year-end");
    assert_eq!(status["blockers"][0]["kind"], "writer");
    assert_eq!(cluster.site.signatures(), 10);
    drop(holder);
    wait_until("all is signed", || cluster.site.signatures() == 20);
    wait_until("the trouble is over", || {
        find(&cluster.status(), "anvil").unwrap()["trouble"] == Value::Null
    });
    judge(&cluster.site, 20);
}
