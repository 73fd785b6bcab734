//! The service against its own description: schemathesis sends what fits it and what does not.

use std::path::PathBuf;
use std::process::Command;

use super::Served;
use crate::support::Site;

on_both_databases! {
    every_answer_is_as_it_is_described,
}

fn schemathesis() -> PathBuf {
    let named = std::env::var_os("CHANCERY_TEST_SCHEMATHESIS").map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from("schemathesis"));
    let found = Command::new(&path).arg("--version").output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "schemathesis is missing: scripts/test installs it into a folder of its own, and names it in \
         CHANCERY_TEST_SCHEMATHESIS; `pip install schemathesis` does as well"
    );
    path
}

fn every_answer_is_as_it_is_described(site: Site) {
    let program = schemathesis();
    let site = site.set("CHANCERY_HTTP__REQUESTS_PER_S", "0");
    let served = Served::start(site.with(3, 20));
    let output = Command::new(program)
        .current_dir(served.site.path("."))
        .args(["run", &served.url("/openapi.json"), "--no-color", "--seed", "1"])
        .args(["--header", &format!("Authorization: Bearer {}", served.token)])
        // A drain is the end of the service; lines of JSON are none of the media types it can write.
        .args(["--exclude-path", "/v1/drain", "--exclude-path", "/v1/records/bulk"])
        // The same handlers again, for a ring that a name made at random never meets.
        .args(["--exclude-path-regex", "^/v1/rings/.ring./"])
        // What a schema cannot say: exactly one of two fields, a cursor that was handed out, a key.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "20"])
        .args(["--request-timeout", "60"])
        // Each operation is asked with a token that is none, and ten a second are heard: a fast machine tried more.
        .args(["--rate-limit", "60/s"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("Tested: 25"), "{said}");
    assert!(!served.serve.stderr().contains("panicked"), "{}", served.serve.stderr());
    served.stop();
}
