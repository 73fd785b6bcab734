//! Who may ask what: every endpoint with every role, by the service's own description.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Served, create_token};
use crate::support::{Site, wait_until};

on_both_databases! {
    every_endpoint_asks_for_its_role_and_takes_no_other,
    a_token_that_is_revoked_or_has_expired_opens_nothing,
    a_cookie_opens_what_its_token_does_and_changes_nothing_for_another_site,
    every_path_names_the_methods_that_it_takes,
}

/// Each operation with the role that it needs, and a request that does no harm.
const OPERATIONS: [(&str, &str, &str); 27] = [
    ("GET", "/v1/rings", "reader"),
    ("GET", "/v1/status", "reader"),
    ("GET", "/v1/nodes", "reader"),
    ("GET", "/v1/keys", "reader"),
    ("GET", "/v1/keys/{kid}", "reader"),
    ("POST", "/v1/keys/generate", "key-admin"),
    ("POST", "/v1/keys/import", "key-admin"),
    ("POST", "/v1/keys/change", "key-admin"),
    ("POST", "/v1/keys/{kid}/{change}", "key-admin"),
    ("GET", "/v1/batches", "reader"),
    ("GET", "/v1/batches/{id}", "reader"),
    ("POST", "/v1/batches/{id}/retry", "operator"),
    ("POST", "/v1/pause", "operator"),
    ("POST", "/v1/resume", "operator"),
    ("POST", "/v1/drain", "operator"),
    ("POST", "/v1/audits", "operator"),
    ("GET", "/v1/audits/latest", "reader"),
    ("GET", "/v1/audits/{id}", "reader"),
    ("GET", "/v1/admin-log", "reader"),
    ("POST", "/v1/records", "writer"),
    ("POST", "/v1/records/bulk", "writer"),
    ("GET", "/v1/records/{id}", "reader"),
    ("GET", "/v1/records/by-external-id/{external_id}", "reader"),
    ("GET", "/v1/records/{id}/signature", "reader"),
    ("GET", "/v1/records/by-external-id/{external_id}/signature", "reader"),
    ("GET", "/v1/signatures", "reader"),
    ("POST", "/v1/verify", "reader"),
];

/// What is of the node or of the whole database. Everything else is there for each ring as well, under
/// `/v1/rings/{ring}`.
const OF_NO_RING: [&str; 7] = [
    "/v1/rings",
    "/v1/nodes",
    "/v1/drain",
    "/v1/audits",
    "/v1/audits/latest",
    "/v1/audits/{id}",
    "/v1/admin-log",
];

/// Those that the description leaves out: pages and what machines read.
const OTHERS: [(&str, &str, &str); 3] =
    [("GET", "/metrics", "reader"), ("GET", "/", "reader"), ("GET", "/rings/{ring}", "reader")];

/// All operations, those of a ring under its name included.
fn operations() -> Vec<(&'static str, String, &'static str)> {
    let mut all = Vec::new();
    for (method, path, role) in OPERATIONS {
        all.push((method, path.to_owned(), role));
        if !OF_NO_RING.contains(&path) {
            all.push((method, path.replacen("/v1", "/v1/rings/{ring}", 1), role));
        }
    }
    all
}

fn covers(role: &str, needed: &str) -> bool {
    role == needed || (needed == "reader" && ["operator", "key-admin"].contains(&role))
}

fn every_endpoint_asks_for_its_role_and_takes_no_other(site: Site) {
    let served = Served::start(site.with(2, 0));
    let description = served.get("/openapi.json").expect(200);
    let mut described = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let role = operation["security"][0]["bearer"][0].as_str().unwrap();
            described.insert((method.to_uppercase(), path.clone(), role.to_owned()));
        }
    }
    let mut operations = operations();
    let expected: BTreeSet<_> = operations
        .iter()
        .map(|(method, path, role)| ((*method).to_owned(), path.clone(), (*role).to_owned()))
        .collect();
    assert_eq!(described, expected, "the table of this test and the description differ");

    let roles = ["reader", "operator", "key-admin", "writer"];
    let tokens: Vec<String> =
        roles.iter().map(|role| create_token(&served.site, &[role], &[])).collect();
    let mut asked = 0;
    operations.extend(OTHERS.map(|(method, path, role)| (method, path.to_owned(), role)));
    for (method, path, needed) in &operations {
        let path = path
            .replace("{ring}", "default")
            .replace("{kid}", "nobody")
            .replace("{change}", "disable")
            .replace("{external_id}", "nothing")
            .replace("{id}", "999999");
        // Without a body: what is let in answers with an error of its own where it needs one.
        let request = || served.ask(method.parse::<Method>().unwrap(), &path);
        let status =
            |request: reqwest::blocking::RequestBuilder| request.send().unwrap().status().as_u16();
        if ["/", "/rings/default"].contains(&path.as_str()) {
            // A browser is shown the way in.
            let page = request().send().unwrap();
            assert!(page.url().path().ends_with("/login"), "{}", page.url());
        } else {
            assert_eq!(status(request()), 401, "{method} {path} without a token");
            // Who tries many is told to slow down.
            let found = status(request().bearer_auth("chy_nothing"));
            assert!([401, 429].contains(&found), "{method} {path}: {found}");
        }
        for (role, token) in roles.iter().zip(&tokens) {
            let found = status(request().bearer_auth(token));
            if covers(role, needed) {
                assert!(![401, 403].contains(&found), "{method} {path} as {role}: {found}");
                assert!(found < 500, "{method} {path} as {role}: {found}");
            } else {
                assert_eq!(found, 403, "{method} {path} as {role}");
            }
            asked += 1;
        }
    }
    assert_eq!(asked, (27 + 20 + 3) * 4);
    let unknown = Answer::of(served.ask(Method::GET, "/v1/nothing").send().unwrap());
    unknown.expect_problem(401, "A valid token is needed");
    assert_eq!(unknown.header("www-authenticate"), Some("Bearer realm=\"chancery\""));
    served.get("/v1/nothing").expect_problem(404, "nothing at this path");
    served.get("/v1/rings/default/nothing").expect_problem(404, "nothing at this path");
    served.get("/v1/rings/nobody/status").expect_problem(404, "no ring \"nobody\"");
    served.stop();
}

