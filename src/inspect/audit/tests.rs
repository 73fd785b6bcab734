//! Audit on healthy databases, idle and in use, and on databases broken in every way.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::inspect::testbed::Testbed;
use crate::ledger::Rule;
use crate::types::{BatchId, KeyEvent, KeyId, Kid, RecordId};

/// Four keys, and 40 records in batches of 5. Batch 1 was open while key 2 signed batches 2 and 5,
/// key 3 batch 3 and key 4 batch 4; batch 6 waits to be retried, 7 is open, 8 is quarantined.
///
/// Ticks: 1-4 keys added; 5 batch 1; 6-7, 8-9, 10-11, 12-13 batches 2 to 5; 14 batch 1 stored;
/// 15-17 batches 6 to 8 checked out with keys 3, 4, 2; 18, 19 batches 6, 8 given up; 20 key 1
/// disabled.
fn bed() -> Testbed {
    let bed = Testbed::new(4, 40, 5);
    let long = bed.check_out(1);
    for _ in 2..=5 {
        bed.sign(&bed.check_out(1));
    }
    bed.sign(&long);
    let last = bed.check_out(3);
    bed.give_up(&last[0], None);
    bed.give_up(&last[2], Some("it failed"));
    assert!(bed.store.change_key(&kid(&bed, 1), KeyEvent::Disabled, "test", None).unwrap());
    bed
}

fn kid(bed: &Testbed, key: i64) -> Kid {
    let ring = bed.store.ring("default").unwrap().id;
    let mut keys = bed.store.keys(ring).unwrap().into_iter();
    keys.find(|row| row.id == KeyId(key)).unwrap().kid
}

fn run_by(bed: &Testbed, page: u32) -> AuditReport {
    audit_by(Reader { store: &*bed.store, page, progress: &|_| {} }).unwrap()
}

/// What an audit finds after the SQL has run, the same with pages of any size.
fn found_after(sql: &str) -> Vec<Finding> {
    let bed = bed();
    bed.tamper(sql);
    let report = audit(&*bed.store, &|_| {}).unwrap();
    assert_eq!(run_by(&bed, 3), report);
    assert_eq!(report.violation_count, report.violations.len() as u64);
    for (rule, verdict) in &report.rules {
        let count = report.violations.iter().filter(|finding| finding.rule == *rule).count();
        assert_eq!(verdict.violations, count as u64);
        assert_eq!(verdict.verdict == Verdict::Broken, count > 0);
    }
    report.violations
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Tick(i64),
    Key(i64),
    Batch(i64),
    Record(i64),
}
use About::{Batch, Key, Record, Tick as At};

fn is_about(finding: &Finding, about: About) -> bool {
    match about {
        At(tick) => finding.tick == Some(Tick(tick)),
        Key(key) => finding.key == Some(KeyId(key)),
        Batch(batch) => finding.batch == Some(BatchId(batch)),
        Record(record) => finding.record == Some(RecordId(record)),
    }
}

/// Asserts that the findings are these, in this order: each its rule, what it is about, and a part
/// of its message.
fn assert_found(sql: &str, expected: &[(Rule, &[About], &str)]) {
    let found = found_after(sql);
    let list: Vec<_> = found.iter().map(|finding| format!("\n{finding:?}")).collect();
    assert_eq!(found.len(), expected.len(), "after {sql}: {}", list.concat());
    for (finding, (rule, about, message)) in found.iter().zip(expected) {
        assert_eq!(finding.rule, *rule, "after {sql}: {}", list.concat());
        assert!(
            about.iter().all(|about| is_about(finding, *about)),
            "after {sql}: not {about:?}: {finding:?}"
        );
        assert!(finding.message.contains(message), "after {sql}: {message:?}: {finding:?}");
    }
}

#[test]
fn a_healthy_database_keeps_every_rule() {
    for page in [1, 2, 3, 7, PAGE] {
        let report = run_by(&bed(), page);
        assert_eq!(report.violations, []);
        assert!(report.is_clean() && report.notes.is_empty());
        assert!(report.rules.values().all(|rule| rule.verdict == Verdict::Ok));
        assert_eq!(
            report.rings,
            [RingAudit {
                ring: "default".to_owned(),
                ticks: Tick(20),
                checkouts: 8,
                stored: 5,
                reclaimed: 0,
                abandoned: 2,
                key_events: 5,
                keys: 4,
                batches: 8,
                signatures: 25,
            }]
        );
    }
}

