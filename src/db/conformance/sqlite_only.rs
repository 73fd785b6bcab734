//! What only SQLite has: REPLACE, one file, one writer, and a lock beside it.

use super::actions::{RING, add_keys, check_out_one, insert, sign_all, sign_and_store};
use super::fixture::{Fixture, Sqlite, ValueRow, options};
use super::judge::assert_signed;
use crate::config::DatabaseUrl;
use crate::db::shared::Session;
use crate::db::{Store, StoreError, StoreOutcome, open};

#[test]
fn insert_or_replace_through_our_own_connections_removes_nothing() {
    let f = Sqlite::new();
    let store = f.open_own("a");
    add_keys(&store, RING, 2);
    insert(&f, &store, RING, 6);
    let batch = check_out_one(&store, RING, 3);
    assert_eq!(sign_and_store(&store, &batch), StoreOutcome::Stored);
    for statement in [
        "INSERT OR REPLACE INTO signatures SELECT record_id, batch_id, zeroblob(64) FROM signatures",
        "INSERT OR REPLACE INTO records (id, ring_id, payload) SELECT id, ring_id, x'00' FROM records",
        "INSERT OR REPLACE INTO key_events (ring_id, tick, key_id, event, actor)
         SELECT ring_id, tick, key_id, event, 'nobody' FROM key_events",
        "INSERT OR REPLACE INTO batches SELECT * FROM batches",
        "INSERT OR REPLACE INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         SELECT ring_id, fence, batch_id, 2, node, expires_at FROM key_uses",
        "UPDATE OR REPLACE records SET id = 2 WHERE id = 1",
    ] {
        let refused = |message: String| {
            let said = ["never change", "UNIQUE constraint failed"];
            assert!(said.iter().any(|words| message.contains(words)), "{statement}: {message}");
        };
        refused(store.run_tx("keys", |c| Ok(c.run(statement, &[])?)).unwrap_err().to_string());
        refused(store.read(|c| Ok(c.run(statement, &[])?)).unwrap_err().to_string());
        // What was written must stay even where a client has not switched on recursive_triggers.
        if ["INTO signatures", "INTO key_events", "INTO records"]
            .iter()
            .any(|t| statement.contains(t))
        {
            refused(f.refused(statement));
        }
    }
    sign_all(&f, &store, RING, 3);
    assert_signed(&f, &store, RING, 6);
}

#[test]
fn a_transaction_that_panicked_is_over_and_the_next_one_begins() {
    let f = Sqlite::new();
    let store = f.open_own("a");
    add_keys(&store, RING, 1);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.run_tx("keys", |c| -> crate::db::shared::TxResult<()> {
            c.run("UPDATE keys SET status = 'retired'", &[])?;
            panic!("in the middle");
        })
    }));
    assert!(panicked.is_err());
    insert(&f, &store, RING, 2);
    sign_all(&f, &store, RING, 1);
    assert_signed(&f, &store, RING, 2);
}

#[test]
fn records_whose_places_were_raised_by_hand_are_signed_in_their_new_order() {
    let f = Sqlite::new();
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(&f, &*store, RING, 30);
    // A batch may begin at one transaction id and end at another.
    f.run("UPDATE records SET inserted_xid = 4 WHERE id % 10 IN (2, 5)");
    f.run("UPDATE records SET inserted_xid = 9 WHERE id % 10 IN (1, 8, 9)");
    let batches = [check_out_one(&*store, RING, 13), check_out_one(&*store, RING, 13)];
    for batch in &batches {
        let mut places = Vec::new();
        while let slice = store.load_batch(RING, &batch.range, places.last().copied(), 20).unwrap()
            && !slice.is_empty()
        {
            places.extend(slice.into_iter().map(|record| record.position));
        }
        assert!(places.is_sorted());
        assert_eq!(places.len(), 13);
        assert_eq!((places[0], places[12]), (batch.range.low, batch.range.high));
        assert_eq!(sign_and_store(&*store, batch), StoreOutcome::Stored);
    }
    let places: Vec<i64> =
        batches.iter().flat_map(|b| [b.range.low.xid, b.range.high.xid]).collect();
    assert_eq!(places, [0, 0, 0, 9]);
    assert!(store.has_work(RING).unwrap());
    sign_all(&f, &*store, RING, 3);
    assert!(!store.has_work(RING).unwrap());
    assert_signed(&f, &*store, RING, 30);
}

#[test]
fn every_connection_writes_ahead_syncs_fully_and_checks_its_keys() {
    let f = Sqlite::new();
    let store = f.open_own("a");
    let query = "SELECT (SELECT journal_mode FROM pragma_journal_mode) || ' '
                     || (SELECT synchronous FROM pragma_synchronous) || ' '
                     || (SELECT foreign_keys FROM pragma_foreign_keys) AS value";
    let text = |row: ValueRow| row.value.unwrap_or_default();
    let writer = store.run_tx("keys", |c| Ok(text(c.row(query, &[])?))).unwrap();
    let reader = store.read(|c| Ok(text(c.row(query, &[])?))).unwrap();
    assert_eq!([writer.as_str(), reader.as_str()], ["wal 2 1"; 2], "2 is FULL");
}

#[test]
fn one_process_at_a_time_holds_the_signing_lock() {
    let f = Sqlite::new();
    let (first, second) = (f.open("first"), f.open("second"));
    let lock = |store: &dyn Store| store.signing_lock().unwrap();
    let held = lock(&*first).try_hold("node first").unwrap().unwrap();
    assert_eq!(lock(&*second).try_hold("node second").unwrap().unwrap_err(), "node first");
    drop(held);
    assert!(lock(&*second).try_hold("node second").unwrap().is_ok());
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "These are no tables. ".repeat(500)).unwrap();
    let error = open(&DatabaseUrl::Sqlite { path: path.clone() }, &options("a")).err().unwrap();
    assert!(matches!(error, StoreError::Connect(_)), "{error:?}");
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(std::fs::read_to_string(path).unwrap().starts_with("These are no tables"));
}
