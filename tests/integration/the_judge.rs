//! The judge of the other themes finds what it is there to find.

use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::SimpleConnection;

use crate::support::Site;
use crate::support::database::Database;
use crate::support::judge::judge_data;

/// A change that no program of ours could make, and what the judge says to it.
const CHANGES: [(&str, &str); 10] = [
    ("DELETE FROM signatures WHERE record_id = 5", "signatures"),
    ("UPDATE signatures SET batch_id = 2 WHERE record_id = 1", "outside their batch's ring"),
    ("UPDATE batches SET record_count = 11 WHERE id = 1", "other than their number of signatures"),
    ("UPDATE signatures SET signature = zeroblob(64)", "the signature of record"),
    ("UPDATE key_uses SET outcome = 'abandoned' WHERE fence = 4", "without exactly one stored use"),
    ("UPDATE rings SET tick = tick + 1", "ticks are not gapless"),
    (
        "PRAGMA ignore_check_constraints = ON;
         UPDATE key_uses SET end_tick = 0 WHERE fence = 4;
         UPDATE key_uses SET end_tick = 5 WHERE fence = 10;
         UPDATE key_uses SET end_tick = 11 WHERE fence = 4",
        "(R2)",
    ),
    ("UPDATE key_uses SET key_id = 3 - key_id WHERE fence IN (4, 6)", "(R4)"),
    ("UPDATE key_events SET event = 'disabled' WHERE key_id = 1", "not active"),
    ("UPDATE keys SET last_tick = last_tick + 1 WHERE id = 1", "last use's end"),
];

#[test]
fn the_judge_finds_each_broken_rule() {
    // One batch at a time: the first use of the first key has fence 4 and ends at tick 5, its second
    // has fence 10 and ends at 11.
    let site = Site::sqlite().set("CHANCERY_SIGNING__MAX_IN_FLIGHT", "1").with(3, 100);
    site.run(&["run", "--batch-size", "10"]).expect_code(0);
    judge_data(&site.database, 100, 0);
    let mut whole = site.database.connect_sqlite();
    for (n, (change, verdict)) in CHANGES.iter().enumerate() {
        let path = site.path(&format!("changed-{n}.db"));
        whole.batch_execute(&format!("VACUUM INTO '{}'", path.display())).unwrap();
        let changed = Database::Sqlite(path);
        for trigger in
            changed.rows("SELECT name AS value FROM sqlite_schema WHERE type = 'trigger'")
        {
            changed.execute(&format!("DROP TRIGGER {trigger}"));
        }
        changed.execute(change);
        let judged = catch_unwind(AssertUnwindSafe(|| judge_data(&changed, 100, 0)));
        let said = judged.expect_err(change);
        let said = said.downcast_ref::<String>().expect("a message");
        assert!(said.contains(verdict), "{change}: {said}");
    }
}
