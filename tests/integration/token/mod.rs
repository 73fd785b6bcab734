//! Keys on a token, through the built program and SoftHSM2.

mod module;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::api::Served;
use crate::openssl::Signed;
use crate::support::softhsm::{self, LABEL, PIN, write_pin};
use crate::support::{Site, wait_until};

on_both_databases! {
    records_are_signed_by_keys_that_a_token_made_and_keeps,
    a_token_that_goes_away_is_waited_for_and_quarantines_nothing,
    what_is_wrong_with_a_token_is_named_and_a_wrong_pin_does_not_lock_it,
    keys_of_a_token_are_made_and_destroyed_over_http_and_none_is_taken_in,
    what_is_called_destroyed_is_wiped_on_the_token_by_asking_again,
    a_node_without_the_token_destroys_none_of_its_keys,
}

fn records_are_signed_by_keys_that_a_token_made_and_keeps(site: Site) {
    let site = softhsm::with_token(site);
    let made = site.run(&["keys", "generate", "--count", "3"]).expect_code(0);
    made.expect_stdout("added 3 keys to ring hsm");
    let again = site.run(&["keys", "generate", "--count", "3", "--if-empty"]).expect_code(0);
    again.expect_stdout("none added");
    let elsewhere = "SELECT count(*) AS value FROM keys
                     WHERE sealed_private_key IS NULL AND kek_id IS NULL AND status = 'active'";
    assert_eq!(site.database.number(elsewhere), 3);

    site.seed(600);
    let run = site.run(&["run", "--batch-size", "50", "--signers", "2"]).expect_code(0);
    run.expect_stdout("signed 600 records in 12 batches with 3 keys");
    site.run(&["verify"]).expect_code(0);
    site.run(&["audit"]).expect_code(0);
    assert_eq!(site.database.number("SELECT max(attempts) AS value FROM batches"), 0);

    let key = site.path("key.pem");
    let sample = Signed::find(&site, "record_id % 100 = 0");
    assert_eq!(sample.len(), 6);
    for signed in &sample {
        let export = ["keys", "export", "--format", "pem", "--kid", &signed.kid];
        fs::write(&key, site.run(&export).expect_code(0).stdout).unwrap();
        let verifies = |payload: &[u8]| signed.openssl_verifies(&site.path("."), &key, payload);
        assert!(verifies(&signed.payload));
        assert!(!verifies(b"another"));
    }
}

fn a_token_that_goes_away_is_waited_for_and_quarantines_nothing(site: Site) {
    let records = 20_000;
    let site = softhsm::with_token(site).set("CHANCERY_LEASE__DURATION_S", "3");
    site.run(&["keys", "generate", "--count", "4"]).expect_code(0);
    site.seed(records);
    let run = site.start(&["run", "--batch-size", "100"]);
    site.wait_for_the_middle(records.into());

    let (tokens, away) = (site.path("tokens"), site.path("away"));
    fs::rename(&tokens, &away).unwrap();
    let told = run.wait_for_stderr("the ring waits for it");
    assert!(told.contains(LABEL), "{told}");
    let trouble = format!(
        "SELECT count(*) AS value FROM nodes WHERE state = 'running' AND in_flight = 0
         AND trouble LIKE '%token \"{LABEL}\" is unavailable%'"
    );
    wait_until("the node's report names the token", || site.database.number(&trouble) == 1);
    let status = site.run(&["status"]).expect_code(0);
    status.expect_stdout(LABEL);

    // While it waits it takes no ticks; three reports later it has asked the token again.
    let tick = || site.database.number("SELECT tick AS value FROM rings WHERE name = 'hsm'");
    let waiting_since = tick();
    wait_for_reports(&site, 3);
    assert_eq!(tick(), waiting_since);
    let signed = site.signatures();
    assert!(signed < records.into(), "all was signed before the token was away");

    fs::rename(&away, &tokens).unwrap();
    run.wait_for_stderr("the token signs again");
    run.wait().expect_code(0);
    assert_eq!(site.signatures(), i64::from(records));
    let counted = "SELECT max(attempts) AS value FROM batches";
    assert_eq!(site.database.number(counted), 0, "a failure of the token was held against a batch");
    site.run(&["verify"]).expect_code(0);
    site.run(&["audit"]).expect_code(0);
}

