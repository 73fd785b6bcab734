//! A key's way through its statuses, and the retirement of keys that have signed for long enough.
//!
//! What is here is called with the ring's lock held, without which no use of a key begins, and given
//! the ring as it was read then.

use diesel::QueryResult;

use super::keys::{insert_event, insert_key, key_state, set_tick};
use super::models::{DueRow, NumberRow, UseRow};
use super::shared::{self, Bind, Session, TxResult};
use super::{
    AdminAction, DueKey, KeyChange, MakeKeyError, NewKey, Retirement, Ring, StoreError, admin,
};
use crate::types::{KeyEvent, KeyId, KeyStatus, Kid, Outcome, RingId, Tick};

/// Locks the open uses of keys that are to be destroyed whatever they do, before the ring: it waits for
/// one that is just being stored.
pub(super) fn lock_uses<S: Session>(s: &mut S, kids: &[Kid]) -> TxResult<()> {
    if kids.is_empty() {
        return Ok(());
    }
    // In one statement, because uses are locked in the order of their fences everywhere.
    let places: Vec<String> = (1..=kids.len()).map(|n| format!("${n}")).collect();
    let query = format!(
        "SELECT u.fence AS value FROM key_uses u JOIN keys k ON k.id = u.key_id
         WHERE k.kid IN ({}) AND u.end_tick IS NULL ORDER BY u.ring_id, u.fence {}",
        places.join(", "),
        S::FOR_UPDATE_OF_USES
    );
    let binds: Vec<Bind<'_>> = kids.iter().map(|kid| Bind::Text(&kid.0)).collect();
    s.rows::<NumberRow>(&query, &binds)?;
    Ok(())
}

/// Changes the status of keys of one ring, each with its event; whether each has changed, and the
/// ring's tick after it all.
pub(super) fn change_keys<S: Session>(
    s: &mut S,
    ring: &Ring,
    kids: &[Kid],
    change: &KeyChange<'_>,
) -> TxResult<(Vec<bool>, Tick)> {
    let KeyChange { event, actor, reason, force } = *change;
    let mut tick = ring.tick;
    let mut changed = Vec::with_capacity(kids.len());
    for kid in kids {
        let (id, of_ring, status) = key_state(s, kid)?;
        if of_ring != ring.id {
            let name = format!("{kid} in ring {}", ring.name);
            return Err(StoreError::NotFound { what: "key", name }.into());
        }
        let changes = changes(kid, status, event)?;
        changed.push(changes);
        if !changes {
            continue;
        }
        if event == KeyEvent::Destroyed {
            tick = end_use(s, ring.id, kid, id, force, tick)?;
        }
        tick = tick.next();
        insert_event(s, ring.id, tick, id, event, actor, reason)?;
        set_status(s, id, event, reason)?;
    }
    if tick == ring.tick {
        return Ok((changed, tick));
    }
    set_tick(s, ring.id, tick)?;
    log_change(s, ring, kids, &changed, change)?;
    Ok((changed, tick))
}

fn log_change<S: Session>(
    s: &mut S,
    ring: &Ring,
    kids: &[Kid],
    changed: &[bool],
    change: &KeyChange<'_>,
) -> TxResult<()> {
    let KeyChange { event, actor, reason, force } = *change;
    let kids: Vec<&Kid> =
        kids.iter().zip(changed).filter(|(_, changed)| **changed).map(|(kid, _)| kid).collect();
    let mut detail = serde_json::json!({ "ring": ring.name, "reason": reason });
    if force {
        detail["force"] = true.into();
    }
    let target = match kids.as_slice() {
        [kid] => format!("key {kid}"),
        _ => {
            detail["kids"] = serde_json::json!(kids);
            format!("{} keys of ring {}", kids.len(), ring.name)
        }
    };
    admin::log(s, &AdminAction { actor, action: &format!("key.{event}"), target, detail })
}

/// Whether `event` may happen to a key of that status; `false` if it would change nothing.
fn changes(kid: &Kid, status: KeyStatus, event: KeyEvent) -> Result<bool, StoreError> {
    if event.may_follow(status) {
        Ok(true)
    } else if status == event.status() {
        Ok(false)
    } else {
        Err(StoreError::IllegalChange { kid: kid.clone(), status, event })
    }
}

