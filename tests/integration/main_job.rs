//! The job itself: a hundred thousand records, a hundred keys.

use crate::support::Site;
use crate::support::judge::judge;

on_both_databases! {
    a_hundred_thousand_records_are_signed_with_a_hundred_keys,
}

fn a_hundred_thousand_records_are_signed_with_a_hundred_keys(site: Site) {
    let site = site.with(100, 100_000);
    let ended = site
        .run(&["run"])
        .expect_code(0)
        .expect_stdout("signed 100,000 records in 200 batches with 100 keys in ")
        .expect_stdout("no record of ring default in ");
    assert_eq!(ended.stdout.lines().count(), 2, "{ended}");
    judge(&site, 100_000);
    site.run(&["run"]).expect_code(0).expect_stdout("signed 0 records in 0 batches with 0 keys");
}
