//! Records in bulk: a stream of JSON lines, of any length, with a result line for each.
//!
//! Memory is bounded by two chunks and one line; a client that sends faster than the database takes
//! it is slowed down.

use std::io::{self, Write};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::web::{self, Data};
use actix_web::{HttpRequest, HttpResponse};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use serde::Serialize;
use tracing::Instrument;
use utoipa::ToSchema;

use super::records::NewRecordBody;
use crate::db::{Added, NewRecord};
use crate::http::Shared;
use crate::http::auth::{As, Writer};
use crate::http::body::{media_type, next_piece};
use crate::http::lines::{Line, Lines};
use crate::http::problem::{Problem, ProblemDocument};
use crate::http::spool::{Spool, spool};

/// How many records and how many bytes of payload one transaction takes, unless one alone has more.
const CHUNK_RECORDS: usize = 5_000;
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// How many transactions of one request run at once.
const TRANSACTIONS: usize = 2;

/// After what pause of the client what has come is stored.
const PAUSE: Duration = Duration::from_millis(50);

/// What became of one line.
#[derive(Serialize, ToSchema)]
pub(super) struct LineResult<'a> {
    /// The line; the first is 1.
    line: u64,
    /// `added`; `unchanged`, if it was there already; `conflict`, if its external id is there with another
    /// payload; `invalid`; or `failed`, where it is not known whether it was stored. After `failed`
    /// nothing more is read.
    status: &'static str,
    /// The record that is there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// Take a stream of records in
///
/// Each line is a record as for `POST /v1/records`; blank lines are passed over. For each line there is
/// one result line, in order, written when its record is stored. Records are stored in chunks while the
/// body is still coming, so that what was answered stays whatever happens to the rest.
#[utoipa::path(
    post, path = "/v1/records/bulk", tag = "records", security(("bearer" = ["writer"])),
    request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, description = "A line of JSON for each line", body = String, content_type = "application/x-ndjson"),
        (status = 415, description = "It is not application/x-ndjson", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub(super) async fn bulk(
    _: As<Writer>,
    request: HttpRequest,
    shared: Data<Shared>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let media_type = media_type(&request);
    let is_ndjson = matches!(
        media_type.as_deref(),
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl")
    );
    if !is_ndjson {
        return Err(Problem::unsupported_media_type("application/x-ndjson"));
    }
    let (spool, results) = spool();
    let take_in = TakeIn {
        lines: Lines::new(shared.config.max_body_bytes),
        chunk: Chunk::default(),
        shared: shared.into_inner(),
        spool,
    };
    // A future of its own: what was stored is counted and told whatever the client reads.
    actix_web::rt::spawn(take_in.run(payload.into_inner()).in_current_span());
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(results))
}

struct TakeIn {
    shared: std::sync::Arc<Shared>,
    lines: Lines,
    chunk: Chunk,
    spool: Spool,
}

/// Lines that go into one transaction, and those among them that are invalid.
#[derive(Default)]
struct Chunk {
    lines: Vec<(u64, Option<String>)>,
    records: Vec<NewRecord>,
    bytes: usize,
}

impl Chunk {
    fn is_full(&self) -> bool {
        self.lines.len() >= CHUNK_RECORDS || self.bytes >= CHUNK_BYTES
    }

    fn add(&mut self, line: Line<'_>, most: usize) {
        let (number, record) = match line {
            Line::Whole(_, line) if line.iter().all(u8::is_ascii_whitespace) => return,
            Line::Whole(number, line) => (number, read(line)),
            Line::TooLong(number) => {
                (number, Err(format!("the line is longer than the {most} bytes allowed")))
            }
        };
        match record {
            Ok(record) => {
                self.bytes += record.payload.len();
                self.records.push(record);
                self.lines.push((number, None));
            }
            Err(fault) => self.lines.push((number, Some(fault))),
        }
    }
}

fn read(line: &[u8]) -> Result<NewRecord, String> {
    let body: NewRecordBody<'_> = serde_json::from_slice(line).map_err(|error| {
        // Its line is always 1, and would be taken for the body's.
        error.to_string().replace(" at line 1 column ", " at column ")
    })?;
    body.record()
}

/// A chunk whose transaction has ended.
struct Inserted {
    lines: Vec<(u64, Option<String>)>,
    added: Result<Vec<Added>, Problem>,
}

impl TakeIn {
    async fn run(mut self, mut payload: Payload) {
        if let Err(error) = self.take_in(&mut payload).await {
            tracing::debug!(%error, "a bulk request ended early");
        }
    }

