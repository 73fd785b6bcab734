//! `chancery demo`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{Context, Outcome, audit, keys, output, run, seed, verify};
use crate::app::{self, MissingDatabase, UsageError};
use crate::config::{DatabaseUrl, RingNames};
use crate::seed::{PayloadSizes, SeedPayloads};
use crate::types::BatchSize;

/// Seed, sign, verify and audit a new SQLite database: all of Chancery in one command
#[derive(clap::Args)]
pub(super) struct Demo {
    /// How many records
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    records: u64,
    /// How many keys
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// Records in a batch [default: 500]
    #[arg(long, value_name = "N")]
    batch_size: Option<std::num::NonZeroU32>,
    /// A folder without a chancery.db in it [default: chancery-demo, or the next free number]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, mut context: Context) -> anyhow::Result<Outcome> {
        let folder = self.folder()?;
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join("chancery.db");
        context.config.database.url = DatabaseUrl::Sqlite { path: path.clone() };
        context.config.keys.kek_file = None;
        if !context.ring_flag {
            context.config.signing.ring = RingNames::default();
        }
        if let Some(batch_size) = self.batch_size {
            context.config.signing.batch_size = BatchSize(batch_size);
        }

        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let store = database.store.as_ref();
        let records = output::counted(self.records, "record");

        let begin = Instant::now();
        let (keks, _) = app::load_or_make_keks(&context.config, store)?;
        keys::generate(store, &ring, &keks, self.keys, false)?;
        let made = output::counted(self.keys.into(), "private key");
        step("keys", &format!("{made}, sealed under {}.kek", path.display()), begin.elapsed())?;

        let begin = Instant::now();
        let sizes = PayloadSizes::new(256, 256)?;
        seed::seed(store, &ring, self.records, SeedPayloads::new(random_seed()?, sizes))?;
        step("seed", &format!("{records} of 256 random bytes"), begin.elapsed())?;

        let summary = run::sign(&context, &database, std::slice::from_ref(&ring))?;
        let unsigned = summary.without_active_key();
        anyhow::ensure!(unsigned.is_empty(), "{}", unsigned.join("; "));
        let of_ring = summary.rings.first().context("the node has signed no ring")?;
        let done = &of_ring.node.supervisor;
        let batches = output::counted(done.stored_batches, "batch");
        let used = output::counted(of_ring.keys_used, "key");
        let rate = output::rate(done.signed_records, summary.time);
        let signed = format!("{records} in {batches} with {used}: {rate}");
        step("sign", &signed, summary.time)?;
        if summary.outcome() != Outcome::Done {
            return Ok(summary.outcome());
        }

        let begin = Instant::now();
        let verified = verify::verify_with_bar(store, None)?;
        let valid = format!(
            "{} of {} valid",
            output::count(verified.valid),
            output::counted(verified.checked, "signature")
        );
        step("verify", &valid, begin.elapsed())?;

        let begin = Instant::now();
        let audited = audit::audit_with_bar(store)?;
        let ticks: u64 = audited.rings.iter().map(|ring| ring.ticks.0.unsigned_abs()).sum();
        let replayed =
            format!("{} replayed, {}", output::counted(ticks, "tick"), audit::verdict(&audited));
        step("audit", &replayed, begin.elapsed())?;

        if !verified.is_clean() || !audited.is_clean() {
            return Ok(Outcome::Broken);
        }
        let all_signed = verified.checked == self.records;
        anyhow::ensure!(all_signed, "{} signatures for {records}", verified.checked);
        next_steps(&path)?;
        Ok(Outcome::Done)
    }

    /// The folder to use: the one asked for, or the first that has no database yet.
    fn folder(&self) -> anyhow::Result<PathBuf> {
        let is_free = |folder: &Path| !folder.join("chancery.db").exists();
        match &self.dir {
            Some(folder) if is_free(folder) => Ok(folder.clone()),
            Some(folder) => Err(UsageError(format!(
                "{} exists already: the demo makes a database of its own, so name another folder",
                folder.join("chancery.db").display()
            ))
            .into()),
            None => {
                let numbered = (2..).map(|n| PathBuf::from(format!("chancery-demo-{n}")));
                std::iter::once(PathBuf::from("chancery-demo"))
                    .chain(numbered)
                    .find(|folder| is_free(folder))
                    .context("no free folder name")
            }
        }
    }
}

fn random_seed() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("no randomness: {error}"))
}

/// One line of the summary.
fn step(what: &str, result: &str, time: Duration) -> anyhow::Result<()> {
    output::print_line(&format!("  {what:<7} {:>8}   {result}", output::seconds(time)))
}

fn next_steps(path: &Path) -> anyhow::Result<()> {
    let program = std::env::args().next().unwrap_or_else(|| "chancery".to_owned());
    let chancery = format!("{program} --database-url sqlite://{}", path.display());
    output::print_line(&format!(
        "
Every record has exactly one signature. No key was ever used twice at a time, each batch has one
key, and the keys took turns, least recently used first. Do not take our word for it:

  {chancery} status
  {chancery} keys list
  {chancery} audit --json
  {chancery} export | head -1

Sign more:

  {chancery} seed --records 50000
  {chancery} run"
    ))
}
