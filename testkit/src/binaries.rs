//! Finds PostgreSQL's programs and runs them as a user whom PostgreSQL accepts.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::Error;

/// The environment variable that names the folder of `initdb`, `postgres` and `psql`.
pub const BIN_VARIABLE: &str = "CHANCERY_TEST_PG_BIN";

const DEBIAN: &str = "/usr/lib/postgresql";
const PROGRAMS: [&str; 3] = ["initdb", "postgres", "psql"];

/// The folder of PostgreSQL's programs, and who may run them.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    folder: PathBuf,
    user: Option<User>,
}

/// The user that runs the server in place of root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Binaries {
    /// The folder that [`BIN_VARIABLE`] names; else Debian's newest; else the first on `PATH`.
    pub(crate) fn find() -> Result<Binaries, Error> {
        let folder = match env::var_os(BIN_VARIABLE) {
            Some(folder) => complete(PathBuf::from(folder)),
            None => newest_of_debian().or_else(on_path),
        };
        let searched = || match env::var_os(BIN_VARIABLE) {
            Some(folder) => format!("{BIN_VARIABLE} is {}", folder.display()),
            None => format!("{BIN_VARIABLE} is not set, then {DEBIAN}/*/bin, then PATH"),
        };
        let folder = folder.ok_or_else(|| Error::NoPostgres { searched: searched() })?;
        let user =
            if rustix::process::geteuid().is_root() { Some(User::postgres()?) } else { None };
        Ok(Binaries { folder, user })
    }

    /// Whom the server runs as, where that is not ourselves.
    pub(crate) fn user(&self) -> Option<User> {
        self.user
    }

    /// The path of a program.
    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// A program as the server's user; nothing of the caller's `PG*` variables reaches it.
    pub(crate) fn as_server(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let foreign = env::vars_os().map(|(name, _)| name);
        for name in foreign.filter(|name| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl User {
    fn postgres() -> Result<User, Error> {
        let id = |flag| {
            let output = run(Command::new("id").args([flag, "postgres"])).ok()?;
            output.parse().ok()
        };
        match (id("-u"), id("-g")) {
            (Some(uid), Some(gid)) => Ok(User { uid, gid }),
            _ => Err(Error::NoPostgresUser),
        }
    }
}

/// Runs a command to its end: its standard output without the last newline, or its failure.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().display().to_string();
    let Output { status, stdout, stderr } =
        command.output().map_err(Error::io(format!("run {program}")))?;
    if !status.success() {
        let message = String::from_utf8_lossy(&stderr).trim_end().to_owned();
        return Err(Error::Failed { program, status: status.to_string(), message });
    }
    let mut output = String::from_utf8_lossy(&stdout).into_owned();
    if output.ends_with('\n') {
        output.pop();
    }
    Ok(output)
}

fn newest_of_debian() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(DEBIAN)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, complete(entry.path().join("bin"))?))
        })
        .collect();
    versions.sort();
    versions.pop().map(|(_, folder)| folder)
}

fn on_path() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).find_map(complete)
}

fn complete(folder: PathBuf) -> Option<PathBuf> {
    PROGRAMS.iter().all(|program| folder.join(program).is_file()).then_some(folder)
}
