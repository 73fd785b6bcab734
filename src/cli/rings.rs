//! `chancery rings`

use super::{Context, Outcome, keys, output};
use crate::app::MissingDatabase;
use crate::config::is_ring_name;
use crate::db::{KeyCounts, Ring};
use crate::types::Provider;

/// Make and list rings, each with keys, records, order and batch size of its own
#[derive(clap::Subcommand)]
pub(super) enum Rings {
    /// Make a ring, without keys and records
    Create {
        /// 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// Where its private keys are used, for good: software, or pkcs11
        #[arg(long, value_name = "PROVIDER", default_value_t = Provider::Software)]
        provider: Provider,
    },
    /// List the rings
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
}

fn name(text: &str) -> Result<String, String> {
    if is_ring_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a ring's name has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a \
             digit"
            .to_owned())
    }
}

impl Rings {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            Rings::Create { name, provider } => create(context, &name, provider),
            Rings::List { json } => list(context, json),
        }
    }
}

fn create(context: &Context, name: &str, provider: Provider) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Create)?;
    let ring = database.store.create_ring(name, provider, &keys::actor())?;
    output::print_line(&format!(
        "made ring {} ({}) in {}; `chancery keys generate --count 100 --ring {}` gives it keys",
        ring.name, ring.provider, database.name, ring.name
    ))?;
    Ok(Outcome::Done)
}

fn list(context: &Context, json: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let mut views = Vec::new();
    for ring in database.store.rings()? {
        views.push(RingView::of(ring, database.store.as_ref())?);
    }
    if json {
        output::print_json(&views)?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "{:<24} {:<9} {:<7} {:>12} {:>12}",
        "NAME", "PROVIDER", "PAUSED", "ACTIVE KEYS", "TICK"
    ))?;
    for view in &views {
        output::print_line(&format!(
            "{:<24} {:<9} {:<7} {:>12} {:>12}",
            view.name,
            view.provider,
            if view.paused { "yes" } else { "no" },
            output::count(view.keys.active),
            output::count(view.tick.unsigned_abs())
        ))?;
    }
    Ok(Outcome::Done)
}

/// A ring as `rings list --json` shows it.
#[derive(serde::Serialize)]
struct RingView {
    name: String,
    provider: Provider,
    paused: bool,
    tick: i64,
    keys: KeyCounts,
}

impl RingView {
    fn of(ring: Ring, store: &dyn crate::db::Store) -> anyhow::Result<RingView> {
        Ok(RingView {
            keys: store.key_counts(ring.id)?,
            name: ring.name,
            provider: ring.provider,
            paused: ring.paused,
            tick: ring.tick.0,
        })
    }
}
