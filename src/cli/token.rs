//! `chancery token`

use std::time::Duration;

use anyhow::Context as _;

use super::{Context, Outcome, keys, output};
use crate::app::MissingDatabase;
use crate::db::{NewToken, Token};
use crate::http::token;
use crate::types::{Role, TokenId};

/// Make, list and revoke the tokens that open a service over HTTP
#[derive(clap::Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it: it is shown this once
    Create {
        /// Whom or what it is for
        #[arg(long, value_name = "NAME", value_parser = name)]
        name: String,
        /// What it opens: reader, operator, key-admin or writer; may be given more than once
        #[arg(long = "role", value_name = "ROLE", required = true)]
        roles: Vec<Role>,
        /// For how many days it is good [default: for ever]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        expires_in: Option<u32>,
    },
    /// List the tokens
    List {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token, within a second on all nodes
    Revoke {
        /// Its number
        #[arg(value_name = "ID")]
        id: i64,
    },
}

fn name(text: &str) -> Result<String, String> {
    let is_plain = !text.trim().is_empty() && !text.contains(char::is_control);
    if is_plain && text.len() <= 100 {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 100 bytes, no control characters, and is not blank".to_owned())
    }
}

impl TokenCommand {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        match self {
            TokenCommand::Create { name, roles, expires_in } => {
                create(context, name, roles, expires_in)
            }
            TokenCommand::List { json } => list(context, json),
            TokenCommand::Revoke { id } => revoke(context, TokenId(id)),
        }
    }
}

fn create(
    context: &Context,
    name: String,
    mut roles: Vec<Role>,
    expires_in: Option<u32>,
) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Create)?;
    roles.sort_unstable();
    roles.dedup();
    let (token, hash) = token::generate().context("the operating system gives no randomness")?;
    let valid_for = expires_in.map(|days| Duration::from_secs(u64::from(days) * 86_400));
    let new = NewToken { name, roles, hash, valid_for };
    let id = database.store.add_token(&new, &keys::actor())?;
    // The token alone, so that a script can take it.
    output::eprint_line(&format!("token {id}, shown this once:"));
    output::print_line(&token)?;
    Ok(Outcome::Done)
}

fn list(context: &Context, json: bool) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let tokens = database.store.tokens()?;
    if json {
        output::print_json(&tokens.iter().map(TokenView::from).collect::<Vec<_>>())?;
        return Ok(Outcome::Done);
    }
    if tokens.is_empty() {
        output::print_line("no tokens; `chancery token create` makes one")?;
        return Ok(Outcome::Done);
    }
    output::print_line(&format!(
        "{:>4}  {:<8} {:<24} {:<28} {:<27}  {}",
        "ID", "STATE", "ROLES", "NAME", "LAST USED", "EXPIRES"
    ))?;
    for token in tokens.iter().map(TokenView::from) {
        output::print_line(
            format!(
                "{:>4}  {:<8} {:<24} {:<28} {:<27}  {}",
                token.id,
                token.state,
                token.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", "),
                token.name,
                token.last_used_at.as_deref().unwrap_or("never"),
                token.expires_at.as_deref().unwrap_or("never")
            )
            .trim_end(),
        )?;
    }
    Ok(Outcome::Done)
}

fn revoke(context: &Context, id: TokenId) -> anyhow::Result<Outcome> {
    let database = context.connect(MissingDatabase::Refuse)?;
    let revoked = database.store.revoke_token(id, &keys::actor())?;
    let how = if revoked { "is revoked" } else { "was revoked already" };
    output::print_line(&format!("token {id} {how}"))?;
    Ok(Outcome::Done)
}

/// A token as `token list --json` shows it.
#[derive(serde::Serialize)]
struct TokenView<'a> {
    id: TokenId,
    name: &'a str,
    roles: &'a [Role],
    state: &'static str,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    last_used_at: Option<String>,
}

impl<'a> From<&'a Token> for TokenView<'a> {
    fn from(token: &'a Token) -> Self {
        let state = match (token.revoked_at, token.is_valid()) {
            (Some(_), _) => "revoked",
            (None, true) => "valid",
            (None, false) => "expired",
        };
        TokenView {
            id: token.id,
            name: &token.name,
            roles: &token.roles,
            state,
            created_at: token.created_at.to_string(),
            expires_at: token.expires_at.map(|at| at.to_string()),
            revoked_at: token.revoked_at.map(|at| at.to_string()),
            last_used_at: token.last_used_at.map(|at| at.to_string()),
        }
    }
}
