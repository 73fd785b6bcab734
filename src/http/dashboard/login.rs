use maud::{DOCTYPE, Markup, html};
pub(super) fn login(_failed: bool, style: &str, _script: &str) -> Markup {
    html! { (DOCTYPE) html { head { link rel="stylesheet" href=(style); } body { form method="post" action="/login" { input name="token" type="password"; button { "Enter" } } } } }
}
