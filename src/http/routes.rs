//! Paths with the methods that they take: every other one is a 405 that names them.

use actix_web::web::{self, to};
use actix_web::{FromRequest, Handler, Resource, Responder};

use super::problem::Problem;

/// A path that shows something.
pub(super) fn get<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(to(async || Err::<String, _>(Problem::method_not_allowed("GET, HEAD"))))
}

/// A path that does something.
pub(super) fn post<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::post().to(handler))
        .default_service(to(async || Err::<String, _>(Problem::method_not_allowed("POST"))))
}

/// A path that shows something and does something.
pub(super) fn get_and_post<F, FArgs, G, GArgs>(path: &str, shows: F, does: G) -> Resource
where
    F: Handler<FArgs>,
    FArgs: FromRequest + 'static,
    F::Output: Responder + 'static,
    G: Handler<GArgs>,
    GArgs: FromRequest + 'static,
    G::Output: Responder + 'static,
{
    web::resource(path)
        .route(web::get().to(shows.clone()))
        .route(web::head().to(shows))
        .route(web::post().to(does))
        .default_service(to(async || {
            Err::<String, _>(Problem::method_not_allowed("GET, HEAD, POST"))
        }))
}
