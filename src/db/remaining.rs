//! What is left to be signed, by counting records and, where any could be left, by looking at each.

use super::Remaining;
use super::models::{FlagRow, PageRow, PositionRow, RemainingRow};
use super::shared::{Bind, Session, TxResult, UNFINISHED, cursor, progress};
use crate::types::{Position, RecordId, RingId};

/// An unsigned record `r` of ring `$1` that lies in no batch of the states listed.
fn outside_batches(states: &str) -> String {
    format!(
        "NOT EXISTS (SELECT 1 FROM batches b
                     WHERE b.ring_id = $1 AND b.state IN ({states}) AND b.{UNFINISHED}
                       AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
                       AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id))"
    )
}

/// What is left, where it may be that [`all_in_batches`] has said so of every record.
pub(super) fn remaining<S: Session>(
    s: &mut S,
    ring: RingId,
    all_in_batches: bool,
) -> TxResult<Remaining> {
    // What has come since then lies where the cursor has not been, or in a batch. The cursor is asked first,
    // since what it passes meanwhile is in a batch then.
    let all_in_batches = all_in_batches && !has_records_ahead(s, ring)?;
    let now = progress(s, ring)?;
    let mut remaining = Remaining {
        unfinished_batches: now.open_batches + now.retry_batches,
        quarantined: now.quarantined_records,
        ..Remaining::default()
    };
    // A batch that is stored has stored as many signatures as it has records, and no record has two. So
    // where the settled batches have as many records as the ring, and these are counted after those,
    // none is left; to look for the signature of each costs five times as much.
    if remaining.unfinished_batches == 0 {
        let settled = now.signed_records + now.quarantined_records;
        remaining.records = if all_in_batches { settled } else { records(s, ring)? };
        if remaining.records == settled {
            return Ok(remaining);
        }
        remaining.records = 0;
    }
    let cursor = cursor(s, ring)?;
    let page = format!(
        "SELECT count(*) AS records,
                count(*) FILTER (WHERE unsigned AND {not_quarantined}) AS unsigned,
                count(*) FILTER (WHERE unsigned AND {idle}
                                   AND (r.inserted_xid, r.id) <= ($2, $3)) AS behind_cursor
         FROM (SELECT r.inserted_xid, r.id, s.record_id IS NULL AS unsigned
               FROM records r LEFT JOIN signatures s ON s.record_id = r.id
               WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) > ($4, $5)
                 AND (r.inserted_xid, r.id) <= ($6, $7)) r",
        not_quarantined = outside_batches("'quarantined'"),
        idle = outside_batches("'open', 'retry', 'quarantined'"),
    );
    for_each_page(s, ring, S::SEARCH_PAGE, |s, after, until| {
        let row = s.row::<RemainingRow>(
            &page,
            &[
                Bind::Int(ring.0),
                Bind::Int(cursor.xid),
                Bind::Int(cursor.id.0),
                Bind::Int(after.xid),
                Bind::Int(after.id.0),
                Bind::Int(until.xid),
                Bind::Int(until.id.0),
            ],
        )?;
        remaining.records += row.records.unsigned_abs();
        remaining.unsigned += row.unsigned.unsigned_abs();
        remaining.behind_cursor += row.behind_cursor.unsigned_abs();
        Ok(())
    })?;
    Ok(remaining)
}

/// Whether each record of a ring lies in a batch, settled or not.
pub(super) fn all_in_batches<S: Session>(s: &mut S, ring: RingId) -> TxResult<bool> {
    // A record that comes between the two questions is one too many.
    let query = "SELECT CAST(coalesce(sum(record_count), 0) AS BIGINT) AS value
                 FROM batches WHERE ring_id = $1";
    let in_batches = s.number(query, &[Bind::Int(ring.0)])?.unsigned_abs();
    Ok(records(s, ring)? == in_batches)
}

/// Whether there are records that the cursor has not reached.
fn has_records_ahead<S: Session>(s: &mut S, ring: RingId) -> TxResult<bool> {
    let cursor = cursor(s, ring)?;
    let query = "SELECT EXISTS (SELECT 1 FROM records
                                WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3)) AS value";
    let binds = [Bind::Int(ring.0), Bind::Int(cursor.xid), Bind::Int(cursor.id.0)];
    Ok(s.row::<FlagRow>(query, &binds)?.value)
}

