//! Reads records from a file as a stream: the parser behind `chancery import`.
//!
//! Memory stays constant for files of any size and for lines of any length: no more is held than
//! about one record of the largest size allowed. A line that cannot become a record is an error
//! of its own, and the next one is read all the same, so that one pass reports every bad line.

mod csv;
mod error;
mod jsonl;
mod row_reader;
mod source;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::BufRead;
use std::str::FromStr;

use crate::types::UnknownWord;

pub use error::{IntakeError, LineFault};

use csv::Rows;
use source::{LineRead, Source};

/// The largest payload that is taken where the user sets no other limit, in bytes (64 MiB).
pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

/// The longest external id, in bytes of UTF-8.
pub const MAX_EXTERNAL_ID_BYTES: usize = 1024;

/// What a JSON line may hold beside its payload field when the payload is small, in bytes.
const JSON_LINE_SLACK_BYTES: usize = 64 * 1024;

/// One record as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntakeRecord {
    /// The line at which it starts; the first line is 1.
    pub line: u64,
    /// The id that its producer gave it: 1 to 1024 bytes, without a NUL.
    pub external_id: Option<String>,
    /// The exact bytes to sign.
    pub payload: Vec<u8>,
}

/// How a file divides into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON value (RFC 8259) a line. Lines of nothing but white space are skipped.
    ///
    /// Without a payload field the payload is the line's exact bytes without its `\n`.
    Jsonl,
    /// RFC 4180 with a header line, as the `csv` crate reads it, except that records end only at
    /// CRLF or LF: a lone CR is data. Empty lines are skipped.
    ///
    /// Without a payload field the payload is the record's exact bytes without its CRLF or LF.
    Csv,
    /// Any bytes; every line is a record, an empty one too.
    ///
    /// The payload is the line's exact bytes without its `\n`; a `\r` before it belongs to the
    /// payload.
    Lines,
}

impl Format {
    /// Every format, in the order of the documentation.
    pub const ALL: &'static [Format] = &[Format::Jsonl, Format::Csv, Format::Lines];

    /// The word that stands on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Csv => "csv",
            Format::Lines => "lines",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Format::ALL
            .iter()
            .copied()
            .find(|format| format.as_str() == word)
            .ok_or_else(|| UnknownWord { what: "format", value: word.to_owned() })
    }
}

/// The fields that are asked for: members of a JSON object, or columns of a CSV file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// The field that becomes the external id; in JSON a string or an integer.
    pub id: Option<String>,
    /// The field whose bytes become the payload; in JSON a string.
    pub payload: Option<String>,
}

/// An iterator over the records of a file.
///
/// After a [`IntakeError::Line`] it goes on with the next record, after a [`IntakeError::Read`] it
/// ends. A UTF-8 byte order mark at the start is dropped for JSON lines and CSV, and kept for
/// plain lines.
pub struct Intake<R> {
    source: Source<R>,
    parser: Parser,
    max_payload_bytes: usize,
}

enum Parser {
    Lines { line: Vec<u8> },
    Jsonl { line: Vec<u8>, fields: Fields },
    Csv(Box<Rows>),
}

impl<R: BufRead> Intake<R> {
    /// Starts on a file; of a CSV file it reads the header.
    ///
    /// Payloads above `max_payload_bytes` are refused. Where the payload is a field of a JSON line,
    /// the line as a whole may have up to twice that plus 64 KiB.
    ///
    /// # Errors
    /// When the format has no fields and some are asked for, when the header has not the columns
    /// asked for, and when reading fails.
    pub fn new(
        reader: R,
        format: Format,
        fields: Fields,
        max_payload_bytes: usize,
    ) -> Result<Self, IntakeError> {
        if format == Format::Lines {
            if fields != Fields::default() {
                return Err(IntakeError::LinesHaveNoFields);
            }
            let source = Source::new(reader);
            let parser = Parser::Lines { line: Vec::new() };
            return Ok(Intake { source, parser, max_payload_bytes });
        }
        let mut source = Source::without_byte_order_mark(reader)
            .map_err(|error| IntakeError::Read { line: 1, error })?;
        let parser = if format == Format::Csv {
            Parser::Csv(Box::new(Rows::new(&mut source, &fields, max_payload_bytes)?))
        } else {
            Parser::Jsonl { line: Vec::new(), fields }
        };
        Ok(Intake { source, parser, max_payload_bytes })
    }

