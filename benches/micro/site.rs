//! A database with keys and records, for `cargo bench --bench micro -- 'check_out|load|store'`.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chancery::config::DatabaseUrl;
use chancery::db::{
    self, CheckOut, ClaimedBatch, NewKey, NewRecord, SignedBatch, Store, StoreOptions,
    StoreOutcome, migrate,
};
use chancery::keyring::{Algorithm, jwk};
use chancery::signing::{PrivateKey, Signature};
use chancery::types::{BatchRange, BatchSize, NodeId, Record, RingId};

/// A name, and how its database is made.
pub(crate) type DatabaseKind = (&'static str, fn() -> Site);

/// How a site of each kind is made.
pub(crate) const DATABASES: [DatabaseKind; 2] =
    [("sqlite", Site::sqlite), ("postgres", Site::postgres)];

const KEYS: u32 = 100;
const PAYLOAD_BYTES: usize = 256;

/// How many records are added at a time.
const SUPPLY: u64 = 20_000;

/// A new database with 100 keys, and a node's store on it.
pub(crate) struct Site {
    store: Arc<dyn Store>,
    ring: RingId,
    /// Records that no check-out has taken yet.
    waiting: Cell<u64>,
    /// What goes with the database; dropped last.
    _home: Box<dyn Any>,
}

impl Site {
    fn sqlite() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite { path: folder.path().join("chancery.db") };
        Site::at(&url, Box::new(folder))
    }

    fn postgres() -> Site {
        let database = testkit::Postgres::shared().create_database().unwrap();
        let url = DatabaseUrl::Postgres { url: database.url() };
        Site::at(&url, Box::new(database))
    }

    fn at(url: &DatabaseUrl, home: Box<dyn Any>) -> Site {
        migrate::migrate(url, None).unwrap();
        let options = StoreOptions {
            node: NodeId("bench".to_owned()),
            pool_size: 4,
            lease: Duration::from_secs(60),
            max_attempts: 5,
        };
        let store = db::open(url, &options).unwrap();
        let ring = store.ring("default").unwrap().id;
        let added = store.add_keys(ring, KEYS, false, "bench", &mut |_| Ok(new_key())).unwrap();
        assert_eq!(added.len(), KEYS as usize);
        let site = Site { store, ring, waiting: Cell::new(0), _home: home };
        // No table is empty when its statistics are taken, as after the first seconds of a service.
        for _ in 0..4 {
            let (batches, _) = site.check_out(8, 500);
            site.store(&site.sign(&batches));
        }
        site.store.analyze().unwrap();
        site
    }

    /// Adds records until so many can be checked out.
    fn supply(&self, records: u64) {
        while self.waiting.get() < records {
            let new: Vec<NewRecord> = (0..SUPPLY)
                .map(|_| NewRecord { external_id: None, payload: vec![0x5a; PAYLOAD_BYTES] })
                .collect();
            let inserted = self.store.insert_records(self.ring, &new).unwrap();
            assert_eq!(inserted.added, SUPPLY);
            self.waiting.set(self.waiting.get() + SUPPLY);
            // PostgreSQL's own vacuum, too, holds records back while it runs a transaction.
            while self.store.is_held_back(self.ring).unwrap() {
                std::thread::yield_now();
            }
        }
    }

    /// Checks out so many full batches; how long that took, after records had been added for it.
    pub(crate) fn check_out(&self, batches: u32, records: u32) -> (Vec<ClaimedBatch>, Duration) {
        let all = u64::from(batches) * u64::from(records);
        self.supply(all);
        let batch_size = BatchSize(NonZeroU32::new(records).unwrap());
        let request = CheckOut { ring: self.ring, max_batches: batches, batch_size };
        let begun = Instant::now();
        let checked_out = self.store.check_out(&request).unwrap();
        let took = begun.elapsed();
        assert_eq!(checked_out.shortage, None);
        let taken = checked_out.batches.iter().map(|batch| batch.range.record_count);
        assert_eq!(taken.map(u64::from).sum::<u64>(), all);
        self.waiting.set(self.waiting.get() - all);
        (checked_out.batches, took)
    }

    /// Loads a batch at once.
    pub(crate) fn load(&self, range: &BatchRange) -> Vec<Record> {
        self.store.load_batch(self.ring, range, None, usize::MAX).unwrap()
    }

    /// Batches with signatures that nobody has made: a store costs the same whatever they say.
    pub(crate) fn sign(&self, batches: &[ClaimedBatch]) -> Vec<SignedBatch> {
        let sign = |batch: &ClaimedBatch| {
            let records = self.load(&batch.range);
            let signature = Signature([0x5a; 64]);
            let signatures = records.iter().map(|record| (record.position.id, signature)).collect();
            SignedBatch { key_use: batch.key_use, signatures }
        };
        batches.iter().map(sign).collect()
    }

    /// Stores batches in one transaction; how long that took.
    pub(crate) fn store(&self, batches: &[SignedBatch]) -> Duration {
        let begun = Instant::now();
        let outcomes = self.store.store_batches(self.ring, batches).unwrap();
        let took = begun.elapsed();
        assert_eq!(outcomes, vec![StoreOutcome::Stored; batches.len()]);
        took
    }
}

/// A key that is held elsewhere: no store looks into a sealed one.
fn new_key() -> NewKey {
    let public_key = PrivateKey::generate().unwrap().public_key();
    NewKey {
        kid: jwk::kid(&public_key),
        algorithm: Algorithm::Ed25519.as_str(),
        public_key,
        sealed: None,
    }
}
