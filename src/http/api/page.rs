//! Lists in pages: an opaque cursor from one to the next.

use actix_web::HttpResponse;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::problem::Problem;

/// How many items a page has unless the client says otherwise, and at the most.
const DEFAULT_LIMIT: u32 = 100;
const MOST: u32 = 1_000;

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PageQuery {
    /// Where the page before ended: its `next`.
    pub(in crate::http) after: Option<String>,
    /// How many items at the most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(in crate::http) limit: Option<u32>,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Page<T> {
    /// The items, in a stable order.
    items: Vec<T>,
    /// The `after` of the next page; null at the end.
    next: Option<String>,
}

impl<T: Serialize> Page<T> {
    /// A page of rows of which one more than `limit` was asked for, to see whether there is a next.
    pub(in crate::http) fn of<R>(
        mut rows: Vec<R>,
        limit: u32,
        cursor: impl Fn(&R) -> String,
        item: impl Fn(R) -> T,
    ) -> Self {
        let there_is_more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| there_is_more).map(cursor);
        Page { items: rows.into_iter().map(item).collect(), next }
    }

    /// A page whose end is known to have something behind it, or may have later.
    pub(in crate::http) fn with_next(items: Vec<T>, next: Option<String>) -> Self {
        Page { items, next }
    }

    pub(in crate::http) fn response(&self) -> HttpResponse {
        HttpResponse::Ok().json(self)
    }
}

/// How many items the client wants.
///
/// # Errors
/// 422 if that is none or too many.
pub(in crate::http) fn limit(limit: Option<u32>) -> Result<u32, Problem> {
    match limit {
        None => Ok(DEFAULT_LIMIT),
        Some(limit) if (1..=MOST).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(Problem::unprocessable(format!("limit is {limit}: it must be from 1 to {MOST}.")))
        }
    }
}

/// The id that a cursor stands for; the smallest of all without one.
///
/// # Errors
/// 422 if it is no cursor.
pub(in crate::http) fn after(cursor: Option<&str>) -> Result<i64, Problem> {
    cursor.map_or(Ok(i64::MIN), |cursor| cursor.parse().map_err(|_| no_cursor()))
}

/// What to say of a cursor that is none.
pub(in crate::http) fn no_cursor() -> Problem {
    Problem::unprocessable("after is no cursor: take the `next` of the page before.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: Vec<i64>, limit: u32) -> (Vec<i64>, Option<String>) {
        let page = Page::of(rows, limit, ToString::to_string, |row| row);
        (page.items, page.next)
    }

    #[test]
    fn a_page_names_the_next_one_only_where_there_is_one() {
        assert_eq!(page(vec![], 2), (vec![], None));
        assert_eq!(page(vec![1, 2], 2), (vec![1, 2], None));
        assert_eq!(page(vec![1, 2, 3], 2), (vec![1, 2], Some("2".to_owned())));
    }

    #[test]
    fn a_limit_and_a_cursor_are_checked() {
        assert_eq!(limit(None), Ok(100));
        assert_eq!(limit(Some(1000)), Ok(1000));
        assert!(limit(Some(0)).is_err());
        assert!(limit(Some(1001)).is_err());
        assert_eq!(after(None), Ok(i64::MIN));
        assert_eq!(after(Some("7")), Ok(7));
        assert!(after(Some("seven")).is_err());
    }
}
