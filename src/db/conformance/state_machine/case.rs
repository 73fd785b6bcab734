//! One list of operations, done to a store and to its reference at once, and compared after each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::operations::{Client, Draft, Flaw, Operation, Pick};
use super::reference::{KeyChange, Reference};
use super::{Database, MAX_ATTEMPTS};
use crate::db::conformance::actions::{add_keys, check_out, signature};
use crate::db::conformance::fixture::{Fixture, Raw, wait_for};
use crate::db::conformance::judge::{assert_lawful, history};
use crate::db::{
    Batch, GiveUp, KeyUse, NewRecord, ReclaimScope, Refusal, SignedBatch, Store, StoreError,
    StoreOutcome,
};
use crate::types::{
    BatchId, BatchRange, BatchState, Fence, KeyEvent, KeyId, KeyStatus, Kid, Outcome, Position,
    Record, RecordId, RingId, Tick,
};

/// How often each thing worth testing has happened.
pub(super) type Tally = BTreeMap<&'static str, u32>;

/// What enough cases come upon for certain. The rest of the tally is rare enough to be missing
/// from one run in many.
pub(super) fn worth_testing<F: Fixture>() -> Vec<&'static str> {
    let mut all = vec![
        "batches checked out",
        "batches checked out again",
        "batches stored",
        "changes of keys",
        "records in conflict",
        "records swept",
        "records that were there already",
        "stores after a reclaim",
        "uses reclaimed",
    ];
    if F::SIDE_BY_SIDE {
        all.extend(["records committed late", "records held back by a transaction"]);
    }
    all
}

/// A ring with its reference.
pub(super) struct Case<'a, F> {
    database: &'a mut Database<F>,
    reference: Reference,
    name: String,
    /// How many records without external id there are.
    serial: u32,
    open_intake: Option<(Raw, Vec<NewRecord>)>,
    tally: Tally,
}

impl<'a, F: Fixture> Case<'a, F> {
    pub(super) fn new(database: &'a mut Database<F>) -> Self {
        let (name, ring) = database.add_ring();
        Case {
            reference: Reference::new(ring, F::SIDE_BY_SIDE, MAX_ATTEMPTS),
            database,
            name,
            serial: 0,
            open_intake: None,
            tally: Tally::new(),
        }
    }

    fn store(&self, client: Client) -> Arc<dyn Store> {
        self.database.stores[client as usize].clone()
    }

    fn ring(&self) -> RingId {
        self.reference.ring
    }

    fn count(&mut self, what: &'static str, times: usize) {
        *self.tally.entry(what).or_default() += times as u32;
    }

    /// Does one operation to both and compares what it answers, and then all there is.
    pub(super) fn run(&mut self, operation: &Operation) {
        let observer = match operation {
            Operation::Insert(client, drafts) => self.insert(*client, drafts),
            Operation::OpenIntake(count) => self.open_intake(*count),
            Operation::CloseIntake { commit } => self.close_intake(*commit),
            Operation::PutFirst => self.put_first(),
            Operation::AddKeys(client, count) => self.add_keys(*client, *count),
            Operation::ChangeKey(client, key, event) => self.change_key(*client, *key, *event),
            Operation::CheckOut { client, max_batches, batch_size } => {
                self.check_out(*client, *max_batches, *batch_size)
            }
            Operation::Load(client, pick, max_bytes) => self.load(*client, *pick, *max_bytes),
            Operation::Store(client, picks, flaw) => self.store_batches(*client, picks, *flaw),
            Operation::GiveUp { client, uses, failed } => self.give_up(*client, uses, *failed),
            Operation::Renew(client, picks) => self.renew(*client, picks),
            Operation::Expire(client, picks) => self.expire(*client, picks),
            Operation::Reclaim(client, scope) => self.reclaim(*client, *scope),
            Operation::Sweep(client) => self.sweep(*client),
        };
        // What one client has done, the other must see.
        self.compare(observer.other());
    }

