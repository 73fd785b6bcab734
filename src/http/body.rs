//! Bodies of requests: read with a limit on their size and on their pauses, and as JSON.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Bytes, BytesMut};
use actix_web::{FromRequest, HttpRequest};
use futures::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::auth::shared;
use super::problem::Problem;

/// The next piece of a body; `None` at its end.
///
/// # Errors
/// 408 if it does not come in time, 400 if the connection breaks.
pub(super) async fn next_piece(
    payload: &mut Payload,
    timeout: Duration,
) -> Result<Option<Bytes>, Problem> {
    match tokio::time::timeout(timeout, payload.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => {
            tracing::debug!(%error, "a body broke off");
            Err(Problem::new(StatusCode::BAD_REQUEST, "The body broke off."))
        }
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "The body did not come in time.")),
    }
}

/// A whole body.
pub(super) struct Whole(pub(super) Bytes);

impl FromRequest for Whole {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let config = shared(request).map(|shared| shared.config.clone());
        let mut payload = payload.take();
        Box::pin(async move {
            let config = config?;
            let (most, timeout) = (config.max_body_bytes, config.request_timeout());
            let mut body = BytesMut::new();
            while let Some(piece) = next_piece(&mut payload, timeout).await? {
                if body.len() + piece.len() > most {
                    return Err(Problem::too_large(most));
                }
                body.extend_from_slice(&piece);
            }
            Ok(Whole(body.freeze()))
        })
    }
}

/// A body of JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest for Json<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let is_json = media_type(request).as_deref() == Some("application/json");
        let body = Whole::from_request(request, payload);
        Box::pin(async move {
            if !is_json {
                return Err(Problem::unsupported_media_type("application/json"));
            }
            Ok(Json(parse(&body.await?.0)?))
        })
    }
}

/// A body of JSON with a secret in it: what is said of a bad one quotes nothing of it.
pub(super) struct SecretJson<T>(pub(super) T);

impl<T: DeserializeOwned + 'static> FromRequest for SecretJson<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = Json::from_request(request, payload);
        Box::pin(async move {
            match body.await {
                Ok(Json(body)) => Ok(SecretJson(body)),
                Err(problem) => Err(problem.without_quotes()),
            }
        })
    }
}

/// A body of JSON, or none.
pub(super) struct JsonOrNone<T>(pub(super) T);

impl<T: DeserializeOwned + Default + 'static> FromRequest for JsonOrNone<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let media_type = media_type(request);
        let body = Whole::from_request(request, payload);
        Box::pin(async move {
            let body = body.await?.0;
            match media_type.as_deref() {
                Some("application/json") => Ok(JsonOrNone(parse(&body)?)),
                _ if body.is_empty() => Ok(JsonOrNone(T::default())),
                _ => Err(Problem::unsupported_media_type("application/json")),
            }
        })
    }
}

/// Reads JSON; what is no JSON is a 400, what is another document than asked for a 422.
pub(super) fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => Problem::unprocessable(format!("The body does not fit: {error}.")),
        _ => Problem::new(StatusCode::BAD_REQUEST, format!("The body is not JSON: {error}.")),
    })
}

/// The media type of a request's body in small letters, without its parameters.
pub(super) fn media_type(request: &HttpRequest) -> Option<String> {
    let value = request.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}