#[test]
fn each_step_is_told() {
    let told = RefCell::new(Vec::new());
    audit(&*bed().store, &|step| told.borrow_mut().push(step)).unwrap();
    let ring = || "default".to_owned();
    let history = || AuditStep::History { ring: ring(), tick: Tick(20), of: Tick(20) };
    let steps = [
        history(),
        AuditStep::Batches { read: 8 },
        AuditStep::Signatures { checked: 25 },
        history(),
        history(),
        AuditStep::Keys { ring: ring() },
        history(),
        AuditStep::AdminLog { checked: 2 },
    ];
    assert_eq!(*told.borrow(), steps);
}

#[test]
fn a_deleted_signature_is_found() {
    let sql = "DELETE FROM signatures WHERE record_id = 7";
    assert_found(sql, &[(Rule::R1, &[Batch(2), Record(6)], "expected 5 signatures, found 4")]);
    let sql = "DELETE FROM signatures WHERE batch_id = 2";
    assert_found(sql, &[(Rule::R1, &[Batch(2)], "expected 5 signatures, found 0")]);
}

#[test]
fn a_signature_in_the_wrong_batch_is_found() {
    assert_found(
        "UPDATE signatures SET batch_id = 3 WHERE record_id = 7",
        &[
            (Rule::R3, &[Record(7), Batch(3)], "in the batch's range"),
            (Rule::R1, &[Batch(2)], "expected 5 signatures, found 4"),
            (Rule::R1, &[Batch(3)], "expected 5 signatures, found 6"),
        ],
    );
    assert_found(
        "UPDATE signatures SET batch_id = 99 WHERE record_id = 7",
        &[
            (Rule::R1, &[Record(7), Batch(99)], "found none of that id"),
            (Rule::R1, &[Batch(2)], "expected 5 signatures, found 4"),
        ],
    );
}

#[test]
fn a_signature_of_an_unstored_batch_is_found() {
    for batch in [6, 7, 8] {
        let record = 5 * batch - 2;
        let sql = format!("INSERT INTO signatures VALUES ({record}, {batch}, zeroblob(64))");
        let expected: &[About] = &[Batch(batch), Record(record)];
        assert_found(&sql, &[(Rule::R1, expected, "expected a stored use")]);
    }
}

#[test]
fn a_second_signature_of_a_record_is_found() {
    assert_found(
        "CREATE TABLE copy AS SELECT * FROM signatures; DROP VIEW signed_records;
         DROP TABLE signatures; ALTER TABLE copy RENAME TO signatures;
         INSERT INTO signatures SELECT * FROM signatures WHERE record_id = 13",
        &[
            (Rule::R1, &[Record(13), Batch(3)], "one signature of the record, found two"),
            (Rule::R1, &[Batch(3)], "expected 5 signatures, found 6"),
        ],
    );
}

#[test]
fn a_record_that_is_gone_or_elsewhere_is_found() {
    let sql = "DELETE FROM records WHERE id = 7";
    assert_found(sql, &[(Rule::R1, &[Record(7), Batch(2)], "record, found none")]);
    let sql = "UPDATE records SET inserted_xid = 3 WHERE id = 7";
    assert_found(sql, &[(Rule::R3, &[Record(7), Batch(2)], "in the batch's range")]);
    let sql = "UPDATE records SET ring_id = 2 WHERE id = 7";
    assert_found(sql, &[(Rule::R3, &[Record(7), Batch(2)], "found one of ring 2")]);
}

#[test]
fn a_changed_batch_is_found() {
    let sql = "UPDATE batches SET record_count = 6 WHERE id = 2";
    assert_found(sql, &[(Rule::R1, &[Batch(2)], "expected 6 signatures, found 5")]);
    let sql = "UPDATE batches SET high_id = 8 WHERE id = 2";
    let outside = "in the batch's range";
    assert_found(sql, &[(Rule::R3, &[Record(9)], outside), (Rule::R3, &[Record(10)], outside)]);
}

#[test]
fn a_state_that_the_history_does_not_know_is_found() {
    for (batch, state, rule, message) in [
        (2, "retry", Rule::R1, "to be stored by the history, found it retry"),
        (2, "open", Rule::R1, "to be stored by the history, found it open"),
        (6, "open", Rule::R3, "to be retry or quarantined by the history, found it open"),
        (6, "stored", Rule::R1, "to be retry or quarantined by the history, found it stored"),
        (7, "retry", Rule::R3, "to be open by the history, found it retry"),
        (7, "quarantined", Rule::R3, "to be open by the history, found it quarantined"),
        (7, "stored", Rule::R1, "to be open by the history, found it stored"),
        (8, "open", Rule::R3, "to be retry or quarantined by the history, found it open"),
    ] {
        let sql = format!("UPDATE batches SET state = '{state}' WHERE id = {batch}");
        assert_found(&sql, &[(rule, &[Batch(batch)], message)]);
    }
}

