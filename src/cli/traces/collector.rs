//! The HTTP client of the exporter. It blocks, which its thread is for, and needs no runtime.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;
use ureq::http::Uri;

/// Answers say how many spans were refused, if any; nobody needs to say more.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// A collector, straight and at its own address: neither by a proxy of the environment nor where it
/// may redirect to.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    agent: Agent,
    name: String,
    last_failure: Arc<Mutex<Option<String>>>,
}

impl Collector {
    /// The one at `endpoint`, which has `timeout` for an answer.
    ///
    /// # Errors
    /// If that is no URL with a host.
    pub(super) fn at(endpoint: &str, timeout: Duration) -> Result<Self, String> {
        let uri: Uri = endpoint.parse().map_err(|error| format!("{error}"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        // Without a password that may stand before the host.
        let name = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Ok(Collector { agent: config.into(), name, last_failure: Arc::default() })
    }

    /// Host and port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Why the last request had no answer, if it had none.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.agent.run(Request::from_parts(head, &body[..]))?.into_parts();
        let bytes = body.with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, bytes.into()))
    }
}

impl HttpClient for Collector {
    // As the attribute `async_trait` has it.
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> BoxFuture<'async_trait, Result<Response<Bytes>, HttpError>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let answer = self.send(request);
            let failure = answer.as_ref().err().map(ToString::to_string);
            *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
            Ok(answer?)
        })
    }
}
