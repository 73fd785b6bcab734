//! Inserting records on PostgreSQL: by COPY, and by one statement where external ids must be
//! compared with what is there.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use diesel::pg::{CopyFormat, PgConnection};
use diesel::sql_types::{Array, BigInt, Binary, Text};
use diesel::{ExecuteCopyFromDsl, QueryResult, RunQueryDsl, sql_query};

use super::endings::expect_rows;
use super::int;
use crate::db::models::{ExistingRow, NumberRow};
use crate::db::shared::TxResult;
use crate::db::{Added, NewRecord, schema::records};
use crate::types::{RecordId, RingId};

pub(super) fn add_records(
    c: &mut PgConnection,
    ring: RingId,
    new: &[NewRecord],
) -> TxResult<Vec<Added>> {
    // Ids first, so that what becomes of each record is known without asking for it again.
    let ids = next_ids(c, new.len())?;
    let with_ids = || ids.iter().copied().zip(new);
    let anonymous: Vec<(i64, &NewRecord)> =
        with_ids().filter(|(_, r)| r.external_id.is_none()).collect();
    copy_records(c, ring, &anonymous)?;
    let mut added: Vec<Added> = ids.iter().map(|id| Added::New(RecordId(*id))).collect();
    let named: Vec<Named<'_>> = with_ids()
        .enumerate()
        .filter_map(|(n, (id, r))| {
            let external_id = r.external_id.as_deref()?;
            Some(Named { n, id, external_id, payload: &r.payload })
        })
        .collect();
    if !named.is_empty() {
        insert_named(c, ring, &named, &mut added)?;
    }
    Ok(added)
}

fn next_ids(c: &mut PgConnection, records: usize) -> QueryResult<Vec<i64>> {
    let query = "SELECT nextval(pg_get_serial_sequence('records', 'id')) AS value
                 FROM generate_series(1, $1)";
    let rows: Vec<NumberRow> = sql_query(query).bind::<BigInt, _>(int(records)).load(c)?;
    Ok(rows.into_iter().map(|row| row.value).collect())
}

/// COPY in the binary format, in pieces, so that no second copy of all payloads is held.
fn copy_records(c: &mut PgConnection, ring: RingId, new: &[(i64, &NewRecord)]) -> TxResult<()> {
    if new.is_empty() {
        return Ok(());
    }
    let copied = diesel::copy_from(records::table)
        .from_raw_data((records::id, records::ring_id, records::payload), |out| {
            write_records(out, ring, new)
                .map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
        })
        .with_format(CopyFormat::Binary)
        .execute(c)?;
    expect_rows("records", new.len(), copied)
}

fn write_records(
    out: &mut dyn Write,
    ring: RingId,
    new: &[(i64, &NewRecord)],
) -> std::io::Result<()> {
    const PIECE_BYTES: usize = 64 * 1024;
    let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
    piece.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for (id, record) in new {
        // A field's length is an i32 (payloads are bounded far below that at intake).
        let length = i32::try_from(record.payload.len()).map_err(std::io::Error::other)?;
        piece.extend_from_slice(&3_i16.to_be_bytes());
        for number in [*id, ring.0] {
            piece.extend_from_slice(&8_i32.to_be_bytes());
            piece.extend_from_slice(&number.to_be_bytes());
        }
        piece.extend_from_slice(&length.to_be_bytes());
        piece.extend_from_slice(&record.payload);
        if piece.len() >= PIECE_BYTES {
            out.write_all(&piece)?;
            piece.clear();
        }
    }
    piece.extend_from_slice(&(-1_i16).to_be_bytes());
    out.write_all(&piece)
}

/// A record with an external id, its place in the call, and the id that it gets if it is new.
struct Named<'a> {
    n: usize,
    id: i64,
    external_id: &'a str,
    payload: &'a [u8],
}

fn insert_named(
    c: &mut PgConnection,
    ring: RingId,
    named: &[Named<'_>],
    added: &mut [Added],
) -> TxResult<()> {
    // The first of each external id goes in; the rest of this call is compared with it.
    let mut first: HashMap<&str, &Named<'_>> = HashMap::with_capacity(named.len());
    let mut candidates: Vec<&Named<'_>> = Vec::with_capacity(named.len());
    for record in named {
        if !first.contains_key(record.external_id) {
            first.insert(record.external_id, record);
            candidates.push(record);
        }
    }
    let inserted: Vec<NumberRow> = sql_query(
        "INSERT INTO records (id, ring_id, external_id, payload)
         SELECT n.id, $1, n.external_id, n.payload
         FROM unnest($2, $3, $4) n(id, external_id, payload)
         ON CONFLICT (ring_id, external_id) WHERE external_id IS NOT NULL DO NOTHING
         RETURNING id AS value",
    )
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<BigInt>, _>(candidates.iter().map(|r| r.id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(candidates.iter().map(|r| r.external_id).collect::<Vec<_>>())
    .bind::<Array<Binary>, _>(candidates.iter().map(|r| r.payload).collect::<Vec<_>>())
    .load(c)?;
    let new: HashSet<i64> = inserted.iter().map(|row| row.value).collect();

    let known: Vec<&str> =
        candidates.iter().filter(|r| !new.contains(&r.id)).map(|r| r.external_id).collect();
    let existing: Vec<ExistingRow> = if known.is_empty() {
        Vec::new()
    } else {
        sql_query(
            "SELECT id, external_id, payload FROM records
             WHERE ring_id = $1 AND external_id = ANY($2)",
        )
        .bind::<BigInt, _>(ring.0)
        .bind::<Array<Text>, _>(&known)
        .load(c)?
    };
    let stored: HashMap<&str, (i64, &[u8])> = existing
        .iter()
        .map(|row| (row.external_id.as_str(), (row.id, row.payload.as_slice())))
        .collect();
    for record in named.iter().filter(|record| !new.contains(&record.id)) {
        let in_call = first.get(record.external_id).map(|first| (first.id, first.payload));
        let there = stored.get(record.external_id).copied().or(in_call);
        let (id, payload) = there.ok_or(diesel::result::Error::NotFound)?;
        let id = RecordId(id);
        added[record.n] =
            if payload == record.payload { Added::Unchanged(id) } else { Added::Conflict(id) };
    }
    Ok(())
}
