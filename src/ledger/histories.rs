//! Histories for the tests: made at random, lawful by construction, and read the slow way.
//!
//! Everything is found by scanning the acts from one end to the other, with no state kept, so
//! that nothing here can share an error with the ledger.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::Event;
use crate::types::{BatchId, Fence, KeyEvent, KeyId, KeyStatus, Outcome, Tick};

/// An event without its tick: the place in the list says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// `number` is the checkout's name, by which its end finds it; an act that is put into a
    /// history later takes one that is not in use.
    CheckOut {
        number: usize,
        key: KeyId,
        batch: BatchId,
    },
    End {
        number: usize,
        key: KeyId,
        batch: BatchId,
        outcome: Outcome,
    },
    Key {
        key: KeyId,
        event: KeyEvent,
    },
}

/// Ticks and fences for the acts; the end of a use that was never checked out gets fence 0.
pub(super) fn events(acts: &[Act]) -> Vec<Event> {
    let mut fences = BTreeMap::new();
    let ticks = (1..).map(Tick);
    let with_tick = |(act, tick): (&Act, Tick)| match *act {
        Act::CheckOut { number, key, batch } => {
            fences.insert(number, Fence(tick));
            Event::CheckedOut { fence: Fence(tick), key, batch }
        }
        Act::End { number, key, batch, outcome } => {
            let fence = fences.get(&number).copied().unwrap_or(Fence(Tick::ZERO));
            Event::Ended { tick, fence, key, batch, outcome }
        }
        Act::Key { key, event } => Event::Key { tick, key, event },
    };
    acts.iter().zip(ticks).map(with_tick).collect()
}

/// The tick of the act at `place`.
pub(super) fn tick_at(place: usize) -> Tick {
    Tick(i64::try_from(place).unwrap() + 1)
}

pub(super) fn keys(acts: &[Act]) -> BTreeSet<KeyId> {
    let key_of = |act: &Act| match *act {
        Act::Key { key, .. } => Some(key),
        _ => None,
    };
    acts.iter().filter_map(key_of).collect()
}

pub(super) fn status(acts: &[Act], wanted: KeyId) -> Option<KeyStatus> {
    acts.iter().rev().find_map(|act| match *act {
        Act::Key { key, event } if key == wanted => Some(event.status()),
        _ => None,
    })
}

pub(super) fn last_tick(acts: &[Act], wanted: KeyId) -> Tick {
    let ends = |act: &Act| matches!(*act, Act::End { key, .. } if key == wanted);
    acts.iter().rposition(ends).map_or(Tick::ZERO, tick_at)
}

/// The places of the checkouts that have no end.
pub(super) fn open_places(acts: &[Act]) -> Vec<usize> {
    let ended =
        |wanted| acts.iter().any(|act| matches!(*act, Act::End { number, .. } if number == wanted));
    let is_open =
        |place: &usize| matches!(acts[*place], Act::CheckOut { number, .. } if !ended(number));
    (0..acts.len()).filter(is_open).collect()
}

pub(super) fn is_in_use(acts: &[Act], wanted: KeyId) -> bool {
    open_places(acts)
        .into_iter()
        .any(|place| matches!(acts[place], Act::CheckOut { key, .. } if key == wanted))
}

/// The keys that may be checked out, the least recently used first.
pub(super) fn free_keys(acts: &[Act]) -> Vec<KeyId> {
    let is_free =
        |key: &KeyId| status(acts, *key) == Some(KeyStatus::Active) && !is_in_use(acts, *key);
    let mut free: Vec<KeyId> = keys(acts).into_iter().filter(is_free).collect();
    free.sort_by_key(|&key| (last_tick(acts, key), key));
    free
}

/// The batches whose last use ended without a store.
fn batches_to_retry(acts: &[Act]) -> Vec<BatchId> {
    let mut retry = BTreeSet::new();
    for act in acts {
        match *act {
            Act::CheckOut { batch, .. } => _ = retry.remove(&batch),
            Act::End { outcome: Outcome::Stored, .. } | Act::Key { .. } => {}
            Act::End { batch, .. } => _ = retry.insert(batch),
        }
    }
    retry.into_iter().collect()
}

