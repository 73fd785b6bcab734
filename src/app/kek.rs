//! Where the KEKs come from.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use zeroize::Zeroizing;

use super::UsageError;
use crate::config::{Config, DatabaseUrl, SecretSource};
use crate::db::Store;
use crate::keyring::private_file::Reason;
use crate::keyring::{
    Kek, KekError, Keks, LONGEST_KEK_TEXT, LoadedKek, Passphrase, SecretError, read_secret,
};

/// The sources of the KEKs, and whether the configuration names them; otherwise it is the file beside
/// the SQLite database.
struct Sources {
    all: Vec<SecretSource>,
    configured: bool,
}

impl Sources {
    fn of(config: &Config) -> Result<Self, UsageError> {
        let keys = &config.keys;
        match (&keys.kek_file, keys.kek_sources.as_slice()) {
            (Some(_), [_, ..]) => Err(UsageError(
                "keys.kek_file and keys.kek_sources are both set: put file:PATH among the sources \
                 and remove kek_file"
                    .to_owned(),
            )),
            (Some(path), []) => {
                Ok(Sources { all: vec![SecretSource::File(path.clone())], configured: true })
            }
            (None, sources @ [_, ..]) => Ok(Sources { all: sources.to_vec(), configured: true }),
            (None, []) => match &config.database.url {
                DatabaseUrl::Sqlite { path } => {
                    let beside = SecretSource::File(kek_beside(path));
                    Ok(Sources { all: vec![beside], configured: false })
                }
                DatabaseUrl::Postgres { .. } => Err(UsageError(
                    "no key-encryption key: set keys.kek_file (CHANCERY_KEYS__KEK_FILE) to a file \
                     made with `chancery kek generate --out FILE`, or keys.kek_sources"
                        .to_owned(),
                )),
            },
        }
    }
}

fn kek_beside(database: &Path) -> PathBuf {
    let mut beside = database.as_os_str().to_owned();
    beside.push(".kek");
    beside.into()
}

/// Loads the KEKs.
///
/// # Errors
/// A [`UsageError`] that says what is wrong with which source.
pub fn load_keks(config: &Config) -> anyhow::Result<Keks> {
    let sources = Sources::of(config)?;
    let mut passphrase = None;
    let mut loaded = Vec::with_capacity(sources.all.len());
    for source in sources.all {
        let name = source.to_string();
        let text =
            read_secret("KEK file", &source, LONGEST_KEK_TEXT).map_err(|error| match &error {
                SecretError::File(file) if matches!(file.reason, Reason::NotFound) => {
                    UsageError(format!("{error}; {MISSING}"))
                }
                _ => usage(error),
            })?;
        if Kek::needs_passphrase(&text) && passphrase.is_none() {
            passphrase = known_passphrase(config, &name)?;
        }
        let kek = Kek::parse(&text, &name, passphrase.as_ref()).map_err(usage)?;
        loaded.push(LoadedKek { kek, source: name });
    }
    Keks::of(loaded).context("no KEK")
}

const MISSING: &str = "point keys.kek_file (CHANCERY_KEYS__KEK_FILE) at the file that sealed this \
                       database's keys; `chancery kek generate --out FILE` makes one for a new database";

/// Loads the KEKs; on an SQLite database that has no key yet, makes one beside it. The path of a
/// new one is returned, so that the user can be told.
///
/// # Errors
/// As [`load_keks`], and the database's.
pub fn load_or_make_keks(
    config: &Config,
    store: &dyn Store,
) -> anyhow::Result<(Keks, Option<PathBuf>)> {
    let sources = Sources::of(config)?;
    if let ([SecretSource::File(path)], false) = (sources.all.as_slice(), sources.configured)
        && !path.exists()
        && store.kek_checks()?.is_empty()
    {
        match Kek::generate_file(path, None) {
            Ok(kek) => {
                let source = SecretSource::File(path.clone()).to_string();
                return Ok((Keks::one(kek, source), Some(path.clone())));
            }
            // Another process was faster; its KEK is the database's.
            Err(KekError::File(error)) if matches!(error.reason, Reason::Exists) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((load_keks(config)?, None))
}

/// The passphrase of encrypted KEKs: the configured one, or what is typed at the terminal; `None` where
/// there is neither.
fn known_passphrase(config: &Config, kek: &str) -> anyhow::Result<Option<Passphrase>> {
    if let Some(source) = &config.keys.kek_passphrase {
        return read_passphrase(source).map(Some);
    }
    ask_passphrase(&format!("the KEK of {kek}"))
}

/// Asks for the passphrase of `what` at the terminal; `None` where there is none, or nothing is typed.
///
/// # Errors
/// If the terminal cannot be read.
pub fn ask_passphrase(what: &str) -> anyhow::Result<Option<Passphrase>> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let typed = rpassword::prompt_password(format!("Passphrase of {what}: "));
    Ok(Passphrase::of(typed.context("cannot read the passphrase")?.into_bytes()))
}

/// A passphrase for a new KEK: the configured one, or what is typed at the terminal, twice.
///
/// # Errors
/// A [`UsageError`] if there is neither, or the two differ.
pub fn new_passphrase(config: &Config) -> anyhow::Result<Passphrase> {
    if let Some(source) = &config.keys.kek_passphrase {
        return read_passphrase(source);
    }
    if !std::io::stdin().is_terminal() {
        return Err(UsageError(
            "no passphrase: set keys.kek_passphrase (CHANCERY_KEYS__KEK_PASSPHRASE) to where it is, \
             such as file:PATH, or start this at a terminal"
                .to_owned(),
        )
        .into());
    }
    let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new);
    let typed = ask("Passphrase: ").context("cannot read it")?;
    let again = ask("Once more: ").context("cannot read it")?;
    if typed != again {
        return Err(UsageError("the two passphrases differ".to_owned()).into());
    }
    let passphrase = Passphrase::of(typed.as_bytes().to_vec());
    passphrase.ok_or_else(|| UsageError("the passphrase is empty".to_owned()).into())
}

/// Reads a passphrase from where it is.
///
/// # Errors
/// A [`UsageError`] that says what is wrong with the source.
pub fn read_passphrase(source: &SecretSource) -> anyhow::Result<Passphrase> {
    let text = read_secret("passphrase file", source, 1024).map_err(usage)?;
    let passphrase = Passphrase::of(text.to_vec());
    passphrase.ok_or_else(|| UsageError(format!("the passphrase of {source} is empty")).into())
}

fn usage(error: impl Into<anyhow::Error>) -> UsageError {
    UsageError(format!("{:#}", error.into()))
}
