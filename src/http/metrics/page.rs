//! The page of metrics: gathered from actors and database, then written down.

use std::fmt;
use std::sync::Arc;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use futures::future::join_all;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::db::{Backlog, KeyCounts, PoolState, Progress, Store, StoreError};
use crate::http::auth::caller_of;
use crate::http::health::MOST_COUNTED;
use crate::http::metrics::IntakeCounters;
use crate::http::problem::Problem;
use crate::http::service::NodeState;
use crate::http::tallies::Tallies;
use crate::http::{Rings, Shared, cached::Cached};
use crate::metrics::Timings;
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
    rings: Data<Rings>,
) -> Result<HttpResponse, Problem> {
    if !shared.config.public_metrics && !caller_of(&request).await?.may(Role::Reader) {
        return Err(Problem::forbidden(Role::Reader.as_str()));
    }
    let page = Page {
        rings: join_all(rings.0.iter().map(|shared| OfRing::of(shared))).await,
        pool: shared.store.pool_state(),
        version: shared.version,
        signers: shared.signing.as_ref().map_or(0, |signing| signing.signers),
    };
    let mut registry = Registry::default();
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
    rings: Vec<OfRing>,
    pool: PoolState,
    version: &'static str,
    signers: usize,
}

/// What there is to say of one ring.
#[derive(Debug)]
struct OfRing {
    name: String,
    node: NodeState,
    troubles: usize,
    timings: Option<Timings>,
    intake: IntakeCounters,
    /// `None` if the database does not answer.
    numbers: Option<Arc<DatabaseNumbers>>,
}

impl OfRing {
    async fn of(shared: &Shared) -> OfRing {
        let signing = shared.signing.as_ref();
        let (node, numbers) = futures::join!(shared.node_state(), shared.numbers());
        OfRing {
            name: shared.ring.name.clone(),
            node,
            troubles: signing.map_or(0, |signing| signing.troubles.places().len()),
            timings: signing.map(|signing| signing.timings.clone()),
            intake: shared.intake_counters.clone(),
            numbers,
        }
    }
}

/// Numbers of a ring with a word each, of the label that a metric has beside `ring`.
type ByWord<T> = Vec<(&'static str, T)>;

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Out { encoder, rings: &self.rings };
        out.timings()?;
        Page::of_the_work(&mut out)?;
        self.of_the_node(&mut out)?;
        self.of_the_database(&mut out)
    }
}

impl Page {
    fn of_the_work(out: &mut Out<'_, '_>) -> fmt::Result {
        let help = "Records taken in over HTTP";
        out.counter("records_accepted", help, |ring| ring.intake.accepted.get())?;
        let help = "Records sent again over HTTP, with the same payload";
        out.counter("intake_duplicates", help, |ring| ring.intake.duplicates.get())?;
        let help = "Records refused over HTTP: their external id has another payload";
        out.counter("intake_conflicts", help, |ring| ring.intake.conflicts.get())?;
        let help = "Records signed and stored";
        out.counter("records_signed", help, |ring| ring.node.supervisor.signed_records)?;
        let help = "Batches that this node was done with, by how";
        out.counters("batches", help, "outcome", |ring| {
            let supervisor = &ring.node.supervisor;
            vec![
                ("stored", supervisor.stored_batches),
                ("fenced", supervisor.fenced_batches),
                ("given_up", supervisor.given_up_batches),
            ]
        })?;
        let help = "Batches signed in vain: their use had been ended meanwhile";
        out.counter("stores_fenced", help, |ring| ring.node.writer.fenced)?;
        let help = "Stores refused because a record had a signature already: an alarm";
        out.counter("double_signs_prevented", help, |ring| ring.node.writer.double_signs)?;
        let help = "Stores tried again: the database was busy or not reachable";
        out.counter("store_repeats", help, |ring| ring.node.writer.repeated)?;
        let help = "Uses ended because their lease had run out, of whatever node";
        out.counter("uses_reclaimed", help, |ring| ring.node.key_manager.reclaimed)?;
        out.counter("leases_renewed", "Leases renewed", |ring| ring.node.key_manager.renewed)?;
        let help = "Signatures that did not verify before they were stored: an alarm";
        out.counter("faulty_signatures", help, |ring| ring.node.supervisor.faulty_signatures)?;
        let help = "Keys found damaged, and disabled";
        out.counter("keys_damaged", help, |ring| ring.node.key_manager.damaged_keys)?;
        let help = "Records that the cursor had missed and that were moved before it";
        out.counter("records_swept", help, |ring| ring.node.supervisor.swept_records)?;
        let help = "Batches checked out and not yet settled, of this node";
        out.gauge("batches_in_flight", help, |ring| Some(ring.node.supervisor.in_flight.into()))?;
        let help = "Private keys in this node's memory";
        out.gauge("keys_unsealed", help, |ring| Some(ring.node.key_manager.keys as f64))?;
        let help = "Things that keep this node from its work; `chancery status` names them";
        out.gauge("troubles", help, |ring| Some(ring.troubles as f64))
    }

