//! The judge: whether a database keeps the rules, told by the program and, apart from it, by SQL.

use diesel::sql_types::Binary;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use ed25519_dalek::{Signature, VerifyingKey};

use super::Site;
use super::database::Database;

/// Judges a database in which exactly `records` records are there, and each is signed.
#[track_caller]
pub(crate) fn judge(site: &Site, records: i64) {
    judge_with_unsigned(site, records, 0);
}

/// Judges a database in which all but `unsigned` of its records are signed.
#[track_caller]
pub(crate) fn judge_with_unsigned(site: &Site, records: i64, unsigned: i64) {
    judge_data(&site.database, records, unsigned);
    judge_by_the_program(site);
}

/// The program's own verdict.
#[track_caller]
pub(crate) fn judge_by_the_program(site: &Site) {
    site.run(&["verify"]).expect_code(0);
    site.run(&["audit"]).expect_code(0);
}

/// The verdict of plain SQL and of another's signature check.
#[track_caller]
pub(crate) fn judge_data(database: &Database, records: i64, unsigned: i64) {
    judge_rules(database, records, unsigned);
    expect_none(database, LEAST_RECENTLY_USED);
    check_sample(database, records);
}

/// As [`judge_data`] without the order of the keys (R4), whose query is too slow for long histories,
/// and without the signatures.
#[track_caller]
pub(crate) fn judge_rules(database: &Database, records: i64, unsigned: i64) {
    let count = |table: &str| database.number(&format!("SELECT count(*) AS value FROM {table}"));
    assert_eq!(count("records"), records, "records");
    assert_eq!(count("signatures"), records - unsigned, "signatures");
    let left = "records r LEFT JOIN signatures s ON s.record_id = r.id WHERE s.record_id IS NULL";
    assert_eq!(count(left), unsigned, "records without a signature");
    for query in NONE_OF_THESE {
        expect_none(database, query);
    }
}

#[track_caller]
fn expect_none(database: &Database, (what, query): (&str, &str)) {
    let broken = database.rows(query);
    assert!(broken.is_empty(), "{what}: {broken:?}");
}

/// How many signatures are checked, about.
const SAMPLE: i64 = 100;

/// How many bytes of payload are enough, where payloads are large.
const SAMPLE_BYTES: usize = 64 * 1024 * 1024;

/// What each of the queries finds breaks a rule.
const NONE_OF_THESE: [(&str, &str); 10] = [
    (
        "records signed twice",
        "SELECT record_id AS value FROM signatures GROUP BY record_id HAVING count(*) > 1",
    ),
    (
        "signatures of no record, or of a record outside their batch's ring and range",
        "SELECT s.record_id AS value FROM signatures s
         LEFT JOIN batches b ON b.id = s.batch_id
         LEFT JOIN records r ON r.id = s.record_id AND r.ring_id = b.ring_id
              AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
              AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id)
         WHERE r.id IS NULL",
    ),
    (
        "stored batches with other than their number of signatures, others with any",
        "SELECT b.id AS value FROM batches b
         LEFT JOIN (SELECT batch_id, count(*) AS signatures FROM signatures GROUP BY batch_id) s
              ON s.batch_id = b.id
         WHERE coalesce(s.signatures, 0)
               <> CASE b.state WHEN 'stored' THEN b.record_count ELSE 0 END",
    ),
    (
        "stored batches without exactly one stored use, others with any",
        "SELECT b.id AS value FROM batches b
         LEFT JOIN (SELECT batch_id, count(*) AS uses FROM key_uses
                    WHERE outcome = 'stored' GROUP BY batch_id) u ON u.batch_id = b.id
         WHERE coalesce(u.uses, 0) <> CASE b.state WHEN 'stored' THEN 1 ELSE 0 END",
    ),
    ("batches left unfinished", "SELECT id AS value FROM batches WHERE state IN ('open', 'retry')"),
    ("key uses left open", "SELECT fence AS value FROM key_uses WHERE end_tick IS NULL"),
    (
        "rings whose ticks are not gapless from 1",
        "SELECT g.name AS value FROM rings g
         LEFT JOIN (SELECT ring_id, count(*) AS events, count(DISTINCT tick) AS ticks,
                           min(tick) AS first, max(tick) AS last
                    FROM (SELECT ring_id, fence AS tick FROM key_uses
                          UNION ALL SELECT ring_id, end_tick FROM key_uses
                          WHERE end_tick IS NOT NULL
                          UNION ALL SELECT ring_id, tick FROM key_events) e
                    GROUP BY ring_id) e ON e.ring_id = g.id
         WHERE NOT (g.tick = coalesce(e.events, 0) AND g.tick = coalesce(e.ticks, 0)
                    AND coalesce(e.first, 1) = 1 AND g.tick = coalesce(e.last, 0))",
    ),
    (
        "uses that begin before the same key's last use has ended (R2)",
        "SELECT fence AS value
         FROM (SELECT fence, row_number() OVER w AS n, lag(end_tick) OVER w AS end_before
               FROM key_uses WINDOW w AS (PARTITION BY key_id ORDER BY fence)) u
         WHERE n > 1 AND (end_before IS NULL OR end_before >= fence)",
    ),
    (
        "uses of a key that was not active",
        "SELECT u.fence AS value FROM key_uses u
         WHERE coalesce((SELECT e.event FROM key_events e
                         WHERE e.ring_id = u.ring_id AND e.key_id = u.key_id AND e.tick < u.fence
                         ORDER BY e.tick DESC LIMIT 1), '') NOT IN ('added', 'enabled')",
    ),
    (
        "keys whose last tick is not their last use's end",
        "SELECT k.id AS value FROM keys k
         WHERE k.last_tick <> coalesce((SELECT max(u.end_tick) FROM key_uses u
                                        WHERE u.key_id = k.id), 0)",
    ),
];

