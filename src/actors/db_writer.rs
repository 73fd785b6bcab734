//! Stores signed batches: an async front that groups what is waiting, and sync workers that hold
//! one transaction each.
//!
//! Invariant: every [`StoreBatch`] is answered exactly once, when its fate is settled in the
//! database; a lost connection only delays the answer.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::messages::{Observe, Stop, StoreBatch, StoreReply};
use super::on_the_way::OnTheWay;
use super::signer::panic_message;
use super::troubles::{Place, Reminder, Troubles};
use crate::db::{KeyUse, Refusal, SignedBatch, Store, StoreError, StoreOutcome};
use crate::failpoint::reach;

/// How many signatures one transaction stores at most, unless one batch alone has more.
const GROUP_SIGNATURES: usize = 32_768;

/// How long a transaction is put off at the most, for more batches to share it.
const LONGEST_DELAY: Duration = Duration::from_millis(50);

/// The longest pause between two attempts while the database is not reachable.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The front.
pub struct DbWriter {
    workers: Addr<StoreWorker>,
    idle_workers: usize,
    on_the_way: OnTheWay,
    troubles: Troubles,
    waiting: VecDeque<Waiting>,
    /// How long the last transaction took.
    took: Duration,
    /// The end of the time for which what waits is put off.
    overdue: Option<SpawnHandle>,
    snapshot: DbWriterSnapshot,
}

struct Waiting {
    batch: SignedBatch,
    reply: oneshot::Sender<StoreReply>,
}

/// The state of a DbWriter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct DbWriterSnapshot {
    /// Batches that wait for a worker.
    pub waiting: usize,
    /// Transactions that stored something.
    pub groups: u64,
    /// Batches stored.
    pub stored_batches: u64,
    /// Signatures stored.
    pub signatures: u64,
    /// Batches that another node had ended: their signatures were thrown away.
    pub fenced: u64,
    /// Batches that broke a rule.
    pub refused: u64,
    /// Of these, batches with a record that had a signature already: an alarm.
    pub double_signs: u64,
    /// Attempts repeated because the database was not reachable or busy.
    pub repeated: u64,
}

impl DbWriter {
    /// A front for `writers` workers of a pool, to whom the batches come that are `on_the_way`.
    #[must_use]
    pub fn new(
        workers: Addr<StoreWorker>,
        writers: usize,
        on_the_way: OnTheWay,
        troubles: Troubles,
    ) -> Self {
        DbWriter {
            workers,
            on_the_way,
            troubles,
            idle_workers: writers,
            waiting: VecDeque::new(),
            took: Duration::ZERO,
            overdue: None,
            snapshot: DbWriterSnapshot::default(),
        }
    }

    /// Gives each idle worker a group of what waits, unless more is about to come.
    fn flush(&mut self, context: &mut Context<Self>) {
        while self.idle_workers > 0 && !self.waiting.is_empty() {
            let (waiting, on_the_way) = (self.waiting.len(), self.on_the_way.batches());
            if let Some(delay) = delay(waiting, on_the_way, self.took) {
                self.overdue.get_or_insert_with(|| context.notify_later(Overdue, delay));
                return;
            }
            self.store_next_group(context);
        }
    }

    fn store_next_group(&mut self, context: &mut Context<Self>) {
        if let Some(overdue) = self.overdue.take() {
            context.cancel_future(overdue);
        }
        let begun = Instant::now();
        self.idle_workers -= 1;
        let (batches, replies) = self.next_group();
        reach("writer", "grouped");
        let group = store_group(self.workers.clone(), Arc::new(batches), self.troubles.clone());
        context.spawn(group.into_actor(self).map(move |settled, actor, context| {
            actor.idle_workers += 1;
            actor.took = begun.elapsed();
            actor.answer(settled, replies);
            actor.flush(context);
        }));
    }

    /// Takes what waits, of one ring and within the bound.
    fn next_group(&mut self) -> (Vec<SignedBatch>, Vec<oneshot::Sender<StoreReply>>) {
        let mut batches: Vec<SignedBatch> = Vec::new();
        let mut replies = Vec::new();
        let mut signatures = 0;
        while let Some(next) = self.waiting.front() {
            signatures += next.batch.signatures.len();
            let of_this_ring =
                batches.first().is_none_or(|b| b.key_use.ring == next.batch.key_use.ring);
            if !batches.is_empty() && (signatures > GROUP_SIGNATURES || !of_this_ring) {
                break;
            }
            if let Some(Waiting { batch, reply }) = self.waiting.pop_front() {
                batches.push(batch);
                replies.push(reply);
            }
        }
        (batches, replies)
    }

