//! Who asks, and what they may do: denied unless a token with the role is shown.
//!
//! The tokens of the database are kept for a second, so that no request waits for it: a token that is
//! revoked opens nothing a second later.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::cookie::Cookie;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, HttpResponse};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex as Turns;

use super::Shared;
use super::problem::Problem;
use super::token::hash_if_token;
use crate::actors::off_thread;
use crate::db::{Store, StoreError, Token};
use crate::types::{Role, TokenId};

/// The cookie in which a browser keeps its token.
pub(super) const COOKIE: &str = "chancery_token";

/// How long what the database said of its tokens is good for.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How long it is good for while the database does not answer: nothing that needs the database works
/// then, and metrics must.
const GOOD_IN_AN_OUTAGE: Duration = Duration::from_secs(600);

/// How often it is asked for at least, so that an outage finds something.
const KEEP_AT_HAND: Duration = Duration::from_secs(10);

/// The shortest pause between two questions for tokens that are not known.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often the use of a token is noted in the database.
const NOTE_USE: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) token: TokenId,
    pub(super) name: String,
    roles: Vec<Role>,
}

impl Caller {
    pub(super) fn may(&self, needed: Role) -> bool {
        self.roles.iter().any(|role| role.covers(needed))
    }

    /// The name under which what they do is written down.
    pub(super) fn actor(&self) -> String {
        format!("{} (token {})", self.name, self.token)
    }
}

/// The tokens that the database knows, as it said a moment ago.
pub(super) struct Tokens {
    store: Arc<dyn Store>,
    known: Mutex<Option<Known>>,
    asking: Turns<()>,
    used: Mutex<Used>,
}

#[derive(Clone)]
struct Known {
    at: Instant,
    tokens: Arc<Vec<Token>>,
}

struct Used {
    tokens: BTreeSet<TokenId>,
    noted_at: Instant,
}

impl Tokens {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let used = Used { tokens: BTreeSet::new(), noted_at: Instant::now() };
        Tokens { store, known: Mutex::default(), asking: Turns::new(()), used: Mutex::new(used) }
    }

    /// Keeps what the database says at hand, for ever.
    pub(super) async fn follow(&self) {
        loop {
            // A failure is told where it happens.
            let _ = self.known_since(Instant::now()).await;
            tokio::time::sleep(KEEP_AT_HAND).await;
        }
    }

    /// The bearer of a token; `None` if it opens nothing.
    ///
    /// # Errors
    /// [`Problem::no_database`] if the database has not said what tokens there are.
    pub(super) async fn caller(&self, token: &str) -> Result<Option<Caller>, Problem> {
        let Some(hash) = hash_if_token(token) else { return Ok(None) };
        let asked = Instant::now();
        let a_while_ago = asked.checked_sub(GOOD_FOR).unwrap_or(asked);
        let mut found = find(&self.known_since(a_while_ago).await?, &hash);
        if found.is_none() {
            // It may have been made just now.
            found = find(&self.known_since(asked).await?, &hash);
        }
        if let Some(caller) = &found {
            self.note_use(caller.token);
        }
        Ok(found)
    }

    /// What the database said at that instant or later.
    async fn known_since(&self, instant: Instant) -> Result<Known, Problem> {
        if let Some(known) = self.said_since(instant) {
            return Ok(known);
        }
        let _turn = self.asking.lock().await;
        // Another request may have asked meanwhile.
        if let Some(known) = self.said_since(instant) {
            return Ok(known);
        }
        if let Some(last) = self.said_since(instant.checked_sub(GOOD_FOR).unwrap_or(instant)) {
            tokio::time::sleep(LOOK_AGAIN.saturating_sub(last.at.elapsed())).await;
        }
        let store = Arc::clone(&self.store);
        let at = Instant::now();
        let asked = tokio::time::timeout(super::PATIENCE, off_thread(move || store.tokens())).await;
        match asked {
            Ok(Ok(tokens)) => {
                let known = Known { at, tokens: Arc::new(tokens) };
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
                Ok(known)
            }
            failed => {
                let error = match failed {
                    Ok(Err(error)) => error,
                    _ => StoreError::Unavailable("no answer in time".to_owned()),
                };
                tracing::warn!(%error, "could not ask for the tokens");
                let long_ago = at.checked_sub(GOOD_IN_AN_OUTAGE).unwrap_or(at);
                self.said_since(long_ago).ok_or_else(Problem::no_database)
            }
        }
    }

    fn said_since(&self, instant: Instant) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone().filter(|known| known.at >= instant)
    }

    /// Writes down now and again which tokens are used.
    fn note_use(&self, token: TokenId) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = used.tokens.insert(token);
        if !is_new && used.noted_at.elapsed() < NOTE_USE {
            return;
        }
        if is_new {
            self.write_use(vec![token]);
        } else {
            used.noted_at = Instant::now();
            self.write_use(std::mem::take(&mut used.tokens).into_iter().collect());
        }
    }

    fn write_use(&self, tokens: Vec<TokenId>) {
        let store = Arc::clone(&self.store);
        actix_web::rt::spawn(async move {
            if let Err(error) = off_thread(move || store.touch_tokens(&tokens)).await {
                tracing::debug!(%error, "could not note that a token was used");
            }
        });
    }
}

/// The valid token of that hash. Every one is compared, each in constant time.
fn find(known: &Known, hash: &[u8; 32]) -> Option<Caller> {
    let mut found = None;
    for token in known.tokens.iter() {
        if bool::from(token.hash.ct_eq(hash)) {
            found = Some(token);
        }
    }
    let still_valid = |token: &&Token| {
        token.is_valid() && token.valid_for.is_none_or(|left| known.at.elapsed() < left)
    };
    found.filter(still_valid).map(|token| Caller {
        token: token.id,
        name: token.name.clone(),
        roles: token.roles.clone(),
    })
}

