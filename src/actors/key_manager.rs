//! The node's only door to its keys.
//!
//! Invariant: a private key leaves this actor only inside a [`Checkout`] whose key use is open in
//! the database, and database work is done one piece at a time, in the order it was asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;

use super::key_set::{KeySet, KeySetError};
use super::messages::{CheckOut, Checkout, Granted, Observe, Return, ReturnKey, Stop};
use super::off_thread;
use crate::clock::{Clock, Deadline};
use crate::db::{
    self, ClaimedBatch, GiveUp, KeyUse, ReclaimScope, Reclaimed, Shortage, Store, StoreError,
};
use crate::types::{BatchSize, Fence, NodeId, Outcome, RingId};

/// What a KeyManager needs to know.
#[derive(Clone, Debug)]
pub struct KeyManagerSettings {
    /// The ring.
    pub ring: RingId,
    /// This start of this process.
    pub node: NodeId,
    /// Records in a new batch (R5).
    pub batch_size: BatchSize,
    /// How long a checkout is good for.
    pub lease: Duration,
}

impl KeyManagerSettings {
    /// How long before the end of a lease a node starts no more signatures.
    fn margin(&self) -> Duration {
        self.lease / 10
    }
}

/// The actor.
pub struct KeyManager {
    settings: KeyManagerSettings,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// Locked only by this actor's own work off the thread, of which there is one at a time.
    keys: Arc<Mutex<KeySet>>,
    open: BTreeMap<Fence, OpenCheckout>,
    snapshot: KeyManagerSnapshot,
}

struct OpenCheckout {
    key_use: KeyUse,
    deadline: Deadline,
}

/// The state of a KeyManager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct KeyManagerSnapshot {
    /// Keys unsealed in memory.
    pub keys: usize,
    /// Uses of this node that are open.
    pub open_uses: usize,
    /// Batches checked out so far.
    pub checked_out: u64,
    /// Uses ended by reclaim so far, of whatever node.
    pub reclaimed: u64,
    /// Keys found damaged, and disabled.
    pub damaged_keys: u64,
    /// Leases renewed.
    pub renewed: u64,
}

impl KeyManager {
    /// A KeyManager over keys that are unsealed already.
    #[must_use]
    pub fn new(
        settings: KeyManagerSettings,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        keys: KeySet,
    ) -> Self {
        let snapshot = KeyManagerSnapshot { keys: keys.len(), ..KeyManagerSnapshot::default() };
        let keys = Arc::new(Mutex::new(keys));
        KeyManager { settings, store, clock, keys, open: BTreeMap::new(), snapshot }
    }

    /// Renews, reclaims, and reads the keys' status again: three times in a lease.
    fn keep_house(&mut self, context: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let keys = Arc::clone(&self.keys);
        let clock = Arc::clone(&self.clock);
        let ring = self.settings.ring;
        let fences: Vec<Fence> = self.open.keys().copied().collect();
        let work = off_thread(move || {
            let sent_at = clock.now();
            let renewed =
                if fences.is_empty() { Vec::new() } else { store.renew(ring, &fences)? };
            let reclaimed = store.reclaim(ring, ReclaimScope::Expired)?;
            let damaged = refresh(&keys)?;
            let keys = keys.lock().unwrap_or_else(PoisonError::into_inner).len();
            Ok((sent_at, renewed, reclaimed, damaged, keys))
        });
        // Nothing else is handled meanwhile: one piece of database work at a time.
        context.wait(work.into_actor(self).map(|result, actor, _| match result {
            Ok((sent_at, renewed, reclaimed, damaged, keys)) => {
                let until = sent_at + actor.settings.lease - actor.settings.margin();
                for fence in &renewed {
                    if let Some(open) = actor.open.get(fence) {
                        open.deadline.extend(until);
                    }
                }
                actor.snapshot.renewed += renewed.len() as u64;
                actor.snapshot.keys = keys;
                actor.note_damage(damaged);
                actor.note_reclaim(&reclaimed);
            }
            Err(error) => tracing::warn!(%error, "could not renew leases and reclaim expired ones"),
        }));
    }

    fn note_damage(&mut self, damaged: u64) {
        self.snapshot.damaged_keys += damaged;
    }

    fn note_reclaim(&mut self, reclaimed: &Reclaimed) {
        log_reclaim(reclaimed);
        self.snapshot.reclaimed += reclaimed.uses.len() as u64;
    }

    /// Turns claimed batches into checkouts, and gives up those whose key is not to be had.
    fn grant(&mut self, claimed: Claimed) -> Granted {
        let until = claimed.sent_at + self.settings.lease - self.settings.margin();
        let mut granted = Granted { checkouts: Vec::new(), shortage: claimed.shortage };
        for (batch, key) in claimed.batches {
            let deadline = Deadline::new(until);
            let key_use = batch.key_use;
            self.open.insert(key_use.fence, OpenCheckout { key_use, deadline: deadline.clone() });
            granted.checkouts.push(Checkout { batch, key, deadline });
        }
        self.snapshot.checked_out += granted.checkouts.len() as u64;
        self.snapshot.damaged_keys += claimed.damaged;
        granted
    }
}

