//! Processor time, as Linux counts it: it scatters less than a rate does where others use the machine.

use std::fs;
use std::path::Path;

/// In which `/proc` counts processor time, on every machine that this program is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What processors have worked, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// For this process, and the children that it has waited for.
    pub(crate) client: f64,
    /// For the PostgreSQL server.
    pub(crate) server: f64,
}

impl Work {
    /// Up to now; `None` where there is no `/proc`.
    pub(crate) fn so_far(server: Option<&testkit::Postgres>) -> Option<Work> {
        let client = times("self")?;
        let server = server.map_or(Some(0.0), |server| server_time(server.folder()))?;
        Some(Work { client: client.own + client.waited_for, server })
    }

    pub(crate) fn since(self, before: Work) -> Work {
        Work { client: self.client - before.client, server: self.server - before.server }
    }
}

struct Times {
    parent: String,
    own: f64,
    waited_for: f64,
}

/// The postmaster, its children that have ended, and those that run.
fn server_time(folder: &Path) -> Option<f64> {
    let lock = fs::read_to_string(folder.join("data/postmaster.pid")).ok()?;
    let postmaster = lock.lines().next()?;
    loop {
        let before = times(postmaster)?;
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let all = processes.filter_map(|process| times(process.file_name().to_str()?));
        let of_server = all.filter(|times| times.parent == postmaster);
        let running: f64 = of_server.map(|times| times.own).sum();
        let after = times(postmaster)?;
        // One that has ended meanwhile may have been counted twice, or not at all.
        if before.waited_for == after.waited_for {
            return Some(after.own + after.waited_for + running);
        }
    }
}

/// The fields are those of proc(5): the command may hold blanks, and stands in brackets.
fn times(process: &str) -> Option<Times> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let seconds = |n: usize| Some(fields.get(n)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Times {
        parent: (*fields.get(1)?).to_owned(),
        own: seconds(11)? + seconds(12)?,
        waited_for: seconds(13)? + seconds(14)?,
    })
}
