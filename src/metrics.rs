//! What a node measures of its own work: histograms that its actors fill and `/metrics` shows.
//!
//! Everything that can be counted is counted elsewhere, in the actors' snapshots and the database.

use prometheus_client::metrics::histogram::Histogram;

/// How long each step of a batch took, in seconds. Clones share what they measure.
#[derive(Clone, Debug)]
pub struct Timings {
    /// From the first checkout that found no free key to the next that found one.
    pub key_wait: Histogram,
    /// A checkout's transaction.
    pub check_out: Histogram,
    /// Loading and signing of a batch.
    pub sign: Histogram,
    /// From a signed batch to its settlement in the database, waiting for its group included.
    pub store: Histogram,
    /// From the insertion of a batch's first record to the storage of its signature.
    pub end_to_end: Histogram,
}

/// Upper bounds from a tenth of a millisecond to half a minute.
const STEP_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 30.0,
];

/// Upper bounds from two milliseconds to a day, for what may wait for long.
const AGE_BUCKETS: [f64; 16] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0,
    86400.0,
];

impl Default for Timings {
    fn default() -> Self {
        Timings {
            key_wait: Histogram::new(STEP_BUCKETS),
            check_out: Histogram::new(STEP_BUCKETS),
            sign: Histogram::new(STEP_BUCKETS),
            store: Histogram::new(STEP_BUCKETS),
            end_to_end: Histogram::new(AGE_BUCKETS),
        }
    }
}

impl Timings {
    /// The histograms with their public names, without prefix and unit, and what they say.
    #[must_use]
    pub fn all(&self) -> [(&'static str, &'static str, &Histogram); 5] {
        [
            ("key_wait", "How long work waited for a free key", &self.key_wait),
            ("check_out", "How long a checkout's transaction took", &self.check_out),
            ("sign", "How long loading and signing a batch took", &self.sign),
            ("store", "How long storing a batch took, waiting for its group included", &self.store),
            (
                "end_to_end",
                "From the insertion of a batch's first record to the storage of its signature",
                &self.end_to_end,
            ),
        ]
    }
}
