//! The KEK in a file: one text line, `chancery-kek-v1:` and the 32 bytes in base64url without
//! padding (RFC 4648, section 5), readable by its owner alone.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::Kek;

impl Kek {
    /// Writes a new KEK to a new file, durably and with mode 0600.
    ///
    /// # Errors
    /// [`KekError::Exists`] if anything has that name, [`KekError::Randomness`], and
    /// [`KekError::Io`], after which no file is left.
    pub fn generate_file(path: &Path) -> Result<Self, KekError> {
        let kek = Self::generate()?;
        create_private(path, |file| write_durably(file, &kek))?;
        Ok(kek)
    }

    /// Reads a KEK from a file that nobody else can have read.
    ///
    /// # Errors
    /// If the file is missing, is not a regular file (the last part of the path may not be a
    /// symbolic link), belongs to another user than the process's effective one, has a mode looser
    /// than 0600, or does not hold a KEK. Every message names the path and the reason.
    pub fn load_file(path: &Path) -> Result<Self, KekError> {
        let file = open_private(path)?;
        let mut text = Zeroizing::new(Vec::with_capacity(2 * FILE_BYTES));
        let limit = FILE_BYTES as u64 + 1;
        file.take(limit).read_to_end(&mut text).map_err(|error| KekError::io(path, error))?;
        parse(&text).map_err(|reason| KekError::Contents { path: path.to_owned(), reason })
    }
}

