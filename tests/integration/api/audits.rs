//! Audits over HTTP, and the administrators' log that they check.

use serde_json::{Value, json};

use super::Served;
use crate::support::{Site, wait_until};

on_both_databases! {
    an_audit_runs_in_the_background_and_its_verdict_is_kept,
    a_log_that_was_tampered_with_is_found,
}

fn verdict(served: &Served) -> Value {
    let started = served.order("/v1/audits");
    let id = started.expect(202)["id"].clone();
    let location = started.header("location").unwrap().to_owned();
    assert_eq!(location, format!("/v1/audits/{id}"));
    let mut audit = Value::Null;
    wait_until("the audit has ended", || {
        audit = served.get(&location).expect(200);
        audit["state"] != "running"
    });
    assert_eq!(served.get("/v1/audits/latest").expect(200), audit);
    audit
}

fn an_audit_runs_in_the_background_and_its_verdict_is_kept(site: Site) {
    let served = Served::start(site.with(3, 50));
    served.get("/v1/audits/latest").expect_problem(404, "no such audit");
    wait_until("all are signed", || served.site.signatures() == 50);
    let audit = verdict(&served);
    assert_eq!((&audit["state"], &audit["clean"]), (&json!("done"), &json!(true)));
    assert_eq!(audit["report"]["rings"][0]["signatures"], 50);
    assert_eq!(audit["report"]["rules"]["admin_log"]["verdict"], "ok");
    assert!(audit["report"]["admin_log_entries"].as_u64().unwrap() >= 2);
    assert_eq!(verdict(&served)["id"], 2);
    served.get("/v1/audits/9").expect_problem(404, "no such audit");
    let log = served.all("/v1/admin-log", 100);
    assert_eq!(log.last().unwrap()["action"], "audit.run");
    served.stop();
}

fn a_log_that_was_tampered_with_is_found(site: Site) {
    let site = site.with(2, 0);
    super::create_token(&site, &["reader"], &[]);
    site.run(&["audit"]).expect_code(0).expect_stdout("administrators' log: 2 entries");
    let database = &site.database;
    for forbidden in [
        "UPDATE admin_log SET actor = 'nobody'",
        "DELETE FROM admin_log",
        "UPDATE admin_log_head SET seq = 7",
        "DELETE FROM admin_log_head",
        "DELETE FROM tokens",
        "UPDATE tokens SET roles = 'operator'",
    ] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            database.execute(forbidden);
        }));
        assert!(refused.is_err(), "{forbidden} was let through");
    }
    let without_guards = |statement: &str| {
        if database.is_postgres() {
            database.execute(&format!("SET session_replication_role = replica; {statement}"));
        } else {
            let triggers =
                database.rows("SELECT name AS value FROM sqlite_schema WHERE type = 'trigger' AND tbl_name LIKE 'admin_log%'");
            for trigger in triggers {
                database.execute(&format!("DROP TRIGGER {trigger}"));
            }
            database.execute(statement);
        }
    };
    without_guards("UPDATE admin_log SET actor = 'somebody else' WHERE seq = 1");
    let found = site.run(&["audit"]).expect_code(4);
    found.expect_stdout("entry 1 is not what its hash was made of");
    without_guards("DELETE FROM admin_log WHERE seq = 2");
    site.run(&["audit"]).expect_code(4).expect_stdout("the log's head says entry 2");
}