#[test]
fn a_batch_that_is_gone_or_of_another_ring_is_found() {
    let no_batch = "found none of that id";
    let lost = |record: &'static [About]| (Rule::R1, record, no_batch);
    assert_found(
        "DELETE FROM batches WHERE id = 2",
        &[
            lost(&[Record(6), Batch(2)]),
            lost(&[Record(7), Batch(2)]),
            lost(&[Record(8), Batch(2)]),
            lost(&[Record(9), Batch(2)]),
            lost(&[Record(10), Batch(2)]),
            (Rule::R3, &[Batch(2)], no_batch),
        ],
    );
    let sql = "UPDATE batches SET ring_id = 9 WHERE id = 6";
    assert_found(
        sql,
        &[
            (Rule::R3, &[Batch(6)], "expected the batch's ring, found none"),
            (Rule::R3, &[Batch(6)], "found one of ring 9"),
        ],
    );
    assert_found(
        "INSERT INTO rings (id, name) VALUES (2, 'other');
         UPDATE batches SET ring_id = 2 WHERE id = 7",
        &[
            (Rule::R3, &[Batch(7)], "to be retry or quarantined by the history, found it open"),
            (Rule::R3, &[Batch(7)], "found one of ring other"),
        ],
    );
}

#[test]
fn a_changed_key_is_found_and_named() {
    let sql = "UPDATE keys SET last_tick = 3 WHERE id = 1";
    assert_found(sql, &[(Rule::R4, &[Key(1)], "expected last_tick 14 by the history, found 3")]);
    assert_eq!(found_after(sql)[0].kid, Some(kid(&bed(), 1)));
    let sql = "UPDATE keys SET status = 'active' WHERE id = 1";
    let message = "expected status disabled by the history, found active";
    assert_found(sql, &[(Rule::KeyEvents, &[Key(1)], message)]);
    let sql = "UPDATE keys SET status = 'destroyed' WHERE id = 4";
    let message = "expected status active by the history, found destroyed";
    assert_found(sql, &[(Rule::KeyEvents, &[Key(4)], message)]);
}

#[test]
fn a_key_without_events_and_events_without_a_key_are_found() {
    let sql = "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, status)
               VALUES (9, 1, 'k', 'Ed25519', zeroblob(32), 'active')";
    assert_found(sql, &[(Rule::KeyEvents, &[Key(9)], "found a key without one")]);
    let sql = "DELETE FROM keys WHERE id = 1";
    assert_found(sql, &[(Rule::KeyEvents, &[Key(1)], "to name keys of the ring")]);
}

