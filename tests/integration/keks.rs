//! Key-encryption keys: where they come from, and the change from one to another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::Site;
use crate::support::judge::judge_by_the_program;
use crate::support::program::{Ended, Signal};

on_both_databases! {
    keys_move_to_a_new_kek_while_a_node_signs_and_the_old_one_is_forgotten,
    a_rewrap_that_is_killed_anywhere_is_finished_by_the_next,
    keys_that_need_a_kek_that_is_not_here_are_named_and_left_alone,
    a_sealed_key_that_was_moved_does_not_open_and_signs_nothing,
    a_damaged_data_key_signs_nothing_and_disables_nothing,
    a_kek_comes_from_a_file_a_credential_a_mounted_secret_or_a_program,
    an_encrypted_kek_opens_under_its_passphrase_and_no_other,
    after_a_kek_is_lost_a_database_begins_anew_with_another,
    keys_that_were_sealed_without_a_data_key_still_sign_and_are_moved,
}

/// A new KEK in the site's folder; its path.
fn make_kek(site: &Site, name: &str) -> PathBuf {
    let path = site.path(name);
    site.run(&["kek", "generate", "--out", path.to_str().unwrap()]).expect_code(0);
    path
}

/// With these as the site's KEKs.
fn with_keks(site: Site, sources: &[String]) -> Site {
    site.unset("CHANCERY_KEYS__KEK_FILE").set("CHANCERY_KEYS__KEK_SOURCES", &sources.join(";"))
}

fn file(path: &std::path::Path) -> String {
    format!("file:{}", path.display())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap()
}

fn keys_move_to_a_new_kek_while_a_node_signs_and_the_old_one_is_forgotten(site: Site) {
    let site = site.with(250, 2_000);
    let (old, new) = (site.path("kek"), make_kek(&site, "new"));
    let site = with_keks(site, &[file(&new), file(&old)]);
    let kids = site.database.rows("SELECT kid AS value FROM keys ORDER BY id");
    site.run(&["keys", "disable", &kids[0], &kids[1], &kids[2]]).expect_code(0);

    let run = site.start(&["run", "--batch-size", "20"]);
    let rewrapped = site.run(&["keys", "rewrap", "--json"]).expect_code(0);
    let view = json(&rewrapped);
    assert_eq!(view["resealed"], 250, "{rewrapped}");
    assert_eq!(view["forgotten"].as_array().unwrap().len(), 1, "{rewrapped}");
    assert_eq!(view["left"].as_array().unwrap().len(), 0, "{rewrapped}");
    run.wait().expect_code(0);
    let again = json(&site.run(&["keys", "rewrap", "--json"]).expect_code(0));
    assert_eq!((&again["resealed"], &again["forgotten"]), (&0.into(), &Value::Array(vec![])));

    let listed = json(&site.run(&["kek", "list", "--json"]).expect_code(0));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!((&listed[0]["kek_id"], &listed[0]["keys"]), (&view["kek"], &250.into()));
    assert_eq!(listed[0]["source"], file(&new));
    let actions = site.database.rows("SELECT action AS value FROM admin_log ORDER BY seq");
    assert!(actions.ends_with(&["keys.rewrapped".to_owned(), "kek.forgotten".to_owned()]));

    // The old KEK opens nothing any more, and the new one everything.
    let site = with_keks(site, &[file(&old)]);
    let refused = site.run(&["run"]).expect_code(2);
    refused.expect_stderr("not among those that sealed this database's keys");
    let site = with_keks(site, &[file(&new)]);
    site.run(&["kek", "check"]).expect_code(0).expect_stdout("250 sealed keys open");
    site.seed(300);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 2_300);
    judge_by_the_program(&site);
}

