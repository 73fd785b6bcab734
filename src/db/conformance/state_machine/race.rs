//! The same operations by both clients at once. What a client is told cannot be predicted; but no
//! two answers may contradict each other, nor the tables in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use super::Database;
use super::operations::{Client, Draft, Flaw, Operation, Pick};
use crate::db::conformance::actions::{add_keys, check_out, give_up, sign, sign_all};
use crate::db::conformance::fixture::{Fixture, Raw};
use crate::db::conformance::judge::assert_signed;
use crate::db::{
    ClaimedBatch, NewRecord, ReclaimScope, Refusal, SignedBatch, Store, StoreError, StoreOutcome,
};
use crate::types::{Fence, KeyId, Kid, Outcome, RecordId, RingId};

/// A ring under two clients.
pub(super) struct Race<'a, F> {
    fixture: &'a F,
    stores: &'a [Arc<dyn Store>; 2],
    ring: RingId,
    keys: Mutex<Vec<KeyId>>,
    claims: Mutex<Vec<(Client, ClaimedBatch)>>,
    /// How the uses ended that a client has heard of the end of.
    ends: Mutex<BTreeMap<Fence, Outcome>>,
    /// A record that has a signature.
    signed: Mutex<Option<RecordId>>,
    /// The id for the next record in front of all others. Held until it is there: were a lower one
    /// there before it, this one would come into the middle of a batch.
    front: Mutex<&'a mut i64>,
    records: AtomicU32,
}

/// What happened in a race.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcomes {
    pub(super) stored: u32,
    pub(super) reclaimed: u32,
}

impl<'a, F: Fixture> Race<'a, F> {
    /// Runs each client's operations on a thread of its own, whatever client they name. Then signs
    /// what is left, and has everything judged.
    pub(super) fn run(database: &'a mut Database<F>, operations: [&[Operation]; 2]) -> Outcomes {
        let (_, ring) = database.add_ring();
        let race = Race {
            fixture: &database.fixture,
            stores: &database.stores,
            ring,
            keys: Mutex::default(),
            claims: Mutex::default(),
            ends: Mutex::default(),
            signed: Mutex::default(),
            front: Mutex::new(&mut database.front),
            records: AtomicU32::new(0),
        };
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            for client in Client::BOTH {
                let (race, barrier, operations) = (&race, &barrier, operations[client as usize]);
                scope.spawn(move || {
                    barrier.wait();
                    Runner { race, client, serial: 0, open_intake: None }.run_all(operations);
                });
            }
        });
        race.finish()
    }

    fn finish(self) -> Outcomes {
        let [store, other] = self.stores;
        self.fixture.settle();
        self.fixture.expire(&format!("ring_id = {}", self.ring));
        let reclaimed = other.reclaim(self.ring, ReclaimScope::Expired).unwrap();
        for (key_use, _) in reclaimed.uses {
            self.learn(key_use.fence, Outcome::Reclaimed);
        }
        add_keys(&**store, self.ring, 1);
        sign_all(self.fixture, &**store, self.ring, 7);
        assert_signed(self.fixture, &**store, self.ring, self.records.into_inner());

        let rows = self.fixture.rows(&format!(
            "SELECT fence || ' ' || outcome AS value FROM key_uses WHERE ring_id = {}",
            self.ring
        ));
        let claims = self.claims.into_inner().unwrap();
        let ends = self.ends.into_inner().unwrap();
        for (_, batch) in &claims {
            let fence = batch.key_use.fence;
            let told = format!("{fence} {}", ends[&fence]);
            assert!(rows.contains(&told), "a client was told {told}: {rows:?}");
        }
        let count = |outcome| ends.values().filter(|end| **end == outcome).count() as u32;
        Outcomes { stored: count(Outcome::Stored), reclaimed: count(Outcome::Reclaimed) }
    }

    /// Takes note of how a use ended; whoever heard of it before must have heard the same.
    fn learn(&self, fence: Fence, outcome: Outcome) {
        let mut ends = self.ends.lock().unwrap();
        let known = *ends.entry(fence).or_insert(outcome);
        assert_eq!(known, outcome, "the end of use {fence}");
    }

    fn known(&self, fence: Fence) -> Option<Outcome> {
        self.ends.lock().unwrap().get(&fence).copied()
    }

    fn added(&self, records: usize) {
        self.records.fetch_add(records as u32, Ordering::Relaxed);
    }
}

/// One client in a race.
struct Runner<'r, 'a, F> {
    race: &'r Race<'a, F>,
    client: Client,
    serial: u32,
    open_intake: Option<(Raw, u8)>,
}

