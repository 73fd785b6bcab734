//! Inserting records on PostgreSQL: by COPY, and by one statement where external ids must be
//! compared with what is there.

use std::collections::HashMap;
use std::io::Write;

use diesel::pg::{CopyFormat, PgConnection};
use diesel::sql_types::{Array, BigInt, Binary, Text};
use diesel::{ExecuteCopyFromDsl, QueryResult, RunQueryDsl, sql_query};

use crate::db::models::ExistingRow;
use crate::db::{Inserted, NewRecord, schema::records};
use crate::types::RingId;

pub(super) fn insert_records(
    c: &mut PgConnection,
    ring: RingId,
    new: &[NewRecord],
) -> QueryResult<Inserted> {
    let anonymous: Vec<&NewRecord> = new.iter().filter(|r| r.external_id.is_none()).collect();
    let mut inserted =
        Inserted { added: copy_records(c, ring, &anonymous)?, ..Inserted::default() };
    let named: Vec<(usize, &str, &[u8])> = new
        .iter()
        .enumerate()
        .filter_map(|(n, r)| Some((n, r.external_id.as_deref()?, r.payload.as_slice())))
        .collect();
    if !named.is_empty() {
        insert_named(c, ring, &named, &mut inserted)?;
    }
    Ok(inserted)
}

/// COPY in the binary format, in pieces, so that no second copy of all payloads is held.
fn copy_records(c: &mut PgConnection, ring: RingId, new: &[&NewRecord]) -> QueryResult<u64> {
    if new.is_empty() {
        return Ok(0);
    }
    let copied = diesel::copy_from(records::table)
        .from_raw_data((records::ring_id, records::payload), |out| {
            write_records(out, ring, new)
                .map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
        })
        .with_format(CopyFormat::Binary)
        .execute(c)?;
    Ok(copied as u64)
}

fn write_records(out: &mut dyn Write, ring: RingId, new: &[&NewRecord]) -> std::io::Result<()> {
    const PIECE_BYTES: usize = 64 * 1024;
    let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
    piece.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for record in new {
        // A field's length is an i32 (payloads are bounded far below that at intake).
        let length = i32::try_from(record.payload.len()).map_err(std::io::Error::other)?;
        piece.extend_from_slice(&2_i16.to_be_bytes());
        piece.extend_from_slice(&8_i32.to_be_bytes());
        piece.extend_from_slice(&ring.0.to_be_bytes());
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

fn insert_named(
    c: &mut PgConnection,
    ring: RingId,
    named: &[(usize, &str, &[u8])],
    inserted: &mut Inserted,
) -> QueryResult<()> {
    // The first of each external id goes in; the rest of this call is compared with it.
    let mut first: HashMap<&str, &[u8]> = HashMap::with_capacity(named.len());
    let mut ids = Vec::with_capacity(named.len());
    let mut payloads = Vec::with_capacity(named.len());
    for (_, id, payload) in named {
        if !first.contains_key(id) {
            first.insert(id, payload);
            ids.push(*id);
            payloads.push(*payload);
        }
    }
    let added: Vec<ExistingRow> = sql_query(
        "INSERT INTO records (ring_id, external_id, payload)
         SELECT $1, n.* FROM unnest($2, $3) n
         ON CONFLICT (ring_id, external_id) WHERE external_id IS NOT NULL DO NOTHING
         RETURNING external_id, ''::BYTEA AS payload",
    )
    .bind::<BigInt, _>(ring.0)
    .bind::<Array<Text>, _>(&ids)
    .bind::<Array<Binary>, _>(&payloads)
    .load(c)?;
    inserted.added += added.len() as u64;
    let mut is_new: HashMap<&str, bool> = ids.iter().map(|id| (*id, false)).collect();
    for row in &added {
        if let Some(new) = is_new.get_mut(row.external_id.as_str()) {
            *new = true;
        }
    }

    let known: Vec<&str> = ids.iter().copied().filter(|id| !is_new[id]).collect();
    let existing: Vec<ExistingRow> = if known.is_empty() {
        Vec::new()
    } else {
        sql_query(
            "SELECT external_id, payload FROM records
             WHERE ring_id = $1 AND external_id = ANY($2)",
        )
        .bind::<BigInt, _>(ring.0)
        .bind::<Array<Text>, _>(&known)
        .load(c)?
    };
    let stored: HashMap<&str, &[u8]> =
        existing.iter().map(|row| (row.external_id.as_str(), row.payload.as_slice())).collect();
    for (n, id, payload) in named {
        // The one that went in counts as added, and every other one is compared.
        if is_new.get(id).copied().unwrap_or(false) {
            is_new.insert(id, false);
            continue;
        }
        let there = stored.get(id).or_else(|| first.get(id));
        if there == Some(payload) {
            inserted.unchanged += 1;
        } else {
            inserted.conflicts.push(*n);
        }
    }
    Ok(())
}
