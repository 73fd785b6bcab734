//! The API, asked over HTTP of the built program.

mod audits;
mod bulk;
mod hostile;
mod keys;
mod lists;
mod matrix;
mod orders;
mod records;
mod rings;
mod schema;
mod secrets;
mod signatures;
mod tls;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;

use crate::support::Site;
use crate::support::program::{Running, Signal};

/// A service with its tokens.
pub(crate) struct Served {
    pub(crate) site: Site,
    pub(crate) serve: Running,
    pub(crate) address: String,
    /// A token that opens everything.
    pub(crate) token: String,
    client: Client,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
    headers: reqwest::header::HeaderMap,
}

impl Answer {
    fn of(response: Response) -> Answer {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, text: response.text().unwrap(), headers }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body as JSON, of an answer with that status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Sees that it is a problem document, whose detail holds `words`.
    #[track_caller]
    pub(crate) fn expect_problem(&self, status: u16, words: &str) {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{words:?} is not in {detail:?}");
    }
}

impl Served {
    /// A service on a site that is prepared.
    pub(crate) fn start(site: Site) -> Served {
        Served::start_with(site, &["serve"])
    }

    pub(crate) fn start_with(site: Site, arguments: &[&str]) -> Served {
        let site = site.set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
        let token = create_token(&site, &["operator", "key-admin", "writer"], &[]);
        let serve = site.start(arguments);
        let address = address_of(&serve);
        Served { site, serve, address, token, client: client() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request without a token.
    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub(crate) fn send(&self, request: RequestBuilder) -> Answer {
        Answer::of(request.bearer_auth(&self.token).send().unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(self.ask(Method::GET, path))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.ask(Method::POST, path).json(body))
    }

    /// Posts without a body.
    pub(crate) fn order(&self, path: &str) -> Answer {
        self.send(self.ask(Method::POST, path))
    }

    /// All items of a list, page by page.
    #[track_caller]
    pub(crate) fn all(&self, path: &str, limit: u32) -> Vec<Value> {
        let mut items = Vec::new();
        let mut after = String::new();
        let join = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = self.get(&format!("{path}{join}limit={limit}{after}")).expect(200);
            let of_page = page["items"].as_array().unwrap();
            assert!(of_page.len() <= limit as usize);
            items.extend(of_page.iter().cloned());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return items,
            }
        }
    }

    /// Ends the service, which must end well.
    #[track_caller]
    pub(crate) fn stop(self) -> Site {
        self.serve.signal(Signal::TERM);
        self.serve.wait().expect_code(0);
        self.site
    }
}

/// The address that a service says it listens on.
#[track_caller]
pub(crate) fn address_of(serve: &Running) -> String {
    let line = serve.wait_for_stderr("listening");
    let (_, address) = line.split_once("address=").unwrap_or_else(|| panic!("{line}"));
    address.split_whitespace().next().unwrap().to_owned()
}

/// Makes a token by the command line.
pub(crate) fn create_token(site: &Site, roles: &[&str], more: &[&str]) -> String {
    let mut arguments = vec!["token", "create", "--name", "test"];
    for role in roles {
        arguments.extend(["--role", role]);
    }
    arguments.extend(more);
    site.run(&arguments).expect_code(0).stdout.trim().to_owned()
}

/// One that waits as long as a test may, and goes past no proxy.
fn client() -> Client {
    Client::builder().timeout(crate::support::LIMIT).no_proxy().build().unwrap()
}
