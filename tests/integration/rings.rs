//! Several rings on one database, signed side by side: each with keys, records and batch size of its
//! own.

use serde_json::Value;

use crate::support::Site;
use crate::support::judge::judge;

/// Makes a ring with so many keys and records.
fn ring(site: &Site, name: &str, keys: u32, records: u32) {
    if name != "default" {
        site.run(&["rings", "create", name]).expect_code(0).expect_stdout("made ring");
    }
    if keys > 0 {
        let keys = keys.to_string();
        site.run(&["keys", "generate", "--count", &keys, "--ring", name]).expect_code(0);
    }
    if records > 0 {
        let records = records.to_string();
        let seed = ["seed", "--records", &records, "--random-seed", "7", "--ring", name];
        site.run(&seed).expect_code(0).expect_stdout(&format!("into ring {name}"));
    }
}

/// A number about one ring; `$RING` stands for its id.
fn number(site: &Site, ring: &str, query: &str) -> i64 {
    let id = format!("(SELECT id FROM rings WHERE name = '{ring}')");
    site.database.number(&query.replace("$RING", &id))
}

const BATCHES: &str = "SELECT count(*) AS value FROM batches WHERE ring_id = $RING";
const LARGEST: &str = "SELECT max(record_count) AS value FROM batches WHERE ring_id = $RING";
const SIGNED: &str =
    "SELECT count(*) AS value FROM signatures s JOIN batches b ON b.id = s.batch_id
                      WHERE b.ring_id = $RING";

#[track_caller]
fn expect_ring(site: &Site, name: &str, records: i64, batch_size: i64) {
    assert_eq!(number(site, name, SIGNED), records, "records of {name}");
    assert_eq!(number(site, name, LARGEST), batch_size, "the largest batch of {name}");
    let batches = (records + batch_size - 1) / batch_size;
    assert_eq!(number(site, name, BATCHES), batches, "batches of {name}");
    let keys = "SELECT count(DISTINCT key_id) AS value FROM key_uses WHERE ring_id = $RING";
    assert!(number(site, name, keys) > 1, "keys of {name} take turns");
}

#[track_caller]
fn expect_no_key_of_another_ring(site: &Site) {
    let shared = "SELECT count(*) AS value FROM key_uses u JOIN keys k ON k.id = u.key_id
                  JOIN batches b ON b.id = u.batch_id
                  WHERE k.ring_id <> u.ring_id OR b.ring_id <> u.ring_id";
    assert_eq!(site.database.number(shared), 0);
}

fn three_rings(site: Site) -> Site {
    let site =
        site.set("CHANCERY_SIGNING__RING_BATCH_SIZES", "invoices=50,receipts=300").with(6, 2_000);
    ring(&site, "invoices", 4, 730);
    ring(&site, "receipts", 5, 1_500);
    site
}

fn expect_three_rings(site: &Site) {
    judge(site, 4_230);
    expect_ring(site, "default", 2_000, 100);
    expect_ring(site, "invoices", 730, 50);
    expect_ring(site, "receipts", 1_500, 300);
    expect_no_key_of_another_ring(site);
}

#[test]
fn one_process_signs_three_rings_each_with_its_own_batch_size_and_keys() {
    let site = three_rings(Site::sqlite());
    let ended = site.run(&["run", "--ring", "*", "--batch-size", "100"]).expect_code(0);
    let ended = ended.expect_stdout("signed 4,230 records of 3 rings in ");
    for line in [
        "ring default: signed 2,000 records in 20 batches with 6 keys",
        "ring invoices: signed 730 records in 15 batches with 4 keys",
        "ring receipts: signed 1,500 records in 5 batches with 5 keys",
        "no record of ring receipts in ",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} is not in {ended}");
    }
    expect_three_rings(&site);
    // One process is one node, whatever it signs.
    let status = site.run(&["status", "--json"]).expect_code(0).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(status["nodes"][0]["state"], "stopped");
}

