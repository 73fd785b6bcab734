//! A PostgreSQL server of the test's own, and its databases.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, PipeWriter, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::binaries::{Binaries, User, run};
use crate::guard::Guard;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const PORT_TRIES: u32 = 10;
const LOG_TAIL_BYTES: usize = 8 * 1024;

/// A running server; clones are handles to the same one, which ends with the last of them.
///
/// It listens on 127.0.0.1 and on a socket in its folder, trusts every local client, has a
/// superuser `postgres` and room for 200 connections. `fsync` is on: what it commits, it keeps.
#[derive(Clone, Debug)]
pub struct Postgres(Arc<Server>);

/// How a server is told to stop: "Shutting Down the Server" in PostgreSQL's manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Rolls back what is open and ends the connections (SIGINT).
    Fast,
    /// Ends without a checkpoint; the next start recovers from the log, as after a crash (SIGQUIT).
    Immediate,
    /// Waits for the clients to leave by themselves (SIGTERM).
    Smart,
}

/// Folders in which a server keeps what it writes, where not in its own.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// For its data.
    pub data: Option<PathBuf>,
    /// For its write-ahead log; segments are then of 1 MB.
    pub wal: Option<PathBuf>,
}

impl Postgres {
    /// Makes a new server and waits until it takes connections: about a second or two.
    ///
    /// # Errors
    ///
    /// When PostgreSQL is not installed, or does not start.
    pub fn start() -> Result<Postgres, Error> {
        Postgres::start_at(&Places::default())
    }

    /// As [`Postgres::start`], with its data or its write-ahead log in other folders, to be on disks
    /// of their own. What it writes there is not removed with it.
    ///
    /// # Errors
    ///
    /// As [`Postgres::start`].
    pub fn start_at(places: &Places) -> Result<Postgres, Error> {
        Postgres::make(|binaries, folder| make_cluster(binaries, folder, places))
    }

    /// Makes a hot standby of this server, which follows it until `pg_promote()`.
    ///
    /// # Errors
    ///
    /// As [`Postgres::start`].
    pub fn start_standby(&self) -> Result<Postgres, Error> {
        Postgres::make(|binaries, folder| {
            let data = data_path(folder);
            run(binaries
                .as_server(binaries.path("pg_basebackup"))
                .args(["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream"])
                .args(["--no-sync", "-d", &self.url("postgres"), "-D"])
                .arg(&data)
                .current_dir(folder))?;
            append_settings(&data, &format!("unix_socket_directories = '{}'\n", folder.display()))
        })
    }

    fn make(
        make_data: impl FnOnce(&Binaries, &Path) -> Result<(), Error>,
    ) -> Result<Postgres, Error> {
        let binaries = Binaries::find()?;
        let folder = make_folder(&binaries)?;
        // From here on the guard removes the folder, whatever happens.
        let guard = Guard::start(&folder)?;
        make_data(&binaries, &folder)?;
        let mut process = Process { guard, server: None };
        let port = start_on_some_port(&binaries, &folder, &mut process)?;
        let process = Mutex::new(process);
        let databases = AtomicU32::new(0);
        Ok(Postgres(Arc::new(Server { binaries, folder, port, databases, process })))
    }

    /// The one server that all tests of this process share, started by the first who asks.
    ///
    /// It ends with the process. A test that stops the server wants one of its own instead.
    ///
    /// # Panics
    ///
    /// When it cannot be started: a missing PostgreSQL fails a test, it does not skip it.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| match Postgres::start() {
            Ok(server) => server,
            Err(error) => panic!("{error}"),
        })
    }

    /// The address of a database, for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The address of a database, for another role.
    #[must_use]
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.0.port)
    }

    /// The TCP port on 127.0.0.1; it stays the same when the server is started again.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port
    }

    pub(crate) fn binaries(&self) -> &Binaries {
        &self.0.binaries
    }

    /// The folder of the data, the socket and the log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Runs statements through `psql`: the rows, columns parted by `|`, without the last newline.
    ///
    /// Several statements in one call are one transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with PostgreSQL's message, when it refuses a statement or is down.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String, Error> {
        self.sql_at(&self.url(database), statement)
    }

    /// As [`Postgres::sql`], at another address: another role's, or a proxy's.
    ///
    /// # Errors
    ///
    /// As [`Postgres::sql`].
    pub fn sql_at(&self, url: &str, statement: &str) -> Result<String, Error> {
        let psql = self.0.binaries.path("psql");
        let mut command = self.0.binaries.as_server(psql);
        command.current_dir("/").env("PGCONNECT_TIMEOUT", "10");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-At", "-d", url]);
        run(command.args(["-c", statement]))
    }

    /// Makes an empty database with a name of its own, dropped when the value is.
    ///
    /// # Errors
    ///
    /// As [`Postgres::sql`].
    pub fn create_database(&self) -> Result<Database, Error> {
        let number = self.0.databases.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("test_{number}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(Database { server: self.clone(), name })
    }

    /// A database that is there already, as on a standby; dropped when the value is.
    #[must_use]
    pub fn database(&self, name: &str) -> Database {
        Database { server: self.clone(), name: name.to_owned() }
    }

    /// Stops the server and waits for its end; nothing happens if it is down already.
    ///
    /// # Errors
    ///
    /// [`Error::NotStopped`] after a minute: [`StopMode::Smart`] waits for the clients.
    pub fn stop(&self, mode: StopMode) -> Result<(), Error> {
        self.0.process().stop(mode, &self.0.folder)
    }

    /// Starts a stopped server again, on its port and with its data.
    ///
    /// # Errors
    ///
    /// [`Error::NotStarted`], with the end of the log.
    pub fn start_again(&self) -> Result<(), Error> {
        let Server { binaries, folder, port, .. } = &*self.0;
        let mut process = self.0.process();
        // Another may hold the port for a moment; the addresses given out must stay true.
        let mut tries = 0;
        loop {
            match process.start(binaries, folder, *port) {
                Err(error) if port_was_taken(&error) && tries < PORT_TRIES => tries += 1,
                result => return result,
            }
            pause(Duration::from_millis(200));
        }
    }

    /// The file of the server's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        log_path(&self.0.folder)
    }

    /// The last 8 KiB of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.0.folder)
    }
}

