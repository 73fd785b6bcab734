use super::overview::{Overview, Viewer};
use maud::{Markup, html};
pub(super) fn sections(overview: &Overview, _viewer: &Viewer) -> Vec<(&'static str, Markup)> {
    vec![("numbers", html! { p { (overview.signed) } })]
}
