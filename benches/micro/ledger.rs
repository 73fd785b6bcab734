//! The replay of a ring's history: `cargo bench --bench micro -- replay`.

use std::collections::VecDeque;
use std::hint::black_box;

use chancery::ledger::{Event, Ledger, OpenUse};
use chancery::types::{BatchId, Fence, KeyEvent, KeyId, Outcome, Tick};
use criterion::{Criterion, Throughput};

const EVENTS: i64 = 100_000;
const KEYS: i64 = 100;
const IN_FLIGHT: i64 = 32;

/// Each is checked out and ends once; the other events add the keys.
const BATCHES: i64 = (EVENTS - KEYS) / 2;

/// 100,000 events of 100 keys, with 32 batches in flight.
pub(crate) fn replay(criterion: &mut Criterion) {
    let events = history();
    assert_eq!(events.len(), EVENTS as usize);
    assert_eq!(replayed(&events).counts().stored, BATCHES as u64);
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("100000 events", |b| {
        let events = events.as_slice();
        b.iter(|| replayed(black_box(events)));
    });
    group.finish();
}

fn replayed(events: &[Event]) -> Ledger {
    let mut ledger = Ledger::new();
    for event in events {
        let violations = ledger.apply(event);
        assert!(violations.is_empty(), "{violations:?}");
    }
    assert!(ledger.finish(Tick(EVENTS)).is_empty());
    ledger
}

/// A lawful history in which the batches are stored in the order of their check-outs.
fn history() -> Vec<Event> {
    let mut ticks = (1..).map(Tick);
    let mut tick = || ticks.next().unwrap();
    let mut events = Vec::new();
    // The least recently used first: keys come back in the order of their ticks.
    let mut free: VecDeque<KeyId> = (1..=KEYS).map(KeyId).collect();
    let mut open = VecDeque::new();
    for &key in &free {
        events.push(Event::Key { tick: tick(), key, event: KeyEvent::Added });
    }
    for number in 1..=BATCHES + IN_FLIGHT {
        if number > IN_FLIGHT {
            let OpenUse { fence, key, batch } = open.pop_front().unwrap();
            let outcome = Outcome::Stored;
            events.push(Event::Ended { tick: tick(), fence, key, batch, outcome });
            free.push_back(key);
        }
        if number <= BATCHES {
            let (key, batch) = (free.pop_front().unwrap(), BatchId(number));
            let fence = Fence(tick());
            events.push(Event::CheckedOut { fence, key, batch });
            open.push_back(OpenUse { fence, key, batch });
        }
    }
    events
}
