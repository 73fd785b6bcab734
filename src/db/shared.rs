//! What both databases are asked in the same words: the [`Session`] seam and the reads over it.
//!
//! The protocol's writing transactions differ in their locks, and stand in `postgres.rs` and `sqlite.rs`.
//! SQLite numbers `$1`, `$2` by first appearance, so parameters appear in the order of their numbers.

use diesel::pg::{Pg, PgConnection};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, QueryableByName, RunQueryDsl};

use super::models::{
    BatchRow, FlagRow, FreeKeyRow, NumberRow, PositionRow, RingRow, StateRow, UseRow,
};
pub(super) use super::statement::Bind;
use super::statement::Statement;
use super::{Batch, CheckOut, OpenUse, Progress, Ring, Shortage, StoreError};
use crate::failpoint::{self, Injected};
use crate::types::{BatchId, BatchState, Outcome, Position, RingId};

/// From how many records on a batch's edges are looked up, and not found by counting all of its records.
pub(super) const LARGE_BATCH: u32 = 32;

/// The condition of the index `batches_unfinished`. SQLite uses it only where a query says the same, and
/// looks at every batch otherwise.
pub(super) const UNFINISHED: &str = "state <> 'stored'";

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

/// How far the ring's batches have come.
pub(super) fn cursor<S: Session>(s: &mut S, ring: RingId) -> QueryResult<Position> {
    let query = "SELECT cursor_xid AS inserted_xid, cursor_id AS id FROM rings WHERE id = $1";
    Ok(s.row::<PositionRow>(query, &[Bind::Int(ring.0)])?.into())
}

/// The free keys of a ring, least recently used first, and the batches that wait to be tried again with
/// some of them, oldest first.
pub(super) fn free_keys_and_retries<S: Session>(
    s: &mut S,
    ring: RingId,
    limit: u32,
) -> TxResult<(Vec<i64>, Vec<Batch>)> {
    let query = format!(
        "SELECT k.id, EXISTS (SELECT 1 FROM batches
                              WHERE ring_id = $1 AND state = 'retry' AND {UNFINISHED}) AS has_retries
         FROM keys k
         WHERE k.ring_id = $1 AND k.status = 'active'
           AND NOT EXISTS (SELECT 1 FROM key_uses u WHERE u.key_id = k.id AND u.end_tick IS NULL)
         ORDER BY k.last_tick, k.id LIMIT $2"
    );
    let binds = [Bind::Int(ring.0), Bind::Int(limit.into())];
    let rows = s.prepared_rows::<FreeKeyRow>(&query, &binds)?;
    // There seldom are any, and to ask for them is a round trip under the ring's lock.
    let retries = match rows.first() {
        Some(row) if row.has_retries => retry_batches(s, ring, rows.len())?,
        _ => Vec::new(),
    };
    Ok((rows.into_iter().map(|row| row.id).collect(), retries))
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
fn retry_batches<S: Session>(s: &mut S, ring: RingId, limit: usize) -> TxResult<Vec<Batch>> {
    let query = format!(
        "SELECT {} FROM batches WHERE ring_id = $1 AND state = 'retry' AND {UNFINISHED}
         ORDER BY id LIMIT $2",
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
    // By the sign SQLite does not read all uses in their order, but sorts the open ones.
    let query = format!(
        "SELECT {} FROM key_uses WHERE end_tick IS NULL ORDER BY +ring_id, fence",
        use_columns::<S>()
    );
    Ok(s.rows::<UseRow>(&query, &[])?.into_iter().map(OpenUse::from).collect())
}

pub(super) fn progress<S: Session>(s: &mut S, ring: RingId) -> TxResult<Progress> {
    progress_of(s, ring, "")
}

pub(super) fn unfinished<S: Session>(s: &mut S, ring: RingId) -> TxResult<Progress> {
    progress_of(s, ring, &format!("AND {UNFINISHED}"))
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
