//! Random lawful histories pass; each kind of corruption is found under the right rule.

use proptest::prelude::*;
use proptest::sample::Index;

use super::histories::{self, Act, events, history, pick, tick_at};
use super::*;

/// Replays the events of a ring whose clock stands at `ring_tick`.
fn judge(events: &[Event], ring_tick: Tick) -> Vec<Violation> {
    let mut ledger = Ledger::new();
    let mut found: Vec<Violation> = events.iter().flat_map(|event| ledger.apply(event)).collect();
    found.extend(ledger.finish(ring_tick));
    found
}

/// Gives the acts new ticks, without a gap, and replays them.
fn judge_acts(acts: &[Act]) -> Vec<Violation> {
    let events = events(acts);
    let ring_tick = events.last().map_or(Tick::ZERO, Event::tick);
    judge(&events, ring_tick)
}

fn places(acts: &[Act], wanted: impl Fn(usize, &Act) -> bool) -> Vec<usize> {
    (0..acts.len()).filter(|&place| wanted(place, &acts[place])).collect()
}

fn is_checkout_of(act: &Act, wanted: KeyId) -> bool {
    matches!(*act, Act::CheckOut { key, .. } if key == wanted)
}

/// One of the candidates; without any, the case does not count.
fn choose<T: Clone>(which: Index, candidates: &[T]) -> Result<T, TestCaseError> {
    pick(which, candidates).cloned().ok_or_else(|| TestCaseError::reject("no place for the fault"))
}

