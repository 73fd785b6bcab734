//! Canaries: what must stay inside is searched for in everything that comes out.

use reqwest::Method;
use serde_json::json;

use super::{Answer, Served, create_token};
use crate::support::{Site, wait_until};

on_both_databases! {
    no_secret_is_in_any_answer_log_metric_or_page,
}

fn no_secret_is_in_any_answer_log_metric_or_page(site: Site) {
    let site = site.set("CHANCERY_LOG__LEVEL", "trace").with(1, 0);
    let served = Served::start(site);
    let d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    // RFC 8410, section 10.3.
    let body = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    let reader = create_token(&served.site, &["reader"], &[]);
    let kek = std::fs::read_to_string(served.site.path("kek")).unwrap();
    let kek = kek.trim().rsplit(':').next().unwrap().to_owned();
    let secrets = [d, body, &served.token, &reader, &kek];

    let mut said: Vec<String> = Vec::new();
    let mut note = |answer: &Answer| said.push(format!("{answer:?}"));
    let jwk = |crv: &str| json!({"jwk": {"kty": "OKP", "crv": crv, "d": d, "x": x}});
    note(&served.post("/v1/keys/import", &jwk("Ed25519")));
    note(&served.post("/v1/keys/import", &jwk("Ed25519")));
    note(&served.post("/v1/keys/import", &jwk("Ed448")));
    note(&served.post("/v1/keys/import", &json!({"pem": pem})));
    note(&served.post("/v1/keys/import", &json!({"pem": pem, "odd": d})));
    note(&served.post("/v1/keys/import", &json!({"jwk": d})));
    note(&served.post("/v1/keys/import", &json!(d)));
    note(&served.post("/v1/keys/import", &json!({"pem": pem.replace("PRIVATE", "PUBLIC")})));
    let broken = served.ask(Method::POST, "/v1/keys/import").body(format!("{{\"pem\": \"{d}"));
    note(&served.send(broken.header("Content-Type", "application/json")));
    for path in [
        "/v1/keys",
        "/v1/status",
        "/v1/nodes",
        "/v1/admin-log",
        "/v1/batches",
        "/metrics",
        "/",
        "/login",
        "/openapi.json",
        "/.well-known/jwks.json",
        "/ready",
        "/v1/nothing",
    ] {
        note(&served.get(path));
    }
    let login = served.ask(Method::POST, "/login").header("Origin", served.url(""));
    let form = login.header("Content-Type", "application/x-www-form-urlencoded");
    let wrong = form.body(format!("token={reader}x")).send().unwrap();
    said.push(format!("{:?}{}", wrong.headers().clone(), wrong.text().unwrap()));
    let id = served.post("/v1/records", &json!({"payload": "a"})).expect(201)["id"].clone();
    served.get(&format!("/v1/records/{id}/signature?wait=60")).expect(200);
    wait_until("the log has the requests", || served.serve.stderr().contains("/v1/keys/import"));
    said.push(served.serve.stderr());
    said.push(served.site.run(&["token", "list"]).stdout);
    said.push(served.site.run(&["keys", "list"]).stdout);
    said.push(served.site.run(&["config"]).stdout);

    assert!(said.len() > 20);
    for text in &said {
        for secret in secrets {
            // Its middle: an end may be cut off.
            let middle = &secret[8..secret.len() - 8];
            assert!(!text.contains(middle), "a secret is in {}", &text[..text.len().min(3000)]);
        }
        for inside in ["SELECT ", "INSERT INTO", "src/http"] {
            let is_log = text.len() > 20_000;
            assert!(is_log || !text.contains(inside), "{inside} is in {text}");
        }
    }
    served.stop();
}
