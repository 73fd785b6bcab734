//! A count of all records, on PostgreSQL only, keeps no snapshot open for long.

use diesel::{Connection, PgConnection};

use super::actions::RING;
use super::fixture::{Fixture, Pg};
use crate::db::remaining::records_by_pages;
use crate::types::RingId;

#[test]
fn pages_of_any_size_count_each_record_once_wherever_transactions_end() {
    let f = Pg::new();
    // In the ring's order the ids go up and down.
    for (xid, ids) in [(4, "1, 5"), (7, "8, 8"), (5, "20, 30"), (6, "14, 16")] {
        f.run(&format!(
            "INSERT INTO records (id, ring_id, payload, inserted_xid)
             SELECT id, 1, '', {xid} FROM generate_series({ids}) id"
        ));
    }
    let elsewhere = "SELECT id, 2, '' FROM generate_series(101, 103) id";
    f.run(&format!("INSERT INTO records (id, ring_id, payload) {elsewhere}"));
    let mut connection = PgConnection::establish(&f.database.url()).unwrap();
    for page_records in 1..=25 {
        let count = |c: &mut PgConnection, ring| records_by_pages(c, ring, page_records).unwrap();
        let counts = [RING, RingId(2), RingId(3)].map(|ring| count(&mut connection, ring));
        assert_eq!(counts, [20, 3, 0], "by pages of {page_records}");
    }
}