    fn of_the_node(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let help = "Bytes of payload in memory, of this node";
        let in_memory = self.rings.iter().map(|ring| ring.node.supervisor.payload_bytes).max();
        out.of_node("payload_bytes_in_flight", help, in_memory.unwrap_or(0) as f64)?;
        out.of_node("signers", "Signer threads", self.signers as f64)?;
        // It runs as long as it signs any ring.
        let words = ["running", "draining", "paused"];
        let is_one = |word: &&str| self.rings.iter().any(|ring| ring.node.state == *word);
        let state = words.into_iter().find(is_one);
        let states: Vec<(&str, f64)> = ["running", "paused", "draining"]
            .into_iter()
            .map(|word| (word, f64::from(u8::from(Some(word) == state))))
            .collect();
        out.of_node_by("node_state", "1 for the state that this node is in", "state", &states)?;
        let help = "Connections of this process to its database";
        let connections = [("in_use", self.pool.in_use.into()), ("idle", self.pool.idle.into())];
        out.of_node_by("database_connections", help, "state", &connections)?;
        let schema = crate::db::migrate::newest_version();
        let build = [("version", self.version), ("schema", schema.as_str())];
        out.info("build_info", "Always 1; what this process was built of", &build)
    }

    fn of_the_database(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let mut answers = self.rings.iter().filter_map(|ring| ring.numbers.as_ref());
        let answer = answers.next();
        let up = f64::from(u8::from(answer.is_some()));
        out.of_node("database_up", "1 if the database answers", up)?;
        let Some(numbers) = answer else { return Ok(()) };
        let help = "Nodes that have reported within their lease";
        out.of_node("nodes_alive", help, numbers.nodes_alive as f64)?;
        let of = |ring: &OfRing, number: fn(&DatabaseNumbers) -> f64| {
            ring.numbers.as_deref().map(number)
        };
        let help = "Records without a signature, counted up to 100,000 behind the cursor";
        out.gauge("records_pending", help, |ring| {
            of(ring, |numbers| (numbers.backlog.waiting + numbers.backlog.in_batches) as f64)
        })?;
        let help = "How long the oldest of them has waited";
        out.gauge("oldest_pending_seconds", help, |ring| {
            of(ring, |numbers| numbers.backlog.oldest.map_or(0.0, |oldest| oldest.as_secs_f64()))
        })?;
        out.gauge("records_quarantined", "Records in quarantine", |ring| {
            of(ring, |numbers| numbers.progress.quarantined_records as f64)
        })?;
        out.gauge("batches_quarantined", "Batches in quarantine", |ring| {
            of(ring, |numbers| numbers.progress.quarantined_batches as f64)
        })?;
        out.gauges("keys", "Keys of the ring, by status", "status", |ring| {
            let Some(numbers) = &ring.numbers else { return Vec::new() };
            let keys = &numbers.keys;
            vec![
                ("active", keys.active as f64),
                ("disabled", keys.disabled as f64),
                ("retired", keys.retired as f64),
                ("destroyed", keys.destroyed as f64),
            ]
        })?;
        out.gauge("keys_free", "Active keys that are not in use", |ring| {
            of(ring, |numbers| numbers.keys.active.saturating_sub(numbers.keys.in_use) as f64)
        })?;
        out.gauge("key_uses_open", "Keys in use, on all nodes", |ring| {
            of(ring, |numbers| numbers.keys.in_use as f64)
        })?;
        out.gauge("ring_paused", "1 if the ring is paused on all nodes", |ring| {
            of(ring, |numbers| f64::from(u8::from(numbers.ring_paused)))
        })?;
        out.gauge("ring_tick", "The ring's clock", |ring| {
            of(ring, |numbers| numbers.progress.tick as f64)
        })
    }
}

