//! Where hardware keys come from: the token of the configuration.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use zeroize::Zeroizing;

use super::{UsageError, ask_for_keys};
use crate::actors::key_set::KeySet;
use crate::config::Config;
use crate::db::{Ring, Store};
use crate::keyring::pkcs11::{Token, TokenSettings};
use crate::keyring::private_file::{self, Custody};

/// The longest PIN.
const PIN_BYTES: usize = 1024;

/// Opens the token of the section `[pkcs11]`, and logs in to it.
///
/// # Errors
/// A [`UsageError`] that says what is wrong: a key of the section, the module, the token, its PIN.
pub fn open_token(config: &Config) -> anyhow::Result<Token> {
    let section = &config.pkcs11;
    let module = set("module", section.module.as_ref())?.clone();
    let token_label = set("token_label", section.token_label.as_ref())?.clone();
    let pin = read_pin(set("pin_file", section.pin_file.as_ref())?)?;
    let token = Token::open(TokenSettings { module, token_label, pin });
    token.map_err(|error| match error.is_retryable() {
        true => error.into(),
        false => UsageError(error.to_string()).into(),
    })
}

/// The names of a ring's keys on the token.
///
/// # Errors
/// The database's.
pub fn keys_on_token(
    config: &Config,
    store: &Arc<dyn Store>,
    ring: &Ring,
) -> anyhow::Result<KeySet> {
    let mut keys = KeySet::on_token(Arc::clone(store), ring.id);
    for key in ask_for_keys(config, || keys.refresh())? {
        tracing::error!(kid = %key.kid, reason = key.reason, "disabled a damaged key");
    }
    Ok(keys)
}

fn set<'a, T>(name: &str, value: Option<&'a T>) -> Result<&'a T, UsageError> {
    value.ok_or_else(|| {
        UsageError(format!(
            "the ring's keys are on a token (provider pkcs11): set pkcs11.{name} \
             (CHANCERY_PKCS11__{})",
            name.to_ascii_uppercase()
        ))
    })
}

/// The PIN: the file's one line, without its newline.
fn read_pin(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let usage = |text: String| anyhow::Error::from(UsageError(text));
    let bytes = private_file::read("PIN file", path, Custody::Own, PIN_BYTES)
        .map_err(|error| usage(format!("{:#}", anyhow::Error::from(error))))?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let pin = std::str::from_utf8(line)
        .ok()
        .filter(|pin| !pin.is_empty() && !pin.contains(char::is_control));
    let pin = pin.with_context(|| {
        format!("PIN file {} must hold the PIN alone, on one line", path.display())
    });
    pin.map(|pin| Zeroizing::new(pin.to_owned())).map_err(|error| usage(error.to_string()))
}
