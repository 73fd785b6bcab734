//! The keys of a ring and their events, on either database.
//!
//! What writes here is called with the ring's lock held, and given the ring as it was read then.

use diesel::QueryResult;

use super::models::{KeyRow, KeyStateRow, SealedRow};
use super::shared::{Bind, Session, TxResult};
use super::{AdminAction, Key, MakeKeyError, NewKey, Ring, SealedKeyRow, StoreError, admin, lists};
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, RingId, Tick};

/// Adds active keys to a ring, each with its event; their ids, and the ring's tick after them.
pub(super) fn add_keys<S: Session>(
    s: &mut S,
    ring: &Ring,
    count: u32,
    if_empty: bool,
    actor: &str,
    make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
) -> TxResult<(Vec<KeyId>, Tick)> {
    if if_empty {
        let query = "SELECT count(*) AS value FROM keys WHERE ring_id = $1";
        if s.number(query, &[Bind::Int(ring.id.0)])? > 0 {
            return Ok((Vec::new(), ring.tick));
        }
    }
    let mut tick = ring.tick;
    let mut added = Vec::new();
    for _ in 0..count {
        tick = tick.next();
        added.push(insert_key(s, ring.id, tick, actor, make)?);
    }
    set_tick(s, ring.id, tick)?;
    if let (Some(first), Some(last)) = (added.first(), added.last()) {
        let action = AdminAction {
            actor,
            action: "keys.added",
            target: format!("ring {}", ring.name),
            detail: serde_json::json!({ "count": added.len(), "first": first, "last": last }),
        };
        admin::log(s, &action)?;
    }
    Ok((added, tick))
}

/// Inserts an active key that `make` makes for its id, with its event.
pub(super) fn insert_key<S: Session>(
    s: &mut S,
    ring: RingId,
    tick: Tick,
    actor: &str,
    make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
) -> TxResult<KeyId> {
    let id = s.number(S::NEXT_KEY_ID, &[])?;
    let key = make(KeyId(id)).map_err(StoreError::MakeKey)?;
    s.run(
        "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, sealed_private_key, kek_id,
                           data_key_id, status)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'active')",
        &[
            Bind::Int(id),
            Bind::Int(ring.0),
            Bind::Text(&key.kid.0),
            Bind::Text(key.algorithm),
            Bind::Bytes(key.public_key.as_bytes()),
            Bind::OptionalBytes(key.sealed.as_ref().map(|sealed| sealed.blob.as_slice())),
            Bind::OptionalText(key.sealed.as_ref().map(|sealed| sealed.kek_id.as_str())),
            Bind::OptionalInt(
                key.sealed.as_ref().and_then(|sealed| sealed.data_key).map(|id| id.0),
            ),
        ],
    )?;
    insert_event(s, ring, tick, id, KeyEvent::Added, actor, None)?;
    Ok(KeyId(id))
}

pub(super) fn set_tick<S: Session>(s: &mut S, ring: RingId, tick: Tick) -> QueryResult<()> {
    s.run("UPDATE rings SET tick = $1 WHERE id = $2", &[Bind::Int(tick.0), Bind::Int(ring.0)])?;
    Ok(())
}

pub(super) fn insert_event<S: Session>(
    s: &mut S,
    ring: RingId,
    tick: Tick,
    key: i64,
    event: KeyEvent,
    actor: &str,
    reason: Option<&str>,
) -> QueryResult<()> {
    s.run(
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

pub(super) fn keys<S: Session>(s: &mut S, ring: RingId) -> TxResult<Vec<Key>> {
    let query = format!(
        "SELECT {} FROM keys k WHERE k.ring_id = $1 ORDER BY k.id",
        lists::key_columns::<S>()
    );
    let rows = s.rows::<KeyRow>(&query, &[Bind::Int(ring.0)])?;
    Ok(rows.into_iter().map(Key::try_from).collect::<Result<_, _>>()?)
}

pub(super) fn sealed_keys<S: Session>(s: &mut S, ring: RingId) -> TxResult<Vec<SealedKeyRow>> {
    let query = "SELECT id, kid, public_key, sealed_private_key, kek_id, data_key_id FROM keys
                 WHERE ring_id = $1 AND status = 'active' ORDER BY id";
    let rows = s.rows::<SealedRow>(query, &[Bind::Int(ring.0)])?;
    Ok(rows.into_iter().map(SealedKeyRow::from).collect())
}

/// The key of that thumbprint, with its status as this transaction sees it.
pub(super) fn key_state<S: Session>(s: &mut S, kid: &Kid) -> TxResult<(i64, RingId, KeyStatus)> {
    let query = "SELECT id, ring_id, status FROM keys WHERE kid = $1";
    let Some(row) = s.rows::<KeyStateRow>(query, &[Bind::Text(&kid.0)])?.pop() else {
        return Err(StoreError::NotFound { what: "key", name: kid.0.clone() }.into());
    };
    Ok((row.id, RingId(row.ring_id), row.status()?))
}
