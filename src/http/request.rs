//! What happens to each request: it gets an id, which its answer and its log lines carry, and no
//! panic of its handler is more than its own error.

use std::future::{Ready, ready};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest};
use futures::FutureExt;
use tracing::Instrument;

use super::Shared;
use super::problem::Problem;

/// The header of the request id, in requests and answers.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a browser may do with an answer that is no page of ours: nothing.
const NO_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// What Swagger UI needs: its own files, and styles and pictures that it makes up.
const DOCS_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
                           img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

/// The longest request id that is taken over from a client.
const LONGEST_ID: usize = 64;

/// A request's name: up to 64 letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestId(String);

impl RequestId {
    /// The client's, if it is short and plain, or else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let plain = |id: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !id.is_empty() && id.len() <= LONGEST_ID && id.chars().all(allowed)
        };
        let sent = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).filter(plain);
        match sent {
            Some(id) => RequestId(id.to_owned()),
            // Without randomness there is still an answer, and a log line.
            None => {
                RequestId(getrandom::u64().map_or_else(|_| "-".to_owned(), |n| format!("{n:016x}")))
            }
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromRequest for RequestId {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = request.extensions().get::<RequestId>().cloned();
        ready(Ok(id.unwrap_or_else(|| RequestId::of(request.headers()))))
    }
}

/// The middleware around every handler.
pub(super) async fn answer(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let span = tracing::info_span!("request", request_id = id.as_str());
    handle(request, next, id).instrument(span).await
}

async fn handle(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    id: RequestId,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let begin = Instant::now();
    let method = request.method().clone();
    let policy = if request.path().starts_with("/docs/") { DOCS_POLICY } else { NO_POLICY };
    let counters = request.app_data::<Data<Shared>>().map(|shared| shared.counters.clone());
    let handled = AssertUnwindSafe(next.call(request)).catch_unwind().await;
    // No clone of the request may be kept while it is routed, so only an answer knows its path.
    let problem = match handled {
        Ok(Ok(response)) => {
            let mut response = with_id(response.map_into_boxed_body(), &id);
            add_headers(response.headers_mut(), &id, policy);
            let status = response.status().as_u16();
            let path = response.request().match_pattern();
            let took = begin.elapsed();
            let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(%method, path, status, took_us, "answered");
            if let Some(counters) = counters {
                counters.request(&method, path.as_deref(), status, took);
            }
            return Ok(response);
        }
        Ok(Err(error)) => problem_of(&error),
        Err(_) => {
            tracing::error!(%method, "a request's handler panicked");
            Problem::internal()
        }
    };
    let mut response = problem.response(Some(&id));
    add_headers(response.headers_mut(), &id, policy);
    if let Some(counters) = counters {
        counters.request(&method, None, response.status().as_u16(), begin.elapsed());
    }
    Err(InternalError::from_response(problem, response).into())
}

/// An answer that is an error, as a problem of this request.
fn with_id(response: ServiceResponse, id: &RequestId) -> ServiceResponse {
    let status = response.status();
    let problem = match response.response().error() {
        Some(error) => problem_of(error),
        // A library's own refusal, without a word.
        None if status.is_client_error()
            && response.response().body().size() == BodySize::Sized(0) =>
        {
            Problem::of(status)
        }
        None => return response,
    };
    let (request, _) = response.into_parts();
    ServiceResponse::new(request, problem.response(Some(id)))
}

fn problem_of(error: &Error) -> Problem {
    match error.as_error::<Problem>() {
        Some(problem) => problem.clone(),
        None => {
            tracing::debug!(%error, "refused");
            Problem::of(error.as_response_error().status_code())
        }
    }
}

/// The request's id, and what keeps a browser from making of an answer more than it is.
fn add_headers(headers: &mut HeaderMap, id: &RequestId, policy: &'static str) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert(X_REQUEST_ID, value);
    }
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    }
    // Not no-referrer: the forms of the dashboard would come without an Origin.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
}

#[cfg(test)]
mod tests {
    use actix_web::dev::Service;
    use actix_web::middleware::from_fn;
    use actix_web::test::{TestRequest, call_service, init_service};
    use actix_web::{App, web};
    use serde_json::Value;

    use super::*;

    #[actix_web::test]
    async fn a_panic_is_a_problem_of_its_request_alone() {
        async fn panics() -> &'static str {
            panic!("a secret")
        }
        let app = App::new().wrap(from_fn(answer)).route("/panics", web::get().to(panics));
        let app = init_service(app.route("/works", web::get().to(|| async { "works" }))).await;
        for _ in 0..2 {
            let request = TestRequest::get().uri("/panics").insert_header((X_REQUEST_ID, "mine"));
            let response = app.call(request.to_request()).await.err().unwrap().error_response();
            assert_eq!(response.status().as_u16(), 500);
            assert_eq!(response.headers().get(X_REQUEST_ID).unwrap(), "mine");
            assert_eq!(response.headers().get("content-type").unwrap(), "application/problem+json");
            let body = actix_web::body::to_bytes(response.into_body()).await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["status"], &body["request_id"]), (&500.into(), &"mine".into()));
            assert!(!body.to_string().contains("secret"), "{body}");
        }
        let works = call_service(&app, TestRequest::get().uri("/works").to_request()).await;
        assert_eq!(works.status().as_u16(), 200);
    }
}
