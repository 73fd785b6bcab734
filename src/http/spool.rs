//! An answer that grows while the request is still read: results in memory, and beyond a bound in a
//! temporary file, so that a client may send all before it reads anything, and memory stays constant.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use actix_web::web::Bytes;
use futures::Stream;

/// How many bytes wait in memory before a file is made.
const IN_MEMORY: usize = 1024 * 1024;

/// How many bytes of the file are read at a time.
const PIECE: usize = 64 * 1024;

/// The writing end; dropping it ends the answer.
pub(super) struct Spool(Arc<Mutex<State>>);

/// The reading end.
pub(super) struct Results(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    memory: VecDeque<Bytes>,
    bytes_in_memory: usize,
    /// What came after the memory was full, if it was.
    file: Option<File>,
    written: u64,
    read: u64,
    has_ended: bool,
    is_abandoned: bool,
    reader: Option<Waker>,
}

/// A spool and what reads it.
pub(super) fn spool() -> (Spool, Results) {
    let state = Arc::<Mutex<State>>::default();
    (Spool(Arc::clone(&state)), Results(state))
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// Adds to the answer.
    ///
    /// # Errors
    /// If nobody reads it any more, or there is no room for it.
    pub(super) fn write(&self, piece: Vec<u8>) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut state = lock(&self.0);
        if state.is_abandoned {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.file.is_none() && state.bytes_in_memory + piece.len() > IN_MEMORY {
            state.file = Some(tempfile::tempfile()?);
        }
        let at = state.written;
        match &state.file {
            Some(file) => {
                // A short write to the page cache; the disk is nobody's to wait for.
                file.write_all_at(&piece, at)?;
                state.written += piece.len() as u64;
            }
            None => {
                state.bytes_in_memory += piece.len();
                state.memory.push_back(piece.into());
            }
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.has_ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        lock(&self.0).is_abandoned = true;
    }
}

impl Stream for Results {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.0);
        if let Some(piece) = state.memory.pop_front() {
            state.bytes_in_memory -= piece.len();
            return Poll::Ready(Some(Ok(piece)));
        }
        let left = state.written - state.read;
        if let Some(file) = state.file.as_ref().filter(|_| left > 0) {
            let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            let read = file.read_exact_at(&mut piece, state.read);
            state.read += piece.len() as u64;
            return Poll::Ready(Some(read.map(|()| piece.into())));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn read_all(mut results: Results) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = results.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        all
    }

    #[actix_web::test]
    async fn what_is_written_is_read_in_order_whatever_its_size() {
        for pieces in [0_usize, 1, 100, 40_000] {
            let (spool, results) = spool();
            let piece = |n: usize| format!("{n:0>99}\n").into_bytes();
            let expected: Vec<u8> = (0..pieces).flat_map(piece).collect();
            for n in 0..pieces {
                spool.write(piece(n)).unwrap();
            }
            let is_in_file = lock(&spool.0).file.is_some();
            assert_eq!(is_in_file, expected.len() > IN_MEMORY);
            assert!(lock(&spool.0).bytes_in_memory <= IN_MEMORY);
            drop(spool);
            assert!(read_all(results).await == expected, "{pieces}");
        }
    }

    #[actix_web::test]
    async fn a_reader_is_woken_and_a_writer_told_when_nobody_reads() {
        let (spool, mut results) = spool();
        let reading = actix_web::rt::spawn(async move {
            let piece = results.next().await.unwrap().unwrap();
            (piece, results)
        });
        tokio::task::yield_now().await;
        spool.write(b"now".to_vec()).unwrap();
        let (piece, results) = reading.await.unwrap();
        assert_eq!(piece, "now");
        drop(results);
        let error = spool.write(b"later".to_vec()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
