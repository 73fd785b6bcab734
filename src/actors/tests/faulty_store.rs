//! A store that delegates to SQLite, except where a test wants it to fail.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::db::{
    Backlog, Batch, BatchKey, Blocker, CheckOut, CheckedOut, GiveUp, Inserted, KekCheck, Key,
    MakeKeyError, Membership, NewKey, NewRecord, Node, NodeReport, OpenUse, Progress, ReclaimScope,
    Reclaimed, Remaining, Ring, SealedKeyRow, SignedBatch, SignedRecord, SigningLock, SqliteStore,
    Store, StoreError, StoreOutcome,
};
use crate::ledger::Event;
use crate::types::{
    BatchId, BatchRange, Fence, KeyEvent, KeyId, Kid, Outcome, Position, Record, RecordId, RingId,
    Tick,
};

/// What happens to a call instead of, before or after its work.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It panics before it does anything.
    Panic(&'static str),
    /// It panics when its work is done.
    PanicAfter(&'static str),
    /// It fails as if the database were gone; nothing is done.
    Unavailable,
    /// It fails in a way that no repetition mends; nothing is done.
    Broken(&'static str),
    /// It does its work, and the reply is lost.
    LostReply,
    /// It waits at a gate first.
    Wait(&'static Gate),
    /// It waits at a gate when its work is done.
    WaitAfter(&'static Gate),
}

/// Where threads wait until a test lets them pass.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    /// A closed gate, for the rest of the test process.
    pub(super) fn closed() -> &'static Gate {
        Box::leak(Box::default())
    }

    pub(super) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        while !state.open {
            // A test that has failed opens nothing any more, and must not hang.
            let (next, timeout) =
                self.changed.wait_timeout(state, Duration::from_secs(20)).unwrap();
            state = next;
            assert!(!timeout.timed_out(), "nobody opened the gate");
        }
        state.waiting -= 1;
    }

    pub(super) fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    pub(super) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }
}

/// The calls that a test may want to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    CheckOut,
    LoadBatch,
    StoreBatches,
    Renew,
    GiveUp,
    Reclaim,
    HasWork,
    Progress,
    SealedKeys,
}

type ChangeCheckedOut = Box<dyn Fn(&mut CheckedOut) + Send>;
type LoadFault = Box<dyn Fn(&BatchRange) -> Option<Fault> + Send>;
type StoreFault = Box<dyn Fn(&[SignedBatch]) -> Option<Fault> + Send>;

/// What a test wants, and what it wants to know.
#[derive(Default)]
struct Script {
    /// The faults of the next calls.
    next: HashMap<Call, Vec<Fault>>,
    calls: HashMap<Call, u64>,
    change_checked_out: Option<ChangeCheckedOut>,
    load_fault: Option<LoadFault>,
    store_fault: Option<StoreFault>,
    /// The most records that one call has loaded.
    most_loaded: usize,
    /// The sizes of the groups handed in.
    groups: Vec<usize>,
}

pub(super) struct FaultyStore {
    inner: SqliteStore,
    script: Mutex<Script>,
}

impl FaultyStore {
    pub(super) fn new(inner: SqliteStore) -> Self {
        FaultyStore { inner, script: Mutex::default() }
    }

    /// The next calls end in `faults`, one each; those after them pass.
    pub(super) fn plan(&self, call: Call, faults: impl IntoIterator<Item = Fault>) {
        let mut script = self.script.lock().unwrap();
        script.next.entry(call).or_default().extend(faults);
    }

    /// Every load of a range fails as `fault` says.
    pub(super) fn fail_loads(&self, fault: impl Fn(&BatchRange) -> Option<Fault> + Send + 'static) {
        self.script.lock().unwrap().load_fault = Some(Box::new(fault));
    }

    /// Every store of a group fails as `fault` says.
    pub(super) fn fail_stores(
        &self,
        fault: impl Fn(&[SignedBatch]) -> Option<Fault> + Send + 'static,
    ) {
        self.script.lock().unwrap().store_fault = Some(Box::new(fault));
    }

    /// Changes what every checkout answers.
    pub(super) fn change_checked_out(&self, change: impl Fn(&mut CheckedOut) + Send + 'static) {
        self.script.lock().unwrap().change_checked_out = Some(Box::new(change));
    }

