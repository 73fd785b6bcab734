//! What a state of the model is: the tables, the nodes' memory, and the faults that may still come.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use chancery::ledger::{Event, Ledger, Rule};
use chancery::types::{BatchId, BatchState, Fence, KeyEvent, KeyId, Outcome, Tick};

/// How much of everything there is, and which faults may happen how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    /// Batches that the records make. A batch is one record here.
    pub(crate) batches: usize,
    pub(crate) max_attempts: u8,
    /// How many batches a node holds at most.
    pub(crate) permits: usize,
    pub(crate) faults: Faults,
}

/// Faults that may still happen: the graph is finite because they run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// `kill -9` of a node, whose place a new one takes.
    pub(crate) crashes: u8,
    /// A process that stops and may go on much later.
    pub(crate) freezes: u8,
    /// A connection that dies, before its COMMIT or between COMMIT and reply.
    pub(crate) connections: u8,
    /// A batch that fails by its own doing: a panic of the signer.
    pub(crate) failures: u8,
    /// A foreign hand writes a signature into the table.
    pub(crate) intrusions: u8,
}

/// Everything that the next step depends on. Its hash is that of its canonical form, so states that
/// differ only in names, of nodes, of keys of the same standing, of ticks in the same order, are one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) database: Database,
    pub(crate) nodes: Vec<Node>,
    pub(crate) left: Faults,
    canonical: u64,
}

/// What is committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Database {
    /// `rings.tick`.
    pub(crate) tick: Tick,
    /// `rings.cursor`: the records before it are in batches.
    pub(crate) cursor: usize,
    /// `keys.last_tick`, the key with id 1 first.
    pub(crate) last_ticks: Vec<Tick>,
    pub(crate) batches: Vec<BatchRow>,
    /// By fence. An ended use is forgotten when no node can ask for it any more.
    pub(crate) uses: Vec<UseRow>,
    /// By record: who made its signature.
    pub(crate) signatures: Vec<Option<Maker>>,
    /// All that ever happened on the ring, as the audit replays it.
    pub(crate) history: Arc<Ledger>,
    /// Rules that the history breaks.
    pub(crate) broken: Vec<Rule>,
    /// Whether a unique index or a trigger had to refuse a transaction.
    pub(crate) refused: bool,
    /// Whether a key computed a signature after its use had ended.
    pub(crate) signed_late: bool,
}

/// Who made a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    Key(KeyId),
    Intruder,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchRow {
    pub(crate) record: usize,
    pub(crate) state: BatchState,
    pub(crate) attempts: u8,
    /// The key of its stored use.
    pub(crate) stored_with: Option<KeyId>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UseRow {
    pub(crate) key_use: KeyUse,
    /// The process that checked it out, while it lives: the one that took its place is another.
    pub(crate) node: Option<usize>,
    /// Whether its lease has run out by the database's clock.
    pub(crate) is_expired: bool,
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUse {
    pub(crate) fence: Fence,
    pub(crate) key: KeyId,
    pub(crate) batch: BatchId,
}

/// The memory of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    pub(crate) is_frozen: bool,
    /// A checkout may have left uses open that the node does not know.
    pub(crate) has_lost_track: bool,
    pub(crate) held: Vec<Held>,
    pub(crate) transaction: Option<Transaction>,
}

/// A batch in a node's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Held {
    pub(crate) key_use: KeyUse,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    Claimed,
    Signed,
    /// To be given up; `by_itself` if the attempt counts.
    Failed {
        by_itself: bool,
    },
    /// Only where the use is released first: the signatures are still to be stored.
    Released,
}

/// A transaction between two of its statements.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Transaction {
    pub(crate) kind: Kind,
    /// Whether COMMIT is next.
    pub(crate) is_ready: bool,
    pub(crate) holds_ring: bool,
    /// The uses that it ends, by fence, and whether it has locked their rows.
    pub(crate) uses: Vec<KeyUse>,
    pub(crate) locks_uses: bool,
    /// What a checkout has chosen.
    pub(crate) claims: Vec<Claim>,
    /// The tick that a checkout without the ring's lock has read, where it trusts it.
    pub(crate) tick_read: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    CheckOut { max_batches: usize },
    Store,
    GiveUp,
    Reclaim,
}

/// A key and the work for it: a batch to be retried, or a record behind the cursor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Claim {
    pub(crate) key: KeyId,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    Retry(BatchId),
    Fresh { record: usize },
}