/// A database of one test; it is dropped with the value, whoever is still connected.
#[derive(Debug)]
pub struct Database {
    server: Postgres,
    name: String,
}

impl Database {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its server.
    #[must_use]
    pub fn server(&self) -> &Postgres {
        &self.server
    }

    /// Its address, for the superuser.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Its address, for another role.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        self.server.url_as(role, &self.name)
    }

    /// Runs statements in it: see [`Postgres::sql`].
    ///
    /// # Errors
    ///
    /// As [`Postgres::sql`].
    pub fn sql(&self, statement: &str) -> Result<String, Error> {
        self.server.sql(&self.name, statement)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that the test has stopped takes the database with it.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = self.server.sql("postgres", &statement);
    }
}

#[derive(Debug)]
struct Server {
    binaries: Binaries,
    folder: PathBuf,
    port: u16,
    databases: AtomicU32,
    process: Mutex<Process>,
}

impl Server {
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server's process, or none, and the guard that knows which; dropped in this order.
#[derive(Debug)]
struct Process {
    server: Option<Child>,
    guard: Guard,
}

impl Process {
    fn start(&mut self, binaries: &Binaries, folder: &Path, port: u16) -> Result<(), Error> {
        let log_path = log_path(folder);
        let log_before = fs::metadata(&log_path).map_or(0, |log| log.len());
        // One that has died by itself is started again.
        if let Some(server) = &mut self.server
            && server.try_wait().map_err(Error::io("look after the server"))?.is_some()
        {
            self.server = None;
            self.guard.forget()?;
        }
        let server = match &mut self.server {
            Some(server) => server,
            None => {
                let (server, mut gate) = spawn_behind_gate(binaries, folder, port)?;
                self.guard.watch(server.id())?;
                gate.write_all(b"go\n").map_err(Error::io("start the server"))?;
                self.server.insert(server)
            }
        };
        let not_started = |reason: String| {
            let log = fs::read(&log_path).unwrap_or_default();
            let new = log.get(usize::try_from(log_before).unwrap_or(0)..).unwrap_or_default();
            let log = String::from_utf8_lossy(new).into_owned();
            Error::NotStarted { folder: folder.to_owned(), reason, log }
        };
        let begun = Instant::now();
        while !is_ready(folder, server.id()) {
            if let Some(status) = server.try_wait().map_err(Error::io("look after the server"))? {
                self.server = None;
                self.guard.forget()?;
                return Err(not_started(status.to_string()));
            }
            if begun.elapsed() > START_LIMIT {
                return Err(not_started(format!("not ready after {START_LIMIT:?}")));
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }

    fn stop(&mut self, mode: StopMode, folder: &Path) -> Result<(), Error> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
            StopMode::Smart => Signal::TERM,
        };
        // A child that has not been waited for keeps its process id, so the signal cannot stray.
        if let Some(pid) = Pid::from_raw(server.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
        let begun = Instant::now();
        while server.try_wait().map_err(Error::io("look after the server"))?.is_none() {
            if begun.elapsed() > STOP_LIMIT {
                return Err(Error::NotStopped { folder: folder.to_owned() });
            }
            pause(Duration::from_millis(10));
        }
        self.server = None;
        self.guard.forget()
    }
}

impl Drop for Process {
    /// Reaps the server as soon as the guard, which is dropped next, may no longer need its id.
    fn drop(&mut self) {
        let Some(server) = &mut self.server else { return };
        if let Some(pid) = Pid::from_raw(server.id().cast_signed()) {
            let _ = kill_process(pid, Signal::QUIT);
            let _ = kill_process(pid, Signal::CONT);
        }
        let begun = Instant::now();
        while let Ok(None) = server.try_wait() {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = server.kill();
            }
            pause(Duration::from_millis(10));
        }
        let _ = self.guard.forget();
    }
}

fn make_folder(binaries: &Binaries) -> Result<PathBuf, Error> {
    let folder = tempfile::Builder::new().prefix("chancery-pg-").tempdir();
    let folder = folder.map_err(Error::io("make a temporary folder"))?;
    if let Some(User { uid, gid }) = binaries.user() {
        chown(folder.path(), Some(uid), Some(gid)).map_err(Error::io("hand over the folder"))?;
    }
    Ok(folder.keep())
}

fn make_cluster(binaries: &Binaries, folder: &Path, places: &Places) -> Result<(), Error> {
    let data = data_path(folder);
    let mut initdb = binaries.as_server(binaries.path("initdb"));
    initdb
        .args(["--username=postgres", "--auth=trust", "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C"])
        .current_dir(folder);
    if let Some(place) = &places.data {
        let elsewhere = place.join("data");
        hand_over_new(binaries, &elsewhere)?;
        symlink(&elsewhere, &data).map_err(Error::io("place the server's data"))?;
    }
    if let Some(place) = &places.wal {
        let elsewhere = place.join("wal");
        hand_over_new(binaries, &elsewhere)?;
        // The smallest segments, so that the log soon needs a new one.
        initdb.arg("--wal-segsize=1").arg("--waldir").arg(&elsewhere);
    }
    run(initdb.arg("-D").arg(&data))?;
    let settings = format!(
        "listen_addresses = '127.0.0.1'\n\
         unix_socket_directories = '{}'\n\
         max_connections = 200\n\
         max_prepared_transactions = 10\n\
         log_checkpoints = off\n\
         log_line_prefix = '%m [%p] %a: '\n",
        folder.display()
    );
    append_settings(&data, &settings)
}

fn append_settings(data: &Path, settings: &str) -> Result<(), Error> {
    let mut file = File::options()
        .append(true)
        .open(data.join("postgresql.conf"))
        .map_err(Error::io("configure the server"))?;
    file.write_all(settings.as_bytes()).map_err(Error::io("configure the server"))
}

/// Makes a folder that belongs to the user that the server runs as.
fn hand_over_new(binaries: &Binaries, folder: &Path) -> Result<(), Error> {
    fs::create_dir(folder).map_err(Error::io("make a folder for the server"))?;
    match binaries.user() {
        Some(User { uid, gid }) => {
            chown(folder, Some(uid), Some(gid)).map_err(Error::io("hand over the folder"))
        }
        None => Ok(()),
    }
}

/// A shell that becomes the server when it reads a word from the gate: so the guard knows the
/// process before it is a server, and there is none if we die in between.
fn spawn_behind_gate(
    binaries: &Binaries,
    folder: &Path,
    port: u16,
) -> Result<(Child, PipeWriter), Error> {
    let log = File::options().append(true).create(true).open(log_path(folder));
    let log = log.map_err(Error::io("open the server's log"))?;
    let error_log = log.try_clone().map_err(Error::io("open the server's log"))?;
    let (gate_end, gate) = io::pipe().map_err(Error::io("start the server"))?;
    let server = binaries
        .as_server("sh")
        .args(["-c", "read -r word && exec \"$0\" \"$@\" </dev/null"])
        .arg(binaries.path("postgres"))
        .arg("-D")
        .arg(data_path(folder))
        .args(["-p", &port.to_string()])
        .current_dir(folder)
        .stdin(gate_end)
        .stdout(log)
        .stderr(error_log)
        .process_group(0)
        .spawn()
        .map_err(Error::io("start the server"))?;
    Ok((server, gate))
}

fn start_on_some_port(
    binaries: &Binaries,
    folder: &Path,
    process: &mut Process,
) -> Result<u16, Error> {
    let mut tries = 0;
    loop {
        let port = free_port()?;
        match process.start(binaries, folder, port) {
            Ok(()) => return Ok(port),
            Err(error) if port_was_taken(&error) && tries < PORT_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// A port that nobody listens on, below those that systems give to outgoing connections: so none
/// of them takes it while the server is down between two starts.
fn free_port() -> Result<u16, Error> {
    const LOWEST: u16 = 15_000;
    const COUNT: u64 = 15_000;
    let mut tries = 0;
    loop {
        let offset = RandomState::new().hash_one(tries) % COUNT;
        let port = LOWEST + u16::try_from(offset).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(_) if tries < 100 => tries += 1,
            Err(error) => return Err(Error::io("find a free port")(error)),
        }
    }
}

fn port_was_taken(error: &Error) -> bool {
    matches!(error, Error::NotStarted { log, .. } if log.contains("Address already in use"))
}

/// Whether the process says in its lock file that it takes connections, as `pg_ctl` asks it: the
/// first line is its id, the eighth its state (src/include/utils/pidfile.h).
fn is_ready(folder: &Path, id: u32) -> bool {
    let Ok(text) = fs::read_to_string(data_path(folder).join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(&id.to_string()) && lines.nth(6) == Some("ready")
}

fn log_tail(folder: &Path) -> String {
    let log = fs::read(log_path(folder)).unwrap_or_default();
    let tail = log.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&log[tail..]).into_owned()
}

pub(crate) fn data_path(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("server.log")
}

#[expect(clippy::disallowed_methods, reason = "it polls processes that send no event")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
