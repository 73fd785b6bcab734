//! Steps 5 and 6: renewing, giving up, reclaiming, and quarantine.

use std::time::Duration;

use super::actions::{
    RING, add_keys, check_out, check_out_one, give_up, insert, sign_all, sign_and_store,
};
use super::fixture::{Fixture, Pg, Sqlite, options, wait_for};
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{ReclaimScope, StoreOptions, StoreOutcome};
use crate::types::{BatchState, Fence, NodeId, Outcome, Tick};

on_both! {
    a_lease_runs_out_by_the_database_s_clock,
    renewing_moves_the_end_of_this_node_s_open_uses_only,
    a_renewed_use_is_not_reclaimed,
    a_drained_batch_is_not_to_blame_and_a_failed_one_is,
    a_batch_that_fails_too_often_is_quarantined_and_holds_nobody_up,
    a_reclaim_ends_expired_uses_and_counts_an_attempt,
    a_batch_whose_owners_die_is_quarantined_with_its_reason,
    giving_up_what_has_ended_says_how_it_ended,
}

fn a_lease_runs_out_by_the_database_s_clock<F: Fixture>(f: &F) {
    let short =
        f.open_with(&StoreOptions { lease: Duration::from_millis(400), ..options("short") });
    let store = f.open("b");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 10);
    let long = check_out_one(&*store, RING, 5);
    let use_ = check_out_one(&*short, RING, 5);
    let open = store.open_uses().unwrap();
    assert_eq!(open.iter().map(|u| u.key_use).collect::<Vec<_>>(), [long.key_use, use_.key_use]);
    let lease = open[1].expires_at.0 - open[1].checked_out_at.0;
    assert!((399_000..=401_000).contains(&lease), "{lease} us");

    let reclaimed = wait_for("the lease to run out", || {
        let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
        (!reclaimed.uses.is_empty()).then_some(reclaimed)
    });
    assert_eq!(reclaimed.uses, [(use_.key_use, NodeId("short".to_owned()))]);
    let early = "SELECT count(*) AS value FROM key_uses WHERE outcome = 'reclaimed' AND ended_at < expires_at";
    assert_eq!(f.number(early), 0);
    assert_eq!(sign_and_store(&*store, &long), StoreOutcome::Stored);
    sign_all(f, &*store, RING, 5);
    assert_signed(f, &*store, RING, 10);
}

fn renewing_moves_the_end_of_this_node_s_open_uses_only<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 20);
    let mine = check_out(&*store, RING, 3, 5).batches;
    let theirs = check_out_one(&*other, RING, 5);
    assert_eq!(sign_and_store(&*store, &mine[1]), StoreOutcome::Stored);
    f.expire("1 = 1");
    let all: Vec<Fence> =
        mine.iter().chain([&theirs]).map(|b| b.key_use.fence).chain([Fence(Tick(999))]).collect();
    let mut renewed = store.renew(RING, &all).unwrap();
    renewed.sort_unstable();
    assert_eq!(renewed, [mine[0].key_use.fence, mine[2].key_use.fence]);
    let expired = format!(
        "SELECT fence AS value FROM key_uses WHERE end_tick IS NULL AND expires_at <= {}",
        F::LONG_AGO
    );
    assert_eq!(f.rows(&expired), [theirs.key_use.fence.to_string()]);
    let open = store.open_uses().unwrap();
    let lease = open[0].expires_at.0 - open[0].checked_out_at.0;
    assert!((60_000_000..120_000_000).contains(&lease), "a whole lease from now: {lease} us");
    assert_lawful(f, &*store);
}

fn a_renewed_use_is_not_reclaimed<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 5);
    let batch = check_out_one(&*store, RING, 5);
    f.expire("1 = 1");
    assert_eq!(store.renew(RING, &[batch.key_use.fence]).unwrap(), [batch.key_use.fence]);
    assert!(other.reclaim(RING, ReclaimScope::Expired).unwrap().uses.is_empty());
    assert_eq!(sign_and_store(&*store, &batch), StoreOutcome::Stored);
    assert_signed(f, &*store, RING, 5);
}