impl<F: Fixture> Runner<'_, '_, F> {
    fn run_all(mut self, operations: &[Operation]) {
        for operation in operations {
            self.run(operation);
        }
        self.close_intake(true);
    }

    fn store(&self) -> &dyn Store {
        &*self.race.stores[self.client as usize]
    }

    fn run(&mut self, operation: &Operation) {
        let (race, ring) = (self.race, self.race.ring);
        match operation {
            Operation::Insert(_, drafts) => self.insert(drafts),
            Operation::OpenIntake(count) => self.open_intake(*count),
            Operation::CloseIntake { commit } => self.close_intake(*commit),
            Operation::PutFirst => self.put_first(),
            Operation::AddKeys(_, count) => {
                let added = add_keys(self.store(), ring, *count);
                race.keys.lock().unwrap().extend(added);
            }
            Operation::ChangeKey(_, key, event) => {
                let keys = race.keys.lock().unwrap().clone();
                let Some(n) = usize::from(*key).checked_rem(keys.len()) else { return };
                let kid = Kid(format!("kid-{}", keys[n]));
                match self.store().change_key(&kid, *event, self.client.node(), None) {
                    Ok(_) | Err(StoreError::IllegalChange { .. } | StoreError::KeyInUse { .. }) => {
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Operation::CheckOut { max_batches, batch_size, .. } => {
                let batches = check_out(self.store(), ring, *max_batches, *batch_size).batches;
                let mut claims = race.claims.lock().unwrap();
                claims.extend(batches.into_iter().map(|batch| (self.client, batch)));
            }
            Operation::Load(_, pick, _) => {
                for (_, batch) in self.resolve(&[*pick]) {
                    sign(self.store(), &batch);
                }
            }
            Operation::Store(_, picks, flaw) => self.store_batches(picks, *flaw),
            Operation::GiveUp { uses, failed, .. } => self.give_up(uses, *failed),
            Operation::Renew(_, picks) => self.renew(picks),
            Operation::Expire(_, picks) => {
                for (_, batch) in self.resolve(picks) {
                    let fence = batch.key_use.fence;
                    race.fixture.expire(&format!("ring_id = {ring} AND fence = {fence}"));
                }
            }
            Operation::Reclaim(_, scope) => {
                for (key_use, _) in self.store().reclaim(ring, *scope).unwrap().uses {
                    race.learn(key_use.fence, Outcome::Reclaimed);
                }
            }
            Operation::Sweep(_) => {
                self.store().sweep(ring).unwrap();
            }
        }
    }

    fn insert(&mut self, drafts: &[Draft]) {
        let mut new: Vec<NewRecord> = drafts.iter().map(|d| d.record(&mut self.serial)).collect();
        // Two inserts of the same names in different orders may deadlock, and one is repeated.
        new.sort_by(|a, b| a.external_id.cmp(&b.external_id));
        let inserted = self.store().insert_records(self.race.ring, &new).unwrap();
        let conflicts = inserted.conflicts.len();
        assert_eq!((inserted.added + inserted.unchanged) as usize + conflicts, new.len());
        self.race.added(inserted.added as usize);
    }

    fn open_intake(&mut self, count: u8) {
        if self.open_intake.is_none()
            && let Some(mut session) = self.race.fixture.begin()
        {
            for _ in 0..count {
                let (ring, payload) = (self.race.ring, F::PAYLOAD);
                session.run(&format!(
                    "INSERT INTO records (ring_id, payload) VALUES ({ring}, {payload})"
                ));
            }
            self.open_intake = Some((session, count));
        }
    }

    fn close_intake(&mut self, commit: bool) {
        if let Some((mut session, count)) = self.open_intake.take() {
            session.run(if commit { "COMMIT" } else { "ROLLBACK" });
            self.race.added(if commit { count.into() } else { 0 });
        }
    }

    fn put_first(&self) {
        let mut front = self.race.front.lock().unwrap();
        let (id, ring, payload, xid) = (**front, self.race.ring, F::PAYLOAD, F::FIRST_XID);
        self.race.fixture.run(&format!(
            "INSERT INTO records (id, ring_id, payload, inserted_xid)
             VALUES ({id}, {ring}, {payload}, {xid})"
        ));
        **front -= 1;
        self.race.added(1);
    }

    fn store_batches(&self, picks: &[Pick], flaw: Option<Flaw>) {
        let picked = self.resolve(picks);
        let known: Vec<Option<Outcome>> = picked.iter().map(|use_| self.standing(use_)).collect();
        let mut group: Vec<SignedBatch> =
            picked.iter().map(|(_, batch)| sign(self.store(), batch)).collect();
        let signed = *self.race.signed.lock().unwrap();
        let mut is_flawed = false;
        if let (Some(flaw), Some(first)) = (flaw, group.first_mut()) {
            match (flaw, signed) {
                (Flaw::Missing, _) => first.signatures.truncate(first.signatures.len() - 1),
                (Flaw::SignedBefore, Some(record)) => first.signatures[0].0 = record,
                (Flaw::SignedBefore, None) => return,
            }
            is_flawed = true;
        }
        let outcomes = match self.store().store_batches(self.race.ring, &group) {
            Ok(outcomes) => outcomes,
            Err(StoreError::Refused(Refusal::Count { .. } | Refusal::DoubleSign(_))) => {
                assert!(is_flawed && known[0].is_none(), "refused without a reason");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(outcomes.len(), group.len());
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let (owner, batch) = &picked[n];
            let end = match outcome {
                StoreOutcome::Stored => {
                    assert_eq!(known[n], None, "stored once, by its owner");
                    assert!(!is_flawed || n > 0, "stored with a flaw");
                    *self.race.signed.lock().unwrap() = Some(group[n].signatures[0].0);
                    Outcome::Stored
                }
                StoreOutcome::AlreadyStored => {
                    assert_eq!(known[n], Some(Outcome::Stored));
                    Outcome::Stored
                }
                StoreOutcome::Fenced(outcome) => outcome,
            };
            assert_eq!(known[n].unwrap_or(end), end, "what was known of {batch:?}");
            if *owner == self.client {
                self.race.learn(batch.key_use.fence, end);
            }
        }
    }

    fn give_up(&self, picks: &[Pick], failed: bool) {
        let picked = self.resolve(picks);
        let known: Vec<Option<Outcome>> = picked.iter().map(|use_| self.standing(use_)).collect();
        let failure = failed.then_some("a failure");
        let uses: Vec<_> = picked.iter().map(|(_, batch)| give_up(batch, failure)).collect();
        let outcomes = self.store().give_up(self.race.ring, &uses).unwrap();
        for (n, (owner, batch)) in picked.iter().enumerate() {
            assert_eq!(known[n].unwrap_or(outcomes[n]), outcomes[n], "of {batch:?}");
            if *owner == self.client {
                self.race.learn(batch.key_use.fence, outcomes[n]);
            }
        }
    }

    fn renew(&self, picks: &[Pick]) {
        let picked = self.resolve(picks);
        let open = picked.iter().filter(|use_| self.standing(use_).is_none());
        let open: Vec<Fence> = open.map(|(_, batch)| batch.key_use.fence).collect();
        let all: Vec<Fence> = picked.iter().map(|(_, batch)| batch.key_use.fence).collect();
        let renewed = self.store().renew(self.race.ring, &all).unwrap();
        assert!(renewed.iter().all(|fence| open.contains(fence)), "{renewed:?} of {open:?}");
    }

    /// What this client must hear of a use, if that is certain.
    fn standing(&self, (owner, batch): &(Client, ClaimedBatch)) -> Option<Outcome> {
        if *owner == self.client {
            self.race.known(batch.key_use.fence)
        } else {
            Some(Outcome::Reclaimed)
        }
    }

    /// The uses that are meant, each once.
    fn resolve(&self, picks: &[Pick]) -> Vec<(Client, ClaimedBatch)> {
        let claims = self.race.claims.lock().unwrap();
        let mut picked: Vec<(Client, ClaimedBatch)> = Vec::new();
        for pick in picks {
            let (n, whose, has_ended) = match *pick {
                Pick::Mine(n) => (n, Some(self.client), false),
                Pick::Theirs(n) => (n, Some(self.client.other()), false),
                Pick::Ended(n) => (n, None, true),
            };
            let meant: Vec<&(Client, ClaimedBatch)> = claims
                .iter()
                .filter(|(owner, batch)| {
                    self.race.known(batch.key_use.fence).is_some() == has_ended
                        && whose.is_none_or(|client| *owner == client)
                })
                .collect();
            if let Some(n) = usize::from(n).checked_rem(meant.len())
                && picked.iter().all(|(_, batch)| batch.key_use != meant[n].1.key_use)
            {
                picked.push(meant[n].clone());
            }
        }
        picked
    }
}
