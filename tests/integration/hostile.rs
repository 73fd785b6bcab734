//! A hostile world: databases that are not there, not whole or not ours, several at once, secrets.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::process::{Pid, Resource, Rlimit, geteuid, prlimit};
use testkit::Postgres;

use chancery::keyring::{Algorithm, DataKey, DataKeyPlace, Kek, KeyIdentity, Opener, unseal};
use chancery::types::{KeyId, Kid, RingId};

use crate::support::database::unhex;
use crate::support::judge::{judge, judge_by_the_program};
use crate::support::program::{Ended, Signal};
use crate::support::{Site, wait_until};

on_both_databases! {
    what_is_empty_needs_no_signing_and_what_has_no_key_says_so,
    a_schema_newer_than_the_program_is_refused_by_every_command,
    a_kek_file_that_others_can_read_or_exchange_is_refused,
    an_import_that_was_killed_is_finished_by_the_next,
    several_migrate_and_several_generate_keys_at_once,
    keys_disabled_and_enabled_during_a_run_break_no_rule,
    no_secret_ever_shows,
}

fn what_is_empty_needs_no_signing_and_what_has_no_key_says_so(site: Site) {
    site.prepare();
    site.run(&["run"]).expect_code(0).expect_stdout("nothing to sign in ");
    site.run(&["verify"]).expect_code(0);
    site.run(&["audit"]).expect_code(0);
    site.seed(30);
    let ended = site.run(&["run"]).expect_code(1);
    assert_eq!(
        ended.stderr,
        "error: ring default has 30 unsigned records and no key: `chancery keys generate --count \
         100` makes some\n",
        "{ended}"
    );
    site.run(&["keys", "generate", "--count", "1"]).expect_code(0);
    site.run(&["run"]).expect_code(0);
    judge(&site, 30);
}

/// Fails unless the program ended at once with `code`, naming `reason`, and told no password.
#[track_caller]
fn assert_hopeless(ended: Ended, code: i32, reason: &str) {
    let ended = ended.expect_code(code).expect_stderr("error: ").expect_stderr(reason);
    assert!(!ended.stderr.contains("waiting for the database"), "it waited: {ended}");
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    assert!(![&ended.stdout, &ended.stderr].iter().any(|said| said.contains("hunter2")), "{ended}");
}

const COMMANDS: [&[&str]; 6] = [
    &["migrate"],
    &["run"],
    &["status"],
    &["seed", "--records", "1"],
    &["keys", "generate", "--count", "1"],
    &["verify"],
];

#[test]
fn a_server_that_refuses_us_is_not_waited_for_and_no_password_is_told() {
    let server = Postgres::start().unwrap();
    server.sql("postgres", "CREATE ROLE signer LOGIN PASSWORD 'right'").unwrap();
    // The first line that fits decides: everybody but the superuser needs a password.
    let rules = server.folder().join("data/pg_hba.conf");
    let trusting = fs::read_to_string(&rules).unwrap();
    let superuser = "host all postgres 127.0.0.1/32 trust\n";
    let others = "host all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(&rules, format!("{superuser}{others}{trusting}")).unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()").unwrap();

    let port = server.port();
    let site = Site::on_server(&server);
    for (url, reason) in [
        (format!("signer:hunter2@127.0.0.1:{port}/postgres"), "password authentication failed"),
        (format!("nobody:hunter2@127.0.0.1:{port}/postgres"), "password authentication failed"),
        (format!("signer@127.0.0.1:{port}/postgres"), "no password supplied"),
        (format!("postgres:hunter2@127.0.0.1:{port}/absent"), "\"absent\" does not exist"),
        (format!("absent:hunter2@127.0.0.1:{port}/postgres?passfile=x"), "authentication failed"),
    ] {
        let url = format!("postgres://{url}");
        for command in COMMANDS {
            let ended = site.run(&[command, &["--database-url", &url]].concat());
            assert_hopeless(ended, 1, reason);
        }
    }
    let ended = site.run(&["status", "--database-url", &server.url_as("absent", "postgres")]);
    assert_hopeless(ended, 1, "no password supplied");
}

