//! The file of an SQLite database: opening it, and saying what is wrong with it or its disk.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sqlite::SqliteConnection;
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use crate::db::{Refusal, StoreError};

/// What SQLite needs to make its `-wal` and `-shm` files, about.
const ROOM_TO_OPEN: u64 = 128 * 1024;

/// Below so much room it is said that the disk is nearly full: a group of the largest size takes
/// about 6 MB in the write-ahead log, and as much again in the file.
const LITTLE_ROOM: u64 = 16 * 1024 * 1024;

/// Opens the database at `path`, and makes it if it is not there; `settings` are its first
/// statements.
///
/// # Errors
/// [`StoreError::Connect`], [`StoreError::ReadOnly`] or [`StoreError::Damaged`], which name the file,
/// where waiting does not help; else what SQLite says.
pub(in crate::db) fn open(path: &Path, settings: &str) -> Result<SqliteConnection, StoreError> {
    let Some(name) = path.to_str() else {
        return Err(StoreError::Connect(format!("{}: the path is not UTF-8", path.display())));
    };
    let connected = SqliteConnection::establish(name)
        .map_err(|error| StoreError::Connect(error.to_string()))
        .and_then(|mut connection| {
            connection.batch_execute(settings).map_err(classify)?;
            Ok(connection)
        });
    connected.map_err(|error| explain(path, error))
}

/// What SQLite's error means. It tells its codes by fixed English messages
/// (<https://www.sqlite.org/rescode.html>).
pub(in crate::db) fn classify(error: DieselError) -> StoreError {
    let (kind, info) = match &error {
        DieselError::DatabaseError(kind, info) => (kind, info),
        DieselError::RollbackErrorOnCommit { .. } => {
            return match error {
                DieselError::RollbackErrorOnCommit { commit_error, .. } => classify(*commit_error),
                other => StoreError::Database(other.to_string()),
            };
        }
        _ => return StoreError::Database(error.to_string()),
    };
    let message = info.message().to_owned();
    let says = |phrase: &str| message.contains(phrase);
    match kind {
        // By the primary key, or by the trigger that refuses a replacement.
        _ if says("UNIQUE constraint failed: signatures.record_id") => {
            StoreError::Refused(Refusal::DoubleSign(message))
        }
        DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::CheckViolation => {
            StoreError::Refused(Refusal::Constraint(message))
        }
        _ if says("is locked") || says("out of memory") => StoreError::Busy(message),
        _ if says("disk is full") || says("disk I/O error") => StoreError::Storage(message),
        // Of an open database: its log beside it cannot be opened just now.
        _ if says("unable to open database file") => StoreError::Unavailable(message),
        _ if says("attempt to write a readonly database") => StoreError::ReadOnly(message),
        _ if says("malformed") || says("file is not a database") => StoreError::Damaged(message),
        _ => StoreError::Database(message),
    }
}

/// Says of a database that could not be opened what is wrong with its file, where that can be seen.
fn explain(path: &Path, error: StoreError) -> StoreError {
    let file = path.display();
    let folder = folder_of(path);
    if matches!(error, StoreError::Busy(_)) {
        return error;
    }
    if !folder.is_dir() {
        return StoreError::Connect(format!("{file}: there is no folder {}", folder.display()));
    }
    if path.is_dir() {
        return StoreError::Connect(format!("{file} is a folder: name a file in it"));
    }
    if let Some(header) = header(path)
        && !header.starts_with(MAGIC)
    {
        return StoreError::Connect(format!(
            "{file} is not an SQLite database, or its beginning is overwritten: name another file, \
             or restore it from a backup"
        ));
    }
    if let Some(why) = read_only(path) {
        return StoreError::ReadOnly(why);
    }
    if free_bytes(&folder).is_some_and(|free| free < ROOM_TO_OPEN) {
        return StoreError::Storage(format!("no room is left for {file}: {error}"));
    }
    match error {
        StoreError::Damaged(message) => match missing_bytes(path) {
            Some(missing) => {
                StoreError::Damaged(format!("{file} is cut short by {missing} bytes: {message}"))
            }
            None => StoreError::Damaged(format!("{file}: {message}")),
        },
        StoreError::ReadOnly(message) => StoreError::ReadOnly(format!("{file}: {message}")),
        StoreError::Unavailable(message) | StoreError::Connect(message) => {
            StoreError::Connect(format!("cannot open {file}: {message}"))
        }
        other => other,
    }
}

/// Why nothing can be written to the file or beside it, if so.
pub(super) fn read_only(path: &Path) -> Option<String> {
    let folder = folder_of(path);
    if statvfs(&folder).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return Some(format!("{} is on a file system that is mounted read-only", path.display()));
    }
    let no_right = |path: &Path| access(path, Access::WRITE_OK).is_err();
    if path.exists() && no_right(path) {
        return Some(format!("this user has no right to write {}", path.display()));
    }
    if no_right(&folder) {
        let folder = folder.display();
        return Some(format!("this user has no right to write in {folder}, where its log must be"));
    }
    None
}

/// How little room there is for the file to grow, if little.
pub(super) fn little_room(path: &Path) -> Option<String> {
    let free = free_bytes(&folder_of(path))?;
    (free < LITTLE_ROOM)
        .then(|| format!("the disk of {} has only {} kB left", path.display(), free / 1000))
}

/// Which file this is, whatever its name: its device and number.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

const MAGIC: &[u8] = b"SQLite format 3\0";

/// The file's first 100 bytes; `None` if it cannot be read or is empty, as a new database is.
fn header(path: &Path) -> Option<Vec<u8>> {
    let mut header = Vec::new();
    File::open(path).ok()?.take(100).read_to_end(&mut header).ok()?;
    (!header.is_empty()).then_some(header)
}

/// By how much the file is shorter than its header says (<https://www.sqlite.org/fileformat.html>,
/// section 1.3).
fn missing_bytes(path: &Path) -> Option<u64> {
    let header = header(path)?;
    let page_size: [u8; 2] = header.get(16..18)?.try_into().ok()?;
    let pages: [u8; 4] = header.get(28..32)?.try_into().ok()?;
    let page_size = match u16::from_be_bytes(page_size) {
        1 => 65_536,
        bytes => u64::from(bytes),
    };
    let wanted = page_size * u64::from(u32::from_be_bytes(pages));
    wanted.checked_sub(fs::metadata(path).ok()?.len()).filter(|missing| *missing > 0)
}

fn free_bytes(folder: &Path) -> Option<u64> {
    let fs = statvfs(folder).ok()?;
    Some(fs.f_bavail.saturating_mul(fs.f_frsize))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
