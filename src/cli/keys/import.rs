//! `chancery keys import`

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use zeroize::Zeroizing;

use super::{actor, key_set_error, say_made};
use crate::actors::new_keys;
use crate::app::{self, MissingDatabase, UsageError};
use crate::cli::{Context, Outcome, output};
use crate::config::SecretSource;
use crate::db::{Ring, Store, StoreError};
use crate::keyring::jwk;
use crate::keyring::private::{self, Format};
use crate::signing::PrivateKey;
use crate::types::{Kid, Provider};

/// Take in private keys that were made elsewhere
#[derive(clap::Args)]
#[command(after_help = "\
Taken are Ed25519 keys as PKCS#8 (PEM or DER, also encrypted), OpenSSH private keys, JWKs and sets of \
them, and seeds as 64 hexadecimal digits a line. Where a file holds the public key too, it must be the \
private key's own. All files are read before anything is added, and all keys are added or none.")]
pub(in crate::cli) struct Import {
    /// Files of private keys; - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The format, if not to be told from the file
    #[arg(long, value_enum, default_value_t = FormatName::Auto)]
    format: FormatName,
    /// The file that holds the passphrase of encrypted keys [default: asked for at the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Leave out keys that the ring has already
    #[arg(long)]
    skip_existing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Auto,
    Pkcs8,
    Openssh,
    Jwk,
    Hex,
}

impl FormatName {
    fn format(self) -> Option<Format> {
        match self {
            FormatName::Auto => None,
            FormatName::Pkcs8 => Some(Format::Pkcs8),
            FormatName::Openssh => Some(Format::OpenSsh),
            FormatName::Jwk => Some(Format::Jwk),
            FormatName::Hex => Some(Format::Hex),
        }
    }
}

/// More than any file of keys has.
const LONGEST_FILE: u64 = 16 * 1024 * 1024;

/// As many keys as one transaction adds, which must end within a lease.
const MOST_KEYS: usize = 1_000;

impl Import {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let keys = self.read_all()?;
        if keys.len() > MOST_KEYS {
            let keys = output::counted(keys.len() as u64, "key");
            let message = format!("{keys} at once: give at most {MOST_KEYS}");
            return Err(UsageError(message).into());
        }
        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let store = database.store.as_ref();
        if ring.provider == Provider::Pkcs11 {
            let message = "keys are made on its token and never leave it: none is taken in";
            return Err(UsageError(format!("ring {}: {message}", ring.name)).into());
        }
        let new = self.only_new(store, &ring, keys)?;
        let (keks, made) = app::load_or_make_keks(&context.config, store)?;
        say_made(made.as_deref())?;
        if !new.is_empty() {
            let imported = new_keys::import(store, &ring, &keks, &new, &actor());
            for kid in imported.map_err(key_set_error)? {
                output::print_line(&format!("imported key {kid}"))?;
            }
        }
        let keys = output::counted(new.len() as u64, "key");
        output::print_line(&format!("added {keys} to ring {}", ring.name))?;
        Ok(Outcome::Done)
    }

    /// The keys of all files, each with the file that it came from.
    fn read_all(&self) -> anyhow::Result<Vec<(PathBuf, PrivateKey)>> {
        let mut passphrase = match &self.passphrase_file {
            Some(path) => Some(app::read_passphrase(&SecretSource::File(path.clone()))?),
            None => None,
        };
        let mut keys = Vec::new();
        for path in &self.files {
            let file = read(path)?;
            let mut read = private::read_keys(&file, self.format.format(), passphrase.as_ref());
            let is_shut = |error: &private::KeyFileError| {
                error.error == private::PrivateKeyError::NeedsPassphrase
            };
            if read.as_ref().is_err_and(is_shut)
                && let Some(typed) = app::ask_passphrase(&path.display().to_string())?
            {
                read = private::read_keys(&file, self.format.format(), Some(&typed));
                passphrase = Some(typed);
            }
            let read = read.map_err(|error| UsageError(format!("{}: {error}", path.display())))?;
            keys.extend(read.into_iter().map(|key| (path.clone(), key)));
        }
        Ok(keys)
    }

    /// The keys that are not there yet.
    fn only_new(
        &self,
        store: &dyn Store,
        ring: &Ring,
        keys: Vec<(PathBuf, PrivateKey)>,
    ) -> anyhow::Result<Vec<PrivateKey>> {
        let mut seen: HashMap<Kid, PathBuf> = HashMap::new();
        let mut new = Vec::new();
        for (path, key) in keys {
            let kid = jwk::kid(&key.public_key());
            let refuse = |what: String| UsageError(format!("{}: key {kid} {what}", path.display()));
            if let Some(first) = seen.get(&kid) {
                return Err(refuse(format!("is in {} as well", first.display())).into());
            }
            match store.key(&kid) {
                Ok(there) if there.ring == ring.id && self.skip_existing => {
                    output::print_line(&format!("key {kid} is there already, {}", there.status))?;
                }
                Ok(there) if there.ring == ring.id => {
                    let hint = "--skip-existing leaves such keys out";
                    return Err(
                        refuse(format!("is there already, {}; {hint}", there.status)).into()
                    );
                }
                Ok(_) => return Err(refuse("belongs to another ring".to_owned()).into()),
                Err(StoreError::NotFound { .. }) => new.push(key),
                Err(error) => return Err(error.into()),
            }
            seen.insert(kid, path);
        }
        Ok(new)
    }
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if path == Path::new("-") {
        let input = std::io::stdin().lock();
        input.take(LONGEST_FILE + 1).read_to_end(&mut bytes).context("standard input")?;
    } else {
        let named = |error: std::io::Error| UsageError(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            output::eprint_line(&format!(
                "warning: {} has mode {:04o}, so that others may have read its keys: chmod 600 it",
                path.display(),
                metadata.mode() & 0o7777
            ));
        }
        // In one piece, so that growing leaves no copies behind.
        bytes.reserve(usize::try_from(metadata.len().min(LONGEST_FILE)).unwrap_or(0) + 1);
        file.take(LONGEST_FILE + 1).read_to_end(&mut bytes).map_err(named)?;
    }
    if bytes.len() as u64 > LONGEST_FILE {
        let message = format!("{}: no file of keys has more than 16 MiB", path.display());
        return Err(UsageError(message).into());
    }
    Ok(bytes)
}
