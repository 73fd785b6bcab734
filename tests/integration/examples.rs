//! The examples of docs/API.md, run as they stand.

use std::process::Command;

use crate::support::program::Signal;
use crate::support::{Site, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

on_both_databases! {
    every_example_of_the_api_works_as_it_stands,
}

fn every_example_of_the_api_works_as_it_stands(site: Site) {
    let site = site.set("CHANCERY_HTTP__BIND", "127.0.0.1:0").with(4, 0);
    let serve = site.start(&["serve"]);
    let line = serve.wait_for_stderr("listening");
    let (_, address) = line.split_once("address=").unwrap_or_else(|| panic!("{line}"));
    let page = std::fs::read_to_string(format!("{ROOT}/docs/API.md")).unwrap();
    let examples: String = shell_blocks(&page)
        .iter()
        .map(|block| block.replace("http://127.0.0.1:8080", &format!("http://{address}")))
        .collect();
    let commands = examples.lines().filter(|line| line.starts_with("api ")).count();
    assert!(commands > 12, "{commands} commands");

    // An alias is expanded in scripts only where that is asked for.
    let program = site.path("program");
    std::fs::create_dir(&program).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chancery"), program.join("chancery")).unwrap();
    let script = format!("set -euxo pipefail\nshopt -s expand_aliases\n{examples}");
    let mut command = Command::new("bash");
    let path = std::env::var("PATH").unwrap();
    command.args(["-c", &script]).env("PATH", format!("{}:{path}", program.display()));
    for (name, value) in site.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.current_dir(site.path(".")).output().unwrap();
    let (said, log) = (lossy(&output.stdout), lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{log}");

    for expected in [
        r#""id":1,"status":"added""#,
        r#"{"line":1,"status":"unchanged","id":2}"#,
        r#"{"line":2,"status":"added","id":"#,
        r#"{"line":3,"status":"invalid""#,
        r#""record_id":1,"signature":""#,
        r#""valid":true"#,
        r#""kty":"OKP""#,
        r#"{"detail":"ring default is paused"}"#,
        "chancery_records_signed_total",
    ] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
    wait_until("all records are signed", || site.signatures() == 3);
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The blocks of shell in a page, each with its last newline.
fn shell_blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => blocks.extend(block.take()),
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, _) => {}
        }
    }
    blocks
}
