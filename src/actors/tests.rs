//! The actors together, on a real SQLite database that can be made to fail at any call.
//!
//! Each test wires a node as the application does and ends by asking the database: every record
//! signed exactly once, no rule broken by a replay of the history, no actor left running.

mod counts;
mod database;
mod faults;
mod faulty_store;
mod flow;
mod groups;
mod keys;
mod leases;
mod node;
mod outages;
mod panics;
mod payloads;
mod scripted_signer;
mod secrets;
mod signs;