fn a_drained_batch_is_not_to_blame_and_a_failed_one_is<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 4);
    let row = "SELECT state || ' ' || attempts || ' ' || coalesce(failure, '-') AS value FROM batches ORDER BY id";
    let batches = check_out(&*store, RING, 2, 2).batches;
    let returned = [give_up(&batches[0], None), give_up(&batches[1], Some("the signer panicked"))];
    assert_eq!(store.give_up(RING, &returned).unwrap(), [Outcome::Abandoned; 2]);
    assert_eq!(f.rows(row), ["retry 0 -", "retry 1 the signer panicked"]);

    let batches = check_out(&*store, RING, 2, 2).batches;
    assert_eq!(batches.iter().map(|batch| batch.attempts).collect::<Vec<_>>(), [0, 1]);
    let drained = [give_up(&batches[0], None), give_up(&batches[1], None)];
    store.give_up(RING, &drained).unwrap();
    assert_eq!(f.rows(row), ["retry 0 -", "retry 1 the signer panicked"], "a drain changes none");
    sign_all(f, &*store, RING, 2);
    assert_signed(f, &*store, RING, 4);
}

fn a_batch_that_fails_too_often_is_quarantined_and_holds_nobody_up<F: Fixture>(f: &F) {
    let store = f.open_with(&StoreOptions { max_attempts: 3, ..options("a") });
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 9);
    let bad = check_out_one(&*store, RING, 3);
    store.give_up(RING, &[give_up(&bad, Some("failure 1"))]).unwrap();
    for n in 2..=3 {
        assert_eq!(f.rows("SELECT state AS value FROM batches"), ["retry"]);
        let again = check_out_one(&*store, RING, 3);
        assert_eq!((again.key_use.batch, again.attempts), (bad.key_use.batch, n - 1));
        store.give_up(RING, &[give_up(&again, Some(&format!("failure {n}")))]).unwrap();
    }
    let batch = &store.batches(None, 10).unwrap()[0];
    assert_eq!(batch.state, BatchState::Quarantined);
    assert_eq!((batch.attempts, batch.failure.as_deref()), (3, Some("failure 3")));

    assert_eq!(sign_all(f, &*store, RING, 3), 2);
    let remaining = store.remaining(RING).unwrap();
    assert!(remaining.is_done());
    assert_eq!((remaining.records, remaining.unsigned, remaining.quarantined), (9, 0, 3));
    assert!(!store.has_work(RING).unwrap());
    assert_eq!(store.sweep(RING).unwrap(), 0, "a quarantined record is no stray");
    let progress = store.progress(RING).unwrap();
    assert_eq!((progress.quarantined_batches, progress.quarantined_records), (1, 3));
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 6);
    assert_lawful(f, &*store);
}

fn a_reclaim_ends_expired_uses_and_counts_an_attempt<F: Fixture>(f: &F) {
    let (dead, store) = (f.open("dead"), f.open("b"));
    add_keys(&*store, RING, 4);
    insert(f, &*store, RING, 12);
    let lost = check_out(&*dead, RING, 3, 3).batches;
    f.expire(&format!("fence <> {}", lost[1].key_use.fence));
    let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
    let dead_node = NodeId("dead".to_owned());
    let uses = [(lost[0].key_use, dead_node.clone()), (lost[2].key_use, dead_node)];
    assert_eq!(reclaimed.uses, uses, "the second lease has not run out");
    assert!(reclaimed.quarantined.is_empty());
    assert_eq!(store.reclaim(RING, ReclaimScope::Expired).unwrap().uses, [], "nothing is left");
    let batches = store.batches(None, 10).unwrap();
    let attempts: Vec<_> = batches.iter().map(|b| (b.state, b.attempts)).collect();
    let expected = [(BatchState::Retry, 1), (BatchState::Open, 0), (BatchState::Retry, 1)];
    assert_eq!(attempts, expected);
    assert!(batches[0].failure.as_deref().is_some_and(|reason| reason.contains("dead")));
    assert_eq!(sign_and_store(&*dead, &lost[1]), StoreOutcome::Stored);
    sign_all(f, &*store, RING, 3);
    assert_signed(f, &*store, RING, 12);
}