#[test]
fn a_key_in_use_in_another_ring_is_found() {
    assert_found(
        "INSERT INTO rings (id, name, tick) VALUES (2, 'other', 1);
         INSERT INTO batches (id, ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
         VALUES (50, 2, 0, 100, 0, 100, 1, 'open');
         INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         VALUES (2, 1, 50, 3, 'n', '2030-01-01')",
        &[
            (Rule::R4, &[At(1), Key(3), Batch(50)], "never added"),
            (Rule::R2, &[Key(3)], "expected the key not in use by the history, found in use"),
            (Rule::KeyEvents, &[Key(3)], "to name keys of the ring"),
        ],
    );
}

#[test]
fn a_changed_outcome_is_found() {
    assert_found(
        "UPDATE key_uses SET outcome = 'reclaimed' WHERE batch_id = 2",
        &[
            (Rule::R1, &[Batch(2)], "expected a stored use of the batch's 5 signatures"),
            (Rule::R1, &[Batch(2)], "to be retry or quarantined by the history, found it stored"),
        ],
    );
    assert_found(
        "UPDATE key_uses SET outcome = 'stored' WHERE batch_id = 6",
        &[
            (Rule::R1, &[Batch(6)], "expected 5 signatures, found 0"),
            (Rule::R1, &[Batch(6)], "to be stored by the history, found it retry"),
        ],
    );
}

#[test]
fn a_missing_tick_is_found() {
    let gone = "none from here up to tick";
    assert_found(
        "DELETE FROM key_events WHERE tick = 20",
        &[
            (Rule::KeyEvents, &[Key(1)], "expected status active by the history, found disabled"),
            (Rule::Ticks, &[At(20)], gone),
        ],
    );
    assert_found(
        "DELETE FROM key_uses WHERE batch_id = 5",
        &[
            (Rule::Ticks, &[At(12)], gone),
            (Rule::R4, &[At(15), Key(3)], "expected key 2, last used at tick 7"),
            (Rule::R4, &[At(16), Key(4)], "expected key 2, last used at tick 7"),
            (Rule::R1, &[Batch(5)], "expected a stored use"),
            (Rule::R1, &[Batch(5)], "found it stored"),
        ],
    );
}

#[test]
fn a_tick_that_stands_twice_is_found() {
    assert_found(
        "UPDATE key_events SET tick = 19 WHERE tick = 20",
        &[
            (Rule::Ticks, &[At(19), Key(1)], "found a second"),
            (Rule::Ticks, &[At(20)], "none from here"),
        ],
    );
}

#[test]
fn a_clock_that_is_not_at_the_last_event_is_found() {
    let sql = "UPDATE rings SET tick = 30";
    assert_found(sql, &[(Rule::Ticks, &[At(21)], "none from here up to tick 30")]);
    let sql = "UPDATE rings SET tick = 15";
    assert_found(sql, &[(Rule::Ticks, &[At(20)], "no event after the ring's own tick 15")]);
}

#[test]
fn overlapping_uses_of_a_key_are_found() {
    // Batch 2 now ends where batch 1 ended, after the same key had signed batch 5.
    assert_found(
        "UPDATE key_uses SET end_tick = 99 WHERE fence = 6;
         UPDATE key_uses SET end_tick = 7 WHERE fence = 5;
         UPDATE key_uses SET end_tick = 14 WHERE fence = 6;",
        &[
            (Rule::R2, &[At(12), Key(2), Batch(5)], "in use since the checkout at tick 6"),
            (Rule::R4, &[At(15), Key(3)], "expected key 1, last used at tick 7"),
            (Rule::R4, &[At(16), Key(4)], "expected key 1, last used at tick 7"),
            (Rule::R4, &[At(17), Key(2)], "expected key 1, last used at tick 7"),
            (Rule::R4, &[Key(1)], "expected last_tick 7 by the history, found 14"),
        ],
    );
}

#[test]
fn a_key_used_out_of_turn_is_found() {
    assert_found(
        "UPDATE key_uses SET key_id = 3 WHERE fence = 12",
        &[
            (Rule::R4, &[At(12), Key(3), Batch(5)], "expected key 2, last used at tick 7"),
            (Rule::R4, &[At(15), Key(3), Batch(6)], ""),
            (Rule::R4, &[At(16), Key(4), Batch(7)], ""),
        ],
    );
}

#[test]
fn a_batch_stored_twice_is_found() {
    assert_found(
        "DROP INDEX key_uses_one_stored_per_batch;
         INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at, end_tick,
                               ended_at, outcome)
         VALUES (1, 21, 2, 3, 'n', '2030-01-01', 22, '2030-01-01', 'stored');
         UPDATE keys SET last_tick = 22 WHERE id = 3;
         UPDATE rings SET tick = 22;",
        &[
            (
                Rule::R1,
                &[At(21), Key(3), Batch(2)],
                "expected no checkout of a batch that is stored",
            ),
            (Rule::R1, &[At(22), Batch(2)], "one stored use of the batch"),
        ],
    );
}

#[test]
fn two_open_uses_of_a_batch_are_found() {
    assert_found(
        "DROP INDEX key_uses_one_open_per_batch;
         INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         VALUES (1, 21, 7, 3, 'n', '2030-01-01');
         UPDATE rings SET tick = 21;",
        &[(Rule::R3, &[At(21), Key(3), Batch(7)], "found one open since tick 16")],
    );
}

#[test]
fn a_report_lists_a_thousand_findings_and_counts_all() {
    let bed = Testbed::new(4, 3_000, 500);
    bed.sign_all();
    bed.tamper("DELETE FROM records WHERE id > 100");
    let report = audit(&*bed.store, &|_| {}).unwrap();
    assert_eq!(report.violation_count, 2_900);
    let listed: Vec<_> = report.violations.iter().filter_map(|finding| finding.record).collect();
    assert_eq!(listed, (101..=1_100).map(RecordId).collect::<Vec<_>>());
    assert_eq!(
        report.rules[&Rule::R1],
        RuleVerdict { verdict: Verdict::Broken, violations: 2_900 }
    );
}

