//! Moves a ring's keys to the first KEK: each is opened, sealed anew, opened again, and put in the
//! place of the old seal only if that is still there.
//!
//! It may be cut off anywhere and run again, and many may run at once: a key is always sealed under the
//! old KEK or under the new one.

use std::sync::Arc;

use super::key_set::{KeySetError, Sealed, Unsealer};
use super::sealer::Sealer;
use crate::db::{Resealed, Ring, SealedKeyRow, Store};
use crate::keyring::{Keks, Opener, SealError, seal, unseal};
use crate::types::{DataKeyId, KeyId, Kid};

/// How many keys a transaction moves.
const PAGE: u32 = 100;

/// What became of a ring's keys.
#[derive(Debug, Default)]
pub struct Rewrapped {
    /// How many are sealed anew, or open.
    pub keys: u64,
    /// Those that do not open, or need a KEK that is not here, each with the reason.
    pub left: Vec<(Kid, String)>,
}

/// Moves every key of a ring that can be opened to the first of `keks`; `moved` hears of each page.
///
/// # Errors
/// As [`Sealer::new`], and the database's. What was moved before stays moved.
pub fn rewrap(
    store: &Arc<dyn Store>,
    ring: &Ring,
    keks: &Arc<Keks>,
    actor: &str,
    moved: &mut dyn FnMut(u64),
) -> Result<Rewrapped, KeySetError> {
    let sealer = Sealer::new(store.as_ref(), ring.id, keks)?;
    let mut unsealer = Unsealer::new(Arc::clone(store), ring.id, Arc::clone(keks))?;
    let (data_key, _) = sealer.data_key();
    let mut done = Rewrapped::default();
    let mut after = KeyId(0);
    loop {
        let rows = store.keys_to_reseal(ring.id, data_key, after, PAGE)?;
        let Some(last) = rows.last() else { break };
        after = last.id;
        let mut resealed = Vec::new();
        for row in rows {
            match reseal(&sealer, &mut unsealer, &row) {
                Ok(key) => resealed.push(key),
                Err(Sealed::Failed(error)) => return Err(error),
                Err(Sealed::OtherKek(error)) => done.left.push((row.kid, error.to_string())),
                Err(Sealed::Damaged(reason)) => done.left.push((row.kid, reason)),
            }
        }
        // Fewer where somebody else was faster, or destroyed a key meanwhile.
        let page = store.reseal_keys(ring.id, &resealed, actor)?;
        done.keys += page;
        moved(page);
    }
    Ok(done)
}

/// Opens every sealed key of a ring, and changes nothing: how many open, and which do not.
///
/// # Errors
/// If no KEK is proven, a data key is damaged, or the database fails.
pub fn check(
    store: &Arc<dyn Store>,
    ring: &Ring,
    keks: &Arc<Keks>,
) -> Result<Rewrapped, KeySetError> {
    let mut unsealer = Unsealer::new(Arc::clone(store), ring.id, Arc::clone(keks))?;
    let mut done = Rewrapped::default();
    let mut after = KeyId(0);
    loop {
        // No data key has this id, so that all keys are anything but sealed by it.
        let rows = store.keys_to_reseal(ring.id, DataKeyId(0), after, PAGE)?;
        let Some(last) = rows.last() else { return Ok(done) };
        after = last.id;
        for row in rows {
            match unsealer.unseal(&row) {
                Ok(_) => done.keys += 1,
                Err(Sealed::Failed(error)) => return Err(error),
                Err(Sealed::OtherKek(error)) => done.left.push((row.kid, error.to_string())),
                Err(Sealed::Damaged(reason)) => done.left.push((row.kid, reason)),
            }
        }
    }
}

fn reseal(
    sealer: &Sealer,
    unsealer: &mut Unsealer,
    row: &SealedKeyRow,
) -> Result<Resealed, Sealed> {
    let private_key = unsealer.unseal(row)?;
    let identity = sealer.identity(row.id, row.kid.clone());
    let (data_key_id, data_key) = sealer.data_key();
    let failed = |error: SealError| Sealed::Failed(error.into());
    let sealed_private_key = seal(data_key, &identity, &private_key).map_err(failed)?;
    // What replaces the only copy of a key must be proven to open.
    let opener = Opener::DataKey(data_key);
    unseal(opener, &identity, &row.public_key, &sealed_private_key).map_err(failed)?;
    Ok(Resealed {
        id: row.id,
        instead_of: row.sealed_private_key.clone().unwrap_or_default(),
        sealed_private_key,
        kek_id: sealer.kek().0.clone(),
        data_key: data_key_id,
    })
}
