//! Makes keys and takes keys in, sealed under a KEK that is proven first.

use super::key_set::KeySetError;
use super::sealer::Sealer;
use crate::db::{MakeKeyError, NewKey, Ring, Store, StoreError};
use crate::keyring::{Keks, jwk};
use crate::signing::PrivateKey;
use crate::types::{KeyId, Kid};

/// Generates `count` keys for a ring; with `if_empty`, none for a ring that has some. Their ids.
///
/// # Errors
/// As [`Sealer::new`], and the database's.
pub fn generate(
    store: &dyn Store,
    ring: &Ring,
    keks: &Keks,
    count: u32,
    if_empty: bool,
    actor: &str,
) -> Result<Vec<KeyId>, KeySetError> {
    let sealer = Sealer::new(store, ring.id, keks)?;
    let mut make = |id| generate_one(&sealer, id);
    Ok(store.add_keys(ring.id, count, if_empty, actor, &mut make)?)
}

/// Takes in a key that was made elsewhere; its thumbprint.
///
/// # Errors
/// [`KeySetError::Duplicate`], as [`Sealer::new`], and the database's.
pub fn import(
    store: &dyn Store,
    ring: &Ring,
    keks: &Keks,
    private_key: &PrivateKey,
    actor: &str,
) -> Result<Kid, KeySetError> {
    let sealer = Sealer::new(store, ring.id, keks)?;
    let public_key = private_key.public_key();
    let kid = jwk::kid(&public_key);
    match store.key(&kid) {
        Ok(_) => return Err(KeySetError::Duplicate { kid }),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    store.add_keys(ring.id, 1, false, actor, &mut |id| {
        Ok(sealer.new_key(id, private_key, public_key, kid.clone())?)
    })?;
    Ok(kid)
}

/// A fresh key to be added as the row `id`.
///
/// # Errors
/// If the operating system gives no randomness.
pub(super) fn generate_one(sealer: &Sealer, id: KeyId) -> Result<NewKey, MakeKeyError> {
    loop {
        let private_key = PrivateKey::generate()?;
        let public_key = private_key.public_key();
        let kid = jwk::kid(&public_key);
        // One in 64 could be taken for a flag on the command line.
        if !kid.0.starts_with('-') {
            return Ok(sealer.new_key(id, &private_key, public_key, kid)?);
        }
    }
}
