//! Precedence, every kind of mistake by its whole message, and the rendering.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::config::{Auto, DatabaseUrl, LogFormat, RingNames};

const EXAMPLE: &str = include_str!("../../../chancery.example.toml");

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    Loaded::from_text(Path::new("chancery.toml"), text)
}

fn load_variables(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let no_file = TempDir::new().unwrap();
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    load_from(no_file.path(), None, variables.iter().map(owned), &Overrides::default())
}

fn load_flags(overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let no_file = TempDir::new().unwrap();
    load_from(no_file.path(), None, std::iter::empty(), overrides)
}

/// The lines of the example that set a key, those behind a `#` without a blank included.
fn example_keys() -> Vec<String> {
    let mut keys = Vec::new();
    let mut section = "";
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(format!("{section}.{name}"));
        }
    }
    keys
}

#[test]
fn the_example_lists_exactly_all_keys_and_its_values_are_the_defaults() {
    let loaded = load_text(EXAMPLE).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(example_keys(), KEYS.map(|key| key.to_string()));
    let without_default = [
        "database.runtime_role",
        "keys.kek_file",
        "keys.kek_sources",
        "keys.kek_passphrase",
        "keys.retire_after_signatures",
        "keys.retire_after_days",
        "pkcs11.module",
        "pkcs11.token_label",
        "pkcs11.pin_file",
        "http.tls_cert_file",
        "http.tls_key_file",
        "http.tls_client_ca_file",
        "node.name",
        "telemetry.otlp_endpoint",
    ];
    for key in KEYS {
        let is_set = loaded.origins.contains_key(&key);
        assert_eq!(is_set, !without_default.contains(&key.to_string().as_str()), "{key}");
    }
}

#[test]
fn the_example_still_loads_with_every_key_uncommented() {
    let all: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let loaded = load_text(&all).unwrap();
    assert_eq!(loaded.origins.len(), KEYS.len());
    assert_eq!(loaded.config.keys.kek_file, Some(PathBuf::from("/etc/chancery/kek")));
    assert_eq!(loaded.config.node.name_or_default(), "signer-1");
}

