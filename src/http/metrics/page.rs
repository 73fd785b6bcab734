//! The page of metrics: gathered from actors and database, then written down.

use std::fmt;
use std::sync::Arc;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::db::{Backlog, KeyCounts, PoolState, Progress, Store, StoreError};
use crate::http::auth::caller_of;
use crate::http::health::MOST_COUNTED;
use crate::http::problem::Problem;
use crate::http::service::NodeState;
use crate::http::tallies::Tallies;
use crate::http::{Shared, cached::Cached};
use crate::types::{RingId, Role};

/// What the database says, as often as somebody may scrape.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct DatabaseNumbers {
    pub(in crate::http) backlog: Backlog,
    pub(in crate::http) progress: Progress,
    pub(in crate::http) keys: KeyCounts,
    pub(in crate::http) nodes_alive: u64,
    pub(in crate::http) ring_paused: bool,
}

impl DatabaseNumbers {
    pub(in crate::http) fn read(
        store: &dyn Store,
        ring: RingId,
        tallies: &Tallies,
    ) -> Result<Self, StoreError> {
        let nodes = store.nodes()?;
        Ok(DatabaseNumbers {
            backlog: store.backlog(ring, MOST_COUNTED)?,
            progress: tallies.progress(store, ring)?,
            keys: store.key_counts(ring)?,
            nodes_alive: nodes.iter().filter(|node| node.is_alive()).count() as u64,
            ring_paused: store.orders(ring)?.ring_paused,
        })
    }
}

/// The numbers of the last second.
pub(in crate::http) type Numbers = Cached<DatabaseNumbers>;

/// For Prometheus: who may not read is refused, unless metrics are public.
pub(in crate::http) async fn metrics(
    request: HttpRequest,
    shared: Data<Shared>,
) -> Result<HttpResponse, Problem> {
    if !shared.config.public_metrics && !caller_of(&request).await?.may(Role::Reader) {
        return Err(Problem::forbidden(Role::Reader.as_str()));
    }
    let page = Page {
        node: shared.node_state().await,
        numbers: shared.numbers().await,
        pool: shared.store.pool_state(),
        version: shared.version,
        signers: shared.signing.as_ref().map_or(0, |signing| signing.signers),
        troubles: shared.signing.as_ref().map_or(0, |signing| signing.troubles.places().len()),
    };
    let mut registry = Registry::default();
    if let Some(signing) = &shared.signing {
        signing.timings.register(&mut registry);
    }
    shared.counters.register(&mut registry);
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|_| Problem::internal())?;
    Ok(HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-store"))
        .body(text))
}

#[derive(Debug)]
struct Page {
    node: NodeState,
    /// `None` if the database does not answer.
    numbers: Option<Arc<DatabaseNumbers>>,
    pool: PoolState,
    version: &'static str,
    signers: usize,
    troubles: usize,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Out(encoder);
        self.of_the_node(&mut out)?;
        self.of_the_database(&mut out)
    }
}

impl Page {
    fn of_the_node(&self, out: &mut Out<'_>) -> fmt::Result {
        let NodeState { state, supervisor, key_manager, writer } = &self.node;
        out.counter("records_signed", "Records signed and stored", supervisor.signed_records)?;
        let batches = "Batches that this node was done with, by how";
        out.counters(
            "batches",
            batches,
            "outcome",
            &[
                ("stored", supervisor.stored_batches),
                ("fenced", supervisor.fenced_batches),
                ("given_up", supervisor.given_up_batches),
            ],
        )?;
        let help = "Batches signed in vain: their use had been ended meanwhile";
        out.counter("stores_fenced", help, writer.fenced)?;
        let help = "Stores refused because a record had a signature already: an alarm";
        out.counter("double_signs_prevented", help, writer.double_signs)?;
        let help = "Stores tried again: the database was busy or not reachable";
        out.counter("store_repeats", help, writer.repeated)?;
        let help = "Uses ended because their lease had run out, of whatever node";
        out.counter("uses_reclaimed", help, key_manager.reclaimed)?;
        out.counter("leases_renewed", "Leases renewed", key_manager.renewed)?;
        let help = "Signatures that did not verify before they were stored: an alarm";
        out.counter("faulty_signatures", help, supervisor.faulty_signatures)?;
        let help = "Keys found damaged, and disabled";
        out.counter("keys_damaged", help, key_manager.damaged_keys)?;
        let help = "Records that the cursor had missed and that were moved before it";
        out.counter("records_swept", help, supervisor.swept_records)?;

        let help = "Batches checked out and not yet settled, of this node";
        out.gauge("batches_in_flight", help, supervisor.in_flight.into())?;
        out.gauge("keys_unsealed", "Private keys in this node's memory", key_manager.keys as f64)?;
        let help = "Bytes of payload in memory, of this node";
        out.gauge("payload_bytes_in_flight", help, supervisor.payload_bytes as f64)?;
        out.gauge("signers", "Signer threads", self.signers as f64)?;
        let help = "Things that keep this node from its work; `chancery status` names them";
        out.gauge("troubles", help, self.troubles as f64)?;
        let states: Vec<(&str, f64)> = ["running", "paused", "draining"]
            .into_iter()
            .map(|word| (word, f64::from(u8::from(word == *state))))
            .collect();
        out.gauges("node_state", "1 for the state that this node is in", "state", &states)?;
        let help = "Connections of this process to its database";
        let connections = [("in_use", self.pool.in_use.into()), ("idle", self.pool.idle.into())];
        out.gauges("database_connections", help, "state", &connections)?;
        let schema = crate::db::migrate::newest_version();
        let build = [("version", self.version), ("schema", schema.as_str())];
        out.info("build_info", "Always 1; what this process was built of", &build)
    }

