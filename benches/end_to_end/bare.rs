//! The yardstick: read, sign, store, as fast as it goes and without a rule. No lease, no check-out, no
//! fence, no count; a crash leaves records that nobody knows to be unsigned.
//!
//! One thread reads, `signers` sign, one stores what has gathered in one transaction, through diesel.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use chancery::signing::{Engine, PrivateKey, Signature, sign_each};
use chancery::types::{Position, Record, RecordId};
use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;

use crate::place::{Place, Url};
use crate::{Load, UNDER_WAY};

mod schema {
    diesel::table! {
        records (id) {
            id -> BigInt,
            payload -> Binary,
        }
    }
    diesel::table! {
        bare (record_id) {
            record_id -> BigInt,
            batch_id -> BigInt,
            signature -> Binary,
        }
    }
}

use schema::{bare, records};

#[derive(Queryable, Selectable)]
#[diesel(table_name = records)]
#[diesel(check_for_backend(diesel::pg::Pg))]
struct Row {
    id: i64,
    payload: Vec<u8>,
}

/// How many signatures one transaction stores at most, as the program does.
const GROUP_SIGNATURES: usize = 32_768;

type Signed = Vec<(RecordId, Signature)>;

/// The bare pipeline, with a hundred keys in memory.
pub(crate) struct Bare {
    keys: Vec<PrivateKey>,
}

impl Bare {
    pub(crate) fn new() -> Bare {
        Bare { keys: (0..100).map(|_| PrivateKey::generate().unwrap()).collect() }
    }

    /// Signs every record; records a second.
    pub(crate) fn sign(&self, place: &Place<'_>, load: Load) -> f64 {
        // As many records under way as the program has.
        let depth = UNDER_WAY.div_ceil(load.batch_size).clamp(2, 256);
        let (to_sign, unsigned) = sync_channel::<Vec<Record>>(depth);
        let (to_store, signed) = sync_channel::<Signed>(depth);
        let unsigned = Arc::new(Mutex::new(unsigned));
        let (mut reader, mut writer) = (open(&place.url), open(&place.url));
        writer.make_table();
        let begin = Instant::now();
        let stored = std::thread::scope(|scope| {
            scope.spawn(move || reader.read(load.batch_size, &to_sign));
            for thread in 0..load.signers {
                let (unsigned, to_store) = (Arc::clone(&unsigned), to_store.clone());
                scope.spawn(move || {
                    let mut keys = self.keys.iter().cycle().skip(thread);
                    loop {
                        let Ok(records) = unsigned.lock().unwrap().recv() else { break };
                        let signed =
                            sign_each(Engine::default(), keys.next().unwrap(), &records, || true);
                        let ids = records.iter().map(|record| record.position.id);
                        if to_store.send(ids.zip(signed.unwrap()).collect()).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(to_store);
            writer.store(&signed)
        });
        assert_eq!(stored, load.records);
        stored as f64 / begin.elapsed().as_secs_f64()
    }
}

trait Database: Send {
    fn make_table(&mut self);
    fn read(&mut self, batch_size: usize, batches: &SyncSender<Vec<Record>>);
    fn write(&mut self, batch: i64, group: &[Signed]);

    /// Stores what has gathered, again and again, to the end; how many signatures.
    fn store(&mut self, signed: &Receiver<Signed>) -> usize {
        let (mut stored, mut batch) = (0, 0);
        while let Ok(first) = signed.recv() {
            let mut signatures = first.len();
            let mut group = vec![first];
            while signatures < GROUP_SIGNATURES
                && let Ok(next) = signed.try_recv()
            {
                signatures += next.len();
                group.push(next);
            }
            self.write(batch, &group);
            batch += group.len() as i64;
            stored += signatures;
        }
        stored
    }
}

fn open(url: &Url) -> Box<dyn Database> {
    match url {
        Url::Postgres(url) => Box::new(PgConnection::establish(url).unwrap()),
        Url::Sqlite(path) => Box::new(open_file(path)),
    }
}

fn open_file(path: &Path) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    connection
}

fn record(id: i64, payload: Vec<u8>) -> Record {
    Record { position: Position { xid: 0, id: RecordId(id) }, payload }
}

impl Database for PgConnection {
    fn make_table(&mut self) {
        self.batch_execute(
            "CREATE TABLE bare (record_id BIGINT PRIMARY KEY, batch_id BIGINT NOT NULL,
                                signature BYTEA NOT NULL CHECK (octet_length(signature) = 64))",
        )
        .unwrap();
    }

    fn read(&mut self, batch_size: usize, batches: &SyncSender<Vec<Record>>) {
        let rows = diesel::copy_to(records::table).load::<Row, _>(self).unwrap();
        let mut batch = Vec::with_capacity(batch_size);
        for row in rows {
            let Row { id, payload } = row.unwrap();
            batch.push(record(id, payload));
            if batch.len() == batch_size {
                batches.send(std::mem::take(&mut batch)).unwrap();
            }
        }
        if !batch.is_empty() {
            batches.send(batch).unwrap();
        }
    }

    fn write(&mut self, first_batch: i64, group: &[Signed]) {
        let rows: usize = group.iter().map(Vec::len).sum();
        let mut data = Vec::with_capacity(21 + rows * 94);
        data.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        for (batch, signed) in (first_batch..).zip(group) {
            for (record, signature) in signed {
                data.extend_from_slice(&3_i16.to_be_bytes());
                for id in [record.0, batch] {
                    data.extend_from_slice(&8_i32.to_be_bytes());
                    data.extend_from_slice(&id.to_be_bytes());
                }
                data.extend_from_slice(&64_i32.to_be_bytes());
                data.extend_from_slice(signature.as_bytes());
            }
        }
        data.extend_from_slice(&(-1_i16).to_be_bytes());
        // One statement is one transaction.
        let copied = diesel::copy_from(bare::table)
            .from_raw_data(bare::table, |out| {
                out.write_all(&data).unwrap();
                diesel::QueryResult::Ok(())
            })
            .with_format(CopyFormat::Binary)
            .execute(self)
            .unwrap();
        assert_eq!(copied, rows);
    }
}

impl Database for SqliteConnection {
    fn make_table(&mut self) {
        self.batch_execute(
            "CREATE TABLE bare (record_id INTEGER PRIMARY KEY, batch_id INTEGER NOT NULL,
                                signature BLOB NOT NULL CHECK (length(signature) = 64)) STRICT",
        )
        .unwrap();
    }

    fn read(&mut self, batch_size: usize, batches: &SyncSender<Vec<Record>>) {
        let mut last = 0;
        loop {
            let rows: Vec<(i64, Vec<u8>)> = records::table
                .filter(records::id.gt(last))
                .order(records::id)
                .limit(i64::try_from(batch_size).unwrap())
                .load(self)
                .unwrap();
            let Some((id, _)) = rows.last() else { break };
            last = *id;
            let batch = rows.into_iter().map(|(id, payload)| record(id, payload));
            batches.send(batch.collect()).unwrap();
        }
    }

    fn write(&mut self, first_batch: i64, group: &[Signed]) {
        self.batch_execute("BEGIN IMMEDIATE").unwrap();
        for (batch, signed) in (first_batch..).zip(group) {
            for (record, signature) in signed {
                diesel::insert_into(bare::table)
                    .values((
                        bare::record_id.eq(record.0),
                        bare::batch_id.eq(batch),
                        bare::signature.eq(signature.as_bytes().as_slice()),
                    ))
                    .execute(self)
                    .unwrap();
            }
        }
        self.batch_execute("COMMIT").unwrap();
    }
}
