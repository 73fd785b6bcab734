//! Makes keys and takes keys in, sealed under a KEK that is proven first.

use super::key_set::{KeySetError, prove_kek};
use crate::db::{NewKey, Ring, SealedKey, Store, StoreError};
use crate::keyring::{Algorithm, Kek, KeyIdentity, jwk, seal};
use crate::signing::{PrivateKey, PublicKey, SigningError};
use crate::types::{KeyId, Kid};

/// Generates `count` keys for a ring; with `if_empty`, none for a ring that has some. Their ids.
///
/// # Errors
/// [`KeySetError::WrongKek`], and the database's.
pub fn generate(
    store: &dyn Store,
    ring: &Ring,
    kek: &Kek,
    count: u32,
    if_empty: bool,
    actor: &str,
) -> Result<Vec<KeyId>, KeySetError> {
    prove_kek(store, kek)?;
    let database_id = store.database_id()?;
    let added = store.add_keys(ring.id, count, if_empty, actor, &mut |id| {
        let (private_key, public_key, kid) = generate_one()?;
        Ok(new_key(&database_id, ring, kek, id, &private_key, public_key, kid)?)
    })?;
    Ok(added)
}

/// Takes in a key that was made elsewhere; its thumbprint.
///
/// # Errors
/// [`KeySetError::Duplicate`], [`KeySetError::WrongKek`], and the database's.
pub fn import(
    store: &dyn Store,
    ring: &Ring,
    kek: &Kek,
    private_key: &PrivateKey,
    actor: &str,
) -> Result<Kid, KeySetError> {
    prove_kek(store, kek)?;
    let public_key = private_key.public_key();
    let kid = jwk::kid(&public_key);
    match store.key(&kid) {
        Ok(_) => return Err(KeySetError::Duplicate { kid }),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let database_id = store.database_id()?;
    store.add_keys(ring.id, 1, false, actor, &mut |id| {
        Ok(new_key(&database_id, ring, kek, id, private_key, public_key, kid.clone())?)
    })?;
    Ok(kid)
}

fn new_key(
    database_id: &str,
    ring: &Ring,
    kek: &Kek,
    key: KeyId,
    private_key: &PrivateKey,
    public_key: PublicKey,
    kid: Kid,
) -> Result<NewKey, crate::keyring::SealError> {
    let algorithm = Algorithm::Ed25519;
    let identity = KeyIdentity {
        database_id: database_id.to_owned(),
        ring: ring.id,
        key,
        kid: kid.clone(),
        algorithm,
    };
    Ok(NewKey {
        kid,
        algorithm: algorithm.as_str(),
        public_key,
        sealed: Some(SealedKey { blob: seal(kek, &identity, private_key)?, kek_id: kek.id().0 }),
    })
}

/// A key whose kid cannot be taken for a flag on the command line, as one in 64 could.
fn generate_one() -> Result<(PrivateKey, PublicKey, Kid), SigningError> {
    loop {
        let private_key = PrivateKey::generate()?;
        let public_key = private_key.public_key();
        let kid = jwk::kid(&public_key);
        if !kid.0.starts_with('-') {
            return Ok((private_key, public_key, kid));
        }
    }
}
