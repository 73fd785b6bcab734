//! The node's only door to its keys.
//!
//! Invariant: a private key leaves this actor only inside a [`Checkout`] whose key use is open in
//! the database, and database work is done one piece at a time, in the order it was asked for. Only
//! the reclaim of others' uses waits for no turn: what it frees is what a turn may be waiting for.
//! The mailbox stays open meanwhile: a slow database delays no snapshot and no stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::Mutex as Turns;

use super::key_handle::KeyHandle;
use super::key_set::{KeySet, KeySetError};
use super::messages::{CheckOut, Checkout, Granted, Observe, Return, ReturnKey, Stop};
use super::off_thread;
use super::outage::Outages;
use super::troubles::{Place, Reminder, Troubles};
use crate::clock::{Clock, Deadline};
use crate::db::{
    self, ClaimedBatch, GiveUp, KeyUse, ReclaimScope, Reclaimed, Retirement, Shortage, Store,
    StoreError,
};
use crate::failpoint::reach;
use crate::metrics::Timings;
use crate::types::{BatchSize, Fence, NodeId, Outcome, RingId};

/// The longest pause between two looks for expired uses.
const RECLAIM_PAUSE: Duration = Duration::from_millis(500);

/// How many keys one round of housekeeping replaces, at the most.
const MOST_REPLACED: u32 = 100;

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
    /// When a key is retired, and a fresh one takes its place.
    pub retirement: Retirement,
}

impl KeyManagerSettings {
    /// How long before the end of a lease a node starts no more signatures.
    fn margin(&self) -> Duration {
        self.lease / 10
    }

    fn reclaim_pause(&self) -> Duration {
        RECLAIM_PAUSE.min(self.lease / 3)
    }
}

