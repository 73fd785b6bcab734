//! A fresh database of either kind, with stores on it and raw SQL beside them.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::SqliteConnection;
use diesel::{Connection, QueryableByName, RunQueryDsl, sql_query};

use crate::config::DatabaseUrl;
use crate::db::{self, PgStore, SqliteStore, Store, StoreOptions, migrate};
use crate::types::NodeId;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The options of a node whose lease does not end within a test.
pub(super) fn options(node: &str) -> StoreOptions {
    StoreOptions {
        node: NodeId(node.to_owned()),
        pool_size: 4,
        lease: Duration::from_secs(60),
        max_attempts: 5,
    }
}

/// A migrated database of one test.
pub(super) trait Fixture: Sync {
    /// How many threads a test of concurrency takes.
    const THREADS: usize;

    /// Whether several transactions can write at once.
    const SIDE_BY_SIDE: bool;

    /// The trigger on `rings` that a lower tick must get past: a statement that switches it off.
    const FREE_THE_TICK: &'static str;

    /// An instant long past, as an SQL expression.
    const LONG_AGO: &'static str;

    /// The lowest place in the order of records that an insert can have.
    const FIRST_XID: i64;

    /// A statement after which records get ids above 1000 in an empty database.
    const LEAVE_LOW_IDS: &'static str;

    /// Some payload, as an SQL expression.
    const PAYLOAD: &'static str;

    /// Whether a signature is not the one that [`super::actions::sign`] makes for record
    /// `s.record_id` with key `u.key_id`, as an SQL condition.
    const SIGNED_OTHERWISE: &'static str;

    /// The instant so many seconds ago, as an SQL expression.
    fn ago(seconds: u32) -> String;

    /// A payload, as an SQL expression.
    fn payload(text: &str) -> String;

    fn url(&self) -> DatabaseUrl;

    /// Runs SQL past the store. A query returns one column named `value`; the rows come as text.
    fn query(&self, sql: &str) -> Result<Vec<String>, String>;

    /// A session in which a transaction has begun, where that holds up no other writer.
    fn begin(&self) -> Option<Raw>;

    /// Waits until every committed record can be checked out. On PostgreSQL any transaction on the
    /// server, also of a test beside this one, holds back the records of later ones.
    fn settle(&self);

    /// A store of a node of its own.
    fn open(&self, node: &str) -> Arc<dyn Store> {
        self.open_with(&options(node))
    }

    fn open_with(&self, options: &StoreOptions) -> Arc<dyn Store> {
        db::open(&self.url(), options).unwrap()
    }

    /// The rows of a query that must succeed.
    fn rows(&self, query: &str) -> Vec<String> {
        self.query(query).unwrap_or_else(|error| panic!("{error}: {query}"))
    }

    /// The one number that a query returns.
    fn number(&self, query: &str) -> i64 {
        let rows = self.rows(query);
        assert_eq!(rows.len(), 1, "one row: {query}");
        rows[0].parse().unwrap()
    }

    /// Runs a statement that must succeed.
    fn run(&self, statement: &str) {
        self.rows(statement);
    }

    /// Runs a statement that the database must refuse; what it says.
    fn refused(&self, statement: &str) -> String {
        match self.query(statement) {
            Ok(rows) => panic!("accepted ({rows:?}): {statement}"),
            Err(message) => message,
        }
    }

    /// Ends the leases of the open uses that an SQL condition picks.
    fn expire(&self, condition: &str) {
        self.run(&format!(
            "UPDATE key_uses SET expires_at = {} WHERE end_tick IS NULL AND ({condition})",
            Self::LONG_AGO
        ));
    }
}

/// Asks again and again until the answer is there: what is waited for sends no event.
pub(super) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[derive(QueryableByName)]
pub(super) struct ValueRow {
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) value: Option<String>,
}

