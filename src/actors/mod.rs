//! The actors: each owns one duty, and they speak only by the messages of [`messages`].
//!
//! ```text
//!              CheckOut / ReturnKey            LoadBatch, SignBatch, StoreBatch
//! KeyManager <---------------------- Supervisor ------> RecordLoader, Signer, DbWriter
//! ```
//!
//! A batch's way through them is one future (`batch_job`) that the Supervisor starts and that
//! nothing but its own end can drop.

mod batch_job;
pub mod budget;
pub mod db_writer;
pub mod key_handle;
pub mod key_manager;
pub mod key_set;
mod loading;
pub mod messages;
pub mod new_keys;
pub mod on_the_way;
mod outage;
pub mod record_loader;
pub mod reports;
pub mod rewrap;
pub mod sealer;
pub mod signer;
pub mod supervisor;
pub mod token_keys;
pub mod troubles;

#[cfg(test)]
mod tests;

/// Runs blocking work beside the actors; a panic in it is an error of the caller's, not its end.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::db::StoreError> + Send + 'static,
) -> Result<T, crate::db::StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(crate::db::StoreError::Database(format!("a database call failed: {error}")))
        }
    }
}
