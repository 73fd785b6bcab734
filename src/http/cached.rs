//! Answers of the database that are good for a while, so that no number of requests can burden it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::Instrument;

use super::PATIENCE;
use crate::actors::off_thread;
use crate::db::StoreError;

/// The last answer to one question, asked by one request at a time.
pub(super) struct Cached<T> {
    last: Arc<Mutex<Option<Last<T>>>>,
    good_for: Duration,
}

struct Last<T> {
    at: Instant,
    answer: Option<Arc<T>>,
}

impl<T: Send + Sync + 'static> Cached<T> {
    pub(super) fn new(good_for: Duration) -> Self {
        Cached { last: Arc::default(), good_for }
    }

    /// The answer, from now or a little while ago; `None` if the database gave none, as the log says,
    /// or not in time.
    pub(super) async fn ask(
        &self,
        question: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Option<Arc<T>> {
        let asked = Instant::now();
        let mut last = timeout(PATIENCE, Arc::clone(&self.last).lock_owned()).await.ok()?;
        if let Some(last) = last.as_ref()
            && last.at.elapsed() < self.good_for
        {
            return last.answer.clone();
        }
        // A future of its own: a database that is slow must be waited for before it is asked again.
        let asking = async move {
            let answer = match off_thread(question).await {
                Ok(answer) => Some(Arc::new(answer)),
                Err(error) => {
                    tracing::warn!(%error, "could not ask the database");
                    None
                }
            };
            *last = Some(Last { at: Instant::now(), answer: answer.clone() });
            answer
        };
        let asking = actix_web::rt::spawn(asking.in_current_span());
        timeout(PATIENCE.saturating_sub(asked.elapsed()), asking).await.ok()?.ok()?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[actix_web::test]
    async fn a_question_is_asked_again_only_when_its_answer_is_old() {
        let asked = Arc::new(AtomicU32::new(0));
        let question = || {
            let asked = Arc::clone(&asked);
            move || Ok(asked.fetch_add(1, Ordering::Relaxed))
        };
        let kept = Cached::new(Duration::from_secs(3600));
        assert_eq!(kept.ask(question()).await.as_deref(), Some(&0));
        assert_eq!(kept.ask(question()).await.as_deref(), Some(&0));
        let forgotten = Cached::new(Duration::ZERO);
        assert_eq!(forgotten.ask(question()).await.as_deref(), Some(&1));
        assert_eq!(forgotten.ask(question()).await.as_deref(), Some(&2));
    }

    #[actix_web::test]
    async fn a_database_that_hangs_is_asked_once_and_holds_up_no_answer() {
        let cached = Cached::new(Duration::ZERO);
        let (release, gate) = mpsc::channel::<()>();
        let hanging = cached.ask(move || Ok(gate.recv().is_ok()));
        assert!(hanging.await.is_none());
        assert!(cached.ask(|| panic!("the first question has no answer yet")).await.is_none());
        release.send(()).unwrap();
        assert_eq!(cached.ask(|| Ok(false)).await.as_deref(), Some(&false));
    }

    #[actix_web::test]
    async fn an_error_is_no_answer_and_is_not_asked_for_again_at_once() {
        let cached = Cached::new(Duration::from_secs(3600));
        assert!(cached.ask(|| Err(StoreError::Database("no".to_owned()))).await.is_none());
        assert!(cached.ask(|| Ok(())).await.is_none());
    }
}
