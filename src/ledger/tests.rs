//! Each violation once, in the smallest history that shows it.

use super::*;

const KEYS: [KeyId; 3] = [KeyId(1), KeyId(2), KeyId(3)];
const BATCH: BatchId = BatchId(7);

/// Writes a history event by event, each at the next tick.
struct Story {
    ledger: Ledger,
    tick: Tick,
    found: Vec<Violation>,
}

impl Story {
    /// A ring with three keys, added at the ticks 1 to 3.
    fn new() -> Self {
        let mut story = Story { ledger: Ledger::new(), tick: Tick::ZERO, found: Vec::new() };
        for key in KEYS {
            story.key(key, KeyEvent::Added);
        }
        story
    }

    fn tell(&mut self, event: Event) {
        self.found.extend(self.ledger.apply(&event));
    }

    fn check_out(&mut self, key: KeyId, batch: BatchId) -> Fence {
        self.tick = self.tick.next();
        let fence = Fence(self.tick);
        self.tell(Event::CheckedOut { fence, key, batch });
        fence
    }

    fn end(&mut self, fence: Fence, key: KeyId, batch: BatchId, outcome: Outcome) {
        self.tick = self.tick.next();
        self.tell(Event::Ended { tick: self.tick, fence, key, batch, outcome });
    }

    fn key(&mut self, key: KeyId, event: KeyEvent) {
        self.tick = self.tick.next();
        self.tell(Event::Key { tick: self.tick, key, event });
    }

    /// Checks out the key that is due, and stores the batch.
    fn sign(&mut self, batch: BatchId) -> KeyId {
        let key = self.ledger.free_keys().next().unwrap();
        let fence = self.check_out(key, batch);
        self.end(fence, key, batch, Outcome::Stored);
        key
    }

    /// Goes on lawfully with two rounds over the free keys, ends the story, and returns what was
    /// found: an earlier fault must not be found again.
    fn finish(mut self) -> Vec<(i64, Fault)> {
        let two_rounds = 2 * self.ledger.free_keys().len();
        for batch in (1_000..).map(BatchId).take(two_rounds) {
            self.sign(batch);
        }
        self.found.extend(self.ledger.finish(self.tick));
        assert!(self.ledger.counts().stored > 0);
        self.found.iter().map(|found| (found.tick().0, found.fault().clone())).collect()
    }
}

fn fence(tick: i64) -> Fence {
    Fence(Tick(tick))
}

#[test]
fn a_lawful_story_has_no_violation_and_is_counted() {
    let mut story = Story::new();
    let first = story.check_out(KEYS[0], BATCH);
    let second = story.check_out(KEYS[1], BatchId(8));
    story.end(second, KEYS[1], BatchId(8), Outcome::Stored);
    story.end(first, KEYS[0], BATCH, Outcome::Reclaimed);
    let third = story.check_out(KEYS[2], BATCH);
    assert_eq!(story.ledger.last_tick(), Tick(8));
    assert_eq!(story.ledger.free_keys().collect::<Vec<_>>(), [KEYS[1], KEYS[0]]);
    let open = OpenUse { fence: third, key: KEYS[2], batch: BATCH };
    assert_eq!(story.ledger.open_uses().collect::<Vec<_>>(), [open]);
    assert!(story.ledger.is_stored(BatchId(8)) && !story.ledger.is_stored(BATCH));
    let counts = Counts { checked_out: 3, stored: 1, reclaimed: 1, abandoned: 0, key_events: 3 };
    assert_eq!(story.ledger.counts(), counts);
    assert_eq!(counts.events(), 8);
    assert_eq!(story.finish(), []);
}

#[test]
fn a_gap_in_the_ticks_is_one_violation_at_its_first_tick() {
    let mut story = Story::new();
    story.tick = Tick(6);
    story.sign(BATCH);
    assert_eq!(story.finish(), [(4, Fault::TicksMissing { last: Tick(6) })]);
}

#[test]
fn a_history_that_starts_late_or_before_tick_one_is_found() {
    let added = |tick| Event::Key { tick, key: KEYS[0], event: KeyEvent::Added };
    let late = Ledger::new().apply(&added(Tick(2)));
    assert_eq!(late, [Violation::missing_ticks(Tick(1), Tick(1))]);
    let zero = Ledger::new().apply(&added(Tick::ZERO));
    assert_eq!(zero[0].fault(), &Fault::TickTaken { last: Tick::ZERO });
}

