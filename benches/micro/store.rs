//! The store's transactions in the life of a batch, on both databases:
//! `cargo bench --bench micro -- 'check_out|load|store'`.
//!
//! Every figure is taken on a database of its own, which grows while it is taken: each batch that is
//! checked out is a new one, and is stored in the end.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};

use crate::site::{DATABASES, Site};

const BATCH: u32 = 500;

/// Check-outs of 32 batches at once, by the number of records in a batch.
pub(crate) fn check_out(criterion: &mut Criterion) {
    const BATCHES: u32 = 32;
    let mut group = slow_group(criterion, "check_out");
    for (database, open) in DATABASES {
        for records in [1, BATCH] {
            let site = LazyCell::new(open);
            group.bench_function(BenchmarkId::new(database, format!("{BATCHES}x{records}")), |b| {
                let site: &Site = &site;
                b.iter_custom(|times| {
                    let once = |_| {
                        let (batches, took) = site.check_out(BATCHES, records);
                        site.store(&site.sign(&batches));
                        took
                    };
                    (0..times).map(once).sum()
                });
            });
        }
    }
    group.finish();
}

/// The payloads of a batch, of 256 bytes each.
pub(crate) fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (database, open) in DATABASES {
        let stored = LazyCell::new(|| {
            let site = open();
            let (batches, _) = site.check_out(1, BATCH);
            site.store(&site.sign(&batches));
            let range = batches[0].range;
            assert_eq!(site.load(&range).len(), BATCH as usize);
            (site, range)
        });
        group.bench_function(BenchmarkId::new(database, format!("1x{BATCH}")), |b| {
            let (site, range) = &*stored;
            b.iter(|| site.load(black_box(range)));
        });
    }
    group.finish();
}

/// One transaction for one batch, and one for eight.
pub(crate) fn store(criterion: &mut Criterion) {
    let mut group = slow_group(criterion, "store");
    for (database, open) in DATABASES {
        for batches in [1_u32, 8] {
            let site = LazyCell::new(open);
            group.throughput(Throughput::Elements((batches * BATCH).into()));
            group.bench_function(BenchmarkId::new(database, format!("{batches}x{BATCH}")), |b| {
                let site: &Site = &site;
                b.iter_custom(|times| {
                    let once = |_| {
                        let (claimed, _) = site.check_out(batches, BATCH);
                        site.store(&site.sign(&claimed))
                    };
                    (0..times).map(once).sum()
                });
            });
        }
    }
    group.finish();
}

/// A group whose samples take longer than what is measured in them.
fn slow_group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(10));
    group
}
