//! Keys of rings whose provider is pkcs11.

use super::actor;
use crate::actors::token_keys::{self, TokenKeysError};
use crate::app::{self, UsageError};
use crate::cli::Context;
use crate::db::{Ring, Store};
use crate::types::{KeyEvent, KeyId, Provider};

/// Generates keys on the ring's token.
pub(super) fn generate(
    context: &Context,
    store: &dyn Store,
    ring: &Ring,
    count: u32,
    if_empty: bool,
) -> anyhow::Result<Vec<KeyId>> {
    let token = app::open_token(&context.config)?;
    let added = token_keys::generate(store, ring, &token, count, if_empty, &actor());
    added.map_err(|error| match error {
        TokenKeysError::Store(error) => error.into(),
        other if other.is_retryable() => other.into(),
        other => UsageError(other.to_string()).into(),
    })
}

/// Wipes on the ring's token, if its keys are on one, what the database calls destroyed, now or from an
/// earlier time; if that fails, it is done by asking for the same again.
pub(super) fn wipe_destroyed(
    context: &Context,
    store: &dyn Store,
    ring: &Ring,
    event: KeyEvent,
) -> anyhow::Result<()> {
    if event != KeyEvent::Destroyed || ring.provider != Provider::Pkcs11 {
        return Ok(());
    }
    let token = app::open_token(&context.config)?;
    Ok(token_keys::wipe_destroyed(store, ring.id, &token)?)
}

/// Tells of keys on the token that no ring uses. A token that cannot be asked keeps nobody from seeing
/// the list.
pub(super) fn warn_of_leftovers(context: &Context, store: &dyn Store, ring: &Ring) {
    if ring.provider != Provider::Pkcs11 || context.config.pkcs11.module.is_none() {
        return;
    }
    let leftovers = app::open_token(&context.config)
        .and_then(|token| Ok(token_keys::leftovers(store, &token)?));
    match leftovers {
        Ok(labels) => {
            for label in labels {
                tracing::warn!(label, "the token has a key that no ring uses");
            }
        }
        Err(error) => tracing::warn!("the token was not looked at: {error:#}"),
    }
}
