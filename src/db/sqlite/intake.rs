//! Inserting records on SQLite: one prepared statement, in one transaction.

use diesel::prelude::*;
use diesel::sqlite::SqliteConnection;

use crate::db::shared::{Session, TxResult};
use crate::db::{Added, NewRecord, schema::records};
use crate::types::{RecordId, RingId};

pub(super) fn add_records(
    c: &mut SqliteConnection,
    ring: RingId,
    new: &[NewRecord],
) -> TxResult<Vec<Added>> {
    // No other writer can take one meanwhile.
    let last = "SELECT coalesce(max(seq), 0) AS value FROM sqlite_sequence WHERE name = 'records'";
    let mut id = c.number(last, &[])?;
    let mut added = Vec::with_capacity(new.len());
    for record in new {
        let there: Option<(i64, Vec<u8>)> = match record.external_id.as_deref() {
            None => None,
            Some(external_id) => records::table
                .filter(records::ring_id.eq(ring.0).and(records::external_id.eq(external_id)))
                .select((records::id, records::payload))
                .first(c)
                .optional()?,
        };
        added.push(match there {
            None => {
                id += 1;
                let row = (
                    records::id.eq(id),
                    records::ring_id.eq(ring.0),
                    records::external_id.eq(record.external_id.as_deref()),
                    records::payload.eq(record.payload.as_slice()),
                );
                diesel::insert_into(records::table).values(row).execute(c)?;
                Added::New(RecordId(id))
            }
            Some((id, payload)) if payload == record.payload => Added::Unchanged(RecordId(id)),
            Some((id, _)) => Added::Conflict(RecordId(id)),
        });
    }
    Ok(added)
}