    fn answer(&mut self, settled: Settled, replies: Vec<oneshot::Sender<StoreReply>>) {
        self.snapshot.groups += settled.groups;
        self.snapshot.repeated += settled.repeated;
        self.snapshot.double_signs += settled.double_signs;
        for ((reply, signatures), waiting) in settled.replies.into_iter().zip(replies) {
            match &reply {
                StoreReply::Stored => {
                    self.snapshot.stored_batches += 1;
                    self.snapshot.signatures += signatures;
                }
                StoreReply::Fenced(_) => self.snapshot.fenced += 1,
                StoreReply::Refused(_) => self.snapshot.refused += 1,
                StoreReply::Unsettled(_) => {}
            }
            reach("writer", "answered");
            // Whoever asked may be gone; the database has the truth.
            let _ = waiting.send(reply);
        }
    }
}

/// How long what waits is put off, where more is about to come.
///
/// A transaction costs as much as some batches in it. So it is worth a wait while more than twice as many
/// are on the way as have come, but no more than twice the time that the last one took.
fn delay(waiting: usize, on_the_way: usize, took: Duration) -> Option<Duration> {
    let is_put_off = 2 * waiting < on_the_way && !took.is_zero();
    is_put_off.then(|| (2 * took).min(LONGEST_DELAY))
}

/// What became of a group: for each batch the reply and its number of signatures.
struct Settled {
    replies: Vec<(StoreReply, u64)>,
    /// Transactions that stored something.
    groups: u64,
    repeated: u64,
    double_signs: u64,
}

/// Stores a group, again until the database has answered. If a batch breaks a rule the group is
/// repeated one by one, so that only the guilty one is refused.
async fn store_group(
    workers: Addr<StoreWorker>,
    group: Arc<Vec<SignedBatch>>,
    troubles: Troubles,
) -> Settled {
    let replies = Vec::with_capacity(group.len());
    let mut settled = Settled { replies, groups: 0, repeated: 0, double_signs: 0 };
    match store_until_answered(&workers, &group, 0..group.len(), &mut settled.repeated, &troubles)
        .await
    {
        Ok(outcomes) => settled.push(&group, outcomes),
        Err(error) if group.len() == 1 => settled.fail(&group[0], error),
        Err(_) => {
            for (n, batch) in group.iter().enumerate() {
                let one = n..n + 1;
                match store_until_answered(&workers, &group, one, &mut settled.repeated, &troubles)
                    .await
                {
                    Ok(outcomes) => settled.push(std::slice::from_ref(batch), outcomes),
                    Err(error) => settled.fail(batch, error),
                }
            }
        }
    }
    settled
}

impl Settled {
    fn push(&mut self, batches: &[SignedBatch], outcomes: Vec<StoreOutcome>) {
        let stored =
            |o: &StoreOutcome| matches!(o, StoreOutcome::Stored | StoreOutcome::AlreadyStored);
        self.groups += u64::from(outcomes.iter().any(stored));
        for (batch, outcome) in batches.iter().zip(outcomes) {
            let reply = match outcome {
                StoreOutcome::Stored | StoreOutcome::AlreadyStored => StoreReply::Stored,
                StoreOutcome::Fenced(outcome) => StoreReply::Fenced(outcome),
            };
            self.replies.push((reply, batch.signatures.len() as u64));
        }
    }

    fn fail(&mut self, batch: &SignedBatch, error: StoreError) {
        let KeyUse { ring, fence, batch, key } = batch.key_use;
        let reason = error.to_string();
        if matches!(error, StoreError::Refused(Refusal::DoubleSign(_))) {
            self.double_signs += 1;
        }
        let reply = if error.is_of_the_work() {
            tracing::error!(%ring, %fence, %batch, %key, reason, "the database refused a batch");
            StoreReply::Refused(reason)
        } else {
            tracing::error!(%ring, %fence, %batch, %key, reason, "could not store a batch");
            StoreReply::Unsettled(reason)
        };
        self.replies.push((reply, 0));
    }
}

