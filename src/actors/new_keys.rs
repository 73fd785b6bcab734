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

/// Takes in keys that were made elsewhere, all of them or none; their thumbprints.
///
/// # Errors
/// [`KeySetError::Duplicate`] for a key that is there already or comes twice, as [`Sealer::new`], and the
/// database's.
pub fn import(
    store: &dyn Store,
    ring: &Ring,
    keks: &Keks,
    private_keys: &[PrivateKey],
    actor: &str,
) -> Result<Vec<Kid>, KeySetError> {
    let sealer = Sealer::new(store, ring.id, keks)?;
    let mut kids = Vec::with_capacity(private_keys.len());
    for private_key in private_keys {
        let kid = jwk::kid(&private_key.public_key());
        match store.key(&kid) {
            Err(StoreError::NotFound { .. }) if !kids.contains(&kid) => kids.push(kid),
            Ok(_) | Err(StoreError::NotFound { .. }) => return Err(KeySetError::Duplicate { kid }),
            Err(error) => return Err(error.into()),
        }
    }
    let count = u32::try_from(kids.len()).unwrap_or(u32::MAX);
    // A transaction that is repeated asks for all of them again.
    let mut next = private_keys.iter().zip(&kids).cycle();
    store.add_keys(ring.id, count, false, actor, &mut |id| {
        let (private_key, kid) = next.next().ok_or("fewer keys than were counted")?;
        Ok(sealer.new_key(id, private_key, private_key.public_key(), kid.clone())?)
    })?;
    Ok(kids)
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
