//! Errors as the client sees them: `application/problem+json` (RFC 9457), with nothing of what is
//! inside. The log has the reason, under the same request id.

use std::borrow::Cow;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::{RequestId, X_REQUEST_ID};
use crate::db::StoreError;

/// The media type of a problem.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// An error with a status and words for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {detail}")]
pub(super) struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    /// The methods that the path takes, where another was asked for.
    allow: Option<&'static str>,
    /// After how many seconds to try again.
    retry_after_s: Option<u64>,
}

/// The document (RFC 9457, section 3.1). Its type is `about:blank`, so its title is the status's.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemDocument<'a> {
    /// Always `about:blank`: the status says what kind of problem it is.
    r#type: &'static str,
    /// The status in words.
    title: &'a str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this request, for people.
    detail: &'a str,
    /// The request's id, under which the server's log has more.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Problem { status, detail: detail.into(), allow: None, retry_after_s: None }
    }

    pub(super) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    pub(super) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem::new(StatusCode::CONFLICT, detail)
    }

    /// What was sent can be read, and makes no sense.
    pub(super) fn unprocessable(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(super) fn too_large(most: usize) -> Self {
        let detail = format!("The body is larger than the {most} bytes allowed.");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(super) fn unsupported_media_type(wanted: &str) -> Self {
        let detail = format!("The body must be {wanted}, and its Content-Type must say so.");
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    pub(super) fn no_token() -> Self {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "A valid token is needed: send it as `Authorization: Bearer TOKEN`.",
        )
    }

    pub(super) fn forbidden(needed: &str) -> Self {
        let detail = format!("The token does not have the role {needed}.");
        Problem::new(StatusCode::FORBIDDEN, detail)
    }

    pub(super) fn too_many_requests(retry_after_s: u64) -> Self {
        Problem {
            retry_after_s: Some(retry_after_s),
            ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests: slow down.")
        }
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Problem {
            allow: Some(allow),
            ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.")
        }
    }

    pub(super) fn internal() -> Self {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The server failed; its log has the reason under this request id.",
        )
    }

    pub(super) fn no_database() -> Self {
        Problem::unavailable("The database does not answer; the log has the reason. Try again.")
    }

    pub(super) fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem { retry_after_s: Some(5), ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// What to say of an error that is not ours.
    pub(super) fn of(status: StatusCode) -> Problem {
        match status {
            StatusCode::METHOD_NOT_ALLOWED => Problem::method_not_allowed("GET, HEAD"),
            StatusCode::NOT_FOUND => Problem::not_found("There is nothing at this path."),
            status if status.is_client_error() => {
                Problem::new(status, "The request cannot be understood.")
            }
            _ => Problem::internal(),
        }
    }

    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Of a body: the same in words that quote nothing of it.
    pub(super) fn without_quotes(self) -> Self {
        let detail = match self.status {
            StatusCode::BAD_REQUEST => "The body is not JSON, or broke off.",
            StatusCode::UNPROCESSABLE_ENTITY => "The body does not fit: see /openapi.json.",
            _ => return self,
        };
        Problem { detail: detail.into(), ..self }
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The answer to the request of that id.
    pub(super) fn response(&self, id: Option<&RequestId>) -> HttpResponse {
        let document = ProblemDocument {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            request_id: id.map(RequestId::as_str),
        };
        let mut answer = HttpResponseBuilder::new(self.status);
        answer.insert_header((CONTENT_TYPE, PROBLEM_JSON));
        answer.insert_header((CACHE_CONTROL, "no-store"));
        if let Some(allow) = self.allow {
            answer.insert_header((ALLOW, allow));
        }
        if let Some(seconds) = self.retry_after_s {
            answer.insert_header((RETRY_AFTER, seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.insert_header((WWW_AUTHENTICATE, "Bearer realm=\"chancery\""));
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

/// What the database refuses on account of the request is told; what it fails at is logged.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Problem::not_found(format!("{}.", capital(&error))),
            StoreError::RingExists { .. }
            | StoreError::IllegalChange { .. }
            | StoreError::KeyInUse { .. }
            | StoreError::NotQuarantined { .. } => {
                Problem::conflict(format!("{}.", capital(&error)))
            }
            error if error.is_retryable() => {
                tracing::warn!(%error, "could not ask the database");
                Problem::no_database()
            }
            error => {
                tracing::error!(%error, "the database failed");
                Problem::internal()
            }
        }
    }
}

fn capital(error: &StoreError) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => text,
    }
}

/// For every path that there is not.
pub(super) async fn not_found() -> Result<HttpResponse, Problem> {
    Err(Problem::of(StatusCode::NOT_FOUND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BatchId, Kid};

    #[test]
    fn what_the_request_is_to_blame_for_is_told_and_nothing_else() {
        let of = |error: StoreError| {
            let problem = Problem::from(error);
            (problem.status.as_u16(), problem.detail.into_owned())
        };
        let missing = StoreError::NotFound { what: "key", name: "abc".to_owned() };
        assert_eq!(of(missing), (404, "There is no key \"abc\".".to_owned()));
        let in_use = StoreError::KeyInUse { kid: Kid("abc".to_owned()) };
        assert_eq!(of(in_use).0, 409);
        let state = "stored".to_owned();
        let (status, detail) = of(StoreError::NotQuarantined { batch: BatchId(7), state });
        assert_eq!(status, 409);
        assert!(detail.starts_with("Batch 7 is stored: "), "{detail}");
        for (error, status) in [
            (StoreError::Unavailable("secret".to_owned()), 503),
            (StoreError::Database("secret".to_owned()), 500),
            (StoreError::Connect("secret".to_owned()), 500),
        ] {
            let (found, detail) = of(error);
            assert_eq!(found, status);
            assert!(!detail.contains("secret"), "{detail}");
        }
    }
}