#[test]
fn a_server_that_is_down_is_waited_for_as_long_as_the_user_says() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("postgres://signer:hunter2@127.0.0.1:{port}/records");
    let site = Site::sqlite().set("CHANCERY_DATABASE__URL", &url);
    let site = site.set("CHANCERY_DATABASE__WAIT_S", "0");
    for command in COMMANDS {
        let reason = format!(
            "gave up on the database postgres://signer:***@127.0.0.1:{port}/records after 0 s \
             (database.wait_s): the database is not reachable: "
        );
        assert_hopeless(site.run(command), 1, &reason);
    }
    let waiting = site.set("CHANCERY_DATABASE__WAIT_S", "600").start(&["run"]);
    let line = waiting.wait_for_stderr("waiting for the database");
    assert!(line.contains("Connection refused") && !line.contains("hunter2"), "{line}");
    waiting.signal(Signal::TERM);
    assert_ne!(waiting.wait().code, Some(0));
}

#[test]
fn a_postgres_database_that_was_never_migrated_says_what_to_do() {
    let site = Site::postgres();
    for command in &COMMANDS[1..] {
        let reason = "the database's schema is empty; this program needs 20";
        assert_hopeless(site.run(command), 1, reason);
        assert_hopeless(site.run(command), 1, ": run `chancery migrate`\n");
    }
    assert_eq!(site.database.rows("SELECT tablename AS value FROM pg_tables
                                   WHERE schemaname = 'public' AND tablename <> '__diesel_schema_migrations'"),
               [""; 0]);
}

fn a_schema_newer_than_the_program_is_refused_by_every_command(site: Site) {
    let site = site.with(1, 5);
    site.database
        .execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000001')");
    for command in COMMANDS {
        assert_hopeless(
            site.run(command),
            1,
            "the database's schema has version 29991231000001, which is newer than this program \
             knows (20",
        );
    }
    assert_eq!(site.database.number("SELECT tick AS value FROM rings"), 1);
}

#[test]
fn an_sqlite_file_that_is_none_is_refused_by_name() {
    let site = Site::sqlite();
    fs::write(site.path("text"), "these are no records\n".repeat(1_000)).unwrap();
    fs::create_dir(site.path("folder")).unwrap();
    for (path, reason) in [
        (
            "text",
            "cannot use the database sqlite://text: text is not an SQLite database, or its beginning",
        ),
        (
            "folder",
            "cannot use the database sqlite://folder: folder is a folder: name a file in it",
        ),
        (
            "absent/new",
            "cannot use the database sqlite://absent/new: absent/new: there is no folder absent",
        ),
    ] {
        let url = format!("sqlite://{path}");
        for command in [["migrate"].as_slice(), &["seed", "--records", "1"]] {
            assert_hopeless(site.run(&[command, &["--database-url", &url]].concat()), 1, reason);
        }
        if path != "absent/new" {
            assert_hopeless(site.run(&["run", "--database-url", &url]), 1, reason);
        }
    }
    for command in ["run", "status", "verify", "audit"] {
        let ended = site.run(&[command, "--database-url", "sqlite://absent.db"]);
        assert_hopeless(ended, 2, "there is no database at absent.db: name another with ");
    }
    assert!(!site.path("absent.db").exists() && !site.path("absent").exists());
}

#[test]
fn half_an_sqlite_file_is_found_damaged_and_never_passes() {
    let site = Site::sqlite().with(5, 3_000);
    site.run(&["run"]).expect_code(0);
    judge(&site, 3_000);
    // A process may end before a thread of its pool has closed the last connection, which is what
    // moves the log into the file.
    site.database.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    let path = site.path("chancery.db");
    let whole = fs::metadata(&path).unwrap().len();
    assert!(whole > 1_000_000 && !site.path("chancery.db-wal").exists());
    fs::File::options().write(true).open(&path).unwrap().set_len(whole / 2).unwrap();
    for command in ["run", "verify", "audit", "export"] {
        assert_hopeless(site.run(&[command]), 1, "database disk image is malformed");
    }
}

/// The program as a user without rights of root's, who may not write what others own.
fn as_nobody(site: &Site, arguments: &[&str]) -> Command {
    let usual = site.command(arguments);
    if !geteuid().is_root() {
        return usual;
    }
    // The folder of the build may be closed to others.
    let program = site.path("program");
    fs::copy(usual.get_program(), &program).unwrap();
    let mut command = Command::new(program);
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(usual.get_args()).current_dir(site.path(".")).uid(65_534).gid(65_534);
    command
}

#[test]
fn an_sqlite_file_that_may_only_be_read_is_refused_by_name() {
    let site = Site::sqlite().with(1, 5);
    fs::set_permissions(site.path("chancery.db"), Permissions::from_mode(0o444)).unwrap();
    let command = as_nobody(&site, &["seed", "--records", "1"]);
    fs::set_permissions(site.path("."), Permissions::from_mode(0o555)).unwrap();
    let ended = site.run_command(command);
    fs::set_permissions(site.path("."), Permissions::from_mode(0o755)).unwrap();
    assert_hopeless(
        ended,
        1,
        "the database's file takes no writes: this user has no right to write ",
    );
    assert_eq!(site.database.number("SELECT count(*) AS value FROM records"), 5);
}

/// The program where no file may grow beyond so many kibibytes, as on a disk that is full.
fn with_room_for(site: &Site, kib: u32, arguments: &[&str]) -> Command {
    let usual = site.command(arguments);
    let mut command = Command::new("sh");
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // In blocks of 512 bytes; without the trap the first write too many would end the program.
    let limit = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"", kib * 2);
    command.args(["-c", &limit]).arg(usual.get_program()).args(usual.get_args());
    command.current_dir(site.path("."));
    command
}

