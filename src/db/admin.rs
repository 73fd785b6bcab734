//! What administrators do: the log of it, the tokens that let them, and what they order of a ring or
//! of all nodes. On either database.
//!
//! Each change stands in the same transaction as its entry in the log. The log's head is locked last
//! of all.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use sha2::{Digest, Sha256};

use super::models::{NumberRow, TextRow};
use super::shared::{Bind, Session, TxResult, ring_by_name};
use super::{AdminAction, AdminEntry, NewToken, Ring, StoreError, Token};
use crate::types::{BatchId, Provider, RingId, Role, Timestamp, TokenId};

impl AdminEntry {
    /// The hash before the first entry.
    pub const NO_HASH: &'static str =
        "0000000000000000000000000000000000000000000000000000000000000000";

    /// What `hash` must be: SHA-256, as hexadecimal digits, of the compact JSON array (RFC 8259) of
    /// `previous_hash`, `seq`, `at`, `actor`, `action`, `target` and `detail`.
    #[must_use]
    pub fn computed_hash(&self) -> String {
        let AdminEntry { seq, at, actor, action, target, detail, previous_hash, .. } = self;
        let fields = serde_json::json!([previous_hash, seq, at, actor, action, target, detail]);
        Sha256::digest(fields.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Adds an entry to the end of the log.
pub(super) fn log<S: Session>(s: &mut S, action: &AdminAction<'_>) -> TxResult<()> {
    let head = format!("SELECT seq, hash FROM admin_log_head {}", S::FOR_UPDATE);
    let head = s.row::<HeadRow>(&head, &[])?;
    let now = s.number(&format!("SELECT {} AS value", S::micros(S::NOW)), &[])?;
    let mut entry = AdminEntry {
        seq: head.seq + 1,
        at: Timestamp(now).to_string(),
        actor: action.actor.to_owned(),
        action: action.action.to_owned(),
        target: action.target.clone(),
        detail: action.detail.to_string(),
        previous_hash: head.hash,
        hash: String::new(),
    };
    entry.hash = entry.computed_hash();
    s.run(
        "INSERT INTO admin_log (seq, at, actor, action, target, detail, previous_hash, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            Bind::Int(entry.seq),
            Bind::Text(&entry.at),
            Bind::Text(&entry.actor),
            Bind::Text(&entry.action),
            Bind::Text(&entry.target),
            Bind::Text(&entry.detail),
            Bind::Text(&entry.previous_hash),
            Bind::Text(&entry.hash),
        ],
    )?;
    s.run(
        "UPDATE admin_log_head SET seq = $1, hash = $2",
        &[Bind::Int(entry.seq), Bind::Text(&entry.hash)],
    )?;
    Ok(())
}

/// Entries behind `after`, oldest first.
pub(super) fn entries<S: Session>(s: &mut S, after: i64, limit: u32) -> TxResult<Vec<AdminEntry>> {
    let query = format!("SELECT {ENTRY} FROM admin_log WHERE seq > $1 ORDER BY seq LIMIT $2");
    entries_of(s, &query, after, limit)
}

/// Entries before `before`, newest first.
pub(super) fn last_entries<S: Session>(
    s: &mut S,
    before: i64,
    limit: u32,
) -> TxResult<Vec<AdminEntry>> {
    let query = format!("SELECT {ENTRY} FROM admin_log WHERE seq < $1 ORDER BY seq DESC LIMIT $2");
    entries_of(s, &query, before, limit)
}

const ENTRY: &str = "seq, at, actor, action, target, detail, previous_hash, hash";

fn entries_of<S: Session>(
    s: &mut S,
    query: &str,
    bound: i64,
    limit: u32,
) -> TxResult<Vec<AdminEntry>> {
    let rows = s.rows::<EntryRow>(query, &[Bind::Int(bound), Bind::Int(limit.into())])?;
    Ok(rows.into_iter().map(AdminEntry::from).collect())
}

/// The number and the hash of the last entry.
pub(super) fn head<S: Session>(s: &mut S) -> TxResult<(i64, String)> {
    let row = s.row::<HeadRow>("SELECT seq, hash FROM admin_log_head", &[])?;
    Ok((row.seq, row.hash))
}

// Tokens

pub(super) fn add_token<S: Session>(s: &mut S, token: &NewToken, actor: &str) -> TxResult<TokenId> {
    let roles = token.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" ");
    let expires = match token.valid_for {
        Some(_) => S::later("$4"),
        None => "NULL".to_owned(),
    };
    let statement = format!(
        "INSERT INTO tokens (name, roles, token_hash, expires_at)
         VALUES ($1, $2, $3, {expires}) RETURNING id AS value"
    );
    let mut binds = vec![Bind::Text(&token.name), Bind::Text(&roles), Bind::Bytes(&token.hash)];
    if let Some(valid_for) = token.valid_for {
        binds.push(Bind::Int(i64::try_from(valid_for.as_secs()).unwrap_or(i64::MAX)));
    }
    let id = TokenId(s.number(&statement, &binds)?);
    let valid_for_s = token.valid_for.map(|valid_for| valid_for.as_secs());
    log(
        s,
        &AdminAction {
            actor,
            action: "token.created",
            target: format!("token {id}"),
            detail: serde_json::json!({
                "name": token.name, "roles": token.roles, "valid_for_s": valid_for_s
            }),
        },
    )?;
    Ok(id)
}

/// Every token, in order of id.
pub(super) fn tokens<S: Session>(s: &mut S) -> TxResult<Vec<Token>> {
    let query = format!(
        "SELECT id, name, roles, token_hash, {} AS created_at, {} AS expires_at,
                {} AS revoked_at, {} AS last_used_at,
                CASE WHEN expires_at IS NULL THEN NULL
                     ELSE {} - {} END AS left_us
         FROM tokens ORDER BY id",
        S::micros("created_at"),
        S::micros("expires_at"),
        S::micros("revoked_at"),
        S::micros("last_used_at"),
        S::micros("expires_at"),
        S::micros(S::NOW),
    );
    let rows = s.rows::<TokenRow>(&query, &[])?;
    Ok(rows.into_iter().map(Token::try_from).collect::<Result<_, _>>()?)
}

/// Revokes a token; `false` if it was revoked already.
pub(super) fn revoke_token<S: Session>(s: &mut S, token: TokenId, actor: &str) -> TxResult<bool> {
    let statement =
        format!("UPDATE tokens SET revoked_at = {} WHERE id = $1 AND revoked_at IS NULL", S::NOW);
    if s.run(&statement, &[Bind::Int(token.0)])? == 0 {
        let known = "SELECT count(*) AS value FROM tokens WHERE id = $1";
        if s.number(known, &[Bind::Int(token.0)])? == 0 {
            return Err(StoreError::NotFound { what: "token", name: token.to_string() }.into());
        }
        return Ok(false);
    }
    log(
        s,
        &AdminAction {
            actor,
            action: "token.revoked",
            target: format!("token {token}"),
            detail: serde_json::json!({}),
        },
    )?;
    Ok(true)
}

/// Notes that these tokens have been used just now.
pub(super) fn touch_tokens<S: Session>(s: &mut S, tokens: &[TokenId]) -> TxResult<()> {
    let statement = format!("UPDATE tokens SET last_used_at = {} WHERE id = $1", S::NOW);
    for token in tokens {
        s.run(&statement, &[Bind::Int(token.0)])?;
    }
    Ok(())
}

// Rings

/// Makes a ring without keys or records.
pub(super) fn create_ring<S: Session>(
    s: &mut S,
    name: &str,
    provider: Provider,
    actor: &str,
) -> TxResult<Ring> {
    let statement = "INSERT INTO rings (name, provider) VALUES ($1, $2)
                     ON CONFLICT (name) DO NOTHING";
    if s.run(statement, &[Bind::Text(name), Bind::Text(provider.as_str())])? == 0 {
        return Err(StoreError::RingExists { name: name.to_owned() }.into());
    }
    let target = format!("ring {name}");
    let detail = serde_json::json!({ "provider": provider });
    log(s, &AdminAction { actor, action: "ring.created", target, detail })?;
    ring_by_name(s, name)
}

// Orders

/// Pauses or resumes a ring, whose lock the caller holds; `false` if it was so already.
pub(super) fn set_paused<S: Session>(
    s: &mut S,
    ring: &Ring,
    paused: bool,
    actor: &str,
) -> TxResult<bool> {
    if ring.paused == paused {
        return Ok(false);
    }
    let word = if paused { "TRUE" } else { "FALSE" };
    let statement = format!("UPDATE rings SET paused = {word} WHERE id = $1");
    s.run(&statement, &[Bind::Int(ring.id.0)])?;
    let action = if paused { "ring.paused" } else { "ring.resumed" };
    let target = format!("ring {}", ring.name);
    log(s, &AdminAction { actor, action, target, detail: serde_json::json!({}) })?;
    Ok(true)
}

/// Asks every node that has not stopped to drain; how many.
pub(super) fn request_drain<S: Session>(s: &mut S, actor: &str) -> TxResult<u64> {
    let asked = s.run("UPDATE nodes SET drain_requested = TRUE WHERE state <> 'stopped'", &[])?;
    log(
        s,
        &AdminAction {
            actor,
            action: "nodes.drained",
            target: "all nodes".to_owned(),
            detail: serde_json::json!({ "nodes": asked }),
        },
    )?;
    Ok(asked as u64)
}

/// The ring of a batch, before its lock is taken.
pub(super) fn ring_of_batch<S: Session>(s: &mut S, batch: BatchId) -> TxResult<RingId> {
    let query = "SELECT ring_id AS value FROM batches WHERE id = $1";
    match s.rows::<NumberRow>(query, &[Bind::Int(batch.0)])?.pop() {
        Some(row) => Ok(RingId(row.value)),
        None => Err(StoreError::NotFound { what: "batch", name: batch.to_string() }.into()),
    }
}

/// Sends a quarantined batch back to be retried, with all its attempts before it again. The caller
/// holds the lock of its ring.
pub(super) fn retry_batch<S: Session>(s: &mut S, batch: BatchId, actor: &str) -> TxResult<()> {
    let statement = "UPDATE batches SET state = 'retry', attempts = 0
                     WHERE id = $1 AND state = 'quarantined'";
    if s.run(statement, &[Bind::Int(batch.0)])? == 0 {
        let query = "SELECT state AS value FROM batches WHERE id = $1";
        let state = s.row::<TextRow>(query, &[Bind::Int(batch.0)])?.value;
        return Err(StoreError::NotQuarantined { batch, state }.into());
    }
    log(
        s,
        &AdminAction {
            actor,
            action: "batch.retried",
            target: format!("batch {batch}"),
            detail: serde_json::json!({}),
        },
    )
}

#[derive(QueryableByName)]
struct HeadRow {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Text)]
    hash: String,
}