#[test]
fn the_list_of_keys_is_that_of_the_types() {
    // Serde names every field of a struct when it meets one that it does not know.
    let fields_of = |text: &str| -> Vec<String> {
        let error = toml::from_str::<Config>(text).unwrap_err();
        let (_, fields) = error.message().split_once(", expected ").unwrap();
        fields.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut keys = Vec::new();
    for section in fields_of("unknown = 0") {
        for name in fields_of(&format!("[{section}]\nunknown = 0")) {
            keys.push(format!("{section}.{name}"));
        }
    }
    assert_eq!(keys, KEYS.map(|key| key.to_string()));
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("named.toml");
    fs::write(
        &path,
        "[signing]\nbatch_size = 100\nsigners = 2\nwriters = 3\n[lease]\nduration_s = 30\n",
    )
    .unwrap();
    let env = [("CHANCERY_SIGNING__BATCH_SIZE", "200"), ("CHANCERY_SIGNING__SIGNERS", "auto")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let overrides = Overrides {
        batch_size: Some("300".to_owned()),
        log_format: Some("json".to_owned()),
        ..Overrides::default()
    };
    let loaded = Config::load(Some(&path), env.into_iter(), &overrides).unwrap();

    assert_eq!(loaded.config.signing.batch_size.records(), 300);
    assert_eq!(loaded.config.signing.signers, Auto::Auto);
    assert_eq!(loaded.config.signing.writers, 3);
    assert_eq!(loaded.config.lease.duration().as_secs(), 30);
    assert_eq!(loaded.config.lease.max_attempts, 5);
    assert_eq!(loaded.config.log.format, LogFormat::Json);

    let text = loaded.render().unwrap();
    let path = path.display();
    for line in [
        "batch_size = 300  # flag --batch-size",
        "signers = \"auto\"  # environment variable CHANCERY_SIGNING__SIGNERS",
        &format!("writers = 3  # {path}:4:11"),
        "max_attempts = 5  # default",
        "# kek_file is not set  # default",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }
}

#[test]
fn chancery_toml_in_the_current_folder_is_read_only_if_no_other_file_is_named() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(DEFAULT_FILE), "[node]\nname = \"by default\"\n").unwrap();
    let other = folder.path().join("other.toml");
    fs::write(&other, "[node]\nname = \"by name\"\n").unwrap();
    let name = |file: Option<&Path>| {
        let loaded =
            load_from(folder.path(), file, std::iter::empty(), &Overrides::default()).unwrap();
        loaded.config.node.name
    };
    assert_eq!(name(None).as_deref(), Some("by default"));
    assert_eq!(name(Some(&other)).as_deref(), Some("by name"));
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_readable() {
    let folder = TempDir::new().unwrap();
    let load = |path: &Path| {
        let loaded = Config::load(Some(path), std::iter::empty(), &Overrides::default());
        loaded.unwrap_err().to_string()
    };
    let missing = folder.path().join("absent.toml");
    assert_eq!(
        load(&missing),
        format!(
            "{}: no such config file; name one that exists, or name none to run on defaults",
            missing.display()
        )
    );
    let unreadable = load(folder.path());
    let expected = format!("{}: cannot read the config file: ", folder.path().display());
    assert!(unreadable.starts_with(&expected), "{unreadable}");
}

#[test]
fn a_mistake_in_the_file_is_reported_with_its_place_and_what_would_be_right() {
    for (text, message) in [
        (
            "[signing]\nbatch_size = 0\n",
            "2:14: signing.batch_size: invalid value: integer `0`, expected a whole number from \
             1 to 1000000",
        ),
        (
            "# \u{e9}\n[signing]\n  writers = 17",
            "3:13: signing.writers: invalid value: integer `17`, expected a whole number from 1 \
             to 16",
        ),
        (
            "lease.duration_s = -1",
            "1:20: lease.duration_s: invalid value: integer `-1`, expected a whole number from 1 \
             to 3600",
        ),
        (
            "signing = { signers = \"many\" }",
            "1:23: signing.signers: invalid value: string \"many\", expected \"auto\" or a whole \
             number from 1 to 1024",
        ),
        (
            "[signing]\nloaders = 257",
            "2:11: signing.loaders: invalid value: integer `257`, expected \"auto\" or a whole \
             number from 1 to 256",
        ),
        (
            "[signing]\nmax_in_flight_bytes = 1_000",
            "2:23: signing.max_in_flight_bytes: invalid value: integer `1000`, expected a whole \
             number of at least 1048576",
        ),
        (
            "[database]\npool_size = \"8\"",
            "2:13: database.pool_size: invalid type: string \"8\", expected a whole number from \
             1 to 1000",
        ),
        (
            "[database]\nurl = \"mysql://root:hunter2@h/db\"",
            "2:7: database.url: unknown scheme `mysql://`; allowed are sqlite://PATH, \
             postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE",
        ),
        (
            "[database]\nurl = [\"postgres://u:hunter2@h/db\"]",
            "2:7: database.url: invalid type: sequence, expected a database URL: sqlite://PATH, \
             postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE",
        ),
        (
            "[http]\nbind = \"localhost\"",
            "2:8: http.bind: invalid value: string \"localhost\", expected an IP address with a \
             port, such as 127.0.0.1:8080 or [::1]:8080",
        ),
        (
            "[node]\nname = \" \"",
            "2:8: node.name: invalid value: string \" \", expected a text that is not blank, \
             without control characters",
        ),
        (
            "[keys]\nkek_file = \"\"",
            "2:12: keys.kek_file: invalid value: string \"\", expected a path that is not blank, \
             without control characters",
        ),
        (
            "[log]\nformat = \"xml\"",
            "2:10: log.format: invalid value: string \"xml\", expected \"pretty\" or \"json\"",
        ),
        (
            "[log]\nlevel = \"inof\"",
            "2:9: log.level: invalid value: string \"inof\", expected off, error, warn, info, \
             debug or trace, or directives such as info,chancery::db=debug",
        ),
        (
            "[log]\nformat = 5",
            "2:10: log.format: invalid type: integer `5`, expected \"pretty\" or \"json\"",
        ),
        (
            "[signing]\nengine = \"openssl\"",
            "2:10: signing.engine: invalid value: string \"openssl\", expected \"aws_lc\" or \"dalek\"",
        ),
        (
            "[signing]\n\nbatch_sise = 5",
            "3:1: unknown key `batch_sise` in [signing]; did you mean `signing.batch_size`?",
        ),
        (
            "[lease]\nbatch_size = 5",
            "2:1: unknown key `batch_size` in [lease]; did you mean `signing.batch_size`?",
        ),
        (
            "[lease]\ncolour = 5",
            "2:1: unknown key `colour` in [lease]; known are `lease.duration_s`, \
             `lease.max_attempts`",
        ),
        ("[sigining]\nbatch_size = 5", "1:2: unknown section [sigining]; did you mean [signing]?"),
        (
            "batch_size = 5",
            "1:1: unknown section [batch_size]; did you mean `signing.batch_size`, the key \
             `batch_size` in [signing]?",
        ),
        (
            "[colour]",
            "1:2: unknown section [colour]; known are [database], [signing], [lease], [keys], \
             [pkcs11], [memory], [http], [node], [log], [telemetry]",
        ),
        ("signing = 5", "1:11: signing: a single value, expected a section: a line [signing]"),
        (
            "[[signing]]\nwriters = 2",
            "1:1: signing: a single value, expected a section: a line [signing]",
        ),
        (
            "[signing]\nwriters = 99999999999999999999",
            "2:11: signing.writers: invalid type: floating point `100000000000000000000.0`, \
             expected a whole number from 1 to 16",
        ),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"", "3:1: duplicate key"),
        (
            "[database]\nurl = \"postgres://u:hunter2@h/db",
            "2:33: invalid basic string, expected `\"`",
        ),
    ] {
        let error = load_text(text).unwrap_err().to_string();
        assert_eq!(error, format!("chancery.toml:{message}"), "for {text:?}");
    }
}

