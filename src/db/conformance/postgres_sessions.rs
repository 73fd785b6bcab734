//! Sessions and locks, on PostgreSQL only: who waits for whom, and who may be ended.

use std::time::Duration;

use super::actions::{
    RING, add_keys, check_out, check_out_one, insert, sign, sign_all, sign_and_store,
};
use super::fixture::{Fixture, Pg, ValueRow, options, wait_for};
use super::judge::assert_signed;
use crate::db::shared::Session;
use crate::db::{ReclaimScope, StoreOptions, StoreOutcome};
use crate::types::KeyId;

#[test]
fn a_reclaim_passes_over_a_store_in_progress_and_waits_for_nobody() {
    let f = Pg::alone();
    let (storing, store) = (f.open("storing"), f.open("b"));
    add_keys(&*store, RING, 3);
    insert(&f, &*store, RING, 12);
    let held = check_out_one(&*storing, RING, 4);
    let idle = check_out_one(&*storing, RING, 4);
    let signed = [sign(&*storing, &held)];
    f.expire("1 = 1");

    // Another's uncommitted row of the same key holds up the store, its key use locked by then.
    let mut holder = f.session();
    holder.run(&format!(
        "BEGIN; INSERT INTO signatures SELECT {}, 999, decode(repeat('00', 64), 'hex')",
        signed[0].signatures[2].0
    ));
    std::thread::scope(|scope| {
        let storing_now = scope.spawn(|| storing.store_batches(RING, &signed));
        f.wait_until_blocked("chancery/storing");
        let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
        let uses: Vec<_> = reclaimed.uses.iter().map(|(key_use, _)| *key_use).collect();
        assert_eq!(uses, [idle.key_use], "the one whose store is under way is passed over");
        let other = check_out_one(&*store, RING, 4);
        assert_ne!(other.key_use.batch, held.key_use.batch);
        assert_ne!(other.key_use.key, held.key_use.key);
        assert_eq!(sign_and_store(&*store, &other), StoreOutcome::Stored);
        holder.run("ROLLBACK");
        assert_eq!(storing_now.join().unwrap().unwrap(), [StoreOutcome::Stored]);
    });
    sign_all(&f, &*store, RING, 4);
    assert_signed(&f, &*store, RING, 12);
}

#[test]
fn a_store_that_comes_after_a_reclaim_in_progress_is_fenced() {
    let f = Pg::alone();
    let (late, store) = (f.open("late"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(&f, &*store, RING, 4);
    let held = check_out_one(&*late, RING, 4);
    let signed = [sign(&*late, &held)];
    f.expire("1 = 1");
    // The reclaim has the ring and the use; a key's row that another holds stops it before its end.
    let mut holder = f.session();
    holder.run("BEGIN; SELECT 1 FROM keys FOR NO KEY UPDATE");
    std::thread::scope(|scope| {
        let reclaiming = scope.spawn(|| store.reclaim(RING, ReclaimScope::Expired));
        f.wait_until_blocked("chancery/b");
        let storing = scope.spawn(|| late.store_batches(RING, &signed));
        f.wait_until_blocked("chancery/late");
        holder.run("ROLLBACK");
        assert_eq!(reclaiming.join().unwrap().unwrap().uses.len(), 1);
        let outcomes = storing.join().unwrap().unwrap();
        assert_eq!(outcomes, [StoreOutcome::Fenced(crate::types::Outcome::Reclaimed)]);
    });
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 0);
    sign_all(&f, &*store, RING, 4);
    assert_signed(&f, &*store, RING, 4);
}

#[test]
fn a_key_whose_row_another_session_holds_is_not_passed_over() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(&f, &*store, RING, 6);
    let mut editor = f.session();
    editor.run("BEGIN; UPDATE keys SET status_reason = 'under review' WHERE id = 1");
    let batch = check_out_one(&*store, RING, 3);
    assert_eq!(batch.key_use.key, KeyId(1), "the least recently used, whatever others do to it");
    editor.run("COMMIT");
    assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
    sign_all(&f, &*store, RING, 3);
    assert_signed(&f, &*store, RING, 6);
}

