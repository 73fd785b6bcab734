//! The program as a child process: its output line by line, its signals, its end.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, kill_process};

use super::LIMIT;

pub(crate) use rustix::process::Signal;

/// A run of the program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it, if one did.
    pub(crate) signal: Option<i32>,
    /// What it wrote to its standard output.
    pub(crate) stdout: String,
    /// What it wrote to its standard error.
    pub(crate) stderr: String,
    command: String,
}

impl Ended {
    /// Fails the test unless the program exited with `code`.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Ended {
        assert!(self.code == Some(code), "expected exit code {code}: {self}");
        self
    }

    /// Fails the test unless standard output holds `text`.
    #[track_caller]
    pub(crate) fn expect_stdout(self, text: &str) -> Ended {
        assert!(self.stdout.contains(text), "expected {text:?} on standard output: {self}");
        self
    }

    /// Fails the test unless standard error holds `text`.
    #[track_caller]
    pub(crate) fn expect_stderr(self, text: &str) -> Ended {
        assert!(self.stderr.contains(text), "expected {text:?} on standard error: {self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ended { code, signal, stdout, stderr, command } = self;
        write!(
            f,
            "`{command}` ended with code {code:?}, signal {signal:?}\n\
             -- standard output:\n{stdout}\n-- standard error:\n{stderr}"
        )
    }
}

/// A run of the program under way; it is killed if this is dropped.
pub(crate) struct Running {
    child: Child,
    command: String,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
}

/// What has come out of a pipe so far.
#[derive(Default)]
struct Stream {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Default)]
struct Text {
    so_far: String,
    has_ended: bool,
}

/// Writes a program's standard input, on a thread of its own. The program may end before it has
/// read all, so a failure to write is none of the test.
pub(crate) type Input = Box<dyn FnOnce(ChildStdin) + Send>;

/// The program in `folder` with no `CHANCERY_*` variables but `environment`.
pub(super) fn command(
    folder: &Path,
    environment: &[(String, String)],
    arguments: &[&str],
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chancery"));
    let inherited = std::env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("CHANCERY_")) {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("NO_COLOR", "1")
        .current_dir(folder);
    command
}

impl Running {
    /// Starts a command whose standard input, if it is to have one, is what `input` writes.
    pub(super) fn start(mut command: Command, input: Option<Input>) -> Running {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let name = format!("chancery {}", arguments.join(" "));
        command
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if let (Some(pipe), Some(input)) = (child.stdin.take(), input) {
            thread::spawn(move || input(pipe));
        }
        let stdout = Stream::read(child.stdout.take().unwrap());
        let stderr = Stream::read(child.stderr.take().unwrap());
        Running { child, command: name, stdout, stderr }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until standard error holds `text`; that whole line.
    #[track_caller]
    pub(crate) fn wait_for_stderr(&self, text: &str) -> String {
        self.stderr.wait_for(text, &self.command)
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text.lock().unwrap().so_far.clone()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        // A child that has not been waited for keeps its process id, so the signal cannot stray.
        let id = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Whether its output is still open, as it is while it lives.
    pub(crate) fn is_alive(&self) -> bool {
        !self.stderr.text.lock().unwrap().has_ended
    }

    /// Whether it has been stopped, by SIGSTOP.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        // The state follows the name, which stands in parentheses (proc(5)).
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    }

    /// The most memory that it has had resident so far, in bytes; none once it has ended.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        let stdout = self.stdout.wait_for_end(&self.command);
        let stderr = self.stderr.wait_for_end(&self.command);
        let status: ExitStatus = self.child.wait().unwrap();
        let command = std::mem::take(&mut self.command);
        Ended { code: status.code(), signal: status.signal(), stdout, stderr, command }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has been waited for, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stream {
    fn read(pipe: impl Read + Send + 'static) -> Arc<Stream> {
        let stream = Arc::new(Stream::default());
        let to = Arc::clone(&stream);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                to.text.lock().unwrap().so_far.push_str(&String::from_utf8_lossy(&line));
                to.changed.notify_all();
                line.clear();
            }
            to.text.lock().unwrap().has_ended = true;
            to.changed.notify_all();
        });
        stream
    }

    #[track_caller]
    fn wait_for(&self, wanted: &str, command: &str) -> String {
        let found = self
            .wait_while(command, wanted, |text| !text.so_far.contains(wanted) && !text.has_ended);
        let line = found.lines().find(|line| line.contains(wanted));
        line.unwrap_or_else(|| panic!("`{command}` ended without {wanted:?}: {found}")).to_owned()
    }

    #[track_caller]
    fn wait_for_end(&self, command: &str) -> String {
        self.wait_while(command, "its end", |text| !text.has_ended)
    }

    #[track_caller]
    fn wait_while(
        &self,
        command: &str,
        what: &str,
        mut condition: impl FnMut(&Text) -> bool,
    ) -> String {
        let begin = Instant::now();
        let mut text = self.text.lock().unwrap();
        while condition(&text) {
            let left = LIMIT.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let so_far = text.so_far.clone();
                drop(text);
                panic!("`{command}`: waited {LIMIT:?} in vain for {what}; so far: {so_far}");
            }
            text = self.changed.wait_timeout(text, left).unwrap().0;
        }
        text.so_far.clone()
    }
}