fn what_is_wrong_with_a_token_is_named_and_a_wrong_pin_does_not_lock_it(site: Site) {
    let mut site = softhsm::with_token(site);
    site.run(&["keys", "generate", "--count", "1"]).expect_code(0);
    site.seed(10);
    let refused = |site: &Site, words: &str| {
        for command in [&["run"][..], &["serve"], &["keys", "generate", "--count", "1"]] {
            let ended = site.run(command).expect_code(2).expect_stderr(words);
            assert!(!ended.stderr.contains(PIN) && !ended.stderr.contains("000000"), "{ended}");
        }
    };
    write_pin(&site, "000000");
    for _ in 0..4 {
        refused(&site, "refuses the PIN");
    }
    let pin = write_pin(&site, PIN);
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o640)).unwrap();
    refused(&site, "has mode 0640, which is looser than 0600");
    write_pin(&site, "two\nlines");
    refused(&site, "must hold the PIN alone");
    write_pin(&site, PIN);

    site = site.set("CHANCERY_PKCS11__TOKEN_LABEL", "elsewhere");
    refused(&site, &format!("no token \"elsewhere\": it has \"{LABEL}\""));
    site = site.set("CHANCERY_PKCS11__TOKEN_LABEL", LABEL);
    let right = softhsm::module().display().to_string();
    for wrong in ["/nowhere/module.so", "/etc/passwd"] {
        site = site.set("CHANCERY_PKCS11__MODULE", wrong);
        refused(&site, &format!("the PKCS#11 module {wrong} cannot be used"));
    }
    site = site.unset("CHANCERY_PKCS11__MODULE");
    refused(&site, "set pkcs11.module (CHANCERY_PKCS11__MODULE)");

    site = site.set("CHANCERY_PKCS11__MODULE", &right);
    site.run(&["run"]).expect_code(0).expect_stdout("signed 10 records");
    site.run(&["verify"]).expect_code(0);
}

fn wait_for_reports(site: &Site, reports: u32) {
    let seen = || site.database.rows("SELECT last_seen_at AS value FROM nodes");
    for _ in 0..reports {
        let before = seen();
        wait_until("the node reports again", || seen() != before);
    }
}

