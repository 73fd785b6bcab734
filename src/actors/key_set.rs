//! The private keys of one ring in this node's memory: unsealed once, wiped when no longer active.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::key_handle::KeyHandle;
use super::sealer::{Sealer, identity, prove_keks};
use crate::db::{DueKey, SealedKeyRow, Store, StoreError};
use crate::keyring::pkcs11::TokenKeyRef;
use crate::keyring::{DataKey, DataKeyError, DataKeyPlace, KekId, Keks, Opener, unseal};
use crate::signing::{PrivateKey, PublicKey, wipe_stack};
use crate::types::{DataKeyId, KeyEvent, KeyId, Kid, RingId};

/// Unsealed private keys; each is wiped when the last use of it ends after it left the set.
pub struct KeySet {
    keys: HashMap<KeyId, KeyHandle>,
    home: Home,
}

/// Where the private keys of a ring come from.
enum Home {
    /// The database, sealed.
    Database(Unsealer),
    /// A token: the set holds their names.
    Token { store: Arc<dyn Store>, ring: RingId },
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
        let home = Home::Database(Unsealer::new(store, ring, keks)?);
        Ok(KeySet { keys: HashMap::new(), home })
    }

    /// An empty set for a ring whose keys are on a token: it holds their names and needs no KEK.
    #[must_use]
    pub fn on_token(store: Arc<dyn Store>, ring: RingId) -> Self {
        KeySet { keys: HashMap::new(), home: Home::Token { store, ring } }
    }

    /// Reads the ring again: unseals active keys that are new, drops those that are active no
    /// more, and disables those that are damaged.
    ///
    /// # Errors
    /// [`KeySetError::OtherKek`] when all other keys have been seen to, [`KeySetError::DataKey`], and
    /// the database's.
    pub fn refresh(&mut self) -> Result<Vec<DamagedKey>, KeySetError> {
        let (store, ring) = self.place();
        let rows = store.sealed_keys(ring)?;
        // Before anything can fail: what is disabled leaves the memory whatever happens.
        let ids: HashSet<KeyId> = rows.iter().map(|row| row.id).collect();
        self.keys.retain(|id, _| ids.contains(id));
        let unsealed = self.unseal_new(store.as_ref(), rows);
        wipe_stack();
        unsealed
    }

    /// Unseals what is not in the set yet.
    fn unseal_new(
        &mut self,
        store: &dyn Store,
        rows: Vec<SealedKeyRow>,
    ) -> Result<Vec<DamagedKey>, KeySetError> {
        let rows: Vec<SealedKeyRow> =
            rows.into_iter().filter(|row| !self.keys.contains_key(&row.id)).collect();
        if let Home::Database(unsealer) = &mut self.home {
            unsealer.open_data_keys(&rows)?;
        }
        let mut damaged = Vec::new();
        let mut of_other_kek = None;
        for row in rows {
            match self.open(&row) {
                Ok(key) => {
                    self.keys.insert(row.id, key);
                }
                Err(Sealed::Damaged(reason)) => {
                    let disabled = KeyEvent::Disabled;
                    store.change_key(&row.kid, disabled, "chancery", Some(&reason))?;
                    damaged.push(DamagedKey { kid: row.kid, reason });
                }
                Err(Sealed::OtherKek(error)) => of_other_kek = Some(error),
                Err(Sealed::Failed(error)) => return Err(error),
            }
        }
        of_other_kek.map_or(Ok(damaged), Err)
    }

    fn place(&self) -> (Arc<dyn Store>, RingId) {
        match &self.home {
            Home::Database(unsealer) => (Arc::clone(&unsealer.store), unsealer.ring),
            Home::Token { store, ring } => (Arc::clone(store), *ring),
        }
    }

    fn open(&mut self, row: &SealedKeyRow) -> Result<KeyHandle, Sealed> {
        match &mut self.home {
            Home::Database(unsealer) => {
                let private_key = unsealer.unseal(row)?;
                Ok(KeyHandle::Software(Arc::new(private_key)))
            }
            Home::Token { .. } => {
                let public_key = PublicKey::from_bytes(&row.public_key).map_err(|error| {
                    Sealed::Damaged(format!("key {}: public key: {error}", row.kid))
                })?;
                let key = TokenKeyRef { kid: row.kid.clone(), public_key };
                Ok(KeyHandle::Token(Arc::new(key)))
            }
        }
    }

    /// Retires keys that have signed for long enough, and puts a fresh one in the place of each; how
    /// many: none on a token, where keys are made by people only.
    ///
    /// # Errors
    /// As [`Sealer::new`], and the database's.
    pub fn replace(&self, due: &[DueKey]) -> Result<u32, KeySetError> {
        let Home::Database(Unsealer { store, ring, keks, .. }) = &self.home else { return Ok(0) };
        let sealer = Sealer::new(store.as_ref(), *ring, keks)?;
        let mut make = |id| super::new_keys::generate_one(&sealer, id);
        Ok(store.replace_keys(*ring, due, "chancery", &mut make)?)
    }

    /// A key.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<KeyHandle> {
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

    // A frame of its own, which can be wiped when it has gone.
    #[inline(never)]
    pub(super) fn unseal(&mut self, row: &SealedKeyRow) -> Result<PrivateKey, Sealed> {
        let kid = &row.kid;
        let damaged = |what: &str| Sealed::Damaged(format!("key {kid}: {what}"));
        let (Some(sealed), Some(kek_id)) = (&row.sealed_private_key, &row.kek_id) else {
            return Err(damaged("it has no sealed private key"));
        };
        self.open_data_keys(std::slice::from_ref(row)).map_err(Sealed::Failed)?;
        let Some(kek) = self.keks.find(&KekId(kek_id.clone())) else {
            let (kid, kek_id) = (kid.clone(), kek_id.clone());
            return Err(Sealed::OtherKek(KeySetError::OtherKek { kid, kek_id }));
        };
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

    /// Opens the data keys that these rows need, before any row is judged: one that is damaged says
    /// nothing of the keys that it has sealed.
    fn open_data_keys(&mut self, rows: &[SealedKeyRow]) -> Result<(), KeySetError> {
        let is_new = |row: &SealedKeyRow| {
            let is_known = row.data_key.is_none_or(|id| self.data_keys.contains_key(&id));
            let kek = row.kek_id.as_ref().map(|id| KekId(id.clone()));
            !is_known && kek.is_some_and(|id| self.keks.find(&id).is_some())
        };
        if rows.iter().any(is_new) {
            self.data_keys = self.read_data_keys()?;
        }
        Ok(())
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
