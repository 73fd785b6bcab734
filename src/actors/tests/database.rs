//! A database of a test's own, with its judge.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Binary};
use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};

use super::faulty_store::FaultyStore;
use super::scripted_signer::SigningScript;
use crate::actors::sealer::{Sealer, prove_keks};
use crate::config::DatabaseUrl;
use crate::db::{Batch, Key, NewRecord, SignedRecord, SqliteStore, Store, StoreOptions, migrate};
use crate::keyring::{Kek, Keks, LoadedKek, jwk};
use crate::ledger::{Counts, Ledger};
use crate::signing::{PrivateKey, Verifiable, verify_all};
use crate::types::{BatchState, KeyId, NodeId, RecordId, RingId, Tick};

/// After how many failures of its own a batch is quarantined in these tests.
pub(super) const MAX_ATTEMPTS: u32 = 3;

pub(super) struct Database {
    pub(super) store: Arc<FaultyStore>,
    pub(super) ring: RingId,
    pub(super) keks: Arc<Keks>,
    pub(super) signing: Arc<SigningScript>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

/// How the database stands after a run.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) signed: u64,
    pub(super) quarantined: Vec<Batch>,
    pub(super) open_uses: usize,
    pub(super) events: Counts,
}

impl Database {
    /// With so many keys and small records, on a lease that no test outlives.
    pub(super) fn new(keys: u32, records: usize) -> Self {
        Database::with_lease(keys, records, Duration::from_secs(60))
    }

    pub(super) fn with_lease(keys: u32, records: usize, lease: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        migrate::migrate(&DatabaseUrl::Sqlite { path: path.clone() }, None).unwrap();
        let store = SqliteStore::open(&path, &options("node-a", lease)).unwrap();
        let ring = store.ring("default").unwrap().id;
        let keks = Arc::new(keks_of([kek()]));
        prove_keks(&store, &keks).unwrap();
        let store = Arc::new(FaultyStore::new(store));
        let signing = Arc::default();
        let database = Database { store, ring, keks, signing, path, _folder: folder };
        database.add_keys(keys);
        database.add_records((0..records).map(|n| format!("record {n}").into_bytes()));
        database
    }

    /// The store of another node on the same database.
    pub(super) fn other_node(&self) -> SqliteStore {
        self.dead_node(Duration::from_secs(60))
    }

    /// As [`Database::other_node`], with a lease that a test may outlive.
    pub(super) fn dead_node(&self, lease: Duration) -> SqliteStore {
        SqliteStore::open(&self.path, &options("node-b", lease)).unwrap()
    }

    pub(super) fn add_records(&self, payloads: impl IntoIterator<Item = Vec<u8>>) {
        let record = |payload| NewRecord { external_id: None, payload };
        let records: Vec<NewRecord> = payloads.into_iter().map(record).collect();
        let inserted = self.store.insert_records(self.ring, &records).unwrap();
        assert_eq!(inserted.added, records.len() as u64);
    }

    /// Adds a record where no cursor comes any more, as no intake does.
    pub(super) fn add_stray(&self, payload: &[u8]) {
        let path = self.path.to_str().unwrap();
        let mut connection = SqliteConnection::establish(path).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        let insert = "INSERT INTO records (ring_id, payload, inserted_xid) VALUES (?, ?, -5)";
        let insert = sql_query(insert).bind::<BigInt, _>(self.ring.0).bind::<Binary, _>(payload);
        assert_eq!(insert.execute(&mut connection), Ok(1));
    }

    pub(super) fn add_keys(&self, count: u32) -> Vec<KeyId> {
        self.add_keys_sealed_by(&self.keks, count, |_| {})
    }

    /// Adds keys under the first KEK, with `damage` done to what is sealed.
    pub(super) fn add_keys_sealed_by(
        &self,
        keks: &Keks,
        count: u32,
        damage: impl Fn(&mut [u8]),
    ) -> Vec<KeyId> {
        let sealer = Sealer::new(self.store.as_ref(), self.ring, keks).unwrap();
        let mut make = |key| {
            let private_key = PrivateKey::generate()?;
            let public_key = private_key.public_key();
            self.signing.take_on(&public_key);
            let kid = jwk::kid(&public_key);
            let mut new_key = sealer.new_key(key, &private_key, public_key, kid)?;
            damage(&mut new_key.sealed.as_mut().unwrap().blob);
            Ok(new_key)
        };
        self.store.add_keys(self.ring, count, false, "test", &mut make).unwrap()
    }

    pub(super) fn key(&self, id: KeyId) -> Key {
        let keys = self.store.keys(self.ring).unwrap();
        keys.into_iter().find(|key| key.id == id).unwrap()
    }

