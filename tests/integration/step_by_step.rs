//! Failpoints: at each step of the protocol and in each actor a node is stopped past its lease
//! while another finishes its work, or killed, or told that the database has failed.

use std::sync::Barrier;
use std::thread;

use chancery::failpoint::POINTS;

use crate::support::judge::judge;
use crate::support::program::{Running, Signal};
use crate::support::{Site, wait_until};

const RECORDS: i64 = 1_000;
const RUN: [&str; 3] = ["run", "--batch-size", "50"];

/// How many points are tried at a time: most of it is waiting for leases.
const AT_A_TIME: usize = 4;

/// Steps that have no part in the protocol.
const ASIDE: [&str; 5] = ["report", "keys", "rewrap", "intake", "admin"];

/// What SQLite does in one statement, or has no need of.
const POSTGRES_ONLY: [&str; 3] = ["store.copying", "give_up.uses_locked", "reclaim.uses_found"];

/// What PostgreSQL does in one statement.
const SQLITE_ONLY: [&str; 6] = [
    "check_out.batches_inserted",
    "check_out.uses_opened",
    "store.uses_closed",
    "store.batches_stored",
    "give_up.uses_closed",
    "reclaim.uses_closed",
];

/// What must have happened so that a node comes past a point.
enum Way {
    /// Nothing: it signs.
    Plain,
    /// A signer of its own panicked.
    SignerPanics,
    /// A signature takes long.
    SigningTakesLong,
    /// Another node died with batches in hand.
    AnotherDied,
    /// All is signed but a record behind the cursor.
    Stray,
}

impl Way {
    fn to(point: &str) -> Way {
        match point.split('.').next().unwrap_or_default() {
            "give_up" => Way::SignerPanics,
            "renew" => Way::SigningTakesLong,
            "reclaim" => Way::AnotherDied,
            "sweep" => Way::Stray,
            _ if ["check_out.retries_opened", "key_manager.returning"].contains(&point) => {
                Way::SignerPanics
            }
            _ => Way::Plain,
        }
    }

    /// The failpoints that bring a node past `point` and do `action` there.
    fn failpoints(&self, point: &str, action: &str) -> String {
        match self {
            // At the second passage some batches are under way.
            Way::Plain => format!("{point}={action}@2"),
            Way::SignerPanics => format!("signer.signing=panic,{point}={action}"),
            Way::SigningTakesLong => format!("signer.signing=delay,{point}={action}"),
            Way::AnotherDied | Way::Stray => format!("{point}={action}"),
        }
    }

    /// Brings a site, in which nothing is signed, into the state; how many records it has then.
    fn prepare(&self, site: &Site) -> i64 {
        match self {
            Way::Plain | Way::SignerPanics | Way::SigningTakesLong => RECORDS,
            Way::AnotherDied => {
                let dead = start(site, "batch.signed=kill").wait();
                assert_eq!(dead.signal, Some(Signal::KILL.as_raw()), "{dead}");
                assert!(site.open_uses() > 0, "it died with nothing in hand: {dead}");
                RECORDS
            }
            Way::Stray => {
                let insert = |id: i64| {
                    site.database.execute(&format!(
                        "INSERT INTO records (id, ring_id, payload, inserted_xid)
                         SELECT {id}, 1, payload, inserted_xid FROM records WHERE id = 1"
                    ));
                };
                insert(10 * RECORDS);
                site.run(&RUN).expect_code(0);
                insert(5 * RECORDS);
                RECORDS + 2
            }
        }
    }
}

fn site(site: Site) -> Site {
    // Nothing here is the fault of a batch.
    let site = site.set("CHANCERY_LEASE__DURATION_S", "1");
    site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000").with(8, RECORDS.unsigned_abs() as u32)
}

fn start(site: &Site, failpoints: &str) -> Running {
    let mut command = site.command(&RUN);
    command.env("CHANCERY_FAILPOINTS", failpoints);
    site.start_command(command)
}

/// Every point of the protocol and the actors, of `steps` if that names any, but for those that are `elsewhere`.
fn points(steps: &[&str], elsewhere: &[&str]) -> Vec<String> {
    let known = |step: &&str| POINTS.iter().any(|(name, _)| name == step);
    assert!(steps.iter().all(known), "{steps:?}");
    let wanted = POINTS.iter().filter(|(step, _)| {
        if steps.is_empty() { !ASIDE.contains(step) } else { steps.contains(step) }
    });
    let all = wanted.flat_map(|(step, places)| places.iter().map(move |p| format!("{step}.{p}")));
    all.filter(|point| !elsewhere.contains(&point.as_str())).collect()
}

/// Tries `points` a few at a time, each on a site of its own. All are prepared before the first
/// begins, since a stopped transaction may keep what is inserted later from being signed.
fn each_on(new_site: impl Fn() -> Site + Sync, points: &[String], attempt: fn(&Site, &str, i64)) {
    assert!(!points.is_empty());
    for some in points.chunks(AT_A_TIME) {
        let prepared = Barrier::new(some.len());
        thread::scope(|scope| {
            for point in some {
                let (prepared, new_site) = (&prepared, &new_site);
                let name = thread::Builder::new().name(point.clone());
                let body = move || {
                    // A thread that panics before the barrier would leave the others waiting.
                    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        let site = site(new_site());
                        let records = Way::to(point).prepare(&site);
                        (site, records)
                    }));
                    prepared.wait();
                    let (site, records) = made.unwrap();
                    attempt(&site, point, records);
                };
                name.spawn_scoped(scope, body).unwrap();
            }
        });
    }
}