    /// Signs all that is left, with both clients in turn, and has everything judged; how often
    /// what has happened.
    pub(super) fn finish(mut self) -> Tally {
        let (a, b) = (Client::A, Client::B);
        self.run(&Operation::CloseIntake { commit: true });
        if !self.reference.has_active_key() {
            self.run(&Operation::AddKeys(a, 2));
        }
        let everything = [Pick::Mine, Pick::Theirs].map(|pick| (0..=255).map(pick));
        self.run(&Operation::Expire(a, everything.into_iter().flatten().collect()));
        self.run(&Operation::Reclaim(b, ReclaimScope::Expired));
        while !self.reference.remaining().is_done() {
            let tick = self.reference.tick;
            self.run(&Operation::Sweep(a));
            for (client, max_batches) in [(a, 1), (b, 3)] {
                self.run(&Operation::CheckOut { client, max_batches, batch_size: 3 });
            }
            for client in [b, a] {
                let mine = (0..3).map(Pick::Mine).collect();
                self.run(&Operation::Store(client, mine, None));
            }
            assert!(self.reference.tick > tick, "what is left is never signed");
        }
        assert_eq!(self.reference.open_uses().count(), 0);
        assert_lawful(&self.database.fixture, &*self.store(a));
        self.tally
    }

    // Records

    fn insert(&mut self, client: Client, drafts: &[Draft]) -> Client {
        let new: Vec<NewRecord> = drafts.iter().map(|d| d.record(&mut self.serial)).collect();
        let expected = self.reference.insert(&new);
        assert_eq!(self.store(client).insert_records(self.ring(), &new).unwrap(), expected);
        self.count("records that were there already", expected.unchanged as usize);
        self.count("records in conflict", expected.conflicts.len());
        client
    }

    fn open_intake(&mut self, count: u8) -> Client {
        if self.open_intake.is_none()
            && let Some(mut session) = self.database.fixture.begin()
        {
            let new: Vec<NewRecord> =
                (0..count).map(|_| Draft::Anonymous.record(&mut self.serial)).collect();
            for record in &new {
                let payload = F::payload(str::from_utf8(&record.payload).unwrap());
                session.run(&format!(
                    "INSERT INTO records (ring_id, payload) VALUES ({}, {payload})",
                    self.ring()
                ));
            }
            let id = session.number("SELECT pg_current_xact_id()::TEXT::BIGINT AS value");
            self.reference.open_transaction = Some(id);
            self.open_intake = Some((session, new));
        }
        Client::A
    }

    fn close_intake(&mut self, commit: bool) -> Client {
        if let Some((mut session, new)) = self.open_intake.take() {
            let behind = self.reference.waiting().len();
            self.reference.open_transaction = None;
            let held_back = self.reference.waiting().len() - behind;
            self.count("records held back by a transaction", held_back);
            session.run(if commit { "COMMIT" } else { "ROLLBACK" });
            if commit {
                self.reference.insert(&new);
                self.count("records committed late", new.len());
            }
        }
        Client::B
    }

    fn put_first(&mut self) -> Client {
        let id = self.database.front;
        self.database.front -= 1;
        let text = format!("in front {id}");
        self.database.fixture.run(&format!(
            "INSERT INTO records (id, ring_id, payload, inserted_xid) VALUES ({id}, {}, {}, {})",
            self.ring(),
            F::payload(&text),
            F::FIRST_XID
        ));
        let position = Position { xid: F::FIRST_XID, id: RecordId(id) };
        let record = NewRecord { external_id: None, payload: text.into_bytes() };
        self.reference.add_record(&record, Some(position));
        Client::A
    }

    fn sweep(&mut self, client: Client) -> Client {
        let swept = self.store(client).sweep(self.ring()).unwrap();
        let last = self.reference.batches.last().map(|line| line.id);
        let made: Vec<BatchId> =
            self.batches_behind(client, last).iter().map(|batch| batch.id).collect();
        assert_eq!(swept, self.reference.sweep(&made), "records swept");
        self.count("records swept", swept as usize);
        client
    }

    // Keys

