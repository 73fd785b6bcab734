//! The command line: help, usage errors, single documents on standard output, keys by their names.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;

use crate::support::Site;
use crate::support::program::Ended;

on_both_databases! {
    a_json_answer_is_one_document_and_nothing_else,
    keys_are_generated_listed_exported_disabled_and_enabled,
    status_tells_where_a_ring_stands,
}

/// Every command, with what its help must name.
const COMMANDS: [(&[&str], &[&str]); 25] = [
    (&[], &["--config", "--database-url", "--log-format", "Exit codes", "CHANCERY_SECTION__KEY"]),
    (&["demo"], &["--records", "--keys", "--batch-size", "--dir"]),
    (&["migrate"], &["--database-url"]),
    (&["status"], &["--json"]),
    (&["config"], &["--config"]),
    (&["completions"], &["bash", "zsh", "fish"]),
    (&["keys"], &["generate", "list", "enable", "disable", "export"]),
    (&["keys", "generate"], &["--count", "--if-empty"]),
    (&["keys", "list"], &["--json"]),
    (&["keys", "enable"], &["KID"]),
    (&["keys", "disable"], &["KID", "--reason"]),
    (&["keys", "export"], &["--format", "jwks", "pem", "--kid"]),
    (&["seed"], &["--records", "--payload-bytes", "--random-seed"]),
    (&["import"], &["FILE", "--format", "--id-field", "--payload-field", "lines", "jsonl", "csv"]),
    (&["run"], &["--batch-size", "--signers"]),
    (&["serve"], &["--batch-size", "--signers", "--no-signing", "/ready"]),
    (&["verify"], &["--json"]),
    (&["audit"], &["--json"]),
    (&["export"], &["--format", "jsonl", "csv", "--out"]),
    (&["kek", "generate"], &["--out", "0600"]),
    (&["rings", "create"], &["NAME", "--provider", "software", "pkcs11"]),
    (&["rings", "list"], &["--json", "--ring"]),
    (&["token", "create"], &["--name", "--role", "reader", "writer", "--expires-in"]),
    (&["token", "list"], &["--json"]),
    (&["token", "revoke"], &["ID"]),
];

#[test]
fn help_is_there_for_every_command_and_names_its_flags() {
    let site = Site::sqlite();
    for (command, names) in COMMANDS {
        for flag in ["--help", "-h"] {
            let mut help = site.run(&[command, &[flag]].concat()).expect_code(0);
            assert_eq!(help.stderr, "", "{help}");
            for name in names {
                help = help.expect_stdout(name);
            }
        }
    }
    let version = site.run(&["--version"]).expect_code(0);
    let number = env!("CARGO_PKG_VERSION");
    let said = format!("chancery {number} with failpoints, for tests only\n");
    assert_eq!(version.stdout, said, "as only a build for tests says");
}

#[test]
fn every_command_that_help_lists_is_tested_here() {
    let help = Site::sqlite().run(&["--help"]).expect_code(0).stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let listed: BTreeSet<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&name| name != "help")
        .collect();
    let tested = COMMANDS.iter().filter_map(|(command, _)| command.first().copied()).collect();
    assert_eq!(listed, tested);
}

#[test]
fn a_mistake_in_usage_exits_with_2_and_leaves_nothing_behind() {
    let site = Site::sqlite();
    for arguments in [
        [].as_slice(),
        &["sing"],
        &["run", "--batchsize", "5"],
        &["run", "5"],
        &["seed"],
        &["seed", "--records", "-1"],
        &["seed", "--records", "1", "--payload-bytes", "9..1"],
        &["keys"],
        &["keys", "generate", "--count", "0"],
        &["keys", "generate", "--count", "100001"],
        &["keys", "enable"],
        &["keys", "export", "--format", "der"],
        &["import", "--format", "lines"],
        &["import", "records.txt"],
        &["import", "records.txt", "--format", "xml"],
        &["kek", "generate"],
        &["completions", "tcl"],
        &["status", "--json=yes"],
    ] {
        let ended = site.run(arguments).expect_code(2);
        assert!(!ended.stderr.is_empty(), "{ended}");
        assert_eq!(ended.stdout, "", "{ended}");
    }
    assert_eq!(fs::read_dir(site.path(".")).unwrap().count(), 0);
}

#[test]
fn completions_are_scripts_that_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let site = Site::sqlite();
        let script = site.run(&["completions", shell]).expect_code(0).expect_stdout("batch-size");
        assert_eq!(script.stderr, "", "{script}");
        if shell == "bash" {
            let path = site.path("completions");
            fs::write(&path, &script.stdout).unwrap();
            let script = format!("{} && complete -p chancery", path.display());
            let mut bash = std::process::Command::new("bash");
            let sourced = bash.args(["--norc", "-c", &format!("source {script}")]).output();
            let sourced = sourced.unwrap();
            assert!(sourced.status.success(), "{sourced:?}");
        }
    }
}

