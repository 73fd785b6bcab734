//! Payloads from nothing to sixteen mebibytes, signed in bounded memory.

use diesel::connection::SimpleConnection;

use crate::support::database::Database;
use crate::support::judge::{check_signature, judge, judge_data};
use crate::support::program::Running;
use crate::support::{Site, wait_until};

on_both_databases! {
    payloads_of_any_size_and_any_bytes_are_signed,
    a_batch_far_larger_than_the_memory_allowed_is_signed,
}

const MEBIBYTE: u64 = 1024 * 1024;

/// What a process may have resident while it signs: 64 MiB of payloads in flight, the same again in
/// the database's client library, and the program.
const MOST_MEMORY: u64 = 256 * MEBIBYTE;

/// The same while it verifies: each thread has a payload and another waiting, and one is loaded.
fn most_memory_of_verify() -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    MOST_MEMORY + threads as u64 * 2 * 16 * MEBIBYTE
}

fn payloads_of_any_size_and_any_bytes_are_signed(site: Site) {
    let site = site.with(2, 0);
    let payloads = match site.database {
        Database::Postgres(_) => {
            "(''), ('\\x00'), ('\\x0a'), ('\\xff'), ('\\x000d0a00'), (decode(repeat('5a', 1048576), 'hex'))"
        }
        Database::Sqlite(_) => {
            "(x''), (x'00'), (x'0a'), (x'ff'), (x'000d0a00'), (zeroblob(1048576))"
        }
    };
    site.database.execute(&format!(
        "INSERT INTO records (ring_id, payload) SELECT 1, {cast} FROM (VALUES {payloads}) v",
        cast = if site.database.is_postgres() { "column1::BYTEA" } else { "column1" }
    ));
    let sizes = site.run(&["seed", "--records", "200", "--payload-bytes", "0..2000"]);
    sizes.expect_code(0);
    site.run(&["run", "--batch-size", "60"]).expect_code(0).expect_stdout("signed 206 records");
    judge(&site, 206);
    judge_each_signature(&site, 6);
}

/// A hundred payloads of 16 MiB in one batch: 1.6 GiB that must never be in memory at once.
fn a_batch_far_larger_than_the_memory_allowed_is_signed(site: Site) {
    let site = site.with(1, 0);
    insert_large_payloads(&site.database, 100);
    let run = site.start(&["run", "--batch-size", "100"]);
    let peak = peak_memory(&run);
    let ended = run.wait().expect_code(0);
    ended.expect_stdout("signed 100 records in 1 batch with 1 key");
    assert!(peak > 16 * MEBIBYTE, "a peak of {peak} bytes was not measured well");
    assert!(peak < MOST_MEMORY, "signing took {} MiB", peak / MEBIBYTE);
    judge_data(&site.database, 100, 0);

    let verify = site.start(&["verify"]);
    let peak = peak_memory(&verify);
    verify.wait().expect_code(0);
    assert!(peak < most_memory_of_verify(), "verifying took {} MiB", peak / MEBIBYTE);
    site.run(&["audit"]).expect_code(0);
}

/// Inserts payloads of 16 MiB, of one byte repeated: PostgreSQL packs them, SQLite does not.
fn insert_large_payloads(database: &Database, count: u32) {
    match database {
        Database::Postgres(_) => database.execute(&format!(
            "WITH zeros AS MATERIALIZED
                 (SELECT string_agg('\\x00'::BYTEA, '') AS payload FROM generate_series(1, 65536)),
             large AS MATERIALIZED
                 (SELECT string_agg(payload, '') AS payload FROM zeros, generate_series(1, 256))
             INSERT INTO records (ring_id, payload)
             SELECT 1, set_byte(payload, 0, n) FROM large, generate_series(1, {count}) n"
        )),
        Database::Sqlite(_) => {
            let mut connection = database.connect_sqlite();
            // It is the payloads' bytes that matter here, not their survival.
            connection.batch_execute("PRAGMA synchronous = OFF").unwrap();
            for _ in 0..count {
                let insert =
                    "INSERT INTO records (ring_id, payload) VALUES (1, zeroblob(16777216))";
                connection.batch_execute(insert).unwrap();
            }
        }
    }
}

/// Follows a process to its end; the most memory that it had resident, in bytes.
fn peak_memory(process: &Running) -> u64 {
    let mut peak = 0;
    wait_until("the process has ended", || {
        peak = process.peak_memory().unwrap_or(0).max(peak);
        !process.is_alive()
    });
    peak
}

/// Checks the signatures of the first records, whatever the judge's sample was.
fn judge_each_signature(site: &Site, records: i64) {
    for record in 1..=records {
        check_signature(&site.database, record);
    }
}
