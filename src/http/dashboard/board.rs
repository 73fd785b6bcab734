//! What the dashboard shows, taken once a second: all of it while somebody looks, and the rate and the
//! ages of what was signed always.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::web::Data;
use tokio::sync::watch;

use super::overview::{Action, InFlight, KeyDot, NodeRow, Overview, Quarantined, RingLink};
use super::place_of;
use crate::actors::off_thread;
use crate::config::is_ring_name;
use crate::db::{AdminEntry, BatchView, KeyGlance, Node, OpenUse, Store, StoreError};
use crate::http::Shared;
use crate::http::metrics::DatabaseNumbers;
use crate::types::{BatchId, BatchState, KeyId, KeyStatus, RingId, Tick};

/// How often it is taken.
const PACE: Duration = Duration::from_secs(1);

/// How many seconds the chart shows.
const SECONDS: usize = 300;

/// Over how many seconds the rate is taken.
const RATE_SECONDS: usize = 5;

/// How many rows of a list are shown.
const ROWS: u32 = 50;

/// How many of them are recent actions.
const ACTIONS: u32 = 12;

/// How many ages of batches are looked at in a second.
const AGES: u32 = 10_000;

/// The last moment that was taken, and the seconds before it.
#[derive(Default)]
pub(in crate::http) struct Board {
    moment: watch::Sender<Option<Arc<Overview>>>,
    rates: Mutex<VecDeque<f64>>,
}

impl Board {
    /// Whoever has this looks.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Overview>>> {
        self.moment.subscribe()
    }

    /// How many look.
    pub(super) fn watchers(&self) -> usize {
        self.moment.receiver_count()
    }

    fn note_rate(&self, rate: f64) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.push_back(rate);
        if rates.len() > SECONDS {
            rates.pop_front();
        }
    }

    fn rates(&self) -> Vec<f64> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Takes a moment each second, for ever.
pub(in crate::http) async fn watch(shared: Data<Shared>) {
    let mut last: Option<(Instant, u64)> = None;
    let mut aged_until: Option<Tick> = None;
    let mut ticker = tokio::time::interval(PACE);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let at = Instant::now();
        if let Some(signed) = signed(&shared).await {
            if let Some((before, signed_before)) = last {
                let took = at.duration_since(before).as_secs_f64().max(0.001);
                shared.board.note_rate(signed.saturating_sub(signed_before) as f64 / took);
            }
            last = Some((at, signed));
        }
        if shared.signing.is_some() {
            note_ages(&shared, &mut aged_until).await;
        }
        if shared.board.watchers() > 0 {
            let moment = Arc::new(take(&shared).await);
            shared.board.moment.send_replace(Some(moment));
        }
    }
}

/// How many records are signed: with all other numbers if somebody looks, and else without those that
/// cost more.
async fn signed(shared: &Shared) -> Option<u64> {
    if shared.board.watchers() > 0 {
        return Some(shared.numbers().await?.progress.signed_records);
    }
    let (store, tallies) = (Arc::clone(&shared.store), Arc::clone(&shared.tallies));
    let ring = shared.ring.id;
    let progress = off_thread(move || tallies.progress(store.as_ref(), ring)).await;
    if let Err(error) = &progress {
        tracing::debug!(%error, "could not count what is signed");
    }
    Some(progress.ok()?.signed_records)
}

/// Observes how long what this node has stored since the last look had been there.
async fn note_ages(shared: &Shared, until: &mut Option<Tick>) {
    let Some(signing) = &shared.signing else { return };
    let ring = shared.ring.id;
    // What was stored before this process began is none of its.
    let after = until.unwrap_or(shared.ring.tick);
    let store = Arc::clone(&shared.store);
    match off_thread(move || store.stored_ages(ring, after, AGES)).await {
        Ok(ages) => {
            for (tick, age) in ages {
                *until = Some(tick);
                signing.timings.end_to_end.observe(age.as_secs_f64());
            }
        }
        Err(error) => tracing::debug!(%error, "could not read the ages of batches"),
    }
}

/// What the lists of the dashboard show.
struct Lists {
    keys: Vec<KeyGlance>,
    uses: Vec<(OpenUse, Option<BatchView>)>,
    nodes: Vec<Node>,
    quarantine: Vec<BatchView>,
    actions: Vec<AdminEntry>,
}

impl Lists {
    fn read(store: &dyn Store, ring: RingId) -> Result<Lists, StoreError> {
        let mut uses = Vec::new();
        let of_ring = store.open_uses()?.into_iter().filter(|open| open.key_use.ring == ring);
        for open in of_ring.take(ROWS as usize) {
            let batch = store.batch(open.key_use.batch).ok();
            uses.push((open, batch));
        }
        let quarantined = Some(BatchState::Quarantined);
        Ok(Lists {
            keys: store.glance_at_keys(ring)?,
            uses,
            nodes: store.nodes()?,
            quarantine: store.list_batches(ring, quarantined, BatchId(i64::MIN), ROWS)?,
            actions: store.last_admin_log(i64::MAX, ACTIONS)?,
        })
    }
}

