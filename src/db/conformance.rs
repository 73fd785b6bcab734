//! One suite over [`Store`](super::Store), run on SQLite and on PostgreSQL.
//!
//! A test is a function over a [`Fixture`](fixture::Fixture), a fresh database with any number of
//! stores on it, and `on_both!` makes it two tests. What only one database has (transactions side
//! by side, roles, sessions) stands in the modules named after it. Tests act through the trait and
//! are judged by [`judge::assert_lawful`], which asks the tables in SQL of its own.

mod actions;
mod fixture;
mod judge;

mod admin;
mod check_out;
mod concurrency;
mod constraints;
mod inspection;
mod intake;
mod keks;
mod key_changes;
mod keys;
mod leases;
mod load;
mod migrations;
mod nodes;
mod pickup;
mod postgres_blockers;
mod postgres_commits;
mod postgres_counts;
mod postgres_order;
mod postgres_plans;
mod postgres_restore;
mod postgres_roles;
mod postgres_sessions;
mod rollback;
mod sqlite_only;
mod sqlite_plans;
mod state_machine;
mod store;
mod sweep;
mod watch;

/// Makes each of the functions over a `Fixture` a test of either database.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test]
            fn $test() {
                super::$test(&crate::db::conformance::fixture::Sqlite::new());
            })+
        }

        mod postgres {
            $(#[test]
            fn $test() {
                super::$test(&crate::db::conformance::fixture::Pg::new());
            })+
        }
    };
}
use on_both;