/// Says what a reclaim did, once, where it happened.
pub(crate) fn log_reclaim(reclaimed: &Reclaimed) {
    for (key_use, node) in &reclaimed.uses {
        tracing::warn!(
            ring = %key_use.ring, fence = %key_use.fence, batch = %key_use.batch,
            key = %key_use.key, %node,
            "reclaimed a key use whose node did not end it"
        );
    }
    for batch in &reclaimed.quarantined {
        tracing::error!(%batch, "quarantined a batch that was reclaimed too often");
    }
    if reclaimed.terminated_sessions > 0 {
        tracing::warn!(
            sessions = reclaimed.terminated_sessions,
            "ended database sessions whose transaction was older than a lease"
        );
    }
}

/// Reads the keys again; how many were found damaged.
fn refresh(keys: &Mutex<KeySet>) -> Result<u64, StoreError> {
    let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
    match keys.refresh() {
        Ok(damaged) => {
            for key in &damaged {
                tracing::error!(kid = %key.kid, reason = key.reason, "disabled a damaged key");
            }
            Ok(damaged.len() as u64)
        }
        Err(KeySetError::Store(error)) => Err(error),
        Err(other) => Err(StoreError::Database(other.to_string())),
    }
}

/// Batches with their keys, as claimed in the database.
struct Claimed {
    sent_at: Duration,
    batches: Vec<(ClaimedBatch, Arc<crate::signing::PrivateKey>)>,
    shortage: Option<Shortage>,
    damaged: u64,
}

/// Checks out in the database and finds the private keys; what has none is given up again.
fn claim(
    store: &dyn Store,
    keys: &Mutex<KeySet>,
    clock: &dyn Clock,
    request: &db::CheckOut,
) -> Result<Claimed, StoreError> {
    let sent_at = clock.now();
    let checked_out = store.check_out(request)?;
    let lookup = |keys: &Mutex<KeySet>, batch: &ClaimedBatch| {
        keys.lock().unwrap_or_else(PoisonError::into_inner).key(batch.key_use.key)
    };
    let mut damaged = 0;
    if checked_out.batches.iter().any(|batch| lookup(keys, batch).is_none()) {
        // A key that was added or enabled since; or one that cannot be unsealed and is disabled.
        // An error here must not keep what was claimed.
        match refresh(keys) {
            Ok(found) => damaged = found,
            Err(error) => tracing::warn!(%error, "could not read the keys again"),
        }
    }
    let mut batches = Vec::with_capacity(checked_out.batches.len());
    let mut keyless = Vec::new();
    for batch in checked_out.batches {
        match lookup(keys, &batch) {
            Some(key) => batches.push((batch, key)),
            None => keyless.push(GiveUp { key_use: batch.key_use, failure: None }),
        }
    }
    if !keyless.is_empty() {
        tracing::warn!(batches = keyless.len(), "gave batches back: their keys do not unseal");
        store.give_up(request.ring, &keyless)?;
    }
    Ok(Claimed { sent_at, batches, shortage: checked_out.shortage, damaged })
}

impl Actor for KeyManager {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(self.settings.lease / 3, KeyManager::keep_house);
    }
}

impl Handler<CheckOut> for KeyManager {
    type Result = AtomicResponse<Self, Result<Granted, StoreError>>;

    fn handle(&mut self, message: CheckOut, _: &mut Self::Context) -> Self::Result {
        let store = Arc::clone(&self.store);
        let keys = Arc::clone(&self.keys);
        let clock = Arc::clone(&self.clock);
        let request = db::CheckOut {
            ring: self.settings.ring,
            max_batches: message.max_batches,
            batch_size: self.settings.batch_size,
        };
        let work = off_thread(move || claim(store.as_ref(), &keys, clock.as_ref(), &request));
        AtomicResponse::new(Box::pin(
            work.into_actor(self)
                .map(|result, actor, _| result.map(|claimed| actor.grant(claimed))),
        ))
    }
}

impl Handler<ReturnKey> for KeyManager {
    type Result = AtomicResponse<Self, Result<Outcome, StoreError>>;

    fn handle(&mut self, message: ReturnKey, _: &mut Self::Context) -> Self::Result {
        let key_use = message.key_use;
        self.open.remove(&key_use.fence);
        let failure = match message.how {
            Return::Ended(outcome) => {
                return AtomicResponse::new(Box::pin(actix::fut::ready(Ok(outcome))));
            }
            Return::GiveUp { failure } => failure,
        };
        let store = Arc::clone(&self.store);
        let work = off_thread(move || {
            let outcomes = store.give_up(key_use.ring, &[GiveUp { key_use, failure }])?;
            Ok(outcomes.first().copied().unwrap_or(Outcome::Abandoned))
        });
        AtomicResponse::new(Box::pin(work.into_actor(self)))
    }
}

impl Handler<Observe<KeyManagerSnapshot>> for KeyManager {
    type Result = KeyManagerSnapshot;

    fn handle(&mut self, _: Observe<KeyManagerSnapshot>, _: &mut Self::Context) -> Self::Result {
        KeyManagerSnapshot { open_uses: self.open.len(), ..self.snapshot }
    }
}

impl Handler<Stop> for KeyManager {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        for open in self.open.values() {
            let KeyUse { fence, batch, key, .. } = open.key_use;
            tracing::warn!(%fence, %batch, %key, "stopping with a key use open: its lease must end");
        }
        context.stop();
    }
}