/// The choice of keys (R4): for each use a look at every key's history.
const LEAST_RECENTLY_USED: (&str, &str) = (
    "uses that passed over a free key that had rested longer (R4)",
    "SELECT u.fence AS value
     FROM (SELECT ring_id, fence, key_id,
                  coalesce(lag(end_tick) OVER (PARTITION BY key_id ORDER BY fence), 0) AS rested
           FROM key_uses) u
     WHERE EXISTS (
         SELECT 1 FROM keys k
         WHERE k.ring_id = u.ring_id AND k.id <> u.key_id
           AND (coalesce((SELECT max(p.end_tick) FROM key_uses p
                          WHERE p.key_id = k.id AND p.end_tick < u.fence), 0), k.id)
               < (u.rested, u.key_id)
           AND NOT EXISTS (SELECT 1 FROM key_uses o
                           WHERE o.key_id = k.id AND o.fence < u.fence
                             AND (o.end_tick IS NULL OR o.end_tick > u.fence))
           AND (SELECT e.event FROM key_events e
                WHERE e.ring_id = u.ring_id AND e.key_id = k.id AND e.tick < u.fence
                ORDER BY e.tick DESC LIMIT 1) IN ('added', 'enabled'))",
);

#[derive(QueryableByName)]
struct Signed {
    #[diesel(sql_type = Binary)]
    payload: Vec<u8>,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
    #[diesel(sql_type = Binary)]
    public_key: Vec<u8>,
}

/// Checks signatures from all over the database.
#[track_caller]
pub(crate) fn check_sample(database: &Database, records: i64) {
    let step = (records / SAMPLE).max(1);
    let sample = format!(
        "SELECT record_id AS value FROM signatures WHERE record_id % {step} = 0
         ORDER BY record_id LIMIT {SAMPLE}"
    );
    let mut bytes = 0;
    for record in database.rows(&sample) {
        bytes += check_signature(database, record.parse().unwrap());
        if bytes > SAMPLE_BYTES {
            return;
        }
    }
    let any = database.number("SELECT count(*) AS value FROM signatures") >= step;
    assert!(bytes > 0 || !any, "no signature was checked");
}

/// Checks a record's signature over its payload's exact bytes (RFC 8032); how many these are.
#[track_caller]
pub(crate) fn check_signature(database: &Database, record: i64) -> usize {
    let query = sql_query(format!(
        "SELECT payload, signature, public_key FROM signed_records WHERE record_id = {record}"
    ));
    let signed: Signed = match database {
        Database::Postgres(_) => query.get_result(&mut database.connect_postgres()).unwrap(),
        Database::Sqlite(_) => query.get_result(&mut database.connect_sqlite()).unwrap(),
    };
    let key = VerifyingKey::from_bytes(&signed.public_key.try_into().unwrap()).unwrap();
    let signature = Signature::from_slice(&signed.signature).unwrap();
    let verdict = key.verify_strict(&signed.payload, &signature);
    assert!(verdict.is_ok(), "the signature of record {record} is wrong");
    signed.payload.len()
}
