//! The dashboard at `/`: rendered here, kept up to date by server-sent events, without any outside
//! resource.

mod board;
mod chart;
mod overview;
mod page;
mod ring;
mod sections;
mod tables;
mod words;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use actix_web::cookie::time::Duration as CookieAge;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION};
use actix_web::web::{self, Bytes, Data, Form, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::Stream;
use maud::Markup;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use zeroize::Zeroizing;

pub(super) use board::{Board, watch};

use self::overview::{Overview, Viewer};
use super::auth::{COOKIE, Caller, caller_of, is_of_this_site};
use super::problem::{self, Problem};
use super::routes::{get, get_and_post, post};
use super::{Rings, Shared};
use crate::config::is_ring_name;
use crate::types::Role;

/// How many may look at once.
const MOST_WATCHERS: usize = 64;

/// How long a browser keeps its token.
const SESSION_HOURS: i64 = 12;

/// What a page of ours may load: its own style and script, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
                      base-uri 'none'";

/// The page of each ring, what it needs, and the way in and out.
pub(super) fn endpoints(rings: &Rings) -> impl FnOnce(&mut ServiceConfig) {
    let rings = rings.0.clone();
    move |config| {
        for shared in rings.iter().filter(|shared| is_ring_name(&shared.ring.name)) {
            let ring = web::scope(&format!("/rings/{}", shared.ring.name))
                .app_data(Data::clone(shared))
                .service(get("", dashboard))
                .service(get("/events", events))
                .default_service(web::to(problem::not_found));
            config.service(ring);
        }
        config
            .service(get("/", dashboard))
            .service(get("/events", events))
            .service(get_and_post("/login", show_login, login))
            .service(post("/logout", logout))
            .service(get(&STYLE.path, style))
            .service(get(&SCRIPT.path, script))
            .service(get(&ICON.path, icon));
    }
}

/// Where the page of a ring is.
fn place_of(ring: &str, is_first: bool) -> String {
    if is_first { "/".to_owned() } else { format!("/rings/{ring}") }
}

/// A file of the page under a path that changes with it, so that a browser may keep it.
struct Asset {
    path: String,
    text: &'static str,
}

impl Asset {
    fn new(name: &str, ending: &str, text: &'static str) -> Self {
        let hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..9]);
        Asset { path: format!("/assets/{name}-{hash}.{ending}"), text }
    }

    fn response(&self, content_type: &str) -> HttpResponse {
        HttpResponse::Ok()
            .content_type(content_type)
            .insert_header((CACHE_CONTROL, "public, max-age=31536000, immutable"))
            .body(self.text)
    }
}

static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style", "css", include_str!("style.css")));
static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("script", "js", include_str!("script.js")));

static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", include_str!("icon.svg")));

static FILES: LazyLock<page::Files> =
    LazyLock::new(|| page::Files { style: &STYLE.path, script: &SCRIPT.path, icon: &ICON.path });

async fn icon() -> HttpResponse {
    ICON.response("image/svg+xml")
}

async fn style() -> HttpResponse {
    STYLE.response("text/css; charset=utf-8")
}

async fn script() -> HttpResponse {
    SCRIPT.response("text/javascript; charset=utf-8")
}

fn html(status: StatusCode, markup: Markup) -> HttpResponse {
    HttpResponse::build(status)
        .content_type("text/html; charset=utf-8")
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((CACHE_CONTROL, "no-store"))
        .body(markup.into_string())
}

fn to(place: &'static str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((LOCATION, place))
        .insert_header((CACHE_CONTROL, "no-store"))
        .finish()
}

/// The page; who has no token is sent to get one.
async fn dashboard(request: HttpRequest, shared: Data<Shared>) -> Result<HttpResponse, Problem> {
    let caller = match caller_of(&request).await {
        Ok(caller) if caller.may(Role::Reader) => caller,
        Ok(_) => return Err(Problem::forbidden(Role::Reader.as_str())),
        Err(problem) if problem.is_unauthorized() => return Ok(to("/login")),
        Err(problem) => return Err(problem),
    };
    let overview = board::take(&shared).await;
    let page = page::page(&overview, &viewer(&caller), &FILES);
    Ok(html(StatusCode::OK, page))
}

fn viewer(caller: &Caller) -> Viewer {
    Viewer { name: caller.name.clone(), may_operate: caller.may(Role::Operator) }
}

async fn show_login() -> HttpResponse {
    html(StatusCode::OK, page::login(false, &FILES))
}