#[test]
fn a_disk_without_room_fails_an_intake_and_is_waited_for_by_a_run() {
    let site = Site::sqlite().with(10, 10_000);
    let kib = u32::try_from(fs::metadata(site.path("chancery.db")).unwrap().len() / 1024).unwrap();
    let seed = ["seed", "--records", "20000"];
    let ended = site.run_command(with_room_for(&site, kib + 1_000, &seed));
    assert_hopeless(ended, 1, "the database's storage fails: ");
    let records = site.database.number("SELECT count(*) AS value FROM records");
    assert!((10_000..30_000).contains(&records), "{records} records");

    let size = fs::metadata(site.path("chancery.db")).unwrap().len() / 1024;
    let size = u32::try_from(size).unwrap();
    let run = site.start_command(with_room_for(&site, size + 100, &["run", "--batch-size", "50"]));
    run.wait_for_stderr("the database's storage fails: ");
    assert!(site.signatures() < records);
    let id = Pid::from_raw(run.id().cast_signed());
    prlimit(id, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    run.wait().expect_code(0);
    judge(&site, records);
}

fn a_kek_file_that_others_can_read_or_exchange_is_refused(site: Site) {
    let site = site.with(2, 20);
    let kek = fs::read_to_string(site.path("kek")).unwrap();
    let file = |name: &str, contents: &str, mode: u32| {
        fs::write(site.path(name), contents).unwrap();
        fs::set_permissions(site.path(name), Permissions::from_mode(mode)).unwrap();
    };
    file("readable", &kek, 0o644);
    file("garbage", "chancery-kek-v1:not-a-key\n", 0o600);
    file("empty", "", 0o600);
    symlink(site.path("kek"), site.path("link")).unwrap();
    fs::create_dir(site.path("folder")).unwrap();
    let mut refusals = vec![
        ("readable", "has mode 0644, which is looser than 0600: chmod 600 '"),
        ("garbage", "holds no KEK: what follows `chancery-kek-v1:` is not 32 bytes"),
        ("empty", "holds no KEK: it begins neither with `chancery-kek-v1:` nor with"),
        ("link", "is a symbolic link: give the path of the file itself"),
        ("folder", "is not a regular file"),
        ("absent", "not found; point keys.kek_file (CHANCERY_KEYS__KEK_FILE) at the file that"),
    ];
    if geteuid().is_root() {
        file("foreign", &kek, 0o600);
        chown(site.path("foreign"), Some(65_534), None).unwrap();
        refusals.push(("foreign", "belongs to user 65534, but this process runs as 0"));
    } else {
        symlink("/etc", site.path("etc")).unwrap();
        refusals.push(("etc/passwd", "belongs to user 0, but this process runs as "));
    }
    for (name, reason) in refusals {
        let path = site.path(name).display().to_string();
        for command in [["run"].as_slice(), &["keys", "generate", "--count", "1"]] {
            let mut command = site.command(command);
            command.env("CHANCERY_KEYS__KEK_FILE", &path);
            let ended = site.run_command(command).expect_stderr(&path);
            assert!(!ended.stderr.contains(kek.trim_end()), "{ended}");
            assert_hopeless(ended, 2, reason);
        }
    }
    assert_eq!(site.database.number("SELECT tick AS value FROM rings"), 2);
    site.run(&["run"]).expect_code(0);
    judge(&site, 20);
}

fn an_import_that_was_killed_is_finished_by_the_next(site: Site) {
    const LINES: i64 = 60_000;
    let site = site.with(5, 0);
    let mut file = String::new();
    for n in 0..LINES {
        let _ = writeln!(file, "{{\"id\": {n}, \"body\": \"{:0200}\"}}", n);
    }
    fs::write(site.path("records"), file).unwrap();
    let import = ["import", "records", "--format", "jsonl", "--id-field", "id"];
    let count = || site.database.number("SELECT count(*) AS value FROM records");
    let running = site.start(&import);
    wait_until("some records are there", || count() > 0);
    running.signal(Signal::KILL);
    assert_eq!(running.wait().signal, Some(9));
    let before = count();
    assert!(before < LINES, "all {before} were there before it could be killed");

    let ended = site.run(&import).expect_code(0);
    let grouped = |n: i64| format!("{},{:03}", n / 1_000, n % 1_000);
    let ended = ended.expect_stdout(&format!("imported {} records ", grouped(LINES - before)));
    ended.expect_stdout(&format!("; {} there already, unchanged\n", grouped(before)));
    site.run(&["run"]).expect_code(0);
    judge(&site, LINES);
}

fn several_migrate_and_several_generate_keys_at_once(site: Site) {
    let kek = site.path("kek").display().to_string();
    site.run(&["kek", "generate", "--out", &kek]).expect_code(0);
    let at_once = |arguments: &[&str]| -> Vec<Ended> {
        let running: Vec<_> = (0..5).map(|_| site.start(arguments)).collect();
        running.into_iter().map(|one| one.wait().expect_code(0)).collect()
    };
    let migrated = at_once(&["migrate"]);
    let applied = migrated.iter().filter(|ended| ended.stdout.starts_with("applied ")).count();
    assert_eq!(applied, 1, "{migrated:?}");
    at_once(&["keys", "generate", "--count", "20"]);
    let kids = site.database.rows("SELECT DISTINCT kid AS value FROM keys");
    assert_eq!(kids.len(), 100);
    let of_some = at_once(&["keys", "generate", "--count", "20", "--if-empty"]);
    assert!(of_some.iter().all(|ended| ended.stdout.ends_with(": none added\n")), "{of_some:?}");
    site.seed(1_000);
    site.run(&["run", "--batch-size", "10"]).expect_code(0);
    judge(&site, 1_000);
}

#[test]
fn commands_that_meet_on_a_new_sqlite_database_share_one_kek() {
    let site = Site::sqlite().unset("CHANCERY_KEYS__KEK_FILE");
    let running: Vec<_> =
        (0..5).map(|_| site.start(&["keys", "generate", "--count", "4"])).collect();
    let ended: Vec<_> = running.into_iter().map(|one| one.wait().expect_code(0)).collect();
    let made = ended.iter().filter(|one| one.stdout.contains("made a key-encryption key")).count();
    assert_eq!(made, 1, "{ended:?}");
    assert_eq!(site.database.number("SELECT count(*) AS value FROM keks"), 1);
    site.seed(200);
    site.run(&["run", "--batch-size", "10"]).expect_code(0).expect_stdout("with 20 keys");
    judge(&site, 200);
}

fn keys_disabled_and_enabled_during_a_run_break_no_rule(site: Site) {
    let site = site.with(6, 20_000);
    let kids = site.database.rows("SELECT kid AS value FROM keys WHERE id <= 4 ORDER BY id");
    let run = site.start(&["run", "--batch-size", "20"]);
    let mut changes = 0;
    while run.is_alive() {
        for what in ["disable", "enable"] {
            let kids: Vec<&str> = kids.iter().map(String::as_str).collect();
            site.run(&[&["keys", what], &kids[..]].concat()).expect_code(0);
            changes += kids.len();
        }
    }
    run.wait().expect_code(0).expect_stdout("signed 20,000 records in 1,000 batches");
    assert!(changes >= 16, "{changes} changes");
    let between = "SELECT count(*) AS value FROM key_events
                   WHERE event <> 'added' AND tick > (SELECT min(fence) FROM key_uses)
                         AND tick < (SELECT max(end_tick) FROM key_uses)";
    assert!(site.database.number(between) >= 8, "no change fell into the run");
    judge(&site, 20_000);
}

/// A secret as it could show: in base64 of both alphabets, in hexadecimal, as Rust's list of bytes.
fn spellings(secret: &[u8]) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{secret:?}");
    vec![
        URL_SAFE_NO_PAD.encode(secret),
        STANDARD.encode(secret),
        hex.to_uppercase(),
        hex,
        list.trim_matches(['[', ']']).to_owned(),
    ]
}

