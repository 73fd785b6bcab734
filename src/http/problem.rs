//! Errors as the client sees them: `application/problem+json` (RFC 9457), with nothing of what is
//! inside. The log has the reason, under the same request id.

use actix_web::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;

use super::request::{RequestId, X_REQUEST_ID};

/// What methods an endpoint that only shows something has.
const READ_ONLY: &str = "GET, HEAD";

/// An error with a status and words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {detail}")]
pub(super) struct Problem {
    status: StatusCode,
    detail: &'static str,
}

/// The document (RFC 9457, section 3.1). Its type is `about:blank`, so its title is the status's.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl Problem {
    pub(super) const NOT_FOUND: Problem =
        Problem { status: StatusCode::NOT_FOUND, detail: "There is nothing at this path." };
    pub(super) const METHOD_NOT_ALLOWED: Problem = Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        detail: "This path does not take this method.",
    };
    pub(super) const INTERNAL: Problem = Problem {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        detail: "The server failed; its log has the reason under this request id.",
    };
    pub(super) const NO_DATABASE: Problem = Problem {
        status: StatusCode::SERVICE_UNAVAILABLE,
        detail: "The database does not answer; its log has the reason. Try again.",
    };

    /// What to say of an error that is not ours.
    pub(super) fn of(status: StatusCode) -> Problem {
        if status.is_client_error() {
            Problem { status, detail: "The request cannot be understood." }
        } else {
            Problem::INTERNAL
        }
    }

    /// The answer to the request of that id.
    pub(super) fn response(self, id: Option<&RequestId>) -> HttpResponse {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            request_id: id.map(RequestId::as_str),
        };
        let mut answer = HttpResponseBuilder::new(self.status);
        answer.insert_header((CONTENT_TYPE, "application/problem+json"));
        answer.insert_header((header::CACHE_CONTROL, "no-store"));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            answer.insert_header((ALLOW, READ_ONLY));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            answer.insert_header((RETRY_AFTER, "5"));
        }
        if let Some(id) = id {
            answer.insert_header((X_REQUEST_ID, id.as_str()));
        }
        answer.body(serde_json::to_string(&document).unwrap_or_default())
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        self.response(None)
    }
}

/// For every path that there is not.
pub(super) async fn not_found(id: RequestId) -> HttpResponse {
    Problem::NOT_FOUND.response(Some(&id))
}

/// For every method that a path does not take.
pub(super) async fn method_not_allowed(id: RequestId) -> HttpResponse {
    Problem::METHOD_NOT_ALLOWED.response(Some(&id))
}
