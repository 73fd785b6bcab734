//! Drives the built program as its user does: command line, environment, signals, exit codes.
//!
//! Each test has a site of its own (database, key-encryption key, folder), so that all of them can
//! run at once. PostgreSQL servers come from the testkit crate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails, and its message says why"
)]

#[macro_use]
mod support;

mod api;
mod arrivals;
mod clocks;
mod cluster;
mod command_line;
mod configuration;
mod dashboard;
mod database_errors;
mod deploy;
mod examples;
mod failures;
mod hostile;
mod http;
mod import_export;
mod interruption;
mod keks;
mod key_import;
mod key_life;
mod main_job;
mod many_processes;
mod memory;
mod openssl;
mod outages;
mod payloads;
mod project;
mod recovery;
mod rings;
mod sizes;
mod sqlite_files;
mod step_by_step;
mod storage;
mod telemetry;
mod the_judge;
mod token;