/// Runs statements, or loads what `$query` makes of a query.
macro_rules! run_or_load {
    ($raw:expr, $sql:expr, $query:expr) => {{
        let is_query = ["SELECT", "WITH"].iter().any(|word| $sql.trim_start().starts_with(word));
        let result = if is_query {
            sql_query($query).load::<ValueRow>($raw)
        } else {
            $raw.batch_execute($sql).map(|()| Vec::new())
        };
        match result {
            Ok(rows) => Ok(rows.into_iter().map(|row| row.value.unwrap_or_default()).collect()),
            Err(error) => {
                // A transaction that the statements began would stay open.
                let _ = $raw.batch_execute("ROLLBACK");
                Err(error.to_string())
            }
        }
    }};
}

/// A database file in a temporary folder.
pub(super) struct Sqlite {
    folder: tempfile::TempDir,
    raw: Mutex<SqliteConnection>,
}

impl Sqlite {
    pub(super) fn new() -> Self {
        let fixture = Sqlite::empty();
        migrate::migrate(&fixture.url(), None).unwrap();
        fixture
    }

    /// A database without tables.
    pub(super) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chancery.db");
        let mut raw = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        raw.batch_execute("PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON").unwrap();
        Sqlite { folder, raw: Mutex::new(raw) }
    }

    pub(super) fn open_own(&self, node: &str) -> SqliteStore {
        SqliteStore::open(&self.folder.path().join("chancery.db"), &options(node)).unwrap()
    }
}

impl Fixture for Sqlite {
    const THREADS: usize = 4;
    const SIDE_BY_SIDE: bool = false;
    const FREE_THE_TICK: &'static str = "DROP TRIGGER rings_guard";
    const FIRST_XID: i64 = 0;
    const LEAVE_LOW_IDS: &'static str =
        "INSERT INTO sqlite_sequence (name, seq) VALUES ('records', 1000)";
    const PAYLOAD: &'static str = "x'2a'";
    const LONG_AGO: &'static str = "'2000-01-01T00:00:00.000Z'";
    const SIGNED_OTHERWISE: &'static str =
        "hex(s.signature) <> printf('%016X%016X', s.record_id, u.key_id) || hex(zeroblob(48))";

    fn ago(seconds: u32) -> String {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{seconds} seconds')")
    }

    fn payload(text: &str) -> String {
        format!("CAST('{text}' AS BLOB)")
    }

    fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite { path: self.folder.path().join("chancery.db") }
    }

    fn query(&self, sql: &str) -> Result<Vec<String>, String> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        run_or_load!(&mut *raw, sql, sql)
    }

    fn begin(&self) -> Option<Raw> {
        None
    }

    fn settle(&self) {}
}

/// A database on a PostgreSQL server of the tests' own.
pub(super) struct Pg {
    raw: Mutex<PgConnection>,
    pub(super) database: testkit::Database,
    /// Held by a test that keeps transactions open and so would hold back all tests beside it.
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Pg {
    pub(super) fn new() -> Self {
        Pg::migrated(Pg::shared_server(), None)
    }

    /// A database without tables.
    pub(super) fn empty() -> Self {
        Pg::on(Pg::shared_server(), None)
    }

    /// A database on a second server, where one test runs at a time: for transactions that stay
    /// open, which are seen by every database of a server.
    pub(super) fn alone() -> Self {
        static SERVER: OnceLock<testkit::Postgres> = OnceLock::new();
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Pg::migrated(SERVER.get_or_init(|| testkit::Postgres::start().unwrap()), Some(alone))
    }

    /// The server of all tests, in haste: it loses nothing while the machine itself stays up.
    fn shared_server() -> &'static testkit::Postgres {
        static HASTE: OnceLock<()> = OnceLock::new();
        let server = testkit::Postgres::shared();
        HASTE.get_or_init(|| {
            server.sql("postgres", "ALTER SYSTEM SET fsync = off").unwrap();
            server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
        });
        server
    }

    fn migrated(server: &testkit::Postgres, alone: Option<MutexGuard<'static, ()>>) -> Self {
        let fixture = Pg::on(server, alone);
        migrate::migrate(&fixture.url(), None).unwrap();
        fixture
    }