async fn store_until_answered(
    workers: &Addr<StoreWorker>,
    group: &Arc<Vec<SignedBatch>>,
    part: std::ops::Range<usize>,
    repeated: &mut u64,
    troubles: &Troubles,
) -> Result<Vec<StoreOutcome>, StoreError> {
    let mut pause = Duration::from_millis(20);
    let mut reminder = Reminder::default();
    loop {
        let message = StoreGroup { group: Arc::clone(group), part: part.clone() };
        let error = match workers.send(message).await {
            Ok(Ok(outcomes)) => {
                troubles.clear(Place::Store);
                return Ok(outcomes);
            }
            Ok(Err(error)) => error,
            Err(error) => {
                let message = format!("the store workers are gone: {error}");
                return Err(StoreError::Connect(message));
            }
        };
        if !error.is_retryable() {
            return Err(error);
        }
        troubles.set(Place::Store, error.to_string());
        // Whether the commit took effect may be unknown; the repetition settles it.
        if reminder.is_due() {
            tracing::warn!(%error, batches = part.len(), "could not store, trying again");
        }
        *repeated += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Actor for DbWriter {
    type Context = Context<Self>;
}

/// To itself: what waits has waited long enough.
#[derive(Message)]
#[rtype(result = "()")]
struct Overdue;

impl Handler<Overdue> for DbWriter {
    type Result = ();

    fn handle(&mut self, _: Overdue, context: &mut Self::Context) {
        self.overdue = None;
        if self.idle_workers > 0 && !self.waiting.is_empty() {
            self.store_next_group(context);
        }
    }
}

impl Handler<StoreBatch> for DbWriter {
    type Result = ResponseFuture<StoreReply>;

    fn handle(&mut self, message: StoreBatch, context: &mut Self::Context) -> Self::Result {
        let (reply, settled) = oneshot::channel();
        self.waiting.push_back(Waiting { batch: message.0, reply });
        self.flush(context);
        Box::pin(async move {
            settled.await.unwrap_or_else(|_| StoreReply::Unsettled("the writer stopped".to_owned()))
        })
    }
}

impl Handler<Observe<DbWriterSnapshot>> for DbWriter {
    type Result = DbWriterSnapshot;

    fn handle(&mut self, _: Observe<DbWriterSnapshot>, _: &mut Self::Context) -> Self::Result {
        DbWriterSnapshot { waiting: self.waiting.len(), ..self.snapshot }
    }
}

impl Handler<Stop> for DbWriter {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        context.stop();
    }
}

/// The sync half: one transaction at a time; a pool of `writers` runs in a `SyncArbiter`.
pub struct StoreWorker {
    /// Where to.
    pub store: Arc<dyn Store>,
}

/// From the front: store these in one transaction.
struct StoreGroup {
    group: Arc<Vec<SignedBatch>>,
    part: std::ops::Range<usize>,
}

impl Message for StoreGroup {
    type Result = Result<Vec<StoreOutcome>, StoreError>;
}

impl Actor for StoreWorker {
    type Context = SyncContext<Self>;
}

impl Handler<StoreGroup> for StoreWorker {
    type Result = Result<Vec<StoreOutcome>, StoreError>;

    fn handle(&mut self, message: StoreGroup, _: &mut Self::Context) -> Self::Result {
        let batches = &message.group[message.part];
        let Some(first) = batches.first() else {
            return Ok(Vec::new());
        };
        // A panic would end this thread, and actix never replaces it.
        let store = || {
            reach("writer", "storing");
            self.store.store_batches(first.key_use.ring, batches)
        };
        catch_unwind(AssertUnwindSafe(store)).unwrap_or_else(|panic| {
            let message = panic_message(panic.as_ref());
            Err(StoreError::Database(format!("the writer panicked: {message}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_waits_for_many_and_not_for_long() {
        let took = Duration::from_millis(8);
        assert_eq!(delay(1, 0, took), None, "nothing else comes");
        assert_eq!(delay(1, 2, took), None);
        assert_eq!(delay(1, 3, took), Some(2 * took));
        assert_eq!(delay(11, 22, took), None);
        assert_eq!(delay(10, 22, took), Some(2 * took));
        assert_eq!(delay(1, 30, Duration::ZERO), None, "the first of all");
        assert_eq!(delay(1, 30, Duration::from_secs(9)), Some(LONGEST_DELAY), "after an outage");
    }
}
