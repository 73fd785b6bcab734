//! Keys that others' tools have made, and others' tools that check what they have signed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::api::Served;
use crate::support::Site;
use crate::support::database::unhex;
use crate::support::judge::judge_by_the_program;
use crate::support::program::Signal;

on_both_databases! {
    keys_of_openssl_and_ssh_keygen_are_taken_in_and_their_makers_verify_what_they_sign,
    files_that_are_no_keys_are_refused_by_name_and_nothing_is_added,
    keys_that_are_there_already_are_named_and_left_out_only_where_that_is_asked_for,
    an_import_that_is_killed_adds_all_keys_or_none,
    a_client_of_the_key_set_in_another_language_verifies_a_signature,
}

const PASSPHRASE: &str = "correct horse";

/// Runs another program in the site's folder; it must succeed.
fn tool(site: &Site, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).current_dir(site.path(".")).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}: scripts/test installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output.stdout
}

fn openssl(site: &Site, arguments: &str) -> Vec<u8> {
    tool(site, "openssl", &arguments.split(' ').collect::<Vec<_>>())
}

fn write(site: &Site, name: &str, contents: impl AsRef<[u8]>) -> String {
    fs::write(site.path(name), contents).unwrap();
    fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    name.to_owned()
}

/// Makes a key by a tool in each way that it is taken; the files, each with the public key's PEM.
fn make_keys(site: &Site) -> Vec<(String, Vec<u8>)> {
    let mut keys = Vec::new();
    let genpkey = "genpkey -algorithm ed25519";
    for (name, arguments) in [
        ("plain.pem", format!("{genpkey} -out plain.pem")),
        ("plain.der", format!("{genpkey} -outform DER -out plain.der")),
        ("aes.pem", format!("{genpkey} -aes-256-cbc -pass file:passphrase -out aes.pem")),
    ] {
        openssl(site, &arguments);
        let public = openssl(site, &format!("pkey -in {name} -passin file:passphrase -pubout"));
        keys.push((name.to_owned(), public));
    }
    openssl(site, &format!("{genpkey} -out base.pem"));
    let convert = "pkcs8 -topk8 -in base.pem -passout file:passphrase -outform DER -out scrypt.der";
    openssl(site, &format!("{convert} -scrypt"));
    keys.push(("scrypt.der".to_owned(), openssl(site, "pkey -in base.pem -pubout")));
    for (name, passphrase) in [("ssh", ""), ("ssh-aes", PASSPHRASE)] {
        let arguments = ["-q", "-t", "ed25519", "-C", "a comment", "-N", passphrase, "-f", name];
        tool(site, "ssh-keygen", &arguments);
        keys.push((name.to_owned(), public_pem_of_ssh(site, name)));
    }
    keys
}

/// OpenSSL reads no ssh-ed25519 line, so its 32 bytes get the head of RFC 8410.
fn public_pem_of_ssh(site: &Site, name: &str) -> Vec<u8> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let line = fs::read_to_string(site.path(&format!("{name}.pub"))).unwrap();
    let blob = STANDARD.decode(line.split(' ').nth(1).unwrap()).unwrap();
    let der = [unhex("302a300506032b6570032100"), blob[blob.len() - 32..].to_vec()].concat();
    let body = STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n").into_bytes()
}

fn keys_of_openssl_and_ssh_keygen_are_taken_in_and_their_makers_verify_what_they_sign(site: Site) {
    let site = site.with(0, 0);
    write(&site, "passphrase", PASSPHRASE);
    let keys = make_keys(&site);
    let files: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
    let import =
        [&["keys", "import", "--passphrase-file", "passphrase"], files.as_slice()].concat();
    site.run(&import).expect_code(0).expect_stdout(&format!("added {} keys", keys.len()));
    let count = u32::try_from(keys.len()).unwrap();
    site.seed(count);
    site.run(&["run", "--batch-size", "1"]).expect_code(0);
    let rows = site.database.rows(&format!(
        "SELECT {} || ' ' || {} || ' ' || {} AS value FROM signed_records ORDER BY record_id",
        site.database.hex("payload"),
        site.database.hex("signature"),
        site.database.hex("public_key")
    ));
    let mut verified = 0;
    // Never-used keys take turns in order of id, and so in the order of the files.
    for ((name, public), row) in keys.iter().zip(&rows) {
        let parts: Vec<&str> = row.split(' ').collect();
        write(&site, "public.pem", public);
        write(&site, "payload", unhex(parts[0]));
        write(&site, "signature", unhex(parts[1]));
        let verify =
            "pkeyutl -verify -rawin -pubin -inkey public.pem -in payload -sigfile signature";
        let said = openssl(&site, verify);
        assert!(String::from_utf8_lossy(&said).contains("Verified Successfully"), "{name}");
        verified += 1;
    }
    assert_eq!(verified, 6);
    let secrets = site.run(&["keys", "list", "--json"]).expect_code(0).stdout;
    assert!(!secrets.contains("PRIVATE"), "{secrets}");
    judge_by_the_program(&site);
}

