//! Batch sizes, key counts and thread counts at their edges, and rings with nothing in them.

use crate::support::Site;
use crate::support::judge::{judge, judge_data};

on_both_databases! {
    a_batch_may_be_one_record,
    a_batch_size_need_not_divide_the_records,
    the_last_batch_takes_what_is_left,
    a_batch_may_be_larger_than_all_records,
    one_key_signs_everything,
    there_may_be_more_signers_than_keys,
    an_empty_database_has_nothing_to_sign,
    keys_without_records_have_nothing_to_sign,
    records_without_a_key_fail_with_a_hint,
    records_whose_keys_are_all_disabled_fail_with_a_hint,
}

fn a_batch_may_be_one_record(site: Site) {
    let site = site.with(20, 2_000);
    let ended = site.run(&["run", "--batch-size", "1"]).expect_code(0);
    ended.expect_stdout("signed 2,000 records in 2,000 batches with 20 keys");
    judge(&site, 2_000);
}

fn a_batch_size_need_not_divide_the_records(site: Site) {
    let site = site.with(10, 2_000);
    let ended = site.run(&["run", "--batch-size", "7"]).expect_code(0);
    ended.expect_stdout("signed 2,000 records in 286 batches with 10 keys");
    judge(&site, 2_000);
}

fn the_last_batch_takes_what_is_left(site: Site) {
    let site = site.with(5, 1_001);
    site.run(&["run", "--batch-size", "500"]).expect_code(0);
    assert_eq!(batch_sizes(&site), ["500", "500", "1"]);
    judge(&site, 1_001);
}

fn a_batch_may_be_larger_than_all_records(site: Site) {
    let site = site.with(5, 300);
    let ended = site.run(&["run", "--batch-size", "1000000"]).expect_code(0);
    ended.expect_stdout("signed 300 records in 1 batch with 1 key in");
    assert_eq!(batch_sizes(&site), ["300"]);
    judge(&site, 300);
}

fn one_key_signs_everything(site: Site) {
    let site = site.with(1, 2_000);
    let ended = site.run(&["run", "--batch-size", "100"]).expect_code(0);
    ended.expect_stdout("signed 2,000 records in 20 batches with 1 key in");
    judge(&site, 2_000);
}

fn there_may_be_more_signers_than_keys(site: Site) {
    let site = site.with(3, 3_000);
    let ended = site.run(&["run", "--signers", "8", "--batch-size", "50"]).expect_code(0);
    ended.expect_stdout("signed 3,000 records in 60 batches with 3 keys in");
    judge(&site, 3_000);
}

fn an_empty_database_has_nothing_to_sign(site: Site) {
    let site = site.with(0, 0);
    site.run(&["run"]).expect_code(0).expect_stdout("nothing to sign in ");
}

fn keys_without_records_have_nothing_to_sign(site: Site) {
    let site = site.with(3, 0);
    let ended = site.run(&["run"]).expect_code(0);
    ended.expect_stdout("signed 0 records in 0 batches with 0 keys");
    judge_data(&site.database, 0, 0);
}

fn records_without_a_key_fail_with_a_hint(site: Site) {
    let site = site.with(0, 10);
    let ended = site.run(&["run"]).expect_code(1);
    ended.expect_stderr(
        "error: ring default has 10 unsigned records and no key: \
         `chancery keys generate --count 100` makes some",
    );
    judge_data(&site.database, 10, 10);
}

fn records_whose_keys_are_all_disabled_fail_with_a_hint(site: Site) {
    let site = site.with(2, 10);
    for kid in site.database.rows("SELECT kid AS value FROM keys") {
        // An id may begin with a hyphen.
        site.run(&["keys", "disable", "--", &kid]).expect_code(0);
    }
    let ended = site.run(&["run"]).expect_code(1);
    ended.expect_stderr(
        "error: ring default has 10 unsigned records and no active key: \
         enable one, or `chancery keys generate`",
    );
    judge_data(&site.database, 10, 10);
}

fn batch_sizes(site: &Site) -> Vec<String> {
    site.database.rows("SELECT record_count AS value FROM batches ORDER BY id")
}
