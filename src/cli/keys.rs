//! `chancery keys`

use anyhow::Context as _;
use clap::ValueEnum;

use super::{Context, Outcome, output};
use crate::actors::key_set::KeySetError;
use crate::actors::new_keys;
use crate::app::{self, MissingDatabase, UsageError};
use crate::db::{Key, Ring, Store};
use crate::keyring::{Kek, jwk};
use crate::signing::PublicKey;
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid};

/// Generate, list, export, enable and disable signing keys
#[derive(clap::Subcommand)]
pub(super) enum Keys {
    /// Generate keys, sealed under the key-encryption key
    Generate {
        /// How many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
        /// Generate none if the ring has keys already
        #[arg(long)]
        if_empty: bool,
    },
    /// List the keys of the ring
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Let disabled keys sign again
    Enable {
        /// Key ids, or beginnings of them that fit one key only
        #[arg(required = true, value_name = "KID")]
        kids: Vec<String>,
    },
    /// Keep keys from signing; a use that is under way ends as usual
    Disable {
        /// Key ids, or beginnings of them that fit one key only
        #[arg(required = true, value_name = "KID")]
        kids: Vec<String>,
        /// Why; it is kept with the key
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
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
            Keys::Generate { .. } => true,
            Keys::List { .. }
            | Keys::Enable { .. }
            | Keys::Disable { .. }
            | Keys::Export { .. } => false,
        }
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Keys::Generate { count, if_empty } => generate_command(context, count, if_empty),
            Keys::List { json } => list(context, json),
            Keys::Enable { kids } => change(context, &kids, KeyEvent::Enabled, None),
            Keys::Disable { kids, reason } => {
                change(context, &kids, KeyEvent::Disabled, reason.as_deref())
            }
            Keys::Export { format, kid } => export(context, format, kid.as_deref()),
        }
    }
}

fn generate_command(context: &Context, count: u32, if_empty: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Create)?;
    let ring = context.ring(&database)?;
    let store = database.store.as_ref();
    let (kek, made) = app::load_or_make_kek(&context.config, store)?;
    if let Some(path) = made {
        output::print_line(&format!(
            "made a key-encryption key for this database: {} (keep a copy in a safe place)",
            path.display()
        ))?;
    }
    let added = generate(store, &ring, &kek, count, if_empty)?;
    let added = added.len() as u64;
    if added == 0 {
        output::print_line(&format!("ring {} has keys already: none added", ring.name))?;
    } else {
        let keys = output::counted(added, "key");
        output::print_line(&format!("added {keys} to ring {}", ring.name))?;
    }
    Ok(Outcome::Done)
}

/// Generates keys for a ring.
pub(super) fn generate(
    store: &dyn Store,
    ring: &Ring,
    kek: &Kek,
    count: u32,
    if_empty: bool,
) -> anyhow::Result<Vec<KeyId>> {
    let added = new_keys::generate(store, ring, kek, count, if_empty, &actor());
    added.map_err(|error| match error {
        KeySetError::Store(error) => anyhow::Error::from(error),
        other => UsageError(other.to_string()).into(),
    })
}

/// Who acts, for the ring's history: the user of this process.
pub(super) fn actor() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "cli".to_owned())
}

fn list(context: &Context, json: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let ring = context.ring(&database)?;
    let keys = database.store.keys(ring.id)?;
    if json {
        output::print_json(&keys.iter().map(KeyView::from).collect::<Vec<_>>())?;
        return Ok(Outcome::Done);
    }
    if keys.is_empty() {
        output::print_line("no keys; `chancery keys generate --count 100` makes some")?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "{:<43}  {:<9} {:<6} {:>9} {:>8}  {}",
        "KID", "STATUS", "IN USE", "LAST TICK", "BATCHES", "REASON"
    ))?;
    for key in &keys {
        output::print_line(
            format!(
                "{:<43}  {:<9} {:<6} {:>9} {:>8}  {}",
                key.kid,
                key.status,
                if key.in_use { "yes" } else { "no" },
                key.last_tick,
                key.stored_uses,
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
            created_at: key.created_at.to_string(),
        }
    }
}

fn change(
    context: &Context,
    kids: &[String],
    event: KeyEvent,
    reason: Option<&str>,
) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let ring = context.ring(&database)?;
    let keys = database.store.keys(ring.id)?;
    // All names are looked up before anything changes.
    let kids = kids.iter().map(|kid| find(&keys, kid)).collect::<Result<Vec<_>, _>>()?;
    for key in kids {
        let changed = database.store.change_key(&key.kid, event, &actor(), reason)?;
        let verb = if changed { "is now" } else { "was already" };
        output::print_line(&format!("key {} {verb} {}", key.kid, event.status()))?;
    }
    Ok(Outcome::Done)
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
