//! The only wiring: from a configuration to running actors, and from a signal to their end.

mod connect;
mod kek;
mod node;
pub mod signals;

use std::sync::Arc;

use crate::actors::key_set::{KeySet, KeySetError};
use crate::config::Config;
use crate::db::{Ring, Store};
use crate::keyring::Keks;
use crate::types::NodeId;

pub use connect::{
    Connected, MissingDatabase, ask_database, connect, wait_for_database, wait_for_signing_lock,
};
pub use kek::{ask_passphrase, load_keks, load_or_make_keks, new_passphrase, read_passphrase};
pub use node::{Mode, Node, NodeParts, NodeSnapshot, RingEnd, RingParts};

/// A mistake of the user's, as opposed to a failure: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// This start of this process: name, process id and a random part.
///
/// # Errors
/// If the operating system gives no randomness.
pub fn node_id(config: &Config) -> anyhow::Result<NodeId> {
    let name: String = config
        .node
        .name
        .clone()
        .unwrap_or_else(|| config.node.host())
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(30)
        .collect();
    let random = getrandom::u32().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(NodeId(format!("{name}-{}-{random:08x}", std::process::id())))
}

/// What a node takes to sign these rings: unseals the keys of each.
///
/// # Errors
/// As [`unseal_keys`].
pub fn ring_parts(
    config: &Config,
    store: &Arc<dyn Store>,
    rings: &[Ring],
    keks: &Arc<Keks>,
) -> anyhow::Result<Vec<RingParts>> {
    let parts = rings.iter().map(|ring| {
        let keys = unseal_keys(config, store, ring, Arc::clone(keks))?;
        Ok(RingParts { ring: ring.clone(), keys })
    });
    parts.collect()
}

/// Unseals a ring's keys, and disables those that are damaged.
///
/// # Errors
/// A [`UsageError`] if the KEKs are wrong, and the database's.
pub fn unseal_keys(
    config: &Config,
    store: &Arc<dyn Store>,
    ring: &Ring,
    keks: Arc<Keks>,
) -> anyhow::Result<KeySet> {
    let mut keys =
        ask_for_keys(config, || KeySet::new(Arc::clone(store), ring.id, Arc::clone(&keks)))?;
    for key in ask_for_keys(config, || keys.refresh())? {
        tracing::error!(kid = %key.kid, reason = key.reason, "disabled a damaged key");
    }
    Ok(keys)
}

/// As [`ask_database`]; what is wrong with the KEK is the user's.
fn ask_for_keys<T>(
    config: &Config,
    mut ask: impl FnMut() -> Result<T, KeySetError>,
) -> anyhow::Result<T> {
    let answer = ask_database(config, || match ask() {
        Err(KeySetError::Store(error)) => Err(error),
        answer => Ok(answer),
    });
    answer?.map_err(|error| UsageError(error.to_string()).into())
}
