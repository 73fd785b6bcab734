//! A token in software, SoftHSM2, in a folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Site;

/// The token's label.
pub(crate) const LABEL: &str = "chancery-test";
/// The user's PIN.
pub(crate) const PIN: &str = "648219";

/// The places where systems put SoftHSM2's module.
const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

pub(crate) fn module() -> PathBuf {
    let named = std::env::var_os("CHANCERY_TEST_PKCS11_MODULE").map(PathBuf::from);
    let known = MODULES.iter().map(PathBuf::from);
    let found = named.into_iter().chain(known).find(|path| path.is_file());
    found.expect("SoftHSM2 is there: scripts/test installs it")
}

/// Makes an empty token in `folder`; the value of SOFTHSM2_CONF by which it is found.
pub(crate) fn make_token(folder: &Path, label: &str) -> PathBuf {
    let tokens = folder.join("tokens");
    fs::create_dir_all(&tokens).unwrap();
    let settings = folder.join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    fs::write(&settings, text).unwrap();
    let mut init = Command::new("softhsm2-util");
    init.args(["--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", PIN]);
    let output = init.env("SOFTHSM2_CONF", &settings).output().expect("softhsm2-util is there");
    assert!(output.status.success(), "{output:?}");
    settings
}

/// A site without a KEK, with a ring `hsm` whose keys are on a token of its own.
pub(crate) fn with_token(site: Site) -> Site {
    let settings = make_token(&site.path("."), LABEL);
    let pin_file = write_pin(&site, PIN);
    let text = |path: &Path| path.display().to_string();
    let site = site
        .unset("CHANCERY_KEYS__KEK_FILE")
        .set("SOFTHSM2_CONF", &text(&settings))
        .set("CHANCERY_PKCS11__MODULE", &text(&module()))
        .set("CHANCERY_PKCS11__TOKEN_LABEL", LABEL)
        .set("CHANCERY_PKCS11__PIN_FILE", &text(&pin_file))
        .set("CHANCERY_SIGNING__RING", "hsm");
    site.run(&["migrate"]).expect_code(0);
    site.database.execute("INSERT INTO rings (name, provider) VALUES ('hsm', 'pkcs11')");
    site
}

pub(crate) fn write_pin(site: &Site, pin: &str) -> PathBuf {
    let path = site.path("pin");
    fs::write(&path, format!("{pin}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}