#[test]
fn every_range_takes_its_ends_and_nothing_beyond_them() {
    let ranges: [(&str, i64, i64); 11] = [
        ("database.wait_s", 0, 86_400),
        ("database.pool_size", 1, 1_000),
        ("signing.batch_size", 1, 1_000_000),
        ("signing.signers", 1, 1_024),
        ("signing.loaders", 1, 256),
        ("signing.writers", 1, 16),
        ("signing.max_in_flight", 1, 100_000),
        ("signing.max_in_flight_bytes", 1_048_576, i64::MAX),
        ("signing.slice_bytes", 65_536, 1_073_741_824),
        ("lease.duration_s", 1, 3_600),
        ("lease.max_attempts", 1, 1_000),
    ];
    for (key, least, most) in ranges {
        for number in [least, most] {
            let loaded = load_text(&format!("{key} = {number}"));
            assert!(loaded.is_ok(), "{key} = {number}: {loaded:?}");
        }
        let beyond = [Some(least - 1), most.checked_add(1)];
        for number in beyond.into_iter().flatten() {
            let loaded = load_text(&format!("{key} = {number}"));
            assert!(loaded.is_err(), "{key} = {number} was taken");
        }
    }
}

#[test]
fn of_two_mistakes_the_first_in_the_file_is_reported() {
    let error = load_text("[signing]\nwriters = 0\nbatch_size = 0\n[database]\nwait_s = -1");
    assert_eq!(
        error.unwrap_err().to_string(),
        "chancery.toml:2:11: signing.writers: invalid value: integer `0`, expected a whole \
         number from 1 to 16"
    );
}

