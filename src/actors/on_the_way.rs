//! How many batches of a ring are being loaded and signed, for the writer to whom they will come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The batches that have been checked out and have not come to the writer; clones are the same count.
#[derive(Clone, Debug, Default)]
pub struct OnTheWay(Arc<AtomicUsize>);

impl OnTheWay {
    /// One more, until what is returned is dropped.
    pub(super) fn set_out(&self) -> Travelling {
        self.0.fetch_add(1, Ordering::Relaxed);
        Travelling(self.clone())
    }

    pub(super) fn batches(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Travelling(OnTheWay);

impl Drop for Travelling {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
