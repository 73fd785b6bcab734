//! What is left to be signed, by counting records and, where any could be left, by looking at each.

use super::models::{PositionRow, RemainingRow, RingRow};
use super::shared::{Bind, Session, TxResult, progress};
use super::{Remaining, Ring};
use crate::types::{Position, RecordId, RingId};

/// An unsigned record `r` of ring `$1` that lies in no batch of the states listed.
fn outside_batches(states: &str) -> String {
    format!(
        "NOT EXISTS (SELECT 1 FROM batches b
                     WHERE b.ring_id = $1 AND b.state IN ({states})
                       AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
                       AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id))"
    )
}

pub(super) fn remaining<S: Session>(s: &mut S, ring: RingId) -> TxResult<Remaining> {
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
        remaining.records = records_by_pages(s, ring)?;
        if remaining.records == now.signed_records + now.quarantined_records {
            return Ok(remaining);
        }
        remaining.records = 0;
    }
    let query = format!("SELECT {} FROM rings WHERE id = $1", RingRow::COLUMNS);
    let cursor = Ring::try_from(s.row::<RingRow>(&query, &[Bind::Int(ring.0)])?)?.cursor;
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

fn records_by_pages<S: Session>(s: &mut S, ring: RingId) -> TxResult<u64> {
    let page = "SELECT count(*) AS value FROM records
                WHERE ring_id = $1 AND (inserted_xid, id) > ($2, $3) AND (inserted_xid, id) <= ($4, $5)";
    // To count costs a fifth of a search.
    let mut page_records = S::SEARCH_PAGE.map(|records| records * 5);
    if let Some(most) = page_records {
        let estimate = s.number(S::RECORDS_ESTIMATE, &[])?;
        page_records = (!(0..most).contains(&estimate)).then_some(most);
    }
    let mut records = 0;
    for_each_page(s, ring, page_records, |s, after, until| {
        let bounds = [
            Bind::Int(ring.0),
            Bind::Int(after.xid),
            Bind::Int(after.id.0),
            Bind::Int(until.xid),
            Bind::Int(until.id.0),
        ];
        records += s.number(page, &bounds)?.unsigned_abs();
        Ok(())
    })?;
    Ok(records)
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
