//! The life of keys by the command line: retire, destroy, all at once, and on schedule.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::judge::judge_by_the_program;
use crate::support::program::Signal;
use crate::support::{Site, wait_until};

on_both_databases! {
    keys_live_and_end_and_what_they_signed_stays_verifiable,
    the_keys_of_a_ring_change_all_at_once,
    a_key_in_use_is_destroyed_by_force_only_and_its_batch_is_signed_by_another,
    a_change_that_is_killed_is_whole_or_not_there,
    keys_retire_on_schedule_and_fresh_ones_go_on,
}

fn keys(site: &Site) -> Vec<Value> {
    let listed = site.run(&["keys", "list", "--json"]).expect_code(0);
    serde_json::from_str::<Value>(&listed.stdout).unwrap().as_array().unwrap().clone()
}

fn kids(site: &Site) -> Vec<String> {
    keys(site).iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn in_jwks(site: &Site) -> BTreeSet<String> {
    let exported = site.run(&["keys", "export"]).expect_code(0);
    let jwks: Value = serde_json::from_str(&exported.stdout).unwrap();
    let keys = jwks["keys"].as_array().unwrap();
    keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn keys_live_and_end_and_what_they_signed_stays_verifiable(site: Site) {
    let site = site.with(3, 90);
    site.run(&["run", "--batch-size", "10"]).expect_code(0);
    let kids = kids(&site);
    assert!(keys(&site).iter().all(|key| key["signatures"] == 30), "{:?}", keys(&site));
    site.run(&["keys", "retire", &kids[0], "--reason", "the end of the year"])
        .expect_code(0)
        .expect_stdout("is now retired");
    site.run(&["keys", "retire", &kids[0]]).expect_code(0).expect_stdout("was already retired");
    site.run(&["keys", "enable", &kids[0]]).expect_code(1).expect_stderr("cannot be enabled");
    site.run(&["keys", "destroy", &kids[1], &kids[0]]).expect_code(0);
    // All or none: the second of these does not exist.
    site.run(&["keys", "disable", &kids[2], "nobody"]).expect_code(2).expect_stderr("nobody");
    let statuses: Vec<String> =
        keys(&site).iter().map(|key| key["status"].as_str().unwrap().to_owned()).collect();
    assert_eq!(statuses, ["destroyed", "destroyed", "active"]);
    assert_eq!(in_jwks(&site).len(), 3, "public keys stay");
    let wiped = "SELECT count(*) AS value FROM keys WHERE sealed_private_key IS NULL
                 AND data_key_id IS NULL AND kek_id IS NULL";
    assert_eq!(site.database.number(wiped), 2);
    site.seed(10);
    site.run(&["run", "--batch-size", "10"]).expect_code(0);
    let reasons = site.database.rows(
        "SELECT event || ': ' || coalesce(reason, '') AS value FROM key_events
         WHERE key_id = 1 ORDER BY tick",
    );
    assert_eq!(reasons, ["added: ", "retired: the end of the year", "destroyed: "]);
    judge_by_the_program(&site);
}

fn the_keys_of_a_ring_change_all_at_once(site: Site) {
    let site = site.with(450, 10);
    site.run(&["keys", "disable", "--all"]).expect_code(0).expect_stdout("450 keys");
    site.run(&["run"]).expect_code(1).expect_stderr("no active key");
    let first = kids(&site).remove(0);
    site.run(&["keys", "retire", &first]).expect_code(0);
    site.run(&["keys", "enable", "--all"]).expect_code(0).expect_stdout("449 keys");
    site.run(&["keys", "enable", "--all"]).expect_code(0).expect_stdout("0 keys");
    site.run(&["keys", "destroy", "--all"]).expect_code(2).expect_stderr("--yes");
    site.run(&["keys", "destroy", "--all", "--status", "retired", "--yes"])
        .expect_code(0)
        .expect_stdout("1 key of ring");
    site.run(&["keys", "disable", "--all", &first]).expect_code(2);
    site.run(&["keys", "disable"]).expect_code(2);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 10);
    judge_by_the_program(&site);
}

fn a_key_in_use_is_destroyed_by_force_only_and_its_batch_is_signed_by_another(site: Site) {
    let site = site.set("CHANCERY_LEASE__DURATION_S", "3600").with(2, 20);
    // On SQLite a process that stands still could hold the lock on the whole file.
    let goes_on = site.database.is_postgres();
    let action = if goes_on { "stop" } else { "kill" };
    let mut node = site.command(&["run", "--batch-size", "20"]);
    node.env("CHANCERY_FAILPOINTS", format!("batch.signed={action}"));
    let node = site.start_command(node);
    wait_until("it stands or has died with a batch in hand", || {
        node.is_stopped() || !node.is_alive()
    });
    assert_eq!(site.open_uses(), 1);
    let used =
        site.database.rows("SELECT k.kid AS value FROM keys k JOIN key_uses u ON u.key_id = k.id");
    let destroy = ["keys", "destroy", &used[0]];
    site.run(&destroy).expect_code(1).expect_stderr("in use");
    let force = [destroy.as_slice(), &["--force"]].concat();
    site.run(&force).expect_code(0).expect_stdout("is now destroyed");
    if goes_on {
        node.signal(Signal::CONT);
        // It finds its store fenced, and signs the batch anew with the key that is left.
        node.wait().expect_code(0).expect_stdout("fenced");
    } else {
        site.run(&["run"]).expect_code(0);
    }
    assert_eq!(site.signatures(), 20);
    let outcomes = site.database.rows("SELECT outcome AS value FROM key_uses ORDER BY fence");
    assert_eq!(outcomes, ["reclaimed", "stored"]);
    assert_eq!(site.database.number("SELECT attempts AS value FROM batches"), 0);
    judge_by_the_program(&site);
}

fn a_change_that_is_killed_is_whole_or_not_there(site: Site) {
    let site = site.with(4, 10);
    let kids = kids(&site);
    for (arguments, failpoint, changed) in [
        (["retire", &kids[0], &kids[1]], "keys.begun=kill", false),
        (["retire", &kids[0], &kids[1]], "keys.committed=kill", true),
        (["destroy", &kids[0], &kids[1]], "keys.begun=kill", false),
        (["destroy", &kids[0], &kids[1]], "keys.committed=kill", true),
    ] {
        let count = |status: &str| {
            let query = format!("SELECT count(*) AS value FROM keys WHERE status = '{status}'");
            site.database.number(&query)
        };
        let status = if arguments[0] == "retire" { "retired" } else { "destroyed" };
        let mut command = site.command(&[["keys"].as_slice(), &arguments].concat());
        command.env("CHANCERY_FAILPOINTS", failpoint);
        let ended = site.run_command(command);
        assert_eq!(ended.signal, Some(Signal::KILL.as_raw()), "{ended}");
        assert_eq!(count(status), if changed { 2 } else { 0 }, "{failpoint}");
    }
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 10);
    judge_by_the_program(&site);
}

fn keys_retire_on_schedule_and_fresh_ones_go_on(site: Site) {
    let site = site
        .set("CHANCERY_LEASE__DURATION_S", "1")
        .set("CHANCERY_HTTP__BIND", "127.0.0.1:0")
        .set("CHANCERY_KEYS__RETIRE_AFTER_SIGNATURES", "50")
        .with(2, 100);
    let serve = site.start(&["serve", "--batch-size", "50"]);
    let count = |status: &str| {
        let query = format!("SELECT count(*) AS value FROM keys WHERE status = '{status}'");
        site.database.number(&query)
    };
    wait_until("both keys have retired", || count("retired") == 2);
    assert_eq!(count("active"), 2);
    site.seed(100);
    wait_until("their successors have signed and retired", || count("retired") == 4);
    assert_eq!((site.signatures(), count("active")), (200, 2));
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0).expect_stderr("retired keys on schedule");
    let signed =
        site.database.rows("SELECT CAST(signature_count AS TEXT) AS value FROM keys ORDER BY id");
    assert_eq!(signed, ["50", "50", "50", "50", "0", "0"]);
    judge_by_the_program(&site);
}
