//! Cleans up after a server whose owner may die at any instant.
//!
//! The guard is a small shell whose standard input is a pipe that only the owner holds. However the
//! owner ends, the kernel closes the pipe: the guard reads the end of its input, kills the server
//! and removes the folder. It has a process group of its own, so that Ctrl-C does not end it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Error;

/// Each line of the input is the server's process id, or empty while there is none. A process
/// that dies last may still put a file into the folder while it is being removed.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
server=
while read -r line; do server=$line; done
if [ -n "$server" ]; then
    kill -QUIT "$server"
    kill -CONT "$server"
    tries=0
    while kill -0 "$server" && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -KILL "$server"
fi
tries=0
while rm -rf -- "$1"; [ -e "$1" ] && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
"#;

#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// Starts to watch over `folder`, which holds no server yet.
    pub(crate) fn start(folder: &Path) -> Result<Guard, Error> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "testkit-guard"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("start the guard of a server"))?;
        Ok(Guard { shell })
    }

    /// Tells which process to end.
    pub(crate) fn watch(&mut self, server: u32) -> Result<(), Error> {
        self.tell(&format!("{server}\n"))
    }

    /// Tells that the server has ended, before its process id can belong to another.
    pub(crate) fn forget(&mut self) -> Result<(), Error> {
        self.tell("\n")
    }

    fn tell(&mut self, line: &str) -> Result<(), Error> {
        match &mut self.shell.stdin {
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(Error::io("tell the guard")),
            None => Ok(()),
        }
    }
}

impl Drop for Guard {
    /// Lets the guard do its work, and waits until it is done.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