    fn add_keys(&mut self, client: Client, count: u32) -> Client {
        let added = add_keys(&*self.store(client), self.ring(), count);
        self.reference.add_keys(&added);
        client
    }

    fn change_key(&mut self, client: Client, key: u8, event: KeyEvent) -> Client {
        let id = self.reference.keys[usize::from(key) % self.reference.keys.len()].id;
        let kid = Kid(format!("kid-{id}"));
        let expected = self.reference.change_key(id, event);
        let found = match self.store(client).change_key(&kid, event, client.node(), None) {
            Ok(true) => KeyChange::Changed,
            Ok(false) => KeyChange::Unchanged,
            Err(StoreError::IllegalChange { .. }) => KeyChange::Illegal,
            Err(StoreError::KeyInUse { .. }) => KeyChange::InUse,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, expected, "{event} of key {id}");
        self.count("changes of keys", usize::from(found == KeyChange::Changed));
        client
    }

    // The protocol

    fn check_out(&mut self, client: Client, max_batches: u32, batch_size: u32) -> Client {
        self.settle();
        let retried = self.reference.progress().retry_batches;
        let answer = check_out(&*self.store(client), self.ring(), max_batches, batch_size);
        let ids: Vec<BatchId> = answer.batches.iter().map(|batch| batch.key_use.batch).collect();
        let claimed: Vec<(KeyUse, BatchRange, u32)> =
            answer.batches.iter().map(|b| (b.key_use, b.range, b.attempts)).collect();
        let expected =
            self.reference.check_out(client, max_batches as usize, batch_size as usize, &ids);
        assert_eq!((claimed, answer.shortage), expected, "what was checked out");
        self.count("batches checked out", ids.len());
        let retried = retried - self.reference.progress().retry_batches;
        self.count("batches checked out again", retried as usize);
        client
    }

    fn load(&mut self, client: Client, pick: Pick, max_bytes: usize) -> Client {
        if let [key_use] = self.resolve(client, &[pick])[..] {
            let range = self.reference.batch(key_use.batch).range;
            let store = self.store(client);
            let mut found: Vec<Record> = Vec::new();
            loop {
                let after = found.last().map(|record| record.position);
                let page = store.load_batch(self.ring(), &range, after, max_bytes).unwrap();
                if page.is_empty() {
                    break;
                }
                let bytes: usize = page.iter().map(|record| record.payload.len()).sum();
                assert!(page.len() == 1 || bytes <= max_bytes, "{bytes} bytes");
                found.extend(page);
            }
            assert_eq!(pairs(found), self.reference.records_of(key_use.batch), "records loaded");
        }
        client
    }

    fn store_batches(&mut self, client: Client, picks: &[Pick], flaw: Option<Flaw>) -> Client {
        let uses = self.resolve(client, picks);
        let signed_before = self.reference.signed().first().map(|(record, _)| *record);
        let flaw = flaw.filter(|flaw| *flaw == Flaw::Missing || signed_before.is_some());
        let flaws = |n: usize| flaw.filter(|_| n == 0);
        let group: Vec<SignedBatch> = uses
            .iter()
            .enumerate()
            .map(|(n, key_use)| {
                let mut batch = self.sign(client, *key_use);
                match (flaws(n), signed_before) {
                    (Some(Flaw::Missing), _) => {
                        batch.signatures.truncate(batch.signatures.len() - 1)
                    }
                    (Some(Flaw::SignedBefore), Some(record)) => batch.signatures[0].0 = record,
                    _ => {}
                }
                batch
            })
            .collect();
        let shown: Vec<_> = uses.iter().enumerate().map(|(n, u)| (u.fence, flaws(n))).collect();
        let expected = self.reference.store(client, &shown);
        let answer = self.store(client).store_batches(self.ring(), &group);
        let found = match answer {
            Ok(outcomes) => Ok(outcomes),
            Err(StoreError::Refused(Refusal::Count { expected, found })) => {
                assert_eq!(found + 1, expected, "one signature is missing");
                Err(Flaw::Missing)
            }
            Err(StoreError::Refused(Refusal::DoubleSign(_))) => Err(Flaw::SignedBefore),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, expected, "what became of the group {shown:?}");
        match found {
            Err(Flaw::Missing) => self.count("groups refused for a missing signature", 1),
            Err(Flaw::SignedBefore) => self.count("groups refused for a second signature", 1),
            Ok(outcomes) => {
                for outcome in outcomes {
                    self.count(
                        match outcome {
                            StoreOutcome::Stored => "batches stored",
                            StoreOutcome::AlreadyStored => "batches stored already",
                            StoreOutcome::Fenced(Outcome::Abandoned) => "stores after a give-up",
                            StoreOutcome::Fenced(_) => "stores after a reclaim",
                        },
                        1,
                    );
                }
            }
        }
        client
    }