fn a_rewrap_that_is_killed_anywhere_is_finished_by_the_next(site: Site) {
    let site = site.with(120, 0);
    let (old, new) = (site.path("kek"), make_kek(&site, "new"));
    let site = with_keks(site, &[file(&new), file(&old)]);
    let mut killed = 0;
    for failpoint in [
        "keys.begun=kill",
        "keys.committed=kill@2",
        "rewrap.begun=kill",
        "rewrap.resealed=kill@50",
        "rewrap.committed=kill",
        "rewrap.committed=kill@2",
    ] {
        let mut rewrap = site.command(&["keys", "rewrap"]);
        rewrap.env("CHANCERY_FAILPOINTS", failpoint);
        let ended = site.run_command(rewrap);
        killed += u32::from(ended.signal == Some(Signal::KILL.as_raw()));
        // Every key opens, under one KEK or the other, whatever was cut off.
        site.run(&["kek", "check"]).expect_code(0).expect_stdout("120 sealed keys open");
    }
    assert!(killed >= 4, "{killed} were killed");
    site.run(&["keys", "rewrap"]).expect_code(0);
    let site = with_keks(site, &[file(&new)]);
    site.seed(500);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 500);
    judge_by_the_program(&site);
}

fn keys_that_need_a_kek_that_is_not_here_are_named_and_left_alone(site: Site) {
    let site = site.with(2, 50);
    let (old, new, third) = (site.path("kek"), make_kek(&site, "new"), make_kek(&site, "third"));
    let site = with_keks(site, &[file(&new), file(&old)]);
    site.run(&["keys", "generate", "--count", "1"]).expect_code(0);
    let kids = site.database.rows("SELECT kid AS value FROM keys ORDER BY id");

    // Without the old one, two keys stay shut and nothing is signed.
    let site = with_keks(site, &[file(&third), file(&new)]);
    for command in [["run"].as_slice(), &["keys", "rewrap"], &["kek", "check"]] {
        let ended = site.run(command);
        assert!(matches!(ended.code, Some(1 | 2)), "{ended}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(kids[..2].iter().any(|kid| said.contains(kid)), "{ended}");
        assert!(said.contains("which this node does not have"), "{ended}");
    }
    assert_eq!(site.signatures(), 0);
    let active = "SELECT count(*) AS value FROM keys WHERE status = 'active'";
    assert_eq!(site.database.number(active), 3);
    // The one that could be opened has moved; the old KEK is still known.
    let listed = json(&site.run(&["kek", "list", "--json"]).expect_code(0));
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");

    let site = with_keks(site, &[file(&third), file(&old)]);
    site.run(&["keys", "rewrap"]).expect_code(0);
    let site = with_keks(site, &[file(&third)]);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 50);
    judge_by_the_program(&site);
}

fn a_sealed_key_that_was_moved_does_not_open_and_signs_nothing(site: Site) {
    let site = site.with(3, 50);
    let kids = site.database.rows("SELECT kid AS value FROM keys ORDER BY id");
    site.database.execute(
        "UPDATE keys SET sealed_private_key = (SELECT sealed_private_key FROM keys WHERE id = 2)
         WHERE id = 1",
    );
    let ended = site.run(&["run"]).expect_code(0);
    assert!(ended.stderr.contains(&kids[0]), "{ended}");
    assert_eq!(site.signatures(), 50);
    let of_first = "SELECT count(*) AS value FROM key_uses WHERE key_id = 1 AND outcome = 'stored'";
    assert_eq!(site.database.number(of_first), 0);
    let status = site.database.rows("SELECT status AS value FROM keys ORDER BY id");
    assert_eq!(status, ["disabled", "active", "active"]);
    judge_by_the_program(&site);
}

fn a_damaged_data_key_signs_nothing_and_disables_nothing(site: Site) {
    let site = site.with(2, 50);
    let wrapped = site
        .database
        .rows(&format!("SELECT {} AS value FROM data_keys", site.database.hex("wrapped_key")));
    site.database
        .execute("UPDATE data_keys SET wrapped_key = (SELECT public_key FROM keys LIMIT 1)");
    let ended = site.run(&["run"]).expect_code(2);
    ended.expect_stderr("the data key of ring 1").expect_stderr("no key was touched");
    assert_eq!(site.signatures(), 0);
    let active = "SELECT count(*) AS value FROM keys WHERE status = 'active'";
    assert_eq!(site.database.number(active), 2);
    let restored = site.database.blob(&wrapped[0]);
    site.database.execute(&format!("UPDATE data_keys SET wrapped_key = {restored}"));
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 50);
}