/// Gives the file its name only when it is whole, so that nobody ever reads a part of it.
fn create_private(
    path: &Path,
    write: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), KekError> {
    let io = |error| KekError::io(path, error);
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Of mode 0600, and gone again unless it is persisted.
    let file = NamedTempFile::new_in(folder).map_err(io)?;
    write(file.as_file()).map_err(io)?;
    file.persist_noclobber(path).map_err(|failure| match failure.error.kind() {
        io::ErrorKind::AlreadyExists => KekError::Exists { path: path.to_owned() },
        _ => io(failure.error),
    })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn write_durably(mut file: &File, kek: &Kek) -> io::Result<()> {
    // The process's umask may have taken away the owner's own rights.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES));
    text.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(kek.as_bytes(), &mut text);
    text.push('\n');
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn open_private(path: &Path) -> Result<File, KekError> {
    let owned = path.to_owned();
    // NONBLOCK, so that a pipe in the file's place is refused instead of waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::NOENT) => return Err(KekError::NotFound { path: owned }),
        Err(_) if path.is_symlink() => return Err(KekError::Symlink { path: owned }),
        Err(error) => return Err(KekError::io(path, error.into())),
    };

    // Asked of the open file and not of the path, behind which the file could be exchanged.
    let metadata = file.metadata().map_err(|error| KekError::io(path, error))?;
    if !metadata.is_file() {
        return Err(KekError::NotAFile { path: owned });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(KekError::Owner { path: owned, owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & !0o600 != 0 {
        return Err(KekError::Mode { path: owned, mode });
    }
    Ok(file)
}

fn parse(text: &[u8]) -> Result<Kek, &'static str> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let Some(encoded) = line.strip_prefix(PREFIX.as_bytes()) else {
        return Err("it does not begin with `chancery-kek-v1:`");
    };
    let mut decoded = Zeroizing::new([0; 64]);
    match URL_SAFE_NO_PAD.decode_slice(encoded, decoded.as_mut_slice()) {
        Ok(KEK_BYTES) => {
            let mut bytes = Zeroizing::new([0; KEK_BYTES]);
            bytes.copy_from_slice(&decoded[..KEK_BYTES]);
            Ok(Kek::from_bytes(bytes))
        }
        _ => Err("what follows `chancery-kek-v1:` is not 32 bytes in base64url"),
    }
}

const PREFIX: &str = "chancery-kek-v1:";
const KEK_BYTES: usize = 32;
/// The prefix, 43 digits and a newline.
const FILE_BYTES: usize = PREFIX.len() + 43 + 1;

/// Why there is no KEK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// No KEK could be generated.
    #[error("the operating system gives no randomness for a KEK")]
    Randomness(#[source] getrandom::Error),
    /// A KEK file is made once.
    #[error("{} exists already, and a KEK file is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("KEK file {} not found; `chancery kek generate --out FILE` makes one", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// A link's target can be exchanged by others.
    #[error("KEK file {} is a symbolic link: give the path of the file itself", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A folder, a pipe or a device.
    #[error("KEK file {} is not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// Its owner, another user, can read and exchange it.
    #[error("KEK file {} belongs to user {owner}, but this process runs as {user}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's numeric id.
        owner: u32,
        /// The process's effective user, by numeric id.
        user: u32,
    },
    /// Others can read or change it.
    #[error(
        "KEK file {} has mode {mode:04o}, which is looser than 0600: chmod 600 {}",
        path.display(),
        quoted(path)
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not what [`Kek::generate_file`] writes.
    #[error("{} is not a KEK file: {reason}", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("KEK file {} cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl KekError {
    fn io(path: &Path, source: io::Error) -> Self {
        KekError::Io { path: path.to_owned(), source }
    }
}

/// The path as one word of a POSIX shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Files(TempDir::new().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, contents: &str, mode: u32) -> PathBuf {
            let path = self.path(name);
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    /// Asserts that the refusal names the path and `reason`.
    fn assert_refused(path: &Path, reason: &str) {
        let message = Kek::load_file(path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(message.contains(reason), "{message}");
    }

    const GOOD: &str = "chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n";

    #[test]
    fn a_generated_file_is_private_and_loads_as_the_same_kek() {
        let files = Files::new();
        let path = files.path("kek");
        let kek = Kek::generate_file(&path).unwrap();
        assert_eq!(Kek::load_file(&path).unwrap().as_bytes(), kek.as_bytes());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(metadata.len(), FILE_BYTES as u64);
    }

    #[test]
    fn the_file_format_stays_readable_in_later_versions() {
        let files = Files::new();
        let read_only = files.write("read-only", GOOD, 0o400);
        assert_eq!(Kek::load_file(&read_only).unwrap().as_bytes(), &[7; 32]);
        let no_newline = files.write("no-newline", GOOD.trim_end(), 0o600);
        assert_eq!(Kek::load_file(&no_newline).unwrap().as_bytes(), &[7; 32]);
    }

    #[test]
    fn generating_never_overwrites_a_file_or_a_link() {
        let files = Files::new();
        let path = files.write("kek", "mine", 0o600);
        let link = files.path("link");
        std::os::unix::fs::symlink(files.path("nowhere"), &link).unwrap();
        for path in [&path, &link] {
            let error = Kek::generate_file(path).unwrap_err();
            assert!(matches!(error, KekError::Exists { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(!files.path("nowhere").exists());
    }

    #[test]
    fn a_file_is_private_from_the_start_and_goes_when_writing_fails() {
        let files = Files::new();
        let path = files.path("kek");
        let mut mode = 0o777;
        let result = create_private(&path, |file| {
            mode = file.metadata()?.mode() & 0o777;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(result, Err(KekError::Io { .. })), "{result:?}");
        assert_eq!(mode & !0o600, 0);
        assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn generating_into_a_missing_folder_names_the_path() {
        let path = Files::new().path("missing/kek");
        let error = Kek::generate_file(&path).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_mode_that_lets_others_in_is_refused_with_the_command_that_mends_it() {
        let files = Files::new();
        for mode in [0o601, 0o604, 0o620, 0o640, 0o644, 0o660, 0o700, 0o4600] {
            let path = files.write(&format!("it's {mode:o}"), GOOD, mode);
            assert_refused(&path, &format!("mode {mode:04o}"));
            let command = format!("chmod 600 {}", quoted(&path));
            let message = Kek::load_file(&path).unwrap_err().to_string();
            assert!(message.ends_with(&command), "{message}");
            assert!(command.ends_with(&format!(r"/it'\''s {mode:o}'")), "{command}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let files = Files::new();
        let path = if rustix::process::geteuid().is_root() {
            let path = files.write("kek", GOOD, 0o600);
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            path
        } else {
            PathBuf::from("/etc/passwd")
        };
        assert_refused(&path, "belongs to user");
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let files = Files::new();
        let target = files.write("target", GOOD, 0o600);
        let link = files.path("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let folder = files.path("folder");
        fs::create_dir(&folder).unwrap();
        let pipe = files.path("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();

        assert!(Kek::load_file(&target).is_ok());
        assert_refused(&link, "symbolic link");
        assert_refused(&folder, "not a regular file");
        assert_refused(&pipe, "not a regular file");
        assert_refused(&files.path("missing"), "not found");
    }

    #[test]
    fn contents_that_are_no_kek_are_refused() {
        let files = Files::new();
        let prefix = "does not begin with `chancery-kek-v1:`";
        let bytes = "not 32 bytes in base64url";
        let cases = [
            ("", prefix),
            ("\n", prefix),
            ("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n", prefix),
            ("chancery-kek-v2:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n", prefix),
            ("chancery-kek-v1:\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwd\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHB/+\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n\n", bytes),
        ];
        for (number, (contents, reason)) in cases.into_iter().enumerate() {
            assert_refused(&files.write(&number.to_string(), contents, 0o600), reason);
        }
        let long = GOOD.repeat(100_000);
        assert_refused(&files.write("long", &long, 0o600), bytes);
    }

    #[test]
    fn a_refusal_never_quotes_the_contents() {
        let files = Files::new();
        let path = files.write("kek", GOOD.trim_start_matches("chancery-"), 0o600);
        let error = Kek::load_file(&path).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("BwcH"));
    }
}
