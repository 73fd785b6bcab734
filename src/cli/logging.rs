//! The log: structured, on standard error. And the spans, to an OTLP collector where one is configured.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, registry};

use super::output::LogWriter;
use super::traces::Traces;
use crate::app::UsageError;
use crate::config::{Config, LogFormat};
use crate::types::NodeId;

/// Starts logging for the life of the process, and tracing for that of the answer.
///
/// # Errors
/// If the collector's URL cannot be used.
pub(super) fn start(config: &Config, node: &NodeId) -> Result<Option<Traces>, UsageError> {
    let level = &config.log.level;
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| LogWriter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let lines = match config.log.format {
        LogFormat::Pretty => lines.compact().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let traces = Traces::start(&config.telemetry, node)?;
    let spans = traces.as_ref().map(Traces::layer);
    // A second start, as in tests that share a process, changes nothing.
    let _ = registry().with(lines.with_filter(filter)).with(spans).try_init();
    Ok(traces)
}