fn a_kek_comes_from_a_file_a_credential_a_mounted_secret_or_a_program(site: Site) {
    let site = site.with(2, 0);
    let kek = site.path("kek");
    // As Kubernetes mounts it: a link to a file that all may read.
    let mounted = site.path("mounted");
    fs::copy(&kek, site.path("..data")).unwrap();
    fs::set_permissions(site.path("..data"), fs::Permissions::from_mode(0o444)).unwrap();
    std::os::unix::fs::symlink(site.path("..data"), &mounted).unwrap();
    let program = format!("command:cat {}", kek.display());
    let mounted = mounted.display().to_string();
    let folder = site.path("").display().to_string();
    let mut site = site.set("MOUNTED_KEK", &mounted).set("CREDENTIALS_DIRECTORY", &folder);
    for (number, source) in
        [file(&kek), "credential:kek".into(), "env:MOUNTED_KEK".into(), program].iter().enumerate()
    {
        site = with_keks(site, std::slice::from_ref(source));
        let checked = site.run(&["kek", "check"]).expect_code(0);
        checked.expect_stdout(&format!("from {source}: seals and opens"));
        site.seed(10);
        site.run(&["run"]).expect_code(0);
        assert_eq!(site.signatures(), 10 * (number as i64 + 1));
    }
    for (source, why) in [
        (format!("file:{mounted}"), "is a symbolic link"),
        ("credential:nothing".into(), "not found"),
        ("env:NOTHING".into(), "NOTHING is not set"),
        ("command:false".into(), "it failed: exit status: 1"),
        ("command:/no/such/program".into(), "it cannot be started"),
        ("command:echo nothing".into(), "holds no KEK"),
        ("vault:kek".into(), "expected file:PATH"),
    ] {
        site = with_keks(site, &[source]);
        site.run(&["run"]).expect_code(2).expect_stderr(why);
    }
    fs::set_permissions(site.path("..data"), fs::Permissions::from_mode(0o666)).unwrap();
    site = with_keks(site, &["env:MOUNTED_KEK".to_owned()]);
    site.run(&["run"]).expect_code(2).expect_stderr("chmod go-w");
    site = site.set("CHANCERY_KEYS__KEK_FILE", &kek.display().to_string());
    site.run(&["run"]).expect_code(2).expect_stderr("are both set");
}

fn an_encrypted_kek_opens_under_its_passphrase_and_no_other(site: Site) {
    let passphrase = |name: &str, text: &str| {
        fs::write(site.path(name), text).unwrap();
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        file(&site.path(name))
    };
    let (right, wrong) = (passphrase("right", "correct horse\n"), passphrase("wrong", "x"));
    let empty = passphrase("empty", "\n");
    let kek = site.path("kek").display().to_string();
    site.run(&["migrate"]).expect_code(0);
    let generate = ["kek", "generate", "--out", &kek, "--passphrase"];
    site.run(&generate).expect_code(2).expect_stderr("keys.kek_passphrase");
    let site = site.set("CHANCERY_KEYS__KEK_PASSPHRASE", &empty);
    site.run(&generate).expect_code(2).expect_stderr("is empty");
    let site = site.set("CHANCERY_KEYS__KEK_PASSPHRASE", &right);
    site.run(&generate).expect_code(0);
    let text = fs::read_to_string(&kek).unwrap();
    assert!(text.starts_with("chancery-kek-argon2id-v1:65536,3,4:"), "{text}");
    site.run(&["keys", "generate", "--count", "2"]).expect_code(0);
    site.seed(20);
    let site = site.set("CHANCERY_KEYS__KEK_PASSPHRASE", &wrong);
    site.run(&["run"]).expect_code(2).expect_stderr("the passphrase is wrong");
    let site = site.unset("CHANCERY_KEYS__KEK_PASSPHRASE");
    site.run(&["run"]).expect_code(2).expect_stderr("is encrypted");
    assert_eq!(site.signatures(), 0);
    let site = site.set("CHANCERY_KEYS__KEK_PASSPHRASE", &right);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 20);
}

