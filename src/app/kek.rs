//! Where the KEK comes from.

use std::path::{Path, PathBuf};

use super::UsageError;
use crate::config::{Config, DatabaseUrl};
use crate::db::Store;
use crate::keyring::{Kek, KekError};

/// The file that holds the KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekSource {
    /// The file.
    pub path: PathBuf,
    /// Whether the configuration names it; otherwise it is the one beside the SQLite database.
    pub configured: bool,
}

impl KekSource {
    /// The configured file, or the one beside an SQLite database.
    ///
    /// # Errors
    /// A [`UsageError`] on PostgreSQL without a configured file.
    pub fn of(config: &Config) -> Result<Self, UsageError> {
        if let Some(path) = &config.keys.kek_file {
            return Ok(KekSource { path: path.clone(), configured: true });
        }
        match &config.database.url {
            DatabaseUrl::Sqlite { path } => {
                let mut beside = path.as_os_str().to_owned();
                beside.push(".kek");
                Ok(KekSource { path: beside.into(), configured: false })
            }
            DatabaseUrl::Postgres { .. } => Err(UsageError(
                "no key-encryption key: set keys.kek_file (CHANCERY_KEYS__KEK_FILE) to a file made \
                 with `chancery kek generate --out FILE`"
                    .to_owned(),
            )),
        }
    }
}

/// Loads the KEK.
///
/// # Errors
/// A [`UsageError`] that says what is wrong with its file.
pub fn load_kek(config: &Config) -> anyhow::Result<Kek> {
    let source = KekSource::of(config)?;
    Kek::load_file(&source.path).map_err(|error| match error {
        KekError::NotFound { .. } => UsageError(missing(&source.path)).into(),
        other => UsageError(format!("{:#}", anyhow::Error::from(other))).into(),
    })
}

/// Loads the KEK; on an SQLite database that has no key yet, makes one beside it. The path of a
/// new one is returned, so that the user can be told.
///
/// # Errors
/// As [`load_kek`], and the database's.
pub fn load_or_make_kek(
    config: &Config,
    store: &dyn Store,
) -> anyhow::Result<(Kek, Option<PathBuf>)> {
    let source = KekSource::of(config)?;
    let may_make = !source.configured && !source.path.exists() && store.kek_checks()?.is_empty();
    if may_make {
        match Kek::generate_file(&source.path) {
            Ok(kek) => return Ok((kek, Some(source.path))),
            // Another process was faster; its KEK is the database's.
            Err(KekError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((load_kek(config)?, None))
}

fn missing(path: &Path) -> String {
    format!(
        "there is no key-encryption key at {}: point keys.kek_file (CHANCERY_KEYS__KEK_FILE) at the \
         file that sealed this database's keys",
        path.display()
    )
}
