//! Those who wait for signatures: one query for all of them, when something was stored or a moment
//! has passed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use crate::actors::off_thread;
use crate::db::{RecordSignature, Store};
use crate::types::RecordId;

/// How often the database is asked while somebody waits: for what other nodes sign.
const PAUSE: Duration = Duration::from_millis(100);

/// How long to gather what this node stores before the database is asked.
const GATHER: Duration = Duration::from_millis(4);

/// How many records one query asks for.
const QUERY: usize = 1_000;

type Waiting = HashMap<RecordId, Vec<oneshot::Sender<RecordSignature>>>;

/// Who waits for what.
#[derive(Clone, Default)]
pub(super) struct Waiters {
    waiting: Arc<Mutex<Waiting>>,
    arrived: Arc<Notify>,
}

impl Waiters {
    /// Starts to look, on the runtime of the caller. `stored` tells what this process stores.
    pub(super) fn start(store: Arc<dyn Store>, stored: Option<watch::Receiver<u64>>) -> Waiters {
        let waiters = Waiters::default();
        actix_web::rt::spawn(waiters.clone().look(store, stored));
        waiters
    }

    /// Waits for the signature of a record, as long as the future is not dropped.
    pub(super) async fn signature(&self, record: RecordId) -> Option<RecordSignature> {
        let (sender, signature) = oneshot::channel();
        self.lock().entry(record).or_default().push(sender);
        self.arrived.notify_one();
        signature.await.ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records that somebody still waits for.
    fn records(&self) -> Vec<RecordId> {
        let mut waiting = self.lock();
        waiting.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        waiting.keys().copied().collect()
    }

    async fn look(self, store: Arc<dyn Store>, mut stored: Option<watch::Receiver<u64>>) {
        loop {
            let records = self.records();
            if records.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            for records in records.chunks(QUERY) {
                let store = Arc::clone(&store);
                let records = records.to_vec();
                match off_thread(move || store.signatures_of(&records)).await {
                    Ok(signatures) => self.hand_out(signatures),
                    Err(error) => tracing::debug!(%error, "could not look for signatures"),
                }
            }
            let storing = async {
                if let Some(stored) = &mut stored
                    && stored.changed().await.is_ok()
                {
                    return tokio::time::sleep(GATHER).await;
                }
                std::future::pending().await
            };
            tokio::select! {
                () = storing => {}
                () = tokio::time::sleep(PAUSE) => {}
                // Whoever comes is answered at once if there is something to answer.
                () = self.arrived.notified() => {}
            }
        }
    }

    fn hand_out(&self, signatures: Vec<RecordSignature>) {
        let mut waiting = self.lock();
        for signature in signatures {
            for sender in waiting.remove(&signature.record).into_iter().flatten() {
                // Whoever waited may be gone.
                let _ = sender.send(signature.clone());
            }
        }
    }
}
