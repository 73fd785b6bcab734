//! What of a private key is in the program's memory, and who can look into it.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use rustix::process::geteuid;
use serde_json::json;
use sha2::{Digest, Sha512};

use crate::api::Served;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

/// A user who is nobody here, for programs that must not run as root.
const NOBODY: u32 = 54_321;

/// A private key that a test knows, in each form in which it may stand in memory.
struct KnownKey {
    seed: [u8; 32],
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl KnownKey {
    fn new() -> KnownKey {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let key = SigningKey::from_bytes(&seed);
        let hash = Sha512::digest(seed);
        let encoded = URL_SAFE_NO_PAD.encode(seed).into_bytes();
        let forms = vec![
            ("the seed", seed.to_vec()),
            ("the seed in base64url", encoded),
            ("the hash's first half", hash[..32].to_vec()),
            ("the scalar, clamped", key.to_scalar_bytes().to_vec()),
            ("the scalar, reduced", key.to_scalar().to_bytes().to_vec()),
            ("the prefix", hash[32..].to_vec()),
        ];
        KnownKey { seed, forms }
    }

    /// Adds it to the ring, by a service that ends then; its kid.
    fn import(&self, site: Site) -> (Site, String) {
        let served = Served::start(site);
        let public_key = SigningKey::from_bytes(&self.seed).verifying_key();
        let (x, d) = (URL_SAFE_NO_PAD.encode(public_key), URL_SAFE_NO_PAD.encode(self.seed));
        let jwk = json!({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": x, "d": d}});
        let kid = served.post("/v1/keys/import", &jwk).expect(201)["kid"].clone();
        (served.stop(), kid.as_str().unwrap().to_owned())
    }

    /// Where it stands in a process's memory, each place by the form and the mapping.
    fn found_in(&self, process: u32) -> Vec<String> {
        let mut found = Vec::new();
        let mut searched = 0;
        for (mapping, bytes) in memory(process) {
            searched += bytes.len();
            for (form, needle) in &self.forms {
                let places = bytes.windows(needle.len()).filter(|window| window == needle).count();
                found.extend((0..places).map(|_| format!("{form} in {mapping}")));
            }
        }
        assert!(searched > 8 << 20, "only {searched} bytes were searched");
        found
    }
}

/// All memory of a process that can be read, by mapping (proc(5)).
fn memory(process: u32) -> Vec<(String, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let file = File::open(format!("/proc/{process}/mem")).unwrap();
    let mut memory = Vec::new();
    for mapping in maps.lines() {
        let (range, rest) = mapping.split_once(' ').unwrap();
        let of_the_kernel = ["[vvar", "[vsyscall]"].iter().any(|name| rest.contains(name));
        if !rest.starts_with('r') || of_the_kernel {
            continue;
        }
        let (begin, end) = range.split_once('-').unwrap();
        let begin = u64::from_str_radix(begin, 16).unwrap();
        let mut bytes = vec![0; (u64::from_str_radix(end, 16).unwrap() - begin) as usize];
        let mut read = 0;
        // A mapping may end in the middle of what is read, or be gone.
        while let Ok(more @ 1..) = file.read_at(&mut bytes[read..], begin + read as u64) {
            read += more;
        }
        bytes.truncate(read);
        memory.push((mapping.to_owned(), bytes));
    }
    memory
}

/// The value of a metric, by its name with its labels.
fn metric(served: &Served, name: &str) -> f64 {
    let page = served.get("/metrics").text;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

#[test]
fn a_destroyed_key_is_nowhere_in_the_memory_of_a_node_that_signed_with_it() {
    let key = KnownKey::new();
    let site = Site::sqlite().with(1, 200);
    let (site, kid) = key.import(site);
    // A third of a lease is how long a key may stay. The memory must be there to be read by whom the
    // test runs as.
    let site = site
        .set("CHANCERY_LEASE__DURATION_S", "1")
        .set("CHANCERY_MEMORY__CORE_DUMPS", "true")
        .set("CHANCERY_SIGNING__BATCH_SIZE", "5")
        .set("CHANCERY_SIGNING__SIGNERS", "3");
    site.seed(200);
    let served = Served::start(site);
    wait_until("everything is signed", || served.site.signatures() == 400);
    let shown = served.get(&format!("/v1/keys/{kid}")).expect(200);
    assert!(shown["stored_batches"].as_u64().unwrap() > 5, "{shown}");
    assert_eq!(metric(&served, "chancery_keys_unsealed{ring=\"default\"}"), 2.0);
    let active = key.found_in(served.serve.id());
    assert!(active.iter().any(|place| place.starts_with("the seed in ")), "{active:?}");

    for change in ["disable", "destroy"] {
        served.order(&format!("/v1/keys/{kid}/{change}")).expect(200);
    }
    wait_until("the key has left the node", || {
        metric(&served, "chancery_keys_unsealed{ring=\"default\"}") == 1.0
    });
    let destroyed = key.found_in(served.serve.id());
    assert!(destroyed.is_empty(), "{destroyed:#?}");
    served.stop();
}

/// A run of the program as somebody who is not root, under a limit on locked memory in KiB.
fn run_as_nobody(site: &Site, arguments: &[&str], memlock: &str) -> Running {
    // Where nobody else may go as well: the folder of the build may be root's alone.
    let program = site.path("program");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_chancery"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let template = site.command(arguments);
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -l \"$1\" && shift && exec \"$@\"", "bash", memlock]);
    command.arg(&program).args(arguments);
    command.current_dir(template.get_current_dir().unwrap());
    for (name, value) in template.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if geteuid().is_root() {
        give_away(site.path(".").as_path());
        command.uid(NOBODY).gid(NOBODY);
    }
    site.start_command(command)
}

fn give_away(folder: &Path) {
    chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// The number behind a name in /proc/PID/status, in KiB.
fn status(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

fn owner_of_memory(process: u32) -> u32 {
    fs::metadata(format!("/proc/{process}/mem")).unwrap().uid()
}

fn core_limits(process: u32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    line.unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_node_leaves_no_core_file_and_its_memory_is_read_by_nobody_of_its_own_user() {
    let site = Site::sqlite().with(1, 0).set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
    let user = if geteuid().is_root() { NOBODY } else { geteuid().as_raw() };
    let serve = run_as_nobody(&site, &["serve"], "64");
    serve.wait_for_stderr("listening");
    assert_eq!(core_limits(serve.id()), ["0", "0", "bytes"]);
    // The kernel gives the files under /proc of a process that is not dumpable to root (proc(5)).
    assert_eq!(owner_of_memory(serve.id()), 0);
    if !geteuid().is_root() {
        let refused = File::open(format!("/proc/{}/mem", serve.id())).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    }
    stop(serve);

    // And for those who look for a mistake.
    let site = site.set("CHANCERY_MEMORY__CORE_DUMPS", "true");
    let serve = run_as_nobody(&site, &["serve"], "64");
    serve.wait_for_stderr("listening");
    assert_eq!(owner_of_memory(serve.id()), user);
    stop(serve);
}

fn stop(serve: Running) {
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);
}

#[test]
fn memory_is_locked_only_where_no_limit_makes_allocations_fail_later() {
    let site = Site::sqlite().with(1, 2_000).set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
    // A limit that the program is beyond when it starts, and one that it would run into later.
    for limit in ["64", "1000000"] {
        if !is_allowed(limit) {
            continue;
        }
        let site = Site::sqlite().with(1, 2_000).set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
        let serve = run_as_nobody(&site, &["serve"], limit);
        let hint = serve.wait_for_stderr("private keys may reach the swap");
        assert!(hint.contains("LimitMEMLOCK=infinity") && hint.contains("IPC_LOCK"), "{hint}");
        serve.wait_for_stderr("listening");
        wait_until("everything is signed", || site.signatures() == 2_000);
        assert_eq!(status(serve.id(), "VmLck"), 0);
        stop(serve);

        let site = site.set("CHANCERY_MEMORY__LOCK", "required");
        let refused = run_as_nobody(&site, &["run"], limit).wait().expect_code(2);
        refused.expect_stderr("memory.lock is \"required\", but memory cannot be locked");
        let site = site.set("CHANCERY_MEMORY__LOCK", "off");
        let ran = run_as_nobody(&site, &["run"], limit).wait().expect_code(0);
        assert!(!ran.stderr.contains("swap"), "{ran}");
    }

    // Without a limit, or as one who is free of it; who is neither must be refused.
    let site = site.set("CHANCERY_MEMORY__LOCK", "required");
    let serve = site.start(&["serve"]);
    if may_lock() {
        serve.wait_for_stderr("listening");
        wait_until("everything is signed", || site.signatures() == 2_000);
        assert!(status(serve.id(), "VmLck") > 8 << 10, "{}", status(serve.id(), "VmLck"));
        stop(serve);
    } else {
        serve.wait().expect_code(2).expect_stderr("RLIMIT_MEMLOCK is ");
    }
}

/// Whether a program may be started under that limit on locked memory, in KiB.
fn is_allowed(limit: &str) -> bool {
    let set = Command::new("bash").args(["-c", "ulimit -l \"$1\"", "bash", limit]).output();
    set.unwrap().status.success()
}

/// Whether this process could lock all of its memory: it has no limit, or the capability.
fn may_lock() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    const IPC_LOCK: u64 = 1 << 14;
    let capable = u64::from_str_radix(capabilities, 16).unwrap() & IPC_LOCK != 0;
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    capable || limit.split_whitespace().nth(3) == Some("unlimited")
}