#[test]
fn two_nodes_sign_three_rings_at_once_and_share_no_key_between_rings() {
    // On a server of its own: another test's transaction would hold records back and cut batches short.
    let site = three_rings(Site::postgres_alone());
    let rings = ["run", "--ring", "default,invoices", "--ring", "receipts", "--batch-size", "100"];
    let nodes: Vec<_> = (0..2).map(|_| site.start(&rings)).collect();
    for node in nodes {
        node.wait().expect_code(0).expect_stdout("of 3 rings in ");
    }
    expect_three_rings(&site);
    assert_eq!(site.database.number("SELECT count(*) AS value FROM nodes"), 2);
}

#[test]
fn a_small_ring_does_not_wait_for_the_backlog_of_a_big_one_on_postgres() {
    // On a server of its own: another test's transaction would hold back the records of the small one,
    // which come last.
    a_small_ring_does_not_wait_for_the_backlog_of_a_big_one(Site::postgres_alone());
}

#[test]
fn a_small_ring_does_not_wait_for_the_backlog_of_a_big_one_on_sqlite() {
    a_small_ring_does_not_wait_for_the_backlog_of_a_big_one(Site::sqlite());
}

on_both_databases! {
    a_ring_without_a_key_is_named_and_the_others_are_signed_first,
    records_in_quarantine_of_any_ring_show_in_the_exit_code,
    rings_are_made_once_listed_and_picked_by_name,
    a_mistake_about_rings_is_named_and_nothing_is_signed,
    what_is_exported_and_verified_may_be_of_one_ring,
}

fn a_small_ring_does_not_wait_for_the_backlog_of_a_big_one(site: Site) {
    // More keys than batches: nothing but its share keeps the big ring from having them all in flight.
    let site = site.set("CHANCERY_SIGNING__RING_BATCH_SIZES", "small=50").with(450, 40_000);
    ring(&site, "small", 20, 500);
    site.run(&["run", "--ring", "default,small", "--batch-size", "100"]).expect_code(0);
    judge(&site, 40_500);
    let big_before_small =
        "SELECT count(*) AS value FROM batches WHERE ring_id = $RING AND stored_at <=
         (SELECT max(stored_at) FROM batches WHERE ring_id <> $RING)";
    let before = number(&site, "default", big_before_small);
    let all = number(&site, "default", BATCHES);
    assert!(all >= 400, "{all} batches");
    assert!(
        before * 4 <= all * 3,
        "{before} of {all} batches of the big ring were stored before the last of the small one"
    );
}

fn a_ring_without_a_key_is_named_and_the_others_are_signed_first(site: Site) {
    let site = site.with(4, 300);
    ring(&site, "bare", 0, 20);
    ring(&site, "locked", 2, 30);
    ring(&site, "empty", 0, 0);
    let keys = site.run(&["keys", "list", "--json", "--ring", "locked"]).expect_code(0).stdout;
    let keys: Value = serde_json::from_str(&keys).unwrap();
    for key in keys.as_array().unwrap() {
        let kid = key["kid"].as_str().unwrap();
        site.run(&["keys", "disable", "--ring", "locked", "--", kid]).expect_code(0);
    }
    let ended = site.run(&["run", "--ring", "*"]).expect_code(1);
    let ended = ended
        .expect_stderr("ring bare has 20 unsigned records and no key")
        .expect_stderr("keys generate --count 100 --ring bare")
        .expect_stderr("ring locked has 30 unsigned records and no active key")
        .expect_stdout("no record of ring default in ");
    assert!(!ended.stderr.contains("ring empty has"), "{ended}");
    assert_eq!(number(&site, "default", SIGNED), 300);
    assert_eq!(site.signatures(), 300);
}

fn records_in_quarantine_of_any_ring_show_in_the_exit_code(site: Site) {
    let site = site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "2").with(3, 500);
    ring(&site, "odd", 3, 300);
    // A batch that claims a record more than its range holds, as if one had vanished.
    site.database.execute(
        "INSERT INTO batches (ring_id, low_xid, low_id, high_xid, high_id, record_count, state)
         SELECT 2, first.inserted_xid, first.id, last.inserted_xid, last.id, 101, 'retry'
         FROM records first, records last WHERE first.id = 501 AND last.id = 600;
         UPDATE rings SET cursor_xid = (SELECT high_xid FROM batches),
                          cursor_id = (SELECT high_id FROM batches) WHERE id = 2",
    );
    let ended = site.run(&["run", "--ring", "default,odd"]).expect_code(3);
    ended
        .expect_stdout("101 records in quarantine")
        .expect_stdout("every other record of ring odd in ")
        .expect_stdout("no record of ring default in ");
    assert_eq!((number(&site, "default", SIGNED), number(&site, "odd", SIGNED)), (500, 200));
}

