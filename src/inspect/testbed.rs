//! A database for the tests: signed by a small loop, then tampered with behind the store's back.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::sqlite::SqliteConnection;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::config::DatabaseUrl;
use crate::db::{
    self, CheckOut, ClaimedBatch, GiveUp, KekCheck, NewKey, NewRecord, SealedKey, SignedBatch,
    Store, StoreOptions, StoreOutcome, migrate,
};
use crate::keyring::jwk;
use crate::signing::{Engine, PrivateKey, sign_each};
use crate::types::{BatchSize, KeyId, NodeId, Outcome, RingId};

/// A new database with keys and records, gone when this is dropped.
pub(super) struct Testbed {
    pub(super) store: Arc<dyn Store>,
    ring: RingId,
    keys: HashMap<KeyId, PrivateKey>,
    batch_size: u32,
    home: Home,
}

enum Home {
    Sqlite(TempDir),
    Postgres(testkit::Database),
}

impl Testbed {
    /// Keys and records on SQLite, of which nothing is signed. Every third record has no external
    /// id.
    pub(super) fn new(keys: u32, records: usize, batch_size: u32) -> Self {
        let home = Home::Sqlite(tempfile::tempdir().unwrap());
        Testbed::at(home, keys, records, batch_size)
    }

    /// The same on PostgreSQL.
    pub(super) fn on_postgres(keys: u32, records: usize, batch_size: u32) -> Self {
        let home = Home::Postgres(testkit::Postgres::shared().create_database().unwrap());
        Testbed::at(home, keys, records, batch_size)
    }

    fn at(home: Home, keys: u32, records: usize, batch_size: u32) -> Self {
        let url = match &home {
            Home::Sqlite(folder) => DatabaseUrl::Sqlite { path: folder.path().join(FILE) },
            Home::Postgres(database) => DatabaseUrl::Postgres { url: database.url() },
        };
        migrate::migrate(&url, None).unwrap();
        let options = StoreOptions {
            node: NodeId("node-a".to_owned()),
            pool_size: 8,
            lease: Duration::from_secs(60),
            max_attempts: 1,
        };
        let store = db::open(&url, &options).unwrap();
        let ring = store.ring("default").unwrap().id;
        let mut bed = Testbed { store, ring, keys: HashMap::new(), batch_size, home };
        bed.add_keys(keys);
        bed.add_records(records);
        bed
    }

    fn add_keys(&mut self, count: u32) {
        let kek_id = "kek".to_owned();
        let check = KekCheck { kek_id: kek_id.clone(), check_value: vec![1] };
        self.store.add_kek(&check).unwrap();
        let keys = &mut self.keys;
        let mut make = |id: KeyId| {
            let key = private_key(id);
            let public_key = key.public_key();
            keys.insert(id, key);
            let kid = jwk::kid(&public_key);
            let algorithm = "Ed25519";
            let sealed = Some(SealedKey { blob: vec![0], kek_id: kek_id.clone() });
            Ok(NewKey { kid, algorithm, public_key, sealed })
        };
        self.store.add_keys(self.ring, count, false, "test", &mut make).unwrap();
    }

    fn add_records(&self, count: usize) {
        let record = |n: usize| NewRecord {
            external_id: (!n.is_multiple_of(3)).then(|| format!("a \"quoted\", {n}")),
            payload: format!("payload {n}\n").into_bytes(),
        };
        let records: Vec<NewRecord> = (1..=count).map(record).collect();
        self.store.insert_records(self.ring, &records).unwrap();
    }

    pub(super) fn check_out(&self, max_batches: u32) -> Vec<ClaimedBatch> {
        let batch_size = BatchSize(NonZeroU32::new(self.batch_size).unwrap());
        let request = CheckOut { ring: self.ring, max_batches, batch_size };
        self.store.check_out(&request).unwrap().batches
    }

    pub(super) fn sign(&self, batches: &[ClaimedBatch]) {
        let signed: Vec<SignedBatch> = batches.iter().map(|batch| self.signed(batch)).collect();
        let outcomes = self.store.store_batches(self.ring, &signed).unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == StoreOutcome::Stored), "{outcomes:?}");
    }

    fn signed(&self, batch: &ClaimedBatch) -> SignedBatch {
        let records = self.store.load_batch(self.ring, &batch.range, None, usize::MAX).unwrap();
        let key = &self.keys[&batch.key_use.key];
        let signatures = sign_each(Engine::Dalek, key, &records, || true).unwrap();
        let ids = records.iter().map(|record| record.position.id);
        SignedBatch { key_use: batch.key_use, signatures: ids.zip(signatures).collect() }
    }

    pub(super) fn give_up(&self, batch: &ClaimedBatch, failure: Option<&str>) {
        let given_up = GiveUp { key_use: batch.key_use, failure: failure.map(ToOwned::to_owned) };
        let outcomes = self.store.give_up(self.ring, &[given_up]).unwrap();
        assert_eq!(outcomes, [Outcome::Abandoned]);
    }

    /// Signs every record, two batches at a time.
    pub(super) fn sign_all(&self) {
        loop {
            let batches = self.check_out(2);
            self.sign(&batches);
            // On PostgreSQL another database's transaction may hide records for a while.
            if batches.is_empty() && self.store.remaining(self.ring).unwrap().is_done() {
                return;
            }
        }
    }

    /// Runs SQL as somebody would who owns the database and minds no rule.
    pub(super) fn tamper(&self, sql: &str) {
        match &self.home {
            Home::Sqlite(folder) => {
                let path = folder.path().join(FILE);
                let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                connection.batch_execute(WITHOUT_GUARDS).unwrap();
                connection.batch_execute(sql).unwrap();
            }
            Home::Postgres(database) => {
                let without_triggers = "SET session_replication_role = replica";
                database.sql(&format!("{without_triggers}; {sql}")).unwrap();
            }
        }
    }
}

const FILE: &str = "chancery.db";

const WITHOUT_GUARDS: &str = "
    PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
    PRAGMA writable_schema = ON; DELETE FROM sqlite_master WHERE type = 'trigger';
    PRAGMA writable_schema = RESET;";

/// The private key of that id in every test.
pub(super) fn private_key(id: KeyId) -> PrivateKey {
    PrivateKey::from_seed(Zeroizing::new([u8::try_from(id.0).unwrap(); 32]))
}

/// Bytes as an SQL literal.
pub(super) fn blob(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("x'{digits}'")
}
