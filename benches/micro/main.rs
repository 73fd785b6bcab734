//! The parts of the way of a batch, each by itself: signing, verification, the store's transactions, the
//! replay of a history, and sealing.
//!
//! ```sh
//! cargo bench --bench micro                     # all of it, in about five minutes
//! cargo bench --bench micro -- 'sign|verify'    # those whose names match
//! cargo bench --bench micro -- store/postgres
//! cargo bench --bench micro -- --list
//! ```
//!
//! It starts a PostgreSQL server of its own, with fsync on, for what needs one. Server and SQLite's file lie
//! in the folder of temporary files: `TMPDIR` chooses the disk. The library is built with failpoints, none of
//! which acts. Each figure is compared with that of the run before, which lies in `target/criterion`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on ends, and its message says why"
)]

mod keyring;
mod ledger;
mod signing;
mod site;
mod store;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    signing::sign(&mut criterion);
    signing::verify(&mut criterion);
    store::check_out(&mut criterion);
    store::load(&mut criterion);
    store::store(&mut criterion);
    ledger::replay(&mut criterion);
    keyring::seal(&mut criterion);
    criterion.final_summary();
}