#[test]
fn a_report_is_flat_json() {
    let bed = bed();
    bed.tamper("UPDATE keys SET last_tick = 3 WHERE id = 1");
    let json = serde_json::to_value(audit(&*bed.store, &|_| {}).unwrap()).unwrap();
    assert_eq!(json["rules"]["R1"]["verdict"], "ok");
    assert_eq!(json["rules"]["R4"]["verdict"], "broken");
    assert_eq!(json["rings"][0]["ticks"], 20);
    assert_eq!(
        json["violations"],
        serde_json::json!([{
            "rule": "R4", "ring": "default", "tick": null, "key": 1, "kid": kid(&bed, 1),
            "batch": null, "record": null,
            "message": "expected last_tick 14 by the history, found 3",
        }])
    );
}

#[test]
fn work_between_any_two_pages_of_an_audit_is_no_breach() {
    for page in [1, 2, 5, PAGE] {
        let bed = Testbed::new(3, 300, 3);
        bed.sign(&bed.check_out(2));
        let held = RefCell::new(bed.check_out(1));
        let start = bed.store.ring("default").unwrap().tick;
        let steps = Cell::new(0);
        let work = |_| {
            let step = steps.get();
            steps.set(step + 1);
            // Stops at some time, or an audit with tiny pages would never catch up.
            if step > 60 {
                return;
            }
            match step % 5 {
                0 => bed.sign(&held.take()),
                1 => *held.borrow_mut() = bed.check_out(1),
                2 => held.take().iter().for_each(|batch| bed.give_up(batch, None)),
                3 => *held.borrow_mut() = bed.check_out(2),
                _ => bed.give_up(&held.borrow_mut().remove(0), Some("it failed")),
            }
        };
        let report = audit_by(Reader { store: &*bed.store, page, progress: &work }).unwrap();
        assert!(steps.get() > 5, "{steps:?}");
        assert_eq!(report.violations, [], "with pages of {page}");
        assert!(report.notes.is_empty());
        assert!(report.rings[0].ticks > start);
    }
}

#[test]
fn a_breach_is_found_in_a_database_that_is_in_use() {
    let bed = Testbed::new(3, 300, 3);
    bed.sign(&bed.check_out(2));
    bed.tamper("DELETE FROM signatures WHERE record_id = 1; UPDATE keys SET last_tick = 1");
    let held = RefCell::new(bed.check_out(1));
    let work = |_| {
        bed.sign(&held.take());
        *held.borrow_mut() = bed.check_out(1);
    };
    let reader = Reader { store: &*bed.store, page: PAGE, progress: &work };
    let report = audit_by(reader).unwrap();
    assert!(report.violations.iter().any(|finding| {
        finding.rule == Rule::R1 && finding.message == "expected 3 signatures, found 2"
    }));
}

#[test]
fn keys_that_never_stand_still_are_noted_and_not_judged() {
    let bed = Testbed::new(1, 300, 1);
    let work = |step| {
        if matches!(step, AuditStep::Keys { .. }) {
            bed.sign(&bed.check_out(1));
        }
    };
    let report = audit(&*bed.store, &work).unwrap();
    assert_eq!(report.violations, []);
    assert_eq!(report.notes.len(), 1);
    assert!(report.notes[0].contains("1 keys were in use"), "{:?}", report.notes);
}

#[test]
fn a_database_that_other_threads_sign_keeps_every_rule() {
    let beds = [(Testbed::new(5, 4_000, 10), 4_000), (Testbed::on_postgres(5, 12_000, 10), 12_000)];
    for (bed, records) in beds {
        let at_work = AtomicUsize::new(2);
        let mut audits_meanwhile = 0;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    bed.sign_all();
                    at_work.fetch_sub(1, Ordering::AcqRel);
                });
            }
            while at_work.load(Ordering::Acquire) > 0 {
                assert_eq!(run_by(&bed, 50).violations, []);
                audits_meanwhile += 1;
            }
        });
        assert!(audits_meanwhile > 0);
        let report = run_by(&bed, PAGE);
        assert_eq!(report.violations, []);
        assert_eq!(report.rings[0].signatures, records);
    }
}

#[test]
fn what_is_broken_on_postgresql_is_found_as_well() {
    let bed = Testbed::on_postgres(2, 20, 5);
    bed.sign_all();
    bed.tamper(
        "DELETE FROM signatures WHERE record_id = 7; UPDATE rings SET tick = tick + 1;
         UPDATE keys SET last_tick = 1 WHERE id = 1",
    );
    let report = run_by(&bed, PAGE);
    let rules: Vec<Rule> = report.violations.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::R1, Rule::R4, Rule::Ticks]);
    assert!(is_about(&report.violations[0], Batch(2)) && is_about(&report.violations[1], Key(1)));
}