    /// Judges the database by its data alone: the history keeps the rules, every signature
    /// verifies, and every record is either signed or in quarantine.
    pub(super) fn judge(&self) -> Verdict {
        let verdict = self.judge_unfinished();
        let in_quarantine: u32 = verdict.quarantined.iter().map(|b| b.range.record_count).sum();
        let records = self.store.record_count(self.ring).unwrap();
        assert_eq!(verdict.signed + u64::from(in_quarantine), records, "{verdict:?}");
        verdict
    }

    /// As [`Database::judge`], where records may be left.
    pub(super) fn judge_unfinished(&self) -> Verdict {
        let batches = self.store.batches(None, 10_000).unwrap();
        Verdict {
            signed: self.verify_signatures(&batches),
            quarantined: batches
                .into_iter()
                .filter(|batch| batch.state == BatchState::Quarantined)
                .collect(),
            open_uses: self.store.open_uses().unwrap().len(),
            events: self.replay(),
        }
    }

    /// Everything is signed, nothing is in quarantine, and no key is in use.
    pub(super) fn assert_all_signed(&self, records: u64) -> Verdict {
        let verdict = self.judge();
        assert_eq!(verdict.signed, records, "{verdict:?}");
        assert!(verdict.quarantined.is_empty(), "{verdict:?}");
        assert_eq!(verdict.open_uses, 0, "{verdict:?}");
        verdict
    }

    fn replay(&self) -> Counts {
        let tick = self.store.ring("default").unwrap().tick;
        let mut ledger = Ledger::new();
        for event in self.store.history(self.ring, Tick::ZERO, tick, 100_000).unwrap() {
            assert_eq!(ledger.apply(&event), [], "{event:?}");
        }
        assert_eq!(ledger.finish(tick), []);
        ledger.counts()
    }

    /// The records whose signature does not verify.
    pub(super) fn spoilt(&self) -> Vec<RecordId> {
        let batches = self.store.batches(None, 10_000).unwrap();
        let signed = self.signed();
        let bad = self.verify(&signed, &batches).err().unwrap_or_default();
        bad.into_iter().map(|index| signed[index].record).collect()
    }

    fn signed(&self) -> Vec<SignedRecord> {
        let mut signed = Vec::new();
        while let page = self
            .store
            .signed_records(signed.last().map(|one: &SignedRecord| one.record), 1 << 20, 0)
            .unwrap()
            && !page.is_empty()
        {
            signed.extend(page);
        }
        signed
    }

    /// The number of signatures, each of which verifies and belongs to its batch.
    fn verify_signatures(&self, batches: &[Batch]) -> u64 {
        let signed = self.signed();
        let memberships = self.store.memberships(None, 100_000).unwrap();
        assert_eq!(memberships.len(), signed.len());
        let mut counts: HashMap<_, u32> = HashMap::new();
        for membership in memberships {
            let batch = batches.iter().find(|batch| batch.id == membership.batch).unwrap();
            let (ring, position) = membership.place.unwrap();
            assert_eq!(ring, batch.ring);
            assert!(batch.range.low <= position && position <= batch.range.high);
            *counts.entry(batch.id).or_default() += 1;
        }
        for batch in batches {
            let is_stored = batch.state == BatchState::Stored;
            let expected = is_stored.then_some(batch.range.record_count);
            assert_eq!(counts.get(&batch.id).copied(), expected, "{batch:?}");
        }
        assert_eq!(self.verify(&signed, batches), Ok(()));
        signed.len() as u64
    }

    fn verify(&self, signed: &[SignedRecord], batches: &[Batch]) -> Result<(), Vec<usize>> {
        let ids: Vec<_> = batches.iter().map(|batch| batch.id).collect();
        let keys = self.store.batch_keys(&ids).unwrap();
        let keys: HashMap<_, _> = keys.into_iter().map(|key| (key.batch, key.public_key)).collect();
        let items: Vec<Verifiable<'_>> = signed
            .iter()
            .map(|one| Verifiable {
                public_key: &keys[&one.batch],
                payload: one.payload.as_deref().unwrap(),
                signature: &one.signature,
            })
            .collect();
        verify_all(&items)
    }
}

fn options(node: &str, lease: Duration) -> StoreOptions {
    StoreOptions { node: NodeId(node.to_owned()), pool_size: 4, lease, max_attempts: MAX_ATTEMPTS }
}

/// The KEK of every test's database.
fn kek() -> Kek {
    let text = b"chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n";
    Kek::parse(text, "a test", None).unwrap()
}

fn keks_of(keks: impl IntoIterator<Item = Kek>) -> Keks {
    let loaded = |kek| LoadedKek { kek, source: "a test".to_owned() };
    Keks::of(keks.into_iter().map(loaded)).unwrap()
}

/// A new KEK before the database's own.
pub(super) fn another_kek_first() -> Keks {
    keks_of([Kek::generate().unwrap(), kek()])
}
