//! `chancery seed`

use std::time::Instant;

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::db::{NewRecord, Ring, Store};
use crate::seed::{PayloadSizes, SeedPayloads};

/// How many bytes of payload, and how many records, go into one transaction.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
const CHUNK_RECORDS: usize = 20_000;

/// Fill the ring with records of random payloads
#[derive(clap::Args)]
pub(super) struct Seed {
    /// How many records
    #[arg(long, value_name = "N")]
    records: u64,
    /// Bytes of each payload: a number, or a range such as 64..4096
    #[arg(long, value_name = "SIZES", default_value = "256")]
    payload_bytes: PayloadSizes,
    /// Makes the same payloads each time; without it they are random
    #[arg(long, value_name = "N")]
    random_seed: Option<u64>,
}

impl Seed {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let random_seed = match self.random_seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| anyhow::anyhow!("no randomness: {error}"))?,
        };
        let payloads = SeedPayloads::new(random_seed, self.payload_bytes);
        let begin = Instant::now();
        seed(database.store.as_ref(), &ring, self.records, payloads)?;
        let records = output::counted(self.records, "record");
        output::print_line(&format!(
            "seeded {records} into ring {} of {} in {} (--random-seed {random_seed})",
            ring.name,
            database.name,
            output::seconds(begin.elapsed())
        ))?;
        Ok(Outcome::Done)
    }
}

/// Inserts `records` records in chunks, and brings the statistics up to date.
pub(super) fn seed(
    store: &dyn Store,
    ring: &Ring,
    records: u64,
    mut payloads: SeedPayloads,
) -> anyhow::Result<()> {
    let bar = output::record_bar("seeding", records);
    let mut left = records;
    while left > 0 {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while left > 0 && bytes < CHUNK_BYTES && chunk.len() < CHUNK_RECORDS {
            let Some(payload) = payloads.next() else { break };
            bytes += payload.len();
            chunk.push(NewRecord { external_id: None, payload });
            left -= 1;
        }
        store.insert_records(ring.id, &chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    super::after_intake(store, records)?;
    Ok(())
}
