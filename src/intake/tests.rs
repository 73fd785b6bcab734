//! Whole files through [`Intake`]: plain lines, JSON lines and what holds for every format.

use std::io::{self, BufReader, Read};

use proptest::prelude::*;

use super::*;

fn read_all(file: &[u8], format: Format, fields: Fields) -> Vec<Result<IntakeRecord, String>> {
    Intake::new(file, format, fields, 1000)
        .expect("a readable start")
        .map(|record| record.map_err(|error| error.to_string()))
        .collect()
}

fn record(line: u64, external_id: Option<&str>, payload: &[u8]) -> IntakeRecord {
    IntakeRecord { line, external_id: external_id.map(str::to_owned), payload: payload.to_vec() }
}

/// `remaining` bytes of `a`, made as they are read, and then `tail`.
struct Endless {
    remaining: u64,
    tail: &'static [u8],
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.remaining == 0 {
            return self.tail.read(buffer);
        }
        let length = usize::try_from(self.remaining).map_or(buffer.len(), |r| r.min(buffer.len()));
        buffer[..length].fill(b'a');
        self.remaining -= length as u64;
        Ok(length)
    }
}

/// Gives the bytes of `file` one at a time, but for each of `errors` in turn.
struct Failing {
    file: &'static [u8],
    errors: std::array::IntoIter<Option<io::ErrorKind>, 8>,
}

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.errors.next().flatten() {
            Some(kind) => Err(kind.into()),
            None => {
                let length = buffer.len().min(1);
                self.file.read(&mut buffer[..length])
            }
        }
    }
}

fn buffered_bytes<R>(intake: &Intake<R>) -> usize {
    match &intake.parser {
        Parser::Lines { line } | Parser::Jsonl { line, .. } => line.capacity(),
        Parser::Csv(_) => panic!("a CSV file has no line buffer"),
    }
}

#[test]
fn plain_lines_are_exact_bytes() {
    assert_eq!(
        read_all(b"\xef\xbb\xbfa\r\n\n\xff\0\nlast", Format::Lines, Fields::default()),
        [
            Ok(record(1, None, b"\xef\xbb\xbfa\r")),
            Ok(record(2, None, b"")),
            Ok(record(3, None, b"\xff\0")),
            Ok(record(4, None, b"last")),
        ]
    );
    assert_eq!(read_all(b"", Format::Lines, Fields::default()), []);
    assert_eq!(read_all(b"\n", Format::Lines, Fields::default()), [Ok(record(1, None, b""))]);
}

#[test]
fn plain_lines_have_no_fields() {
    for fields in [
        Fields { id: Some("id".into()), payload: None },
        Fields { id: None, payload: Some("p".into()) },
    ] {
        let refused = Intake::new(&b"x\n"[..], Format::Lines, fields, 10).err().expect("no fields");
        assert!(matches!(refused, IntakeError::LinesHaveNoFields));
        assert_eq!(refused.line(), None);
    }
}

#[test]
fn json_lines_skip_blank_ones_and_go_on_after_bad_ones() {
    let file =
        b"\xef\xbb\xbf{\"id\":1}\r\n\n \t\r\n{\"id\":}\n{\"id\":\"\"}\n[]\n{\"id\":\"six\"} ";
    assert_eq!(
        read_all(file, Format::Jsonl, Fields { id: Some("id".into()), payload: None }),
        [
            Ok(record(1, Some("1"), b"{\"id\":1}\r")),
            Err("line 4: not valid JSON: expected value at column 7".into()),
            Err("line 5: the external id is empty".into()),
            Err("line 6: the line is an array; an object with the field \"id\" is needed".into()),
            Ok(record(7, Some("six"), b"{\"id\":\"six\"} ")),
        ]
    );
}

#[test]
fn a_broken_byte_order_mark_is_data() {
    for broken in [&b"\xef\xbb"[..], b"\xef\xbb\n", b"\xefa\n", b"\xef\xbb\xbf\xef\xbb\xbf1\n"] {
        let mut intake =
            Intake::new(broken, Format::Jsonl, Fields::default(), 10).expect("a readable start");
        let error = intake.next().expect("a line").expect_err("no JSON");
        assert!(error.to_string().starts_with("line 1: not valid JSON: "), "{error}");
        assert!(intake.next().is_none());
        assert_eq!(intake.bytes_read(), broken.len() as u64);
    }
    let mut broken_header =
        Intake::new(&b"\xef\xbba,b\n1,2\n"[..], Format::Csv, Fields::default(), 10)
            .expect("a header");
    assert_eq!(broken_header.next().expect("a record").expect("even").payload, b"1,2");
}

