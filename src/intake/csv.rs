//! Records of a CSV file (RFC 4180): their exact bytes, or one of their columns.

use std::io::BufRead;

use super::row_reader::{Row, RowReader, Sink};
use super::{
    Fields, IntakeError, IntakeRecord, LineFault, MAX_EXTERNAL_ID_BYTES, Source, check_external_id,
};

/// The longest header line, in bytes.
const MAX_HEADER_BYTES: usize = 1024 * 1024;

pub(super) struct Rows {
    reader: RowReader,
    columns: usize,
    kept: KeptRow,
}

impl Rows {
    /// Reads the header line and finds the columns asked for.
    pub(super) fn new<R: BufRead>(
        source: &mut Source<R>,
        fields: &Fields,
        max_payload_bytes: usize,
    ) -> Result<Self, IntakeError> {
        let mut reader = RowReader::new();
        let mut header = Header::default();
        let row = reader
            .read(source, &mut header)
            .map_err(|error| IntakeError::Read { line: source.line(), error })?
            .ok_or(IntakeError::HeaderMissing)?;
        if row.has_open_quote {
            return Err(IntakeError::HeaderQuoteOpen);
        }
        if header.bytes > MAX_HEADER_BYTES {
            return Err(IntakeError::HeaderTooLong { max: MAX_HEADER_BYTES });
        }
        header.names.resize(row.fields, Vec::new());
        if row.ends_with_cr {
            header.names[row.fields - 1].pop();
        }
        let column = |name: &Option<String>| name.as_deref().map(|n| header.column(n)).transpose();
        let kept = KeptRow {
            id_column: column(&fields.id)?,
            payload_column: column(&fields.payload)?,
            id: Capture::new(MAX_EXTERNAL_ID_BYTES),
            payload: Capture::new(max_payload_bytes),
        };
        Ok(Rows { reader, columns: row.fields, kept })
    }

    pub(super) fn read<R: BufRead>(
        &mut self,
        source: &mut Source<R>,
    ) -> Result<Option<IntakeRecord>, IntakeError> {
        let row = self
            .reader
            .read(source, &mut self.kept)
            .map_err(|error| IntakeError::Read { line: source.line(), error })?;
        let Some(row) = row else { return Ok(None) };
        self.record(&row).map(Some).map_err(|fault| IntakeError::Line { line: row.line, fault })
    }

    fn record(&mut self, row: &Row) -> Result<IntakeRecord, LineFault> {
        if row.has_open_quote {
            return Err(LineFault::QuoteOpen);
        }
        if row.fields != self.columns {
            return Err(LineFault::Uneven { found: row.fields, expected: self.columns });
        }
        let kept = &mut self.kept;
        if row.ends_with_cr {
            let last = self.columns - 1;
            if kept.id_column == Some(last) {
                kept.id.drop_last();
            }
            if kept.payload_column.is_none_or(|column| column == last) {
                kept.payload.drop_last();
            }
        }
        if kept.payload.is_too_long() {
            return Err(LineFault::PayloadTooLarge { max: kept.payload.max });
        }
        let external_id = match kept.id_column {
            Some(_) => Some(kept.id.to_external_id()?),
            None => None,
        };
        Ok(IntakeRecord { line: row.line, external_id, payload: kept.payload.bytes.clone() })
    }
}

#[derive(Default)]
struct Header {
    names: Vec<Vec<u8>>,
    bytes: usize,
}

impl Header {
    fn column(&self, name: &str) -> Result<usize, IntakeError> {
        let mut found = (0..self.names.len()).filter(|&at| self.names[at] == name.as_bytes());
        match (found.next(), found.next()) {
            (Some(column), None) => Ok(column),
            (Some(_), Some(_)) => Err(IntakeError::ColumnRepeated { name: name.to_owned() }),
            (None, _) => Err(IntakeError::ColumnUnknown {
                name: name.to_owned(),
                columns: self.names.iter().map(|n| String::from_utf8_lossy(n).into()).collect(),
            }),
        }
    }
}

impl Sink for Header {
    fn clear(&mut self) {
        *self = Header::default();
    }

    fn take_raw(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
    }

    fn take_field(&mut self, field: usize, bytes: &[u8]) {
        if self.bytes <= MAX_HEADER_BYTES {
            self.names.resize(self.names.len().max(field + 1), Vec::new());
            self.names[field].extend_from_slice(bytes);
        }
    }
}

