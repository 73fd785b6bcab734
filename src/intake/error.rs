//! What can be wrong with a file or with one of its lines.

use std::io;

/// Why a file, or one of its records, cannot be taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// One record is bad; those after it are read all the same.
    #[error("line {line}: {fault}")]
    Line {
        /// The line at which the record starts; the first line is 1.
        line: u64,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// Reading failed; nothing after it is read.
    #[error("line {line}: reading failed")]
    Read {
        /// The line that was reached; the first line is 1.
        line: u64,
        /// The operating system's error.
        #[source]
        error: io::Error,
    },
    /// A field was asked for in a format without fields.
    #[error("an id field or a payload field needs the format jsonl or csv: plain lines have none")]
    LinesHaveNoFields,
    /// A CSV file without its header line.
    #[error("the file is empty: a CSV file begins with a header line")]
    HeaderMissing,
    /// A quoted column name that never ends.
    #[error("the header line opens a quoted name and never closes it")]
    HeaderQuoteOpen,
    /// A header line that is most likely none.
    #[error("the header line is longer than {max} bytes")]
    HeaderTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// The header has no such column.
    #[error("there is no column {name:?}; the header has {columns:?}")]
    ColumnUnknown {
        /// The column asked for.
        name: String,
        /// The header's columns, in their order.
        columns: Vec<String>,
    },
    /// Several columns have the name asked for.
    #[error("the header has the column {name:?} more than once")]
    ColumnRepeated {
        /// The column asked for.
        name: String,
    },
}

impl IntakeError {
    /// The line it is about, where it is about one; the first line is 1.
    #[must_use]
    pub fn line(&self) -> Option<u64> {
        match self {
            IntakeError::Line { line, .. } | IntakeError::Read { line, .. } => Some(*line),
            _ => None,
        }
    }
}

/// What is wrong with one record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineFault {
    /// A payload above the limit.
    #[error("the payload is larger than the {max} bytes allowed")]
    PayloadTooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// A JSON line above the limit, whatever the size of its payload field.
    #[error("the line is longer than the {max} bytes allowed")]
    LineTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// An empty external id.
    #[error("the external id is empty")]
    IdEmpty,
    /// An external id above the limit.
    #[error("the external id is longer than the {max} bytes allowed")]
    IdTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// An external id that is no text.
    #[error("the external id is not UTF-8")]
    IdNotUtf8,
    /// An external id that no database can hold as text.
    #[error("the external id holds a NUL character")]
    IdHasNul,
    /// A line that is not JSON.
    #[error("not valid JSON: {problem}")]
    NotJson {
        /// What the JSON parser says, with the column.
        problem: String,
    },
    /// A JSON value without fields, where one is asked for.
    #[error("the line is {found}; an object with the field {field:?} is needed")]
    NotAnObject {
        /// The field asked for.
        field: String,
        /// What the line is instead.
        found: &'static str,
    },
    /// An object without the field asked for.
    #[error("the field {field:?} is missing")]
    FieldMissing {
        /// The field asked for.
        field: String,
    },
    /// An object that holds the field asked for several times.
    #[error("the field {field:?} stands there more than once")]
    FieldRepeated {
        /// The field asked for.
        field: String,
    },
    /// A field of a type that cannot be used.
    #[error("the field {field:?} is {found}; it must be {wanted}")]
    FieldType {
        /// The field asked for.
        field: String,
        /// What it is.
        found: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// A CSV record with more or fewer fields than the header.
    #[error("the record has {found} fields, the header has {expected}")]
    Uneven {
        /// The fields of the record.
        found: usize,
        /// The columns of the header.
        expected: usize,
    },
    /// A CSV record that reaches the end of the file inside a quoted field.
    #[error("a quoted field is opened and never closed")]
    QuoteOpen,
}