    fn sign(&self, client: Client, key_use: KeyUse) -> SignedBatch {
        let range = self.reference.batch(key_use.batch).range;
        let records = self.store(client).load_batch(self.ring(), &range, None, usize::MAX).unwrap();
        let ids = records.iter().map(|record| record.position.id);
        let signatures = ids.map(|id| (id, signature(id, key_use.key))).collect();
        assert_eq!(pairs(records), self.reference.records_of(key_use.batch), "a batch's records");
        SignedBatch { key_use, signatures }
    }

    fn give_up(&mut self, client: Client, picks: &[Pick], failed: bool) -> Client {
        let uses = self.resolve(client, picks);
        let failure = failed.then(|| format!("failure at tick {}", self.reference.tick));
        let given_up: Vec<GiveUp> = uses
            .iter()
            .map(|key_use| GiveUp { key_use: *key_use, failure: failure.clone() })
            .collect();
        let answer = self.store(client).give_up(self.ring(), &given_up).unwrap();
        let expected = self.reference.give_up(client, &fences(&uses), failure.as_deref());
        assert_eq!(answer, expected, "how the uses ended");
        client
    }

    fn renew(&mut self, client: Client, picks: &[Pick]) -> Client {
        let fences = fences(&self.resolve(client, picks));
        let mut answer = self.store(client).renew(self.ring(), &fences).unwrap();
        let mut expected = self.reference.renew(client, &fences);
        answer.sort_unstable();
        expected.sort_unstable();
        assert_eq!(answer, expected, "uses renewed");
        self.count("leases renewed", answer.len());
        client
    }

    fn expire(&mut self, client: Client, picks: &[Pick]) -> Client {
        let fences = fences(&self.resolve(client, picks));
        for fence in &fences {
            let condition = format!("ring_id = {} AND fence = {fence}", self.ring());
            self.database.fixture.expire(&condition);
        }
        self.reference.set_expired(&fences, true);
        client
    }

    fn reclaim(&mut self, client: Client, scope: ReclaimScope) -> Client {
        let answer = self.store(client).reclaim(self.ring(), scope).unwrap();
        let expected = self.reference.reclaim(scope);
        assert_eq!(answer, expected, "what was reclaimed");
        self.count("uses reclaimed", answer.uses.len());
        self.count("batches quarantined", answer.quarantined.len());
        client
    }

    /// The uses that are meant, each once.
    fn resolve(&self, client: Client, picks: &[Pick]) -> Vec<KeyUse> {
        let mut uses: Vec<KeyUse> = Vec::new();
        for pick in picks {
            let (n, whose, is_open) = match *pick {
                Pick::Mine(n) => (n, Some(client), true),
                Pick::Theirs(n) => (n, Some(client.other()), true),
                Pick::Ended(n) => (n, None, false),
            };
            let lines = self.reference.uses.iter().filter(|line| {
                line.outcome.is_none() == is_open
                    && whose.is_none_or(|client| line.client == client)
            });
            let meant: Vec<KeyUse> = lines.map(|line| line.key_use).collect();
            if let Some(n) = usize::from(n).checked_rem(meant.len())
                && !uses.contains(&meant[n])
            {
                uses.push(meant[n]);
            }
        }
        uses
    }

    // The whole

