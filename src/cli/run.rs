//! `chancery run`

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;

use super::{Context, Outcome, SigningFlags, output};
use crate::actors::supervisor::Finished;
use crate::app::signals::Signals;
use crate::app::{self, Connected, MissingDatabase, Mode, Node, NodeParts, NodeSnapshot, RingEnd};
use crate::db::{Ring, Store, StoreError};
use crate::types::RingId;

/// Sign until no record is unsigned
#[derive(clap::Args)]
#[command(after_help = "\
Ctrl-C or SIGTERM finishes the batches in flight, returns their keys and ends; a second one ends at
once. Nothing is lost either way: run it again. Several nodes on one PostgreSQL share the work; on
SQLite a second one waits for the first.")]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) signing: SigningFlags,
}

impl Run {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let mut rings = Vec::new();
        let mut keyless = Vec::new();
        let all = context.signed_rings(&database)?;
        let several = all.len() > 1;
        for ring in all {
            let keys = app::ask_database(&context.config, || database.store.keys(ring.id))?;
            if !keys.is_empty() {
                rings.push(ring);
                continue;
            }
            let remaining = database.store.remaining(ring.id)?;
            if !remaining.is_done() {
                let flag = if several { format!(" --ring {}", ring.name) } else { String::new() };
                keyless.push(format!(
                    "ring {} has {} and no key: `chancery keys generate --count 100{flag}` makes some",
                    ring.name,
                    output::counted(remaining.unsigned, "unsigned record")
                ));
            }
        }
        if rings.is_empty() && keyless.is_empty() {
            output::print_line(&format!("nothing to sign in {}", database.name))?;
            return Ok(Outcome::Done);
        }
        let outcome = if rings.is_empty() {
            Outcome::Done
        } else {
            for ring in &keyless {
                tracing::warn!("{ring}");
            }
            let summary = sign(context, &database, &rings)?;
            summary.print(&database)?;
            keyless.extend(summary.without_active_key());
            summary.outcome()
        };
        if !keyless.is_empty() && outcome != Outcome::Interrupted {
            bail!("{}", keyless.join("; "));
        }
        Ok(outcome)
    }
}

/// What a run did.
pub(super) struct Summary {
    pub(super) rings: Vec<RingSummary>,
    pub(super) time: Duration,
}

/// What a run did for one ring.
pub(super) struct RingSummary {
    ring: Ring,
    finished: Finished,
    pub(super) node: NodeSnapshot,
    pub(super) keys_used: u64,
    quarantined: u64,
}

impl Summary {
    /// The end of the run as a whole: what was left undone counts before what is in quarantine.
    pub(super) fn outcome(&self) -> Outcome {
        let outcomes: Vec<Outcome> = self.rings.iter().map(RingSummary::outcome).collect();
        let gravest = [Outcome::Interrupted, Outcome::Quarantined];
        gravest.into_iter().find(|one| outcomes.contains(one)).unwrap_or(Outcome::Done)
    }

    /// What to say of each ring that has records and no active key.
    pub(super) fn without_active_key(&self) -> Vec<String> {
        let told = self.rings.iter().filter_map(|ring| match ring.finished {
            Finished::NoActiveKey(remaining) => Some(format!(
                "ring {} has {} and no active key: enable one, or `chancery keys generate`",
                ring.ring.name,
                output::counted(remaining.unsigned, "unsigned record")
            )),
            _ => None,
        });
        told.collect()
    }

    fn print(&self, database: &Connected) -> anyhow::Result<()> {
        if let [ring] = self.rings.as_slice() {
            if matches!(ring.finished, Finished::NoActiveKey(_)) {
                return Ok(());
            }
            output::print_line(&format!("{}: {}", ring.done(self.time), ring.rate(self.time)))?;
        } else {
            let records = self.rings.iter().map(|ring| ring.node.supervisor.signed_records).sum();
            output::print_line(&format!(
                "{} {} of {} in {}: {}",
                self.how(),
                output::counted(records, "record"),
                output::counted(self.rings.len() as u64, "ring"),
                output::seconds(self.time),
                output::rate(records, self.time)
            ))?;
            for ring in &self.rings {
                output::print_line(&format!("ring {}: {}", ring.ring.name, ring.done(self.time)))?;
            }
        }
        for ring in &self.rings {
            ring.print_rest(database)?;
        }
        Ok(())
    }

