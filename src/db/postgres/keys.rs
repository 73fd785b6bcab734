//! Keys on PostgreSQL: adding them and changing their status, each with its tick and its event.

use diesel::QueryResult;
use diesel::pg::PgConnection;

use super::protocol::{lock_ring, take_ticks};
use super::{PgStore, ring_bind};
use crate::db::shared::{self, Bind, Session, TxResult};
use crate::db::{MakeKeyError, NewKey, StoreError};
use crate::types::{KeyEvent, KeyId, Kid, RingId, Tick};

pub(super) fn add_keys(
    store: &PgStore,
    c: &mut PgConnection,
    ring: RingId,
    count: u32,
    if_empty: bool,
    actor: &str,
    make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
) -> TxResult<(Vec<KeyId>, Tick)> {
    let ring = lock_ring(store, c, ring)?;
    if if_empty {
        let query = "SELECT count(*) AS value FROM keys WHERE ring_id = $1";
        if c.number(query, &ring_bind(ring.id))? > 0 {
            return Ok((Vec::new(), ring.tick));
        }
    }
    let mut tick = ring.tick;
    let mut added = Vec::new();
    for _ in 0..count {
        let id = c.number("SELECT nextval(pg_get_serial_sequence('keys', 'id')) AS value", &[])?;
        let key = make(KeyId(id)).map_err(StoreError::MakeKey)?;
        tick = tick.next();
        c.run(
            "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, sealed_private_key, kek_id, status)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'active')",
            &[
                Bind::Int(id),
                Bind::Int(ring.id.0),
                Bind::Text(&key.kid.0),
                Bind::Text(key.algorithm),
                Bind::Bytes(key.public_key.as_bytes()),
                Bind::Bytes(&key.sealed_private_key),
                Bind::Text(&key.kek_id),
            ],
        )?;
        insert_event(c, ring.id, tick, id, KeyEvent::Added, actor, None)?;
        added.push(KeyId(id));
    }
    take_ticks(store, c, ring.id, added.len())?;
    Ok((added, tick))
}

pub(super) fn change_key(
    store: &PgStore,
    c: &mut PgConnection,
    kid: &Kid,
    event: KeyEvent,
    actor: &str,
    reason: Option<&str>,
) -> TxResult<Option<(RingId, Tick)>> {
    let (_, ring, _) = shared::key_state(c, kid)?;
    let ring = lock_ring(store, c, ring)?;
    let (id, _, status) = shared::key_state(c, kid)?;
    if !shared::changes(kid, status, event)? {
        return Ok(None);
    }
    let tick = take_ticks(store, c, ring.id, 1)?.next();
    insert_event(c, ring.id, tick, id, event, actor, reason)?;
    shared::set_status(c, kid, id, event, reason)?;
    Ok(Some((ring.id, tick)))
}

fn insert_event(
    c: &mut PgConnection,
    ring: RingId,
    tick: Tick,
    key: i64,
    event: KeyEvent,
    actor: &str,
    reason: Option<&str>,
) -> QueryResult<()> {
    c.run(
        "INSERT INTO key_events (ring_id, tick, key_id, event, actor, reason)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            Bind::Int(ring.0),
            Bind::Int(tick.0),
            Bind::Int(key),
            Bind::Text(event.as_str()),
            Bind::Text(actor),
            Bind::OptionalText(reason),
        ],
    )?;
    Ok(())
}