#[test]
fn a_new_kek_is_the_owners_alone_and_never_overwrites() {
    let site = Site::sqlite();
    let generate = || site.run(&["kek", "generate", "--out", "kek"]);
    generate().expect_code(0).expect_stdout("made the key-encryption key ");
    let path = site.path("kek");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);

    let again = generate().expect_code(2);
    assert_eq!(
        again.stderr, "error: KEK file kek exists already, and is never overwritten\n",
        "{again}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    assert_eq!(fs::read_dir(site.path(".")).unwrap().count(), 1);
}

fn a_json_answer_is_one_document_and_nothing_else(site: Site) {
    let site = site.set("CHANCERY_LOG__LEVEL", "debug").with(3, 10);
    site.run(&["run"]).expect_code(0);
    for command in [
        ["status", "--json"].as_slice(),
        &["keys", "list", "--json"],
        &["keys", "export"],
        &["verify", "--json"],
        &["audit", "--json"],
    ] {
        let ended = site.run(command).expect_code(0);
        let document: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| {
            panic!("{error}: {ended}");
        });
        assert!(document.is_object() || document.is_array(), "{ended}");
    }
}

#[test]
fn the_log_goes_to_standard_error_as_one_json_object_a_line_if_so_asked() {
    let site = Site::sqlite();
    let ended = site.run(&["--log-format", "json", "seed", "--records", "1"]).expect_code(0);
    let ended = ended.expect_stderr("made the schema");
    for line in ended.stderr.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| {
            panic!("{error}: {line}");
        });
        for field in ["timestamp", "level", "message"] {
            assert!(entry[field].is_string(), "{field}: {line}");
        }
    }
    assert!(!ended.stdout.contains("timestamp"), "{ended}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let site = Site::sqlite();
    site.prepare();
    // More than a pipe holds, so that the program still writes when nobody reads.
    site.run(&["keys", "generate", "--count", "1000"]).expect_code(0);
    for arguments in [["keys", "list"].as_slice(), &["keys", "list", "--json"], &["keys", "export"]]
    {
        let mut command = site.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn no_new_key_has_a_name_that_reads_as_a_flag() {
    let site = Site::sqlite();
    site.prepare();
    site.run(&["keys", "generate", "--count", "1000"]).expect_code(0);
    // Left to chance, one in 64 begins with `-`.
    let keys = listed_keys(&site);
    assert_eq!(keys.len(), 1_000);
    assert!(keys.iter().all(|key| !kid(key).starts_with('-')));
    site.run(&["keys", "export", "--kid", "-x"])
        .expect_code(2)
        .expect_stderr("error: no key of the ring begins with \"-x\"\n");
}

/// The kids that a command printed as `keys list --json`, in the ring's order.
fn listed_keys(site: &Site) -> Vec<Value> {
    let listed = site.run(&["keys", "list", "--json"]).expect_code(0);
    serde_json::from_str(&listed.stdout).unwrap()
}

fn kid(key: &Value) -> &str {
    key["kid"].as_str().unwrap()
}

fn keys_are_generated_listed_exported_disabled_and_enabled(site: Site) {
    site.prepare();
    site.run(&["keys", "list"]).expect_code(0).expect_stdout("no keys; `chancery keys generate");
    let generate = |arguments: &[&str]| site.run(&[&["keys", "generate"], arguments].concat());
    generate(&["--count", "150"]).expect_code(0).expect_stdout("added 150 keys to ring default\n");
    generate(&["--count", "7", "--if-empty"]).expect_code(0).expect_stdout("none added\n");

    let keys = listed_keys(&site);
    assert_eq!(keys.len(), 150);
    assert!(keys.iter().all(|key| key["status"] == "active" && key["last_tick"] == 0));
    let table = site.run(&["keys", "list"]).expect_code(0);
    assert_eq!(table.stdout.lines().count(), 151, "{table}");

    let exported = site.run(&["keys", "export"]).expect_code(0);
    let jwks: Value = serde_json::from_str(&exported.stdout).unwrap();
    let exported: Vec<&Value> = jwks["keys"].as_array().unwrap().iter().collect();
    assert_eq!(exported.len(), 150);
    for (jwk, key) in exported.iter().zip(&keys) {
        assert_eq!(jwk["kid"], key["kid"]);
        assert_eq!((jwk["kty"].as_str(), jwk["crv"].as_str()), (Some("OKP"), Some("Ed25519")));
        assert!(jwk.get("d").is_none(), "a private key: {jwk}");
    }
    let pem = site.run(&["keys", "export", "--format", "pem"]).expect_code(0);
    assert_eq!(pem.stdout.matches("-----BEGIN PUBLIC KEY-----\n").count(), 150, "{pem}");
    assert!(!pem.stdout.contains("PRIVATE"), "{pem}");

    change_keys_by_name(&site, &keys);
}

fn change_keys_by_name(site: &Site, keys: &[Value]) {
    let status_of = |at: usize| listed_keys(site)[at]["status"].as_str().unwrap().to_owned();
    let first = kid(&keys[0]);
    // 150 keys and 64 letters: some of them begin alike.
    let shared = keys
        .iter()
        .map(|key| &kid(key)[..1])
        .find(|letter| keys.iter().filter(|key| kid(key).starts_with(letter)).count() > 1)
        .unwrap();
    let unique = (1..=first.len())
        .map(|length| &first[..length])
        .find(|start| keys.iter().filter(|key| kid(key).starts_with(start)).count() == 1)
        .unwrap();

    // Nothing changes if one of the names is wrong.
    for (wrong, message) in [
        ("nobody", "error: no key of the ring begins with \"nobody\"\n"),
        (shared, "give more of it\n"),
        ("", "give more of it\n"),
    ] {
        site.run(&["keys", "disable", first, wrong]).expect_code(2).expect_stderr(message);
        site.run(&["keys", "export", "--kid", wrong]).expect_code(2).expect_stderr(message);
        assert_eq!(status_of(0), "active");
    }

    let disable = ["keys", "disable", unique, kid(&keys[1]), "--reason", "leaving"];
    site.run(&disable).expect_code(0).expect_stdout(&format!("key {first} is now disabled\n"));
    site.run(&disable).expect_code(0).expect_stdout(&format!("key {first} was already disabled\n"));
    let after = listed_keys(site);
    for (at, key) in after.iter().enumerate() {
        let expected = if at < 2 { ("disabled", Some("leaving")) } else { ("active", None) };
        let found = (key["status"].as_str().unwrap(), key["status_reason"].as_str());
        assert_eq!(found, expected, "{key}");
    }
    let events = "SELECT event AS value FROM key_events WHERE event <> 'added' ORDER BY tick";
    assert_eq!(site.database.rows(events), ["disabled", "disabled"]);

    site.run(&["keys", "enable", unique]).expect_code(0).expect_stdout("is now active\n");
    assert_eq!(status_of(0), "active");
    assert_eq!(site.database.rows(events), ["disabled", "disabled", "enabled"]);

    let one = site.run(&["keys", "export", "--format", "pem", "--kid", unique]).expect_code(0);
    assert_eq!(one.stdout.matches("BEGIN PUBLIC KEY").count(), 1, "{one}");
}

fn status_tells_where_a_ring_stands(site: Site) {
    let site = site.with(4, 1_200);
    let look = || -> Value {
        let ended: Ended = site.run(&["status", "--json"]).expect_code(0);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let before = look();
    let ring = &before["rings"][0];
    assert_eq!(ring["name"], "default");
    assert_eq!(ring["tick"], 4);
    assert_eq!(ring["records"]["unsigned"], 1_200);
    assert_eq!(ring["keys"]["active"], 4);
    let server = before["server"].as_str().unwrap();
    let expected = if site.database.is_postgres() { "PostgreSQL" } else { "SQLite" };
    assert!(server.starts_with(expected), "{server}");

    let kids = listed_keys(&site);
    site.run(&["keys", "disable", kid(&kids[3])]).expect_code(0);
    site.run(&["run", "--batch-size", "100"]).expect_code(0);
    let after = look();
    let ring = &after["rings"][0];
    let records = serde_json::json!({
        "total": 1_200, "signed": 1_200, "unsigned": 0, "quarantined": 0
    });
    assert_eq!(ring["records"], records);
    let batches = serde_json::json!({ "open": 0, "retry": 0, "stored": 12, "quarantined": 0 });
    assert_eq!(ring["batches"], batches);
    // Four keys and one change, then twelve check-outs and their ends.
    assert_eq!(ring["tick"], 5 + 24);
    let keys = serde_json::json!({
        "active": 3, "in_use": 0, "disabled": 1, "retired": 0, "destroyed": 0
    });
    assert_eq!(ring["keys"], keys);
    site.run(&["status"])
        .expect_code(0)
        .expect_stdout("1,200 in all: 1,200 signed, 0 unsigned, 0 in quarantine\n")
        .expect_stdout("12 stored, 0 open, 0 to be retried, 0 in quarantine\n")
        .expect_stdout("3 active (0 in use), 1 disabled, 0 retired, 0 destroyed\n");
}
