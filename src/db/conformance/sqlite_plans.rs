//! What is asked again and again, on SQLite only, is found by an index, however much has been signed.
//!
//! SQLite uses a partial index only where a query repeats its condition, and it counts no rows to find
//! out that an index of open uses is short.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use diesel::sql_types::Text;
use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};

use super::actions::{RING, add_keys, check_out, give_up, insert, sign, sign_and_store};
use super::fixture::{Fixture, Sqlite};
use crate::config::DatabaseUrl;
use crate::db::ReclaimScope;
use crate::types::{BatchId, BatchState, RecordId, Tick};

/// The database whose statements are recorded.
static DATABASE: OnceLock<String> = OnceLock::new();
static STATEMENTS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

struct Recorder {
    is_on: bool,
}

impl Instrumentation for Recorder {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartEstablishConnection { url, .. } => {
                self.is_on = DATABASE.get().is_some_and(|database| url.contains(database));
            }
            InstrumentationEvent::StartQuery { query, .. } if self.is_on => {
                let text = query.to_string();
                let (statement, _) = text.split_once("-- binds").unwrap_or((&text, ""));
                STATEMENTS.lock().unwrap().insert(statement.trim().to_owned());
            }
            _ => {}
        }
    }
}

#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

/// Whether a step of a plan reads a whole table that grows, or all of a ring in it.
fn reads_all(detail: &str) -> bool {
    let words: Vec<&str> = detail.split(' ').collect();
    let grows = ["batches", "b", "key_uses", "u", "records", "r", "signatures", "s"];
    let is_large = words.get(1).is_some_and(|table| grows.contains(table));
    let is_short = ["key_uses_one_open_per_key", "key_uses_one_open_per_batch"]
        .iter()
        .any(|index| detail.contains(index));
    let of_ring = detail.ends_with("(ring_id=?)") && !detail.contains("batches_unfinished");
    is_large && !is_short && (words[0] == "SCAN" || of_ring)
}

#[test]
fn no_statement_of_the_work_reads_all_that_has_been_signed() {
    let f = Sqlite::new();
    let DatabaseUrl::Sqlite { path } = f.url() else { unreachable!() };
    let path = path.to_str().unwrap().to_owned();
    DATABASE.set(path.clone()).unwrap();
    set_default_instrumentation(|| Some(Box::new(Recorder { is_on: false }))).unwrap();
    let store = f.open("a");
    add_keys(&*store, RING, 4);
    insert(&f, &*store, RING, 200);
    store.analyze().unwrap();

    for batch_size in [1, 50] {
        let batches = check_out(&*store, RING, 4, batch_size).batches;
        assert_eq!(store.open_uses().unwrap().len(), 4);
        assert_eq!(store.key_counts(RING).unwrap().in_use, 4);
        let fences: Vec<_> = batches.iter().map(|batch| batch.key_use.fence).collect();
        store.renew(RING, &fences).unwrap();
        sign(&*store, &batches[0]);
        sign_and_store(&*store, &batches[1]);
        store.give_up(RING, &[give_up(&batches[2], Some("it failed"))]).unwrap();
        store.reclaim(RING, ReclaimScope::Expired).unwrap();
        store.reclaim(RING, ReclaimScope::All).unwrap();
        assert!(store.has_work(RING).unwrap());
    }
    store.backlog(RING, 10).unwrap();
    store.unfinished(RING).unwrap();
    store.tally(RING, Tick(1)).unwrap();
    store.glance_at_keys(RING).unwrap();
    store.record(RING, RecordId(1)).unwrap();
    store.list_batches(RING, Some(BatchState::Quarantined), BatchId(0), 10).unwrap();

    let mut connection = SqliteConnection::establish(&path).unwrap();
    let statements = STATEMENTS.lock().unwrap().clone();
    let mut bad = Vec::new();
    let mut explained = 0;
    for statement in statements {
        if !["SELECT", "INSERT", "UPDATE", "WITH"].iter().any(|word| statement.starts_with(word)) {
            continue;
        }
        let plan = format!("EXPLAIN QUERY PLAN {statement}");
        let steps: Vec<Step> = sql_query(plan).load(&mut connection).unwrap();
        // What a row to be inserted might be the parent of is looked for only while a row lacks its parent.
        let is_insert = statement.starts_with("INSERT");
        let steps = steps.into_iter().map(|step| step.detail);
        let steps = steps.filter(|step| reads_all(step) && !(is_insert && step == "SCAN key_uses"));
        bad.extend(steps.map(|step| format!("{step}: {statement}")));
        explained += 1;
    }
    assert!(explained > 30, "{explained} statements");
    assert!(bad.is_empty(), "{bad:#?}");
}