    fn of_the_database(&self, out: &mut Out<'_>) -> fmt::Result {
        let up = f64::from(u8::from(self.numbers.is_some()));
        out.gauge("database_up", "1 if the database answers", up)?;
        let Some(numbers) = &self.numbers else { return Ok(()) };
        let DatabaseNumbers { backlog, progress, keys, nodes_alive, ring_paused } = **numbers;
        let help = "Records without a signature, counted up to 100,000 behind the cursor";
        out.gauge("records_pending", help, (backlog.waiting + backlog.in_batches) as f64)?;
        let help = "How long the oldest of them has waited";
        let oldest_s = backlog.oldest.map_or(0.0, |oldest| oldest.as_secs_f64());
        out.gauge("oldest_pending_seconds", help, oldest_s)?;
        let quarantined = progress.quarantined_records as f64;
        out.gauge("records_quarantined", "Records in quarantine", quarantined)?;
        let quarantined = progress.quarantined_batches as f64;
        out.gauge("batches_quarantined", "Batches in quarantine", quarantined)?;
        let by_status = [
            ("active", keys.active as f64),
            ("disabled", keys.disabled as f64),
            ("retired", keys.retired as f64),
            ("destroyed", keys.destroyed as f64),
        ];
        out.gauges("keys", "Keys of the ring, by status", "status", &by_status)?;
        let free = keys.active.saturating_sub(keys.in_use) as f64;
        out.gauge("keys_free", "Active keys that are not in use", free)?;
        out.gauge("key_uses_open", "Keys in use, on all nodes", keys.in_use as f64)?;
        let help = "Nodes that have reported within their lease";
        out.gauge("nodes_alive", help, nodes_alive as f64)?;
        let paused = f64::from(u8::from(ring_paused));
        out.gauge("ring_paused", "1 if the ring is paused on all nodes", paused)?;
        out.gauge("ring_tick", "The ring's clock", progress.tick as f64)
    }
}

/// Writes metrics of this program.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.one(name, help, &ConstCounter::new(value))
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.one(name, help, &ConstGauge::new(value))
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let values = values.iter().map(|(word, value)| (*word, ConstCounter::new(*value)));
        self.many(name, help, label, values)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(&str, f64)],
    ) -> fmt::Result {
        let values = values.iter().map(|(word, value)| (*word, ConstGauge::new(*value)));
        self.many(name, help, label, values)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        let name = full(name);
        let metric = ConstGauge::new(1_i64);
        let mut encoder = self.0.encode_descriptor(&name, help, None, metric.metric_type())?;
        metric.encode(encoder.encode_family(&labels)?)
    }

    fn one(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        let name = full(name);
        let encoder = self.0.encode_descriptor(&name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn many<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Iterator<Item = (impl AsRef<str>, M)>,
    ) -> fmt::Result {
        let values: Vec<(String, M)> =
            values.map(|(word, metric)| (word.as_ref().to_owned(), metric)).collect();
        let name = full(name);
        let Some((_, first)) = values.first() else { return Ok(()) };
        let mut encoder = self.0.encode_descriptor(&name, help, None, first.metric_type())?;
        for (word, metric) in &values {
            let labels = [(label, word.as_str())];
            metric.encode(encoder.encode_family(&labels.as_slice())?)?;
        }
        Ok(())
    }
}

fn full(name: &str) -> String {
    format!("chancery_{name}")
}
