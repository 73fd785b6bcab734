//! `chancery run`

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::{Context, Outcome, SigningFlags, output};
use crate::actors::supervisor::Finished;
use crate::app::signals::Signals;
use crate::app::{self, Connected, MissingDatabase, Mode, Node, NodeParts, NodeSnapshot};
use crate::db::{Ring, Store};
use crate::types::Provider;

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
        let ring = context.ring(&database)?;
        let keys = app::ask_database(&context.config, || database.store.keys(ring.id))?;
        if keys.is_empty() {
            let remaining = database.store.remaining(ring.id)?;
            if !remaining.is_done() {
                bail!(
                    "ring {} has {} and no key: `chancery keys generate --count 100` makes some",
                    ring.name,
                    output::counted(remaining.unsigned, "unsigned record")
                );
            }
            output::print_line(&format!("nothing to sign in {}", database.name))?;
            return Ok(Outcome::Done);
        }
        let summary = sign(context, &database, &ring)?;
        summary.print(&database, &ring)?;
        Ok(summary.outcome)
    }
}

/// What a run did.
pub(super) struct Summary {
    pub(super) outcome: Outcome,
    pub(super) node: NodeSnapshot,
    pub(super) time: Duration,
    pub(super) keys_used: u64,
    pub(super) quarantined: u64,
    left_in_flight: u64,
}

impl Summary {
    fn print(&self, database: &Connected, ring: &Ring) -> anyhow::Result<()> {
        let done = &self.node.supervisor;
        let how = match self.outcome {
            Outcome::Interrupted => "interrupted after signing",
            _ => "signed",
        };
        output::print_line(&format!(
            "{how} {} in {} with {} in {}: {}",
            output::counted(done.signed_records, "record"),
            output::counted(done.stored_batches, "batch"),
            output::counted(self.keys_used, "key"),
            output::seconds(self.time),
            output::rate(done.signed_records, self.time)
        ))?;
        if done.fenced_batches > 0 {
            let batches = output::counted(done.fenced_batches, "batch");
            output::print_line(&format!("{batches} of this node were signed by another: fenced"))?;
        }
        if self.quarantined > 0 {
            output::print_line(&format!(
                "{} in quarantine: `chancery status` and the log say more",
                output::counted(self.quarantined, "record")
            ))?;
        }
        match self.outcome {
            Outcome::Interrupted if self.left_in_flight > 0 => output::print_line(&format!(
                "{} left unfinished; their keys come back when their leases end",
                output::counted(self.left_in_flight, "batch")
            )),
            Outcome::Interrupted => output::print_line("the rest is signed by the next run"),
            Outcome::Quarantined => output::print_line(&format!(
                "every other record of ring {} in {} is signed",
                ring.name, database.name
            )),
            _ => output::print_line(&format!(
                "no record of ring {} in {} is unsigned",
                ring.name, database.name
            )),
        }
    }
}

