//! Signals and sudden deaths in the middle of a run.

use diesel::connection::SimpleConnection;

use crate::support::Site;
use crate::support::judge::judge;
use crate::support::program::Signal;

on_both_databases! {
    sigterm_finishes_what_is_in_flight_and_the_next_run_the_rest,
    kill_in_the_middle_again_and_again_loses_nothing,
}

/// Enough of them, in batches small enough, that a run is in the middle when it is killed.
const RECORDS: u32 = 20_000;
const RUN: [&str; 3] = ["run", "--batch-size", "20"];

/// With leases so short that the next run need not wait for them, and no batch quarantined for
/// being interrupted often.
fn with_short_leases(site: Site) -> Site {
    site.set("CHANCERY_LEASE__DURATION_S", "1").set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000")
}

fn sigterm_finishes_what_is_in_flight_and_the_next_run_the_rest(site: Site) {
    let site = site.with(20, RECORDS);
    let run = site.start_halted(&RUN, "writer.answered@10");
    run.signal(Signal::TERM);
    run.signal(Signal::CONT);
    let ended = run.wait().expect_code(1).expect_stdout("interrupted after signing ");
    ended.expect_stdout("the rest is signed by the next run").expect_stderr("SIGTERM: finishing ");
    assert_eq!(site.open_uses(), 0);
    let unstored = "SELECT count(*) AS value FROM key_uses WHERE outcome <> 'stored'";
    assert_eq!(site.database.number(unstored), 0, "uses that were not finished");
    let signed = site.signatures();
    assert!(signed < RECORDS.into(), "all {signed} were signed");

    site.run(&RUN).expect_code(0);
    judge(&site, RECORDS.into());
}

#[test]
fn a_second_sigterm_ends_at_once_on_postgres_and_the_next_run_goes_on() {
    a_second_sigterm_ends_at_once(Site::postgres_alone());
}

#[test]
fn a_second_sigterm_ends_at_once_on_sqlite_and_the_next_run_goes_on() {
    a_second_sigterm_ends_at_once(Site::sqlite());
}

fn a_second_sigterm_ends_at_once(site: Site) {
    let site =
        with_short_leases(site.with(20, RECORDS)).set("CHANCERY_SIGNING__MAX_IN_FLIGHT", "1");
    // The only batch in flight is about to be stored, and no transaction is open.
    let run = site.start_halted(&RUN, "writer.storing@10");
    // Nothing can be stored while another holds the ring, so it stays in flight.
    let mut holder = Holder::of(&site);
    run.signal(Signal::CONT);
    run.signal(Signal::TERM);
    run.wait_for_stderr("SIGTERM: finishing ");
    run.signal(Signal::TERM);
    run.wait().expect_code(1).expect_stderr("SIGTERM again: ending at once");
    holder.let_go();
    drop(holder);
    assert_eq!(site.open_uses(), 1, "one batch was in flight");

    site.run(&RUN).expect_code(0).expect_stderr("reclaimed a key use whose node did not end it");
    judge(&site, RECORDS.into());
}

/// A transaction of the test's own that keeps every other from storing.
enum Holder {
    Postgres(diesel::pg::PgConnection),
    Sqlite(diesel::sqlite::SqliteConnection),
}

impl Holder {
    fn of(site: &Site) -> Holder {
        if site.database.is_postgres() {
            let mut connection = site.database.connect_postgres();
            let lock = "BEGIN; SELECT 1 FROM rings WHERE id = 1 FOR UPDATE";
            connection.batch_execute(lock).unwrap();
            Holder::Postgres(connection)
        } else {
            let mut connection = site.database.connect_sqlite();
            connection.batch_execute("BEGIN IMMEDIATE").unwrap();
            Holder::Sqlite(connection)
        }
    }

    fn let_go(&mut self) {
        match self {
            Holder::Postgres(connection) => connection.batch_execute("COMMIT").unwrap(),
            Holder::Sqlite(connection) => connection.batch_execute("COMMIT").unwrap(),
        }
    }
}

fn kill_in_the_middle_again_and_again_loses_nothing(site: Site) {
    // After how many signatures of a run it is killed: by chance, the same in each test.
    const POINTS: [i64; 6] = [1, 740, 2_310, 60, 1_480, 390];
    let site = with_short_leases(site.with(20, RECORDS));
    for point in POINTS {
        let before = site.signatures();
        let run = site.start(&RUN);
        crate::support::wait_until("a run has signed some", || {
            assert!(run.is_alive(), "it ended by itself: {}", run.stderr());
            site.signatures() >= before + point
        });
        run.signal(Signal::KILL);
        let ended = run.wait();
        assert_eq!(ended.signal, Some(Signal::KILL.as_raw()), "{ended}");
    }
    let left = i64::from(RECORDS) - site.signatures();
    assert!(left > 0, "nothing was left for the last run");

    site.run(&RUN).expect_code(0);
    let reclaimed = "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed'";
    assert!(site.database.number(reclaimed) > 0, "no kill hit a batch in flight");
    judge(&site, RECORDS.into());
}
