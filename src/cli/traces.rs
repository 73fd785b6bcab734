//! Spans to an OTLP collector over HTTP, in batches and from a thread of the exporter's own: a
//! collector that is slow or gone holds nothing up, and its spans are dropped and counted.
//!
//! Only spans go out, with their fields. What is logged inside them stays in the log.

mod collector;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use self::collector::Collector;
use crate::app::UsageError;
use crate::config::TelemetryConfig;
use crate::types::NodeId;

/// How long the collector may take for an answer, repetitions included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long the end of the process may wait for the last spans to be sent: longer than for one answer,
/// so that a collector that gives none is told of.
const LAST: Duration = Duration::from_secs(5);

/// How long a failing collector is not told of again.
const REMINDER: Duration = Duration::from_secs(300);

/// What sends spans; what has not been sent is, when this is dropped.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    tally: Arc<Tally>,
}

impl Traces {
    /// Starts to send, if the configuration says where to.
    ///
    /// # Errors
    /// If that is no URL.
    pub(super) fn start(
        config: &TelemetryConfig,
        node: &NodeId,
    ) -> Result<Option<Traces>, UsageError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        // The library quotes the URL, password included.
        let refused = |problem: &dyn fmt::Display| {
            let problem = problem.to_string().replace(endpoint.as_str(), &endpoint.to_string());
            UsageError(format!(
                "telemetry.otlp_endpoint is no URL such as http://localhost:4318/v1/traces: {problem}"
            ))
        };
        let tally = Arc::new(Tally::default());
        let collector =
            Collector::at(endpoint.as_str(), TIMEOUT).map_err(|error| refused(&error))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(collector.clone())
            .with_endpoint(endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| refused(&error))?;
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.0.clone()))
            .build();
        let told_at = Mutex::default();
        let exporter = Told { exporter, collector, tally: Arc::clone(&tally), told_at };
        let queue = BatchSpanProcessor::builder(exporter).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(Counted { queue, tally: Arc::clone(&tally) })
            .build();
        Ok(Some(Traces { provider, tally }))
    }

    /// What turns this program's spans into the collector's, whatever is logged.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let ours = filter_fn(|metadata| {
            metadata.is_span()
                && *metadata.level() <= LevelFilter::INFO
                && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
        });
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            // Without the hint every debug and trace statement of the program would be asked about.
            .with_filter(ours.with_max_level_hint(LevelFilter::INFO))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // An exporter that failed or had no time shows in the tally.
        let _ = self.provider.shutdown_with_timeout(LAST);
        let lost = self.tally.lost();
        if lost > 0 {
            tracing::warn!(lost, "spans have not reached the collector (telemetry.otlp_endpoint)");
        }
    }
}

/// How many spans there have been, and how many of them the collector has.
#[derive(Debug, Default)]
struct Tally {
    ended: AtomicU64,
    sent: AtomicU64,
}

impl Tally {
    fn lost(&self) -> u64 {
        let sent = self.sent.load(Ordering::Acquire);
        self.ended.load(Ordering::Acquire).saturating_sub(sent)
    }
}

/// The queue of an exporter, which drops what it has no room for, and what goes into it.
#[derive(Debug)]
struct Counted {
    queue: BatchSpanProcessor,
    tally: Arc<Tally>,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.tally.ended.fetch_add(1, Ordering::AcqRel);
        self.queue.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// An exporter that says in the log when it fails, and not each time. Its line is in no span, so it is
/// never sent itself; what the libraries would log of themselves is not compiled in.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    collector: Collector,
    tally: Arc<Tally>,
    told_at: Mutex<Option<Instant>>,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        let Err(error) = &exported else {
            self.tally.sent.fetch_add(spans, Ordering::AcqRel);
            return exported;
        };
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|at| at.elapsed() >= REMINDER) {
            *told_at = Some(Instant::now());
            let collector = self.collector.name();
            let error = self.collector.last_failure().unwrap_or_else(|| error.to_string());
            tracing::warn!(collector, spans, error, "could not send spans");
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