impl State {
    /// A ring with its keys and records, and nodes that have just started.
    pub(crate) fn new(bounds: &Bounds) -> State {
        let mut history = Ledger::new();
        for n in 1..=bounds.keys as i64 {
            let found =
                history.apply(&Event::Key { tick: Tick(n), key: KeyId(n), event: KeyEvent::Added });
            assert!(found.is_empty(), "{found:?}");
        }
        let mut state = State {
            database: Database {
                tick: history.last_tick(),
                cursor: 0,
                last_ticks: vec![Tick::ZERO; bounds.keys],
                batches: Vec::new(),
                uses: Vec::new(),
                signatures: vec![None; bounds.batches],
                history: Arc::new(history),
                broken: Vec::new(),
                refused: false,
                signed_late: false,
            },
            nodes: vec![Node::default(); bounds.nodes],
            left: bounds.faults,
            canonical: 0,
        };
        state.settle();
        state
    }

    /// Every record is in a batch that is stored or quarantined, no use is open, nobody holds a lock.
    pub(crate) fn is_complete(&self) -> bool {
        self.database.cursor == self.database.signatures.len()
            && self.database.batches.iter().all(BatchRow::is_done)
            && self.database.uses.iter().all(|row| row.outcome.is_some())
            && self.nodes.iter().all(|node| node.transaction.is_none())
    }

    /// The canonical form's hash: what identifies the state.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.canonical
    }

    /// Forgets what nobody can ask for any more, and computes the canonical form anew. To be called
    /// after each change.
    pub(crate) fn settle(&mut self) {
        let nodes = &self.nodes;
        self.database.uses.retain(|row| {
            row.outcome.is_none() || nodes.iter().any(|node| node.knows(row.key_use.fence))
        });
        let mut hasher = DefaultHasher::new();
        Canonical::of(self).encode(self).hash(&mut hasher);
        self.canonical = hasher.finish();
    }
}

impl BatchRow {
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, BatchState::Stored | BatchState::Quarantined)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.canonical.hash(hasher);
    }
}

impl Node {
    pub(crate) fn knows(&self, fence: Fence) -> bool {
        self.held.iter().any(|held| held.key_use.fence == fence)
            || self.transaction.iter().any(|t| t.uses.iter().any(|u| u.fence == fence))
    }
}

/// The order of the ticks that occur and of the keys: the names that the canonical form gives them.
///
/// The protocol and the ledger only ever compare ticks, and every new tick lies above all others. Keys
/// are compared by their last tick, and by their id where that is equal.
struct Canonical {
    ticks: Vec<Tick>,
    keys: Vec<KeyId>,
    /// Those that are not done in their order, then the others, whose order matters to nobody.
    batches: Vec<BatchId>,
}

impl Canonical {
    fn of(state: &State) -> Canonical {
        let database = &state.database;
        let mut ticks = database.last_ticks.clone();
        ticks.push(Tick::ZERO);
        ticks.extend(database.uses.iter().map(|row| row.key_use.fence.0));
        ticks.extend(database.history.open_uses().map(|open| open.fence.0));
        for (_, key) in database.history.keys() {
            ticks.push(key.last_tick);
            ticks.extend(key.in_use.map(|fence| fence.0));
        }
        ticks.sort_unstable();
        ticks.dedup();
        let mut keys: Vec<KeyId> = (1..=database.last_ticks.len() as i64).map(KeyId).collect();
        keys.sort_by_key(|&key| (database.last_tick(key), key));
        let mut batches: Vec<BatchId> = (1..=database.batches.len() as i64).map(BatchId).collect();
        batches.sort_by_cached_key(|&id| {
            let batch = database.batch(id);
            let of_batch = database.uses.iter().filter(|row| row.key_use.batch == id);
            let fences: Vec<Fence> = of_batch.map(|row| row.key_use.fence).collect();
            let is_signed = database.signatures[batch.record].is_some();
            (batch.is_done().then_some((batch.state as u8, is_signed, fences)), id)
        });
        Canonical { ticks, keys, batches }
    }

    fn batch(&self, batch: BatchId) -> u8 {
        self.batches.iter().position(|&other| other == batch).unwrap_or(usize::MAX) as u8
    }

    fn tick(&self, tick: Tick) -> u8 {
        self.ticks.binary_search(&tick).unwrap_or(usize::MAX) as u8
    }

    fn key(&self, key: KeyId) -> u8 {
        self.keys.iter().position(|&other| other == key).unwrap_or(usize::MAX) as u8
    }

    fn maker(&self, maker: Option<Maker>) -> u8 {
        match maker {
            None => 255,
            Some(Maker::Intruder) => 254,
            Some(Maker::Key(key)) => self.key(key),
        }
    }

