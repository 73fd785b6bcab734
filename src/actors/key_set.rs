//! The private keys of one ring in this node's memory: unsealed once, wiped when no longer active.

use std::collections::HashMap;
use std::sync::Arc;

use crate::db::{KekCheck, SealedKeyRow, Store, StoreError};
use crate::keyring::{Algorithm, Kek, KeyIdentity, unseal};
use crate::signing::{PrivateKey, PublicKey, wipe_stack};
use crate::types::{KeyEvent, KeyId, Kid, RingId};

/// Unsealed private keys; each is wiped when the last use of it ends after it left the set.
pub struct KeySet {
    store: Arc<dyn Store>,
    ring: RingId,
    kek: Arc<Kek>,
    database_id: String,
    keys: HashMap<KeyId, KeyPair>,
}

/// A key as it signs, and as its signatures are verified.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private half, shared by all who sign with it.
    pub private_key: Arc<PrivateKey>,
    /// The public half as the database has it, not as it is derived from the private one.
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
    /// The KEK is not the one that sealed this database's keys.
    #[error(
        "the KEK {found} is not the one that sealed this database's keys ({}): \
         point keys.kek_file at the right file; no key was touched",
        .expected.join(", ")
    )]
    WrongKek {
        /// The KEK's id.
        found: String,
        /// The ids of the right ones.
        expected: Vec<String>,
    },
    /// A key was sealed by a KEK that this node does not have.
    #[error("key {kid} was sealed by the KEK {kek_id}, which this node does not have")]
    OtherKek {
        /// The key.
        kid: Kid,
        /// The missing KEK's id.
        kek_id: String,
    },
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

/// Proves `kek` against the database's check values; the first KEK that a database sees becomes
/// its own.
///
/// # Errors
/// [`KeySetError::WrongKek`], and the database's.
pub fn prove_kek(store: &dyn Store, kek: &Kek) -> Result<(), KeySetError> {
    let id = kek.id().0;
    let mut checks = store.kek_checks()?;
    if checks.is_empty() {
        store.add_kek(&KekCheck { kek_id: id.clone(), check_value: kek.check_value() })?;
        // Read back: two nodes with two KEKs may have done this at the same time.
        checks = store.kek_checks()?;
        checks.truncate(1);
    }
    let proven = checks.iter().any(|check| check.kek_id == id && kek.proves(&check.check_value));
    if proven {
        return Ok(());
    }
    let expected = checks.into_iter().map(|check| check.kek_id).collect();
    Err(KeySetError::WrongKek { found: id, expected })
}

impl KeySet {
    /// An empty set for a ring, under a KEK that [`prove_kek`] has proven.
    ///
    /// # Errors
    /// As [`prove_kek`].
    pub fn new(store: Arc<dyn Store>, ring: RingId, kek: Arc<Kek>) -> Result<Self, KeySetError> {
        prove_kek(store.as_ref(), &kek)?;
        let database_id = store.database_id()?;
        Ok(KeySet { store, ring, kek, database_id, keys: HashMap::new() })
    }

    /// Reads the ring again: unseals active keys that are new, drops those that are active no
    /// more, and disables those that are damaged.
    ///
    /// # Errors
    /// [`KeySetError::OtherKek`] when all other keys have been seen to, and the database's.
    pub fn refresh(&mut self) -> Result<Vec<DamagedKey>, KeySetError> {
        let rows = self.store.sealed_keys(self.ring)?;
        let mut damaged = Vec::new();
        let mut of_other_kek = None;
        let mut active = HashMap::with_capacity(rows.len());
        for row in rows {
            if let Some(key) = self.keys.get(&row.id) {
                active.insert(row.id, key.clone());
                continue;
            }
            if let Some(kek_id) = row.kek_id.as_ref().filter(|id| **id != self.kek.id().0) {
                let (kid, kek_id) = (row.kid, kek_id.clone());
                of_other_kek = Some(KeySetError::OtherKek { kid, kek_id });
                continue;
            }
            match self.unseal(&row) {
                Ok(key) => {
                    active.insert(row.id, key);
                }
                Err(reason) => {
                    let disabled = KeyEvent::Disabled;
                    self.store.change_key(&row.kid, disabled, "chancery", Some(&reason))?;
                    damaged.push(DamagedKey { kid: row.kid, reason });
                }
            }
        }
        self.keys = active;
        wipe_stack();
        // Only now: it must not keep disabled keys in memory.
        of_other_kek.map_or(Ok(damaged), Err)
    }

    // A frame of its own, which can be wiped when it has gone.
    #[inline(never)]
    fn unseal(&self, row: &SealedKeyRow) -> Result<KeyPair, String> {
        let public_key = PublicKey::from_bytes(&row.public_key)
            .map_err(|error| format!("key {}: public key: {error}", row.kid))?;
        let identity = KeyIdentity {
            database_id: self.database_id.clone(),
            ring: self.ring,
            key: row.id,
            kid: row.kid.clone(),
            algorithm: Algorithm::Ed25519,
        };
        let sealed = row
            .sealed_private_key
            .as_deref()
            .ok_or_else(|| format!("key {}: it has no sealed private key", row.kid))?;
        let private_key = unseal(&self.kek, &identity, &public_key, sealed);
        let private_key = Arc::new(private_key.map_err(|error| error.to_string())?);
        Ok(KeyPair { private_key, public_key })
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