/// Ends the open use of a key that is to be destroyed, if it has one and that is wanted: its store will
/// be fenced, and its batch is signed by another key. The tick after it.
fn end_use<S: Session>(
    s: &mut S,
    ring: RingId,
    kid: &Kid,
    key: i64,
    force: bool,
    tick: Tick,
) -> TxResult<Tick> {
    let open = "SELECT count(*) AS value FROM key_uses WHERE key_id = $1 AND end_tick IS NULL";
    if s.number(open, &[Bind::Int(key)])? == 0 {
        return Ok(tick);
    }
    if !force {
        return Err(StoreError::KeyInUse { kid: kid.clone() }.into());
    }
    // Who holds the ring's lock waits for no use: one that is locked is just being stored.
    let query = format!(
        "SELECT {} FROM key_uses WHERE key_id = $1 AND end_tick IS NULL {}",
        shared::use_columns::<S>(),
        S::FOR_UPDATE_SKIP_LOCKED
    );
    let Some(row) = s.rows::<UseRow>(&query, &[Bind::Int(key)])?.pop() else {
        // It was free for a moment, and is just being stored again.
        return Err(StoreError::Busy(format!("key {kid} is in use")).into());
    };
    let key_use = row.key_use();
    let tick = tick.next();
    s.run(
        &format!(
            "UPDATE key_uses SET end_tick = $1, ended_at = {}, outcome = $2
             WHERE ring_id = $3 AND fence = $4",
            S::NOW
        ),
        &[
            Bind::Int(tick.0),
            Bind::Text(Outcome::Reclaimed.as_str()),
            Bind::Int(ring.0),
            Bind::Int(key_use.fence.0.0),
        ],
    )?;
    let stamp = "UPDATE keys SET last_tick = $1 WHERE id = $2";
    s.run(stamp, &[Bind::Int(tick.0), Bind::Int(key)])?;
    // Through no fault of the batch's: its attempts stay.
    let retry = "UPDATE batches SET state = 'retry' WHERE id = $1";
    s.run(retry, &[Bind::Int(key_use.batch.0)])?;
    Ok(tick)
}

/// Gives a key the status after `event`; of one that is destroyed the private key is wiped.
fn set_status<S: Session>(
    s: &mut S,
    key: i64,
    event: KeyEvent,
    reason: Option<&str>,
) -> QueryResult<()> {
    if event == KeyEvent::Destroyed {
        let wipe = "UPDATE keys SET sealed_private_key = NULL, data_key_id = NULL, kek_id = NULL
                    WHERE id = $1";
        s.run(wipe, &[Bind::Int(key)])?;
    }
    s.run(
        "UPDATE keys SET status = $1, status_reason = $2 WHERE id = $3",
        &[Bind::Text(event.status().as_str()), Bind::OptionalText(reason), Bind::Int(key)],
    )?;
    Ok(())
}

/// Active keys that have signed for long enough, in order of id, up to `limit`.
pub(super) fn due_keys<S: Session>(
    s: &mut S,
    ring: RingId,
    retirement: &Retirement,
    limit: u32,
) -> TxResult<Vec<DueKey>> {
    let most = |number: Option<u64>| {
        number.and_then(|number| i64::try_from(number).ok()).unwrap_or(i64::MAX)
    };
    let seconds = retirement.after.map(|age| age.as_secs());
    let query = format!(
        "SELECT kid, signature_count,
                CAST(({now} - {made}) / 1000000 AS BIGINT) AS age_s
         FROM keys k
         WHERE ring_id = $1 AND status = 'active'
           AND (signature_count >= $2 OR ({now} - {made}) / 1000000 >= $3)
         ORDER BY id LIMIT $4",
        now = S::micros(S::NOW),
        made = S::micros("k.created_at"),
    );
    let binds = [
        Bind::Int(ring.0),
        Bind::Int(most(retirement.after_signatures)),
        Bind::Int(most(seconds)),
        Bind::Int(limit.into()),
    ];
    let rows = s.rows::<DueRow>(&query, &binds)?;
    Ok(rows.into_iter().map(DueKey::from).collect())
}

/// Retires keys that are active, and puts a fresh one in the place of each; how many, and the ring's
/// tick after it.
pub(super) fn replace_keys<S: Session>(
    s: &mut S,
    ring: &Ring,
    due: &[DueKey],
    actor: &str,
    make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
) -> TxResult<(u32, Tick)> {
    let mut tick = ring.tick;
    let mut replaced = Vec::new();
    for key in due {
        let (id, of_ring, status) = key_state(s, &key.kid)?;
        // Another node may have been faster.
        if of_ring != ring.id || status != KeyStatus::Active {
            continue;
        }
        let reason = key.to_string();
        tick = tick.next();
        insert_event(s, ring.id, tick, id, KeyEvent::Retired, actor, Some(&reason))?;
        set_status(s, id, KeyEvent::Retired, Some(&reason))?;
        tick = tick.next();
        insert_key(s, ring.id, tick, actor, make)?;
        replaced.push(&key.kid);
    }
    if replaced.is_empty() {
        return Ok((0, tick));
    }
    set_tick(s, ring.id, tick)?;
    let action = AdminAction {
        actor,
        action: "keys.replaced",
        target: format!("ring {}", ring.name),
        detail: serde_json::json!({ "retired": replaced }),
    };
    admin::log(s, &action)?;
    Ok((u32::try_from(replaced.len()).unwrap_or(u32::MAX), tick))
}
