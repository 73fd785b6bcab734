//! The signing lock of an SQLite database: a lock on a file beside it, held for a process's life.
//!
//! The kernel frees it when its holder ends in whatever way, so a free lock proves the old owner
//! dead, and what it had checked out can be reclaimed at once.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::db::StoreError;

/// A lock that may be taken; see [`SigningLock::try_hold`].
#[derive(Clone, Debug)]
pub struct SigningLock {
    path: PathBuf,
}

/// The lock, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct HeldSigningLock {
    file: File,
}

impl Drop for HeldSigningLock {
    fn drop(&mut self) {
        // To close the file is not enough: a child that another thread is starting has it too, until it
        // executes its program (flock(2)). If it fails, the close frees it a moment later.
        let _ = self.file.unlock();
    }
}

impl SigningLock {
    pub(super) fn of_database(database: &Path) -> Self {
        let mut name = database.as_os_str().to_owned();
        name.push(".lock");
        SigningLock { path: PathBuf::from(name) }
    }

    /// The file that is locked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock for `who` (a line for people, which stands in the file), or says who has it.
    ///
    /// # Errors
    /// [`StoreError::Connect`] if the file cannot be made or locked.
    pub fn try_hold(&self, who: &str) -> Result<Result<HeldSigningLock, String>, StoreError> {
        let failed = |error: std::io::Error| {
            StoreError::Connect(format!("signing lock {}: {error}", self.path.display()))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                // The name is for people only: a full disk keeps nobody from the lock.
                let named = file
                    .set_len(0)
                    .and_then(|()| file.seek(SeekFrom::Start(0)))
                    .and_then(|_| writeln!(file, "{who}"));
                if let Err(error) = named {
                    tracing::warn!(lock = %self.path.display(), %error, "could not name the holder");
                }
                Ok(Ok(HeldSigningLock { file }))
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder may be writing its name just now; an empty one is no error.
                let _ = file.read_to_string(&mut holder);
                Ok(Err(holder.trim().to_owned()))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_keeps_nobody_from_the_lock() {
        let disk = testkit::SmallDisk::new(64 * 1024).unwrap();
        disk.fill().unwrap();
        let lock = SigningLock::of_database(&disk.path().join("a.db"));
        let held = lock.try_hold("node a").unwrap().unwrap();
        assert!(lock.try_hold("node b").unwrap().is_err(), "it is held");
        drop(held);
    }

    #[test]
    fn a_second_holder_is_told_who_has_the_lock_and_gets_it_when_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let lock = SigningLock::of_database(&folder.path().join("a.db"));
        let held = lock.try_hold("node a").unwrap().unwrap();
        assert_eq!(lock.try_hold("node b").unwrap().unwrap_err(), "node a");
        drop(held);
        assert!(lock.try_hold("node b").unwrap().is_ok());
        assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), "node b\n");
    }
}
