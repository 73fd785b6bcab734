//! A statement in the words of both databases, with its parameters.

use diesel::pg::{Pg, PgConnection};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text, Untyped};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, RunQueryDsl};

/// A parameter of a statement.
pub(super) enum Bind<'a> {
    Int(i64),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    OptionalInt(Option<i64>),
    OptionalBytes(Option<&'a [u8]>),
    Bytes(&'a [u8]),
    /// A BIGINT array, which only PostgreSQL has.
    Ints(&'a [i64]),
}

/// A text and its parameters, which appear in it in the order of their numbers: `$1` before `$2`, and
/// each as often as wanted.
pub(super) struct Statement<'a> {
    text: &'a str,
    binds: &'a [Bind<'a>],
    is_kept: bool,
}

impl<'a> Statement<'a> {
    /// A statement that the database parses anew each time.
    pub(super) fn once(text: &'a str, binds: &'a [Bind<'a>]) -> Self {
        Statement { text, binds, is_kept: false }
    }

    /// A statement that each connection has parsed once and keeps. Its text must never change: every
    /// variant of it would be kept.
    pub(super) fn prepared(text: &'a str, binds: &'a [Bind<'a>]) -> Self {
        Statement { text, binds, is_kept: true }
    }
}

/// A part of a statement's text.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    /// A parameter: its digits, and its number counted from 0.
    Parameter(&'a str, usize),
}

/// Takes the text apart at its parameters.
fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let Some(after_dollar) = rest.strip_prefix('$') else {
            let (before, after) = rest.split_at(rest.find('$').unwrap_or(rest.len()));
            rest = after;
            return (!before.is_empty()).then_some(Part::Text(before));
        };
        let end = after_dollar.find(|c: char| !c.is_ascii_digit()).unwrap_or(after_dollar.len());
        let (digits, after) = after_dollar.split_at(end);
        rest = after;
        let number = digits.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        Some(number.map_or(Part::Text("$"), |number| Part::Parameter(digits, number)))
    })
}

macro_rules! statement {
    ($backend:ty, $connection:ty, $again:literal, |$out:ident, $values:ident| $ints:expr) => {
        impl QueryFragment<$backend> for Statement<'_> {
            fn walk_ast<'b>(&'b self, mut $out: AstPass<'_, 'b, $backend>) -> QueryResult<()> {
                if !self.is_kept {
                    $out.unsafe_to_cache_prepared();
                }
                let mut bound = 0;
                for part in parts(self.text) {
                    let (digits, parameter) = match part {
                        Part::Text(text) => {
                            $out.push_sql(text);
                            continue;
                        }
                        Part::Parameter(digits, parameter) => (digits, parameter),
                    };
                    if parameter < bound {
                        $out.push_sql($again);
                        $out.push_sql(digits);
                        continue;
                    }
                    if parameter > bound || parameter >= self.binds.len() {
                        let message = format!("parameter {digits} is out of order, or missing");
                        return Err(diesel::result::Error::QueryBuilderError(message.into()));
                    }
                    bound += 1;
                    match &self.binds[parameter] {
                        Bind::Int(value) => $out.push_bind_param::<BigInt, _>(value)?,
                        Bind::Text(value) => $out.push_bind_param::<Text, str>(value)?,
                        Bind::OptionalText(value) => {
                            $out.push_bind_param::<Nullable<Text>, _>(value)?;
                        }
                        Bind::OptionalInt(value) => {
                            $out.push_bind_param::<Nullable<BigInt>, _>(value)?;
                        }
                        Bind::OptionalBytes(value) => {
                            $out.push_bind_param::<Nullable<Binary>, _>(value)?;
                        }
                        Bind::Bytes(value) => $out.push_bind_param::<Binary, [u8]>(value)?,
                        Bind::Ints($values) => $ints?,
                    }
                }
                Ok(())
            }
        }

        impl RunQueryDsl<$connection> for Statement<'_> {}
    };
}

statement!(Pg, PgConnection, "$", |out, values| {
    out.push_bind_param::<Array<BigInt>, [i64]>(values)
});
statement!(Sqlite, SqliteConnection, "?", |out, values| {
    let message = format!("SQLite has no arrays, and was given {}", values.len());
    Err(diesel::result::Error::QueryBuilderError(message.into()))
});

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl QueryId for Statement<'_> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart_at_its_parameters() {
        let taken = |text| parts(text).collect::<Vec<_>>();
        assert_eq!(
            taken("a = $1 AND b > $12, $1"),
            [
                Part::Text("a = "),
                Part::Parameter("1", 0),
                Part::Text(" AND b > "),
                Part::Parameter("12", 11),
                Part::Text(", "),
                Part::Parameter("1", 0)
            ]
        );
        assert_eq!(taken(""), []);
        assert_eq!(taken("$$"), [Part::Text("$"), Part::Text("$")]);
        assert_eq!(taken("SELECT 1"), [Part::Text("SELECT 1")]);
    }

    #[test]
    fn parameters_out_of_order_and_missing_ones_are_refused() {
        use diesel::Connection;
        let mut connection = SqliteConnection::establish(":memory:").unwrap();
        let binds = [Bind::Int(1), Bind::Int(2)];
        for text in ["SELECT $2, $1", "SELECT $1, $2, $3"] {
            let refused = Statement::prepared(text, &binds).execute(&mut connection);
            assert!(
                refused.unwrap_err().to_string().contains("out of order, or missing"),
                "{text}"
            );
        }
        assert!(
            Statement::once("SELECT $1", &[Bind::Ints(&[1])]).execute(&mut connection).is_err()
        );
    }

    #[test]
    fn a_parameter_may_stand_in_a_statement_again() {
        let binds = [Bind::Int(1), Bind::Text("two")];
        let statement = Statement::prepared("SELECT $1, $2, $1", &binds);
        let text = |shown: String| shown.split(" -- binds").next().map(str::to_owned);
        let on_postgres = diesel::debug_query::<Pg, _>(&statement).to_string();
        assert_eq!(text(on_postgres).as_deref(), Some("SELECT $1, $2, $1"));
        let on_sqlite = diesel::debug_query::<Sqlite, _>(&statement).to_string();
        assert_eq!(text(on_sqlite).as_deref(), Some("SELECT ?, ?, ?1"));
    }
}