/// Signs a ring to its end, with a progress bar.
pub(super) fn sign(
    context: &Context,
    database: &Connected,
    ring: &Ring,
) -> anyhow::Result<Summary> {
    let (keys, token) = match ring.provider {
        Provider::Software => {
            let kek = Arc::new(app::load_kek(&context.config)?);
            (app::unseal_keys(&context.config, &database.store, ring, kek)?, None)
        }
        Provider::Pkcs11 => {
            let token = app::open_token(&context.config)?;
            (app::keys_on_token(&context.config, &database.store, ring)?, Some(token))
        }
    };
    let lock = app::wait_for_signing_lock(database.store.as_ref(), &context.node)?;
    let store = Arc::clone(&database.store);
    let first_tick = context.ring(database)?.tick;
    let before = Before::of(context, database, ring)?;
    let begin = Instant::now();
    let parts = NodeParts {
        store: Arc::clone(&store),
        config: context.config.clone(),
        node: context.node.clone(),
        ring: ring.clone(),
        keys,
        token,
        lock,
        mode: Mode::UntilDone,
    };
    let lease = context.config.lease.duration();
    let (finished, node) = actix::System::new().block_on(async move {
        let mut node = Node::start(parts)?;
        let finished = watch(&mut node, &store, ring, before, lease).await?;
        let snapshot = node.observe().await;
        node.stop().await;
        anyhow::Ok((finished, snapshot))
    })?;
    let time = begin.elapsed();
    let keys = app::ask_database(&context.config, || database.store.keys(ring.id))?;
    let progress = app::ask_database(&context.config, || database.store.progress(ring.id))?;
    let keys_used = keys.iter().filter(|key| key.last_tick > first_tick).count() as u64;
    let mut summary = Summary {
        outcome: Outcome::Done,
        node,
        time,
        keys_used,
        quarantined: progress.quarantined_records,
        left_in_flight: 0,
    };
    match finished {
        Finished::Done(_) if summary.quarantined > 0 => summary.outcome = Outcome::Quarantined,
        Finished::Done(_) => {}
        Finished::Drained(report) => {
            summary.outcome = Outcome::Interrupted;
            summary.left_in_flight = report.left_in_flight;
        }
        Finished::NoActiveKey(remaining) => bail!(
            "ring {} has {} and no active key: enable one, or `chancery keys generate`",
            ring.name,
            output::counted(remaining.unsigned, "unsigned record")
        ),
        Finished::Failed(error) => {
            let name = &database.name;
            return Err(anyhow::Error::from(error).context(format!("cannot go on with {name}")));
        }
    }
    Ok(summary)
}

/// How many records were settled before a node began, signed or in quarantine, and how many were not.
#[derive(Clone, Copy)]
struct Before {
    settled: u64,
    unsettled: u64,
}

impl Before {
    fn of(context: &Context, database: &Connected, ring: &Ring) -> anyhow::Result<Before> {
        let store = &database.store;
        let progress = app::ask_database(&context.config, || store.progress(ring.id))?;
        let settled = progress.signed_records + progress.quarantined_records;
        let records = app::ask_database(&context.config, || store.record_count(ring.id))?;
        Ok(Before { settled, unsettled: records.saturating_sub(settled) })
    }
}

/// Waits for the end of a node's work, moving a bar and minding signals meanwhile.
async fn watch(
    node: &mut Node,
    store: &Arc<dyn Store>,
    ring: &Ring,
    before: Before,
    lease: Duration,
) -> anyhow::Result<Finished> {
    let Before { settled, unsettled } = before;
    let mut signals = Signals::listen()?;
    let bar = output::record_bar("signing", unsettled);
    let mut ticker = tokio::time::interval(Duration::from_millis(250));
    let finished = loop {
        tokio::select! {
            finished = node.finished() => break finished,
            signal = signals.next() => {
                let batches = output::counted(node.in_flight().await.into(), "batch");
                output::eprint_line(&format!(
                    "{signal}: finishing {batches} in flight; once more to end at once"
                ));
                break drain(node, &mut signals, lease).await;
            }
            _ = ticker.tick(), if !bar.is_hidden() => {
                let store = Arc::clone(store);
                let ring = ring.id;
                // All nodes' progress, not only this one's; a failure is told by the node itself.
                if let Ok(Ok(now)) = tokio::task::spawn_blocking(move || store.progress(ring)).await {
                    let settled_now = now.signed_records + now.quarantined_records;
                    bar.set_position(settled_now.saturating_sub(settled));
                }
            }
        }
    };
    bar.finish_and_clear();
    Ok(finished)
}

/// Drains a node; a second signal ends the process at once.
pub(super) async fn drain(node: &mut Node, signals: &mut Signals, lease: Duration) -> Finished {
    let report = tokio::select! {
        report = node.drain(lease) => report,
        signal = signals.next() => {
            output::eprint_line(&format!("{signal} again: ending at once; leases bring the keys back"));
            std::process::exit(1);
        }
    };
    match report {
        Some(report) => Finished::Drained(report),
        None => node.finished().await,
    }
}
