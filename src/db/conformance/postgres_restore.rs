//! A database that was dumped from one PostgreSQL cluster and restored into another.

use super::actions::{RING, add_keys, check_out, numbered, sign_all, sign_and_store};
use super::fixture::{Fixture, Pg, wait_for};
use super::judge::assert_signed;
use crate::db::migrate::{self, SchemaError};
use crate::db::{StoreError, StoreOutcome};

/// What a restore leaves behind: another cluster's identifier, and transaction ids that lie far
/// ahead of this one's.
const RESTORE: &str = "
    ALTER TABLE batches DISABLE TRIGGER batches_guard;
    UPDATE database_identity SET system_identifier = 'another';
    UPDATE records SET inserted_xid = inserted_xid + 5000000;
    UPDATE rings SET cursor_xid = cursor_xid + 5000000;
    UPDATE batches SET low_xid = low_xid + 5000000, high_xid = high_xid + 5000000;
    ALTER TABLE batches ENABLE TRIGGER batches_guard";

#[test]
fn a_restored_database_is_refused_until_its_owner_migrates_it_and_then_signed_to_the_end() {
    let f = Pg::new();
    let store = f.open("before");
    add_keys(&*store, RING, 2);
    store.insert_records(RING, &numbered(0, 5)).unwrap();
    f.settle();
    sign_all(&f, &*store, RING, 5);
    store.insert_records(RING, &numbered(5, 8)).unwrap();
    f.run(RESTORE);
    let highest = f.number("SELECT max(inserted_xid) AS value FROM records");

    let refused = migrate::check(&f.url()).unwrap_err();
    assert!(matches!(refused, StoreError::Schema(SchemaError::OtherCluster)), "{refused}");

    migrate::migrate(&f.url(), None).unwrap();
    migrate::check(&f.url()).unwrap();
    let offset = f.number("SELECT chancery_xid_offset() AS value");
    assert!(offset > 0);
    migrate::migrate(&f.url(), None).unwrap();
    assert_eq!(f.number("SELECT chancery_xid_offset() AS value"), offset, "shifted once");

    let store = f.open("after");
    store.insert_records(RING, &numbered(8, 12)).unwrap();
    let lowest_new = f.number("SELECT min(inserted_xid) AS value FROM records WHERE id > 8");
    assert!(lowest_new > highest, "{lowest_new} does not lie above {highest}");
    wait_for("all to be signed", || {
        for batch in check_out(&*store, RING, 2, 3).batches {
            assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
        }
        store.remaining(RING).unwrap().is_done().then_some(())
    });
    assert_eq!(store.remaining(RING).unwrap().behind_cursor, 0, "nothing was left behind");
    assert_signed(&f, &*store, RING, 12);
}
