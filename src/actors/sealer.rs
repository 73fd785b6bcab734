//! Seals private keys for one ring, under KEKs that are proven first.

use super::key_set::KeySetError;
use crate::db::{DataKeyRow, KekCheck, NewKey, SealedKey, Store};
use crate::keyring::{
    Algorithm, DataKey, DataKeyPlace, Kek, KekId, Keks, KeyIdentity, SealError, seal,
};
use crate::signing::{PrivateKey, PublicKey};
use crate::types::{DataKeyId, KeyId, Kid, RingId};

/// Proves `keks` against the database's check values: one of them at least must be known there. The
/// first KEK that a database sees becomes its own.
///
/// # Errors
/// [`KeySetError::WrongKek`], and the database's.
pub fn prove_keks(store: &dyn Store, keks: &Keks) -> Result<(), KeySetError> {
    let mut checks = store.kek_checks()?;
    if checks.is_empty() {
        // Another node may be faster, with another KEK.
        store.add_first_kek(&check_of(keks.first()))?;
        checks = store.kek_checks()?;
    }
    let mut is_proven = false;
    for loaded in keks.iter() {
        let id = loaded.kek.id().0;
        let Some(check) = checks.iter().find(|check| check.kek_id == id) else { continue };
        if !loaded.kek.proves(&check.check_value) {
            return Err(KeySetError::DamagedCheck { kek_id: id });
        }
        is_proven = true;
    }
    if is_proven {
        return Ok(());
    }
    let found = keks.iter().map(|loaded| loaded.kek.id().0).collect();
    let expected = checks.into_iter().map(|check| check.kek_id).collect();
    Err(KeySetError::WrongKek { found, expected })
}

fn check_of(kek: &Kek) -> KekCheck {
    KekCheck { kek_id: kek.id().0, check_value: kek.check_value() }
}

/// What seals a ring's private keys: its data key under the first KEK.
pub struct Sealer {
    ring: RingId,
    database_id: String,
    data_key: DataKey,
    data_key_id: DataKeyId,
}

impl Sealer {
    /// The ring's sealer, with a data key that is made if there is none under the first KEK.
    ///
    /// # Errors
    /// As [`prove_keks`], and what is wrong with the data key.
    pub fn new(store: &dyn Store, ring: RingId, keks: &Keks) -> Result<Self, KeySetError> {
        prove_keks(store, keks)?;
        let kek = keks.first();
        let database_id = store.database_id()?;
        let place = DataKeyPlace { database_id: database_id.clone(), ring };
        let of_kek = |row: &DataKeyRow| row.kek_id == kek.id().0;
        let row = match store.data_keys(ring)?.into_iter().find(of_kek) {
            Some(row) => row,
            None => {
                // A KEK that the database has not seen: another one is proven, and this one is next.
                store.add_kek(&check_of(kek))?;
                let (_, wrapped) = DataKey::generate(kek, &place)?;
                store.add_data_key(ring, &kek.id().0, &wrapped)?
            }
        };
        let data_key = DataKey::unwrap(kek, &place, &row.wrapped_key)?;
        Ok(Sealer { ring, database_id, data_key, data_key_id: row.id })
    }

    /// The data key.
    #[must_use]
    pub fn data_key(&self) -> (DataKeyId, &DataKey) {
        (self.data_key_id, &self.data_key)
    }

    /// The KEK that all it seals needs.
    #[must_use]
    pub fn kek(&self) -> &KekId {
        self.data_key.kek()
    }

    /// The place of a key of the ring.
    #[must_use]
    pub fn identity(&self, key: KeyId, kid: Kid) -> KeyIdentity {
        identity(&self.database_id, self.ring, key, kid)
    }

    /// A key to be added as the row `key`.
    ///
    /// # Errors
    /// As [`seal`].
    pub fn new_key(
        &self,
        key: KeyId,
        private_key: &PrivateKey,
        public_key: PublicKey,
        kid: Kid,
    ) -> Result<NewKey, SealError> {
        let identity = self.identity(key, kid.clone());
        let sealed = SealedKey {
            blob: seal(&self.data_key, &identity, private_key)?,
            kek_id: self.kek().0.clone(),
            data_key: Some(self.data_key_id),
        };
        let algorithm = identity.algorithm.as_str();
        Ok(NewKey { kid, algorithm, public_key, sealed: Some(sealed) })
    }
}

/// The place of a key.
pub(super) fn identity(database_id: &str, ring: RingId, key: KeyId, kid: Kid) -> KeyIdentity {
    let database_id = database_id.to_owned();
    KeyIdentity { database_id, ring, key, kid, algorithm: Algorithm::Ed25519 }
}