    /// Reads, inserts and answers until the body has ended; an error if nobody reads the answer.
    async fn take_in(&mut self, payload: &mut Payload) -> io::Result<()> {
        let timeout = self.shared.config.request_timeout();
        let most = self.shared.config.max_body_bytes;
        let mut inserting = FuturesOrdered::new();
        // Why nothing more is read, once it is so: the end, or what went wrong.
        let mut end: Option<Result<(), Problem>> = None;
        loop {
            let may_begin = inserting.len() < TRANSACTIONS;
            let is_due = self.chunk.is_full() || (end.is_some() && !self.chunk.lines.is_empty());
            if is_due && may_begin {
                inserting.push_back(insert(self.shared.clone(), std::mem::take(&mut self.chunk)));
                continue;
            }
            if end.is_some() && inserting.is_empty() {
                break;
            }
            tokio::select! {
                Some(inserted) = inserting.next(), if !inserting.is_empty() => {
                    if !self.tell(inserted)? {
                        // What other transactions of this request did is told all the same.
                        while let Some(inserted) = inserting.next().await {
                            self.tell(inserted)?;
                        }
                        return Ok(());
                    }
                }
                piece = next_piece(payload, timeout), if end.is_none() && !self.chunk.is_full() => {
                    let chunk = &mut self.chunk;
                    match piece {
                        Ok(Some(piece)) => self.lines.push(&piece, |line| chunk.add(line, most)),
                        Ok(None) => {
                            self.lines.finish(|line| chunk.add(line, most));
                            end = Some(Ok(()));
                        }
                        Err(problem) => end = Some(Err(problem)),
                    }
                }
                () = tokio::time::sleep(PAUSE),
                    if may_begin && end.is_none() && !self.chunk.lines.is_empty() =>
                {
                    let chunk = std::mem::take(&mut self.chunk);
                    inserting.push_back(insert(self.shared.clone(), chunk));
                }
            }
        }
        if let Some(Err(problem)) = end {
            self.stop_at(self.lines.number(), problem.detail())?;
        }
        Ok(())
    }

    /// Writes the results of a chunk; `false` if nothing more is to be read.
    fn tell(&self, inserted: Inserted) -> io::Result<bool> {
        let mut text = Vec::with_capacity(48 * inserted.lines.len());
        let added = match inserted.added {
            Ok(added) => added,
            Err(problem) => {
                for (line, fault) in &inserted.lines {
                    let status = if fault.is_some() { "invalid" } else { "failed" };
                    let detail = fault.as_deref().unwrap_or(problem.detail());
                    write_line(&mut text, *line, status, None, Some(detail))?;
                }
                self.spool.write(text)?;
                return Ok(false);
            }
        };
        self.shared.count_added(&added);
        let mut added = added.into_iter();
        for (line, fault) in inserted.lines {
            if let Some(fault) = fault {
                write_line(&mut text, line, "invalid", None, Some(&fault))?;
                continue;
            }
            match added.next() {
                Some(Added::New(id)) => write_line(&mut text, line, "added", Some(id.0), None)?,
                Some(Added::Unchanged(id)) => {
                    write_line(&mut text, line, "unchanged", Some(id.0), None)?;
                }
                Some(Added::Conflict(id)) => {
                    let detail = "the external_id is there with another payload";
                    write_line(&mut text, line, "conflict", Some(id.0), Some(detail))?;
                }
                None => return Err(io::Error::other("the database lost a record")),
            }
        }
        self.spool.write(text)?;
        Ok(true)
    }

    fn stop_at(&self, line: u64, detail: &str) -> io::Result<()> {
        let mut text = Vec::new();
        write_line(&mut text, line, "failed", None, Some(detail))?;
        self.spool.write(text)
    }
}

async fn insert(shared: std::sync::Arc<Shared>, chunk: Chunk) -> Inserted {
    let Chunk { lines, records, .. } = chunk;
    let added =
        if records.is_empty() { Ok(Vec::new()) } else { shared.intake.add_all(records).await };
    Inserted { lines, added }
}

fn write_line(
    text: &mut Vec<u8>,
    line: u64,
    status: &'static str,
    id: Option<i64>,
    detail: Option<&str>,
) -> io::Result<()> {
    serde_json::to_writer(&mut *text, &LineResult { line, status, id, detail })?;
    text.write_all(b"\n")
}
