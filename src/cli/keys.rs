//! `chancery keys`

mod change;
mod import;
mod rewrap;
mod token;

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

use super::{Context, Outcome, output};
use crate::actors::key_set::KeySetError;
use crate::actors::new_keys;
use crate::app::{self, MissingDatabase, UsageError};
use crate::db::{Key, Ring, Store};
use crate::keyring::{Keks, jwk};
use crate::signing::PublicKey;
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, Provider};

/// Generate, list and export signing keys, and see them through their life
#[derive(clap::Subcommand)]
pub(super) enum Keys {
    /// Generate keys, sealed under the key-encryption key or on the ring's token
    Generate {
        /// How many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
        /// Generate none if the ring has keys already
        #[arg(long)]
        if_empty: bool,
    },
    /// Take in private keys that were made elsewhere, sealed under the key-encryption key
    Import(import::Import),
    /// List the keys of the ring
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Let disabled keys sign again
    Enable(change::Change),
    /// Keep keys from signing; a use that is under way ends as usual
    Disable(change::Change),
    /// Keep keys from signing for good; their public keys stay published
    Retire(change::Change),
    /// Wipe private keys; what they have signed stays verifiable
    Destroy(change::Destroy),
    /// Move every key to the first of the configured key-encryption keys
    Rewrap(rewrap::Rewrap),
    /// Print public keys for others to verify with
    Export {
        /// jwks: a JWK set (RFC 7517, RFC 8037); pem: SubjectPublicKeyInfo (RFC 8410)
        #[arg(long, value_enum, default_value_t = ExportFormat::Jwks)]
        format: ExportFormat,
        /// Only this key
        #[arg(long, value_name = "KID", allow_hyphen_values = true)]
        kid: Option<String>,
    },
}

/// How public keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    Jwks,
    Pem,
}

impl Keys {
    pub(super) fn loads_keys(&self) -> bool {
        match self {
            Keys::Generate { .. } | Keys::Import(_) | Keys::Rewrap(_) | Keys::Destroy(_) => true,
            Keys::List { .. }
            | Keys::Enable(_)
            | Keys::Disable(_)
            | Keys::Retire(_)
            | Keys::Export { .. } => false,
        }
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Keys::Generate { count, if_empty } => generate_command(context, count, if_empty),
            Keys::Import(import) => import.run(context),
            Keys::List { json } => list(context, json),
            Keys::Enable(change) => change.run(context, KeyEvent::Enabled),
            Keys::Disable(change) => change.run(context, KeyEvent::Disabled),
            Keys::Retire(change) => change.run(context, KeyEvent::Retired),
            Keys::Destroy(destroy) => destroy.run(context),
            Keys::Rewrap(rewrap) => rewrap.run(context),
            Keys::Export { format, kid } => export(context, format, kid.as_deref()),
        }
    }
}

fn generate_command(context: &Context, count: u32, if_empty: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Create)?;
    let ring = context.ring(&database)?;
    let store = database.store.as_ref();
    if ring.provider == Provider::Pkcs11 {
        let added = token::generate(context, store, &ring, count, if_empty)?;
        return say_added(&ring, added.len() as u64);
    }
    let (keks, made) = app::load_or_make_keks(&context.config, store)?;
    say_made(made.as_deref())?;
    let added = generate(store, &ring, &keks, count, if_empty)?;
    say_added(&ring, added.len() as u64)
}

fn say_added(ring: &Ring, added: u64) -> anyhow::Result<Outcome> {
    if added == 0 {
        output::print_line(&format!("ring {} has keys already: none added", ring.name))?;
    } else {
        let keys = output::counted(added, "key");
        output::print_line(&format!("added {keys} to ring {}", ring.name))?;
    }
    Ok(Outcome::Done)
}

/// Tells of a KEK that was made just now.
fn say_made(kek: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = kek else { return Ok(()) };
    output::print_line(&format!(
        "made a key-encryption key for this database: {} (keep a copy in a safe place)",
        path.display()
    ))
}

/// Generates keys for a ring.
pub(super) fn generate(
    store: &dyn Store,
    ring: &Ring,
    keks: &Keks,
    count: u32,
    if_empty: bool,
) -> anyhow::Result<Vec<KeyId>> {
    let mut added = Vec::new();
    while let missing @ 1.. = count - u32::try_from(added.len()).unwrap_or(count) {
        let page = missing.min(MOST_AT_ONCE);
        let only_if_empty = if_empty && added.is_empty();
        let made = new_keys::generate(store, ring, keks, page, only_if_empty, &actor());
        let made = made.map_err(key_set_error)?;
        if made.is_empty() {
            break;
        }
        added.extend(made);
    }
    Ok(added)
}

