//! Step 8: a database that has gone back to an older state.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::actions::{
    RING, add_keys, check_out_one, give_up, insert, sign, sign_all, sign_and_store, size,
};
use super::fixture::Fixture;
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{CheckOut, ReclaimScope, StoreError, StoreOutcome};
use crate::types::{KeyEvent, Kid, Tick};

on_both! {
    a_node_stops_at_a_lower_tick_than_it_has_seen,
    a_node_has_seen_its_own_key_events_and_what_it_polled,
    polling_while_signing_is_never_mistaken_for_a_step_back,
}

/// Puts the ring back by some ticks, as a restored backup would.
fn go_back<F: Fixture>(f: &F, ticks: i64) {
    f.run(&format!("{}; UPDATE rings SET tick = tick - {ticks}", F::FREE_THE_TICK));
}

fn assert_rolled_back<T: std::fmt::Debug>(result: Result<T, StoreError>, before: Tick) {
    match result {
        Err(StoreError::RolledBack { ring, seen, now }) => {
            assert_eq!((ring, seen, now), (RING, before, Tick(before.0 - 1)));
        }
        other => panic!("expected it to stop, got {other:?}"),
    }
}

fn a_node_stops_at_a_lower_tick_than_it_has_seen<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 9);
    assert_eq!(sign_and_store(&*store, &check_out_one(&*store, RING, 3)), StoreOutcome::Stored);
    let batch = check_out_one(&*store, RING, 3);
    let signed = sign(&*store, &batch);
    assert_lawful(f, &*store);
    let before = store.ring("default").unwrap().tick;
    go_back(f, 1);

    let request = CheckOut { ring: RING, max_batches: 1, batch_size: size(3) };
    assert_rolled_back(store.check_out(&request), before);
    assert_rolled_back(store.store_batches(RING, &[signed]), before);
    assert_rolled_back(store.give_up(RING, &[give_up(&batch, None)]), before);
    assert_rolled_back(store.has_work(RING), before);
    assert_rolled_back(store.reclaim(RING, ReclaimScope::Expired), before);
    let kid = Kid("kid-1".to_owned());
    assert_rolled_back(store.change_key(&kid, KeyEvent::Disabled, "test", None), before);
    let text = store.has_work(RING).unwrap_err().to_string();
    assert!(text.contains("backup"), "it says what may have happened: {text}");

    let tick = format!("SELECT tick AS value FROM rings WHERE id = {RING}");
    assert_eq!(f.number(&tick), before.0 - 1, "nothing was changed");
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 3);
    assert!(f.open("restarted").has_work(RING).unwrap(), "a new start accepts what it finds");
}

fn a_node_has_seen_its_own_key_events_and_what_it_polled<F: Fixture>(f: &F) {
    let (store, watcher) = (f.open("a"), f.open("watcher"));
    add_keys(&*store, RING, 2);
    assert!(!watcher.has_work(RING).unwrap());
    go_back(f, 1);
    assert_rolled_back(store.has_work(RING), Tick(2));
    assert_rolled_back(watcher.has_work(RING), Tick(2));
    f.run("UPDATE rings SET tick = tick + 1");
    assert!(store.change_key(&Kid("kid-2".to_owned()), KeyEvent::Disabled, "test", None).unwrap());
    f.run("UPDATE rings SET tick = tick - 1");
    assert_rolled_back(store.has_work(RING), Tick(3));
    assert!(!watcher.has_work(RING).unwrap(), "it has not seen the event");
}

fn polling_while_signing_is_never_mistaken_for_a_step_back<F: Fixture>(f: &F) {
    const POLLERS: usize = 3;
    let store = f.open("a");
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 150);
    let (begin, done) = (Barrier::new(POLLERS + 1), AtomicBool::new(false));
    let polls: u32 = std::thread::scope(|scope| {
        let poll = || {
            begin.wait();
            let mut polls = 0;
            while !done.load(Ordering::Relaxed) {
                store.has_work(RING).unwrap();
                polls += 1;
            }
            polls
        };
        let pollers: Vec<_> = (0..POLLERS).map(|_| scope.spawn(poll)).collect();
        begin.wait();
        let signing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_eq!(sign_all(f, &*store, RING, 1), 150);
        }));
        done.store(true, Ordering::Relaxed);
        let polls = pollers.into_iter().map(|poller| poller.join().unwrap()).sum();
        signing.unwrap();
        polls
    });
    assert!(polls > 10, "{polls} polls");
    assert_signed(f, &*store, RING, 150);
}