/// Writes metrics of this program.
struct Out<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    rings: &'a [OfRing],
}

impl Out<'_, '_> {
    /// Of each ring, a number.
    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&OfRing) -> u64) -> fmt::Result {
        let rings = self.rings.iter();
        let values = rings.map(|ring| (vec![of(ring)], ConstCounter::new(value(ring)))).collect();
        self.write(name, help, values)
    }

    /// Of each ring that has it, a number.
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&OfRing) -> Option<f64>,
    ) -> fmt::Result {
        let with_value = |ring| Some((vec![of(ring)], ConstGauge::new(value(ring)?)));
        let values = self.rings.iter().filter_map(with_value).collect();
        self.write(name, help, values)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Fn(&OfRing) -> ByWord<u64>,
    ) -> fmt::Result {
        let with_words = |ring| {
            let values = values(ring).into_iter();
            values.map(move |(word, n)| (vec![of(ring), (label, word)], ConstCounter::new(n)))
        };
        let values = self.rings.iter().flat_map(with_words).collect();
        self.write(name, help, values)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Fn(&OfRing) -> ByWord<f64>,
    ) -> fmt::Result {
        let with_words = |ring| {
            let values = values(ring).into_iter();
            values.map(move |(word, n)| (vec![of(ring), (label, word)], ConstGauge::new(n)))
        };
        let values = self.rings.iter().flat_map(with_words).collect();
        self.write(name, help, values)
    }

    /// The histograms of each ring that is signed here.
    fn timings(&mut self) -> fmt::Result {
        let signed: Vec<_> = self
            .rings
            .iter()
            .filter_map(|ring| Some((ring, ring.timings.as_ref()?.all())))
            .collect();
        let Some((_, first)) = signed.first() else { return Ok(()) };
        for (n, (name, help, _)) in first.iter().enumerate() {
            let values = signed.iter().map(|(ring, all)| (vec![of(ring)], all[n].2.clone()));
            self.write(&format!("{name}_seconds"), help, values.collect())?;
        }
        Ok(())
    }

    /// A number of the node's.
    fn of_node(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let name = full(name);
        let metric = ConstGauge::new(value);
        let encoder = self.encoder.encode_descriptor(&name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn of_node_by(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(&str, f64)],
    ) -> fmt::Result {
        let values = values.iter().map(|(word, n)| (vec![(label, *word)], ConstGauge::new(*n)));
        self.write(name, help, values.collect())
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.write(name, help, vec![(labels.to_vec(), ConstGauge::new(1_i64))])
    }

    /// One metric, with labels for each of its values.
    fn write<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        values: Vec<(Vec<(&str, &str)>, M)>,
    ) -> fmt::Result {
        let name = full(name);
        let Some((_, first)) = values.first() else { return Ok(()) };
        let mut encoder = self.encoder.encode_descriptor(&name, help, None, first.metric_type())?;
        for (labels, metric) in &values {
            metric.encode(encoder.encode_family(&labels.as_slice())?)?;
        }
        Ok(())
    }
}

/// The label of a ring.
fn of(ring: &OfRing) -> (&'static str, &str) {
    ("ring", &ring.name)
}

fn full(name: &str) -> String {
    format!("chancery_{name}")
}