    /// Every length stands before what it counts, so that no two forms read alike.
    fn encode(&self, state: &State) -> Vec<u8> {
        let database = &state.database;
        let left = &state.left;
        let mut out = Vec::with_capacity(160);
        out.extend([left.crashes, left.freezes, left.connections, left.failures, left.intrusions]);
        out.extend([database.cursor as u8, database.refused.into(), database.signed_late.into()]);
        out.push(database.broken.len() as u8);
        out.extend(database.broken.iter().map(|&rule| rule as u8));
        for &key in &self.keys {
            out.push(self.tick(database.last_tick(key)));
            let told = database.history.key(key);
            out.push(told.map_or(255, |told| self.tick(told.last_tick)));
            out.push(told.and_then(|told| told.in_use).map_or(255, |fence| self.tick(fence.0)));
        }
        out.push(database.batches.len() as u8);
        for &id in &self.batches {
            let batch = database.batch(id);
            let of_record = |&other: &BatchId| database.batch(other).record == batch.record;
            let twin = self.batches.iter().position(of_record).unwrap_or(usize::MAX);
            let attempts = if batch.is_done() { 0 } else { batch.attempts };
            out.extend([twin as u8, batch.state as u8, attempts]);
            // Of a stored batch only matters whether its key and its signature's agree.
            let maker = database.signatures[batch.record];
            match batch.stored_with {
                None => out.extend([0, self.maker(maker)]),
                Some(key) if maker == Some(Maker::Key(key)) => out.extend([1, 0]),
                Some(key) => out.extend([2 + self.key(key), self.maker(maker)]),
            }
            out.push(database.history.is_stored(id).into());
        }
        out.extend(database.signatures[database.cursor..].iter().map(|&maker| self.maker(maker)));
        out.push(database.uses.len() as u8);
        for row in &database.uses {
            self.encode_use(&row.key_use, &mut out);
            out.extend([row.is_expired.into(), row.outcome.map_or(255, |outcome| outcome as u8)]);
        }
        out.push(database.history.open_uses().len() as u8);
        for open in database.history.open_uses() {
            let key_use = KeyUse { fence: open.fence, key: open.key, batch: open.batch };
            self.encode_use(&key_use, &mut out);
        }
        let mut nodes: Vec<Vec<u8>> =
            (0..state.nodes.len()).map(|n| self.encode_node(state, n)).collect();
        nodes.sort_unstable();
        for node in nodes {
            out.push(node.len() as u8);
            out.extend(node);
        }
        out
    }

    fn encode_use(&self, key_use: &KeyUse, out: &mut Vec<u8>) {
        out.extend([self.tick(key_use.fence.0), self.key(key_use.key), self.batch(key_use.batch)]);
    }

    fn encode_node(&self, state: &State, n: usize) -> Vec<u8> {
        let node = &state.nodes[n];
        let mut out = vec![node.is_frozen.into(), node.has_lost_track.into()];
        let own = state.database.uses.iter().filter(|row| row.node == Some(n));
        let own: Vec<u8> = own.map(|row| self.tick(row.key_use.fence.0)).collect();
        out.push(own.len() as u8);
        out.extend(own);
        out.push(node.held.len() as u8);
        for held in &node.held {
            self.encode_use(&held.key_use, &mut out);
            out.push(match held.stage {
                Stage::Claimed => 0,
                Stage::Signed => 1,
                Stage::Failed { by_itself } => 2 + u8::from(by_itself),
                Stage::Released => 4,
            });
        }
        let Some(transaction) = &node.transaction else { return out };
        out.push(match transaction.kind {
            Kind::Store => 1,
            Kind::GiveUp => 2,
            Kind::Reclaim => 3,
            Kind::CheckOut { max_batches } => 4 + max_batches as u8,
        });
        let is_behind = transaction.tick_read.map_or(0, |tick| state.database.tick.0 - tick.0);
        out.push(is_behind as u8);
        let flags = [transaction.is_ready, transaction.holds_ring, transaction.locks_uses];
        out.extend(flags.map(u8::from));
        out.push(transaction.uses.len() as u8);
        for key_use in &transaction.uses {
            self.encode_use(key_use, &mut out);
        }
        for claim in &transaction.claims {
            out.push(self.key(claim.key));
            match claim.work {
                Work::Retry(batch) => out.extend([0, self.batch(batch)]),
                Work::Fresh { record } => out.extend([1, record as u8]),
            }
        }
        out
    }
}