#[test]
fn an_event_told_twice_is_found_and_changes_nothing_else() {
    let mut story = Story::new();
    let key = KEYS[0];
    let taken = story.check_out(key, BATCH);
    story.tell(Event::CheckedOut { fence: taken, key, batch: BATCH });
    story.end(taken, key, BATCH, Outcome::Stored);
    let end =
        Event::Ended { tick: Tick(5), fence: taken, key, batch: BATCH, outcome: Outcome::Stored };
    story.tell(end);
    let twice = |tick| (tick, Fault::TickTaken { last: Tick(tick) });
    assert_eq!(story.finish(), [twice(4), twice(5)]);
}

#[test]
fn two_different_events_at_one_tick_are_found_and_both_believed() {
    let mut story = Story::new();
    story.tell(Event::Key { tick: Tick(3), key: KEYS[0], event: KeyEvent::Disabled });
    assert_eq!(story.ledger.free_keys().collect::<Vec<_>>(), [KEYS[1], KEYS[2]]);
    assert_eq!(story.finish(), [(3, Fault::TickTaken { last: Tick(3) })]);
}

#[test]
fn two_checkouts_at_one_tick_are_both_open_until_their_ends() {
    let mut story = Story::new();
    let taken = story.check_out(KEYS[0], BATCH);
    story.tell(Event::CheckedOut { fence: taken, key: KEYS[1], batch: BatchId(8) });
    story.end(taken, KEYS[1], BatchId(8), Outcome::Stored);
    story.end(taken, KEYS[0], BATCH, Outcome::Stored);
    assert_eq!(story.finish(), [(4, Fault::TickTaken { last: Tick(4) })]);
}

#[test]
fn the_last_tick_must_be_the_rings() {
    let ledger = Story::new().ledger;
    assert_eq!(ledger.finish(Tick(3)), []);
    assert_eq!(ledger.finish(Tick(5)), [Violation::missing_ticks(Tick(4), Tick(5))]);
    let beyond = ledger.finish(Tick(2));
    assert_eq!(beyond[0].fault(), &Fault::BeyondTheRing { ring_tick: Tick(2) });
    assert_eq!((beyond.len(), beyond[0].rule(), beyond[0].tick()), (1, Rule::Ticks, Tick(3)));
}

#[test]
fn the_highest_tick_there_is_does_not_overflow() {
    let mut ledger = Ledger::new();
    let event = Event::Key { tick: Tick(i64::MAX), key: KEYS[0], event: KeyEvent::Added };
    assert_eq!(ledger.apply(&event), [Violation::missing_ticks(Tick(1), Tick(i64::MAX - 1))]);
    assert_eq!(ledger.apply(&event)[0].rule(), Rule::Ticks);
    assert_eq!(ledger.finish(Tick(i64::MAX)), []);
}

#[test]
fn r1_a_stored_batch_is_neither_checked_out_nor_stored_again() {
    let mut story = Story::new();
    story.sign(BATCH);
    let again = story.check_out(KEYS[1], BATCH);
    story.end(again, KEYS[1], BATCH, Outcome::Stored);
    let expected =
        [(6, Fault::StoredBatchCheckedOut), (7, Fault::BatchStoredTwice { fence: again })];
    assert_eq!(story.finish(), expected);
}

#[test]
fn r2_a_key_in_use_is_not_checked_out() {
    let mut story = Story::new();
    let first = story.check_out(KEYS[0], BATCH);
    let second = story.check_out(KEYS[0], BatchId(8));
    story.end(first, KEYS[0], BATCH, Outcome::Stored);
    assert!(!story.ledger.key(KEYS[0]).unwrap().is_free());
    story.end(second, KEYS[0], BatchId(8), Outcome::Stored);
    assert_eq!(story.finish(), [(5, Fault::KeyInUse { since: first })]);
}

#[test]
fn r2_a_key_whose_end_is_lost_is_reported_once() {
    let mut story = Story::new();
    let lost = story.check_out(KEYS[0], BATCH);
    story.sign(BatchId(8));
    story.sign(BatchId(9));
    let again = story.check_out(KEYS[0], BatchId(10));
    story.end(again, KEYS[0], BatchId(10), Outcome::Stored);
    assert_eq!(story.finish(), [(9, Fault::KeyInUse { since: lost })]);
}

#[test]
fn r3_a_batch_with_an_open_use_is_not_checked_out() {
    let mut story = Story::new();
    let first = story.check_out(KEYS[0], BATCH);
    let second = story.check_out(KEYS[1], BATCH);
    story.end(first, KEYS[0], BATCH, Outcome::Reclaimed);
    story.end(second, KEYS[1], BATCH, Outcome::Stored);
    assert_eq!(story.finish(), [(5, Fault::BatchInUse { since: first })]);
}