#[derive(QueryableByName)]
struct EntryRow {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Text)]
    at: String,
    #[diesel(sql_type = Text)]
    actor: String,
    #[diesel(sql_type = Text)]
    action: String,
    #[diesel(sql_type = Text)]
    target: String,
    #[diesel(sql_type = Text)]
    detail: String,
    #[diesel(sql_type = Text)]
    previous_hash: String,
    #[diesel(sql_type = Text)]
    hash: String,
}

impl From<EntryRow> for AdminEntry {
    fn from(row: EntryRow) -> Self {
        let EntryRow { seq, at, actor, action, target, detail, previous_hash, hash } = row;
        AdminEntry { seq, at, actor, action, target, detail, previous_hash, hash }
    }
}

#[derive(QueryableByName)]
struct TokenRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    roles: String,
    #[diesel(sql_type = Binary)]
    token_hash: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    expires_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    revoked_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_used_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    left_us: Option<i64>,
}

impl TryFrom<TokenRow> for Token {
    type Error = StoreError;

    fn try_from(row: TokenRow) -> Result<Self, StoreError> {
        let roles = row.roles.split(' ').map(super::models::word::<Role>);
        let hash = row.token_hash.as_slice().try_into().map_err(|_| {
            StoreError::Database(format!("token {}: its hash has not 32 bytes", row.id))
        })?;
        Ok(Token {
            id: TokenId(row.id),
            name: row.name,
            roles: roles.collect::<Result<_, _>>()?,
            hash,
            created_at: Timestamp(row.created_at),
            expires_at: row.expires_at.map(Timestamp),
            revoked_at: row.revoked_at.map(Timestamp),
            last_used_at: row.last_used_at.map(Timestamp),
            valid_for: row
                .left_us
                .map(|us| std::time::Duration::from_micros(u64::try_from(us).unwrap_or(0))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_an_entry_covers_each_of_its_fields() {
        let entry = || AdminEntry {
            seq: 1,
            at: "2026-01-01T00:00:00.000000Z".to_owned(),
            actor: "a".to_owned(),
            action: "b".to_owned(),
            target: "c".to_owned(),
            detail: "{}".to_owned(),
            previous_hash: AdminEntry::NO_HASH.to_owned(),
            hash: String::new(),
        };
        // printf '%s' '["000...","seq",...]' | sha256sum
        let none = AdminEntry::NO_HASH;
        let text = format!(r#"["{none}",1,"2026-01-01T00:00:00.000000Z","a","b","c","{{}}"]"#);
        let expected: String =
            Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(entry().computed_hash(), expected);
        let changes: [fn(&mut AdminEntry); 7] = [
            |e| e.seq = 2,
            |e| e.at.push(' '),
            |e| e.actor.push(' '),
            |e| e.action.push(' '),
            |e| e.target.push(' '),
            |e| e.detail.push(' '),
            |e| e.previous_hash.push(' '),
        ];
        for change in changes {
            let mut changed = entry();
            change(&mut changed);
            assert_ne!(changed.computed_hash(), expected);
        }
        let moved = AdminEntry { actor: "ab".to_owned(), action: String::new(), ..entry() };
        assert_ne!(moved.computed_hash(), expected);
    }
}
