//! Spans to an OTLP collector over HTTP, in batches and from a thread of the exporter's own: a
//! collector that is slow or gone holds nothing up, and its spans are dropped.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::config::TelemetryConfig;
use crate::types::NodeId;

/// How long the collector may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long the end of the process may wait for the last spans to be sent.
const LAST: Duration = Duration::from_secs(3);

/// How long a failing collector is not told of again.
const REMINDER: Duration = Duration::from_secs(60);

/// What sends spans; what has not been sent is, when this is dropped.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts to send, if the configuration says where to.
    pub(super) fn start(config: &TelemetryConfig, node: &NodeId) -> anyhow::Result<Option<Traces>> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let named = || format!("telemetry.otlp_endpoint {endpoint} cannot be used");
        let client =
            reqwest::blocking::Client::builder().timeout(TIMEOUT).build().with_context(named)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint)
            .with_timeout(TIMEOUT)
            .build()
            .with_context(named)?;
        let resource = Resource::builder_empty()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.0.clone()))
            .build();
        let told = Told { exporter, endpoint: endpoint.clone(), told_at: Mutex::default() };
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(told).build();
        Ok(Some(Traces(provider)))
    }

    /// What turns this program's spans into the collector's.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// An exporter that says in the log when it fails, and not each time.
struct Told<E> {
    exporter: E,
    endpoint: String,
    told_at: Mutex<Option<Instant>>,
}

impl<E> fmt::Debug for Told<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        if let Err(error) = &sent {
            let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
            if told_at.is_none_or(|at| at.elapsed() >= REMINDER) {
                *told_at = Some(Instant::now());
                tracing::warn!(endpoint = self.endpoint, spans, %error, "could not send spans");
            }
        }
        sent
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