#[test]
fn r3_an_end_needs_an_open_use() {
    let mut story = Story::new();
    story.end(fence(2), KEYS[0], BATCH, Outcome::Abandoned);
    story.end(fence(2), KeyId(99), BatchId(8), Outcome::Stored);
    assert_eq!(story.ledger.key(KEYS[0]).unwrap().last_tick, Tick(4));
    assert_eq!(story.ledger.key(KeyId(99)), None);
    assert!(story.ledger.is_stored(BatchId(8)));
    let no_use = Fault::NoOpenUse { fence: fence(2) };
    assert_eq!(story.finish(), [(4, no_use.clone()), (5, no_use)]);
}

#[test]
fn r3_a_use_ends_once() {
    let mut story = Story::new();
    let taken = story.check_out(KEYS[0], BATCH);
    story.end(taken, KEYS[0], BATCH, Outcome::Reclaimed);
    story.end(taken, KEYS[0], BATCH, Outcome::Stored);
    assert_eq!(story.finish(), [(6, Fault::NoOpenUse { fence: taken })]);
}

#[test]
fn r3_an_end_names_the_key_and_the_batch_of_its_checkout() {
    for (key, batch) in [(KEYS[1], BATCH), (KEYS[0], BatchId(8))] {
        let mut story = Story::new();
        let taken = story.check_out(KEYS[0], BATCH);
        story.end(taken, key, batch, Outcome::Stored);
        assert_eq!(story.ledger.open_uses().len(), 0);
        assert_eq!(story.ledger.key(KEYS[0]).unwrap().last_tick, Tick(5));
        assert!(story.ledger.is_stored(BATCH));
        let open = OpenUse { fence: taken, key: KEYS[0], batch: BATCH };
        assert_eq!(story.finish(), [(5, Fault::OtherUseEnded { open })]);
    }
}

#[test]
fn r4_the_least_recently_used_key_is_taken() {
    let mut story = Story::new();
    assert_eq!(story.sign(BATCH), KEYS[0]);
    let wrong = story.check_out(KEYS[0], BatchId(8));
    story.end(wrong, KEYS[0], BatchId(8), Outcome::Stored);
    let passed_over =
        Fault::KeyPassedOver { least: KEYS[1], least_tick: Tick(0), taken_tick: Tick(5) };
    assert_eq!(story.finish(), [(6, passed_over)]);
}

#[test]
fn r4_among_keys_never_used_the_lowest_id_is_taken() {
    let mut story = Story::new();
    let wrong = story.check_out(KEYS[1], BATCH);
    story.end(wrong, KEYS[1], BATCH, Outcome::Stored);
    let passed_over =
        Fault::KeyPassedOver { least: KEYS[0], least_tick: Tick(0), taken_tick: Tick(0) };
    assert_eq!(story.finish(), [(4, passed_over)]);
}

#[test]
fn r4_every_end_stamps_the_key_not_its_checkout() {
    for &outcome in Outcome::ALL {
        let mut story = Story::new();
        let first = story.check_out(KEYS[0], BATCH);
        let second = story.check_out(KEYS[1], BatchId(8));
        story.end(second, KEYS[1], BatchId(8), outcome);
        story.end(first, KEYS[0], BATCH, outcome);
        let order: Vec<KeyId> = story.ledger.free_keys().collect();
        assert_eq!(order, [KEYS[2], KEYS[1], KEYS[0]], "{outcome}");
        assert_eq!(story.ledger.key(KEYS[0]).unwrap().last_tick, Tick(7));
        assert_eq!(story.finish(), []);
    }
}

#[test]
fn r4_only_an_active_key_is_taken() {
    for event in [KeyEvent::Disabled, KeyEvent::Retired, KeyEvent::Destroyed] {
        let mut story = Story::new();
        story.key(KEYS[0], event);
        let wrong = story.check_out(KEYS[0], BATCH);
        story.end(wrong, KEYS[0], BATCH, Outcome::Stored);
        assert_eq!(story.finish(), [(5, Fault::KeyNotActive { status: event.status() })]);
    }
}

#[test]
fn r4_only_a_key_of_the_ring_is_taken() {
    let mut story = Story::new();
    let wrong = story.check_out(KeyId(99), BATCH);
    story.end(wrong, KeyId(99), BATCH, Outcome::Stored);
    assert_eq!(story.ledger.free_keys().last(), Some(KeyId(99)));
    assert_eq!(story.finish(), [(4, Fault::KeyUnknown)]);
}