fn keys_of_a_token_are_made_and_destroyed_over_http_and_none_is_taken_in(site: Site) {
    let site = softhsm::with_token(site).set("CHANCERY_LEASE__DURATION_S", "3");
    let served = Served::start(site);
    let made = served.post("/v1/keys/generate", &json!({"count": 2})).expect(201);
    let kid = |n: usize| made["kids"][n].as_str().unwrap().to_owned();
    let jwk = json!({"jwk": {
        "kty": "OKP", "crv": "Ed25519", "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    }});
    served.post("/v1/keys/import", &jwk).expect_problem(409, "none is taken in");
    for payload in ["a", "b"] {
        let id =
            served.post("/v1/records", &json!({ "payload": payload })).expect(201)["id"].clone();
        served.get(&format!("/v1/records/{id}/signature?wait=60")).expect(200);
    }
    let ready = || {
        let asked = served.ask(reqwest::Method::GET, "/ready").header("accept", "application/json");
        let answer = asked.send().unwrap();
        (answer.status().as_u16(), answer.text().unwrap())
    };
    let (status, said) = ready();
    assert!(status == 200 && said.contains(LABEL), "{said}");

    let (tokens, away) = (served.site.path("tokens"), served.site.path("away"));
    fs::rename(&tokens, &away).unwrap();
    let late = served.post("/v1/records", &json!({ "payload": "c" })).expect(201)["id"].clone();
    wait_until("the service is not ready and says why", || {
        let (status, said) = ready();
        status == 503 && said.contains("does not sign")
    });
    // A checkout that was under way when the token failed comes to its end.
    wait_for_reports(&served.site, 1);
    wait_until("nothing is in hand", || served.site.open_uses() == 0);
    // Records that arrive wake nobody: a checkout in vain would cost ticks each time.
    let database = &served.site.database;
    let tick = || database.number("SELECT tick AS value FROM rings WHERE name = 'hsm'");
    let waiting_since = tick();
    for payload in ["d", "e", "f"] {
        served.post("/v1/records", &json!({ "payload": payload })).expect(201);
    }
    wait_for_reports(&served.site, 2);
    assert_eq!(tick(), waiting_since);
    let unable = served.post("/v1/keys/generate", &json!({"count": 1}));
    unable.expect_problem(409, &format!("token \"{LABEL}\" is unavailable"));
    fs::rename(&away, &tokens).unwrap();
    served.get(&format!("/v1/records/{late}/signature?wait=60")).expect(200);
    wait_until("the service is ready again", || ready().0 == 200);
    wait_until("all is signed, and no key in use", || {
        served.site.signatures() == 6 && served.site.open_uses() == 0
    });
    let destroyed = served.order(&format!("/v1/keys/{}/destroy", kid(0))).expect(200);
    assert_eq!(destroyed["status"], "destroyed");
    let site = served.stop();

    // Nothing is left of it on the token; a row that is lost leaves a key, which is told.
    let list = site.run(&["keys", "list"]).expect_code(0);
    assert!(!list.stderr.contains("no ring uses"), "{list}");
    site.database
        .execute(&format!("UPDATE keys SET status = 'destroyed' WHERE kid = '{}'", kid(1)));
    let list = site.run(&["keys", "list"]).expect_code(0).expect_stderr("no ring uses");
    assert!(list.stderr.contains(&kid(1)) && !list.stderr.contains(&kid(0)), "{list}");
}

fn what_is_called_destroyed_is_wiped_on_the_token_by_asking_again(site: Site) {
    let site = softhsm::with_token(site);
    site.run(&["keys", "generate", "--count", "3"]).expect_code(0);
    let (tokens, away) = (site.path("tokens"), site.path("away"));
    fs::rename(&tokens, &away).unwrap();
    let destroy = ["keys", "destroy", "--all", "--yes"];
    // The rows are changed, and the token cannot be asked.
    assert_ne!(site.run(&destroy).code, Some(0));
    let destroyed = "SELECT count(*) AS value FROM keys WHERE status = 'destroyed'";
    assert_eq!(site.database.number(destroyed), 3);
    fs::rename(&away, &tokens).unwrap();
    site.run(&["keys", "list"]).expect_code(0).expect_stderr("no ring uses");
    site.run(&destroy).expect_code(0);
    let list = site.run(&["keys", "list"]).expect_code(0);
    assert!(!list.stderr.contains("no ring uses"), "{list}");
}

fn a_node_without_the_token_destroys_none_of_its_keys(site: Site) {
    let site = softhsm::with_token(site);
    site.run(&["keys", "generate", "--count", "1"]).expect_code(0);
    let served = Served::start_with(site, &["serve", "--no-signing"]);
    let kid = served.get("/v1/keys").expect(200)["items"][0]["kid"].as_str().unwrap().to_owned();
    let refused = served.order(&format!("/v1/keys/{kid}/destroy"));
    refused.expect_problem(409, "which this node does not have");
    let all = json!({"change": "destroy", "all": true});
    served.post("/v1/keys/change", &all).expect_problem(409, "which this node does not have");
    assert_eq!(served.get(&format!("/v1/keys/{kid}")).expect(200)["status"], "active");
    assert_eq!(served.order(&format!("/v1/keys/{kid}/disable")).expect(200)["changed"], true);
    served.stop();
}
