//! `chancery kek`

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::keys::{actor, key_set_error};
use super::{Context, Outcome, output};
use crate::actors::key_set::KeySetError;
use crate::actors::rewrap;
use crate::app::{self, MissingDatabase, UsageError};
use crate::db::Ring;
use crate::keyring::private_file::Reason;
use crate::keyring::{Kek, KekError, KekId};
use crate::types::Provider;

/// Make, check and list key-encryption keys
#[derive(clap::Subcommand)]
pub(super) enum KekCommand {
    /// Make a key-encryption key in a new file of mode 0600; never overwrites
    Generate {
        /// The file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Encrypt it under a passphrase: the one at keys.kek_passphrase, or else one that is asked for
        #[arg(long)]
        passphrase: bool,
    },
    /// Load the configured key-encryption keys, and try them on every key of the database
    Check,
    /// Make the database forget a key-encryption key that no key is sealed under
    Forget {
        /// The KEK's id, as `kek list` shows it
        #[arg(value_name = "KEK")]
        kek_id: String,
    },
    /// List the key-encryption keys that the database knows, and what needs them
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
}

impl KekCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            KekCommand::Generate { out, passphrase } => generate(context, &out, passphrase),
            KekCommand::Check => check(context),
            KekCommand::Forget { kek_id } => forget(context, &kek_id),
            KekCommand::List { json } => list(context, json),
        }
    }
}

fn generate(context: &Context, out: &std::path::Path, encrypt: bool) -> anyhow::Result<Outcome> {
    let passphrase = if encrypt { Some(app::new_passphrase(&context.config)?) } else { None };
    let kek = Kek::generate_file(out, passphrase.as_ref()).map_err(|error| match &error {
        KekError::File(file) if matches!(file.reason, Reason::Exists) => {
            anyhow::Error::from(UsageError(error.to_string()))
        }
        _ => error.into(),
    })?;
    let id = kek.id().0;
    output::print_line(&format!("made the key-encryption key {id} in {}", out.display()))?;
    output::print_line("keep a copy in a safe place: without it no private key can be opened")?;
    Ok(Outcome::Done)
}

fn check(context: &Context) -> anyhow::Result<Outcome> {
    let keks = Arc::new(app::load_keks(&context.config)?);
    for (number, loaded) in keks.iter().enumerate() {
        let duty = if number == 0 { "seals and opens" } else { "opens" };
        output::print_line(&format!("KEK {} from {}: {duty}", loaded.kek.id(), loaded.source))?;
    }
    let database = context.connect(MissingDatabase::Refuse)?;
    let store = &database.store;
    let mut shut = 0;
    let is_sealed = |ring: &Ring| ring.provider == Provider::Software;
    for ring in store.rings()?.into_iter().filter(is_sealed) {
        let checked = match rewrap::check(store, &ring, &keks) {
            Ok(checked) => checked,
            Err(KeySetError::DataKey(error)) => {
                output::print_line(&format!("ring {}: {error}", ring.name))?;
                shut += 1;
                continue;
            }
            Err(error) => return Err(key_set_error(error)),
        };
        let keys = output::counted(checked.keys, "sealed key");
        output::print_line(&format!("ring {}: {keys} open", ring.name))?;
        for (_, reason) in &checked.left {
            output::print_line(&format!("  {reason}"))?;
        }
        shut += checked.left.len();
    }
    Ok(if shut == 0 { Outcome::Done } else { Outcome::Interrupted })
}

fn forget(context: &Context, kek_id: &str) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let store = &database.store;
    let Some(usage) = store.kek_usage()?.into_iter().find(|kek| kek.kek_id == kek_id) else {
        return Err(UsageError(format!("the database knows no KEK {kek_id}")).into());
    };
    if !store.forget_kek(kek_id, &actor())? {
        let keys = output::counted(usage.keys, "key");
        return Err(UsageError(format!(
            "{keys} sealed under the KEK {kek_id}: `chancery keys rewrap` moves them to another"
        ))
        .into());
    }
    output::print_line(&format!("forgot the KEK {kek_id}"))?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct KekView {
    kek_id: String,
    created_at: String,
    keys: u64,
    data_keys: u64,
    /// Where it was loaded from; none if this configuration does not have it.
    source: Option<String>,
    /// Whether it seals new keys.
    seals: bool,
}

fn list(context: &Context, json: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    // A list is wanted most of all where a KEK is missing.
    let keks = match app::load_keks(&context.config) {
        Ok(keks) => Some(keks),
        Err(error) => {
            tracing::warn!("no KEK is loaded: {error:#}");
            None
        }
    };
    let mut views = Vec::new();
    for usage in database.store.kek_usage()? {
        let id = KekId(usage.kek_id.clone());
        let loaded = keks.iter().flat_map(|keks| keks.iter()).find(|kek| kek.kek.id() == id);
        views.push(KekView {
            kek_id: usage.kek_id,
            created_at: usage.created_at.to_string(),
            keys: usage.keys,
            data_keys: usage.data_keys,
            source: loaded.map(|loaded| loaded.source.clone()),
            seals: keks.as_ref().is_some_and(|keks| keks.first().id() == id),
        });
    }
    if json {
        output::print_json(&views)?;
        return Ok(Outcome::Done);
    }
    if views.is_empty() {
        output::print_line("no key of this database has been sealed yet")?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "{:<16}  {:>8}  {:<27}  {}",
        "KEK", "KEYS", "SINCE", "LOADED FROM"
    ))?;
    for view in &views {
        let source = view.source.as_deref().unwrap_or("not loaded here");
        let seals = if view.seals { " (seals new keys)" } else { "" };
        output::print_line(&format!(
            "{:<16}  {:>8}  {:<27}  {source}{seals}",
            view.kek_id, view.keys, view.created_at
        ))?;
    }
    Ok(Outcome::Done)
}