    /// Waits until every record that is not held back can be checked out.
    fn settle(&self) {
        if let Some(newest) = self.reference.waiting().last()
            && F::SIDE_BY_SIDE
        {
            let xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT AS value";
            wait_for("older transactions to end", || {
                (self.database.fixture.number(xmin) > newest.xid).then_some(())
            });
        }
    }

    /// The ring's batches from behind `after`.
    fn batches_behind(&self, client: Client, after: Option<BatchId>) -> Vec<Batch> {
        let mut batches = self.store(client).batches(after, 10_000).unwrap();
        batches.retain(|batch| batch.ring == self.ring());
        batches
    }

    /// Compares all that a store can be asked.
    fn compare(&mut self, client: Client) {
        let (store, ring) = (self.store(client), self.ring());
        let all = BatchRange {
            low: Position::START,
            high: Position { xid: i64::MAX, id: RecordId(i64::MAX) },
            record_count: u32::MAX,
        };
        self.reference.learn(&pairs(store.load_batch(ring, &all, None, usize::MAX).unwrap()));
        self.settle();
        let reference = &self.reference;

        let row = store.ring(&self.name).unwrap();
        assert_eq!((row.tick.0, row.cursor), (reference.tick, reference.cursor), "tick and cursor");
        assert_eq!(history(&*store, ring, Tick(i64::MAX), 1000), reference.events, "the history");
        assert_eq!(store.has_work(ring).unwrap(), reference.has_work(), "whether there is work");
        assert_eq!(store.progress(ring).unwrap(), reference.progress());
        assert_eq!(store.remaining(ring).unwrap(), reference.remaining());
        assert_eq!(store.record_count(ring).unwrap(), reference.records.len() as u64);

        let keys: Vec<(KeyId, KeyStatus, i64, bool, u64)> = store
            .keys(ring)
            .unwrap()
            .iter()
            .map(|key| (key.id, key.status, key.last_tick.0, key.in_use, key.stored_uses))
            .collect();
        let expected: Vec<_> = reference
            .keys
            .iter()
            .map(|key| {
                let (in_use, uses) = (reference.is_in_use(key.id), reference.stored_uses(key.id));
                (key.id, key.status, key.last_tick, in_use, uses)
            })
            .collect();
        assert_eq!(keys, expected, "keys");

        let open: Vec<(KeyUse, String, bool)> = store
            .open_uses()
            .unwrap()
            .into_iter()
            .filter(|open| open.key_use.ring == ring)
            .map(|open| (open.key_use, open.node.0, open.expires_at < open.checked_out_at))
            .collect();
        let expected: Vec<_> = reference
            .open_uses()
            .map(|line| (line.key_use, line.client.node().to_owned(), line.expired))
            .collect();
        assert_eq!(open, expected, "open uses");

        let batches = self.batches_behind(client, None);
        assert_eq!(batches.len(), reference.batches.len(), "batches");
        for (batch, line) in batches.iter().zip(&reference.batches) {
            let found: (BatchId, BatchRange, BatchState, u32) =
                (batch.id, batch.range, batch.state, batch.attempts);
            assert_eq!(found, (line.id, line.range, line.state, line.attempts), "a batch");
            let says = batch.failure.as_deref().unwrap_or_default();
            let reason = line.failure.as_deref().unwrap_or_default();
            assert!(says.contains(reason) && says.is_empty() == reason.is_empty(), "{says:?}");
        }

        let signed: Vec<(RecordId, BatchId)> = store
            .memberships(None, 100_000)
            .unwrap()
            .into_iter()
            .filter(|row| row.place.is_none_or(|(of, _)| of == ring))
            .map(|row| (row.record, row.batch))
            .collect();
        assert_eq!(signed, reference.signed(), "signatures");
    }
}

fn fences(uses: &[KeyUse]) -> Vec<Fence> {
    uses.iter().map(|key_use| key_use.fence).collect()
}

fn pairs(records: Vec<Record>) -> Vec<(Position, Vec<u8>)> {
    records.into_iter().map(|record| (record.position, record.payload)).collect()
}
