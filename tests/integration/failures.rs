//! What cannot be signed, or not with that key: quarantine, a wrong key-encryption key, damage.

use crate::support::Site;
use crate::support::judge::{judge, judge_data, judge_with_unsigned};

on_both_databases! {
    a_batch_that_cannot_be_signed_ends_in_quarantine_and_holds_nobody_up,
    a_wrong_key_encryption_key_touches_no_key,
    a_damaged_key_is_disabled_and_the_others_sign_on,
}

/// A batch that claims a record more than its range holds, as if one had vanished.
fn a_batch_that_cannot_be_signed_ends_in_quarantine_and_holds_nobody_up(site: Site) {
    let site = site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "3").with(5, 1_000);
    site.database.execute(
        "INSERT INTO batches (ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
         SELECT 1, first.inserted_xid, first.id, last.inserted_xid, last.id, 101, 'retry'
         FROM records first, records last WHERE first.id = 1 AND last.id = 100;
         UPDATE rings SET cursor_xid = (SELECT high_xid FROM batches),
                          cursor_id = (SELECT high_id FROM batches)",
    );
    let ended = site.run(&["run", "--batch-size", "100"]).expect_code(3);
    let ended = ended
        .expect_stdout("signed 900 records in 9 batches")
        .expect_stdout("101 records in quarantine: `chancery status` and the log say more")
        .expect_stdout("every other record of ring default in ")
        .expect_stderr("its range holds 100 records, it was made with 101");
    assert!(!ended.stdout.contains("no record of ring"), "{ended}");
    let told = ended.stderr.matches("quarantined a batch that failed too often").count();
    assert_eq!(told, 1, "{ended}");
    let quarantined = site.database.rows(
        "SELECT attempts || ' ' || failure AS value FROM batches WHERE state = 'quarantined'",
    );
    assert_eq!(quarantined, ["3 its range holds 100 records, it was made with 101"]);
    judge_with_unsigned(&site, 1_000, 100);
}

fn a_wrong_key_encryption_key_touches_no_key(site: Site) {
    let site = site.with(3, 100);
    let other = site.path("other-kek").display().to_string();
    site.run(&["kek", "generate", "--out", &other]).expect_code(0);
    let site = site.set("CHANCERY_KEYS__KEK_FILE", &other);
    let ended = site.run(&["run"]).expect_code(2);
    ended.expect_stderr("is not among those that sealed this database's keys");
    let states = site.database.rows("SELECT DISTINCT status AS value FROM keys");
    assert_eq!(states, ["active"]);
    assert_eq!(site.database.number("SELECT tick AS value FROM rings"), 3);
    judge_data(&site.database, 100, 100);

    let right = site.path("kek").display().to_string();
    let site = site.set("CHANCERY_KEYS__KEK_FILE", &right);
    site.run(&["run"]).expect_code(0);
    judge(&site, 100);
}

fn a_damaged_key_is_disabled_and_the_others_sign_on(site: Site) {
    let site = site.with(5, 1_000);
    // Another key's ciphertext: right in its form, wrong for its owner.
    site.database.execute(
        "UPDATE keys SET sealed_private_key =
                (SELECT o.sealed_private_key FROM keys o WHERE o.id = keys.id + 1)
         WHERE id = 2",
    );
    let ended = site.run(&["run", "--batch-size", "50"]).expect_code(0);
    ended.expect_stdout("with 4 keys").expect_stderr("disabled a damaged key");
    let disabled = site
        .database
        .rows("SELECT id || ' ' || status_reason AS value FROM keys WHERE status = 'disabled'");
    let [disabled] = disabled.as_slice() else { panic!("{disabled:?}") };
    assert!(disabled.starts_with("2 ") && disabled.len() > 10, "{disabled}");
    let uses = "SELECT count(*) AS value FROM key_uses WHERE key_id = 2";
    assert_eq!(site.database.number(uses), 0);
    judge(&site, 1_000);
}
