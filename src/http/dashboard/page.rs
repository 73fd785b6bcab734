use super::overview::{Overview, Viewer};
use maud::{DOCTYPE, Markup, html};
pub(super) fn page(overview: &Overview, viewer: &Viewer, style: &str, script: &str) -> Markup {
    html! { (DOCTYPE) html { head { link rel="stylesheet" href=(style); script src=(script) defer {} } body { @for (id, html) in super::sections::sections(overview, viewer) { section id=(id) { (html) } } } } }
}
