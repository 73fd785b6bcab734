//! A store that delegates to SQLite, except where a test wants it to fail.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::db::*;
use crate::ledger::Event;
use crate::types::{
    BatchId, BatchRange, BatchState, DataKeyId, Fence, KeyId, KeyStatus, Kid, Outcome, Position,
    Provider, Record, RecordId, RingId, Tick, TokenId,
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
    Remaining,
    AllInBatches,
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

/// Methods that never fail on purpose.
macro_rules! unchanged {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)* $(,)?) -> $result:ty;)+) => {
        $(fn $name(&self, $($argument: $type),*) -> $result {
            self.inner.$name($($argument),*)
        })+
    };
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

    fn has_work(&self, ring: RingId) -> Result<bool, StoreError> {
        self.run(Call::HasWork, |store| store.has_work(ring))
    }

    fn progress(&self, ring: RingId) -> Result<Progress, StoreError> {
        self.run(Call::Progress, |store| store.progress(ring))
    }

    fn remaining(&self, ring: RingId) -> Result<Remaining, StoreError> {
        self.run(Call::Remaining, |store| store.remaining(ring))
    }

    fn all_in_batches(&self, ring: RingId) -> Result<bool, StoreError> {
        self.run(Call::AllInBatches, |store| store.all_in_batches(ring))
    }

    fn sealed_keys(&self, ring: RingId) -> Result<Vec<SealedKeyRow>, StoreError> {
        self.run(Call::SealedKeys, |store| store.sealed_keys(ring))
    }

    unchanged! {
        fn end_frozen_sessions(&self) -> Result<u32, StoreError>;
        fn sweep(&self, ring: RingId) -> Result<u64, StoreError>;
        fn tally(&self, ring: RingId, after: Tick) -> Result<Vec<KeyTally>, StoreError>;
        fn unfinished(&self, ring: RingId) -> Result<Progress, StoreError>;
        fn glance_at_keys(&self, ring: RingId) -> Result<Vec<KeyGlance>, StoreError>;
        fn remaining_in_batches(&self, ring: RingId) -> Result<Remaining, StoreError>;
        fn record_count(&self, ring: RingId) -> Result<u64, StoreError>;
        fn backlog(&self, ring: RingId, most: u32) -> Result<Backlog, StoreError>;
        fn check_schema(&self) -> Result<(), StoreError>;
        fn public_keys(&self) -> Result<Vec<Vec<u8>>, StoreError>;
        fn is_held_back(&self, ring: RingId) -> Result<bool, StoreError>;
        fn blockers(&self) -> Result<Vec<Blocker>, StoreError>;
        fn write_trouble(&self) -> Result<Option<String>, StoreError>;
        fn report(&self, report: &NodeReport) -> Result<(), StoreError>;
        fn nodes(&self) -> Result<Vec<Node>, StoreError>;
        fn database_id(&self) -> Result<String, StoreError>;
        fn ring(&self, name: &str) -> Result<Ring, StoreError>;
        fn rings(&self) -> Result<Vec<Ring>, StoreError>;
        fn kek_checks(&self) -> Result<Vec<KekCheck>, StoreError>;
        fn add_kek(&self, check: &KekCheck) -> Result<(), StoreError>;
        fn add_keys(&self, ring: RingId, count: u32, if_empty: bool, actor: &str, make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
    ) -> Result<Vec<KeyId>, StoreError>;
        fn keys(&self, ring: RingId) -> Result<Vec<Key>, StoreError>;
        fn kek_usage(&self) -> Result<Vec<KekUsage>, StoreError>;
        fn forget_kek(&self, kek_id: &str, actor: &str) -> Result<bool, StoreError>;
        fn data_keys(&self, ring: RingId) -> Result<Vec<DataKeyRow>, StoreError>;
        fn add_data_key(&self, ring: RingId, kek_id: &str, wrapped_key: &[u8]) -> Result<DataKeyRow, StoreError>;
        fn keys_to_reseal(&self, ring: RingId, data_key: DataKeyId, after: KeyId, limit: u32) -> Result<Vec<SealedKeyRow>, StoreError>;
        fn reseal_keys(&self, ring: RingId, keys: &[Resealed], actor: &str) -> Result<u64, StoreError>;
        fn add_first_kek(&self, check: &KekCheck) -> Result<bool, StoreError>;
        fn change_keys(&self, ring: RingId, kids: &[Kid], change: &KeyChange<'_>) -> Result<Vec<bool>, StoreError>;
        fn due_keys(&self, ring: RingId, retirement: &Retirement, limit: u32) -> Result<Vec<DueKey>, StoreError>;
        fn replace_keys(&self, ring: RingId, due: &[DueKey], actor: &str, make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
    ) -> Result<u32, StoreError>;
        fn analyze(&self) -> Result<(), StoreError>;
        fn vacuum(&self) -> Result<(), StoreError>;
        fn signed_records(&self, after: Option<RecordId>, max_bytes: usize, each_bytes: usize) -> Result<Vec<SignedRecord>, StoreError>;
        fn batch_keys(&self, batches: &[BatchId]) -> Result<Vec<BatchKey>, StoreError>;
        fn history(&self, ring: RingId, after: Tick, until: Tick, limit: u32) -> Result<Vec<Event>, StoreError>;
        fn batches(&self, after: Option<BatchId>, limit: u32) -> Result<Vec<Batch>, StoreError>;
        fn signature_count(&self) -> Result<u64, StoreError>;
        fn memberships(&self, after: Option<RecordId>, limit: u32) -> Result<Vec<Membership>, StoreError>;
        fn open_uses(&self) -> Result<Vec<OpenUse>, StoreError>;
        fn server_version(&self) -> Result<String, StoreError>;
        fn signing_lock(&self) -> Option<SigningLock>;
        fn orders(&self, ring: RingId) -> Result<NodeOrders, StoreError>;
        fn add_records(&self, ring: RingId, records: &[NewRecord]) -> Result<Vec<Added>, StoreError>;
        fn record(&self, ring: RingId, id: RecordId) -> Result<Option<StoredRecord>, StoreError>;
        fn record_id(&self, ring: RingId, external_id: &str) -> Result<Option<RecordId>, StoreError>;
        fn signatures_of(&self, records: &[RecordId]) -> Result<Vec<RecordSignature>, StoreError>;
        fn feed(&self, ring: RingId, after: FeedPosition, limit: u32) -> Result<Vec<FeedItem>, StoreError>;
        fn stored_ages(&self, ring: RingId, after: Tick, limit: u32) -> Result<Vec<(Tick, Duration)>, StoreError>;
        fn list_keys(&self, ring: RingId, status: Option<KeyStatus>, after: KeyId, limit: u32) -> Result<Vec<Key>, StoreError>;
        fn key(&self, kid: &Kid) -> Result<Key, StoreError>;
        fn key_counts(&self, ring: RingId) -> Result<KeyCounts, StoreError>;
        fn list_batches(&self, ring: RingId, state: Option<BatchState>, after: BatchId, limit: u32) -> Result<Vec<BatchView>, StoreError>;
        fn batch(&self, batch: BatchId) -> Result<BatchView, StoreError>;
        fn pool_state(&self) -> PoolState;
        fn log_action(&self, action: &AdminAction<'_>) -> Result<(), StoreError>;
        fn admin_log(&self, after: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError>;
        fn last_admin_log(&self, before: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError>;
        fn admin_log_head(&self) -> Result<(i64, String), StoreError>;
        fn add_token(&self, token: &NewToken, actor: &str) -> Result<TokenId, StoreError>;
        fn tokens(&self) -> Result<Vec<Token>, StoreError>;
        fn revoke_token(&self, token: TokenId, actor: &str) -> Result<bool, StoreError>;
        fn touch_tokens(&self, tokens: &[TokenId]) -> Result<(), StoreError>;
        fn create_ring(&self, name: &str, provider: Provider, actor: &str) -> Result<Ring, StoreError>;
        fn set_paused(&self, ring: RingId, paused: bool, actor: &str) -> Result<bool, StoreError>;
        fn request_drain(&self, actor: &str) -> Result<u64, StoreError>;
        fn retry_batch(&self, batch: BatchId, actor: &str) -> Result<(), StoreError>;
    }
}