fn no_secret_ever_shows(site: Site) {
    const PASSWORD: &str = "hunter2-the-canary";
    let url = site.database.url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
    let site = site
        .set("CHANCERY_DATABASE__URL", &url)
        .set("CHANCERY_LOG__LEVEL", "trace")
        .set("RUST_LOG", "trace")
        .set("RUST_BACKTRACE", "full");
    let kek_path = site.path("kek").display().to_string();
    let mut said = Vec::new();
    for arguments in [
        ["config"].as_slice(),
        &["kek", "generate", "--out", &kek_path],
        &["kek", "generate", "--out", &kek_path],
        &["migrate"],
        &["keys", "generate", "--count", "5"],
        &["seed", "--records", "500"],
        &["run", "--batch-size", "20"],
        &["status"],
        &["status", "--json"],
        &["keys", "list"],
        &["keys", "list", "--json"],
        &["keys", "export"],
        &["keys", "export", "--format", "pem"],
        &["keys", "disable", "?"],
        &["verify", "--json"],
        &["audit", "--json"],
        &["export"],
    ] {
        let ended = site.run(arguments);
        assert!(matches!(ended.code, Some(0 | 2)), "{ended}");
        said.push(ended.stdout);
        said.push(ended.stderr);
    }
    // A key-encryption key that is the wrong one, and a key that is damaged.
    let seeds = private_seeds(&site);
    site.database.execute("UPDATE keys SET sealed_private_key = public_key WHERE id = 1");
    site.seed(20);
    said.push(site.run(&["run"]).expect_code(0).expect_stderr("damaged").stderr);
    let site = site.set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
    let serve = site.start(&["serve"]);
    serve.wait_for_stderr("serving");
    serve.signal(Signal::TERM);
    said.push(serve.wait().expect_code(0).stderr);

    let said = said.concat();
    assert!(
        said.contains("TRACE") || said.contains("DEBUG"),
        "the log was not at its most verbose"
    );
    assert_eq!(seeds.len(), 5);
    let kek_text = fs::read_to_string(site.path("kek")).unwrap();
    let kek = URL_SAFE_NO_PAD.decode(kek_text.trim_end().rsplit(':').next().unwrap()).unwrap();
    assert_eq!(kek.len(), 32);
    for secret in seeds.iter().chain([&kek]) {
        for spelling in spellings(secret) {
            assert!(!said.contains(&spelling), "a secret shows as {spelling}");
        }
    }
    assert!(!said.contains(PASSWORD));
    judge_by_the_program(&site);
}

