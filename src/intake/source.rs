//! The bytes of a file, read once from start to end: counted, and never held without a bound.

use std::io::{self, BufRead, Chain, Read};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) struct Source<R> {
    /// What was read too far when looking for a byte order mark, then the rest of the file.
    reader: Chain<&'static [u8], R>,
    bytes_read: u64,
    line: u64,
    ended: bool,
}

/// What [`Source::read_line`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineRead {
    Whole,
    /// The line was skipped to its end.
    TooLong,
    End,
}

impl<R: BufRead> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Source { reader: (&[] as &[u8]).chain(reader), bytes_read: 0, line: 1, ended: false }
    }

    pub(super) fn without_byte_order_mark(mut reader: R) -> io::Result<Self> {
        let mut matched = 0;
        while matched < BYTE_ORDER_MARK.len()
            && fill(&mut reader)?.first() == Some(&BYTE_ORDER_MARK[matched])
        {
            reader.consume(1);
            matched += 1;
        }
        let is_whole = matched == BYTE_ORDER_MARK.len();
        let (skipped, read_too_far) = if is_whole { (matched, 0) } else { (0, matched) };
        Ok(Source {
            reader: BYTE_ORDER_MARK[..read_too_far].chain(reader),
            bytes_read: skipped as u64,
            line: 1,
            ended: false,
        })
    }

    /// Reads a line of at most `max` bytes, without its `\n`, into the emptied `buffer`.
    pub(super) fn read_line(&mut self, buffer: &mut Vec<u8>, max: usize) -> io::Result<LineRead> {
        buffer.clear();
        let limit = (max as u64).saturating_add(1);
        let length = (&mut self.reader).take(limit).read_until(b'\n', buffer)?;
        self.bytes_read += length as u64;
        if length == 0 {
            return Ok(LineRead::End);
        }
        self.line += 1;
        if buffer.last() == Some(&b'\n') {
            buffer.pop();
        } else if length > max {
            buffer.clear();
            self.bytes_read += self.reader.skip_until(b'\n')? as u64;
            return Ok(LineRead::TooLong);
        }
        Ok(LineRead::Whole)
    }

    /// The bytes that come next; none at the end of the file.
    pub(super) fn fill(&mut self) -> io::Result<&[u8]> {
        fill(&mut self.reader)
    }

    /// Moves over `count` bytes of the last [`Source::fill`], of which `newlines` are a `\n`.
    pub(super) fn consume(&mut self, count: usize, newlines: u64) {
        self.reader.consume(count);
        self.bytes_read += count as u64;
        self.line += newlines;
    }
}

impl<R> Source<R> {
    /// The line of the next byte; the first is 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

fn fill<R: BufRead>(reader: &mut R) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // It returns what it holds already; handing out the loop's own borrow does not compile yet.
    reader.fill_buf()
}
