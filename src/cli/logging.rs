//! The log: structured, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::output::LogWriter;
use crate::config::{LogConfig, LogFormat};

/// Starts logging for the life of the process.
pub(super) fn start(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start, as in tests that share a process, changes nothing.
    let _ = match config.format {
        LogFormat::Pretty => builder.compact().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