fn rings_are_made_once_listed_and_picked_by_name(site: Site) {
    let site = site.with(2, 0);
    ring(&site, "invoices", 3, 0);
    site.run(&["rings", "create", "invoices"])
        .expect_code(1)
        .expect_stderr("there is a ring \"invoices\" already");
    site.run(&["rings", "create", "vault", "--provider", "pkcs11"])
        .expect_code(0)
        .expect_stdout("made ring vault (pkcs11)");
    let list = site.run(&["rings", "list", "--json"]).expect_code(0).stdout;
    let list: Value = serde_json::from_str(&list).unwrap();
    let shown = list.as_array().unwrap().iter().map(|ring| {
        let text = |field: &str| ring[field].as_str().unwrap().to_owned();
        (text("name"), text("provider"), ring["keys"]["active"].as_u64().unwrap())
    });
    let shown: Vec<_> = shown.collect();
    let row = |name: &str, provider: &str, keys| (name.to_owned(), provider.to_owned(), keys);
    let expected =
        [row("default", "software", 2), row("invoices", "software", 3), row("vault", "pkcs11", 0)];
    assert_eq!(shown, expected);
    let list = site.run(&["rings", "list"]).expect_code(0).stdout;
    let last: Vec<&str> = list.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last, ["vault", "pkcs11", "no", "0", "0"]);
    let actions = site.database.rows(
        "SELECT target AS value FROM admin_log
                                      WHERE action = 'ring.created' ORDER BY seq",
    );
    assert_eq!(actions, ["ring invoices", "ring vault"]);
}

fn a_mistake_about_rings_is_named_and_nothing_is_signed(site: Site) {
    let site = site.with(2, 10);
    ring(&site, "invoices", 2, 10);
    let sizes = |sizes: &str, arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env("CHANCERY_SIGNING__RING_BATCH_SIZES", sizes);
        site.run_command(command)
    };
    sizes("receipts=5", &["run"]).expect_code(2).expect_stderr(
        "signing.ring_batch_sizes: ring receipts is none of those that are signed (default)",
    );
    sizes("invoices=5", &["run"]).expect_code(2);
    sizes("invoices=0", &["run", "--ring", "*"])
        .expect_code(2)
        .expect_stderr("expected batch sizes from 1 to 1000000 by ring");
    for (arguments, words) in [
        (&["rings", "create", "Invoices"][..], "a ring's name has 1 to 64 of"),
        (&["rings", "create", "x", "--provider", "paper"], "unknown provider \"paper\""),
        (&["seed", "--records", "1", "--ring", "*"], "pick one with --ring NAME"),
        (&["keys", "list", "--ring", "default,invoices"], "pick one with --ring NAME"),
        (&["run", "--ring", "default,default"], "several different ones with commas"),
    ] {
        site.run(arguments).expect_code(2).expect_stderr(words);
    }
    site.run(&["run", "--ring", "nobody"]).expect_code(1).expect_stderr("no ring \"nobody\"");
    assert_eq!(site.signatures(), 0);
}

fn what_is_exported_and_verified_may_be_of_one_ring(site: Site) {
    let site = site.with(2, 30);
    ring(&site, "invoices", 2, 12);
    site.run(&["run", "--ring", "*"]).expect_code(0);
    let lines = |arguments: &[&str]| site.run(arguments).expect_code(0).stdout.lines().count();
    assert_eq!(lines(&["export"]), 42);
    assert_eq!(lines(&["export", "--ring", "invoices"]), 12);
    assert_eq!(lines(&["export", "--format", "csv", "--ring", "default,invoices"]), 43);
    site.run(&["verify"]).expect_code(0).expect_stdout("42 signatures checked: all valid");
    site.run(&["verify", "--ring", "invoices"])
        .expect_code(0)
        .expect_stdout("12 signatures checked: all valid");
}
