//! `/metrics`: what Prometheus scrapes, in the OpenMetrics text format.
//!
//! Counters and histograms belong to this process. What is read from the database (records that wait,
//! keys, nodes) is the same on every node: take the maximum over them, not the sum.

mod page;

use std::time::Duration;

use actix_web::http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(super) use page::{DatabaseNumbers, Numbers, metrics};

/// Upper bounds from half a millisecond to a minute, which a long poll may take.
const ANSWER_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// What the HTTP side of a node counts.
#[derive(Clone, Debug)]
pub(super) struct Counters {
    pub(super) authentication_failures: Counter,
    requests: Family<Request, Counter>,
    answers: Family<Path, Histogram>,
}

/// What it counts of the records that are sent to one ring.
#[derive(Clone, Debug, Default)]
pub(super) struct IntakeCounters {
    pub(super) accepted: Counter,
    pub(super) duplicates: Counter,
    pub(super) conflicts: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    path: String,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            authentication_failures: Counter::default(),
            requests: Family::default(),
            answers: Family::new_with_constructor(|| Histogram::new(ANSWER_BUCKETS)),
        }
    }
}

impl Counters {
    /// Counts a request by the pattern of its path: what a client makes up makes no new series.
    pub(super) fn request(&self, method: &Method, path: Option<&str>, status: u16, took: Duration) {
        let path = path.unwrap_or("none").to_owned();
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        self.answers.get_or_create(&Path { path: path.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Request { method, path, status }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "chancery_authentication_failures",
            "Requests with a token that opens nothing",
            self.authentication_failures.clone(),
        );
        registry.register("chancery_http_requests", "Requests answered", self.requests.clone());
        registry.register(
            "chancery_http_request_seconds",
            "How long an answer took until its head was sent",
            self.answers.clone(),
        );
    }
}
