//! Makes and destroys keys on a token, and keeps it in step with the database.
//!
//! A key is on the token before its row is in the database, and is gone from it only after the row says
//! so: whatever happens in between leaves a key too many on the token, never a row without its key.

use crate::db::{NewKey, Ring, Store, StoreError};
use crate::keyring::Algorithm;
use crate::keyring::pkcs11::{Token, TokenError, TokenKey};
use crate::types::{KeyId, KeyStatus, RingId};

/// Why keys were not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenKeysError {
    /// The token failed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TokenKeysError {
    /// Whether the same can succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            TokenKeysError::Token(error) => error.is_retryable(),
            TokenKeysError::Store(error) => error.is_retryable(),
        }
    }
}

/// Makes `count` keys of a ring on the token; with `if_empty`, none for a ring that has some. Their ids.
///
/// # Errors
/// [`TokenKeysError`]; what the token has made by then is destroyed again, unless the database has it or
/// cannot be asked.
pub fn generate(
    store: &dyn Store,
    ring: &Ring,
    token: &Token,
    count: u32,
    if_empty: bool,
    actor: &str,
) -> Result<Vec<KeyId>, TokenKeysError> {
    if if_empty && !store.keys(ring.id)?.is_empty() {
        return Ok(Vec::new());
    }
    let prefix = format!("{}/{}", prefix(store)?, ring.name);
    let mut made = Vec::new();
    for _ in 0..count {
        match token.generate(&prefix) {
            Ok(key) => made.push(key),
            Err(error) => {
                destroy_unknown(store, token, &made);
                return Err(error.into());
            }
        }
    }
    // A transaction that is repeated asks for all of them again.
    let mut next = made.iter().cycle();
    let added = store.add_keys(ring.id, count, if_empty, actor, &mut |_| {
        let TokenKey { kid, public_key } =
            next.next().cloned().ok_or_else(|| TokenError::Refused {
                label: token.label().to_owned(),
                reason: "it made no key".to_owned(),
            })?;
        Ok(NewKey { kid, algorithm: Algorithm::Ed25519.as_str(), public_key, sealed: None })
    });
    if added.as_ref().map_or(0, Vec::len) != made.len() {
        destroy_unknown(store, token, &made);
    }
    Ok(added?)
}

/// Destroys the keys that the database surely does not have: its reply to a COMMIT may have been lost.
fn destroy_unknown(store: &dyn Store, token: &Token, made: &[TokenKey]) {
    for TokenKey { kid, .. } in made {
        let destroyed = match store.key(kid) {
            Err(StoreError::NotFound { .. }) => token.destroy(kid).map_err(|e| e.to_string()),
            Ok(_) => continue,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = destroyed {
            tracing::warn!(%kid, error, "left a key on the token that no ring uses");
        }
    }
}

/// Wipes on the token every key of a ring whose row says that it is destroyed, whoever said so and
/// whenever; goes on past one that fails.
///
/// # Errors
/// The first [`TokenKeysError`]: asking again does the rest.
pub fn wipe_destroyed(
    store: &dyn Store,
    ring: RingId,
    token: &Token,
) -> Result<(), TokenKeysError> {
    const PAGE: u32 = 1_000;
    let mut after = KeyId(0);
    let mut failure = None;
    loop {
        let page = store.list_keys(ring, Some(KeyStatus::Destroyed), after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for key in page {
            if let Err(error) = token.destroy(&key.kid) {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// The labels of keys that this database's rings once made on the token, and that none has any more.
///
/// # Errors
/// [`TokenKeysError`].
pub fn leftovers(store: &dyn Store, token: &Token) -> Result<Vec<String>, TokenKeysError> {
    let prefix = format!("{}/", prefix(store)?);
    let mut leftovers = Vec::new();
    for object in token.list()? {
        if !object.label.starts_with(&prefix) {
            continue;
        }
        let is_used = match &object.kid {
            None => false,
            Some(kid) => match store.key(kid) {
                Ok(key) => key.status != KeyStatus::Destroyed,
                Err(StoreError::NotFound { .. }) => false,
                Err(error) => return Err(error.into()),
            },
        };
        if !is_used {
            leftovers.push(object.label);
        }
    }
    Ok(leftovers)
}

/// How the labels of this database's keys begin.
fn prefix(store: &dyn Store) -> Result<String, StoreError> {
    Ok(format!("chancery/{}", store.database_id()?))
}
