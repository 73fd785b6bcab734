//! A real text, signed, and its signatures checked by OpenSSL with the keys that we publish.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::Site;
use crate::support::database::unhex;
use crate::support::judge::judge;

on_both_databases! {
    openssl_verifies_signatures_over_a_real_text,
}

/// A dictionary of Debian's package `skkdic`: Japanese in EUC-JP, one entry a line.
const CORPUS: &str = "/usr/share/skk/SKK-JISYO.L";

/// The text's lines, without their newlines.
fn corpus() -> (PathBuf, Vec<Vec<u8>>) {
    let path = std::env::var_os("CHANCERY_TEST_CORPUS").map_or(CORPUS.into(), PathBuf::from);
    let text = fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}: scripts/test installs this text", path.display())
    });
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    (path, text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect())
}

/// A signature as it stands in the database.
pub(crate) struct Signed {
    pub(crate) kid: String,
    pub(crate) payload: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// The signed records for which the SQL condition holds, in their order.
    pub(crate) fn find(site: &Site, condition: &str) -> Vec<Signed> {
        let rows = site.database.rows(&format!(
            "SELECT kid || ' ' || {} || ' ' || {} AS value FROM signed_records
             WHERE {condition} ORDER BY record_id",
            site.database.hex("payload"),
            site.database.hex("signature")
        ));
        let signed = |row: &String| {
            let parts: Vec<&str> = row.split(' ').collect();
            let kid = parts[0].to_owned();
            Signed { kid, payload: unhex(parts[1]), signature: unhex(parts[2]) }
        };
        rows.iter().map(signed).collect()
    }

    /// Whether OpenSSL takes the signature for one over `payload`.
    pub(crate) fn openssl_verifies(&self, folder: &Path, key: &Path, payload: &[u8]) -> bool {
        let (payload_file, signature_file) = (folder.join("payload"), folder.join("signature"));
        fs::write(&payload_file, payload).unwrap();
        fs::write(&signature_file, &self.signature).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"]).arg(key);
        openssl.arg("-in").arg(&payload_file).arg("-sigfile").arg(&signature_file);
        let output = openssl.output().expect("openssl is there: scripts/test installs it");
        let said = String::from_utf8_lossy(&output.stdout);
        // Anything but a clear answer, a file that cannot be read, say, is no verdict.
        match (output.status.code(), said.trim_end()) {
            (Some(0), "Signature Verified Successfully") => true,
            (Some(1), "Signature Verification Failure") => false,
            _ => panic!("{output:?}"),
        }
    }
}

fn openssl_verifies_signatures_over_a_real_text(site: Site) {
    let (path, lines) = corpus();
    let lengths = || lines.iter().map(Vec::len);
    let (shortest, longest) = (lengths().min().unwrap(), lengths().max().unwrap());
    assert!(lines.len() >= 100_000, "{} lines", lines.len());
    assert!(shortest < 10 && longest > 1_000, "{shortest} to {longest} bytes a line");
    assert!(lines.iter().any(|line| std::str::from_utf8(line).is_err()), "all is UTF-8");

    let site = site.with(100, 0);
    site.run(&["import", &path.display().to_string(), "--format", "lines"]).expect_code(0);
    let ended = site.run(&["run"]).expect_code(0);
    ended.expect_stdout(" with 100 keys in ");
    judge(&site, lines.len().try_into().unwrap());

    // Ids count from 1 in the order of the lines, so that line n is record n.
    let line_of = |length| lines.iter().position(|line| line.len() == length).unwrap() + 1;
    let step = lines.len() / 40;
    let condition = format!(
        "record_id IN ({}, {}) OR record_id % {step} = 0",
        line_of(shortest),
        line_of(longest)
    );
    let sample = Signed::find(&site, &condition);
    let payloads: BTreeSet<&[u8]> = sample.iter().map(|signed| &signed.payload[..]).collect();
    let kids: BTreeSet<&str> = sample.iter().map(|signed| signed.kid.as_str()).collect();
    assert!(payloads.len() >= 40 && kids.len() >= 25, "{} by {}", payloads.len(), kids.len());
    for length in [shortest, longest] {
        assert!(payloads.contains(&lines[line_of(length) - 1][..]), "the line of {length} bytes");
    }
    assert!(payloads.iter().any(|payload| !payload.is_ascii()));

    let key = site.path("key.pem");
    for signed in &sample {
        assert!(lines.contains(&signed.payload));
        let export = ["keys", "export", "--format", "pem", "--kid", &signed.kid];
        fs::write(&key, site.run(&export).expect_code(0).stdout).unwrap();
        let verifies = |payload: &[u8]| signed.openssl_verifies(&site.path("."), &key, payload);
        assert!(verifies(&signed.payload), "{:?}", signed.payload);
        let mut flipped = signed.payload.clone();
        flipped[0] ^= 1;
        assert!(!verifies(&flipped), "{flipped:?}");
    }
}