/// The private keys of the first ring, unsealed.
fn private_seeds(site: &Site) -> Vec<Vec<u8>> {
    let kek = Kek::load_file(&site.path("kek")).unwrap();
    let database_id = site.database.rows("SELECT database_id AS value FROM database_identity");
    let place = DataKeyPlace { database_id: database_id[0].clone(), ring: RingId(1) };
    let wrapped = format!("SELECT {} AS value FROM data_keys", site.database.hex("wrapped_key"));
    let wrapped = unhex(&site.database.rows(&wrapped)[0]);
    let data_key = DataKey::unwrap(&kek, &place, &wrapped).unwrap();
    let rows = site.database.rows(&format!(
        "SELECT id || ' ' || kid || ' ' || {} || ' ' || {} AS value FROM keys ORDER BY id",
        site.database.hex("public_key"),
        site.database.hex("sealed_private_key")
    ));
    let seed_of = |row: &String| {
        let parts: Vec<&str> = row.split(' ').collect();
        let identity = KeyIdentity {
            database_id: database_id[0].clone(),
            ring: RingId(1),
            key: KeyId(parts[0].parse().unwrap()),
            kid: Kid(parts[1].to_owned()),
            algorithm: Algorithm::Ed25519,
        };
        let public_key = unhex(parts[2]);
        let opener = Opener::DataKey(&data_key);
        unseal(opener, &identity, &public_key, &unhex(parts[3])).unwrap().seed().to_vec()
    };
    rows.iter().map(seed_of).collect()
}
