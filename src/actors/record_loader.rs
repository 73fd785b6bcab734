//! Reads the payloads of claimed batches, in slices bounded in bytes.
//!
//! Invariant: it holds nothing between two messages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::prelude::*;

use super::messages::LoadBatch;
use super::signer::panic_message;
use crate::db::{Store, StoreError};
use crate::types::Record;

/// The actor; a pool of them runs in a `SyncArbiter`.
pub struct RecordLoader {
    /// Where from.
    pub store: Arc<dyn Store>,
}

impl Actor for RecordLoader {
    type Context = SyncContext<Self>;
}

impl Handler<LoadBatch> for RecordLoader {
    type Result = Result<Vec<Record>, StoreError>;

    fn handle(&mut self, message: LoadBatch, _: &mut Self::Context) -> Self::Result {
        let LoadBatch { ring, range, after, max_bytes } = message;
        // A panic would end this thread, and actix never replaces it.
        catch_unwind(AssertUnwindSafe(|| self.store.load_batch(ring, &range, after, max_bytes)))
            .unwrap_or_else(|panic| {
                let message = panic_message(panic.as_ref());
                Err(StoreError::Database(format!("the loader panicked: {message}")))
            })
    }
}
