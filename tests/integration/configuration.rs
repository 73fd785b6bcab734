//! The configuration as the program's user meets it: what is refused and how, what wins, what shows.

use std::fs;

use crate::support::Site;
use crate::support::program::Ended;

/// A site whose `chancery.toml`, which the program finds by itself, holds `text`.
fn with_file(text: &str) -> Site {
    let site = Site::sqlite();
    fs::write(site.path("chancery.toml"), text).unwrap();
    site
}

/// Fails unless the program said no more than that `message` and exited with code 2.
#[track_caller]
fn assert_refused(ended: Ended, message: &str) {
    let ended = ended.expect_code(2);
    assert_eq!(ended.stderr, format!("error: {message}\n"), "{ended}");
    assert_eq!(ended.stdout, "", "{ended}");
}

/// The line that `chancery config` shows for a key.
#[track_caller]
fn line_of(ended: &Ended, key: &str) -> String {
    let start = format!("{key} = ");
    let line = ended.stdout.lines().find(|line| line.starts_with(&start));
    line.unwrap_or_else(|| panic!("no line {start:?}: {ended}")).to_owned()
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line_and_with_what_would_be_right() {
    for (text, message) in [
        (
            "[signing]\nbatch_sise = 100\n",
            "chancery.toml:2:1: unknown key `batch_sise` in [signing]; did you mean \
             `signing.batch_size`?",
        ),
        ("\n[leese]\n", "chancery.toml:2:2: unknown section [leese]; did you mean [lease]?"),
        (
            "batch_size = 100\n",
            "chancery.toml:1:1: unknown section [batch_size]; did you mean `signing.batch_size`, \
             the key `batch_size` in [signing]?",
        ),
        (
            "[signing]\n\nbatch_size = 0\n",
            "chancery.toml:3:14: signing.batch_size: invalid value: integer `0`, expected a whole \
             number from 1 to 1000000",
        ),
        (
            "[signing]\nbatch_size = \"many\"\n",
            "chancery.toml:2:14: signing.batch_size: invalid type: string \"many\", expected a \
             whole number from 1 to 1000000",
        ),
        (
            "[database]\nurl = \"mysql://host/database\"\n",
            "chancery.toml:2:7: database.url: unknown scheme `mysql://`; allowed are \
             sqlite://PATH, postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE",
        ),
        (
            "[log]\nlevel = \"inof\"\n",
            "chancery.toml:2:9: log.level: invalid value: string \"inof\", expected off, error, \
             warn, info, debug or trace, or directives such as info,chancery::db=debug",
        ),
    ] {
        assert_refused(with_file(text).run(&["config"]), message);
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_at_the_place_of_the_mistake() {
    let ended = with_file("[signing]\nbatch_size == 1\n").run(&["status"]).expect_code(2);
    assert!(ended.stderr.starts_with("error: chancery.toml:2:13: "), "{ended}");
}

#[test]
fn a_file_that_is_named_must_be_there_and_readable() {
    let site = Site::sqlite();
    for named in [site.run(&["--config", "absent.toml", "config"]), {
        let mut command = site.command(&["config"]);
        command.env("CHANCERY_CONFIG", "absent.toml");
        site.run_command(command)
    }] {
        assert_refused(
            named,
            "absent.toml: no such config file; name one that exists, or name none to run on \
             defaults",
        );
    }
    fs::create_dir(site.path("folder.toml")).unwrap();
    site.run(&["--config", "folder.toml", "config"])
        .expect_code(2)
        .expect_stderr("error: folder.toml: cannot read the config file: ");
}

#[test]
fn a_mistake_in_the_environment_is_named_with_its_variable() {
    for (variable, value, message) in [
        (
            "CHANCERY_SIGNING__BATCH_SIZE",
            "1.5",
            "signing.batch_size: invalid type: floating point `1.5`, expected a whole number from \
             1 to 1000000",
        ),
        (
            "CHANCERY_LEASE__DURATION_S",
            "",
            "lease.duration_s: invalid type: string \"\", expected a whole number from 1 to 3600",
        ),
        (
            "CHANCERY_HTTP__BIND",
            "localhost",
            "http.bind: invalid value: string \"localhost\", expected an IP address with a port, \
             such as 127.0.0.1:8080 or [::1]:8080",
        ),
        (
            "CHANCERY_SIGNING__BATCHSIZE",
            "5",
            "unknown configuration key; did you mean CHANCERY_SIGNING__BATCH_SIZE?",
        ),
        (
            "CHANCERY_DATABASE_URL",
            "sqlite://other.db",
            "unknown configuration key; did you mean CHANCERY_DATABASE__URL, with two underscores?",
        ),
        (
            "CHANCERY_KEYS_KEK_FILE",
            "kek",
            "unknown configuration key; did you mean CHANCERY_KEYS__KEK_FILE, with two underscores?",
        ),
    ] {
        let ended = Site::sqlite().set(variable, value).run(&["config"]);
        assert_refused(ended, &format!("environment variable {variable}: {message}"));
    }
}

#[test]
fn variables_that_are_not_the_configurations_are_passed_over() {
    let site = Site::sqlite()
        .set("CHANCERY_TEST_PG_BIN", "/nowhere")
        .set("CHANCERY_UID", "1000")
        .set("CHANCERY_SEED_RECORDS", "5");
    site.run(&["config"]).expect_code(0);
}

#[test]
fn a_mistake_on_the_command_line_is_named_with_its_flag() {
    for (arguments, message) in [
        (
            ["run", "--batch-size", "0"].as_slice(),
            "flag --batch-size: signing.batch_size: invalid value: integer `0`, expected a whole \
             number from 1 to 1000000",
        ),
        (
            &["run", "--signers", "all"],
            "flag --signers: signing.signers: invalid value: string \"all\", expected \"auto\" or \
             a whole number from 1 to 1024",
        ),
        (
            &["--log-format", "xml", "status"],
            "flag --log-format: log.format: invalid value: string \"xml\", expected \"pretty\" or \
             \"json\"",
        ),
        (
            &["status", "--database-url", "chancery.db"],
            "flag --database-url: database.url: a database URL starts with its scheme; allowed are \
             sqlite://PATH, postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE",
        ),
    ] {
        assert_refused(Site::sqlite().run(arguments), message);
    }
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let site = with_file(
        "[database]\nurl = \"sqlite://from-file.db\"\n\
         [signing]\nbatch_size = 100\nsigners = 2\n[log]\nformat = \"json\"\n",
    )
    .set("CHANCERY_DATABASE__URL", "sqlite://from-environment.db")
    .set("CHANCERY_SIGNING__BATCH_SIZE", "200");
    let arguments = ["config", "--database-url", "sqlite://from-flag.db"];
    let shown = site.run(&arguments).expect_code(0);
    for (key, line) in [
        ("url", "url = \"sqlite://from-flag.db\"  # flag --database-url"),
        ("batch_size", "batch_size = 200  # environment variable CHANCERY_SIGNING__BATCH_SIZE"),
        ("signers", "signers = 2  # chancery.toml:5:11"),
        ("format", "format = \"json\"  # chancery.toml:7:10"),
        ("duration_s", "duration_s = 15  # default"),
    ] {
        assert_eq!(line_of(&shown, key), line);
    }

    // And what is shown is what is done.
    site.run(&["seed", "--records", "1"]).expect_code(0);
    let flag = ["seed", "--records", "1", "--database-url", "sqlite://from-flag.db"];
    site.run(&flag).expect_code(0);
    for (file, is_there) in
        [("from-file.db", false), ("from-environment.db", true), ("from-flag.db", true)]
    {
        assert_eq!(site.path(file).exists(), is_there, "{file}");
    }
}

#[test]
fn a_file_that_is_named_replaces_the_one_in_the_folder() {
    let site = with_file("[signing]\nbatch_size = 1\nsigners = 3\n");
    fs::write(site.path("other.toml"), "[signing]\nbatch_size = 2\n").unwrap();
    let shown = site.run(&["--config", "other.toml", "config"]).expect_code(0);
    assert_eq!(line_of(&shown, "batch_size"), "batch_size = 2  # other.toml:2:14");
    assert_eq!(line_of(&shown, "signers"), "signers = \"auto\"  # default");
}

#[test]
fn what_config_shows_can_be_used_as_a_configuration_file() {
    let site = Site::sqlite().set("CHANCERY_SIGNING__SIGNERS", "7");
    let shown = site.run(&["config"]).expect_code(0);
    fs::write(site.path("copy.toml"), &shown.stdout).unwrap();
    let site = site.unset("CHANCERY_SIGNING__SIGNERS");
    let again = site.run(&["--config", "copy.toml", "config"]).expect_code(0);
    let values = |ended: &Ended| -> Vec<String> {
        let without_origin = |line: &str| line.split("  # ").next().unwrap_or("").to_owned();
        ended.stdout.lines().map(without_origin).collect()
    };
    assert!(values(&shown).contains(&"signers = 7".to_owned()), "{shown}");
    assert_eq!(values(&again), values(&shown));
}

#[test]
fn config_hides_passwords_wherever_they_stand_in_the_url() {
    for url in [
        "postgres://signer:hunter2@db.example/records",
        "postgresql://signer@db.example/records?password=hunter2",
        "postgres://signer@db.example/records?sslmode=require&password=hunter2&sslpassword=hunter2",
    ] {
        let site = Site::sqlite().set("CHANCERY_DATABASE__URL", url);
        let shown = site.run(&["config"]).expect_code(0);
        let line = line_of(&shown, "url");
        assert!(line.contains("signer") && line.contains("***"), "{line}");
        assert!(!format!("{shown}").contains("hunter2"), "{shown}");
    }
}

#[test]
fn a_url_that_is_refused_is_not_quoted_with_its_password() {
    for url in ["postgres://signer:hunter2@db.example", "postgres://a:hunter2@b@c/d", "hunter2@x/y"]
    {
        let ended = Site::sqlite().set("CHANCERY_DATABASE__URL", url).run(&["run"]).expect_code(2);
        assert!(!format!("{ended}").contains("hunter2"), "{ended}");
    }
}
