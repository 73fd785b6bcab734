//! What the database itself refuses, whoever asks.

use super::actions::{
    RING, add_keys, check_out, check_out_one, give_up, insert, sign_all, sign_and_store,
};
use super::fixture::{Fixture, Pg};
use super::judge::{assert_lawful, assert_signed};
use super::on_both;
use crate::db::{ClaimedBatch, Store, StoreOutcome};

on_both! {
    a_record_has_at_most_one_signature,
    a_key_has_at_most_one_open_use,
    a_use_of_a_key_begins_above_the_end_of_its_last_one,
    a_batch_has_at_most_one_open_and_one_stored_use,
    a_use_is_of_a_key_and_a_batch_that_there_are,
    signatures_and_key_events_are_only_appended,
    a_record_s_id_is_above_zero_so_that_it_keeps_no_other_record_out,
    a_record_stays_as_it_is_and_only_its_place_rises,
    a_range_and_a_stored_batch_never_change,
    a_closed_use_and_the_origin_of_an_open_one_never_change,
    a_ring_never_goes_back,
    only_words_of_the_closed_lists_are_taken,
    malformed_rows_are_refused,
}

/// A batch that is stored, one in hand, and one that waits for another attempt, of ten records and
/// three keys: key 1 is in use, 2 and 3 are free.
struct Scene {
    stored: ClaimedBatch,
    open: ClaimedBatch,
    retry: ClaimedBatch,
}

impl Scene {
    fn set<F: Fixture>(f: &F, store: &dyn Store) -> Scene {
        add_keys(store, RING, 3);
        insert(f, store, RING, 10);
        let mut batches = check_out(store, RING, 3, 3).batches.into_iter();
        let (open, stored, retry) =
            (batches.next().unwrap(), batches.next().unwrap(), batches.next().unwrap());
        assert_eq!(sign_and_store(store, &stored), StoreOutcome::Stored);
        store.give_up(RING, &[give_up(&retry, None)]).unwrap();
        assert_lawful(f, store);
        Scene { stored, open, retry }
    }

    /// After all that was refused, the ring is as it was and can be signed to its end.
    fn is_unharmed<F: Fixture>(&self, f: &F, store: &dyn Store) {
        assert_lawful(f, store);
        assert_eq!(sign_and_store(store, &self.open), StoreOutcome::Stored);
        sign_all(f, store, RING, 3);
        assert_signed(f, store, RING, 10);
    }
}

/// Asserts that a statement is refused, and for the reason that one of the phrases gives.
fn refuses<F: Fixture>(f: &F, statement: &str, phrases: &[&str]) {
    let message = f.refused(statement);
    assert!(
        phrases.iter().any(|phrase| message.contains(phrase)),
        "{statement}: expected one of {phrases:?}, got {message}"
    );
}

/// A statement that opens a use past the store.
fn open_use<F: Fixture>(fence: i64, batch: i64, key: i64) -> String {
    format!(
        "INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at)
         VALUES (1, {fence}, {batch}, {key}, 'elsewhere', {})",
        F::LONG_AGO
    )
}

fn a_record_has_at_most_one_signature<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let again = "INSERT INTO signatures (record_id, batch_id, signature)
                 SELECT record_id, batch_id, signature FROM signatures WHERE record_id =
                     (SELECT min(record_id) FROM signatures)";
    refuses(f, again, &["signatures_pkey", "UNIQUE constraint failed: signatures.record_id"]);
    scene.is_unharmed(f, &*store);
}

fn a_key_has_at_most_one_open_use<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let statement = open_use::<F>(1000, scene.retry.key_use.batch.0, scene.open.key_use.key.0);
    refuses(
        f,
        &statement,
        &["key_uses_one_open_per_key", "UNIQUE constraint failed: key_uses.key_id"],
    );
    scene.is_unharmed(f, &*store);
}