/// The node stops there past its lease, another finishes its work, and the first wakes up.
fn a_zombie(site: &Site, point: &str, records: i64) {
    let zombie = start(site, &Way::to(point).failpoints(point, "stop"));
    wait_until(&format!("a node stops at {point}"), || {
        assert!(zombie.is_alive(), "it ended without coming to {point}: {}", zombie.stderr());
        zombie.is_stopped()
    });
    site.run(&RUN).expect_code(0);
    assert_eq!(site.signatures(), records, "while the first was stopped at {point}");
    let tick = "SELECT tick AS value FROM rings WHERE id = 1";
    let before = site.database.number(tick);

    zombie.signal(Signal::CONT);
    zombie.wait().expect_code(0);
    assert_eq!(site.signatures(), records);
    assert_eq!(site.database.number(tick), before, "a woken zombie took or ended a use: {point}");
    judge(site, records);
    let late = "SELECT coalesce(max(extract(epoch FROM ended_at - expires_at)) * 1000, 0)::BIGINT
                AS value FROM key_uses WHERE outcome = 'reclaimed'";
    let late_ms = site.database.number(late);
    println!("{point}: reclaimed at the latest {late_ms} ms after the lease");
    // More than the two seconds that are promised: a busy machine is no broken promise.
    assert!(late_ms < 10_000, "{point}: reclaimed {late_ms} ms after the lease");
}

/// Zombies on a server of their own: a transaction stopped in the middle holds up all its databases.
fn zombies(steps: &[&str]) {
    let server = testkit::Postgres::start().unwrap();
    each_on(|| Site::on_server(&server), &points(steps, &SQLITE_ONLY), a_zombie);
}

#[test]
fn a_zombie_of_any_place_in_a_checkout_changes_nothing_when_it_wakes() {
    zombies(&["check_out"]);
}

#[test]
fn a_zombie_of_any_place_in_a_store_changes_nothing_when_it_wakes() {
    zombies(&["store"]);
}

#[test]
fn a_zombie_of_any_place_in_a_give_up_or_a_renewal_changes_nothing_when_it_wakes() {
    zombies(&["give_up", "renew"]);
}

#[test]
fn a_zombie_of_any_place_in_a_reclaim_or_a_sweep_changes_nothing_when_it_wakes() {
    zombies(&["reclaim", "sweep"]);
}

#[test]
fn a_zombie_of_any_place_outside_a_transaction_changes_nothing_when_it_wakes() {
    zombies(&["load", "key_manager", "supervisor", "batch", "signer", "writer"]);
}

/// The node is killed there, and the next one goes on.
fn a_death(site: &Site, point: &str, records: i64) {
    let dead = start(site, &Way::to(point).failpoints(point, "kill")).wait();
    assert_eq!(dead.signal, Some(Signal::KILL.as_raw()), "at {point}: {dead}");
    site.run(&RUN).expect_code(0);
    judge(site, records);
}

#[test]
fn a_node_killed_at_any_point_loses_nothing_on_postgres() {
    each_on(Site::postgres, &points(&[], &SQLITE_ONLY), a_death);
}

#[test]
fn a_node_killed_at_any_point_loses_nothing_on_sqlite() {
    each_on(Site::sqlite, &points(&[], &POSTGRES_ONLY), a_death);
}

/// The database seems to fail there, once; after a COMMIT this is a lost reply.
fn a_failure(site: &Site, point: &str, records: i64) {
    let ended = start(site, &Way::to(point).failpoints(point, "fail")).wait();
    let ended = ended.expect_code(0).expect_stderr(&format!("failpoint {point}: Fail"));
    assert!(!ended.stderr.contains("quarantined"), "at {point}: {ended}");
    judge(site, records);
    let attempts = "SELECT coalesce(max(attempts), 0) AS value FROM batches";
    let own = i64::from(matches!(Way::to(point), Way::SignerPanics | Way::AnotherDied));
    // A checkout whose reply was lost may come back by its lease.
    let lost = i64::from(point == "check_out.committed");
    let most = site.database.number(attempts);
    assert!(most <= own + lost, "{point} was held against batches: {most} attempts");
}

/// The steps that ask the database.
const ASKING: [&str; 7] = ["check_out", "load", "store", "give_up", "reclaim", "renew", "sweep"];

#[test]
fn a_database_that_fails_once_at_any_step_is_asked_again_on_postgres() {
    each_on(Site::postgres, &points(&ASKING, &SQLITE_ONLY), a_failure);
}

#[test]
fn a_database_that_fails_once_at_any_step_is_asked_again_on_sqlite() {
    each_on(Site::sqlite, &points(&ASKING, &POSTGRES_ONLY), a_failure);
}

#[test]
fn a_failpoint_that_does_not_exist_is_refused() {
    let site = Site::sqlite().with(1, 1);
    let ended = start(&site, "store.baked=stop").wait().expect_code(2);
    ended.expect_stderr("CHANCERY_FAILPOINTS: \"store.baked=stop\": there is no such point");
}