fn first(found: &[Violation]) -> Result<(Rule, Tick), TestCaseError> {
    found
        .first()
        .map(|violation| (violation.rule(), violation.tick()))
        .ok_or_else(|| TestCaseError::fail("the fault was not found"))
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_lawful_history_has_no_violation(acts in history()) {
        let ends = places(&acts, |_, act| matches!(act, Act::End { .. }));
        prop_assert!(!ends.is_empty());
        prop_assert_eq!(judge_acts(&acts), []);
    }

    #[test]
    fn the_ledger_is_what_a_scan_of_the_history_finds(acts in history()) {
        let mut ledger = Ledger::new();
        for (place, event) in events(&acts).iter().enumerate() {
            ledger.apply(event);
            let past = &acts[..=place];
            let free: Vec<KeyId> = ledger.free_keys().collect();
            prop_assert_eq!(free, histories::free_keys(past));
            let keys: Vec<KeyId> = ledger.keys().map(|(key, _)| key).collect();
            prop_assert_eq!(&keys, &histories::keys(past).into_iter().collect::<Vec<_>>());
            for (key, state) in ledger.keys() {
                prop_assert_eq!(state.last_tick, histories::last_tick(past, key));
                prop_assert_eq!(Some(state.status), histories::status(past, key));
                prop_assert_eq!(state.in_use.is_some(), histories::is_in_use(past, key));
            }
            let fences: Vec<Tick> = ledger.open_uses().map(|open| open.fence.0).collect();
            let open: Vec<Tick> = histories::open_places(past).into_iter().map(tick_at).collect();
            prop_assert_eq!(fences, open);
            prop_assert_eq!(ledger.last_tick(), tick_at(place));
            prop_assert_eq!(ledger.counts().events(), u64::try_from(past.len()).unwrap());
        }
    }

    #[test]
    fn a_dropped_event_breaks_the_ticks(acts in history(), which: Index) {
        let mut events = events(&acts);
        let ring_tick = tick_at(events.len() - 1);
        let dropped = events.remove(which.index(acts.len()));
        prop_assert_eq!(first(&judge(&events, ring_tick))?, (Rule::Ticks, dropped.tick()));
    }

    #[test]
    fn a_doubled_event_breaks_the_ticks_and_nothing_else(acts in history(), which: Index) {
        let mut events = events(&acts);
        let ring_tick = tick_at(events.len() - 1);
        let doubled = *which.get(&events);
        events.insert(which.index(acts.len()), doubled);
        let found = judge(&events, ring_tick);
        prop_assert_eq!(first(&found)?, (Rule::Ticks, doubled.tick()));
        prop_assert_eq!(found.len(), 1);
    }

    #[test]
    fn two_events_in_each_others_place_break_the_ticks(acts in history(), a: Index, b: Index) {
        let mut events = events(&acts);
        let ring_tick = tick_at(events.len() - 1);
        let (low, high) = (a.index(acts.len()), b.index(acts.len()));
        prop_assume!(low != high);
        events.swap(low, high);
        let expected = (Rule::Ticks, tick_at(low.min(high)));
        prop_assert_eq!(first(&judge(&events, ring_tick))?, expected);
    }

    #[test]
    fn a_ring_with_another_tick_than_the_last_breaks_the_ticks(acts in history(), by in 1_i64..9) {
        let events = events(&acts);
        let last = tick_at(events.len() - 1);
        let behind = judge(&events, Tick(last.0 + by));
        prop_assert_eq!(first(&behind)?, (Rule::Ticks, last.next()));
        let ahead = judge(&events, Tick(last.0 - by));
        prop_assert_eq!(first(&ahead)?, (Rule::Ticks, last));
        prop_assert_eq!((behind.len(), ahead.len()), (1, 1));
    }

    #[test]
    fn a_batch_signed_again_after_its_store_breaks_r1(
        mut acts in history(), which: Index, other: Index,
    ) {
        let stored = choose(which, &places(&acts, |_, act| {
            matches!(act, Act::End { outcome: Outcome::Stored, .. })
        }))?;
        let Act::End { batch: victim, .. } = acts[stored] else { unreachable!() };
        let is_new = |place: usize, act: &Act| {
            let Act::CheckOut { batch, .. } = *act else { return false };
            place > stored
                && !acts[..place].iter().any(
                    |act| matches!(*act, Act::CheckOut { batch: earlier, .. } if earlier == batch),
                )
        };
        let place = choose(other, &places(&acts, is_new))?;
        let Act::CheckOut { batch: renamed, .. } = acts[place] else { unreachable!() };
        for act in &mut acts {
            match act {
                Act::CheckOut { batch, .. } | Act::End { batch, .. } if *batch == renamed => {
                    *batch = victim;
                }
                _ => {}
            }
        }
        let found = judge_acts(&acts);
        prop_assert_eq!(first(&found)?, (Rule::R1, tick_at(place)));
        prop_assert!(found.iter().all(|violation| violation.rule() == Rule::R1));
    }

    #[test]
    fn an_end_moved_past_the_next_checkout_of_its_key_breaks_r2(
        mut acts in history(), which: Index,
    ) {
        let next_checkout = |place: usize, act: &Act| {
            let Act::End { key, outcome: Outcome::Stored, .. } = *act else { return None };
            let later = acts[place..].iter().position(|act| is_checkout_of(act, key))?;
            Some((place, place + later))
        };
        let candidates: Vec<(usize, usize)> = acts
            .iter()
            .enumerate()
            .filter_map(|(place, act)| next_checkout(place, act))
            .collect();
        let (end, checkout) = choose(which, &candidates)?;
        acts[end..=checkout].rotate_left(1);
        let found = judge_acts(&acts);
        prop_assert_eq!(first(&found)?, (Rule::R2, tick_at(checkout - 1)));
    }

    #[test]
    fn a_use_whose_end_is_left_out_breaks_r2_at_the_keys_next_checkout(
        mut acts in history(), which: Index,
    ) {
        let is_followed = |place: usize, act: &Act| match *act {
            Act::End { key, outcome: Outcome::Stored, .. } => {
                acts[place..].iter().any(|act| is_checkout_of(act, key))
            }
            _ => false,
        };
        let end = choose(which, &places(&acts, is_followed))?;
        let Act::End { key, .. } = acts.remove(end) else { unreachable!() };
        let next = places(&acts, |place, act| place >= end && is_checkout_of(act, key))[0];
        prop_assert_eq!(first(&judge_acts(&acts))?, (Rule::R2, tick_at(next)));
    }

    #[test]
    fn a_batch_taken_by_two_keys_at_once_breaks_r3(mut acts in history(), which: Index) {
        let may_double = |place: usize, _: &Act| {
            let past = &acts[..place];
            !histories::open_places(past).is_empty() && !histories::free_keys(past).is_empty()
        };
        let place = choose(which, &places(&acts, may_double))?;
        let open = histories::open_places(&acts[..place])[0];
        let Act::CheckOut { batch, .. } = acts[open] else { unreachable!() };
        let key = histories::free_keys(&acts[..place])[0];
        acts.insert(place, Act::CheckOut { number: usize::MAX, key, batch });
        prop_assert_eq!(first(&judge_acts(&acts))?, (Rule::R3, tick_at(place)));
    }

    #[test]
    fn an_end_without_its_checkout_breaks_r3(mut acts in history(), which: Index) {
        let end = choose(which, &places(&acts, |_, act| matches!(act, Act::End { .. })))?;
        let Act::End { number: ended, .. } = acts[end] else { unreachable!() };
        acts.retain(|act| !matches!(*act, Act::CheckOut { number, .. } if number == ended));
        let of_the_end = |violation: &&Violation| violation.tick() == tick_at(end - 1);
        let found = judge_acts(&acts);
        let at_the_end: Vec<Violation> = found.iter().filter(of_the_end).cloned().collect();
        prop_assert_eq!(first(&at_the_end)?, (Rule::R3, tick_at(end - 1)));
    }

    #[test]
    fn an_end_of_another_key_or_batch_breaks_r3(
        mut acts in history(), which: Index, of_key: bool,
    ) {
        let end = choose(which, &places(&acts, |_, act| matches!(act, Act::End { .. })))?;
        if let Act::End { key, batch, .. } = &mut acts[end] {
            if of_key { key.0 += 1 } else { batch.0 += 1 }
        }
        let found = judge_acts(&acts);
        prop_assert_eq!(first(&found)?, (Rule::R3, tick_at(end)));
        prop_assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_checkout_of_a_key_that_is_not_least_recent_breaks_r4(
        mut acts in history(), which: Index, other: Index,
    ) {
        let has_choice = |place: usize, act: &Act| {
            matches!(act, Act::CheckOut { .. }) && histories::free_keys(&acts[..place]).len() > 1
        };
        let place = choose(which, &places(&acts, has_choice))?;
        let wrong = choose(other, &histories::free_keys(&acts[..place])[1..])?;
        let Act::CheckOut { number: changed, .. } = acts[place] else { unreachable!() };
        for act in &mut acts {
            match act {
                Act::CheckOut { number, key, .. } | Act::End { number, key, .. }
                    if *number == changed =>
                {
                    *key = wrong;
                }
                _ => {}
            }
        }
        prop_assert_eq!(first(&judge_acts(&acts))?, (Rule::R4, tick_at(place)));
    }

    #[test]
    fn a_checkout_of_a_key_that_is_not_active_breaks_r4(
        mut acts in history(), which: Index, fate in 0_usize..3,
    ) {
        let place = choose(which, &places(&acts, |_, act| matches!(act, Act::CheckOut { .. })))?;
        let Act::CheckOut { key, .. } = acts[place] else { unreachable!() };
        let event = [KeyEvent::Disabled, KeyEvent::Retired, KeyEvent::Destroyed][fate];
        acts.insert(place, Act::Key { key, event });
        let found = judge_acts(&acts);
        prop_assert_eq!(first(&found)?, (Rule::R4, tick_at(place + 1)));
        let fault = Fault::KeyNotActive { status: event.status() };
        prop_assert_eq!(found[0].fault(), &fault);
    }

    #[test]
    fn a_checkout_of_a_key_that_was_never_added_breaks_r4(mut acts in history(), which: Index) {
        let place = choose(which, &places(&acts, |_, act| matches!(act, Act::CheckOut { .. })))?;
        if let Act::CheckOut { key, .. } = &mut acts[place] {
            *key = KeyId(1_000);
        }
        let found = judge_acts(&acts);
        prop_assert_eq!(first(&found)?, (Rule::R4, tick_at(place)));
        prop_assert_eq!(found[0].fault(), &Fault::KeyUnknown);
    }

    #[test]
    fn a_key_event_out_of_place_breaks_the_key_events(
        mut acts in history(), at: Index, which: Index, kind in 0_usize..5,
    ) {
        let place = at.index(acts.len() + 1);
        let past = &acts[..place];
        let event = KeyEvent::ALL[kind];
        let is_out_of_place = |key: &KeyId| {
            let in_use = histories::is_in_use(past, *key);
            !histories::is_lawful(event, histories::status(past, *key), in_use)
        };
        let all = histories::keys(past).into_iter().chain([KeyId(1_000)]);
        let keys: Vec<KeyId> = all.filter(is_out_of_place).collect();
        let key = choose(which, &keys)?;
        acts.insert(place, Act::Key { key, event });
        prop_assert_eq!(first(&judge_acts(&acts))?, (Rule::KeyEvents, tick_at(place)));
    }
}
