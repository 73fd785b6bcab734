//! The rules R1 to R4 asked of the tables, past every query of the store, and of the ledger.

use std::collections::BTreeMap;

use super::fixture::Fixture;
use crate::db::Store;
use crate::ledger::{Event, Ledger};
use crate::types::{RingId, Tick};

/// Asserts that no rule is broken on any ring, whatever is signed so far, and that something
/// happened at all.
pub(super) fn assert_lawful<F: Fixture>(f: &F, store: &dyn Store) {
    let findings = f.rows(&findings::<F>());
    assert!(findings.is_empty(), "{findings:#?}");
    let rings = store.rings().unwrap();
    let mut events = 0;
    for ring in rings {
        assert_least_recently_used(f, ring.id);
        let history = history(store, ring.id, ring.tick, 1000);
        let mut ledger = Ledger::new();
        for event in &history {
            let violations = ledger.apply(event);
            assert!(violations.is_empty(), "{violations:?}");
        }
        let violations = ledger.finish(ring.tick);
        assert!(violations.is_empty(), "{violations:?}");
        assert_eq!(ledger.counts().events(), ring.tick.0.unsigned_abs());
        events += history.len();
    }
    assert!(events > 0, "nothing happened");
}

/// Asserts that no rule is broken and that the ring has `records` records, all signed.
pub(super) fn assert_signed<F: Fixture>(f: &F, store: &dyn Store, ring: RingId, records: u32) {
    assert_lawful(f, store);
    let query = format!(
        "SELECT count(*) || ' records, ' || count(s.record_id) || ' signed' AS value
         FROM records r LEFT JOIN signatures s ON s.record_id = r.id WHERE r.ring_id = {ring}"
    );
    assert_eq!(f.rows(&query), [format!("{records} records, {records} signed")]);
    let unfinished = format!(
        "SELECT count(*) AS value FROM batches WHERE ring_id = {ring} AND state <> 'stored'"
    );
    assert_eq!(f.number(&unfinished), 0);
    let seen = format!(
        "SELECT count(*) AS value FROM signed_records v JOIN rings g ON g.name = v.ring
         WHERE g.id = {ring} AND v.signed_at IS NOT NULL"
    );
    assert_eq!(f.number(&seen), i64::from(records));
}

/// The whole history up to `until`, in pages of `limit`.
pub(super) fn history(store: &dyn Store, ring: RingId, until: Tick, limit: u32) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(Tick::ZERO, Event::tick);
        let page = store.history(ring, after, until, limit).unwrap();
        assert!(page.len() <= limit as usize);
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