struct KeptRow {
    id_column: Option<usize>,
    /// Without one, the payload is the record's raw bytes.
    payload_column: Option<usize>,
    id: Capture,
    payload: Capture,
}

impl Sink for KeptRow {
    fn clear(&mut self) {
        self.id.clear();
        self.payload.clear();
    }

    fn take_raw(&mut self, bytes: &[u8]) {
        if self.payload_column.is_none() {
            self.payload.take(bytes);
        }
    }

    fn take_field(&mut self, field: usize, bytes: &[u8]) {
        if self.id_column == Some(field) {
            self.id.take(bytes);
        }
        if self.payload_column == Some(field) {
            self.payload.take(bytes);
        }
    }
}

/// Bytes up to a limit; what lies beyond is only counted.
struct Capture {
    bytes: Vec<u8>,
    length: u64,
    max: usize,
}

impl Capture {
    fn new(max: usize) -> Self {
        Capture { bytes: Vec::new(), length: 0, max }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.length = 0;
    }

    fn take(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        // One more than allowed, because the last may be a CR that does not count.
        let room = self.max.saturating_add(1) - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn drop_last(&mut self) {
        self.length = self.length.saturating_sub(1);
        if self.length < self.bytes.len() as u64 {
            self.bytes.pop();
        }
    }

    fn is_too_long(&self) -> bool {
        self.length > self.max as u64
    }

    fn to_external_id(&self) -> Result<String, LineFault> {
        if self.is_too_long() {
            return Err(LineFault::IdTooLong { max: self.max });
        }
        let id = std::str::from_utf8(&self.bytes).map_err(|_| LineFault::IdNotUtf8)?;
        check_external_id(id.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::super::{Format, Intake};
    use super::*;

    fn fields(id: Option<&str>, payload: Option<&str>) -> Fields {
        Fields { id: id.map(str::to_owned), payload: payload.map(str::to_owned) }
    }

    fn open(file: &[u8], fields: Fields, max: usize) -> Result<Intake<&[u8]>, IntakeError> {
        Intake::new(file, Format::Csv, fields, max)
    }

    /// Line, payload and id of each record, or the error's text.
    fn read(file: &str, fields: Fields) -> Vec<String> {
        let show = |record: IntakeRecord| {
            let payload = String::from_utf8(record.payload).expect("text");
            format!("{} {payload:?} {}", record.line, record.external_id.unwrap_or_default())
        };
        open(file.as_bytes(), fields, 10)
            .expect("a header")
            .map(|record| record.map_or_else(|error| error.to_string(), show))
            .collect()
    }

    fn refusal(file: &str, fields: Fields) -> String {
        open(file.as_bytes(), fields, 10).err().expect(file).to_string()
    }

    #[test]
    fn a_payload_column_is_unquoted_and_a_whole_record_is_not() {
        let file = "id,body\r\n1,\"a \"\"b\"\"\"\r\n\"2\",\"x\r\n,\"\n";
        assert_eq!(
            read(file, fields(Some("id"), Some("body"))),
            ["2 \"a \\\"b\\\"\" 1", "3 \"x\\r\\n,\" 2"]
        );
        assert_eq!(
            read(file, fields(Some("id"), None)),
            [
                "line 2: the payload is larger than the 10 bytes allowed",
                "3 \"\\\"2\\\",\\\"x\\r\\n,\\\"\" 2"
            ]
        );
        assert_eq!(
            read("id,body\r\n1,a\r\n2,b", fields(Some("body"), None)),
            ["2 \"1,a\" a", "3 \"2,b\" b"]
        );
    }

    #[test]
    fn only_crlf_and_lf_end_a_record() {
        let file = "a,b\r\n1,x\ry\r\n2,z\r\r\n3,\"w\r\"\r\n4,v\r";
        assert_eq!(
            read(file, fields(None, Some("b"))),
            ["2 \"x\\ry\" ", "3 \"z\\r\" ", "4 \"w\\r\" ", "5 \"v\\r\" "]
        );
        assert_eq!(
            read(file, fields(None, None)),
            ["2 \"1,x\\ry\" ", "3 \"2,z\\r\" ", "4 \"3,\\\"w\\r\\\"\" ", "5 \"4,v\\r\" "]
        );
    }

    #[test]
    fn empty_lines_are_skipped_and_counted() {
        let file = "\n\r\na,b\n\n\r\n1,x\r\n\r\n\n2,y\n\n";
        assert_eq!(read(file, fields(Some("a"), Some("b"))), ["6 \"x\" 1", "9 \"y\" 2"]);
        assert_eq!(read(file, fields(None, None)), ["6 \"1,x\" ", "9 \"2,y\" "]);
    }

    #[test]
    fn errors_after_quoted_newlines_name_the_line_at_which_their_record_starts() {
        let file = "id,body\n1,\"a\n\n\nb\"\n2\n\"3\n\",\"c\nd\",e\n,f\n\"n\0\",g\n5,12345678901\n6,h\n7,\"i\n";
        assert_eq!(
            read(file, fields(Some("id"), Some("body"))),
            [
                "2 \"a\\n\\n\\nb\" 1",
                "line 6: the record has 1 fields, the header has 2",
                "line 7: the record has 3 fields, the header has 2",
                "line 10: the external id is empty",
                "line 11: the external id holds a NUL character",
                "line 12: the payload is larger than the 10 bytes allowed",
                "13 \"h\" 6",
                "line 14: a quoted field is opened and never closed",
            ]
        );
    }

    #[test]
    fn an_external_id_is_at_most_1024_bytes_of_utf8() {
        let mut file = b"id,p\n".to_vec();
        for length in [1024, 1025, 5000] {
            file.extend(std::iter::repeat_n(b'i', length));
            file.extend(b",p\r\n");
        }
        file.extend(b"\xff,p\n");
        let records: Vec<_> =
            open(&file, fields(Some("id"), Some("p")), 10).expect("a header").collect();
        assert_eq!(records.len(), 4);
        let id = records[0].as_ref().expect("the longest id").external_id.as_ref();
        assert_eq!(id.map(String::len), Some(1024));
        for (record, fault) in records[1..].iter().zip([
            LineFault::IdTooLong { max: 1024 },
            LineFault::IdTooLong { max: 1024 },
            LineFault::IdNotUtf8,
        ]) {
            assert!(
                matches!(record, Err(IntakeError::Line { fault: found, .. }) if *found == fault),
                "{record:?}"
            );
        }
    }

    #[test]
    fn a_limit_counts_neither_crlf_nor_other_columns() {
        let file = "a,b\r\n12345678901234567890,1234567890\r\n,12345678901\r\n";
        assert_eq!(
            read(file, fields(None, Some("b"))),
            ["2 \"1234567890\" ", "line 3: the payload is larger than the 10 bytes allowed"]
        );
        assert_eq!(read("a,b\r\n1234,67890\r\n", fields(None, None)), ["2 \"1234,67890\" "]);
    }

    #[test]
    fn a_header_without_the_columns_asked_for_is_refused_with_what_it_has() {
        assert_eq!(
            refusal("id,\"two\nlines\"\r\n", fields(Some("key"), None)),
            "there is no column \"key\"; the header has [\"id\", \"two\\nlines\"]"
        );
        assert_eq!(
            refusal("a,b,\n", fields(None, Some("c"))),
            "there is no column \"c\"; the header has [\"a\", \"b\", \"\"]"
        );
        assert_eq!(
            refusal("a,b,a\n", fields(None, Some("a"))),
            "the header has the column \"a\" more than once"
        );
        for empty in ["", "\u{feff}", "\r\n\n"] {
            assert_eq!(
                refusal(empty, fields(None, None)),
                "the file is empty: a CSV file begins with a header line"
            );
        }
        assert_eq!(
            refusal("a,\"b\n1,2\n", fields(None, None)),
            "the header line opens a quoted name and never closes it"
        );
        assert_eq!(
            refusal(&"a,".repeat(600_000), fields(None, None)),
            "the header line is longer than 1048576 bytes"
        );
    }

    #[test]
    fn a_header_alone_is_a_file_without_records() {
        for file in ["a,b", "a,b\n", "\u{feff}\"a\",b\r\n"] {
            assert_eq!(read(file, fields(Some("a"), Some("b"))), [""; 0]);
        }
    }

    #[test]
    fn an_endless_field_is_skipped_within_bounded_memory() {
        const MAX: usize = 64 * 1024;
        for payload in [None, Some("b")] {
            let mut file = b"a,b\n1,\"".to_vec();
            file.extend(std::iter::repeat_n(b'\n', 16 * 1024 * 1024));
            file.extend(b"\"\n2,x\n");
            let mut source = Source::new(file.as_slice());
            let mut rows =
                Rows::new(&mut source, &fields(Some("a"), payload), MAX).expect("a header");
            let first = rows.read(&mut source).map(|record| record.is_some());
            let error = first.expect_err("too large");
            assert_eq!(
                error.to_string(),
                "line 2: the payload is larger than the 65536 bytes allowed"
            );
            assert!(rows.kept.payload.bytes.capacity() <= 2 * (MAX + 1));
            let record = rows.read(&mut source).expect("a record").expect("one more");
            assert_eq!(record.line, 2 + 16 * 1024 * 1024 + 1);
            assert_eq!(source.bytes_read(), file.len() as u64);
        }
    }

    /// A field as bytes, and whether it is written in quotes though it need not be.
    fn any_field() -> impl Strategy<Value = (Vec<u8>, bool)> {
        let byte = prop_oneof![4 => any::<u8>(), 1 => prop::sample::select(b"\",\r\n".as_slice())];
        (prop::collection::vec(byte, 0..12), any::<bool>())
    }

    fn write_row(row: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let write = |(bytes, is_quoted): &(Vec<u8>, bool)| {
            if !is_quoted && !bytes.iter().any(|byte| b"\",\r\n".contains(byte)) {
                return bytes.clone();
            }
            let mut quoted = vec![b'"'];
            for &byte in bytes {
                quoted.extend(std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
            }
            quoted.push(b'"');
            quoted
        };
        row.iter().map(write).collect::<Vec<_>>().join(&b","[..])
    }

    proptest! {
        #[test]
        fn exact_records_and_their_terminators_make_up_the_file_again(
            rows in prop::collection::vec(
                (prop::array::uniform3(any_field()), any::<bool>()), 1..20),
            capacity in 1_usize..40,
            has_last_newline: bool,
        ) {
            let mut file = b"a,b,c\n".to_vec();
            let mut terminators = Vec::new();
            for (number, (row, is_crlf)) in rows.iter().enumerate() {
                let is_bare = number + 1 == rows.len() && !has_last_newline;
                terminators.push(if is_bare { "" } else if *is_crlf { "\r\n" } else { "\n" });
                file.extend(write_row(row));
                file.extend(terminators[number].bytes());
            }
            let open = |fields| {
                let reader = BufReader::with_capacity(capacity, file.as_slice());
                Intake::new(reader, Format::Csv, fields, 1000).expect("a header")
            };

            let mut joined = b"a,b,c\n".to_vec();
            let mut line = 2;
            for (record, terminator) in open(Fields::default()).zip(&terminators) {
                let record = record.expect("a whole record");
                prop_assert_eq!(record.line, line);
                joined.extend(record.payload);
                joined.extend(terminator.bytes());
                line = 1 + joined.iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
            prop_assert_eq!(&joined, &file);

            for (column, name) in ["a", "b", "c"].into_iter().enumerate() {
                let payloads: Vec<_> = open(fields(None, Some(name)))
                    .map(|record| record.expect("a column").payload)
                    .collect();
                let expected: Vec<_> = rows.iter().map(|(row, _)| row[column].0.clone()).collect();
                prop_assert_eq!(&payloads, &expected);
                let by_the_csv_crate: Vec<_> = ::csv::Reader::from_reader(file.as_slice())
                    .byte_records()
                    .map(|record| record.expect("even rows")[column].to_vec())
                    .collect();
                prop_assert_eq!(payloads, by_the_csv_crate);
            }
        }

        #[test]
        fn any_bytes_at_all_are_read_to_their_end(
            file in prop::collection::vec(
                prop::sample::select(b"ab\",\r\n\xef\xff\0".as_slice()), 0..60),
            capacity in 1_usize..10,
        ) {
            let mut whole = b"a,b\n".to_vec();
            whole.extend(file);
            let reader = BufReader::with_capacity(capacity, whole.as_slice());
            let mut intake =
                Intake::new(reader, Format::Csv, fields(None, Some("b")), 5).expect("a header");
            let in_pieces: Vec<_> = intake.by_ref().map(|r| r.map_err(|e| e.to_string())).collect();
            prop_assert_eq!(intake.bytes_read(), whole.len() as u64);
            let at_once: Vec<_> = open(&whole, fields(None, Some("b")), 5)
                .expect("a header")
                .map(|r| r.map_err(|e| e.to_string()))
                .collect();
            prop_assert_eq!(in_pieces, at_once);
        }
    }
}