    fn on(server: &testkit::Postgres, alone: Option<MutexGuard<'static, ()>>) -> Self {
        let database = server.create_database().unwrap();
        let raw = Mutex::new(PgConnection::establish(&database.url()).unwrap());
        Pg { raw, database, _alone: alone }
    }

    pub(super) fn open_own(&self, node: &str) -> PgStore {
        PgStore::open(&self.database.url(), &options(node)).unwrap()
    }

    /// A session past the store, for transactions that stay open.
    pub(super) fn session(&self) -> Raw {
        Raw::connect(&self.database.url())
    }

    /// Waits until a session of that application waits for a lock.
    pub(super) fn wait_until_blocked(&self, application: &str) {
        let mut raw = self.session();
        wait_for("a session to be blocked", || {
            let blocked = raw.number(&format!(
                "SELECT count(*) AS value FROM pg_stat_activity, pg_sleep(0.005)
                 WHERE datname = current_database() AND application_name = '{application}'
                   AND wait_event_type = 'Lock'"
            ));
            (blocked > 0).then_some(())
        });
    }
}

impl Fixture for Pg {
    const THREADS: usize = 12;
    const SIDE_BY_SIDE: bool = true;
    const FREE_THE_TICK: &'static str = "ALTER TABLE rings DISABLE TRIGGER rings_guard";
    const FIRST_XID: i64 = 3;
    const LEAVE_LOW_IDS: &'static str = "ALTER TABLE records ALTER id RESTART WITH 1001";
    const PAYLOAD: &'static str = "'\\x2a'::BYTEA";
    const LONG_AGO: &'static str = "TIMESTAMPTZ '2000-01-01 00:00:00+00'";
    const SIGNED_OTHERWISE: &'static str =
        "encode(s.signature, 'hex') <> lpad(to_hex(s.record_id), 16, '0')
            || lpad(to_hex(u.key_id), 16, '0') || repeat('00', 48)";

    fn ago(seconds: u32) -> String {
        format!("clock_timestamp() - interval '{seconds} seconds'")
    }

    fn payload(text: &str) -> String {
        format!("convert_to('{text}', 'UTF8')")
    }

    fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Postgres { url: self.database.url() }
    }

    fn query(&self, sql: &str) -> Result<Vec<String>, String> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        run_or_load!(&mut *raw, sql, format!("SELECT value::TEXT AS value FROM ({sql}) q"))
    }

    fn begin(&self) -> Option<Raw> {
        let mut session = self.session();
        session.run("BEGIN");
        Some(session)
    }

    fn settle(&self) {
        let mut raw = self.session();
        let newest = raw.number("SELECT pg_current_xact_id()::TEXT::BIGINT AS value");
        wait_for("older transactions to end", || {
            let held_back = raw.number(&format!(
                "SELECT CASE WHEN {newest} < pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                        THEN 0::BIGINT ELSE 1 END AS value FROM pg_sleep(0.002)"
            ));
            (held_back == 0).then_some(())
        });
    }
}

/// A session of PostgreSQL past the store.
pub(super) struct Raw(PgConnection);

impl Raw {
    pub(super) fn connect(url: &str) -> Self {
        Raw(PgConnection::establish(url).unwrap())
    }

    pub(super) fn run(&mut self, statements: &str) {
        self.0.batch_execute(statements).unwrap_or_else(|error| panic!("{error}: {statements}"));
    }

    /// Runs statements that must fail; what the server says.
    pub(super) fn refused(&mut self, statements: &str) -> String {
        self.0.batch_execute(statements).unwrap_err().to_string()
    }

    pub(super) fn number(&mut self, query: &str) -> i64 {
        let row: db::models::NumberRow =
            sql_query(query).get_result(&mut self.0).unwrap_or_else(|e| panic!("{e}: {query}"));
        row.value
    }
}
