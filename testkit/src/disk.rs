//! A disk so small that a test can fill it: a tmpfs of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::Error;
use crate::binaries::run;

/// A small file system, gone when the value is dropped or its process dies, whoever still uses it.
///
/// Only root may mount. Another user needs `sudo` that asks for no password.
#[derive(Debug)]
pub struct SmallDisk {
    guard: Option<Child>,
    mounted: PathBuf,
    _folder: TempDir,
}

/// Waits for the end of its input, which is its owner's end, and takes the file system away: from the
/// tree of files at once (`-l`), and from memory with its last user.
const GUARD: &str = r#"
trap '' HUP INT TERM
read -r word
umount -l -- "$1" || sudo -n umount -l -- "$1"
rmdir -- "$1"
"#;

impl SmallDisk {
    /// Makes one with room for so many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NoDisk`] if nobody here may mount a file system.
    pub fn new(bytes: u64) -> Result<SmallDisk, Error> {
        let folder = tempfile::Builder::new().prefix("chancery-disk-").tempdir();
        let folder = folder.map_err(Error::io("make a temporary folder"))?;
        open_to_all(folder.path())?;
        let mounted = folder.path().join("disk");
        fs::create_dir(&mounted).map_err(Error::io("make a temporary folder"))?;
        // From here on the guard takes it away, whatever happens.
        let guard = Command::new("sh")
            .args(["-c", GUARD, "testkit-disk"])
            .arg(&mounted)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start the guard of a small disk"))?;
        let disk = SmallDisk { guard: Some(guard), mounted, _folder: folder };
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let options =
            format!("size={bytes},mode=0777,uid={},gid={}", user.as_raw(), group.as_raw());
        as_root(&["mount", "-t", "tmpfs", "-o", &options, "chancery-test"], disk.path())?;
        Ok(disk)
    }

    /// Where it is mounted. Everybody may write there.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Takes up all the room that is left.
    ///
    /// # Errors
    ///
    /// If the file that does so cannot be made.
    pub fn fill(&self) -> Result<(), Error> {
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .map_err(Error::io("fill the small disk"))?;
        // In smaller and smaller pieces, to the last byte.
        for size in [1024 * 1024, 4096, 1] {
            let piece = vec![0; size];
            while filler.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    /// Gives back the room that [`SmallDisk::fill`] took.
    ///
    /// # Errors
    ///
    /// If there is none to give back.
    pub fn make_room(&self) -> Result<(), Error> {
        fs::remove_file(self.filler()).map_err(Error::io("make room on the small disk"))
    }

    /// Allows no writes any more, or allows them again.
    ///
    /// # Errors
    ///
    /// If the mount cannot be changed; a file that is open for writing prevents it.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), Error> {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        as_root(&["mount", "-o", options], self.path())
    }

    fn filler(&self) -> PathBuf {
        self.mounted.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

/// Another user's server must find its way in.
fn open_to_all(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
        .map_err(Error::io("make a temporary folder"))
}

fn as_root(command: &[&str], path: &Path) -> Result<(), Error> {
    let is_root = rustix::process::geteuid().is_root();
    let words = if is_root { &[][..] } else { &["sudo", "-n"][..] };
    let mut words = words.iter().chain(command);
    let program = words.next().copied().unwrap_or("mount");
    match run(Command::new(program).args(words).arg(path)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NoDisk { reason: error.to_string() }),
    }
}
