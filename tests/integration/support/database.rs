//! A test's own look into the database, past the program's code.

use std::path::PathBuf;

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::sql_types::{Nullable, Text};
use diesel::sqlite::SqliteConnection;
use diesel::{Connection, QueryableByName, RunQueryDsl, sql_query};

/// A database that the program works on.
pub(crate) enum Database {
    /// One of a PostgreSQL server; dropped with this value.
    Postgres(testkit::Database),
    /// A file.
    Sqlite(PathBuf),
}

#[derive(QueryableByName)]
pub(crate) struct Value {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

impl Database {
    /// Its address, for the program.
    pub(crate) fn url(&self) -> String {
        match self {
            Database::Postgres(database) => database.url(),
            Database::Sqlite(path) => format!("sqlite://{}", path.display()),
        }
    }

    /// Whether it is on PostgreSQL.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Database::Postgres(_))
    }

    /// The PostgreSQL server it is on.
    pub(crate) fn server(&self) -> &testkit::Postgres {
        match self {
            Database::Postgres(database) => database.server(),
            Database::Sqlite(_) => panic!("SQLite has no server"),
        }
    }

    /// Its name on the server.
    pub(crate) fn name(&self) -> &str {
        match self {
            Database::Postgres(database) => database.name(),
            Database::Sqlite(_) => panic!("SQLite has no server"),
        }
    }

    /// Its address for another role, on PostgreSQL.
    pub(crate) fn url_as(&self, role: &str) -> String {
        self.server().url_as(role, self.name())
    }

    /// A connection of the superuser's, on PostgreSQL.
    pub(crate) fn connect_postgres(&self) -> PgConnection {
        PgConnection::establish(&self.url()).unwrap()
    }

    /// A connection to the file, on SQLite.
    pub(crate) fn connect_sqlite(&self) -> SqliteConnection {
        let Database::Sqlite(path) = self else { panic!("not an SQLite database") };
        let mut connection = SqliteConnection::establish(&path.to_string_lossy()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 30000").unwrap();
        connection
    }

    /// An SQL expression for the bytes of a column as hexadecimal digits; [`unhex`] reads them.
    pub(crate) fn hex(&self, column: &str) -> String {
        match self {
            Database::Postgres(_) => format!("encode({column}, 'hex')"),
            Database::Sqlite(_) => format!("hex({column})"),
        }
    }

    /// Bytes in hexadecimal digits as an SQL literal.
    pub(crate) fn blob(&self, digits: &str) -> String {
        match self {
            Database::Postgres(_) => format!("'\\x{digits}'::BYTEA"),
            Database::Sqlite(_) => format!("X'{digits}'"),
        }
    }

    /// Runs statements.
    #[track_caller]
    pub(crate) fn execute(&self, statements: &str) {
        let done = match self {
            Database::Postgres(_) => self.connect_postgres().batch_execute(statements),
            Database::Sqlite(_) => self.connect_sqlite().batch_execute(statements),
        };
        done.unwrap_or_else(|error| panic!("{error}: {statements}"));
    }

    /// The column `value` of a query's rows, as text; NULL is empty.
    #[track_caller]
    pub(crate) fn rows(&self, query: &str) -> Vec<String> {
        let rows = match self {
            Database::Postgres(_) => values_of(&mut self.connect_postgres(), query),
            Database::Sqlite(_) => values_of(&mut self.connect_sqlite(), query),
        };
        rows.unwrap_or_else(|error| panic!("{error}: {query}"))
    }

    /// The one number of a query, its column `value`.
    #[track_caller]
    pub(crate) fn number(&self, query: &str) -> i64 {
        let rows = self.rows(query);
        let [value] = rows.as_slice() else { panic!("{} rows: {query}", rows.len()) };
        value.parse().unwrap_or_else(|error| panic!("{value:?}: {error}: {query}"))
    }
}

/// The column `value` of a query's rows, over a connection of either database.
pub(crate) fn values_of<C>(connection: &mut C, query: &str) -> diesel::QueryResult<Vec<String>>
where
    C: Connection,
    diesel::query_builder::SqlQuery: for<'q> diesel::query_dsl::LoadQuery<'q, C, Value>,
{
    let query = sql_query(format!("SELECT CAST(value AS TEXT) AS value FROM ({query}) q"));
    let rows: Vec<Value> = query.load(connection)?;
    Ok(rows.into_iter().map(|row| row.value.unwrap_or_default()).collect())
}

/// The bytes that hexadecimal digits stand for.
#[track_caller]
pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