fn files_that_are_no_keys_are_refused_by_name_and_nothing_is_added(site: Site) {
    let site = site.with(1, 0);
    write(&site, "passphrase", PASSPHRASE);
    write(&site, "wrong", "x");
    openssl(&site, "genpkey -algorithm ed25519 -out good.pem");
    openssl(&site, "genpkey -algorithm RSA -out rsa.pem");
    openssl(&site, "genpkey -algorithm X25519 -out x25519.pem");
    openssl(&site, "pkey -in good.pem -pubout -out public.pem");
    openssl(&site, "genpkey -algorithm ed25519 -aes-128-cbc -pass file:passphrase -out aes.pem");
    let convert = "pkcs8 -topk8 -in good.pem -passout file:passphrase";
    openssl(&site, &format!("{convert} -iter 10000001 -out dear.pem"));
    openssl(&site, &format!("{convert} -v1 PBE-SHA1-3DES -out old.pem"));
    let many = fs::read_to_string(site.path("aes.pem")).unwrap().repeat(17);
    write(&site, "many.pem", many);
    let ssh = ["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "ssh-rsa"];
    tool(&site, "ssh-keygen", &ssh);
    let good = fs::read_to_string(site.path("good.pem")).unwrap();
    write(&site, "cut.pem", &good[..good.len() / 2]);
    write(&site, "empty", "");
    write(&site, "garbage", [0x93; 1000]);
    fs::create_dir(site.path("folder")).unwrap();
    let huge = fs::File::create(site.path("huge")).unwrap();
    huge.set_len(64 * 1024 * 1024).unwrap();
    let public = fs::read_to_string(site.path("public.pem")).unwrap();
    write(&site, "second-is-public.pem", format!("{good}{public}"));
    for (file, why) in [
        ("rsa.pem", "this is an RSA key: Chancery signs with Ed25519"),
        ("ssh-rsa", "this is an RSA key"),
        ("x25519.pem", "this is an X25519 key"),
        ("public.pem", "this is a public key"),
        ("second-is-public.pem", "key 2 of it: this is a public key"),
        ("cut.pem", "no Ed25519 private key of PKCS#8"),
        ("empty", "there is no private key in it"),
        ("garbage", "no private key that is known"),
        ("aes.pem", "no passphrase was given"),
        ("folder", "directory"),
        ("huge", "no file of keys has more than 16 MiB"),
        ("missing", "No such file"),
    ] {
        // The good one before it is not added either.
        let ended = site.run(&["keys", "import", "good.pem", file]).expect_code(2);
        ended.expect_stderr(&format!("error: {file}: ")).expect_stderr(why);
    }
    site.run(&["keys", "import", "--passphrase-file", "wrong", "aes.pem"])
        .expect_code(2)
        .expect_stderr("the passphrase is wrong");
    for (file, why) in [
        ("dear.pem", "would cost too much"),
        ("many.pem", "key 17 of it: opening it would cost too much"),
        ("old.pem", "must be PBES2 with AES"),
    ] {
        site.run(&["keys", "import", "--passphrase-file", "passphrase", file])
            .expect_code(2)
            .expect_stderr(why);
    }
    site.run(&["keys", "import", "--format", "jwk", "good.pem"]).expect_code(2);
    assert_eq!(site.database.number("SELECT count(*) AS value FROM keys"), 1);
    fs::set_permissions(site.path("good.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    site.run(&["keys", "import", "good.pem"]).expect_code(0).expect_stderr("mode 0644");
}

fn keys_that_are_there_already_are_named_and_left_out_only_where_that_is_asked_for(site: Site) {
    let site = site.with(0, 0);
    openssl(&site, "genpkey -algorithm ed25519 -out a.pem");
    openssl(&site, "genpkey -algorithm ed25519 -out b.pem");
    fs::copy(site.path("a.pem"), site.path("copy.pem")).unwrap();
    site.run(&["keys", "import", "a.pem", "copy.pem"])
        .expect_code(2)
        .expect_stderr("copy.pem: key ")
        .expect_stderr("is in a.pem as well");
    site.run(&["keys", "import", "a.pem"]).expect_code(0);
    let both = ["keys", "import", "b.pem", "a.pem"];
    site.run(&both)
        .expect_code(2)
        .expect_stderr("a.pem: key ")
        .expect_stderr("there already, active");
    assert_eq!(site.database.number("SELECT count(*) AS value FROM keys"), 1);
    let skipping = [both.as_slice(), &["--skip-existing"]].concat();
    site.run(&skipping).expect_code(0).expect_stdout("added 1 key");
    site.run(&skipping).expect_code(0).expect_stdout("added 0 keys");
    assert_eq!(site.database.number("SELECT count(*) AS value FROM keys"), 2);
    let input = fs::read(site.path("a.pem")).unwrap();
    site.run_with_input(&["keys", "import", "-"], input).expect_code(2).expect_stderr("-: key ");
    judge_by_the_program(&site);
}

fn an_import_that_is_killed_adds_all_keys_or_none(site: Site) {
    let site = site.with(1, 0);
    let seeds: String = (1..=50).map(|n| format!("{n:064x}\n")).collect();
    write(&site, "seeds", seeds);
    let keys = || site.database.number("SELECT count(*) AS value FROM keys");
    for (failpoint, after) in [("keys.begun=kill", 1), ("keys.committed=kill", 51)] {
        let mut import = site.command(&["keys", "import", "seeds"]);
        import.env("CHANCERY_FAILPOINTS", failpoint);
        let ended = site.run_command(import);
        assert_eq!(ended.signal, Some(Signal::KILL.as_raw()), "{ended}");
        assert_eq!(keys(), after, "{failpoint}");
    }
    site.run(&["keys", "import", "--skip-existing", "seeds"]).expect_code(0);
    assert_eq!(keys(), 51);
    site.seed(51);
    site.run(&["run", "--batch-size", "1"]).expect_code(0);
    judge_by_the_program(&site);
}

/// Python's PyJWT fetches the key set, finds the key by its kid, and checks one signature and one that
/// was changed.
const CLIENT: &str = "
import sys, jwt, cryptography.exceptions
url, kid, payload, signature = sys.argv[1:]
key = jwt.PyJWKClient(url).get_signing_key(kid).key
payload, signature = bytes.fromhex(payload), bytes.fromhex(signature)
key.verify(signature, payload)
try:
    key.verify(signature, payload + b'x')
except cryptography.exceptions.InvalidSignature:
    print('verified')
";

fn python() -> PathBuf {
    std::env::var_os("CHANCERY_TEST_PYTHON").map_or("python3".into(), PathBuf::from)
}

fn a_client_of_the_key_set_in_another_language_verifies_a_signature(site: Site) {
    let site = site.with(2, 1);
    site.run(&["run"]).expect_code(0);
    let served = Served::start(site);
    let row = served.site.database.rows(&format!(
        "SELECT kid || ' ' || {} || ' ' || {} AS value FROM signed_records",
        served.site.database.hex("payload"),
        served.site.database.hex("signature")
    ));
    let output = Command::new(python())
        .args(["-c", CLIENT, &served.url("/.well-known/jwks.json")])
        .args(row[0].split(' '))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(Path::new("/"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let hint = "scripts/test installs PyJWT, and names its Python in CHANCERY_TEST_PYTHON";
    assert_eq!(said.trim(), "verified", "{hint}: {}", String::from_utf8_lossy(&output.stderr));
    served.stop();
}