fn a_use_of_a_key_begins_above_the_end_of_its_last_one<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let key = scene.stored.key_use.key.0;
    let end = f.number(&format!("SELECT last_tick AS value FROM keys WHERE id = {key}"));
    let reasons = ["was in use until tick", "above every end of its key"];
    let statement = open_use::<F>(end, scene.retry.key_use.batch.0, key);
    refuses(f, &statement, &reasons);
    let statement = open_use::<F>(1, scene.retry.key_use.batch.0, key);
    refuses(f, &statement, &reasons);
    // Nor may a use be written as one that is over already.
    let closed = format!(
        "INSERT INTO key_uses (ring_id, fence, batch_id, key_id, node, expires_at, end_tick, ended_at, outcome)
         VALUES (1, 1000, {}, {key}, 'elsewhere', {at}, 1001, {at}, 'reclaimed')",
        scene.retry.key_use.batch,
        at = F::LONG_AGO
    );
    refuses(f, &closed, &["a use begins open"]);
    scene.is_unharmed(f, &*store);
}

fn a_batch_has_at_most_one_open_and_one_stored_use<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let free_key = scene.retry.key_use.key.0;
    let statement = open_use::<F>(1000, scene.open.key_use.batch.0, free_key);
    let one_open = ["key_uses_one_open_per_batch", "UNIQUE constraint failed: key_uses.batch_id"];
    refuses(f, &statement, &one_open);
    let statement = format!(
        "BEGIN; {};
         UPDATE key_uses SET end_tick = 1001, ended_at = {}, outcome = 'stored' WHERE fence = 1000;
         COMMIT",
        open_use::<F>(1000, scene.stored.key_use.batch.0, free_key),
        F::LONG_AGO
    );
    let one_stored =
        ["key_uses_one_stored_per_batch", "UNIQUE constraint failed: key_uses.batch_id"];
    refuses(f, &statement, &one_stored);
    scene.is_unharmed(f, &*store);
}

fn signatures_and_key_events_are_only_appended<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    for (table, column) in [("signatures", "signature"), ("key_events", "actor")] {
        let reason = ["its rows are never changed or removed"];
        refuses(f, &format!("UPDATE {table} SET {column} = {column}"), &reason);
        refuses(f, &format!("DELETE FROM {table}"), &reason);
    }
    scene.is_unharmed(f, &*store);
}

fn a_record_s_id_is_above_zero_so_that_it_keeps_no_other_record_out<F: Fixture>(f: &F) {
    let store = f.open("a");
    for id in [-1, 0, i64::MIN] {
        let statement =
            format!("INSERT INTO records (id, ring_id, payload) VALUES ({id}, 1, {})", F::PAYLOAD);
        refuses(f, &statement, &["records_id_check", "CHECK constraint failed: id > 0"]);
    }
    add_keys(&*store, RING, 1);
    insert(f, &*store, RING, 2);
    sign_all(f, &*store, RING, 2);
    assert_signed(f, &*store, RING, 2);
}

fn a_record_stays_as_it_is_and_only_its_place_rises<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    refuses(f, "DELETE FROM records", &["its rows are never changed or removed"]);
    for change in [
        "id = id + 1000",
        "ring_id = ring_id + 1",
        "payload = (SELECT payload FROM records ORDER BY id DESC LIMIT 1)",
    ] {
        let statement =
            format!("UPDATE records SET {change} WHERE id = (SELECT min(id) FROM records)");
        refuses(f, &statement, &["id, ring_id and payload never change"]);
    }
    refuses(f, "UPDATE records SET inserted_xid = inserted_xid - 1", &["inserted_xid only rises"]);

    f.run("INSERT INTO records (ring_id, payload) SELECT 2, payload FROM records WHERE id = 1");
    f.run("UPDATE records SET inserted_xid = inserted_xid + 1 WHERE ring_id = 2");
    assert_eq!(f.number("SELECT count(*) AS value FROM records WHERE ring_id = 2"), 1);
    scene.is_unharmed(f, &*store);
}

