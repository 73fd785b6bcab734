//! The signed records of a database in order of record id, page by page, with their keys.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::db::{BatchKey, SignedRecord, Store, StoreError};
use crate::types::{BatchId, RecordId, RingId};

/// About how many bytes of payload a page holds; one record may be larger.
pub(super) const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// How large a payload is expected to be at the most, beside the mean of the page before.
const TIMES_THE_MEAN: usize = 2;

/// Some signed records and the keys of their batches.
pub(super) struct Page {
    pub(super) records: Vec<SignedRecord>,
    keys: HashMap<BatchId, Arc<BatchKey>>,
}

impl Page {
    /// The key of the batch's stored use; `None` if it has none.
    pub(super) fn key(&self, batch: BatchId) -> Option<&BatchKey> {
        self.keys.get(&batch).map(Arc::as_ref)
    }
}

/// Reads pages from the first signature to the last.
///
/// A key is read after the signatures of its batch. They were committed together, so a batch that
/// is stored meanwhile has its key.
pub(super) struct SignedPages<'a> {
    store: &'a dyn Store,
    /// Only what is of these rings, if any are named.
    rings: Option<&'a [RingId]>,
    max_bytes: usize,
    /// What few payloads of the next page are likely to exceed.
    each_bytes: usize,
    after: Option<RecordId>,
    /// The keys of the page before: a batch often goes on in the next page.
    keys: HashMap<BatchId, Arc<BatchKey>>,
}

impl<'a> SignedPages<'a> {
    pub(super) fn new(store: &'a dyn Store, rings: Option<&'a [RingId]>, max_bytes: usize) -> Self {
        SignedPages { store, rings, max_bytes, each_bytes: 0, after: None, keys: HashMap::new() }
    }

    /// The next page, which may be left with no record of the rings; `None` after the last. A record
    /// whose batch has no key is of every ring: it must not be passed over.
    pub(super) fn next_page(&mut self) -> Result<Option<Page>, StoreError> {
        let mut records = self.store.signed_records(self.after, self.max_bytes, self.each_bytes)?;
        let Some(last) = records.last() else { return Ok(None) };
        self.after = Some(last.record);
        let bytes: usize = records.iter().filter_map(|r| Some(r.payload.as_ref()?.len())).sum();
        self.each_bytes = TIMES_THE_MEAN * bytes / records.len();

        let batches: BTreeSet<BatchId> = records.iter().map(|record| record.batch).collect();
        self.keys.retain(|batch, _| batches.contains(batch));
        let unknown: Vec<BatchId> =
            batches.into_iter().filter(|batch| !self.keys.contains_key(batch)).collect();
        let mut found = self.store.batch_keys(&unknown)?;
        // Should a batch have two stored uses, each run takes the same one.
        found.sort_by_key(|key| (key.batch, key.key));
        for key in found {
            self.keys.entry(key.batch).or_insert_with(|| Arc::new(key));
        }
        if let Some(rings) = self.rings {
            let key = |record: &SignedRecord| self.keys.get(&record.batch);
            records.retain(|record| key(record).is_none_or(|key| rings.contains(&key.ring)));
        }
        Ok(Some(Page { records, keys: self.keys.clone() }))
    }
}