    /// How often a call was made.
    pub(super) fn calls(&self, call: Call) -> u64 {
        self.script.lock().unwrap().calls.get(&call).copied().unwrap_or(0)
    }

    /// Whether every planned fault has happened.
    pub(super) fn plan_is_done(&self) -> bool {
        self.script.lock().unwrap().next.values().all(Vec::is_empty)
    }

    pub(super) fn most_loaded(&self) -> usize {
        self.script.lock().unwrap().most_loaded
    }

    /// The sizes of all groups that were to be stored, in order.
    pub(super) fn groups(&self) -> Vec<usize> {
        self.script.lock().unwrap().groups.clone()
    }

    fn next_fault(&self, call: Call) -> Option<Fault> {
        let mut script = self.script.lock().unwrap();
        *script.calls.entry(call).or_default() += 1;
        let faults = script.next.entry(call).or_default();
        if faults.is_empty() { None } else { Some(faults.remove(0)) }
    }

    fn run<T>(
        &self,
        call: Call,
        work: impl FnOnce(&SqliteStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let fault = self.next_fault(call);
        self.run_with(fault, work)
    }

    fn run_with<T>(
        &self,
        fault: Option<Fault>,
        work: impl FnOnce(&SqliteStore) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match fault {
            None => work(&self.inner),
            Some(Fault::Panic(message)) => panic!("{message}"),
            Some(Fault::PanicAfter(message)) => {
                let result = work(&self.inner);
                panic!("{message} ({})", if result.is_ok() { "done" } else { "failed" })
            }
            Some(Fault::Unavailable) => Err(StoreError::Unavailable("unplugged".to_owned())),
            Some(Fault::Broken(message)) => Err(StoreError::Database(message.to_owned())),
            Some(Fault::LostReply) => {
                work(&self.inner)?;
                Err(StoreError::Unavailable("the reply was lost".to_owned()))
            }
            Some(Fault::Wait(gate)) => {
                gate.pass();
                work(&self.inner)
            }
            Some(Fault::WaitAfter(gate)) => {
                let result = work(&self.inner);
                gate.pass();
                result
            }
        }
    }
}

impl Store for FaultyStore {
    fn check_out(&self, request: &CheckOut) -> Result<CheckedOut, StoreError> {
        let mut checked_out = self.run(Call::CheckOut, |store| store.check_out(request))?;
        if let Some(change) = &self.script.lock().unwrap().change_checked_out {
            change(&mut checked_out);
        }
        Ok(checked_out)
    }

    fn load_batch(
        &self,
        ring: RingId,
        range: &BatchRange,
        after: Option<Position>,
        max_bytes: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut fault = self.next_fault(Call::LoadBatch);
        if let Some(load_fault) = &self.script.lock().unwrap().load_fault {
            fault = fault.or_else(|| load_fault(range));
        }
        let load = |store: &SqliteStore| store.load_batch(ring, range, after, max_bytes);
        let records = self.run_with(fault, load)?;
        let mut script = self.script.lock().unwrap();
        script.most_loaded = script.most_loaded.max(records.len());
        Ok(records)
    }

    fn store_batches(
        &self,
        ring: RingId,
        batches: &[SignedBatch],
    ) -> Result<Vec<StoreOutcome>, StoreError> {
        let mut fault = self.next_fault(Call::StoreBatches);
        {
            let mut script = self.script.lock().unwrap();
            script.groups.push(batches.len());
            if let Some(store_fault) = &script.store_fault {
                fault = fault.or_else(|| store_fault(batches));
            }
        }
        self.run_with(fault, |store| store.store_batches(ring, batches))
    }

    fn renew(&self, ring: RingId, fences: &[Fence]) -> Result<Vec<Fence>, StoreError> {
        self.run(Call::Renew, |store| store.renew(ring, fences))
    }

    fn give_up(&self, ring: RingId, uses: &[GiveUp]) -> Result<Vec<Outcome>, StoreError> {
        self.run(Call::GiveUp, |store| store.give_up(ring, uses))
    }

    fn reclaim(&self, ring: RingId, scope: ReclaimScope) -> Result<Reclaimed, StoreError> {
        self.run(Call::Reclaim, |store| store.reclaim(ring, scope))
    }

    fn end_frozen_sessions(&self) -> Result<u32, StoreError> {
        self.inner.end_frozen_sessions()
    }

