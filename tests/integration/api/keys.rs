//! The life of keys over HTTP.

use std::process::Command;

use serde_json::json;

use super::Served;
use crate::support::{Site, wait_until};

on_both_databases! {
    keys_are_made_taken_in_and_changed_and_each_change_is_logged,
    many_keys_change_at_once_or_none,
    a_key_in_use_is_destroyed_by_force_only,
    a_key_that_is_none_is_refused_and_never_quoted,
    an_api_node_has_no_private_key_and_takes_records_in_all_the_same,
}

fn keys_are_made_taken_in_and_changed_and_each_change_is_logged(site: Site) {
    let served = Served::start(site.with(1, 0));
    let made = served.post("/v1/keys/generate", &json!({"count": 3})).expect(201);
    let kids: Vec<String> =
        made["kids"].as_array().unwrap().iter().map(|kid| kid.as_str().unwrap().into()).collect();
    assert_eq!(kids.len(), 3);
    let key = Command::new("openssl").args(["genpkey", "-algorithm", "ed25519"]).output().unwrap();
    let pem = String::from_utf8(key.stdout).unwrap();
    let taken = served.post("/v1/keys/import", &json!({"pem": pem})).expect(201);
    served.post("/v1/keys/import", &json!({"pem": pem})).expect_problem(409, "is there already");
    let jwk = json!({"jwk": {
        // RFC 8037, appendix A.1.
        "kty": "OKP", "crv": "Ed25519", "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    }});
    let jwk = served.post("/v1/keys/import", &jwk).expect(201);
    assert_eq!(jwk["kid"], "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    // The same key once more.
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let again = served.post("/v1/keys/import", &json!({"seed_hex": seed}));
    again.expect_problem(409, "is there already");
    let encrypted = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:correct horse"])
        .output()
        .unwrap();
    let pem = String::from_utf8(encrypted.stdout).unwrap();
    let import =
        |passphrase| served.post("/v1/keys/import", &json!({"pem": pem, "passphrase": passphrase}));
    import("wrong").expect_problem(422, "passphrase is wrong");
    import("correct horse").expect(201);

    let change = |kid: &str, change: &str| served.order(&format!("/v1/keys/{kid}/{change}"));
    let reason = json!({"reason": "the machine was lost"});
    let disabled = served.post(&format!("/v1/keys/{}/disable", kids[0]), &reason).expect(200);
    assert_eq!((&disabled["status"], &disabled["changed"]), (&json!("disabled"), &json!(true)));
    assert_eq!(change(&kids[0], "disable").expect(200)["changed"], false);
    let shown = served.get(&format!("/v1/keys/{}", kids[0])).expect(200);
    assert_eq!(shown["status_reason"], "the machine was lost");
    assert_eq!(change(&kids[0], "enable").expect(200)["status"], "active");
    assert_eq!(change(&kids[1], "retire").expect(200)["status"], "retired");
    change(&kids[1], "enable").expect_problem(409, "is retired and cannot be enabled");
    assert_eq!(change(&kids[2], "destroy").expect(200)["status"], "destroyed");
    change("nobody", "disable").expect_problem(404, "no key");
    change(&kids[0], "polish").expect_problem(404, "nothing at this path");
    let wiped = "SELECT count(*) AS value FROM keys WHERE sealed_private_key IS NULL";
    assert_eq!(served.site.database.number(wiped), 1);
    let mut jwks = String::new();
    wait_until("the public keys are as they are", || {
        let keys = served.ask(reqwest::Method::GET, "/.well-known/jwks.json").send().unwrap();
        jwks = keys.text().unwrap();
        jwks.contains(taken["kid"].as_str().unwrap()) && !jwks.contains(&kids[2])
    });
    assert!(jwks.contains(&kids[1]) && !jwks.contains("\"d\""), "{jwks}");

    // Both kinds of keys sign.
    for n in 0..8 {
        let id = served.post("/v1/records", &json!({"payload": n.to_string()})).expect(201)["id"]
            .clone();
        served.get(&format!("/v1/records/{id}/signature?wait=60")).expect(200);
    }
    let of_taken = format!("/v1/keys/{}", taken["kid"].as_str().unwrap());
    assert!(served.get(&of_taken).expect(200)["stored_batches"].as_u64().unwrap() > 0);

    let actions: Vec<String> = served
        .all("/v1/admin-log", 100)
        .iter()
        .filter(|entry| entry["actor"].as_str().unwrap().contains("(token "))
        .map(|entry| entry["action"].as_str().unwrap().to_owned())
        .collect();
    let expected = [
        "keys.added",
        "keys.added",
        "keys.added",
        "keys.added",
        "key.disabled",
        "key.enabled",
        "key.retired",
        "key.destroyed",
    ];
    assert_eq!(actions, expected);
    let site = served.stop();
    site.run(&["audit"]).expect_code(0);
    site.run(&["verify"]).expect_code(0);
}

fn many_keys_change_at_once_or_none(site: Site) {
    let served = Served::start(site.with(250, 0));
    let keys = served.all("/v1/keys", 1000);
    let kid = |n: usize| keys[n]["kid"].clone();
    let change = |body: &serde_json::Value| served.post("/v1/keys/change", body);
    let active = || served.all("/v1/keys?status=active", 1000).len();
    let two = json!({"change": "retire", "kids": [kid(0), kid(1)], "reason": "a test"});
    let changed = change(&two).expect(200);
    assert_eq!((&changed["changed"], &changed["status"]), (&json!(2), &json!("retired")));
    assert_eq!(change(&two).expect(200)["changed"], 0);
    let none = json!({"change": "enable", "kids": [kid(2), kid(0)]});
    change(&none).expect_problem(409, "is retired");
    change(&json!({"change": "disable", "kids": [kid(2), "nobody"]})).expect_problem(404, "nobody");
    assert_eq!(active(), 248);
    let all = |change: &str| json!({"change": change, "all": true});
    assert_eq!(change(&all("disable")).expect(200)["changed"], 248);
    assert_eq!(change(&all("enable")).expect(200)["changed"], 248);
    let retired = json!({"change": "destroy", "all": true, "status": "retired"});
    assert_eq!(change(&retired).expect(200)["changed"], 2);
    assert_eq!(active(), 248);
    for (body, words) in [
        (json!({"change": "polish", "all": true}), "enable, disable, retire or destroy"),
        (json!({"change": "disable"}), "Send kids"),
        (json!({"change": "disable", "all": true, "kids": [kid(2)]}), "Send kids"),
        (json!({"change": "disable", "kids": vec!["x"; 1001]}), "at most 1000"),
        (json!({"change": "disable", "kids": [kid(2)], "status": "active"}), "goes with all"),
        (json!({"change": "disable", "all": true, "force": true}), "goes with destroy"),
    ] {
        change(&body).expect_problem(422, words);
    }
    assert_eq!(active(), 248);
    let site = served.stop();
    site.run(&["audit"]).expect_code(0);
}

fn a_key_in_use_is_destroyed_by_force_only(site: Site) {
    let site = site.set("CHANCERY_LEASE__DURATION_S", "3600").with(1, 5);
    // Its lease holds for a while yet.
    let mut dead = site.command(&["run"]);
    dead.env("CHANCERY_FAILPOINTS", "batch.signed=kill");
    site.run_command(dead);
    assert_eq!(site.open_uses(), 1);
    let served = Served::start_with(site, &["serve", "--no-signing"]);
    let kid = served.get("/v1/keys").expect(200)["items"][0]["kid"].as_str().unwrap().to_owned();
    let destroy = format!("/v1/keys/{kid}/destroy");
    served.order(&destroy).expect_problem(409, "in use");
    let disable = format!("/v1/keys/{kid}/disable");
    served.post(&disable, &json!({"force": true})).expect_problem(422, "goes with destroy");
    let forced = served.post(&destroy, &json!({"force": true})).expect(200);
    assert_eq!(forced["status"], "destroyed");
    assert_eq!(served.get(&format!("/v1/keys/{kid}")).expect(200)["in_use"], false);
    assert_eq!(served.get("/v1/batches").expect(200)["items"][0]["state"], "retry");
    served.stop();
}

fn a_key_that_is_none_is_refused_and_never_quoted(site: Site) {
    let served = Served::start(site.with(1, 0));
    let jwk = |d: &str| json!({"jwk": {"kty": "OKP", "crv": "Ed25519", "d": d, "x": "AAAA"}});
    for (body, words) in [
        (json!({}), "exactly one of pem, jwk and seed_hex"),
        (json!({"seed_hex": "c2VjcmV0"}), "64 hexadecimal digits"),
        (
            json!({"pem": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"}),
            "PKCS#8",
        ),
        (jwk("c2VjcmV0"), "32 bytes"),
        (
            json!({"jwk": {"kty": "OKP", "crv": "Ed25519", "d": "", "x": "", "use": "enc"}}),
            "not for EdDSA signatures",
        ),
        (json!({"pem": "-----BEGIN x-----\n-----BEGIN x-----"}), "One key at a time"),
        (json!({"jwk": {"kty": "EC", "crv": "P-256", "d": "c2VjcmV0", "x": ""}}), "OKP"),
        (json!({"jwk": {"d": "c2VjcmV0"}}), "does not fit"),
        (json!({"jwk": "c2VjcmV0"}), "does not fit"),
    ] {
        let answer = served.post("/v1/keys/import", &body);
        answer.expect_problem(422, words);
        assert!(!answer.text.contains("c2VjcmV0"), "{}", answer.text);
    }
    for count in [0, 1_001] {
        let body = json!({"count": count});
        served.post("/v1/keys/generate", &body).expect_problem(422, "from 1 to 1000");
    }
    let long = json!({"reason": "x".repeat(1001)});
    let kid = served.get("/v1/keys").expect(200)["items"][0]["kid"].as_str().unwrap().to_owned();
    served.post(&format!("/v1/keys/{kid}/disable"), &long).expect_problem(422, "1000 characters");
    assert_eq!(served.all("/v1/keys", 10).len(), 1);
    served.stop();
}

fn an_api_node_has_no_private_key_and_takes_records_in_all_the_same(site: Site) {
    let site = site.with(2, 0);
    let kek = site.path("kek").display().to_string();
    // It would not start if it looked for one.
    let served = Served::start_with(
        site.set("CHANCERY_KEYS__KEK_FILE", "/nowhere/kek"),
        &["serve", "--no-signing"],
    );
    assert_eq!(served.get("/v1/status").expect(200)["state"], "no signing");
    served.post("/v1/keys/generate", &json!({"count": 1})).expect_problem(409, "signs nothing");
    for path in ["/v1/pause", "/v1/resume", "/v1/drain"] {
        served.post(path, &json!({"scope": "node"})).expect_problem(409, "signs nothing");
    }
    let ready = served.ask(reqwest::Method::GET, "/ready").send().unwrap();
    assert_eq!(ready.status(), 200);
    let id = served.post("/v1/records", &json!({"payload": "a"})).expect(201)["id"].clone();
    let signature = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| served.get(&format!("/v1/records/{id}/signature?wait=60")).expect(200));
        let mut run = served.site.command(&["run"]);
        run.env("CHANCERY_KEYS__KEK_FILE", &kek);
        served.site.run_command(run).expect_code(0);
        waiting.join().unwrap()
    });
    assert_eq!(signature["record_id"], id);
    let clash = served.site.run(&["serve", "--no-signing", "--signers", "2"]);
    clash.expect_code(2).expect_stderr("--signers");
    served.stop();
}