    fn how(&self) -> &'static str {
        match self.outcome() {
            Outcome::Interrupted => "interrupted after signing",
            _ => "signed",
        }
    }
}

impl RingSummary {
    fn outcome(&self) -> Outcome {
        match self.finished {
            Finished::Drained(_) => Outcome::Interrupted,
            _ if self.quarantined > 0 => Outcome::Quarantined,
            _ => Outcome::Done,
        }
    }

    fn done(&self, time: Duration) -> String {
        let done = &self.node.supervisor;
        let how = match self.outcome() {
            Outcome::Interrupted => "interrupted after signing",
            _ => "signed",
        };
        format!(
            "{how} {} in {} with {} in {}",
            output::counted(done.signed_records, "record"),
            output::counted(done.stored_batches, "batch"),
            output::counted(self.keys_used, "key"),
            output::seconds(time),
        )
    }

    fn rate(&self, time: Duration) -> String {
        output::rate(self.node.supervisor.signed_records, time)
    }

    /// What does not stand in its first line.
    fn print_rest(&self, database: &Connected) -> anyhow::Result<()> {
        let (ring, database) = (&self.ring.name, &database.name);
        let fenced = self.node.supervisor.fenced_batches;
        if fenced > 0 {
            let batches = output::counted(fenced, "batch");
            output::print_line(&format!("{batches} of this node were signed by another: fenced"))?;
        }
        if self.quarantined > 0 {
            output::print_line(&format!(
                "{} in quarantine: `chancery status` and the log say more",
                output::counted(self.quarantined, "record")
            ))?;
        }
        match &self.finished {
            Finished::Drained(report) if report.left_in_flight > 0 => output::print_line(&format!(
                "{} left unfinished; their keys come back when their leases end",
                output::counted(report.left_in_flight, "batch")
            )),
            Finished::Drained(_) => output::print_line("the rest is signed by the next run"),
            Finished::Done(_) if self.quarantined > 0 => output::print_line(&format!(
                "every other record of ring {ring} in {database} is signed"
            )),
            Finished::Done(_) => {
                output::print_line(&format!("no record of ring {ring} in {database} is unsigned"))
            }
            // Told at the end.
            Finished::NoActiveKey(_) | Finished::Failed(_) | Finished::Faulty(_) => Ok(()),
        }
    }
}

/// Signs rings to their ends, with a progress bar.
pub(super) fn sign(
    context: &Context,
    database: &Connected,
    rings: &[Ring],
) -> anyhow::Result<Summary> {
    let config = &context.config;
    let parts = app::ring_parts(config, &database.store, rings, || app::load_keks(config))?;
    let lock = app::wait_for_signing_lock(database.store.as_ref(), &context.node)?;
    let store = Arc::clone(&database.store);
    // Another process may have signed until the lock was free.
    let at_start = app::ask_database(config, || store.rings())?;
    let bar = output::record_bar("signing", 0);
    let mut before = Before::default();
    if !bar.is_hidden() {
        before = Before::of(context, database, rings)?;
        bar.set_length(before.unsettled);
    }
    let begin = Instant::now();
    let parts = NodeParts {
        store: Arc::clone(&store),
        config: config.clone(),
        node: context.node.clone(),
        rings: parts,
        lock,
        mode: Mode::UntilDone,
    };
    let lease = config.lease.duration();
    let watched: Vec<RingId> = rings.iter().map(|ring| ring.id).collect();
    let (ends, snapshots) = actix::System::new().block_on(async move {
        let mut node = Node::start(parts)?;
        let ends = watch(&mut node, &store, watched, before, bar, lease).await?;
        let snapshots = node.observe().await;
        node.stop().await;
        anyhow::Ok((ends, snapshots))
    })?;
    let time = begin.elapsed();
    let mut summaries = Vec::new();
    for (RingEnd { ring, finished }, node) in ends.into_iter().zip(snapshots) {
        if let Finished::Faulty(error) = finished {
            return Err(error.into());
        }
        if let Finished::Failed(error) = finished {
            let name = &database.name;
            return Err(anyhow::Error::from(error).context(format!("cannot go on with {name}")));
        }
        let first_tick = at_start.iter().find(|r| r.id == ring.id).map_or(ring.tick, |r| r.tick);
        let keys = app::ask_database(config, || database.store.keys(ring.id))?;
        let progress = app::ask_database(config, || database.store.progress(ring.id))?;
        let keys_used = keys.iter().filter(|key| key.last_tick > first_tick).count() as u64;
        let quarantined = progress.quarantined_records;
        summaries.push(RingSummary { ring, finished, node, keys_used, quarantined });
    }
    Ok(Summary { rings: summaries, time })
}