#[test]
fn a_variable_is_read_as_a_number_or_a_string_whichever_its_key_takes() {
    let loaded = load_variables(&[
        ("CHANCERY_DATABASE__URL", "postgres://u:hunter2@h/db"),
        ("CHANCERY_SIGNING__SIGNERS", " 4 "),
        ("CHANCERY_SIGNING__LOADERS", "auto"),
        ("CHANCERY_SIGNING__MAX_IN_FLIGHT", "1_000"),
        ("CHANCERY_NODE__NAME", "42"),
        ("CHANCERY_LOG__LEVEL", "\"debug\""),
        ("CHANCERY_KEYS__KEK_FILE", "/etc/chancery/kek"),
        ("CHANCERY_CONFIG", "elsewhere.toml"),
        ("CHANCERY_TEST_PG_BIN", "/usr/lib/postgresql/15/bin"),
        ("CHANCERY_UID", "1000"),
        ("SOME_OTHER__VARIABLE", "1"),
    ])
    .unwrap();
    let config = loaded.config;
    let url = "postgres://u:hunter2@h/db".to_owned();
    assert_eq!(config.database.url, DatabaseUrl::Postgres { url });
    assert_eq!(config.signing.signers, Auto::Exactly(4));
    assert_eq!(config.signing.loaders, Auto::Auto);
    assert_eq!(config.signing.max_in_flight, Auto::Exactly(1_000));
    assert_eq!(config.node.name.as_deref(), Some("42"));
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.keys.kek_file, Some(PathBuf::from("/etc/chancery/kek")));
}

