//! Takes records in for many clients at once: what waits is inserted in one transaction.
//!
//! Invariant: a record is said to be taken in when its transaction has committed, and not before.

use std::sync::Arc;

use actix::Addr;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::problem::Problem;
use crate::actors::messages::Nudge;
use crate::actors::off_thread;
use crate::actors::supervisor::Supervisor;
use crate::db::{Added, NewRecord, Store, StoreError};
use crate::types::RingId;

/// How many records and how many bytes of payload one transaction takes, unless one alone has more.
const GROUP_RECORDS: usize = 2_000;
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// How many records may wait; whoever comes then waits to wait.
const QUEUE: usize = 4 * GROUP_RECORDS;

/// How many transactions run at once.
const TRANSACTIONS: usize = 2;

/// The front of the queue.
#[derive(Clone)]
pub(super) struct Intake {
    ring: RingId,
    store: Arc<dyn Store>,
    supervisor: Option<Addr<Supervisor>>,
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    record: NewRecord,
    reply: oneshot::Sender<Result<Added, Problem>>,
}

impl Intake {
    /// Starts it, on the runtime of the caller.
    pub(super) fn start(
        store: Arc<dyn Store>,
        ring: RingId,
        supervisor: Option<Addr<Supervisor>>,
    ) -> Intake {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let intake = Intake { ring, store, supervisor, queue };
        // Without the queue's sender: it ends when nobody can send any more.
        let worker = Worker {
            ring,
            store: Arc::clone(&intake.store),
            supervisor: intake.supervisor.clone(),
        };
        actix_web::rt::spawn(worker.run(waiting));
        intake
    }

    /// Takes one record in, with others that wait.
    ///
    /// # Errors
    /// If it was not inserted, or if that is not known.
    pub(super) async fn add(&self, record: NewRecord) -> Result<Added, Problem> {
        let (reply, added) = oneshot::channel();
        let waiting = Waiting { record, reply };
        self.queue.send(waiting).await.map_err(|_| Problem::no_database())?;
        added.await.map_err(|_| Problem::internal())?
    }

    /// Takes records in as one transaction of their own.
    ///
    /// # Errors
    /// If they were not inserted, or if that is not known.
    pub(super) async fn add_all(&self, records: Vec<NewRecord>) -> Result<Vec<Added>, Problem> {
        let store = Arc::clone(&self.store);
        let ring = self.ring;
        let added = off_thread(move || store.add_records(ring, &records)).await;
        nudge(self.supervisor.as_ref(), &added);
        added.map_err(not_taken_in)
    }
}

struct Worker {
    ring: RingId,
    store: Arc<dyn Store>,
    supervisor: Option<Addr<Supervisor>>,
}

impl Worker {
    async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let permits = Arc::new(Semaphore::new(TRANSACTIONS));
        let mut next: Option<Waiting> = None;
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let first = match next.take() {
                Some(waiting) => waiting,
                None => match queue.recv().await {
                    Some(waiting) => waiting,
                    None => return,
                },
            };
            let mut bytes = first.record.payload.len();
            let mut group = vec![first];
            while group.len() < GROUP_RECORDS
                && let Ok(waiting) = queue.try_recv()
            {
                bytes += waiting.record.payload.len();
                if bytes > GROUP_BYTES {
                    next = Some(waiting);
                    break;
                }
                group.push(waiting);
            }
            let store = Arc::clone(&self.store);
            let (ring, supervisor) = (self.ring, self.supervisor.clone());
            actix_web::rt::spawn(async move {
                insert(store, ring, supervisor, group).await;
                drop(permit);
            });
        }
    }
}

/// Inserts a group; if the database refuses it, one by one, so that only the guilty one is refused.
async fn insert(
    store: Arc<dyn Store>,
    ring: RingId,
    supervisor: Option<Addr<Supervisor>>,
    group: Vec<Waiting>,
) {
    let (records, replies): (Vec<_>, Vec<_>) =
        group.into_iter().map(|waiting| (waiting.record, waiting.reply)).unzip();
    let records = Arc::new(records);
    let add = |range: std::ops::Range<usize>| {
        let (store, records) = (Arc::clone(&store), Arc::clone(&records));
        off_thread(move || store.add_records(ring, &records[range]))
    };
    let added = add(0..records.len()).await;
    nudge(supervisor.as_ref(), &added);
    let refused = matches!(&added, Err(error) if error.is_of_the_work()) && records.len() > 1;
    if refused {
        for (n, reply) in replies.into_iter().enumerate() {
            let added = add(n..n + 1).await;
            nudge(supervisor.as_ref(), &added);
            let one = added.map_err(not_taken_in);
            answer(
                reply,
                one.and_then(|added| added.first().copied().ok_or_else(Problem::internal)),
            );
        }
        return;
    }
    match added.map_err(not_taken_in) {
        Ok(added) => replies.into_iter().zip(added).for_each(|(reply, one)| answer(reply, Ok(one))),
        Err(problem) => {
            replies.into_iter().for_each(|reply| answer(reply, Err(problem.clone())));
        }
    }
}

fn answer(reply: oneshot::Sender<Result<Added, Problem>>, added: Result<Added, Problem>) {
    // Whoever asked may be gone; the database has the truth.
    let _ = reply.send(added);
}

/// Tells the Supervisor of this process that there is work.
fn nudge(supervisor: Option<&Addr<Supervisor>>, added: &Result<Vec<Added>, StoreError>) {
    let is_new = |added: &Added| matches!(added, Added::New(_));
    if let Some(supervisor) = supervisor
        && added.as_ref().is_ok_and(|added| added.iter().any(is_new))
        && let Err(error) = supervisor.try_send(Nudge)
    {
        tracing::debug!(%error, "could not nudge the supervisor");
    }
}

fn not_taken_in(error: StoreError) -> Problem {
    if !error.is_retryable() {
        return Problem::from(error);
    }
    tracing::warn!(%error, "could not take records in");
    Problem::unavailable(
        "It is not known whether this was stored. Send it again; with an external_id it is never \
         stored twice.",
    )
}
