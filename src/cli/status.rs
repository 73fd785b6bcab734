//! `chancery status`

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::db::{Blocker, KeyCounts, Node, Progress, Remaining, Store, migrate};
use crate::types::{NodeId, NodeState, Timestamp};

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
    /// What would keep writes from succeeding now.
    write_trouble: Option<String>,
    rings: Vec<RingView>,
    nodes: Vec<NodeView>,
    open_uses: Vec<UseView>,
    blockers: Vec<Blocker>,
}

#[derive(Serialize)]
struct RingView {
    name: String,
    tick: i64,
    records: RecordsView,
    batches: BatchesView,
    keys: KeyCounts,
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

#[derive(Serialize)]
struct NodeView {
    id: NodeId,
    name: String,
    host: String,
    process_id: u32,
    version: String,
    state: NodeState,
    /// Neither stopped nor silent for longer than a lease.
    alive: bool,
    in_flight: u32,
    trouble: Option<String>,
    lease_s: f64,
    started_at: Timestamp,
    last_seen_at: Timestamp,
    silent_s: f64,
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
        let keys = store.key_counts(ring.id)?;
        rings.push(ring_view(ring.name, progress, remaining, keys));
    }
    let open_uses = store.open_uses()?;
    let nodes = store.nodes()?;
    Ok(StatusView {
        database,
        server: store.server_version()?,
        schema_version: migrate::newest_version(),
        write_trouble: store.write_trouble()?,
        rings,
        nodes: nodes.into_iter().map(NodeView::from).collect(),
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

impl From<Node> for NodeView {
    fn from(node: Node) -> Self {
        let alive = node.is_alive();
        let Node { id, report, started_at, last_seen_at, silent_for } = node;
        NodeView {
            id,
            name: report.name,
            host: report.host,
            process_id: report.process_id,
            version: report.version,
            state: report.state,
            alive,
            in_flight: report.in_flight,
            trouble: report.trouble,
            lease_s: report.lease.as_secs_f64(),
            started_at,
            last_seen_at,
            silent_s: silent_for.as_secs_f64(),
        }
    }
}

fn ring_view(name: String, progress: Progress, remaining: Remaining, keys: KeyCounts) -> RingView {
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
    if let Some(trouble) = &status.write_trouble {
        output::print_line(&format!("\nwrites fail, or may soon: {trouble}"))?;
    }
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
        let KeyCounts { active, in_use, disabled, retired, destroyed } = ring.keys;
        output::print_line(&format!(
            "  keys     {} active ({} in use), {} disabled, {} retired, {} destroyed",
            count(active),
            count(in_use),
            count(disabled),
            count(retired),
            count(destroyed)
        ))?;
    }
    print_nodes(status)?;
    for blocker in &status.blockers {
        output::print_line(&format!("\n{blocker}"))?;
    }
    Ok(())
}

fn print_nodes(status: &StatusView) -> anyhow::Result<()> {
    let mut in_hand: BTreeMap<&NodeId, u64> = BTreeMap::new();
    for open in &status.open_uses {
        *in_hand.entry(&open.node).or_default() += 1;
    }
    let mut gone = 0;
    for node in &status.nodes {
        let batches = in_hand.remove(&node.id).unwrap_or(0);
        if !node.alive && batches == 0 {
            gone += 1;
            continue;
        }
        let state = if node.alive {
            node.state.to_string()
        } else {
            format!(
                "silent for {:.0} s, longer than its lease of {} s",
                node.silent_s, node.lease_s
            )
        };
        output::print_line(&format!(
            "\nnode {}, {state}, with {} in hand\n  process {} on {}, version {}, since {}",
            node.name,
            output::counted(batches, "batch"),
            node.process_id,
            node.host,
            node.version,
            node.started_at
        ))?;
        if let Some(trouble) = &node.trouble {
            output::print_line(&format!("  trouble: {trouble}"))?;
        }
    }
    for (node, batches) in in_hand {
        let batches = output::counted(batches, "batch");
        output::print_line(&format!("\nnode {node}, not listed, has {batches} in hand"))?;
    }
    if gone > 0 {
        let nodes = output::counted(gone, "node");
        output::print_line(&format!(
            "\n{nodes} of the last seven days gone, with nothing in hand"
        ))?;
    }
    Ok(())
}
