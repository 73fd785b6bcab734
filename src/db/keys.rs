//! The KEKs and keys of a database, and their way through their statuses, on either database.
//!
//! What writes here is called with the ring's lock held, and given the ring as it was read then.

use diesel::QueryResult;

use super::models::{KekRow, KeyRow, KeyStateRow, SealedRow, TextRow};
use super::shared::{Bind, Session, TxResult};
use super::{
    AdminAction, KekCheck, Key, MakeKeyError, NewKey, Ring, SealedKeyRow, StoreError, admin, lists,
};
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
        let id = s.number(S::NEXT_KEY_ID, &[])?;
        let key = make(KeyId(id)).map_err(StoreError::MakeKey)?;
        tick = tick.next();
        s.run(
            "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, sealed_private_key, kek_id, status)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'active')",
            &[
                Bind::Int(id),
                Bind::Int(ring.id.0),
                Bind::Text(&key.kid.0),
                Bind::Text(key.algorithm),
                Bind::Bytes(key.public_key.as_bytes()),
                Bind::OptionalBytes(key.sealed.as_ref().map(|sealed| sealed.blob.as_slice())),
                Bind::OptionalText(key.sealed.as_ref().map(|sealed| sealed.kek_id.as_str())),
            ],
        )?;
        insert_event(s, ring.id, tick, id, KeyEvent::Added, actor, None)?;
        added.push(KeyId(id));
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

/// Changes a key's status, with its event; the ring's tick after it, or `None` if there was nothing
/// to change.
pub(super) fn change_key<S: Session>(
    s: &mut S,
    ring: &Ring,
    kid: &Kid,
    event: KeyEvent,
    actor: &str,
    reason: Option<&str>,
) -> TxResult<Option<Tick>> {
    let (id, _, status) = key_state(s, kid)?;
    if !changes(kid, status, event)? {
        return Ok(None);
    }
    let tick = ring.tick.next();
    insert_event(s, ring.id, tick, id, event, actor, reason)?;
    set_tick(s, ring.id, tick)?;
    set_status(s, kid, id, event, reason)?;
    let action = AdminAction {
        actor,
        action: &format!("key.{event}"),
        target: format!("key {kid}"),
        detail: serde_json::json!({ "ring": ring.name, "reason": reason }),
    };
    admin::log(s, &action)?;
    Ok(Some(tick))
}

fn set_tick<S: Session>(s: &mut S, ring: RingId, tick: Tick) -> QueryResult<()> {
    s.run("UPDATE rings SET tick = $1 WHERE id = $2", &[Bind::Int(tick.0), Bind::Int(ring.0)])?;
    Ok(())
}

fn insert_event<S: Session>(
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

pub(super) fn database_id<S: Session>(s: &mut S) -> TxResult<String> {
    Ok(s.row::<TextRow>("SELECT database_id AS value FROM database_identity", &[])?.value)
}

pub(super) fn kek_checks<S: Session>(s: &mut S) -> TxResult<Vec<KekCheck>> {
    let rows =
        s.rows::<KekRow>("SELECT kek_id, check_value FROM keks ORDER BY created_at, kek_id", &[])?;
    Ok(rows
        .into_iter()
        .map(|r| KekCheck { kek_id: r.kek_id, check_value: r.check_value })
        .collect())
}

pub(super) fn add_kek<S: Session>(s: &mut S, check: &KekCheck) -> TxResult<()> {
    s.run(
        "INSERT INTO keks (kek_id, check_value) VALUES ($1, $2) ON CONFLICT (kek_id) DO NOTHING",
        &[Bind::Text(&check.kek_id), Bind::Bytes(&check.check_value)],
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
    let query = "SELECT id, kid, public_key, sealed_private_key, kek_id FROM keys
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

/// Whether `event` may happen to a key of that status; `false` if it would change nothing.
fn changes(kid: &Kid, status: KeyStatus, event: KeyEvent) -> Result<bool, StoreError> {
    let allowed = match event {
        KeyEvent::Added => false,
        KeyEvent::Enabled => status == KeyStatus::Disabled,
        KeyEvent::Disabled => status == KeyStatus::Active,
        KeyEvent::Retired => matches!(status, KeyStatus::Active | KeyStatus::Disabled),
        KeyEvent::Destroyed => status != KeyStatus::Destroyed,
    };
    if allowed {
        Ok(true)
    } else if status == event.status() {
        Ok(false)
    } else {
        Err(StoreError::IllegalChange { kid: kid.clone(), status, event })
    }
}

/// Gives a key the status after `event`, and wipes the private key of one that is destroyed.
///
/// The caller holds the ring's lock, without which no use of the key begins.
fn set_status<S: Session>(
    s: &mut S,
    kid: &Kid,
    id: i64,
    event: KeyEvent,
    reason: Option<&str>,
) -> TxResult<()> {
    let in_use = "SELECT count(*) AS value FROM key_uses WHERE key_id = $1 AND end_tick IS NULL";
    if event == KeyEvent::Destroyed && s.number(in_use, &[Bind::Int(id)])? > 0 {
        return Err(StoreError::KeyInUse { kid: kid.clone() }.into());
    }
    s.run(
        "UPDATE keys SET status = $1, status_reason = $2,
                sealed_private_key = CASE WHEN $1 = 'destroyed' THEN NULL ELSE sealed_private_key END
         WHERE id = $3",
        &[Bind::Text(event.status().as_str()), Bind::OptionalText(reason), Bind::Int(id)],
    )?;
    Ok(())
}