#[test]
fn a_key_event_needs_the_right_status_before_it() {
    let lives: [&[KeyEvent]; 4] = [
        &[],
        &[KeyEvent::Disabled],
        &[KeyEvent::Disabled, KeyEvent::Retired],
        &[KeyEvent::Retired, KeyEvent::Destroyed],
    ];
    let mut refused = 0;
    for life in lives {
        for &event in KeyEvent::ALL {
            let mut story = Story::new();
            for &earlier in life {
                story.key(KEYS[0], earlier);
            }
            let status = story.ledger.key(KEYS[0]).unwrap().status;
            story.key(KEYS[0], event);
            let tick = story.tick.0;
            let lawful = matches!(
                (status.as_str(), event.as_str()),
                ("active", "disabled" | "retired" | "destroyed")
                    | ("disabled", "enabled" | "retired" | "destroyed")
                    | ("retired", "destroyed")
            );
            let fault = Fault::KeyEventOutOfPlace { event, status: Some(status) };
            let expected = if lawful { vec![] } else { vec![(tick, fault)] };
            refused += expected.len();
            assert_eq!(story.finish(), expected, "{event} after {status}");
        }
    }
    assert_eq!(refused, 13);
}

#[test]
fn a_key_must_be_added_before_anything_happens_to_it() {
    for &event in KeyEvent::ALL {
        let mut story = Story::new();
        story.key(KeyId(99), event);
        let fault = Fault::KeyEventOutOfPlace { event, status: None };
        let expected = if event == KeyEvent::Added { vec![] } else { vec![(4, fault)] };
        assert_eq!(story.finish(), expected);
    }
}

#[test]
fn a_key_in_use_is_not_destroyed() {
    let mut story = Story::new();
    let taken = story.check_out(KEYS[0], BATCH);
    story.key(KEYS[0], KeyEvent::Destroyed);
    story.end(taken, KEYS[0], BATCH, Outcome::Stored);
    assert_eq!(story.ledger.free_keys().collect::<Vec<_>>(), [KEYS[1], KEYS[2]]);
    assert_eq!(story.finish(), [(5, Fault::DestroyedInUse { since: taken })]);
}

#[test]
fn a_key_stopped_while_in_use_finishes_but_is_not_free_until_enabled() {
    for event in [KeyEvent::Disabled, KeyEvent::Retired] {
        let mut story = Story::new();
        let taken = story.check_out(KEYS[0], BATCH);
        story.key(KEYS[0], event);
        story.end(taken, KEYS[0], BATCH, Outcome::Stored);
        assert_eq!(story.ledger.free_keys().collect::<Vec<_>>(), [KEYS[1], KEYS[2]]);
        assert_eq!(story.ledger.key(KEYS[0]).unwrap().last_tick, Tick(6));
        if event == KeyEvent::Disabled {
            story.key(KEYS[0], KeyEvent::Enabled);
            assert_eq!(story.ledger.free_keys().last(), Some(KEYS[0]));
        }
        assert_eq!(story.finish(), []);
    }
}

#[test]
fn a_violation_says_where_and_what_for_people_and_as_flat_json() {
    let mut story = Story::new();
    story.check_out(KEYS[1], BATCH);
    let violation = &story.found[0];
    assert_eq!(
        violation.to_string(),
        "R4 broken at tick 4, key 2, batch 7: expected key 1, last used at tick 0, \
         found one last used at tick 0"
    );
    assert_eq!(
        serde_json::to_value(violation).unwrap(),
        serde_json::json!({
            "rule": "R4", "tick": 4, "key": 2, "batch": 7,
            "message": "expected key 1, last used at tick 0, found one last used at tick 0"
        })
    );
    let missing = &story.ledger.finish(Tick(9))[0];
    assert_eq!(
        missing.to_string(),
        "ticks broken at tick 5: expected one event at each tick, found none from here up to tick 9"
    );
    assert!(serde_json::to_value(missing).unwrap()["key"].is_null());
}

#[test]
fn every_rule_is_written_for_people_and_for_json() {
    let rules = [Rule::Ticks, Rule::R1, Rule::R2, Rule::R3, Rule::R4, Rule::KeyEvents];
    assert_eq!(rules.map(|rule| rule.to_string()), ["ticks", "R1", "R2", "R3", "R4", "key events"]);
    assert_eq!(
        serde_json::to_value(rules).unwrap(),
        serde_json::json!(["ticks", "R1", "R2", "R3", "R4", "key_events"])
    );
}
