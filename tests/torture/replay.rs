//! The ring's history replayed tick by tick, apart from the program's own ledger: no gap, no key in
//! two uses at once (R2), and always the free key that has rested longest (R4).

use std::collections::BTreeMap;

use crate::support::database::Database;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Added,
    CheckedOut,
    Ended,
}

/// What happened to which key at which tick.
type Entry = (i64, Event, i64);

/// Judges the history of the ring with id 1, whose keys were all added and never changed; how many
/// key uses it has.
#[track_caller]
pub(crate) fn judge_history(database: &Database) -> usize {
    expect_that_the_judge_judges();
    let of = |event, query: &str| {
        let rows = database.rows(query).into_iter();
        rows.map(move |row| {
            let (tick, key) = row.split_once(' ').unwrap();
            (tick.parse().unwrap(), event, key.parse().unwrap())
        })
    };
    let mut entries: Vec<Entry> =
        of(Event::Added, "SELECT tick || ' ' || key_id AS value FROM key_events").collect();
    let changed =
        database.number("SELECT count(*) AS value FROM key_events WHERE event <> 'added'");
    assert_eq!(changed, 0, "keys changed, which this replay does not know");
    let uses = "SELECT fence || ' ' || key_id AS value FROM key_uses";
    entries.extend(of(Event::CheckedOut, uses));
    let ends = "SELECT end_tick || ' ' || key_id AS value FROM key_uses WHERE end_tick IS NOT NULL";
    entries.extend(of(Event::Ended, ends));
    let last = database.number("SELECT tick AS value FROM rings WHERE id = 1");
    assert_eq!(i64::try_from(entries.len()).unwrap(), last, "events, and the ring's tick");
    let broken = replay(&mut entries);
    assert!(broken.is_empty(), "{} times: {:#?}", broken.len(), &broken[..broken.len().min(5)]);
    entries.iter().filter(|(_, event, _)| *event == Event::CheckedOut).count()
}

/// Each breach of a rule, in words.
fn replay(entries: &mut [Entry]) -> Vec<String> {
    /// For each key the tick at which it was last used, or none while it is in use.
    type Keys = BTreeMap<i64, Option<i64>>;
    entries.sort_by_key(|(tick, ..)| *tick);
    let mut keys = Keys::new();
    let mut broken = Vec::new();
    for (expected, &(tick, event, key)) in (1..).zip(&*entries) {
        if tick != expected {
            broken.push(format!("tick {tick} stands where {expected} should"));
            return broken;
        }
        let rested = |keys: &Keys| {
            let free = keys.iter().filter_map(|(key, last)| Some(((*last)?, *key)));
            free.min().map(|(_, key)| key)
        };
        match (event, keys.get(&key).copied()) {
            (Event::Added, None) => drop(keys.insert(key, Some(0))),
            (Event::CheckedOut, Some(Some(_))) => {
                let due = rested(&keys);
                if due != Some(key) {
                    broken.push(format!("at tick {tick} key {key} was used where {due:?} was due"));
                }
                keys.insert(key, None);
            }
            (Event::CheckedOut, Some(None)) => {
                broken.push(format!("at tick {tick} key {key} was checked out while in use"));
            }
            (Event::Ended, Some(None)) => drop(keys.insert(key, Some(tick))),
            (event, state) => {
                broken.push(format!("at tick {tick} key {key}: {event:?} in {state:?}"))
            }
        }
    }
    broken
}

/// A judge that finds nothing in a wrong history is none.
#[track_caller]
fn expect_that_the_judge_judges() {
    use Event::{Added, CheckedOut, Ended};
    let good =
        [(1, Added, 7), (2, Added, 8), (3, CheckedOut, 7), (4, CheckedOut, 8), (5, Ended, 8)];
    let with = |more: &[Entry]| replay(&mut [&good[..], more].concat()).len();
    assert_eq!(with(&[(6, CheckedOut, 8), (7, Ended, 7), (8, Ended, 8), (9, CheckedOut, 7)]), 0);
    assert_eq!(with(&[(7, Ended, 7)]), 1, "a gap");
    assert_eq!(with(&[(6, CheckedOut, 7)]), 1, "a key in two uses");
    assert_eq!(with(&[(6, Ended, 7), (7, CheckedOut, 7)]), 1, "the other key has rested longer");
}
