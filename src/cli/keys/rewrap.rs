//! `chancery keys rewrap`

use std::sync::Arc;

use serde::Serialize;

use super::{actor, key_set_error};
use crate::actors::key_set::KeySetError;
use crate::actors::rewrap::rewrap;
use crate::app::{self, MissingDatabase};
use crate::cli::{Context, Outcome, output};
use crate::db::{Ring, StoreError};
use crate::types::{Kid, Provider};

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
    /// None if it is the ring's data key that does not open.
    kid: Option<Kid>,
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
        let is_sealed = |ring: &Ring| ring.provider == Provider::Software;
        for ring in store.rings()?.into_iter().filter(is_sealed) {
            let done = rewrap(store, &ring, &keks, &actor, &mut |keys| bar.inc(keys));
            let left = |(kid, reason)| Left { ring: ring.name.clone(), kid: Some(kid), reason };
            match done {
                Ok(done) => {
                    view.resealed += done.keys;
                    view.left.extend(done.left.into_iter().map(left));
                }
                // It keeps no other ring from being moved.
                Err(KeySetError::DataKey(error)) => view.left.push(Left {
                    ring: ring.name.clone(),
                    kid: None,
                    reason: error.to_string(),
                }),
                Err(error) => return Err(key_set_error(error)),
            }
        }
        bar.finish_and_clear();
        for usage in store.kek_usage()? {
            if usage.kek_id == view.kek {
                continue;
            }
            match store.forget_kek(&usage.kek_id, &actor) {
                Ok(true) => view.forgotten.push(usage.kek_id),
                // A node has just sealed another key under it.
                Ok(false) | Err(StoreError::Refused(_)) => {}
                Err(error) => return Err(error.into()),
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
            let key = kid.as_ref().map_or(String::new(), |kid| format!(", key {kid}"));
            output::print_line(&format!("ring {ring}{key} was left: {reason}"))?;
        }
        Ok(outcome)
    }
}
