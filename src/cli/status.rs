//! `chancery status`

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::db::{Blocker, Progress, Remaining, Store, migrate};
use crate::types::{KeyStatus, NodeId};

/// Show where every ring stands
#[derive(clap::Args)]
pub(super) struct Status {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct StatusView {
    database: String,
    server: String,
    schema_version: String,
    rings: Vec<RingView>,
    open_uses: Vec<UseView>,
    blockers: Vec<Blocker>,
}

#[derive(Serialize)]
struct RingView {
    name: String,
    tick: i64,
    records: RecordsView,
    batches: BatchesView,
    keys: KeysView,
}

#[derive(Serialize)]
struct RecordsView {
    total: u64,
    signed: u64,
    unsigned: u64,
    quarantined: u64,
}

#[derive(Serialize)]
struct BatchesView {
    open: u64,
    retry: u64,
    stored: u64,
    quarantined: u64,
}

#[derive(Default, Serialize)]
struct KeysView {
    active: u64,
    in_use: u64,
    disabled: u64,
    retired: u64,
    destroyed: u64,
}

#[derive(Serialize)]
struct UseView {
    fence: i64,
    batch: i64,
    key: i64,
    node: NodeId,
    checked_out_at: String,
    expires_at: String,
}

impl Status {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let status = look(database.store.as_ref(), database.name)?;
        if self.json {
            output::print_json(&status)?
        } else {
            print(&status)?
        }
        Ok(Outcome::Done)
    }
}

fn look(store: &dyn Store, database: String) -> anyhow::Result<StatusView> {
    let mut rings = Vec::new();
    for ring in store.rings()? {
        let progress = store.progress(ring.id)?;
        let remaining = store.remaining(ring.id)?;
        let mut keys = KeysView::default();
        for key in store.keys(ring.id)? {
            keys.in_use += u64::from(key.in_use);
            match key.status {
                KeyStatus::Active => keys.active += 1,
                KeyStatus::Disabled => keys.disabled += 1,
                KeyStatus::Retired => keys.retired += 1,
                KeyStatus::Destroyed => keys.destroyed += 1,
            }
        }
        rings.push(ring_view(ring.name, progress, remaining, keys));
    }
    let open_uses = store.open_uses()?;
    Ok(StatusView {
        database,
        server: store.server_version()?,
        schema_version: migrate::newest_version(),
        rings,
        open_uses: open_uses
            .into_iter()
            .map(|open| UseView {
                fence: open.key_use.fence.0.0,
                batch: open.key_use.batch.0,
                key: open.key_use.key.0,
                node: open.node,
                checked_out_at: open.checked_out_at.to_string(),
                expires_at: open.expires_at.to_string(),
            })
            .collect(),
        blockers: store.blockers()?,
    })
}

fn ring_view(name: String, progress: Progress, remaining: Remaining, keys: KeysView) -> RingView {
    let Remaining { records, unsigned, quarantined, .. } = remaining;
    RingView {
        name,
        tick: progress.tick,
        records: RecordsView {
            total: records,
            signed: records.saturating_sub(unsigned + quarantined),
            unsigned,
            quarantined,
        },
        batches: BatchesView {
            open: progress.open_batches,
            retry: progress.retry_batches,
            stored: progress.stored_batches,
            quarantined: progress.quarantined_batches,
        },
        keys,
    }
}

fn print(status: &StatusView) -> anyhow::Result<()> {
    let count = output::count;
    output::print_line(&format!(
        "{}  {}, schema {}",
        status.database, status.server, status.schema_version
    ))?;
    for ring in &status.rings {
        let RecordsView { total, signed, unsigned, quarantined } = ring.records;
        output::print_line(&format!(
            "\nring {}, tick {}",
            ring.name,
            count(ring.tick.unsigned_abs())
        ))?;
        output::print_line(&format!(
            "  records  {} in all: {} signed, {} unsigned, {} in quarantine",
            count(total),
            count(signed),
            count(unsigned),
            count(quarantined)
        ))?;
        let BatchesView { open, retry, stored, quarantined } = ring.batches;
        output::print_line(&format!(
            "  batches  {} stored, {} open, {} to be retried, {} in quarantine",
            count(stored),
            count(open),
            count(retry),
            count(quarantined)
        ))?;
        let KeysView { active, in_use, disabled, retired, destroyed } = ring.keys;
        output::print_line(&format!(
            "  keys     {} active ({} in use), {} disabled, {} retired, {} destroyed",
            count(active),
            count(in_use),
            count(disabled),
            count(retired),
            count(destroyed)
        ))?;
    }
    let mut nodes: BTreeMap<&str, u64> = BTreeMap::new();
    for open in &status.open_uses {
        *nodes.entry(open.node.0.as_str()).or_default() += 1;
    }
    for (node, uses) in nodes {
        let batches = output::counted(uses, "batch");
        output::print_line(&format!("\nnode {node} has {batches} in hand"))?;
    }
    for blocker in &status.blockers {
        output::print_line(&format!(
            "\nwaiting for a transaction of {} s in database {}: process {}, {:?}: records inserted \
             since are not signed before it ends",
            blocker.age_s, blocker.database, blocker.pid, blocker.application
        ))?;
    }
    Ok(())
}