    fn sweep(&self, ring: RingId) -> Result<u64, StoreError> {
        self.inner.sweep(ring)
    }

    fn has_work(&self, ring: RingId) -> Result<bool, StoreError> {
        self.run(Call::HasWork, |store| store.has_work(ring))
    }

    fn progress(&self, ring: RingId) -> Result<Progress, StoreError> {
        self.run(Call::Progress, |store| store.progress(ring))
    }

    fn remaining(&self, ring: RingId) -> Result<Remaining, StoreError> {
        self.inner.remaining(ring)
    }

    fn record_count(&self, ring: RingId) -> Result<u64, StoreError> {
        self.inner.record_count(ring)
    }

    fn backlog(&self, ring: RingId, most: u32) -> Result<Backlog, StoreError> {
        self.inner.backlog(ring, most)
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        self.inner.check_schema()
    }

    fn public_keys(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        self.inner.public_keys()
    }

    fn is_held_back(&self, ring: RingId) -> Result<bool, StoreError> {
        self.inner.is_held_back(ring)
    }

    fn blockers(&self) -> Result<Vec<Blocker>, StoreError> {
        self.inner.blockers()
    }

    fn write_trouble(&self) -> Result<Option<String>, StoreError> {
        self.inner.write_trouble()
    }

    fn report(&self, report: &NodeReport) -> Result<(), StoreError> {
        self.inner.report(report)
    }

    fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.inner.nodes()
    }

    fn database_id(&self) -> Result<String, StoreError> {
        self.inner.database_id()
    }

    fn ring(&self, name: &str) -> Result<Ring, StoreError> {
        self.inner.ring(name)
    }

    fn rings(&self) -> Result<Vec<Ring>, StoreError> {
        self.inner.rings()
    }

    fn kek_checks(&self) -> Result<Vec<KekCheck>, StoreError> {
        self.inner.kek_checks()
    }

    fn add_kek(&self, check: &KekCheck) -> Result<(), StoreError> {
        self.inner.add_kek(check)
    }

    fn add_keys(
        &self,
        ring: RingId,
        count: u32,
        if_empty: bool,
        actor: &str,
        make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
    ) -> Result<Vec<KeyId>, StoreError> {
        self.inner.add_keys(ring, count, if_empty, actor, make)
    }

    fn keys(&self, ring: RingId) -> Result<Vec<Key>, StoreError> {
        self.inner.keys(ring)
    }

    fn sealed_keys(&self, ring: RingId) -> Result<Vec<SealedKeyRow>, StoreError> {
        self.run(Call::SealedKeys, |store| store.sealed_keys(ring))
    }

    fn change_key(
        &self,
        kid: &Kid,
        event: KeyEvent,
        actor: &str,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        self.inner.change_key(kid, event, actor, reason)
    }

    fn insert_records(&self, ring: RingId, records: &[NewRecord]) -> Result<Inserted, StoreError> {
        self.inner.insert_records(ring, records)
    }

    fn analyze(&self) -> Result<(), StoreError> {
        self.inner.analyze()
    }

    fn signed_records(
        &self,
        after: Option<RecordId>,
        max_bytes: usize,
    ) -> Result<Vec<SignedRecord>, StoreError> {
        self.inner.signed_records(after, max_bytes)
    }

    fn batch_keys(&self, batches: &[BatchId]) -> Result<Vec<BatchKey>, StoreError> {
        self.inner.batch_keys(batches)
    }

    fn history(
        &self,
        ring: RingId,
        after: Tick,
        until: Tick,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.inner.history(ring, after, until, limit)
    }

    fn batches(&self, after: Option<BatchId>, limit: u32) -> Result<Vec<Batch>, StoreError> {
        self.inner.batches(after, limit)
    }

    fn signature_count(&self) -> Result<u64, StoreError> {
        self.inner.signature_count()
    }

    fn memberships(
        &self,
        after: Option<RecordId>,
        limit: u32,
    ) -> Result<Vec<Membership>, StoreError> {
        self.inner.memberships(after, limit)
    }

    fn open_uses(&self) -> Result<Vec<OpenUse>, StoreError> {
        self.inner.open_uses()
    }

    fn server_version(&self) -> Result<String, StoreError> {
        self.inner.server_version()
    }

    fn signing_lock(&self) -> Option<SigningLock> {
        self.inner.signing_lock()
    }
}
