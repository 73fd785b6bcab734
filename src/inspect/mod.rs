//! What `chancery verify`, `audit` and `export` do: they read a database and change nothing in it.
//!
//! All three page by key and hold no transaction open, so they may run while nodes sign, and their
//! memory does not grow with the number of records. How far they are they tell a callback; the
//! terminal is the caller's.

pub mod audit;
pub mod export;
mod pages;
#[cfg(test)]
mod testbed;
pub mod verify;

pub use audit::{AuditReport, AuditStep, Finding, RingAudit, RuleVerdict, Verdict, audit};
pub use export::{ExportError, ExportFormat, export};
pub use verify::{BadReason, BadRecord, VerifyReport, verify};