/// How many records a ring has.
pub(super) fn records<S: Session>(s: &mut S, ring: RingId) -> TxResult<u64> {
    // To count costs a fifth of a search.
    let page_records = S::SEARCH_PAGE.map(|records| records * 5);
    if let Some(most) = page_records
        && !(0..most).contains(&s.number(S::RECORDS_ESTIMATE, &[])?)
    {
        return records_by_pages(s, ring, most);
    }
    let query = "SELECT count(*) AS value FROM records WHERE ring_id = $1";
    Ok(s.number(query, &[Bind::Int(ring.0)])?.unsigned_abs())
}

/// The same, with a statement for each page, which finds where it ends as it counts. In PostgreSQL's
/// words: only there are pages needed.
pub(super) fn records_by_pages<S: Session>(
    s: &mut S,
    ring: RingId,
    page_records: i64,
) -> TxResult<u64> {
    let page = "
        SELECT coalesce(sum(records), 0)::BIGINT AS records,
               coalesce((max(ARRAY[inserted_xid, id]))[1], 0) AS last_xid,
               coalesce((max(ARRAY[inserted_xid, id]))[2], 0) AS last_id
        FROM (SELECT inserted_xid, max(id) AS id, count(*) AS records
              FROM (SELECT inserted_xid, id FROM records
                    WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3)
                    ORDER BY inserted_xid, id LIMIT $4) r
              GROUP BY inserted_xid) r";
    let mut records = 0;
    let mut after = Position { xid: i64::MIN, id: RecordId(i64::MIN) };
    loop {
        let binds = [
            Bind::Int(ring.0),
            Bind::Int(after.xid),
            Bind::Int(after.id.0),
            Bind::Int(page_records),
        ];
        let page = s.row::<PageRow>(page, &binds)?;
        records += page.records.unsigned_abs();
        if page.records < page_records {
            return Ok(records);
        }
        after = Position { xid: page.last_xid, id: RecordId(page.last_id) };
    }
}

/// Goes through a ring's records in pages of so many, or in one.
fn for_each_page<S: Session>(
    s: &mut S,
    ring: RingId,
    page_records: Option<i64>,
    mut see: impl FnMut(&mut S, Position, Position) -> TxResult<()>,
) -> TxResult<()> {
    let page_end = "SELECT inserted_xid, id FROM records
                    WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3)
                    ORDER BY inserted_xid, id LIMIT 1 OFFSET $4";
    let mut after = Position { xid: i64::MIN, id: RecordId(i64::MIN) };
    loop {
        let end = match page_records {
            Some(records) => {
                let bounds = [
                    Bind::Int(ring.0),
                    Bind::Int(after.xid),
                    Bind::Int(after.id.0),
                    Bind::Int(records - 1),
                ];
                s.rows::<PositionRow>(page_end, &bounds)?.pop().map(Position::from)
            }
            None => None,
        };
        let until = end.unwrap_or(Position { xid: i64::MAX, id: RecordId(i64::MAX) });
        see(s, after, until)?;
        match end {
            Some(end) => after = end,
            None => return Ok(()),
        }
    }
}

/// Unsigned records that the cursor has passed and that are in no unfinished batch, in order.
pub(super) fn strays<S: Session>(
    s: &mut S,
    ring: RingId,
    cursor: Position,
) -> TxResult<Vec<Position>> {
    let query = format!(
        "SELECT r.inserted_xid, r.id FROM records r
         WHERE r.ring_id = $1 AND (r.inserted_xid, r.id) <= ($2, $3)
           AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.record_id = r.id)
           AND {}
         ORDER BY r.inserted_xid, r.id LIMIT 10000",
        outside_batches("'open', 'retry', 'quarantined'")
    );
    let binds = [Bind::Int(ring.0), Bind::Int(cursor.xid), Bind::Int(cursor.id.0)];
    Ok(s.rows::<PositionRow>(&query, &binds)?.into_iter().map(Position::from).collect())
}