#[test]
fn an_endless_line_is_an_error_and_does_not_fill_the_memory() {
    const GIB: u64 = 1 << 30;
    const MAX: usize = 1 << 20;
    let payload_field = Fields { id: None, payload: Some("p".into()) };
    for (format, fields, most) in [
        (Format::Lines, Fields::default(), MAX),
        (Format::Jsonl, Fields::default(), MAX),
        (Format::Jsonl, payload_field, 2 * MAX + JSON_LINE_SLACK_BYTES),
    ] {
        let reader = BufReader::new(Endless { remaining: GIB, tail: b"\n{\"p\":\"\"}" });
        let mut intake = Intake::new(reader, format, fields, MAX).expect("a readable start");
        // A failure shows the line alone, not a payload of a gibibyte.
        let first = intake.next().expect("a line").map(|record| record.line);
        let error = first.expect_err("too long");
        assert!(
            matches!(
                error,
                IntakeError::Line {
                    line: 1,
                    fault: LineFault::PayloadTooLarge { max } | LineFault::LineTooLong { max }
                } if max == most
            ),
            "{error}"
        );
        assert!(buffered_bytes(&intake) >= most, "the line was looked at");
        assert!(buffered_bytes(&intake) <= 2 * (most + 1));
        assert_eq!(intake.bytes_read(), GIB + 1);
        assert_eq!(intake.next().expect("one more").expect("a good line").line, 2);
        assert!(intake.next().is_none());
    }
}

#[test]
fn a_payload_of_exactly_the_limit_is_taken() {
    for format in [Format::Lines, Format::Jsonl] {
        let mut intake =
            Intake::new(&b"1234\n12345\n1234"[..], format, Fields::default(), 4).expect("a start");
        assert_eq!(intake.next().expect("a line").expect("as long as allowed").payload, b"1234");
        let error = intake.next().expect("a line").expect_err("one too long");
        assert_eq!(error.to_string(), "line 2: the payload is larger than the 4 bytes allowed");
        assert_eq!(intake.next().expect("a line").expect("as long as allowed").line, 3);
        assert!(intake.next().is_none());
    }
}

#[test]
fn an_error_of_reading_ends_the_file() {
    for (format, file) in [
        (Format::Lines, &b"1\n2\n3\n"[..]),
        (Format::Jsonl, b"1\n2\n3\n"),
        (Format::Csv, b"a\n1\n2\n3\n"),
    ] {
        let interrupted = Some(io::ErrorKind::Interrupted);
        let reset = Some(io::ErrorKind::ConnectionReset);
        let errors = [interrupted, None, None, None, interrupted, None, None, reset];
        let errors = errors.into_iter();
        let reader = BufReader::with_capacity(1, Failing { file, errors });
        let mut intake = Intake::new(reader, format, Fields::default(), 10).expect("a start");
        let mut good = 0;
        let error = loop {
            match intake.next().expect("an error before the end") {
                Ok(_) => good += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(good, if format == Format::Csv { 1 } else { 2 });
        assert!(matches!(error, IntakeError::Read { line: 3, .. }), "{error}");
        assert_eq!(error.line(), Some(3));
        assert!(intake.next().is_none());
        assert!(intake.next().is_none(), "though the reader has more");
    }
}

#[test]
fn every_format_reads_back_as_its_word() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse::<Format>().as_ref(), Ok(format));
    }
    assert_eq!(
        "CSV".parse::<Format>(),
        Err(UnknownWord { what: "format", value: "CSV".to_owned() })
    );
}

proptest! {
    #[test]
    fn any_bytes_split_at_newlines_come_back_exactly(
        mut file in prop::collection::vec(
            prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..200),
        capacity in 1_usize..50,
    ) {
        let reader = BufReader::with_capacity(capacity, file.as_slice());
        let mut intake = Intake::new(reader, Format::Lines, Fields::default(), 200).expect("a start");
        let mut joined = Vec::new();
        for (number, record) in intake.by_ref().enumerate() {
            let record = record.expect("any line");
            prop_assert_eq!(record.line, number as u64 + 1);
            prop_assert!(!record.payload.contains(&b'\n'));
            joined.extend(record.payload);
            joined.push(b'\n');
        }
        prop_assert_eq!(intake.bytes_read(), file.len() as u64);
        if !file.is_empty() && file.last() != Some(&b'\n') {
            file.push(b'\n');
        }
        prop_assert_eq!(joined, file);
    }

    #[test]
    fn any_text_in_json_comes_back_exactly(
        texts in prop::collection::vec(".{0,40}", 1..10),
        capacity in 1_usize..50,
    ) {
        let line = |text: &String| serde_json::json!({ "p": text, "q": [text] }).to_string();
        let file = texts.iter().map(line).collect::<Vec<_>>().join("\n");
        let reader = BufReader::with_capacity(capacity, file.as_bytes());
        let fields = Fields { id: None, payload: Some("p".into()) };
        let payloads: Vec<_> = Intake::new(reader, Format::Jsonl, fields, 200)
            .expect("a start")
            .map(|record| record.expect("JSON").payload)
            .collect();
        prop_assert_eq!(payloads, texts.into_iter().map(String::into_bytes).collect::<Vec<_>>());
    }
}