/// The middleware around everything that needs a token: who has none is refused here.
pub(super) async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    match caller_of(request.request()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            Ok(next.call(request).await?.map_into_left_body())
        }
        Err(problem) => {
            // Not by `into_response`, which forgets the error and so the request's id.
            let refused = HttpResponse::from_error(problem);
            let (request, _) = request.into_parts();
            Ok(ServiceResponse::new(request, refused).map_into_right_body())
        }
    }
}

/// Who sent a request.
///
/// # Errors
/// 401, or 429 where an address has tried too many tokens that are none.
pub(super) async fn caller_of(request: &HttpRequest) -> Result<Caller, Problem> {
    let shared = shared(request)?;
    let address = request.peer_addr().map(|address| address.ip());
    let Some(shown) = shown_token(request) else {
        shared.limits.check_address(address)?;
        return Err(Problem::no_token());
    };
    let Some(caller) = shared.tokens.caller(&shown).await? else {
        shared.counters.authentication_failures.inc();
        shared.limits.note_failure(address)?;
        tracing::warn!(address = address.map(tracing::field::display), "refused a token");
        return Err(Problem::no_token());
    };
    shared.limits.check_token(caller.token)?;
    Ok(caller)
}

pub(super) fn shared(request: &HttpRequest) -> Result<Arc<Shared>, Problem> {
    let shared = request.app_data::<Data<Shared>>().cloned().map(Data::into_inner);
    shared.ok_or_else(Problem::internal)
}

/// The token of the header, or else of the cookie: that one only where no other site can have sent
/// the request.
fn shown_token(request: &HttpRequest) -> Option<String> {
    if let Some(header) = request.headers().get(AUTHORIZATION) {
        let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let cookie: Cookie<'_> = request.cookie(COOKIE)?;
    let changes_nothing = matches!(*request.method(), Method::GET | Method::HEAD);
    (changes_nothing || is_of_this_site(request.headers())).then(|| cookie.value().to_owned())
}

/// Whether a browser says that the request comes from a page of this site (RFC 6454, section 7).
pub(super) fn is_of_this_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(HOST)
}

/// A role, as a type that a handler asks for.
pub(super) trait Needed {
    const ROLE: Role;
}

macro_rules! needed {
    ($($(#[$doc:meta])* $name:ident),+) => {
        $(
            $(#[$doc])*
            pub(super) enum $name {}

            impl Needed for $name {
                const ROLE: Role = Role::$name;
            }
        )+
    };
}

needed! {
    /// [`Role::Reader`]
    Reader,
    /// [`Role::Operator`]
    Operator,
    /// [`Role::KeyAdmin`]
    KeyAdmin,
    /// [`Role::Writer`]
    Writer
}

/// A caller who may do what the role `R` is for: the first thing that a handler takes.
pub(super) struct As<R>(pub(super) Caller, PhantomData<R>);

impl<R: Needed> FromRequest for As<R> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        ready(match caller {
            None => Err(Problem::no_token()),
            Some(caller) if caller.may(R::ROLE) => Ok(As(caller, PhantomData)),
            Some(_) => Err(Problem::forbidden(R::ROLE.as_str())),
        })
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    const TOKEN: &str = "chy_abc";

    fn shown(request: TestRequest) -> Option<String> {
        shown_token(&request.to_http_request())
    }

    #[test]
    fn a_token_comes_in_the_header_or_in_the_cookie() {
        let bearer = |value: &str| TestRequest::get().insert_header((AUTHORIZATION, value));
        assert_eq!(shown(bearer("Bearer chy_abc")).as_deref(), Some(TOKEN));
        assert_eq!(shown(bearer("bearer  chy_abc ")).as_deref(), Some(TOKEN));
        assert_eq!(shown(bearer("Basic chy_abc")), None);
        assert_eq!(shown(bearer("chy_abc")), None);
        assert_eq!(shown(TestRequest::get()), None);
        let cookie = || TestRequest::get().cookie(Cookie::new(COOKIE, TOKEN));
        assert_eq!(shown(cookie()).as_deref(), Some(TOKEN));
        // A header that is wrong is not made good by a cookie.
        assert_eq!(shown(cookie().insert_header((AUTHORIZATION, "Basic x"))), None);
    }

    #[test]
    fn a_change_by_cookie_must_come_from_a_page_of_this_site() {
        let post = || {
            TestRequest::post()
                .cookie(Cookie::new(COOKIE, TOKEN))
                .insert_header((HOST, "signer.example:8443"))
        };
        assert_eq!(shown(post()), None);
        let from = |origin: &str| shown(post().insert_header((ORIGIN, origin)));
        assert_eq!(from("https://signer.example:8443").as_deref(), Some(TOKEN));
        for other in ["https://signer.example", "https://evil.example", "null", ""] {
            assert_eq!(from(other), None, "{other}");
        }
    }

    #[test]
    fn an_administrator_may_read_and_a_writer_may_not() {
        let may = |role: Role, needed: Role| role.covers(needed);
        for role in [Role::Reader, Role::Operator, Role::KeyAdmin] {
            assert!(may(role, Role::Reader), "{role}");
        }
        assert!(!may(Role::Writer, Role::Reader));
        for role in Role::ALL {
            for needed in [Role::Operator, Role::KeyAdmin, Role::Writer] {
                assert_eq!(may(*role, needed), *role == needed, "{role} as {needed}");
            }
        }
    }
}
