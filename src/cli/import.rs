//! `chancery import`

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;

use super::{Context, Outcome, output};
use crate::app::{MissingDatabase, UsageError};
use crate::db::{NewRecord, Ring, Store};
use crate::intake::{DEFAULT_MAX_PAYLOAD_BYTES, Fields, Format, Intake, IntakeError};

/// How many bytes of payload, and how many records, go into one transaction.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
const CHUNK_RECORDS: usize = 10_000;

/// How many bad lines are shown.
const SHOWN: u64 = 20;

/// Insert the records of a file, exactly as they are
#[derive(clap::Args)]
#[command(after_help = "\
A file is read twice: if any line of it is bad, all bad lines are named and nothing is inserted.
Standard input is read once: bad lines are named and left out. Records are committed in chunks.
With --id-field the same file can be imported again: what is there with the same payload stays as
it is, and an id that is there with another payload is refused and named.")]
pub(super) struct Import {
    /// The file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// lines: each line's bytes; jsonl: one JSON value a line; csv: RFC 4180 with a header
    #[arg(long, value_name = "FORMAT", value_parser = ["lines", "jsonl", "csv"])]
    format: String,
    /// The field or column that is the record's external id
    #[arg(long, value_name = "NAME")]
    id_field: Option<String>,
    /// The field or column that is the payload [default: the whole line, byte for byte]
    #[arg(long, value_name = "NAME")]
    payload_field: Option<String>,
}

impl Import {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let format: Format = self.format.parse()?;
        let fields = Fields { id: self.id_field, payload: self.payload_field };
        let from_stdin = self.file == Path::new("-");
        if !from_stdin {
            check_file(&self.file, format, &fields)?;
        }
        let database = context.connect(MissingDatabase::Create)?;
        let ring = context.ring(&database)?;
        let begin = Instant::now();
        let (input, bar): (Box<dyn BufRead>, ProgressBar) = if from_stdin {
            (Box::new(BufReader::new(std::io::stdin())), ProgressBar::hidden())
        } else {
            let (file, bytes) = open(&self.file)?;
            (Box::new(file), output::byte_bar("importing", bytes))
        };
        let intake = start(input, format, &fields)?;
        let report = insert(database.store.as_ref(), &ring, intake, &bar);
        bar.finish_and_clear();
        let report = report?;
        super::after_intake(database.store.as_ref(), report.added)?;
        output::print_line(&format!(
            "imported {} into ring {} of {} in {}{}",
            output::counted(report.added, "record"),
            ring.name,
            database.name,
            output::seconds(begin.elapsed()),
            match report.unchanged {
                0 => String::new(),
                n => format!("; {} there already, unchanged", output::count(n)),
            }
        ))?;
        match report.bad {
            0 => Ok(Outcome::Done),
            n => bail!("{} not imported", output::counted(n, "record")),
        }
    }
}

fn open(path: &Path) -> anyhow::Result<(BufReader<File>, u64)> {
    let named = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(named)?;
    let metadata = file.metadata().with_context(named)?;
    if metadata.is_dir() {
        bail!("{} is a folder", path.display());
    }
    Ok((BufReader::with_capacity(256 * 1024, file), metadata.len()))
}

fn start<R: BufRead>(input: R, format: Format, fields: &Fields) -> anyhow::Result<Intake<R>> {
    Intake::new(input, format, fields.clone(), DEFAULT_MAX_PAYLOAD_BYTES).map_err(|error| {
        match error {
            error @ IntakeError::Read { .. } => anyhow::Error::from(error),
            other => UsageError(other.to_string()).into(),
        }
    })
}

/// Reads the whole file once, so that a bad line is found before anything is inserted.
fn check_file(path: &Path, format: Format, fields: &Fields) -> anyhow::Result<()> {
    let (mut file, bytes) = open(path)?;
    // A pipe or a device has no second reading.
    if bytes == 0 && !file.get_ref().metadata()?.is_file() {
        return Ok(());
    }
    let bar = output::byte_bar("checking", bytes);
    let mut intake = start(file.by_ref(), format, fields)?;
    let mut bad = BadLines::default();
    let mut records: u64 = 0;
    while let Some(record) = intake.next() {
        match record {
            Ok(_) => records += 1,
            Err(error @ IntakeError::Read { .. }) => return Err(error.into()),
            Err(error) => bad.show(&error),
        }
        if records.is_multiple_of(4096) {
            bar.set_position(intake.bytes_read());
        }
    }
    bar.finish_and_clear();
    match bad.count {
        0 => Ok(()),
        n => bail!("{}: {}: nothing was imported", path.display(), output::counted(n, "bad line")),
    }
}

/// Bad lines, of which the first are shown.
#[derive(Default)]
struct BadLines {
    count: u64,
}

impl BadLines {
    fn show(&mut self, what: &dyn std::fmt::Display) {
        self.count += 1;
        match self.count {
            n if n <= SHOWN => output::eprint_line(&what.to_string()),
            n if n == SHOWN + 1 => output::eprint_line("... and more"),
            _ => {}
        }
    }
}

/// What an import did.
#[derive(Default)]
struct Report {
    added: u64,
    unchanged: u64,
    bad: u64,
}

fn insert<R: BufRead>(
    store: &dyn Store,
    ring: &Ring,
    mut intake: Intake<R>,
    bar: &ProgressBar,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut bad = BadLines::default();
    let mut last_line = 0;
    loop {
        let mut chunk = Vec::new();
        let mut lines = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES && chunk.len() < CHUNK_RECORDS {
            match intake.next() {
                None => break,
                Some(Ok(record)) => {
                    bytes += record.payload.len();
                    lines.push(record.line);
                    chunk.push(NewRecord {
                        external_id: record.external_id,
                        payload: record.payload,
                    });
                }
                Some(Err(error @ IntakeError::Read { .. })) => {
                    return Err(error).with_context(|| so_far(&report, last_line));
                }
                Some(Err(error)) => bad.show(&error),
            }
        }
        let Some(&last) = lines.last() else { break };
        let inserted =
            store.insert_records(ring.id, &chunk).with_context(|| so_far(&report, last_line))?;
        last_line = last;
        report.added += inserted.added;
        report.unchanged += inserted.unchanged;
        for n in inserted.conflicts {
            let id = chunk[n].external_id.as_deref().unwrap_or_default();
            let line = lines[n];
            bad.show(&format!("line {line}: record {id:?} is there with another payload"));
        }
        bar.set_position(intake.bytes_read());
    }
    report.bad = bad.count;
    Ok(report)
}

fn so_far(report: &Report, last_line: u64) -> String {
    format!(
        "stopped; lines 1 to {last_line} are in ({} added)",
        output::counted(report.added, "record")
    )
}
