//! Files that hold a secret: read only where nobody else can have read or changed them, and made so
//! that nobody else ever can.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// Who hands a file over, and so what it must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Custody {
    /// The user's own file: a regular one, not behind a symbolic link, of this user, and of mode 0600
    /// or stricter.
    Own,
    /// A file that the service's manager mounts for this service alone (a systemd credential, a secret
    /// of Docker or Kubernetes): of this user or of root, and written by nobody else. Links are
    /// followed and others may read, because that is how these are mounted.
    Mounted,
}

/// Reads a secret of at most `limit` bytes; `what` names it in errors, such as `KEK file`.
///
/// # Errors
/// If the file is not what `custody` demands, or is longer. Every message names the path.
pub fn read(
    what: &'static str,
    path: &Path,
    custody: Custody,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let error = |reason| PrivateFileError { what, path: path.to_owned(), reason };
    let file = open(path, custody).map_err(error)?;
    // One more than may be there; and room for all, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    let most = limit as u64 + 1;
    file.take(most).read_to_end(&mut bytes).map_err(|io| error(Reason::Io(io)))?;
    if bytes.len() > limit {
        return Err(error(Reason::TooLong { limit }));
    }
    Ok(bytes)
}

/// Makes a new file of mode 0600, durably, with what `write` writes.
///
/// It gets its name only when it is whole, so that nobody ever reads a part of it.
///
/// # Errors
/// [`Reason::Exists`] if anything has that name; after any error no file is left.
pub fn create(
    what: &'static str,
    path: &Path,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), PrivateFileError> {
    let error = |reason| PrivateFileError { what, path: path.to_owned(), reason };
    let io = |source| error(Reason::Io(source));
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Of mode 0600, and gone again unless it is persisted.
    let file = NamedTempFile::new_in(folder).map_err(io)?;
    // The process's umask may have taken away the owner's own rights.
    file.as_file().set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    write(file.as_file()).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist_noclobber(path).map_err(|failure| match failure.error.kind() {
        io::ErrorKind::AlreadyExists => error(Reason::Exists),
        _ => io(failure.error),
    })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn open(path: &Path, custody: Custody) -> Result<File, Reason> {
    // NONBLOCK, so that a pipe in the file's place is refused instead of waited for.
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if custody == Custody::Own {
        flags |= OFlags::NOFOLLOW;
    }
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::NOENT) => return Err(Reason::NotFound),
        Err(_) if custody == Custody::Own && path.is_symlink() => return Err(Reason::Symlink),
        Err(error) => return Err(Reason::Io(error.into())),
    };

    // Asked of the open file and not of the path, behind which the file could be exchanged.
    let metadata = file.metadata().map_err(Reason::Io)?;
    if !metadata.is_file() {
        return Err(Reason::NotAFile);
    }
    let user = rustix::process::geteuid().as_raw();
    let of_root = custody == Custody::Mounted && metadata.uid() == 0;
    if metadata.uid() != user && !of_root {
        return Err(Reason::Owner { owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o7777;
    match custody {
        Custody::Own if mode & !0o600 != 0 => Err(Reason::Mode { mode }),
        Custody::Mounted if mode & 0o022 != 0 => Err(Reason::Writable { mode }),
        _ => Ok(file),
    }
}

/// Why a file's secret is not used, or was not written.
#[derive(Debug)]
pub struct PrivateFileError {
    what: &'static str,
    path: PathBuf,
    /// What is wrong.
    pub reason: Reason,
}

impl fmt::Display for PrivateFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.what, self.path.display(), self.reason.text(&self.path))
    }
}

impl std::error::Error for PrivateFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// What is wrong with a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason {
    /// There is none.
    NotFound,
    /// Files of secrets are made once.
    Exists,
    /// A link's target can be exchanged by others.
    Symlink,
    /// A folder, a pipe or a device.
    NotAFile,
    /// Its owner, another user, can read and exchange it.
    Owner {
        /// Its owner's numeric id.
        owner: u32,
        /// The process's effective user, by numeric id.
        user: u32,
    },
    /// Others can read or change it.
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// Others can change it.
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// It is longer than such a secret is.
    TooLong {
        /// How long it may be.
        limit: usize,
    },
    /// The operating system refused.
    Io(io::Error),
}

impl Reason {
    fn text(&self, path: &Path) -> String {
        match self {
            Reason::NotFound => "not found".to_owned(),
            Reason::Exists => "exists already, and is never overwritten".to_owned(),
            Reason::Symlink => "is a symbolic link: give the path of the file itself".to_owned(),
            Reason::NotAFile => "is not a regular file".to_owned(),
            Reason::Owner { owner, user } => {
                format!("belongs to user {owner}, but this process runs as {user}")
            }
            Reason::Mode { mode } => {
                let path = quoted(path);
                format!("has mode {mode:04o}, which is looser than 0600: chmod 600 {path}")
            }
            Reason::Writable { mode } => {
                let path = quoted(path);
                format!("has mode {mode:04o}, so that others can write it: chmod go-w {path}")
            }
            Reason::TooLong { limit } => format!("has more than {limit} bytes"),
            Reason::Io(_) => "cannot be read or written".to_owned(),
        }
    }
}

/// The path as one word of a POSIX shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