/// A moment of the node and its database.
pub(super) async fn take(shared: &Shared) -> Overview {
    let numbers = shared.numbers().await;
    let ring = shared.ring.id;
    let lists = shared.ask(move |store| Lists::read(store, ring)).await.ok();
    let last = shared.board.moment.borrow().clone();
    let rates = shared.board.rates();
    let recent = &rates[rates.len().saturating_sub(RATE_SECONDS)..];
    let mut overview = Overview {
        node: shared.node_name.clone(),
        version: shared.version,
        ring: shared.ring.name.clone(),
        base: if shared.is_first() { String::new() } else { place_of(&shared.ring.name, false) },
        api: shared.api(),
        rings: ring_links(shared),
        state: shared.node_state().await.state,
        database_answers: numbers.is_some() && lists.is_some(),
        rate: recent.iter().sum::<f64>() / recent.len().max(1) as f64,
        rates,
        ..last.map_or_else(Overview::default, |last| Overview::clone(&last))
    };
    if let Some(numbers) = numbers {
        add_numbers(&mut overview, &numbers);
    }
    if let Some(lists) = lists {
        add_lists(&mut overview, shared, lists);
    }
    overview
}

fn ring_links(shared: &Shared) -> Vec<RingLink> {
    let names = shared.ring_names.iter().enumerate();
    let served = names.filter(|(n, name)| *n == 0 || is_ring_name(name));
    let link = |(n, name): (usize, &String)| RingLink {
        name: name.clone(),
        place: place_of(name, n == 0),
        is_shown: *name == shared.ring.name,
    };
    served.map(link).collect()
}

fn add_numbers(overview: &mut Overview, numbers: &DatabaseNumbers) {
    let DatabaseNumbers { backlog, progress, ring_paused, .. } = numbers;
    overview.ring_paused = *ring_paused;
    overview.signed = progress.signed_records;
    overview.pending = backlog.waiting + backlog.in_batches;
    overview.pending_is_a_minimum = backlog.waiting >= u64::from(crate::http::health::MOST_COUNTED);
    overview.quarantined = progress.quarantined_records;
    overview.oldest_pending_s = backlog.oldest.map(|oldest| oldest.as_secs_f64());
}

fn add_lists(overview: &mut Overview, shared: &Shared, lists: Lists) {
    let now = jiff::Timestamp::now().as_microsecond();
    let since_s = |us: i64| (now - us) as f64 / 1e6;
    let kid = |key: KeyId| {
        let known = lists.keys.iter().find(|known| known.id == key);
        known.map_or_else(|| key.to_string(), |known| known.kid.0.clone())
    };
    overview.in_flight = lists
        .uses
        .iter()
        .map(|(open, batch)| InFlight {
            batch: open.key_use.batch.0,
            fence: open.key_use.fence.0.0,
            kid: kid(open.key_use.key),
            node: open.node.0.clone(),
            records: batch.as_ref().map_or(0, |batch| batch.record_count),
            since_s: since_s(open.checked_out_at.0).max(0.0),
            expires_in_s: -since_s(open.expires_at.0),
        })
        .collect();
    overview.keys = dots(shared, &lists.keys);
    overview.nodes = lists.nodes.into_iter().rev().map(node_row).collect();
    overview.quarantine = lists
        .quarantine
        .into_iter()
        .map(|batch| Quarantined {
            batch: batch.id.0,
            records: batch.record_count,
            attempts: batch.attempts,
            failure: batch.failure.unwrap_or_default(),
        })
        .collect();
    overview.actions = lists.actions.into_iter().map(action).collect();
}

fn dots(shared: &Shared, keys: &[KeyGlance]) -> Vec<KeyDot> {
    let mut used: Vec<Tick> =
        keys.iter().map(|key| key.last_tick).filter(|tick| *tick > Tick::ZERO).collect();
    used.sort_unstable();
    let recency = |tick: Tick| {
        let place = used.binary_search(&tick).ok()?;
        Some((place + 1) as f64 / used.len() as f64)
    };
    keys.iter()
        .map(|key| {
            let tally = shared.tallies.of_key(key.id);
            KeyDot {
                kid: key.kid.0.clone(),
                status: KeyStatus::as_str(key.status),
                in_use: key.in_use,
                last_tick: key.last_tick.0,
                recency: recency(key.last_tick),
                last_used_at: tally.map(|tally| tally.last_at.to_string()),
                stored_batches: tally.map_or(0, |tally| tally.batches),
            }
        })
        .collect()
}

fn node_row(node: Node) -> NodeRow {
    let is_alive = node.is_alive();
    NodeRow {
        name: node.report.name,
        host: node.report.host,
        process_id: node.report.process_id,
        version: node.report.version,
        state: node.report.state.as_str(),
        in_flight: node.report.in_flight,
        trouble: node.report.trouble,
        silent_s: node.silent_for.as_secs_f64(),
        is_alive,
    }
}

fn action(entry: AdminEntry) -> Action {
    let AdminEntry { seq, at, actor, action, target, detail, .. } = entry;
    Action { seq, at, actor, action, target, detail }
}