/// The form of the login page.
#[derive(Deserialize)]
struct Login {
    token: Zeroizing<String>,
}

/// Puts a token that is good into the browser's cookie.
async fn login(
    request: HttpRequest,
    shared: Data<Shared>,
    form: Form<Login>,
) -> Result<HttpResponse, Problem> {
    if !is_of_this_site(request.headers()) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "The form must come from the login page of this site.",
        ));
    }
    let token = form.token.trim();
    let caller = shared.tokens.caller(token).await?.filter(|caller| caller.may(Role::Reader));
    if caller.is_none() {
        shared.counters.authentication_failures.inc();
        shared.limits.note_failure(request.peer_addr().map(|address| address.ip()))?;
        let page = page::login(true, &FILES);
        return Ok(html(StatusCode::UNAUTHORIZED, page));
    }
    let cookie =
        Cookie::build(COOKIE, token.to_owned()).max_age(CookieAge::hours(SESSION_HOURS)).finish();
    Ok(with_cookie(to("/"), cookie, &shared))
}

async fn logout(request: HttpRequest, shared: Data<Shared>) -> Result<HttpResponse, Problem> {
    if !is_of_this_site(request.headers()) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "The form must come from a page of this site.",
        ));
    }
    let forgotten = Cookie::build(COOKIE, "").max_age(CookieAge::ZERO).finish();
    Ok(with_cookie(to("/login"), forgotten, &shared))
}

/// Out of the reach of scripts and of other sites.
fn with_cookie(
    mut response: HttpResponse,
    mut cookie: Cookie<'_>,
    shared: &Shared,
) -> HttpResponse {
    cookie.set_path("/");
    cookie.set_http_only(true);
    cookie.set_same_site(SameSite::Strict);
    cookie.set_secure(shared.config.tls_cert_file.is_some());
    if let Err(error) = response.add_cookie(&cookie) {
        tracing::error!(%error, "could not set a cookie");
    }
    response
}

/// The sections of the page that have changed, once a second.
async fn events(request: HttpRequest, shared: Data<Shared>) -> Result<HttpResponse, Problem> {
    let caller = caller_of(&request).await?;
    if !caller.may(Role::Reader) {
        return Err(Problem::forbidden(Role::Reader.as_str()));
    }
    if shared.board.watchers() >= MOST_WATCHERS {
        return Err(Problem::unavailable("Too many are looking at this node's dashboard."));
    }
    let moments = shared.board.subscribe();
    let watcher = Watcher { request, shared: shared.into_inner(), moments, shown: HashMap::new() };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .streaming(stream(watcher)))
}

/// Somebody who looks, and what they have seen of each section.
struct Watcher {
    request: HttpRequest,
    shared: Arc<Shared>,
    moments: watch::Receiver<Option<Arc<Overview>>>,
    shown: HashMap<&'static str, String>,
}

fn stream(watcher: Watcher) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    futures::stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        tokio::select! {
            changed = watcher.moments.changed() => changed.ok()?,
            () = watcher.shared.stopped() => return None,
        }
        let moment = watcher.moments.borrow_and_update().clone()?;
        // A token may have been revoked since.
        match caller_of(&watcher.request).await {
            Ok(caller) => {
                let text = watcher.changes(&moment, &viewer(&caller));
                Some((Ok(Bytes::from(text)), Some(watcher)))
            }
            Err(problem) if problem.is_unauthorized() => {
                Some((Ok(Bytes::from_static(b"event: bye\ndata: \n\n")), None))
            }
            // The database does not answer, or so: they keep what they see.
            Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), Some(watcher))),
        }
    })
}

impl Watcher {
    /// The events for what has changed; a comment if nothing has, which keeps the connection open.
    fn changes(&mut self, moment: &Overview, viewer: &Viewer) -> String {
        let mut text = String::new();
        for (id, markup) in sections::sections(moment, viewer) {
            let html = markup.into_string();
            if self.shown.get(id).is_some_and(|shown| *shown == html) {
                continue;
            }
            let data = serde_json::json!({ "id": id, "html": html });
            text.push_str(&format!("event: section\ndata: {data}\n\n"));
            self.shown.insert(id, html);
        }
        if text.is_empty() { ": nothing new\n\n".to_owned() } else { text }
    }
}

/// A form is small.
pub(super) fn form_config() -> web::FormConfig {
    web::FormConfig::default().limit(4096).error_handler(|error, _| {
        Problem::unprocessable(format!("The form does not fit: {error}.")).into()
    })
}
