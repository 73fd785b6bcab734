//! The store under lists of operations that two clients might do, as proptest generates them.
//!
//! By turns, everything that the store answers is predicted exactly by a [`reference`] model. With
//! both clients at once, what cannot be predicted is judged ([`race`]). `PROPTEST_CASES` sets the
//! number of lists. A list that fails is shrunk and printed, and its seed is kept in
//! `proptest-regressions`.

mod case;
mod operations;
mod race;
mod reference;

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::Arc;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestError, TestRunner};

use self::case::{Case, Tally};
use self::operations::{Client, operations};
use self::race::{Outcomes, Race};
use super::fixture::{Fixture, Pg, Sqlite, options};
use crate::db::{Store, StoreOptions};
use crate::types::RingId;

/// How many operations a list has at most, before what is left is signed.
const OPERATIONS: usize = 40;

/// At how many failures of its own a batch is quarantined.
const MAX_ATTEMPTS: u32 = 2;

/// How many rings one database takes, one a case: making a database is slower than a case, and
/// what is asked of all rings grows with them.
const RINGS: u32 = 12;

mod sqlite {
    use super::{Sqlite, at_once, by_turns};

    #[test]
    fn what_two_clients_do_by_turns_is_what_the_reference_model_predicts() {
        by_turns(200, Sqlite::new);
    }

    #[test]
    fn what_two_clients_do_at_once_keeps_every_rule() {
        at_once(100, Sqlite::new);
    }
}

mod postgres {
    use super::{Pg, at_once, by_turns};

    #[test]
    fn what_two_clients_do_by_turns_is_what_the_reference_model_predicts() {
        by_turns(60, Pg::alone);
    }

    #[test]
    fn what_two_clients_do_at_once_keeps_every_rule() {
        at_once(40, Pg::alone);
    }
}

fn by_turns<F: Fixture>(cases: u32, new: fn() -> F) {
    let databases = Databases::new(new, MAX_ATTEMPTS);
    let tally = RefCell::new(Tally::new());
    check(cases, operations(OPERATIONS), |operations| {
        let mut database = databases.take();
        let mut case = Case::new(&mut database);
        for operation in operations {
            case.run(operation);
        }
        for (what, times) in case.finish() {
            *tally.borrow_mut().entry(what).or_default() += times;
        }
        databases.give_back(database);
    });
    let tally = tally.into_inner();
    println!("{tally:#?}");
    // Fewer lists than the test's own may well leave something out.
    if cases_of(cases) >= cases {
        for what in case::worth_testing::<F>() {
            assert!(tally.get(what).is_some_and(|times| *times > 0), "no {what}: {tally:#?}");
        }
    }
}

fn at_once<F: Fixture>(cases: u32, new: fn() -> F) {
    // Every record is to be signed in the end, so nothing may be quarantined.
    let databases = Databases::new(new, 1_000_000);
    let (stored, fenced) = (Cell::new(0), Cell::new(0));
    check(cases, (operations(OPERATIONS), operations(OPERATIONS)), |(a, b)| {
        let mut database = databases.take();
        let outcomes: Outcomes = Race::run(&mut database, [a, b]);
        stored.set(stored.get() + outcomes.stored);
        fenced.set(fenced.get() + outcomes.reclaimed);
        databases.give_back(database);
    });
    assert!(stored.get() > 0 && fenced.get() > 0, "{stored:?} stored, {fenced:?} reclaimed");
}

/// Runs a test on generated lists of operations; one that fails it is shrunk, and printed.
fn check<S: Strategy<Value: Debug>>(cases: u32, lists: S, test: impl Fn(&S::Value)) {
    let config = Config {
        cases: cases_of(cases),
        // Each step of shrinking is a whole case, and somebody waits for the last one.
        max_shrink_time: 120_000,
        source_file: Some(file!()),
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&lists, |operations| {
        test(&operations);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, operations)) => panic!("{reason}\n{operations:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// The number of cases: the test's own, unless the environment sets another.
fn cases_of(cases: u32) -> u32 {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default().cases,
        None => cases,
    }
}

/// A database with the two clients on it.
struct Database<F> {
    fixture: F,
    stores: [Arc<dyn Store>; 2],
    rings: u32,
    /// The id for the next record in front of all others.
    front: i64,
}

impl<F: Fixture> Database<F> {
    fn new(fixture: F, max_attempts: u32) -> Self {
        let stores = Client::BOTH.map(|client| {
            fixture.open_with(&StoreOptions { max_attempts, ..options(client.node()) })
        });
        fixture.run(F::LEAVE_LOW_IDS);
        Database { fixture, stores, rings: 0, front: 1000 }
    }

    fn add_ring(&mut self) -> (String, RingId) {
        self.rings += 1;
        let name = format!("ring {}", self.rings);
        self.fixture.run(&format!("INSERT INTO rings (name) VALUES ('{name}')"));
        let ring = self.stores[0].ring(&name).unwrap();
        (name, ring.id)
    }
}

/// One database after the other.
struct Databases<F> {
    new: fn() -> F,
    max_attempts: u32,
    current: RefCell<Option<Database<F>>>,
}

impl<F: Fixture> Databases<F> {
    fn new(new: fn() -> F, max_attempts: u32) -> Self {
        Databases { new, max_attempts, current: RefCell::new(None) }
    }

    /// A case that fails gives none back, so that the next one does not meet what it left.
    fn take(&self) -> Database<F> {
        let current = self.current.take().filter(|database| database.rings < RINGS);
        current.unwrap_or_else(|| Database::new((self.new)(), self.max_attempts))
    }

    fn give_back(&self, database: Database<F>) {
        self.current.replace(Some(database));
    }
}