#[test]
fn every_key_has_its_variable() {
    for (key, variable) in [
        (Key::new("database", "url"), "CHANCERY_DATABASE__URL"),
        (Key::new("lease", "duration_s"), "CHANCERY_LEASE__DURATION_S"),
    ] {
        assert_eq!(key.variable(), variable);
    }
    for key in KEYS {
        let error = load_variables(&[(&key.variable(), "\r")]).unwrap_err().to_string();
        let expected = format!("environment variable {}: {key}: ", key.variable());
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn the_environment_of_the_process_is_handed_over_whole() {
    let found: Vec<(String, String)> = process_environment().collect();
    assert_eq!(found.len(), env::vars_os().count());
    let path = env::var("PATH").unwrap();
    assert!(found.contains(&("PATH".to_owned(), path)));
}

#[test]
fn a_mistake_in_the_environment_names_its_variable() {
    for (variable, value, message) in [
        (
            "CHANCERY_SIGNING__BATCH_SIZE",
            "1000001",
            "signing.batch_size: invalid value: integer `1000001`, expected a whole number from 1 \
             to 1000000",
        ),
        (
            "CHANCERY_LEASE__DURATION_S",
            "15s",
            "lease.duration_s: invalid type: string \"15s\", expected a whole number from 1 to \
             3600",
        ),
        (
            "CHANCERY_DATABASE__URL",
            "u:hunter2@h/db",
            "database.url: a database URL starts with its scheme; allowed are sqlite://PATH, \
             postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE",
        ),
        (
            "CHANCERY_DATABASE__URI",
            "hunter2",
            "unknown configuration key; did you mean CHANCERY_DATABASE__URL?",
        ),
        (
            "CHANCERY_SIGINING__SIGNERS",
            "1",
            "unknown configuration key; did you mean CHANCERY_SIGNING__SIGNERS?",
        ),
        (
            "CHANCERY_LOG__level",
            "info",
            "unknown configuration key; did you mean CHANCERY_LOG__LEVEL?",
        ),
        (
            "CHANCERY_LOG__COLOUR",
            "1",
            "unknown configuration key; known are CHANCERY_LOG__FORMAT, CHANCERY_LOG__LEVEL",
        ),
        (
            "CHANCERY_DATABASE_URL",
            "hunter2",
            "unknown configuration key; did you mean CHANCERY_DATABASE__URL, with two underscores?",
        ),
        (
            "CHANCERY_SIGNING_MAX_IN_FLIGHT_BYTES",
            "1",
            "unknown configuration key; did you mean CHANCERY_SIGNING__MAX_IN_FLIGHT_BYTES, with \
             two underscores?",
        ),
    ] {
        let error = load_variables(&[(variable, value)]).unwrap_err().to_string();
        assert_eq!(error, format!("environment variable {variable}: {message}"));
    }
}

#[test]
fn a_mistake_on_the_command_line_names_its_flag() {
    let flag = |value: &str| Some(value.to_owned());
    for (overrides, message) in [
        (
            Overrides { batch_size: flag("0"), ..Overrides::default() },
            "flag --batch-size: signing.batch_size: invalid value: integer `0`, expected a whole \
             number from 1 to 1000000",
        ),
        (
            Overrides { signers: flag("all"), ..Overrides::default() },
            "flag --signers: signing.signers: invalid value: string \"all\", expected \"auto\" \
             or a whole number from 1 to 1024",
        ),
        (
            Overrides { ring: flag("a,,b"), ..Overrides::default() },
            "flag --ring: signing.ring: invalid value: string \"a,,b\", expected a ring's name, \
             several different ones with commas between them, or \"*\"",
        ),
        (
            Overrides { log_format: flag("xml"), ..Overrides::default() },
            "flag --log-format: log.format: invalid value: string \"xml\", expected \"pretty\" or \"json\"",
        ),
        (
            Overrides { database_url: flag("sqlite://"), ..Overrides::default() },
            "flag --database-url: database.url: the SQLite URL has no path; write \
             sqlite://chancery.db or sqlite:///abs/path.db",
        ),
    ] {
        assert_eq!(load_flags(&overrides).unwrap_err().to_string(), message);
    }
}

#[test]
fn what_is_rendered_loads_back_as_the_same_configuration() {
    let loaded = load_variables(&[
        ("CHANCERY_DATABASE__URL", "sqlite:///some \"odd\" path.db"),
        ("CHANCERY_SIGNING__SIGNERS", "4"),
        ("CHANCERY_HTTP__BIND", "[::1]:0"),
        ("CHANCERY_NODE__NAME", "a # b"),
        ("CHANCERY_KEYS__KEK_FILE", "/etc/chancery/kek"),
    ])
    .unwrap();
    let text = loaded.render().unwrap();
    assert_eq!(load_text(&text).unwrap().config, loaded.config);
    assert_eq!(text.matches("  # ").count(), KEYS.len());

    let defaults = Loaded::default();
    let text = defaults.render().unwrap();
    assert_eq!(load_text(&text).unwrap().config, Config::default());
    assert_eq!(text.matches("  # default\n").count(), KEYS.len());
}

#[test]
fn no_password_is_rendered_or_shown_by_debug() {
    let url = "postgres://u:hunter2@h/db?sslpassword=hunter2";
    let overrides = Overrides { database_url: Some(url.to_owned()), ..Overrides::default() };
    let loaded = load_flags(&overrides).unwrap();
    let line = "url = \"postgres://u:***@h/db?sslpassword=***\"  # flag --database-url\n";
    let text = loaded.render().unwrap();
    assert!(text.contains(line), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let shown = format!("{loaded:?}");
    assert!(shown.contains("postgres://u:***@h/db"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn rings_and_their_batch_sizes_are_read_from_every_layer_and_shown_as_they_were_written() {
    let text = "[signing]\nring = \"*\"\nring_batch_sizes = \"a=1,b=20\"\nbatch_size = 7\n";
    let loaded = load_text(text).unwrap();
    let signing = &loaded.config.signing;
    assert_eq!(signing.ring, RingNames::All);
    let sizes = ["a", "b", "c"].map(|ring| signing.batch_size_of(ring).records());
    assert_eq!(sizes, [1, 20, 7]);
    let shown = loaded.render().unwrap();
    for line in [
        "ring = \"*\"  # chancery.toml:2:8",
        "ring_batch_sizes = \"a=1,b=20\"  # chancery.toml:3:20",
    ] {
        assert!(shown.lines().any(|found| found == line), "no line {line:?} in\n{shown}");
    }
    // A name may look like a number.
    let numbered = load_variables(&[("CHANCERY_SIGNING__RING", "2026")]).unwrap();
    assert_eq!(numbered.config.signing.ring.to_string(), "2026");
    let flags = load_flags(&Overrides { ring: Some("x,y".to_owned()), ..Overrides::default() });
    assert_eq!(flags.unwrap().config.signing.ring.to_string(), "x,y");
    let error = load_text("[signing]\nring_batch_sizes = \"a=1,a=2\"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "chancery.toml:2:20: signing.ring_batch_sizes: invalid value: string \"a=1,a=2\", expected \
         batch sizes from 1 to 1000000 by ring, each ring once, such as invoices=100,receipts=1000"
    );
}