/// Every breach that one database can be asked for; no row if there is none.
fn findings<F: Fixture>() -> String {
    format!(
        "SELECT 'record ' || record_id || ' is signed twice' AS value
         FROM signatures GROUP BY record_id HAVING count(*) > 1
         UNION ALL
         SELECT 'signature ' || s.record_id || ' lies outside its batch'
         FROM signatures s LEFT JOIN records r ON r.id = s.record_id
         LEFT JOIN batches b ON b.id = s.batch_id
         WHERE r.id IS NULL OR b.id IS NULL OR r.ring_id <> b.ring_id OR b.state <> 'stored'
            OR (r.inserted_xid, r.id) < (b.low_xid, b.low_id)
            OR (r.inserted_xid, r.id) > (b.high_xid, b.high_id)
         UNION ALL
         SELECT 'signature ' || s.record_id || ' is not by key ' || u.key_id
         FROM signatures s JOIN key_uses u ON u.batch_id = s.batch_id AND u.outcome = 'stored'
         WHERE {otherwise}
         UNION ALL
         SELECT 'batch ' || b.id || ' has ' || coalesce(s.n, 0) || ' signatures'
         FROM batches b
         LEFT JOIN (SELECT batch_id, count(*) AS n FROM signatures GROUP BY batch_id) s
                ON s.batch_id = b.id
         WHERE CASE b.state WHEN 'stored' THEN b.record_count ELSE 0 END <> coalesce(s.n, 0)
         UNION ALL
         SELECT 'batch ' || b.id || ' is ' || b.state || ' and has other uses'
         FROM batches b
         LEFT JOIN (SELECT batch_id, count(CASE outcome WHEN 'stored' THEN 1 END) AS n_stored,
                           count(CASE WHEN end_tick IS NULL THEN 1 END) AS n_open
                    FROM key_uses GROUP BY batch_id) u ON u.batch_id = b.id
         WHERE coalesce(u.n_stored, 0) <> CASE b.state WHEN 'stored' THEN 1 ELSE 0 END
            OR coalesce(u.n_open, 0) <> CASE b.state WHEN 'open' THEN 1 ELSE 0 END
         UNION ALL
         SELECT 'key ' || key_id || ' is used twice at tick ' || fence
         FROM (SELECT key_id, fence,
                      max(coalesce(end_tick, 9223372036854775807)) OVER (
                          PARTITION BY key_id ORDER BY fence
                          ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS in_use_until
               FROM key_uses) u
         WHERE in_use_until >= fence
         UNION ALL
         SELECT 'ring ' || g.id || ' is at tick ' || g.tick || ' after ' || count(t.tick)
         FROM rings g LEFT JOIN ({ticks}) t ON t.ring_id = g.id
         GROUP BY g.id, g.tick
         HAVING count(t.tick) <> g.tick OR count(DISTINCT t.tick) <> g.tick
             OR coalesce(max(t.tick), 0) <> g.tick
         UNION ALL
         SELECT 'key ' || k.id || ' has last_tick ' || k.last_tick
         FROM keys k
         WHERE k.last_tick
            <> coalesce((SELECT max(u.end_tick) FROM key_uses u WHERE u.key_id = k.id), 0)",
        otherwise = F::SIGNED_OTHERWISE,
        ticks = "SELECT ring_id, fence AS tick FROM key_uses
                 UNION ALL SELECT ring_id, end_tick FROM key_uses WHERE end_tick IS NOT NULL
                 UNION ALL SELECT ring_id, tick FROM key_events",
    )
}

/// A key as the rows of a ring tell it, for R4.
#[derive(Clone, Copy, Default)]
struct Standing {
    active: bool,
    in_use: bool,
    last_end: i64,
}

/// Recomputes R4 from the rows: each checkout took the free key with the lowest `(last end, id)`.
fn assert_least_recently_used<F: Fixture>(f: &F, ring: RingId) {
    let rows = f.rows(&format!(
        "SELECT tick || ' ' || kind || ' ' || key_id AS value FROM (
             SELECT fence AS tick, 'out' AS kind, key_id FROM key_uses WHERE ring_id = {ring}
             UNION ALL SELECT end_tick, 'in', key_id FROM key_uses
                       WHERE ring_id = {ring} AND end_tick IS NOT NULL
             UNION ALL SELECT tick, event, key_id FROM key_events WHERE ring_id = {ring}) t
         ORDER BY tick"
    ));
    let mut keys: BTreeMap<i64, Standing> = BTreeMap::new();
    for row in rows {
        let mut words = row.split(' ');
        let mut next = || words.next().unwrap();
        let (tick, kind, id) = (next(), next(), next());
        let (tick, id): (i64, i64) = (tick.parse().unwrap(), id.parse().unwrap());
        if kind == "out" {
            let free = keys.iter().filter(|(_, key)| key.active && !key.in_use);
            let least = free.min_by_key(|(id, key)| (key.last_end, **id)).map(|(id, _)| *id);
            assert_eq!(Some(id), least, "the key checked out at tick {tick} of ring {ring}");
        }
        let key = keys.entry(id).or_default();
        match kind {
            "out" => key.in_use = true,
            "in" => (key.in_use, key.last_end) = (false, tick),
            event => key.active = ["added", "enabled"].contains(&event),
        }
    }
}