fn a_range_and_a_stored_batch_never_change<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let (open, stored) = (scene.open.key_use.batch, scene.stored.key_use.batch);
    let reason = ["range never changes, and a stored batch not at all"];
    refuses(f, "DELETE FROM batches", &["its rows are never changed or removed"]);
    for column in ["id", "ring_id", "low_xid", "low_id", "high_xid", "high_id", "record_count"] {
        refuses(
            f,
            &format!("UPDATE batches SET {column} = {column} + 1 WHERE id = {open}"),
            &reason,
        );
    }
    for change in ["state = 'retry', stored_at = NULL", "attempts = 3", "failure = 'x'"] {
        refuses(f, &format!("UPDATE batches SET {change} WHERE id = {stored}"), &reason);
    }
    scene.is_unharmed(f, &*store);
}

fn a_closed_use_and_the_origin_of_an_open_one_never_change<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    refuses(f, "DELETE FROM key_uses", &["its rows are never changed or removed"]);
    let closed = ["a closed use never changes"];
    for use_ in [scene.stored.key_use, scene.retry.key_use] {
        for change in [
            "outcome = 'stored'",
            "end_tick = end_tick + 1",
            "end_tick = NULL, ended_at = NULL, outcome = NULL",
        ] {
            refuses(
                f,
                &format!("UPDATE key_uses SET {change} WHERE fence = {}", use_.fence),
                &closed,
            );
        }
    }
    let origin = ["only its lease and its end may change", "only lease and end"];
    for change in ["ring_id = 2", "fence = 1000", "batch_id = 3", "key_id = 3", "node = 'b'"] {
        let fence = scene.open.key_use.fence;
        refuses(f, &format!("UPDATE key_uses SET {change} WHERE fence = {fence}"), &origin);
    }
    let half =
        format!("UPDATE key_uses SET end_tick = 1000 WHERE fence = {}", scene.open.key_use.fence);
    refuses(f, &half, &["check constraint", "CHECK constraint"]);
    scene.is_unharmed(f, &*store);
}

fn a_ring_never_goes_back<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    for change in
        ["id = 7", "tick = tick - 1", "cursor_id = cursor_id - 1", "cursor_xid = cursor_xid - 1"]
    {
        refuses(
            f,
            &format!("UPDATE rings SET {change}"),
            &["id never changes, tick and cursor only rise"],
        );
    }
    scene.is_unharmed(f, &*store);
}

fn only_words_of_the_closed_lists_are_taken<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let check = ["check constraint", "CHECK constraint"];
    refuses(f, "UPDATE keys SET status = 'lost'", &check);
    refuses(f, "UPDATE keys SET algorithm = 'RSA'", &check);
    refuses(
        f,
        &format!("UPDATE batches SET state = 'lost' WHERE id = {}", scene.open.key_use.batch),
        &check,
    );
    let outcome = format!(
        "UPDATE key_uses SET end_tick = 1000, ended_at = {}, outcome = 'lost' WHERE fence = {}",
        F::LONG_AGO,
        scene.open.key_use.fence
    );
    refuses(f, &outcome, &check);
    let event = "INSERT INTO key_events (ring_id, tick, key_id, event, actor) VALUES (1, 1000, 1, 'lost', 'x')";
    refuses(f, event, &check);
    scene.is_unharmed(f, &*store);
}

fn malformed_rows_are_refused<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let check = ["check constraint", "CHECK constraint"];
    refuses(f, "UPDATE keys SET status = 'destroyed'", &check);
    refuses(f, "UPDATE keys SET public_key = sealed_private_key", &check);
    refuses(f, "INSERT INTO signatures SELECT 9, 1, public_key FROM keys WHERE id = 1", &check);
    refuses(
        f,
        "INSERT INTO records (ring_id, external_id, payload) SELECT 1, '', payload FROM records WHERE id = 1",
        &check,
    );
    let open = scene.open.key_use.batch;
    refuses(f, &format!("UPDATE batches SET state = 'stored' WHERE id = {open}"), &check);
    refuses(f, &format!("UPDATE batches SET state = 'quarantined' WHERE id = {open}"), &check);
    refuses(f, "UPDATE keys SET kid = 'kid-1'", &["unique constraint", "UNIQUE constraint"]);
    refuses(
        f,
        "INSERT INTO keys (ring_id, kid, algorithm, public_key, status) SELECT 99, 'k', algorithm, public_key, status FROM keys WHERE id = 1",
        &["foreign key constraint", "FOREIGN KEY constraint"],
    );
    f.run("INSERT INTO records (ring_id, external_id, payload) SELECT 2, 'x', payload FROM records WHERE id = 1");
    refuses(
        f,
        "INSERT INTO records (ring_id, external_id, payload) SELECT 2, 'x', payload FROM records WHERE id = 1",
        &["records_external_id", "records.ring_id, records.external_id"],
    );
    scene.is_unharmed(f, &*store);
}