fn a_token_that_is_revoked_or_has_expired_opens_nothing(site: Site) {
    let served = Served::start(site.with(1, 0));
    let token = create_token(&served.site, &["reader"], &["--expires-in", "1"]);
    let status = || {
        let request = served.ask(Method::GET, "/v1/status").bearer_auth(&token);
        request.send().unwrap().status().as_u16()
    };
    assert_eq!(status(), 200);
    let tokens = served.site.run(&["token", "list", "--json"]).expect_code(0).stdout;
    let tokens: Value = serde_json::from_str(&tokens).unwrap();
    assert_eq!(tokens[1]["state"], "valid");
    assert_eq!(tokens[1]["roles"], json!(["reader"]));
    wait_until("its use is noted", || {
        served.site.database.number(
            "SELECT count(*) AS value FROM tokens WHERE id = 2 AND last_used_at IS NOT NULL",
        ) == 1
    });
    served.site.run(&["token", "revoke", "2"]).expect_code(0).expect_stdout("token 2 is revoked");
    wait_until("it opens nothing any more", || status() == 401);
    served.site.run(&["token", "revoke", "2"]).expect_code(0).expect_stdout("was revoked already");
    served.site.run(&["token", "revoke", "7"]).expect_code(1).expect_stderr("no token \"7\"");

    // One that expired a while ago, as the guard would let nobody write it.
    let token = create_token(&served.site, &["reader"], &["--expires-in", "1"]);
    let database = &served.site.database;
    let (off, on) = match database.is_postgres() {
        true => (
            "ALTER TABLE tokens DISABLE TRIGGER tokens_guard",
            "ALTER TABLE tokens ENABLE TRIGGER tokens_guard",
        ),
        false => ("DROP TRIGGER tokens_guard", "SELECT 1"),
    };
    database.execute(off);
    database.execute("UPDATE tokens SET expires_at = '2020-01-01T00:00:00.000Z' WHERE id = 3");
    database.execute(on);
    let request = served.ask(Method::GET, "/v1/status").bearer_auth(&token);
    assert_eq!(request.send().unwrap().status(), 401);
    served.site.run(&["token", "list"]).expect_code(0).expect_stdout("expired");
    served.stop();
}

fn a_cookie_opens_what_its_token_does_and_changes_nothing_for_another_site(site: Site) {
    let served = Served::start(site.with(1, 0));
    let here = format!("http://{}", served.address);
    let form = format!("token={}", served.token);
    let login = |origin: &str, form: String| {
        let client = reqwest::blocking::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        let request = client
            .post(served.url("/login"))
            .header("Origin", origin)
            .header("Content-Type", "application/x-www-form-urlencoded");
        request.body(form).send().unwrap()
    };
    assert_eq!(login("http://evil.example", form.clone()).status(), 403);
    assert_eq!(login(&here, "token=chy_wrong".to_owned()).status(), 401);
    let answer = login(&here, form);
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();

    let status = served.ask(Method::GET, "/v1/status").header("Cookie", &cookie);
    assert_eq!(status.send().unwrap().status(), 200);
    let pause = |origin: Option<&str>| {
        let request = served.ask(Method::POST, "/v1/pause").header("Cookie", &cookie);
        let request = request.json(&json!({"scope": "node"}));
        let request = match origin {
            Some(origin) => request.header("Origin", origin),
            None => request,
        };
        request.send().unwrap().status().as_u16()
    };
    assert_eq!(pause(None), 401);
    assert_eq!(pause(Some("http://evil.example")), 401);
    assert_eq!(pause(Some(&here)), 200);
    let page = served.ask(Method::GET, "/").header("Cookie", &cookie).send().unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(page.text().unwrap().contains("key-ring"));
    served.stop();
}

fn every_path_names_the_methods_that_it_takes(site: Site) {
    let served = Served::start(site.with(1, 0));
    for (path, allow) in [
        ("/v1/status", "GET, HEAD"),
        ("/v1/pause", "POST"),
        ("/v1/records", "POST"),
        ("/metrics", "GET, HEAD"),
        ("/login", "GET, HEAD, POST"),
        ("/live", "GET, HEAD"),
    ] {
        let answer = served.send(served.ask(Method::PATCH, path));
        answer.expect_problem(405, "does not take this method");
        assert_eq!(answer.header("allow"), Some(allow), "{path}");
    }
    served.stop();
}