/// How many keys one transaction makes: the ring is locked meanwhile, and it must end within a lease.
const MOST_AT_ONCE: u32 = 1_000;

/// What is wrong with a KEK is the user's; the rest is the database's.
pub(super) fn key_set_error(error: KeySetError) -> anyhow::Error {
    match error {
        KeySetError::Store(error) => error.into(),
        other => UsageError(other.to_string()).into(),
    }
}

/// Who acts, for the ring's history: the user of this process.
pub(super) fn actor() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "cli".to_owned())
}

fn list(context: &Context, json: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let ring = context.ring(&database)?;
    let keys = database.store.keys(ring.id)?;
    token::warn_of_leftovers(context, database.store.as_ref(), &ring);
    if json {
        output::print_json(&keys.iter().map(KeyView::from).collect::<Vec<_>>())?;
        return Ok(Outcome::Done);
    }
    if keys.is_empty() {
        output::print_line("no keys; `chancery keys generate --count 100` makes some")?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "{:<43}  {:<9} {:<6} {:>9} {:>8} {:>10}  {}",
        "KID", "STATUS", "IN USE", "LAST TICK", "BATCHES", "SIGNATURES", "REASON"
    ))?;
    for key in &keys {
        output::print_line(
            format!(
                "{:<43}  {:<9} {:<6} {:>9} {:>8} {:>10}  {}",
                key.kid,
                key.status,
                if key.in_use { "yes" } else { "no" },
                key.last_tick,
                key.stored_uses,
                key.signatures,
                key.status_reason.as_deref().unwrap_or_default()
            )
            .trim_end(),
        )?;
    }
    Ok(Outcome::Done)
}

/// A key as `keys list --json` shows it.
#[derive(serde::Serialize)]
struct KeyView<'a> {
    id: KeyId,
    kid: &'a Kid,
    algorithm: &'a str,
    public_key: String,
    status: KeyStatus,
    status_reason: Option<&'a str>,
    in_use: bool,
    last_tick: i64,
    stored_batches: u64,
    signatures: u64,
    kek_id: Option<&'a str>,
    created_at: String,
}

impl<'a> From<&'a Key> for KeyView<'a> {
    fn from(key: &'a Key) -> Self {
        use base64::Engine as _;
        KeyView {
            id: key.id,
            kid: &key.kid,
            algorithm: &key.algorithm,
            public_key: base64::engine::general_purpose::STANDARD.encode(&key.public_key),
            status: key.status,
            status_reason: key.status_reason.as_deref(),
            in_use: key.in_use,
            last_tick: key.last_tick.0,
            stored_batches: key.stored_uses,
            signatures: key.signatures,
            kek_id: key.kek_id.as_deref(),
            created_at: key.created_at.to_string(),
        }
    }
}

/// The one key whose kid begins like that.
fn find<'a>(keys: &'a [Key], kid: &str) -> Result<&'a Key, UsageError> {
    let fits: Vec<&Key> = keys.iter().filter(|key| key.kid.0.starts_with(kid)).collect();
    match fits.as_slice() {
        [key] if !kid.is_empty() => Ok(key),
        [] => Err(UsageError(format!("no key of the ring begins with {kid:?}"))),
        _ => Err(UsageError(format!("{} keys begin with {kid:?}: give more of it", fits.len()))),
    }
}

fn export(context: &Context, format: ExportFormat, kid: Option<&str>) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let ring = context.ring(&database)?;
    let keys = database.store.keys(ring.id)?;
    let chosen = match kid {
        Some(kid) => vec![find(&keys, kid)?],
        None => keys.iter().collect(),
    };
    let public_keys = chosen
        .iter()
        .map(|key| {
            PublicKey::from_bytes(&key.public_key)
                .with_context(|| format!("key {}: its public key is damaged", key.kid))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    match format {
        ExportFormat::Jwks => {
            output::print_json(&public_keys.iter().collect::<jwk::Jwks>())?;
        }
        ExportFormat::Pem => {
            for public_key in &public_keys {
                output::print_line(jwk::pem(public_key).trim_end())?;
            }
        }
    }
    Ok(Outcome::Done)
}