/// The actor.
pub struct KeyManager {
    settings: KeyManagerSettings,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// Locked only by this actor's own work off the thread, of which there is one at a time.
    keys: Arc<Mutex<KeySet>>,
    /// Held by the piece of database work under way; fair, so that the others keep their order.
    turns: Arc<Turns<()>>,
    /// The uses of this node, until the database is known to have ended them.
    open: BTreeMap<Fence, OpenCheckout>,
    /// A checkout may have left uses open in the database that are not in `open`.
    lost_track: bool,
    outages: Outages,
    failing_reclaims: Reminder,
    troubles: Troubles,
    timings: Timings,
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
        troubles: Troubles,
        timings: Timings,
    ) -> Self {
        let snapshot = KeyManagerSnapshot { keys: keys.len(), ..KeyManagerSnapshot::default() };
        let outages = Outages::new(settings.lease);
        KeyManager {
            settings,
            store,
            clock,
            keys: Arc::new(Mutex::new(keys)),
            turns: Arc::default(),
            open: BTreeMap::new(),
            lost_track: false,
            outages,
            failing_reclaims: Reminder::default(),
            troubles,
            timings,
            snapshot,
        }
    }

    /// Runs database work off the thread when all that was asked for before is done. `prepare` is
    /// called when its turn has come.
    fn in_turn<T: Send + 'static, W>(
        &self,
        prepare: impl FnOnce(&Self) -> W + 'static,
    ) -> impl ActorFuture<Self, Output = Result<T, StoreError>> + 'static
    where
        W: FnOnce() -> Result<T, StoreError> + Send + 'static,
    {
        let turn = Arc::clone(&self.turns).lock_owned();
        turn.into_actor(self).then(move |turn, actor, _| {
            let work = prepare(actor);
            let done = async move {
                let result = off_thread(work).await;
                drop(turn);
                result
            };
            done.into_actor(actor)
        })
    }

    /// Renews, and reads the keys' status again: three times in a lease.
    fn keep_house(&mut self, context: &mut Context<Self>) {
        let round = self.in_turn(|actor| {
            let store = Arc::clone(&actor.store);
            let keys = Arc::clone(&actor.keys);
            let clock = Arc::clone(&actor.clock);
            let fences: Vec<Fence> = actor.open.keys().copied().collect();
            let lost = actor.lost_checkouts();
            let ring = actor.settings.ring;
            let retirement = actor.settings.retirement;
            move || {
                // One that fails must not keep the others from their work.
                let sent_at = clock.now();
                let renewed =
                    if fences.is_empty() { Ok(Vec::new()) } else { store.renew(ring, &fences) };
                let replaced = replace_due(store.as_ref(), &keys, ring, &retirement);
                let damaged = refresh(&keys);
                let found_lost = lost.map(|lost| lost.give_back(store.as_ref()));
                let keys = keys.lock().unwrap_or_else(PoisonError::into_inner).len();
                Ok(House { sent_at, renewed, replaced, damaged, found_lost, keys })
            }
        });
        context.spawn(round.map(|house, actor, context| {
            match house {
                Ok(house) => actor.note_house(house),
                Err(error) => tracing::warn!(%error, "a round of housekeeping failed"),
            }
            // Not by an interval: that would make up for every round that a slow database missed.
            context.run_later(actor.settings.lease / 3, KeyManager::keep_house);
        }));
    }

    /// Ends uses whose nodes did not, soon after their leases; after an outage it renews its own
    /// first, and gives the others time for that.
    fn reclaim_expired(&mut self, context: &mut Context<Self>) {
        let store = Arc::clone(&self.store);
        let ring = self.settings.ring;
        let respite = self.outages.give_respite(self.clock.now());
        let own: Vec<Fence> = self.open.keys().copied().collect();
        let reclaim = off_thread(move || {
            if !respite {
                return store.reclaim(ring, ReclaimScope::Expired);
            }
            let terminated_sessions = store.end_frozen_sessions()?;
            // Only a write shows that there is room for others'.
            if !own.is_empty() {
                store.renew(ring, &own)?;
            } else if let Some(trouble) = store.write_trouble()? {
                return Err(StoreError::Storage(trouble));
            }
            Ok(Reclaimed { terminated_sessions, ..Reclaimed::default() })
        });
        context.spawn(reclaim.into_actor(self).map(|reclaimed, actor, context| {
            actor.troubles.note(Place::Reclaim, &reclaimed);
            let now = actor.clock.now();
            match reclaimed {
                Ok(reclaimed) => {
                    actor.outages.succeeded(now);
                    actor.failing_reclaims.reset();
                    actor.note_reclaim(&reclaimed);
                }
                Err(error) => {
                    if error.is_outage() {
                        actor.outages.failed(now);
                    }
                    if actor.failing_reclaims.is_due() {
                        tracing::warn!(%error, "could not reclaim expired key uses");
                    }
                }
            }
            context.run_later(actor.settings.reclaim_pause(), KeyManager::reclaim_expired);
        }));
    }

    fn note_house(&mut self, house: House) {
        self.troubles.clear(Place::Housekeeping);
        match house.renewed {
            Ok(renewed) => {
                let until = house.sent_at + self.settings.lease - self.settings.margin();
                for open in renewed.iter().filter_map(|fence| self.open.get(fence)) {
                    open.deadline.extend(until);
                }
                self.snapshot.renewed += renewed.len() as u64;
            }
            Err(error) => {
                if error.is_outage() {
                    self.outages.failed(self.clock.now());
                }
                self.troubles.set(Place::Housekeeping, error.to_string());
                tracing::warn!(%error, "could not renew leases");
            }
        }
        match house.replaced {
            Ok(0) => {}
            Ok(keys) => tracing::info!(keys, "retired keys on schedule, and replaced them"),
            Err(error) => {
                self.troubles.set(Place::Housekeeping, error.to_string());
                tracing::warn!(%error, "could not replace keys that are due to retire");
            }
        }
        match house.damaged {
            Ok(damaged) => self.snapshot.damaged_keys += damaged,
            Err(error) => {
                self.troubles.set(Place::Housekeeping, error.to_string());
                tracing::warn!(%error, "could not read the keys again");
            }
        }
        match house.found_lost {
            Some(Ok(())) => self.lost_track = false,
            Some(Err(error)) => {
                self.troubles.set(Place::Housekeeping, error.to_string());
                tracing::warn!(%error, "could not look for lost checkouts");
            }
            None => {}
        }
        self.snapshot.keys = house.keys;
    }

    /// What it takes to find uses that a checkout left behind, if one may have.
    fn lost_checkouts(&self) -> Option<LostCheckouts> {
        self.lost_track.then(|| LostCheckouts {
            ring: self.settings.ring,
            node: self.settings.node.clone(),
            known: self.open.keys().copied().collect(),
        })
    }

    fn note_reclaim(&mut self, reclaimed: &Reclaimed) {
        log_reclaim(reclaimed);
        self.snapshot.reclaimed += reclaimed.uses.len() as u64;
    }

    /// Turns claimed batches into checkouts.
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
        self.lost_track = claimed.left_open;
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

/// Retires keys that have signed for long enough, if any ever do; how many.
fn replace_due(
    store: &dyn Store,
    keys: &Mutex<KeySet>,
    ring: RingId,
    retirement: &Retirement,
) -> Result<u32, KeySetError> {
    if retirement.is_never() {
        return Ok(0);
    }
    let due = store.due_keys(ring, retirement, MOST_REPLACED)?;
    if due.is_empty() {
        return Ok(0);
    }
    keys.lock().unwrap_or_else(PoisonError::into_inner).replace(&due)
}

/// What a round of housekeeping did.
struct House {
    sent_at: Duration,
    renewed: Result<Vec<Fence>, StoreError>,
    replaced: Result<u32, KeySetError>,
    damaged: Result<u64, StoreError>,
    found_lost: Option<Result<(), StoreError>>,
    keys: usize,
}

