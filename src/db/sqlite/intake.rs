//! Inserting records on SQLite: one prepared statement, in one transaction.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use crate::db::{Inserted, NewRecord, schema::records};
use crate::types::RingId;

pub(super) fn insert_records(
    c: &mut SqliteConnection,
    ring: RingId,
    new: &[NewRecord],
) -> QueryResult<Inserted> {
    let mut inserted = Inserted::default();
    for (n, record) in new.iter().enumerate() {
        let row = (
            records::ring_id.eq(ring.0),
            records::external_id.eq(record.external_id.as_deref()),
            records::payload.eq(record.payload.as_slice()),
        );
        let Some(external_id) = record.external_id.as_deref() else {
            diesel::insert_into(records::table).values(row).execute(c)?;
            inserted.added += 1;
            continue;
        };
        let there: Option<Vec<u8>> = records::table
            .filter(records::ring_id.eq(ring.0).and(records::external_id.eq(external_id)))
            .select(records::payload)
            .first(c)
            .optional()?;
        match there {
            None => {
                diesel::insert_into(records::table).values(row).execute(c)?;
                inserted.added += 1;
            }
            Some(payload) if payload == record.payload => inserted.unchanged += 1,
            Some(_) => inserted.conflicts.push(n),
        }
    }
    Ok(inserted)
}