fn next_batch(acts: &[Act]) -> BatchId {
    let batch_of = |act: &Act| match *act {
        Act::CheckOut { batch, .. } => Some(batch.0),
        _ => None,
    };
    BatchId(acts.iter().filter_map(batch_of).max().unwrap_or(0) + 1)
}

/// Whether the event may happen to a key with this status, as a table.
pub(super) fn is_lawful(event: KeyEvent, status: Option<KeyStatus>, in_use: bool) -> bool {
    use KeyStatus::{Active, Destroyed, Disabled, Retired};
    let lawful_before: &[Option<KeyStatus>] = match event {
        KeyEvent::Added => &[None],
        KeyEvent::Enabled => &[Some(Disabled)],
        KeyEvent::Disabled => &[Some(Active)],
        KeyEvent::Retired => &[Some(Active), Some(Disabled)],
        KeyEvent::Destroyed => &[Some(Active), Some(Disabled), Some(Retired)],
    };
    assert!(!lawful_before.contains(&Some(Destroyed)));
    lawful_before.contains(&status) && !(in_use && event == KeyEvent::Destroyed)
}

/// What a random history does next, if its state allows it.
#[derive(Clone, Debug)]
enum Step {
    CheckOut { retry_first: bool },
    End { which: Index, outcome: Outcome },
    AddKey,
    ChangeKey { which: Index, event: KeyEvent },
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        5 => Just(Outcome::Stored),
        1 => Just(Outcome::Reclaimed),
        1 => Just(Outcome::Abandoned),
    ];
    let event = prop_oneof![
        4 => Just(KeyEvent::Enabled),
        4 => Just(KeyEvent::Disabled),
        1 => Just(KeyEvent::Retired),
        1 => Just(KeyEvent::Destroyed),
    ];
    prop_oneof![
        10 => any::<bool>().prop_map(|retry_first| Step::CheckOut { retry_first }),
        9 => (any::<Index>(), outcome).prop_map(|(which, outcome)| Step::End { which, outcome }),
        1 => Just(Step::AddKey),
        2 => (any::<Index>(), event).prop_map(|(which, event)| Step::ChangeKey { which, event }),
    ]
}

/// The act that the step stands for, or `None` if the history so far does not allow it.
fn act(acts: &[Act], step: &Step) -> Option<Act> {
    match *step {
        Step::CheckOut { retry_first } => {
            let key = *free_keys(acts).first()?;
            let retry = batches_to_retry(acts).first().copied().filter(|_| retry_first);
            let batch = retry.unwrap_or_else(|| next_batch(acts));
            Some(Act::CheckOut { number: acts.len(), key, batch })
        }
        Step::End { which, outcome } => {
            let place = *pick(which, &open_places(acts))?;
            let Act::CheckOut { number, key, batch } = acts[place] else { return None };
            Some(Act::End { number, key, batch, outcome })
        }
        Step::AddKey => {
            // Ids fall, so that the order of ids is not the order of adding.
            let lowest = keys(acts).first().map_or(50, |key| key.0);
            Some(Act::Key { key: KeyId(lowest - 3), event: KeyEvent::Added })
        }
        Step::ChangeKey { which, event } => {
            let all: Vec<KeyId> = keys(acts).into_iter().collect();
            let may = |key: &KeyId| is_lawful(event, status(acts, *key), is_in_use(acts, *key));
            let candidates: Vec<KeyId> = all.into_iter().filter(may).collect();
            Some(Act::Key { key: *pick(which, &candidates)?, event })
        }
    }
}

/// One of `among`, or `None` if it is empty.
pub(super) fn pick<T>(which: Index, among: &[T]) -> Option<&T> {
    (!among.is_empty()).then(|| which.get(among))
}

/// A lawful history of a few keys and up to some hundred events, with at least one batch stored.
pub(super) fn history() -> impl Strategy<Value = Vec<Act>> {
    (1_usize..6, prop::collection::vec(step(), 30..120)).prop_map(|(key_count, steps)| {
        let mut acts = Vec::new();
        for step in vec![Step::AddKey; key_count] {
            acts.extend(act(&acts, &step));
        }
        let (number, key, batch) = (acts.len(), free_keys(&acts)[0], BatchId(1));
        acts.push(Act::CheckOut { number, key, batch });
        acts.push(Act::End { number, key, batch, outcome: Outcome::Stored });
        for step in &steps {
            acts.extend(act(&acts, step));
        }
        acts
    })
}
