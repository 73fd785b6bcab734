//! Chancery signs every record of a database exactly once, concurrently and in batches, and can
//! prove afterwards that it kept its rules.
//!
//! The floors, each importing only from lower ones: [`types`], [`clock`] and [`failpoint`] < [`ledger`],
//! [`signing`], [`config`] < [`keyring`], [`metrics`], [`hardening`] < [`db`] < [`inspect`] < `actors` < `http` < `app` <
//! `cli` < `main`.

pub mod actors;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod failpoint;
#[doc(hidden)]
pub mod fuzzing;
pub mod hardening;
pub mod http;
pub mod inspect;
pub mod intake;
pub mod keyring;
pub mod ledger;
pub mod metrics;
pub mod seed;
pub mod signing;
pub mod types;
