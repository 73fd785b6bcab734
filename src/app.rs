//! The only wiring: from a configuration to running actors, and from a signal to their end.

mod connect;
mod kek;
mod node;
pub mod signals;
mod token;

use std::sync::Arc;

use crate::actors::key_set::{KeySet, KeySetError};
use crate::config::Config;
use crate::db::{Ring, Store};
use crate::http::Custody;
use crate::keyring::Keks;
use crate::keyring::pkcs11::Token;
use crate::types::{NodeId, Provider};

pub use connect::{
    Connected, MissingDatabase, ask_database, connect, wait_for_database, wait_for_signing_lock,
};
pub use kek::{ask_passphrase, load_keks, load_or_make_keks, new_passphrase, read_passphrase};
pub use node::{Mode, Node, NodeParts, NodeSnapshot, RingEnd, RingParts};
pub use token::{keys_on_token, open_token};

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

/// What a node takes to sign these rings: unseals the keys of each under the KEKs that `load_keks` loads,
/// or opens the token that has them. Either is asked for once, and only if a ring needs it.
///
/// # Errors
/// As [`unseal_keys`] and [`open_token`].
pub fn ring_parts(
    config: &Config,
    store: &Arc<dyn Store>,
    rings: &[Ring],
    load_keks: impl Fn() -> anyhow::Result<Keks>,
) -> anyhow::Result<Vec<RingParts>> {
    let mut keks: Option<Arc<Keks>> = None;
    let mut token: Option<Token> = None;
    let mut parts = Vec::with_capacity(rings.len());
    for ring in rings {
        let (keys, custody) = match ring.provider {
            Provider::Software => {
                let keks = match &keks {
                    Some(keks) => Arc::clone(keks),
                    None => Arc::clone(keks.insert(Arc::new(load_keks()?))),
                };
                let keys = unseal_keys(config, store, ring, Arc::clone(&keks))?;
                (keys, Custody::Keks(keks))
            }
            Provider::Pkcs11 => {
                let token = match &token {
                    Some(token) => token.clone(),
                    None => token.insert(open_token(config)?).clone(),
                };
                (keys_on_token(config, store, ring)?, Custody::Token(token))
            }
        };
        parts.push(RingParts { ring: ring.clone(), keys, custody });
    }
    Ok(parts)
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
