//! The KEKs of a database, the data keys under them, and the change from one KEK to another.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Text};

use super::models::{KekRow, SealedRow, TextRow, count};
use super::shared::{Bind, Session, TxResult};
use super::{AdminAction, DataKeyRow, KekCheck, KekUsage, Resealed, Ring, SealedKeyRow, admin};
use crate::failpoint::pass;
use crate::types::{DataKeyId, KeyId, RingId, Timestamp};

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

/// Adds a KEK to a database that has none; whether it did.
pub(super) fn add_first_kek<S: Session>(s: &mut S, check: &KekCheck) -> TxResult<bool> {
    if let Some(lock) = S::LOCK_KEKS {
        s.run(lock, &[])?;
    }
    let added = s.run(
        "INSERT INTO keks (kek_id, check_value) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM keks)",
        &[Bind::Text(&check.kek_id), Bind::Bytes(&check.check_value)],
    )?;
    Ok(added == 1)
}

/// What is sealed under each KEK of the database.
pub(super) fn kek_usage<S: Session>(s: &mut S) -> TxResult<Vec<KekUsage>> {
    let query = format!(
        "SELECT e.kek_id, {} AS created_at,
                (SELECT count(*) FROM keys k WHERE k.kek_id = e.kek_id) AS sealed_keys,
                (SELECT count(*) FROM data_keys d WHERE d.kek_id = e.kek_id) AS data_keys
         FROM keks e ORDER BY e.created_at, e.kek_id",
        S::micros("e.created_at")
    );
    let mut usage = Vec::new();
    for row in s.rows::<KekUsageRow>(&query, &[])? {
        usage.push(KekUsage {
            kek_id: row.kek_id,
            created_at: Timestamp(row.created_at),
            keys: count(row.sealed_keys)?.into(),
            data_keys: count(row.data_keys)?.into(),
        });
    }
    Ok(usage)
}

/// Removes a KEK and its data keys, unless a key is sealed under it; whether it did.
pub(super) fn forget_kek<S: Session>(s: &mut S, kek_id: &str, actor: &str) -> TxResult<bool> {
    let in_use = "SELECT count(*) AS value FROM keys WHERE kek_id = $1";
    if s.number(in_use, &[Bind::Text(kek_id)])? > 0 {
        return Ok(false);
    }
    s.run("DELETE FROM data_keys WHERE kek_id = $1", &[Bind::Text(kek_id)])?;
    let forgotten = s.run("DELETE FROM keks WHERE kek_id = $1", &[Bind::Text(kek_id)])? == 1;
    if forgotten {
        let action = AdminAction {
            actor,
            action: "kek.forgotten",
            target: format!("KEK {kek_id}"),
            detail: serde_json::json!({}),
        };
        admin::log(s, &action)?;
    }
    Ok(forgotten)
}

/// The data keys of a ring, wrapped.
pub(super) fn data_keys<S: Session>(s: &mut S, ring: RingId) -> TxResult<Vec<DataKeyRow>> {
    let query = "SELECT id, kek_id, wrapped_key FROM data_keys WHERE ring_id = $1 ORDER BY id";
    let rows = s.rows::<WrappedRow>(query, &[Bind::Int(ring.0)])?;
    Ok(rows.into_iter().map(DataKeyRow::from).collect())
}

/// Adds a ring's data key under a KEK, unless it has one; the one that it has now.
pub(super) fn add_data_key<S: Session>(
    s: &mut S,
    ring: RingId,
    kek_id: &str,
    wrapped_key: &[u8],
) -> TxResult<DataKeyRow> {
    s.run(
        "INSERT INTO data_keys (ring_id, kek_id, wrapped_key) VALUES ($1, $2, $3)
         ON CONFLICT (ring_id, kek_id) DO NOTHING",
        &[Bind::Int(ring.0), Bind::Text(kek_id), Bind::Bytes(wrapped_key)],
    )?;
    let query = "SELECT id, kek_id, wrapped_key FROM data_keys WHERE ring_id = $1 AND kek_id = $2";
    Ok(s.row::<WrappedRow>(query, &[Bind::Int(ring.0), Bind::Text(kek_id)])?.into())
}

/// Keys of a ring behind `after` that are sealed by anything but this data key, whatever their status.
pub(super) fn keys_to_reseal<S: Session>(
    s: &mut S,
    ring: RingId,
    data_key: DataKeyId,
    after: KeyId,
    limit: u32,
) -> TxResult<Vec<SealedKeyRow>> {
    let query = "SELECT id, kid, public_key, sealed_private_key, kek_id, data_key_id FROM keys
                 WHERE ring_id = $1 AND sealed_private_key IS NOT NULL AND id > $2
                   AND (data_key_id IS NULL OR data_key_id <> $3)
                 ORDER BY id LIMIT $4";
    let binds =
        [Bind::Int(ring.0), Bind::Int(after.0), Bind::Int(data_key.0), Bind::Int(limit.into())];
    let rows = s.rows::<SealedRow>(query, &binds)?;
    Ok(rows.into_iter().map(SealedKeyRow::from).collect())
}

/// Puts new seals in the place of old ones, each only if the old one is still there, with an entry in
/// the administrators' log; how many. Called with the ring's lock held, as all are that change several
/// keys.
pub(super) fn reseal_keys<S: Session>(
    s: &mut S,
    ring: &Ring,
    keys: &[Resealed],
    actor: &str,
) -> TxResult<u64> {
    let mut changed = 0;
    for key in keys {
        changed += s.run(
            "UPDATE keys SET sealed_private_key = $1, kek_id = $2, data_key_id = $3
             WHERE id = $4 AND sealed_private_key = $5",
            &[
                Bind::Bytes(&key.sealed_private_key),
                Bind::Text(&key.kek_id),
                Bind::Int(key.data_key.0),
                Bind::Int(key.id.0),
                Bind::Bytes(&key.instead_of),
            ],
        )? as u64;
        pass("rewrap", "resealed")?;
    }
    if let Some(last) = keys.last().filter(|_| changed > 0) {
        let action = AdminAction {
            actor,
            action: "keys.rewrapped",
            target: format!("ring {}", ring.name),
            detail: serde_json::json!({ "keys": changed, "kek": last.kek_id }),
        };
        admin::log(s, &action)?;
    }
    Ok(changed)
}

#[derive(QueryableByName)]
struct KekUsageRow {
    #[diesel(sql_type = Text)]
    kek_id: String,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = BigInt)]
    sealed_keys: i64,
    #[diesel(sql_type = BigInt)]
    data_keys: i64,
}

#[derive(QueryableByName)]
struct WrappedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    kek_id: String,
    #[diesel(sql_type = Binary)]
    wrapped_key: Vec<u8>,
}

impl From<WrappedRow> for DataKeyRow {
    fn from(row: WrappedRow) -> Self {
        DataKeyRow { id: DataKeyId(row.id), kek_id: row.kek_id, wrapped_key: row.wrapped_key }
    }
}
