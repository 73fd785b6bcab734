//! Keys and what seals them, as they go into a [`Store`](super::Store) and come out of it.

use std::fmt;
use std::time::Duration;

use crate::signing::PublicKey;
use crate::types::{DataKeyId, KeyEvent, KeyId, KeyStatus, Kid, RingId, Tick, Timestamp};

/// A KEK that has sealed keys of this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekCheck {
    /// The KEK's id.
    pub kek_id: String,
    /// What only that KEK opens.
    pub check_value: Vec<u8>,
}

/// A key to be added.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its thumbprint.
    pub kid: Kid,
    /// Its algorithm's name.
    pub algorithm: &'static str,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its private key, sealed; `None` if it is held elsewhere.
    pub sealed: Option<SealedKey>,
}

/// A sealed private key.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// The sealed bytes.
    pub blob: Vec<u8>,
    /// The KEK that they need.
    pub kek_id: String,
    /// The data key that sealed them; `None` if the KEK itself did.
    pub data_key: Option<DataKeyId>,
}

/// A key as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its ring.
    pub ring: RingId,
    /// Its thumbprint.
    pub kid: Kid,
    /// Its algorithm's name.
    pub algorithm: String,
    /// Its public key, 32 bytes as they stand in the database.
    pub public_key: Vec<u8>,
    /// Its status.
    pub status: KeyStatus,
    /// Why it has that status, where somebody said so.
    pub status_reason: Option<String>,
    /// The tick of the end of its last use; 0 if it was never used.
    pub last_tick: Tick,
    /// Whether a use of it is open.
    pub in_use: bool,
    /// How many batches it has signed.
    pub stored_uses: u64,
    /// How many records it has signed.
    pub signatures: u64,
    /// The KEK that it is sealed under; `None` if it is not sealed here.
    pub kek_id: Option<String>,
    /// When it was added.
    pub created_at: Timestamp,
}

/// A key with its sealed private key.
#[derive(Clone, Debug)]
pub struct SealedKeyRow {
    /// Its id.
    pub id: KeyId,
    /// Its thumbprint.
    pub kid: Kid,
    /// Its public key.
    pub public_key: Vec<u8>,
    /// The sealed private key; `None` if it is held elsewhere.
    pub sealed_private_key: Option<Vec<u8>>,
    /// The KEK that it is sealed under.
    pub kek_id: Option<String>,
    /// The data key that sealed it; `None` if the KEK itself did.
    pub data_key: Option<DataKeyId>,
}

/// A ring's data key, wrapped by a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeyRow {
    /// Its id.
    pub id: DataKeyId,
    /// The KEK.
    pub kek_id: String,
    /// The wrapped key.
    pub wrapped_key: Vec<u8>,
}

/// What is sealed under a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekUsage {
    /// The KEK's id.
    pub kek_id: String,
    /// When the database saw it first.
    pub created_at: Timestamp,
    /// The keys of all rings that need it.
    pub keys: u64,
    /// The data keys that it wraps.
    pub data_keys: u64,
}

/// A private key, sealed anew.
#[derive(Clone, Debug)]
pub struct Resealed {
    /// The key.
    pub id: KeyId,
    /// What must still be there.
    pub instead_of: Vec<u8>,
    /// The new sealed key.
    pub sealed_private_key: Vec<u8>,
    /// The KEK that it is now sealed under.
    pub kek_id: String,
    /// The data key that sealed it.
    pub data_key: DataKeyId,
}

/// A change of keys' status.
#[derive(Clone, Copy, Debug)]
pub struct KeyChange<'a> {
    /// What happens to them.
    pub event: KeyEvent,
    /// Who does it.
    pub actor: &'a str,
    /// Why, where somebody says so.
    pub reason: Option<&'a str>,
    /// Whether a key that is to be destroyed may be in use: the use ends, and its store is fenced.
    pub force: bool,
}

/// When a key has signed for long enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retirement {
    /// After so many signatures.
    pub after_signatures: Option<u64>,
    /// After such a time.
    pub after: Option<Duration>,
}

impl Retirement {
    /// Whether a key is ever retired so.
    #[must_use]
    pub fn is_never(&self) -> bool {
        self.after_signatures.is_none() && self.after.is_none()
    }
}

/// An active key that has signed for long enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueKey {
    /// Its thumbprint.
    pub kid: Kid,
    /// How many records it has signed.
    pub signatures: u64,
    /// How old it is.
    pub age: Duration,
}

impl fmt::Display for DueKey {
    /// Why it is retired.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.age.as_secs() / 86_400;
        write!(f, "scheduled, after {} signatures and {days} days", self.signatures)
    }
}
