//! What both databases are asked in the same words: the [`Session`] seam and the reads over it.
//!
//! The protocol's writing transactions differ in their locks, and stand in `postgres.rs` and `sqlite.rs`.
//! SQLite numbers `$1`, `$2` by first appearance, so parameters appear in the order of their numbers.

use diesel::pg::{Pg, PgConnection};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, QueryableByName, RunQueryDsl};

use super::models::{
    BatchKeyRow, BatchRow, EventRow, FlagRow, MembershipRow, NumberRow, PositionRow, RemainingRow,
    RingRow, SignedRow, StateRow, UseRow,
};
pub(super) use super::statement::Bind;
use super::statement::Statement;
use super::{
    Batch, BatchKey, CheckOut, Membership, OpenUse, Progress, Remaining, Ring, Shortage,
    SignedRecord, StoreError,
};
use crate::failpoint::{self, Injected};
use crate::ledger::Event;
use crate::types::{BatchId, BatchState, Outcome, Position, RecordId, RingId, Tick};

/// Why a transaction did not commit: the database's own error, or a finding of ours.
#[derive(Debug)]
pub(super) enum TxError {
    Diesel(diesel::result::Error),
    Store(StoreError),
}

impl From<diesel::result::Error> for TxError {
    fn from(error: diesel::result::Error) -> Self {
        TxError::Diesel(error)
    }
}

impl From<StoreError> for TxError {
    fn from(error: StoreError) -> Self {
        TxError::Store(error)
    }
}

impl From<Injected> for TxError {
    fn from(injected: Injected) -> Self {
        TxError::Store(StoreError::Unavailable(injected.to_string()))
    }
}

pub(super) type TxResult<T> = Result<T, TxError>;

/// What a transaction returns once it has committed, unless its reply is lost on purpose.
pub(super) fn committed<T>(step: &'static str, value: T) -> Result<T, StoreError> {
    match failpoint::pass(step, "committed") {
        Ok(()) => Ok(value),
        Err(injected) => Err(StoreError::Unavailable(injected.to_string())),
    }
}

/// The step that ends a use so, as the failpoints name it.
pub(super) fn step_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored => "store",
        Outcome::Abandoned => "give_up",
        Outcome::Reclaimed => "reclaim",
    }
}

/// A row that either database can return.
pub(super) trait Row: QueryableByName<Pg> + QueryableByName<Sqlite> + 'static {}

impl<T: QueryableByName<Pg> + QueryableByName<Sqlite> + 'static> Row for T {}

/// A connection to either database.
pub(super) trait Session {
    /// Whether the table of the schema's versions is there, as a query for a [`FlagRow`].
    const HAS_VERSIONS: &'static str;

    /// The id of the next key, as a query for a number.
    const NEXT_KEY_ID: &'static str;

    /// How many records a search through all of them looks at in one statement, where a long one
    /// would keep a snapshot open for too long; `None` if that harms nobody.
    const SEARCH_PAGE: Option<i64>;

    /// About how many records there are, as a query for a number; negative if nobody knows.
    const RECORDS_ESTIMATE: &'static str;

    /// What keeps others from adding a KEK, where the transaction itself does not.
    const LOCK_KEKS: Option<&'static str>;

    /// The instant at which a statement runs, by the database's clock, as an SQL expression.
    const NOW: &'static str;

    /// What makes a SELECT lock its rows, where the transaction does not.
    const FOR_UPDATE: &'static str;

    /// As [`Session::FOR_UPDATE`], of the rows of `key_uses u` alone.
    const FOR_UPDATE_OF_USES: &'static str;

    /// As [`Session::FOR_UPDATE`], passing over rows that somebody else has locked.
    const FOR_UPDATE_SKIP_LOCKED: &'static str;

    /// The instant so many seconds from now, as an SQL expression; `seconds` is a number's.
    fn later(seconds: &str) -> String;

    /// What the database's error means.
    fn classify(error: diesel::result::Error) -> StoreError;

    /// The instant `column` in microseconds since 1970, as an SQL expression.
    fn micros(column: &str) -> String;