/// A search for open uses of this node that nobody here knows: those of a checkout that committed
/// and whose reply was lost. Nobody signs for them, and nobody renews them.
struct LostCheckouts {
    ring: RingId,
    node: NodeId,
    known: BTreeSet<Fence>,
}

impl LostCheckouts {
    fn give_back(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut lost = Vec::new();
        for open in store.open_uses()? {
            let key_use = open.key_use;
            let ours = open.node == self.node && key_use.ring == self.ring;
            if ours && !self.known.contains(&key_use.fence) {
                lost.push(GiveUp { key_use, failure: None });
            }
        }
        if !lost.is_empty() {
            store.give_up(self.ring, &lost)?;
            tracing::warn!(batches = lost.len(), "gave back what a lost checkout had claimed");
        }
        Ok(())
    }
}

/// Batches with their keys, as claimed in the database.
struct Claimed {
    sent_at: Duration,
    batches: Vec<(ClaimedBatch, KeyHandle)>,
    shortage: Option<Shortage>,
    damaged: u64,
    /// Uses without a key could not be given up.
    left_open: bool,
}

/// Checks out in the database and finds the private keys; what has none is given up again.
fn claim(
    store: &dyn Store,
    keys: &Mutex<KeySet>,
    clock: &dyn Clock,
    timings: &Timings,
    request: &db::CheckOut,
) -> Result<Claimed, StoreError> {
    let sent_at = clock.now();
    reach("key_manager", "checking_out");
    let checked_out = store.check_out(request)?;
    reach("key_manager", "checked_out");
    let took = clock.now() - sent_at;
    timings.check_out.observe(took.as_secs_f64());
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(batches = checked_out.batches.len(), took_us, "checked out");
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
    let mut shortage = checked_out.shortage;
    let mut left_open = false;
    if !keyless.is_empty() {
        // To ask again at once would check the same keys out again.
        shortage = Some(Shortage::NoFreeKey);
        // An error here must not keep the others from being signed either.
        match store.give_up(request.ring, &keyless) {
            Ok(_) => tracing::warn!(
                batches = keyless.len(),
                "gave batches back: their keys do not unseal"
            ),
            Err(error) => {
                tracing::warn!(%error, "could not give batches back whose keys do not unseal");
                left_open = true;
            }
        }
    }
    Ok(Claimed { sent_at, batches, shortage, damaged, left_open })
}

impl Actor for KeyManager {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_later(self.settings.lease / 3, KeyManager::keep_house);
        // Not yet: the first check-out goes first.
        context.run_later(self.settings.reclaim_pause(), KeyManager::reclaim_expired);
    }
}

impl Handler<CheckOut> for KeyManager {
    type Result = ResponseActFuture<Self, Result<Granted, StoreError>>;

    fn handle(&mut self, message: CheckOut, _: &mut Self::Context) -> Self::Result {
        let claimed = self.in_turn(move |actor| {
            let store = Arc::clone(&actor.store);
            let keys = Arc::clone(&actor.keys);
            let timings = actor.timings.clone();
            let clock = Arc::clone(&actor.clock);
            let lost = actor.lost_checkouts();
            let request = db::CheckOut {
                ring: actor.settings.ring,
                max_batches: message.max_batches,
                batch_size: actor.settings.batch_size,
            };
            move || {
                if let Some(lost) = lost {
                    lost.give_back(store.as_ref())?;
                }
                claim(store.as_ref(), &keys, clock.as_ref(), &timings, &request)
            }
        });
        Box::pin(claimed.map(|claimed, actor, _| match claimed {
            Ok(claimed) => Ok(actor.grant(claimed)),
            Err(error) => {
                actor.lost_track = true;
                Err(error)
            }
        }))
    }
}

impl Handler<ReturnKey> for KeyManager {
    type Result = ResponseActFuture<Self, Result<Outcome, StoreError>>;

    fn handle(&mut self, message: ReturnKey, _: &mut Self::Context) -> Self::Result {
        let key_use = message.key_use;
        let failure = match message.how {
            Return::Ended(outcome) => {
                self.open.remove(&key_use.fence);
                return Box::pin(actix::fut::ready(Ok(outcome)));
            }
            Return::GiveUp { failure } => failure,
        };
        let given_up = self.in_turn(move |actor| {
            let store = Arc::clone(&actor.store);
            move || {
                reach("key_manager", "returning");
                let outcomes = store.give_up(key_use.ring, &[GiveUp { key_use, failure }])?;
                Ok(outcomes.first().copied().unwrap_or(Outcome::Abandoned))
            }
        });
        Box::pin(given_up.map(move |outcome, actor, _| {
            // Whoever gets an error that may pass asks again. After any other the lease must end
            // the use, and is renewed no more.
            if !outcome.as_ref().is_err_and(StoreError::is_retryable) {
                actor.open.remove(&key_use.fence);
            }
            outcome
        }))
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
