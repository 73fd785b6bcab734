//! What Chancery's tests and benchmarks need around them: a private PostgreSQL server, and a proxy
//! that is the faulty network before it.
//!
//! ```no_run
//! # fn main() -> Result<(), testkit::Error> {
//! let database = testkit::Postgres::shared().create_database()?;
//! database.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)")?;
//! assert_eq!(database.sql("SELECT sum(n) FROM t")?, "3");
//! # Ok(())
//! # }
//! ```
//!
//! A server has a folder, a port and a life of its own: any number of them run at once, beside
//! whatever PostgreSQL the machine has. It is gone with its last handle, and also when the process
//! that started it dies without a word, `kill -9` included.

mod backup;
mod binaries;
mod disk;
mod guard;
mod postgres;
mod proxy;

use std::io;
use std::path::PathBuf;

pub use backup::ColdCopy;
pub use binaries::BIN_VARIABLE;
pub use disk::SmallDisk;
pub use postgres::{Database, Places, Postgres, StopMode};
pub use proxy::Proxy;
pub use tempfile::TempDir;

/// Why a server did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no PostgreSQL on this machine, or not all of it.
    #[error(
        "no PostgreSQL server found ({searched}): initdb, postgres and psql are needed. Install \
         the package `postgresql` (Debian, Ubuntu), `postgresql-server` (Fedora) or \
         `postgresql@15` (Homebrew), or set CHANCERY_TEST_PG_BIN to the folder of these programs"
    )]
    NoPostgres {
        /// Where it was looked for.
        searched: String,
    },
    /// We are root, whom PostgreSQL refuses, and there is no user to run it as.
    #[error(
        "PostgreSQL does not run as root, and this machine has no user `postgres`: install the \
         package `postgresql`, which creates it, or run the tests as another user"
    )]
    NoPostgresUser,
    /// A small file system could not be mounted or changed.
    #[error(
        "cannot mount a small disk: {reason}. The tests of full disks mount a tmpfs: run them as \
         root (a container needs CAP_SYS_ADMIN), or let `sudo -n mount` and `sudo -n umount` work"
    )]
    NoDisk {
        /// What mount said.
        reason: String,
    },
    /// A program could not be run, or a file not be written.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ran and failed; a statement that PostgreSQL refuses ends here.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: String,
        /// How it exited.
        status: String,
        /// What it wrote to its standard error.
        message: String,
    },
    /// The server exited instead of becoming ready.
    #[error("the server in {} did not start: {reason}; its log ends with:\n{log}", .folder.display())]
    NotStarted {
        /// The server's folder.
        folder: PathBuf,
        /// What was seen.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// The server is still up after a minute, most likely waiting for its clients.
    #[error("the server in {} did not stop within a minute", .folder.display())]
    NotStopped {
        /// The server's folder.
        folder: PathBuf,
    },
}

impl Error {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }
}