    fn read(&mut self) -> Result<Option<IntakeRecord>, IntakeError> {
        match &mut self.parser {
            Parser::Lines { line } => {
                read_plain_line(&mut self.source, line, self.max_payload_bytes)
            }
            Parser::Jsonl { line, fields } => {
                read_json_line(&mut self.source, line, fields, self.max_payload_bytes)
            }
            Parser::Csv(rows) => rows.read(&mut self.source),
        }
    }
}

impl<R> Intake<R> {
    /// How many bytes of the file have been read so far, for a progress bar.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.source.bytes_read()
    }
}

impl<R: BufRead> Iterator for Intake<R> {
    type Item = Result<IntakeRecord, IntakeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.source.has_ended() {
            return None;
        }
        let read = self.read();
        if matches!(read, Ok(None) | Err(IntakeError::Read { .. })) {
            self.source.end();
        }
        read.transpose()
    }
}

fn read_plain_line<R: BufRead>(
    source: &mut Source<R>,
    buffer: &mut Vec<u8>,
    max: usize,
) -> Result<Option<IntakeRecord>, IntakeError> {
    let line = source.line();
    match read_line(source, buffer, max)? {
        LineRead::End => Ok(None),
        LineRead::TooLong => {
            Err(IntakeError::Line { line, fault: LineFault::PayloadTooLarge { max } })
        }
        LineRead::Whole => {
            Ok(Some(IntakeRecord { line, external_id: None, payload: buffer.clone() }))
        }
    }
}

fn read_json_line<R: BufRead>(
    source: &mut Source<R>,
    buffer: &mut Vec<u8>,
    fields: &Fields,
    max: usize,
) -> Result<Option<IntakeRecord>, IntakeError> {
    // Escapes and the other fields make a line longer than the payload in it.
    let (max_line_bytes, too_long) = if fields.payload.is_some() {
        let max = max.saturating_mul(2).saturating_add(JSON_LINE_SLACK_BYTES);
        (max, LineFault::LineTooLong { max })
    } else {
        (max, LineFault::PayloadTooLarge { max })
    };
    loop {
        let line = source.line();
        let parsed = match read_line(source, buffer, max_line_bytes)? {
            LineRead::End => return Ok(None),
            LineRead::TooLong => Err(too_long),
            LineRead::Whole if jsonl::is_blank(buffer) => continue,
            LineRead::Whole => jsonl::parse(buffer, fields, max),
        };
        return parsed
            .map(|(external_id, payload)| Some(IntakeRecord { line, external_id, payload }))
            .map_err(|fault| IntakeError::Line { line, fault });
    }
}

fn read_line<R: BufRead>(
    source: &mut Source<R>,
    buffer: &mut Vec<u8>,
    max: usize,
) -> Result<LineRead, IntakeError> {
    let line = source.line();
    source.read_line(buffer, max).map_err(|error| IntakeError::Read { line, error })
}

/// An external id that may be stored: 1 to [`MAX_EXTERNAL_ID_BYTES`] bytes, without a NUL.
///
/// # Errors
/// What is wrong with it.
pub fn check_external_id(id: String) -> Result<String, LineFault> {
    if id.is_empty() {
        return Err(LineFault::IdEmpty);
    }
    if id.len() > MAX_EXTERNAL_ID_BYTES {
        return Err(LineFault::IdTooLong { max: MAX_EXTERNAL_ID_BYTES });
    }
    // PostgreSQL's text cannot hold a NUL.
    if id.contains('\0') {
        return Err(LineFault::IdHasNul);
    }
    Ok(id)
}
