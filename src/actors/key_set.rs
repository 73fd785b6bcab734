//! The private keys of one ring in this node's memory: unsealed once, wiped when no longer active.

use std::collections::HashMap;
use std::sync::Arc;

use super::sealer::{Sealer, identity, prove_keks};
use crate::db::{DueKey, SealedKeyRow, Store, StoreError};
use crate::keyring::{DataKey, DataKeyError, DataKeyPlace, KekId, Keks, Opener, unseal};
use crate::signing::{PrivateKey, PublicKey};
use crate::types::{DataKeyId, KeyEvent, KeyId, Kid, RingId};

/// Unsealed private keys; each is wiped when the last use of it ends after it left the set.
pub struct KeySet {
    keys: HashMap<KeyId, KeyPair>,
    unsealer: Unsealer,
}

/// A key as it signs, and as its signatures are verified.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private half, shared by all who sign with it.
    pub private_key: Arc<PrivateKey>,
    /// The public half, which is the one that the database has.
    pub public_key: PublicKey,
}

/// An active key that does not unseal under the KEK that sealed it; it has been disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedKey {
    /// The key.
    pub kid: Kid,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a node may not touch the keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeySetError {
    /// No KEK is one that sealed this database's keys.
    #[error(
        "{} not among those that sealed this database's keys ({}): point keys.kek_file or \
         keys.kek_sources at the right one; no key was touched",
        these(.found),
        .expected.join(", ")
    )]
    WrongKek {
        /// The ids of those that were given.
        found: Vec<String>,
        /// The ids of the right ones.
        expected: Vec<String>,
    },
    /// The KEK's check value was changed.
    #[error("the check value of the KEK {kek_id} in the database is damaged; no key was touched")]
    DamagedCheck {
        /// The KEK's id.
        kek_id: String,
    },
    /// A key was sealed by a KEK that this node does not have.
    #[error(
        "key {kid} is sealed under the KEK {kek_id}, which this node does not have: add it to \
         keys.kek_sources, or run `chancery keys rewrap` where it is"
    )]
    OtherKek {
        /// The key.
        kid: Kid,
        /// The missing KEK's id.
        kek_id: String,
    },
    /// A ring's data key does not open; none of its keys was touched.
    #[error("{0}; no key was touched")]
    DataKey(#[from] DataKeyError),
    /// A key could not be sealed.
    #[error(transparent)]
    Seal(#[from] crate::keyring::SealError),
    /// A key of that thumbprint is there already.
    #[error("key {kid} is there already")]
    Duplicate {
        /// The key.
        kid: Kid,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn these(keks: &[String]) -> String {
    match keks {
        [one] => format!("the KEK {one} is"),
        all => format!("the KEKs {} are", all.join(", ")),
    }
}

impl KeySet {
    /// An empty set for a ring, under KEKs that [`prove_keks`] proves.
    ///
    /// # Errors
    /// As [`prove_keks`].
    pub fn new(store: Arc<dyn Store>, ring: RingId, keks: Arc<Keks>) -> Result<Self, KeySetError> {
        let unsealer = Unsealer::new(store, ring, keks)?;
        Ok(KeySet { keys: HashMap::new(), unsealer })
    }

    /// Reads the ring again: unseals active keys that are new, drops those that are active no
    /// more, and disables those that are damaged.
    ///
    /// # Errors
    /// [`KeySetError::OtherKek`] when all other keys have been seen to, [`KeySetError::DataKey`], and
    /// the database's.
    pub fn refresh(&mut self) -> Result<Vec<DamagedKey>, KeySetError> {
        let rows = self.unsealer.store.sealed_keys(self.unsealer.ring)?;
        let mut damaged = Vec::new();
        let mut of_other_kek = None;
        let mut active = HashMap::with_capacity(rows.len());
        for row in rows {
            if let Some(key) = self.keys.get(&row.id) {
                active.insert(row.id, key.clone());
                continue;
            }
            match self.unsealer.unseal(&row) {
                Ok(private_key) => {
                    let public_key = private_key.public_key();
                    let private_key = Arc::new(private_key);
                    active.insert(row.id, KeyPair { private_key, public_key });
                }
                Err(Sealed::Damaged(reason)) => {
                    let disabled = KeyEvent::Disabled;
                    let store = &self.unsealer.store;
                    store.change_key(&row.kid, disabled, "chancery", Some(&reason))?;
                    damaged.push(DamagedKey { kid: row.kid, reason });
                }
                Err(Sealed::OtherKek(error)) => of_other_kek = Some(error),
                Err(Sealed::Failed(error)) => return Err(error),
            }
        }
        self.keys = active;
        // Only now: it must not keep disabled keys in memory.
        of_other_kek.map_or(Ok(damaged), Err)
    }

    /// Retires keys that have signed for long enough, and puts a fresh one in the place of each; how
    /// many.
    ///
    /// # Errors
    /// As [`Sealer::new`], and the database's.
    pub fn replace(&self, due: &[DueKey]) -> Result<u32, KeySetError> {
        let Unsealer { store, ring, keks, .. } = &self.unsealer;
        let sealer = Sealer::new(store.as_ref(), *ring, keks)?;
        let mut make = |id| super::new_keys::generate_one(&sealer, id);
        Ok(store.replace_keys(*ring, due, "chancery", &mut make)?)
    }

    /// A key.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<KeyPair> {
        self.keys.get(&id).cloned()
    }

    /// How many keys are unsealed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Opens the sealed keys of one ring.
pub(super) struct Unsealer {
    store: Arc<dyn Store>,
    ring: RingId,
    keks: Arc<Keks>,
    database_id: String,
    data_keys: HashMap<DataKeyId, DataKey>,
}

/// Why a key stays sealed.
#[derive(Debug)]
pub(super) enum Sealed {
    /// It is damaged, and its KEK is proven.
    Damaged(String),
    /// Its KEK is not here.
    OtherKek(KeySetError),
    /// The database failed, or a data key is damaged: nothing is said of the key.
    Failed(KeySetError),
}

impl Unsealer {
    /// # Errors
    /// As [`prove_keks`].
    pub(super) fn new(
        store: Arc<dyn Store>,
        ring: RingId,
        keks: Arc<Keks>,
    ) -> Result<Self, KeySetError> {
        prove_keks(store.as_ref(), &keks)?;
        let database_id = store.database_id()?;
        Ok(Unsealer { store, ring, keks, database_id, data_keys: HashMap::new() })
    }

    pub(super) fn unseal(&mut self, row: &SealedKeyRow) -> Result<PrivateKey, Sealed> {
        let kid = &row.kid;
        let damaged = |what: &str| Sealed::Damaged(format!("key {kid}: {what}"));
        let (Some(sealed), Some(kek_id)) = (&row.sealed_private_key, &row.kek_id) else {
            return Err(damaged("it has no sealed private key"));
        };
        let Some(kek) = self.keks.find(&KekId(kek_id.clone())) else {
            let (kid, kek_id) = (kid.clone(), kek_id.clone());
            return Err(Sealed::OtherKek(KeySetError::OtherKek { kid, kek_id }));
        };
        if row.data_key.is_some_and(|id| !self.data_keys.contains_key(&id)) {
            self.data_keys = self.read_data_keys().map_err(Sealed::Failed)?;
        }
        let opener = match row.data_key {
            None => Opener::Kek(kek),
            Some(id) => match self.data_keys.get(&id) {
                Some(data_key) if data_key.kek().0 == *kek_id => Opener::DataKey(data_key),
                _ => return Err(damaged("its data key is not one of its ring and its KEK")),
            },
        };
        let identity = identity(&self.database_id, self.ring, row.id, kid.clone());
        unseal(opener, &identity, &row.public_key, sealed)
            .map_err(|error| Sealed::Damaged(error.to_string()))
    }

    /// The ring's data keys under the KEKs that are here.
    fn read_data_keys(&self) -> Result<HashMap<DataKeyId, DataKey>, KeySetError> {
        let place = DataKeyPlace { database_id: self.database_id.clone(), ring: self.ring };
        let mut data_keys = HashMap::new();
        for row in self.store.data_keys(self.ring)? {
            if let Some(kek) = self.keks.find(&KekId(row.kek_id)) {
                data_keys.insert(row.id, DataKey::unwrap(kek, &place, &row.wrapped_key)?);
            }
        }
        Ok(data_keys)
    }
}