#[test]
fn a_node_frozen_in_a_transaction_with_the_ring_s_lock_is_ended_by_a_reclaim() {
    let f = Pg::alone();
    let store = f.open_with(&StoreOptions { lease: Duration::from_secs(2), ..options("b") });
    add_keys(&*store, RING, 2);
    insert(&f, &*store, RING, 4);
    let mut frozen = f.session();
    // No timeout of its own ends it, and a statement that runs is not even idle.
    frozen.run(
        "SET application_name = 'chancery/frozen'; BEGIN; SELECT 1 FROM rings FOR NO KEY UPDATE",
    );
    let mut bystander = f.session();
    bystander.run("SET application_name = 'a report'; BEGIN; SELECT pg_current_xact_id()");
    let mut young = f.session();
    young.run("SET application_name = 'chancery/young'");
    let mut clock = f.session();

    wait_for("the transaction to be older than a lease", || {
        clock.run("SELECT pg_sleep(0.05)");
        let old = clock.number(
            "SELECT count(*) AS value FROM pg_stat_activity WHERE application_name = 'chancery/frozen'
             AND xact_start < clock_timestamp() - interval '2.1 seconds'",
        );
        (old == 1).then_some(())
    });
    young.run("BEGIN; SELECT 1");
    let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
    assert_eq!(reclaimed.terminated_sessions, 1, "that one, and no other");
    let _ = frozen.refused("SELECT 1");
    bystander.run("COMMIT");
    young.run("COMMIT");
    f.settle();
    sign_all(&f, &*store, RING, 2);
    assert_signed(&f, &*store, RING, 4);
}

#[test]
fn what_the_database_asks_of_its_commits_is_kept_where_it_is_enough() {
    let f = Pg::new();
    let database = f.database.name();
    for (asked, kept) in [("remote_apply", "remote_apply"), ("local", "on")] {
        f.run(&format!("ALTER DATABASE {database} SET synchronous_commit = {asked}"));
        let setting = f.open_own("node").read(|c| {
            let query = "SELECT current_setting('synchronous_commit') AS value";
            Ok(c.row::<ValueRow>(query, &[])?.value)
        });
        assert_eq!(setting.unwrap().as_deref(), Some(kept));
    }
}

#[test]
fn a_session_limits_itself_below_the_lease_and_says_whose_it_is() {
    let f = Pg::new();
    let store = f.open_own("node-7");
    f.run("ALTER ROLE postgres SET default_transaction_isolation = 'serializable'");
    let database = f.database.name();
    f.run(&format!("ALTER DATABASE {database} SET synchronous_commit = off"));
    f.run(&format!("ALTER DATABASE {database} SET lc_messages = 'C.UTF-8'"));
    let settings = store
        .read(|c| {
            Ok(c.rows::<ValueRow>(
                "SELECT name || '=' || setting AS value FROM pg_settings
                 WHERE name IN ('application_name', 'default_transaction_isolation', 'synchronous_commit',
                                'lock_timeout', 'idle_in_transaction_session_timeout', 'lc_messages',
                                'max_parallel_workers_per_gather', 'tcp_keepalives_idle', 'TimeZone')
                 ORDER BY lower(name)",
                &[],
            )?)
        })
        .unwrap();
    f.run("ALTER ROLE postgres RESET default_transaction_isolation");
    let settings: Vec<String> = settings.into_iter().filter_map(|row| row.value).collect();
    let expected = [
        "application_name=chancery/node-7",
        "default_transaction_isolation=read committed",
        "idle_in_transaction_session_timeout=45000",
        "lc_messages=C",
        "lock_timeout=30000",
        "max_parallel_workers_per_gather=0",
        "synchronous_commit=on",
        "tcp_keepalives_idle=10",
        "TimeZone=UTC",
    ];
    assert_eq!(settings, expected, "for a lease of 60 s, whatever the defaults are");
    add_keys(&store, RING, 1);
    insert(&f, &store, RING, 2);
    assert_eq!(check_out(&store, RING, 1, 2).batches.len(), 1);
}