/// How many records were settled before a node began, signed or in quarantine, and how many were not.
#[derive(Clone, Copy, Default)]
struct Before {
    settled: u64,
    unsettled: u64,
}

impl Before {
    fn of(context: &Context, database: &Connected, rings: &[Ring]) -> anyhow::Result<Before> {
        let store = &database.store;
        let mut before = Before { settled: 0, unsettled: 0 };
        for ring in rings {
            let settled = app::ask_database(&context.config, || settled(store.as_ref(), ring.id))?;
            let records = app::ask_database(&context.config, || store.record_count(ring.id))?;
            before.settled += settled;
            before.unsettled += records.saturating_sub(settled);
        }
        Ok(before)
    }
}

/// How many records of a ring are signed or in quarantine.
fn settled(store: &dyn Store, ring: RingId) -> Result<u64, StoreError> {
    let progress = store.progress(ring)?;
    Ok(progress.signed_records + progress.quarantined_records)
}

/// Waits for the end of a node's work, moving a bar and minding signals meanwhile.
async fn watch(
    node: &mut Node,
    store: &Arc<dyn Store>,
    rings: Vec<RingId>,
    before: Before,
    bar: ProgressBar,
    lease: Duration,
) -> anyhow::Result<Vec<RingEnd>> {
    let mut signals = Signals::listen()?;
    let mut ticker = tokio::time::interval(Duration::from_millis(250));
    let ends = loop {
        tokio::select! {
            ends = node.finished() => break ends,
            signal = signals.next() => {
                let batches = output::counted(node.in_flight().await.into(), "batch");
                output::eprint_line(&format!(
                    "{signal}: finishing {batches} in flight; once more to end at once"
                ));
                break drain(node, &mut signals, lease).await;
            }
            _ = ticker.tick(), if !bar.is_hidden() => {
                let (store, rings) = (Arc::clone(store), rings.clone());
                // All nodes' progress, not only this one's; a failure is told by the node itself.
                let look = move || -> Result<u64, StoreError> {
                    rings.into_iter().map(|ring| settled(store.as_ref(), ring)).sum()
                };
                if let Ok(Ok(now)) = tokio::task::spawn_blocking(look).await {
                    bar.set_position(now.saturating_sub(before.settled));
                }
            }
        }
    };
    bar.finish_and_clear();
    Ok(ends)
}

/// Drains a node; a second signal ends the process at once.
pub(super) async fn drain(node: &mut Node, signals: &mut Signals, lease: Duration) -> Vec<RingEnd> {
    tokio::select! {
        // A ring whose actors are gone says so with its end.
        _ = node.drain(lease) => {}
        signal = signals.next() => {
            output::eprint_line(&format!("{signal} again: ending at once; leases bring the keys back"));
            std::process::exit(1);
        }
    }
    node.finished().await
}