fn a_use_is_of_a_key_and_a_batch_that_there_are<F: Fixture>(f: &F) {
    let store = f.open("a");
    let scene = Scene::set(f, &*store);
    let retry = scene.retry.key_use;
    let foreign_key = "FOREIGN KEY constraint failed";
    refuses(f, &open_use::<F>(1000, retry.batch.0, 999), &["ring 1 has no key 999", foreign_key]);
    refuses(f, &open_use::<F>(1000, 999, retry.key.0), &["ring 1 has no batch 999", foreign_key]);
    scene.is_unharmed(f, &*store);
}

#[test]
fn a_use_is_of_its_own_ring_and_each_of_a_statement_is_judged_on_postgresql() {
    let f = Pg::new();
    let store = f.open("a");
    let scene = Scene::set(&f, &*store);
    let retry = scene.retry.key_use;
    f.run("INSERT INTO rings (id, name) VALUES (77, 'other')");
    f.run(
        "INSERT INTO keys (id, ring_id, kid, algorithm, public_key, status)
         SELECT 770, 77, 'other', algorithm, public_key, 'active' FROM keys WHERE id = 1",
    );
    refuses(&f, &open_use::<Pg>(1000, retry.batch.0, 770), &["ring 1 has no key 770"]);
    let of_other_ring = open_use::<Pg>(1000, retry.batch.0, 770).replace("(1, ", "(77, ");
    refuses(&f, &of_other_ring, &["ring 77 has no batch"]);
    let second = "(1, 1001, 999, 2, 'elsewhere', now()), (1, ";
    let good_and_bad = open_use::<Pg>(1000, retry.batch.0, retry.key.0).replace("(1, ", second);
    refuses(&f, &good_and_bad, &["ring 1 has no batch 999"]);
    f.run("DELETE FROM keys WHERE id = 770; DELETE FROM rings WHERE id = 77");
    scene.is_unharmed(&f, &*store);
}

#[test]
fn truncate_is_refused_even_to_the_owner_on_postgresql() {
    let f = Pg::new();
    let store = f.open("a");
    let scene = Scene::set(&f, &*store);
    for table in ["records", "batches", "key_uses", "key_events", "signatures"] {
        let reason = format!("TRUNCATE on {table} is refused");
        refuses(&f, &format!("TRUNCATE {table} CASCADE"), &[&reason]);
    }
    for table in ["keys", "rings"] {
        let reason = "TRUNCATE on key_events is refused";
        refuses(
            &f,
            &format!("TRUNCATE {table} CASCADE"),
            &[reason, "TRUNCATE on batches is refused"],
        );
    }
    scene.is_unharmed(&f, &*store);
}

#[test]
fn a_plain_insert_takes_the_transaction_s_own_place_on_postgresql() {
    let f = Pg::new();
    let mut raw = f.session();
    raw.run("BEGIN; INSERT INTO records (ring_id, payload) VALUES (1, 'a'); SAVEPOINT s");
    raw.run("INSERT INTO records (ring_id, payload) VALUES (1, 'b')");
    let own = "SELECT count(*) AS value FROM records
               WHERE inserted_xid = pg_current_xact_id()::TEXT::BIGINT + chancery_xid_offset()";
    assert_eq!(raw.number(own), 2);
    raw.run("COMMIT");
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    f.settle();
    assert_eq!(sign_and_store(&*store, &check_out_one(&*store, RING, 5)), StoreOutcome::Stored);
    assert_signed(&f, &*store, RING, 2);
}
