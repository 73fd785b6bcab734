//! `chancery keys rewrap`

use std::sync::Arc;

use serde::Serialize;

use super::{actor, key_set_error};
use crate::actors::rewrap::rewrap;
use crate::app::{self, MissingDatabase};
use crate::cli::{Context, Outcome, output};
use crate::types::Kid;

/// Move the keys of every ring to the first of the configured key-encryption keys
#[derive(clap::Args)]
#[command(after_help = "\
Put the new KEK first in keys.kek_sources and the old one behind it, restart the nodes, and run this. \
Each key is opened, sealed anew, and opened again before the old seal is replaced; nodes sign \
meanwhile. It may be cut off anywhere and run again. When no key needs it any more, the database \
forgets the old KEK, and it can be taken out of the configuration.")]
pub(in crate::cli) struct Rewrap {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct View {
    kek: String,
    resealed: u64,
    forgotten: Vec<String>,
    /// Keys that still need another KEK.
    left: Vec<Left>,
}

#[derive(Serialize)]
struct Left {
    ring: String,
    kid: Kid,
    reason: String,
}

impl Rewrap {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let store = &database.store;
        let keks = Arc::new(app::load_keks(&context.config)?);
        let actor = actor();
        let total = store.kek_usage()?.iter().map(|usage| usage.keys).sum();
        let bar = output::key_bar("rewrap", total);
        let kek = keks.first().id().0;
        let mut view = View { kek, resealed: 0, forgotten: Vec::new(), left: Vec::new() };
        for ring in store.rings()? {
            let done = rewrap(store, &ring, &keks, &actor, &mut |keys| bar.inc(keys));
            let done = done.map_err(key_set_error)?;
            view.resealed += done.keys;
            let left = |(kid, reason)| Left { ring: ring.name.clone(), kid, reason };
            view.left.extend(done.left.into_iter().map(left));
        }
        bar.finish_and_clear();
        for usage in store.kek_usage()? {
            if usage.kek_id != view.kek && store.forget_kek(&usage.kek_id, &actor)? {
                view.forgotten.push(usage.kek_id);
            }
        }
        let outcome = if view.left.is_empty() { Outcome::Done } else { Outcome::Interrupted };
        if self.json {
            output::print_json(&view)?;
            return Ok(outcome);
        }
        let keys = output::counted(view.resealed, "key");
        output::print_line(&format!("moved {keys} to the KEK {}", view.kek))?;
        for kek in &view.forgotten {
            output::print_line(&format!("nothing needs the KEK {kek} any more"))?;
        }
        for Left { ring, kid, reason } in &view.left {
            output::print_line(&format!("ring {ring}, key {kid} was left: {reason}"))?;
        }
        Ok(outcome)
    }
}