fn a_batch_whose_owners_die_is_quarantined_with_its_reason<F: Fixture>(f: &F) {
    let store = f.open_with(&StoreOptions { max_attempts: 2, ..options("b") });
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 6);
    let first = check_out_one(&*store, RING, 3);
    f.expire("1 = 1");
    assert!(store.reclaim(RING, ReclaimScope::Expired).unwrap().quarantined.is_empty());
    let second = check_out_one(&*store, RING, 3);
    assert_eq!((second.key_use.batch, second.attempts), (first.key_use.batch, 1));
    f.expire("1 = 1");
    let reclaimed = store.reclaim(RING, ReclaimScope::Expired).unwrap();
    assert_eq!(reclaimed.quarantined, [first.key_use.batch]);
    let failure = f.rows("SELECT failure AS value FROM batches WHERE state = 'quarantined'");
    assert!(failure[0].contains("lease"), "{failure:?}");
    assert_eq!(sign_all(f, &*store, RING, 3), 1);
    assert_eq!(store.remaining(RING).unwrap().quarantined, 3);
    assert_lawful(f, &*store);
}

fn giving_up_what_has_ended_says_how_it_ended<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 9);
    let batches = check_out(&*store, RING, 3, 3).batches;
    assert_eq!(sign_and_store(&*store, &batches[0]), StoreOutcome::Stored);
    f.expire(&format!("fence = {}", batches[1].key_use.fence));
    store.reclaim(RING, ReclaimScope::Expired).unwrap();
    let uses: Vec<_> = batches.iter().map(|batch| give_up(batch, Some("late"))).collect();
    let outcomes = store.give_up(RING, &uses).unwrap();
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Reclaimed, Outcome::Abandoned]);
    let attempts = f.rows("SELECT attempts AS value FROM batches ORDER BY id");
    assert_eq!(attempts, ["0", "1", "1"], "a failure counts once");
    sign_all(f, &*store, RING, 3);
    assert_signed(f, &*store, RING, 9);
}

#[test]
fn who_holds_the_signing_lock_of_sqlite_reclaims_what_no_clock_has_ended() {
    let f = Sqlite::new();
    let (dead, store) = (f.open("dead"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(&f, &*store, RING, 4);
    let lost = check_out(&*dead, RING, 2, 2).batches;
    assert!(store.reclaim(RING, ReclaimScope::Expired).unwrap().uses.is_empty());
    let reclaimed = store.reclaim(RING, ReclaimScope::All).unwrap();
    assert_eq!(
        reclaimed.uses.iter().map(|(u, _)| *u).collect::<Vec<_>>(),
        [lost[0].key_use, lost[1].key_use]
    );
    assert_eq!(sign_and_store(&*dead, &lost[0]), StoreOutcome::Fenced(Outcome::Reclaimed));
    sign_all(&f, &*store, RING, 2);
    assert_signed(&f, &*store, RING, 4);
}

#[test]
fn on_postgresql_only_an_expired_lease_proves_anything() {
    let f = Pg::new();
    let (busy, store) = (f.open("busy"), f.open("b"));
    add_keys(&*store, RING, 2);
    insert(&f, &*store, RING, 4);
    let held = check_out_one(&*busy, RING, 4);
    assert!(store.reclaim(RING, ReclaimScope::All).unwrap().uses.is_empty());
    assert_eq!(sign_and_store(&*busy, &held), StoreOutcome::Stored);
    assert_signed(&f, &*store, RING, 4);
}
