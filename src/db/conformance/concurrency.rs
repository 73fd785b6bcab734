//! Many nodes at once: the rules hold under any interleaving.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use super::actions::{RING, add_keys, check_out, give_up, insert, numbered, sign, sign_all};
use super::fixture::{Fixture, options};
use super::judge::assert_signed;
use super::on_both;
use crate::db::{ReclaimScope, SignedBatch, Store, StoreOptions, StoreOutcome};
use crate::types::{Fence, KeyEvent, Kid};

on_both! {
    threads_that_check_out_and_store_at_once_keep_every_rule,
    a_storm_of_failures_reclaims_and_key_changes_keeps_every_rule,
}

/// Runs `work` on as many threads as the database takes, on three nodes, all from one start.
fn at_once<F: Fixture>(f: &F, work: impl Fn(usize, &dyn Store) + Sync) {
    // Failures by chance must not quarantine anything.
    let patient = |n| StoreOptions { max_attempts: 1_000_000, ..options(&format!("node-{n}")) };
    let nodes: Vec<_> = (0..3).map(|n| f.open_with(&patient(n))).collect();
    let barrier = Barrier::new(F::THREADS);
    std::thread::scope(|scope| {
        for n in 0..F::THREADS {
            let (node, barrier, work) = (&nodes[n % 3], &barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(n, &**node);
            });
        }
    });
}

/// A generator of numbers that only looks like chance (Knuth's MMIX constants), a seed a thread.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn threads_that_check_out_and_store_at_once_keep_every_rule<F: Fixture>(f: &F) {
    const RECORDS: u32 = 2400;
    let store = f.open("a");
    add_keys(&*store, RING, 9);
    insert(f, &*store, RING, RECORDS);
    let stored = AtomicU32::new(0);
    at_once(f, |n, node| {
        let most = 1 + (n as u32) % 3;
        loop {
            let batches = check_out(node, RING, most, 6).batches;
            if batches.is_empty() {
                let progress = node.progress(RING).unwrap();
                if progress.signed_records == u64::from(RECORDS) {
                    return;
                }
                std::thread::yield_now();
                continue;
            }
            let signed: Vec<SignedBatch> = batches.iter().map(|batch| sign(node, batch)).collect();
            let outcomes = node.store_batches(RING, &signed).unwrap();
            assert!(outcomes.iter().all(|outcome| *outcome == StoreOutcome::Stored));
            stored.fetch_add(batches.len() as u32, Ordering::Relaxed);
        }
    });
    assert_eq!(stored.into_inner(), RECORDS / 6);
    assert_signed(f, &*store, RING, RECORDS);
}

fn a_storm_of_failures_reclaims_and_key_changes_keeps_every_rule<F: Fixture>(f: &F) {
    const ROUNDS: u32 = 40;
    let store = f.open("a");
    add_keys(&*store, RING, 8);
    let intake = AtomicU32::new(0);
    let fenced = AtomicU32::new(0);
    at_once(f, |n, node| {
        let mut dice = Dice(n as u64);
        for _ in 0..ROUNDS {
            match dice.roll(10) {
                0 | 1 => {
                    let count = 1 + dice.roll(20) as u32;
                    node.insert_records(RING, &numbered(0, count)).unwrap();
                    intake.fetch_add(count, Ordering::Relaxed);
                }
                2 => {
                    node.reclaim(RING, ReclaimScope::Expired).unwrap();
                }
                3 => {
                    let kid = Kid(format!("kid-{}", 1 + dice.roll(8)));
                    node.change_key(&kid, KeyEvent::Disabled, "storm", None).unwrap();
                    node.change_key(&kid, KeyEvent::Enabled, "storm", None).unwrap();
                }
                _ => {
                    let batches = check_out(node, RING, 3, 5).batches;
                    let fences: Vec<Fence> = batches.iter().map(|b| b.key_use.fence).collect();
                    let mut group: Vec<SignedBatch> =
                        batches.iter().map(|batch| sign(node, batch)).collect();
                    match dice.roll(5) {
                        0 => {
                            let uses: Vec<_> =
                                batches.iter().map(|b| give_up(b, Some("storm"))).collect();
                            node.give_up(RING, &uses).unwrap();
                        }
                        1 => {
                            // Expired, and then a race between this store and all reclaims.
                            if let Some(fence) = fences.first() {
                                f.expire(&format!("fence = {fence}"));
                            }
                        }
                        2 => {
                            node.renew(RING, &fences).unwrap();
                            group.reverse();
                        }
                        _ => {}
                    }
                    for outcome in node.store_batches(RING, &group).unwrap() {
                        match outcome {
                            StoreOutcome::Stored => {}
                            StoreOutcome::Fenced(_) => {
                                fenced.fetch_add(1, Ordering::Relaxed);
                            }
                            StoreOutcome::AlreadyStored => panic!("nobody else shows this use"),
                        }
                    }
                }
            }
        }
    });
    let intake = intake.into_inner();
    assert!(intake > 0 && fenced.into_inner() > 0);
    // Nobody has anything in hand now: every use was stored, given up or reclaimed.
    f.settle();
    store.reclaim(RING, ReclaimScope::Expired).unwrap();
    assert!(store.open_uses().unwrap().is_empty());
    sign_all(f, &*store, RING, 7);
    assert_signed(f, &*store, RING, intake);
}