    /// The rows that a query returns.
    fn rows<R: Row>(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<Vec<R>>;

    /// Runs a statement; the number of rows that it changed.
    fn run(&mut self, statement: &str, binds: &[Bind<'_>]) -> QueryResult<usize>;

    /// As [`Session::rows`], with a query that this connection keeps: see [`Statement::prepared`].
    fn prepared_rows<R: Row>(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<Vec<R>>;

    /// As [`Session::run`], with a statement that this connection keeps: see [`Statement::prepared`].
    fn run_prepared(&mut self, statement: &str, binds: &[Bind<'_>]) -> QueryResult<usize>;

    /// The one row that a query returns.
    fn row<R: Row>(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<R> {
        self.rows(query, binds)?.pop().ok_or(diesel::result::Error::NotFound)
    }

    /// As [`Session::row`], with a query that this connection keeps.
    fn prepared_row<R: Row>(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<R> {
        self.prepared_rows(query, binds)?.pop().ok_or(diesel::result::Error::NotFound)
    }

    /// As [`Session::number`], with a query that this connection keeps.
    fn prepared_number(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<i64> {
        Ok(self.prepared_row::<NumberRow>(query, binds)?.value)
    }

    /// The one number, named `value`, that a query returns.
    fn number(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<i64> {
        Ok(self.row::<NumberRow>(query, binds)?.value)
    }
}

macro_rules! session {
    ($connection:ty, $classify:path, $now:literal, $later:literal, $for_update:literal, $of_uses:literal, $skip_locked:literal, $micros:literal, $has_versions:literal, $next_key_id:literal, $search_page:expr, $records_estimate:literal, $lock_keks:expr) => {
        impl Session for $connection {
            const HAS_VERSIONS: &'static str = $has_versions;
            const NEXT_KEY_ID: &'static str = $next_key_id;
            const SEARCH_PAGE: Option<i64> = $search_page;
            const RECORDS_ESTIMATE: &'static str = $records_estimate;
            const LOCK_KEKS: Option<&'static str> = $lock_keks;
            const NOW: &'static str = $now;
            const FOR_UPDATE: &'static str = $for_update;
            const FOR_UPDATE_OF_USES: &'static str = $of_uses;
            const FOR_UPDATE_SKIP_LOCKED: &'static str = $skip_locked;

            fn later(seconds: &str) -> String {
                format!($later, seconds)
            }

            fn classify(error: diesel::result::Error) -> StoreError {
                $classify(error)
            }

            fn micros(column: &str) -> String {
                format!($micros, column)
            }

            fn rows<R: Row>(&mut self, query: &str, binds: &[Bind<'_>]) -> QueryResult<Vec<R>> {
                Statement::once(query, binds).load(self)
            }

            fn run(&mut self, statement: &str, binds: &[Bind<'_>]) -> QueryResult<usize> {
                Statement::once(statement, binds).execute(self)
            }

            fn prepared_rows<R: Row>(
                &mut self,
                query: &str,
                binds: &[Bind<'_>],
            ) -> QueryResult<Vec<R>> {
                Statement::prepared(query, binds).load(self)
            }

            fn run_prepared(&mut self, statement: &str, binds: &[Bind<'_>]) -> QueryResult<usize> {
                Statement::prepared(statement, binds).execute(self)
            }
        }
    };
}

session!(
    PgConnection,
    super::postgres::classify,
    "clock_timestamp()",
    "clock_timestamp() + {} * INTERVAL '1 second'",
    "FOR UPDATE",
    "FOR UPDATE OF u",
    "FOR UPDATE SKIP LOCKED",
    "(extract(epoch FROM {}) * 1000000)::BIGINT",
    "SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS value",
    "SELECT nextval(pg_get_serial_sequence('keys', 'id')) AS value",
    // Less than a second's work.
    Some(500_000),
    "SELECT reltuples::BIGINT AS value FROM pg_class WHERE oid = 'records'::regclass",
    Some("LOCK TABLE keks IN SHARE ROW EXCLUSIVE MODE")
);
session!(
    SqliteConnection,
    super::sqlite::classify,
    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', {} || ' seconds')",
    "",
    "",
    "",
    "CAST(round(unixepoch({}, 'subsec') * 1000) AS INTEGER) * 1000",
    "SELECT count(*) > 0 AS value FROM sqlite_master WHERE name = '__diesel_schema_migrations'",
    "SELECT coalesce(max(seq), 0) + 1 AS value FROM sqlite_sequence WHERE name = 'keys'",
    None,
    "SELECT -1 AS value",
    None
);

// Rings, batches, uses

pub(super) fn ring_by_name<S: Session>(s: &mut S, name: &str) -> TxResult<Ring> {
    let query = format!("SELECT {} FROM rings WHERE name = $1", RingRow::COLUMNS);
    match s.rows::<RingRow>(&query, &[Bind::Text(name)])?.pop() {
        Some(row) => Ok(row.try_into()?),
        None => Err(StoreError::NotFound { what: "ring", name: name.to_owned() }.into()),
    }
}

pub(super) fn rings<S: Session>(s: &mut S) -> TxResult<Vec<Ring>> {
    let query = format!("SELECT {} FROM rings ORDER BY id", RingRow::COLUMNS);
    let rows = s.rows::<RingRow>(&query, &[])?.into_iter();
    Ok(rows.map(Ring::try_from).collect::<Result<_, _>>()?)
}

/// The free keys of a ring, least recently used first.
pub(super) fn free_keys<S: Session>(s: &mut S, ring: RingId, limit: u32) -> QueryResult<Vec<i64>> {
    let query = "SELECT k.id AS value FROM keys k
                 WHERE k.ring_id = $1 AND k.status = 'active'
                   AND NOT EXISTS (SELECT 1 FROM key_uses u
                                   WHERE u.key_id = k.id AND u.end_tick IS NULL)
                 ORDER BY k.last_tick, k.id LIMIT $2";
    let rows =
        s.prepared_rows::<NumberRow>(query, &[Bind::Int(ring.0), Bind::Int(limit.into())])?;
    Ok(rows.into_iter().map(|row| row.value).collect())
}

/// Why a checkout that found `keys` free keys made only `claimed` batches, if so.
pub(super) fn shortage<S: Session>(
    s: &mut S,
    request: &CheckOut,
    keys: usize,
    claimed: usize,
) -> QueryResult<Option<Shortage>> {
    let wanted = usize::try_from(request.max_batches).unwrap_or(usize::MAX);
    Ok(if claimed == wanted {
        None
    } else if claimed < keys {
        Some(Shortage::NoWork)
    } else if keys > 0 || has_active_key(s, request.ring)? {
        Some(Shortage::NoFreeKey)
    } else {
        Some(Shortage::NoActiveKey)
    })
}

fn has_active_key<S: Session>(s: &mut S, ring: RingId) -> QueryResult<bool> {
    let query =
        "SELECT EXISTS (SELECT 1 FROM keys WHERE ring_id = $1 AND status = 'active') AS value";
    Ok(s.row::<FlagRow>(query, &[Bind::Int(ring.0)])?.value)
}

/// Batches to be retried, oldest first.
pub(super) fn retry_batches<S: Session>(
    s: &mut S,
    ring: RingId,
    limit: usize,
) -> TxResult<Vec<Batch>> {
    let query = format!(
        "SELECT {} FROM batches WHERE ring_id = $1 AND state = 'retry' ORDER BY id LIMIT $2",
        BatchRow::COLUMNS
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    batches_of(s.prepared_rows(&query, &[Bind::Int(ring.0), Bind::Int(limit)])?)
}

pub(super) fn batches<S: Session>(
    s: &mut S,
    after: Option<BatchId>,
    limit: u32,
) -> TxResult<Vec<Batch>> {
    let query =
        format!("SELECT {} FROM batches WHERE id > $1 ORDER BY id LIMIT $2", BatchRow::COLUMNS);
    let after = after.map_or(i64::MIN, |batch| batch.0);
    batches_of(s.rows(&query, &[Bind::Int(after), Bind::Int(limit.into())])?)
}

fn batches_of(rows: Vec<BatchRow>) -> TxResult<Vec<Batch>> {
    Ok(rows.into_iter().map(Batch::try_from).collect::<Result<_, _>>()?)
}

/// The columns of [`UseRow`].
pub(super) fn use_columns<S: Session>() -> String {
    format!(
        "ring_id, fence, batch_id, key_id, node, outcome, {} AS checked_out_at, {} AS expires_at",
        S::micros("checked_out_at"),
        S::micros("expires_at")
    )
}

pub(super) fn open_uses<S: Session>(s: &mut S) -> TxResult<Vec<OpenUse>> {
    let query = format!(
        "SELECT {} FROM key_uses WHERE end_tick IS NULL ORDER BY ring_id, fence",
        use_columns::<S>()
    );
    Ok(s.rows::<UseRow>(&query, &[])?.into_iter().map(OpenUse::from).collect())
}

pub(super) fn progress<S: Session>(s: &mut S, ring: RingId) -> TxResult<Progress> {
    progress_of(s, ring, "")
}

pub(super) fn unfinished<S: Session>(s: &mut S, ring: RingId) -> TxResult<Progress> {
    progress_of(s, ring, "AND state <> 'stored'")
}

fn progress_of<S: Session>(s: &mut S, ring: RingId, condition: &str) -> TxResult<Progress> {
    let query = format!(
        "SELECT state, count(*) AS batches, CAST(sum(record_count) AS BIGINT) AS records
         FROM batches WHERE ring_id = $1 {condition} GROUP BY state"
    );
    let tick = s.number("SELECT tick AS value FROM rings WHERE id = $1", &[Bind::Int(ring.0)])?;
    let mut progress = Progress { tick, ..Progress::default() };
    for row in s.rows::<StateRow>(&query, &[Bind::Int(ring.0)])? {
        let batches = row.batches.unsigned_abs();
        let records = row.records.unsigned_abs();
        match row.state.parse::<BatchState>() {
            Ok(BatchState::Open) => progress.open_batches = batches,
            Ok(BatchState::Retry) => progress.retry_batches = batches,
            Ok(BatchState::Stored) => {
                progress.stored_batches = batches;
                progress.signed_records = records;
            }
            Ok(BatchState::Quarantined) => {
                progress.quarantined_batches = batches;
                progress.quarantined_records = records;
            }
            Err(unknown) => return Err(StoreError::Database(unknown.to_string()).into()),
        }
    }
    Ok(progress)
}

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

// Inspection

pub(super) fn record_count<S: Session>(s: &mut S, ring: RingId) -> TxResult<u64> {
    let query = "SELECT count(*) AS value FROM records WHERE ring_id = $1";
    Ok(s.number(query, &[Bind::Int(ring.0)])?.unsigned_abs())
}

pub(super) fn signature_count<S: Session>(s: &mut S) -> TxResult<u64> {
    let query = "SELECT CAST(coalesce(sum(record_count), 0) AS BIGINT) AS value
                 FROM batches WHERE state = 'stored'";
    Ok(s.number(query, &[])?.unsigned_abs())
}

/// How many signatures a page holds at most.
const SIGNED_PAGE: i64 = 4096;

pub(super) fn signed_records<S: Session>(
    s: &mut S,
    after: Option<RecordId>,
    max_bytes: usize,
) -> TxResult<Vec<SignedRecord>> {
    // The lengths are summed apart from the payloads, so that a page of large ones is never read
    // beyond its end. SQLite copies every column that the query of a window function names: without
    // the materialized step each page read all payloads behind it (40 of 16 MiB: 27 s, now 5 s).
    // The bounds on records say what the joins imply, so that no plan reads more of them.
    let query = "WITH first AS MATERIALIZED (
                     SELECT record_id, batch_id, signature FROM signatures
                     WHERE record_id > $1 ORDER BY record_id LIMIT $2),
                 page AS MATERIALIZED (
                     SELECT s.record_id, s.batch_id, s.signature,
                            coalesce(length(r.payload), 0) AS bytes
                     FROM first s LEFT JOIN records r ON r.id = s.record_id
                      AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM first))
                 SELECT t.record_id, t.batch_id, t.signature, r.external_id, r.payload
                 FROM (SELECT record_id, batch_id, signature,
                              sum(bytes) OVER (ORDER BY record_id) - bytes AS bytes_before
                       FROM page) t
                 LEFT JOIN records r ON r.id = t.record_id
                  AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM first)
                 WHERE t.bytes_before < $3 ORDER BY t.record_id";
    let after = after.map_or(i64::MIN, |record| record.0);
    // A page is empty only at the end.
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX).max(1);
    let binds = [Bind::Int(after), Bind::Int(SIGNED_PAGE), Bind::Int(max_bytes)];
    Ok(s.rows::<SignedRow>(query, &binds)?.into_iter().map(SignedRecord::from).collect())
}

pub(super) fn batch_keys<S: Session>(s: &mut S, batches: &[BatchId]) -> TxResult<Vec<BatchKey>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    // The ids are numbers of ours, and a list in the text works on both databases.
    let ids = batches.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let query = format!(
        "SELECT u.batch_id, b.ring_id, u.key_id, k.kid, k.public_key, k.algorithm, {} AS stored_at
         FROM key_uses u JOIN keys k ON k.id = u.key_id JOIN batches b ON b.id = u.batch_id
         WHERE u.outcome = 'stored' AND u.batch_id IN ({ids})",
        S::micros("b.stored_at")
    );
    Ok(s.rows::<BatchKeyRow>(&query, &[])?.into_iter().map(BatchKey::from).collect())
}

pub(super) fn history<S: Session>(
    s: &mut S,
    ring: RingId,
    after: Tick,
    until: Tick,
    limit: u32,
) -> TxResult<Vec<Event>> {
    let query = "
        SELECT * FROM (
            SELECT fence AS tick, 'checked_out' AS kind, fence, key_id, batch_id, '' AS word
            FROM key_uses WHERE ring_id = $1 AND fence > $2 AND fence <= $3 ORDER BY fence LIMIT $4) a
        UNION ALL SELECT * FROM (
            SELECT end_tick AS tick, 'ended' AS kind, fence, key_id, batch_id, outcome AS word
            FROM key_uses WHERE ring_id = $1 AND end_tick > $2 AND end_tick <= $3 ORDER BY end_tick LIMIT $4) b
        UNION ALL SELECT * FROM (
            SELECT tick, 'key' AS kind, tick AS fence, key_id, CAST(0 AS BIGINT) AS batch_id, event AS word
            FROM key_events WHERE ring_id = $1 AND tick > $2 AND tick <= $3 ORDER BY tick LIMIT $4) c
        ORDER BY tick, kind LIMIT $4";
    let binds =
        [Bind::Int(ring.0), Bind::Int(after.0), Bind::Int(until.0), Bind::Int(limit.into())];
    let rows = s.rows::<EventRow>(query, &binds)?;
    let is_full = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    let mut events = rows.into_iter().map(Event::try_from).collect::<Result<Vec<_>, _>>()?;
    // A tick that stands twice must not be cut in two by the end of a page.
    if is_full && let (Some(first), Some(last)) = (events.first(), events.last()) {
        let last = last.tick();
        if first.tick() != last {
            events.retain(|event| event.tick() != last);
        }
    }
    Ok(events)
}

pub(super) fn memberships<S: Session>(
    s: &mut S,
    after: Option<RecordId>,
    limit: u32,
) -> TxResult<Vec<Membership>> {
    // The bounds on records say what the join implies, so that no plan reads more of them.
    let query = "WITH page AS MATERIALIZED (
                     SELECT record_id, batch_id FROM signatures
                     WHERE record_id > $1 ORDER BY record_id LIMIT $2)
                 SELECT s.record_id, s.batch_id, r.ring_id, r.inserted_xid
                 FROM page s LEFT JOIN records r
                 ON r.id = s.record_id AND r.id > $1 AND r.id <= (SELECT max(record_id) FROM page)
                 ORDER BY s.record_id";
    let after = after.map_or(i64::MIN, |record| record.0);
    let rows = s.rows::<MembershipRow>(query, &[Bind::Int(after), Bind::Int(limit.into())])?;
    Ok(rows.into_iter().map(Membership::from).collect())
}
