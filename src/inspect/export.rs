//! `chancery export`: signed records with all that is needed to check them elsewhere.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::pages::{PAGE_BYTES, Page, SignedPages};
use crate::db::{SignedRecord, Store, StoreError};
use crate::types::{BatchId, Kid, RecordId, RingId, Timestamp, UnknownWord};

/// Writes every signed record in order of record id, or those of some rings, and returns how many.
///
/// JSON lines (RFC 8259) and CSV (RFC 4180 with a header, lines end with LF) have the same fields: `record_id`,
/// `external_id`, `payload`, `signature`, `kid`, `public_key`, `algorithm`, `batch_id`,
/// `signed_at`. Payload, signature and public key are base64 (RFC 4648, section 4), `signed_at` is
/// RFC 3339 in UTC; an external id that is not there is null, in CSV an empty field. `progress` is
/// told how many records have been written so far. Nothing is verified here.
///
/// # Errors
/// [`ExportError`]; what was written before it stays written.
pub fn export(
    store: &dyn Store,
    rings: Option<&[RingId]>,
    format: ExportFormat,
    out: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<u64, ExportError> {
    export_by(store, rings, format, out, progress, PAGE_BYTES)
}

fn export_by(
    store: &dyn Store,
    rings: Option<&[RingId]>,
    format: ExportFormat,
    out: &mut dyn Write,
    progress: &dyn Fn(u64),
    page_bytes: usize,
) -> Result<u64, ExportError> {
    let mut pages = SignedPages::new(store, rings, page_bytes);
    let mut written = 0;
    if format == ExportFormat::Csv {
        write_csv(out, |csv| csv.write_record(COLUMNS))?;
    }
    while let Some(page) = pages.next_page()? {
        let rows = page.records.iter().map(|signed| Row::new(signed, &page));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        match format {
            ExportFormat::Jsonl => write_json_lines(out, &rows)?,
            ExportFormat::Csv => {
                write_csv(out, |csv| rows.iter().try_for_each(|row| csv.serialize(row)))?;
            }
        }
        written += page.records.len() as u64;
        progress(written);
    }
    out.flush()?;
    Ok(written)
}

/// How exported records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
}

impl ExportFormat {
    /// Every format, in the order of the documentation.
    pub const ALL: &'static [ExportFormat] = &[ExportFormat::Jsonl, ExportFormat::Csv];

    /// The word that stands on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ExportFormat::Jsonl => "jsonl",
            ExportFormat::Csv => "csv",
        }
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ExportFormat {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        ExportFormat::ALL
            .iter()
            .copied()
            .find(|format| format.as_str() == word)
            .ok_or_else(|| UnknownWord { what: "export format", value: word.to_owned() })
    }
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output could not be written.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
    /// A signature whose record or key is not in the database: leaving it out in silence would
    /// make a whole export of half a database.
    #[error("the signature of record {record} cannot be exported, {lack}: run `chancery verify`")]
    Incomplete {
        /// The signature's record.
        record: RecordId,
        /// What is not there.
        lack: &'static str,
    },
}

impl ExportError {
    /// Whether the same export may succeed later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, ExportError::Store(error) if error.is_retryable())
    }
}

const COLUMNS: [&str; 9] = [
    "record_id",
    "external_id",
    "payload",
    "signature",
    "kid",
    "public_key",
    "algorithm",
    "batch_id",
    "signed_at",
];

/// One exported record; its fields are [`COLUMNS`].
#[derive(Serialize)]
struct Row<'a> {
    record_id: RecordId,
    external_id: Option<&'a str>,
    payload: String,
    signature: String,
    kid: &'a Kid,
    public_key: String,
    algorithm: &'a str,
    batch_id: BatchId,
    signed_at: Option<Timestamp>,
}

impl<'a> Row<'a> {
    fn new(signed: &'a SignedRecord, page: &'a Page) -> Result<Self, ExportError> {
        let lacks = |lack| ExportError::Incomplete { record: signed.record, lack };
        let payload = signed.payload.as_ref().ok_or_else(|| lacks("its record is missing"))?;
        let key = page.key(signed.batch).ok_or_else(|| lacks("its batch has no stored key use"))?;
        Ok(Row {
            record_id: signed.record,
            external_id: signed.external_id.as_deref(),
            payload: STANDARD.encode(payload),
            signature: STANDARD.encode(&signed.signature),
            kid: &key.kid,
            public_key: STANDARD.encode(&key.public_key),
            algorithm: &key.algorithm,
            batch_id: signed.batch,
            signed_at: key.stored_at,
        })
    }
}

fn write_json_lines(out: &mut dyn Write, rows: &[Row<'_>]) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    for row in rows {
        serde_json::to_writer(&mut out, row)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes some lines of CSV.
fn write_csv(
    out: &mut dyn Write,
    lines: impl FnOnce(&mut csv::Writer<&mut dyn Write>) -> Result<(), csv::Error>,
) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(out);
    lines(&mut writer).map_err(as_io_error)?;
    writer.flush()
}

/// The reason of a CSV error: rows that all have the same fields fail by their output only.
fn as_io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
