//! Divides a CSV file (RFC 4180) into records and fields, without holding either.
//!
//! The state machine is `csv-core`, the one of the `csv` crate. It is driven here byte for byte,
//! because `csv` itself holds a record of any size whole, and does not tell its exact bytes.

use std::io::{self, BufRead};

use csv_core::{ReadFieldResult, Terminator};

use super::Source;

/// How much of a field is taken from the state machine at a time, in bytes.
const PIECE_BYTES: usize = 8 * 1024;

pub(super) struct RowReader {
    machine: csv_core::Reader,
    piece: Box<[u8; PIECE_BYTES]>,
}

/// The shape of a record that has been read.
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) fields: usize,
    /// The last field and the raw bytes end with the CR of a CRLF.
    pub(super) ends_with_cr: bool,
    is_empty_line: bool,
    pub(super) has_open_quote: bool,
}

impl RowReader {
    pub(super) fn new() -> Self {
        // With the terminator CRLF the machine would end a record at a lone CR too.
        let machine = csv_core::ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        RowReader { machine, piece: Box::new([0; PIECE_BYTES]) }
    }

    /// Reads the next record that is not an empty line; `None` at the end of the file.
    pub(super) fn read<R: BufRead>(
        &mut self,
        source: &mut Source<R>,
        sink: &mut impl Sink,
    ) -> io::Result<Option<Row>> {
        loop {
            sink.clear();
            match self.read_one(source, sink)? {
                Some(row) if row.is_empty_line => {}
                row => return Ok(row),
            }
        }
    }

    fn read_one<R: BufRead>(
        &mut self,
        source: &mut Source<R>,
        sink: &mut impl Sink,
    ) -> io::Result<Option<Row>> {
        let mut line = source.line();
        let mut fields = 0;
        let mut raw_bytes = 0_u64;
        let mut last_byte = 0;
        loop {
            let input = source.fill()?;
            let is_at_end = input.is_empty();
            if raw_bytes == 0 {
                if is_at_end {
                    return Ok(None);
                }
                if input[0] == b'\n' {
                    source.consume(1, 1);
                    line = source.line();
                    continue;
                }
            }
            // At the end of the file, a record that a newline does not end is inside quotes.
            let input = if is_at_end { b"\n" } else { input };
            let lines_before = self.machine.line();
            let (result, taken, given) = self.machine.read_field(input, &mut self.piece[..]);
            let ends_record = matches!(result, ReadFieldResult::Field { record_end: true });
            let raw = &input[..taken - usize::from(ends_record || is_at_end)];
            last_byte = raw.last().copied().unwrap_or(last_byte);
            raw_bytes += raw.len() as u64;
            sink.take_raw(raw);
            if !is_at_end || ends_record {
                sink.take_field(fields, &self.piece[..given]);
            }
            if matches!(result, ReadFieldResult::Field { .. }) {
                fields += 1;
            }
            if !is_at_end {
                source.consume(taken, self.machine.line() - lines_before);
            }
            if !ends_record && !is_at_end {
                continue;
            }
            let ends_with_cr = last_byte == b'\r' && !is_at_end;
            return Ok(Some(Row {
                line,
                fields,
                ends_with_cr,
                is_empty_line: ends_with_cr && raw_bytes == 1,
                has_open_quote: !ends_record,
            }));
        }
    }
}

/// Takes what [`RowReader`] reads, in pieces.
pub(super) trait Sink {
    /// A record begins; what was taken is dropped.
    fn clear(&mut self);

    /// The next bytes of the record as they stand in the file, its final LF apart.
    fn take_raw(&mut self, bytes: &[u8]);

    /// The next bytes of the field with this number, unquoted. The first is 0.
    fn take_field(&mut self, field: usize, bytes: &[u8]);
}