fn after_a_kek_is_lost_a_database_begins_anew_with_another(site: Site) {
    let site = site.with(3, 30);
    site.run(&["run"]).expect_code(0);
    let lost = json(&site.run(&["kek", "list", "--json"]).expect_code(0))[0]["kek_id"].clone();
    let lost = lost.as_str().unwrap().to_owned();
    fs::remove_file(site.path("kek")).unwrap();
    let new = make_kek(&site, "new");
    let site = with_keks(site, &[file(&new)]);
    let generate = ["keys", "generate", "--count", "2"];
    site.run(&generate).expect_code(2).expect_stderr(&lost);
    site.run(&["kek", "forget", &lost]).expect_code(2).expect_stderr("3 keys");
    site.run(&["kek", "forget", "nothing"]).expect_code(2).expect_stderr("knows no KEK");
    site.run(&["keys", "destroy", "--all", "--yes", "--force"]).expect_code(0);
    site.run(&["kek", "forget", &lost]).expect_code(0);
    site.run(&generate).expect_code(0);
    site.seed(10);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 40);
    judge_by_the_program(&site);
}

/// A key as version 1 of the format sealed it: a vector that another implementation made.
fn keys_that_were_sealed_without_a_data_key_still_sign_and_are_moved(site: Site) {
    let kek = site.path("kek");
    fs::write(&kek, "chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n").unwrap();
    fs::set_permissions(&kek, fs::Permissions::from_mode(0o600)).unwrap();
    site.run(&["migrate"]).expect_code(0);
    site.database.execute("UPDATE database_identity SET database_id = 'a database'");
    // Makes the KEK known, and takes the first id.
    site.run(&["keys", "generate", "--count", "1"]).expect_code(0);
    site.run(&["keys", "retire", "--all"]).expect_code(0);
    let hex = |text: &str| {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let blob = hex("AQABAgMEBQYHCAkKCwwNDg8QERITFBUWF6Afo43yFFOtLc-JT-\
                    7qp6RX3jAfHP8_efsVv4mSxJyfGj8UjcC4IqucQ9rjdBaeOA");
    let public = hex("E5j2LG0aRXxRumpLXz29L2n8qTIWIY3ImX5Ba9F9k8o");
    site.database.execute(&format!(
        "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, sealed_private_key, kek_id, status)
         VALUES (2, 1, 'E916XTjJCK82vAibEGGhB3lDV7wANvlLfxiCNTqfo_c', 'Ed25519', {}, {},
                 (SELECT kek_id FROM keks), 'active')",
        site.database.blob(&public),
        site.database.blob(&blob)
    ));
    let event = "INSERT INTO key_events (ring_id, tick, key_id, event, actor)
                 SELECT 1, tick + 1, 2, 'added', 'test' FROM rings WHERE id = 1";
    site.database.execute(event);
    site.database.execute("UPDATE rings SET tick = tick + 1 WHERE id = 1");
    site.seed(20);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 20);
    let unwrapped = "SELECT count(*) AS value FROM keys WHERE data_key_id IS NULL
                     AND sealed_private_key IS NOT NULL";
    assert_eq!(site.database.number(unwrapped), 1);
    let rewrapped = json(&site.run(&["keys", "rewrap", "--json"]).expect_code(0));
    assert_eq!(rewrapped["resealed"], 1, "the other has a data key: {rewrapped}");
    assert_eq!(site.database.number(unwrapped), 0);
    site.seed(20);
    site.run(&["run"]).expect_code(0);
    assert_eq!(site.signatures(), 40);
    judge_by_the_program(&site);
}
