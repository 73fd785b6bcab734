//! The page as a whole, and the one that asks for a token.

use maud::{DOCTYPE, Markup, html};

use super::overview::{Overview, Viewer};
use super::sections::sections;

/// Each card of the page: the id of its section, its heading, and how wide it is.
const CARDS: [(&str, &str, &str); 7] = [
    ("progress", "Progress", "wide"),
    ("keys", "Key ring", "tall"),
    ("rate", "Records signed a second", "wide"),
    ("in-flight", "In flight", "wide"),
    ("nodes", "Nodes", "half"),
    ("quarantine", "Quarantine", "half"),
    ("actions", "Administrators", "full"),
];

/// Where the files are that a page loads.
pub(super) struct Files {
    pub(super) style: &'static str,
    pub(super) script: &'static str,
    pub(super) icon: &'static str,
}

/// What stands in every document of ours; `live` says where the events of one that changes are.
fn document(title: &str, files: &Files, live: Option<&str>, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="icon" type="image/svg+xml" href=(files.icon);
                link rel="stylesheet" href=(files.style);
                @if live.is_some() { script src=(files.script) defer {} }
            }
            body data-base=[live] { (body) }
        }
    }
}

fn mark() -> Markup {
    html! {
        svg class="mark" viewBox="0 0 32 32" aria-hidden="true" {
            circle cx="16" cy="16" r="11" {}
            circle class="seal" cx="16" cy="5" r="4" {}
        }
    }
}

/// The dashboard.
pub(super) fn page(overview: &Overview, viewer: &Viewer, files: &Files) -> Markup {
    let sections = sections(overview, viewer);
    let section = |id: &str| {
        let found = sections.iter().find(|(section, _)| *section == id);
        html! { @if let Some((_, html)) = found { (html) } }
    };
    let title = format!("{} on {} - Chancery", overview.ring, overview.node);
    let body = html! {
        a class="skip" href="#main" { "Skip to the numbers" }
        header {
            (mark())
            div class="names" {
                h1 { "Chancery" }
                p { "ring " strong { (overview.ring) } ", node " strong { (overview.node) } }
            }
            div id="state" { (section("state")) }
            p id="live" class="live" role="status" { "connecting" }
            div id="orders" class="orders" { (section("orders")) }
            form method="post" action="/logout" {
                button class="plain" type="submit" title=(format!("Signed in as {}", viewer.name)) {
                    "Sign out"
                }
            }
        }
        @if overview.rings.len() > 1 {
            nav class="rings" aria-label="Rings" {
                @for ring in &overview.rings {
                    a href=(ring.place) aria-current=[ring.is_shown.then_some("page")] { (ring.name) }
                }
            }
        }
        main id="main" {
            div id="banner" { (section("banner")) }
            section aria-label="Numbers" { div id="numbers" { (section("numbers")) } }
            div class="cards" {
                @for (id, heading, width) in CARDS {
                    section class={ "card " (width) " card-" (id) } aria-labelledby={ (id) "-heading" } {
                        h2 id={ (id) "-heading" } { (heading) }
                        div id=(id) { (section(id)) }
                    }
                }
            }
        }
        footer {
            p { "Chancery " (overview.version) " · " a href="/docs/" { "API" } " · "
                a href="/ready" { "Health" } " · " a href="/.well-known/jwks.json" { "Public keys" } }
        }
        div id="toast" role="status" aria-live="polite" {}
        dialog id="confirm" aria-labelledby="confirm-words" {
            p id="confirm-words" {}
            form method="dialog" {
                button value="no" { "Cancel" }
                button class="strong" value="yes" { "Yes, do it" }
            }
        }
    };
    document(&title, files, Some(&overview.base), body)
}

/// The way in.
pub(super) fn login(failed: bool, files: &Files) -> Markup {
    let body = html! {
        main class="login" {
            (mark())
            h1 { "Chancery" }
            form method="post" action="/login" {
                input type="text" name="username" autocomplete="username" value="chancery" hidden;
                label for="token" { "Token" }
                input id="token" name="token" type="password" autocomplete="current-password"
                    required autofocus aria-describedby="token-help"
                    aria-invalid=[failed.then_some("true")];
                @if failed {
                    p class="banner bad" role="alert" { "This token opens nothing here." }
                }
                p id="token-help" class="quiet" {
                    "One of the role reader or operator, made by "
                    code { "chancery token create --name me --role operator" } "."
                }
                button class="strong" type="submit" { "Sign in" }
            }
        }
    };
    document("Sign in - Chancery", files, None, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Files = Files { style: "/a.css", script: "/a.js", icon: "/a.svg" };

    #[test]
    fn a_page_has_each_section_once_and_nothing_inline() {
        let overview = Overview { ring: "<default>".to_owned(), ..Overview::default() };
        let viewer = Viewer { name: "me".to_owned(), may_operate: true };
        let html = page(&overview, &viewer, &FILES).into_string();
        for (id, _) in sections(&overview, &viewer) {
            assert_eq!(html.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
        }
        for inline in ["style=", "<style", "onclick", "http://", "https://"] {
            assert!(!html.contains(inline), "{inline}");
        }
        assert_eq!(html.matches("<script").count(), 1);
        assert!(html.contains("&lt;default&gt;"), "{html}");
    }

    #[test]
    fn the_login_page_says_that_a_token_was_none() {
        assert!(!login(false, &FILES).into_string().contains("opens nothing"));
        assert!(login(true, &FILES).into_string().contains("opens nothing"));
    }
}
