//! Where the records are: the URL's scheme picks the kind of database.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A database, by its URL. Shown, logged or serialized, it never tells a password.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// `sqlite://PATH`: a file, absolute or seen from the current folder.
    Sqlite {
        /// The file, exactly as written: nothing in it is percent-decoded.
        path: PathBuf,
    },
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or the same with `postgresql://`, by
    /// PostgreSQL's documentation, section "Connection URIs" of libpq.
    Postgres {
        /// The whole URL, password included, as libpq takes it.
        url: String,
    },
}

impl Default for DatabaseUrl {
    /// `sqlite://chancery.db`
    fn default() -> Self {
        DatabaseUrl::Sqlite { path: PathBuf::from("chancery.db") }
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(url: &str) -> Result<Self, DatabaseUrlError> {
        if url.contains(char::is_control) {
            return Err(DatabaseUrlError::ControlCharacter);
        }
        match url.split_once("://") {
            Some(("sqlite", path)) => sqlite(path),
            Some(("postgres" | "postgresql", rest)) => {
                check_postgres(rest)?;
                Ok(DatabaseUrl::Postgres { url: url.to_owned() })
            }
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
                Err(DatabaseUrlError::UnknownScheme { scheme: scheme.to_owned() })
            }
            _ => Err(DatabaseUrlError::NoScheme),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    /// The URL with `***` for every password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Sqlite { path } => write!(f, "sqlite://{}", path.display()),
            DatabaseUrl::Postgres { url } => f.write_str(&redacted(url)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Url;

        impl Visitor<'_> for Url {
            type Value = DatabaseUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a database URL: {ALLOWED}")
            }

            fn visit_str<E: de::Error>(self, url: &str) -> Result<DatabaseUrl, E> {
                url.parse().map_err(E::custom)
            }
        }

        from.deserialize_str(Url)
    }
}

/// Why a text is no database URL. No message quotes more of it than the scheme, since it may hold
/// a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseUrlError {
    /// There is no `://`.
    #[error("a database URL starts with its scheme; allowed are {ALLOWED}")]
    NoScheme,
    /// No such kind of database is known.
    #[error("unknown scheme `{scheme}://`; allowed are {ALLOWED}")]
    UnknownScheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// Most likely a line end that was copied with the URL.
    #[error("the database URL has a control character in it; allowed are {ALLOWED}")]
    ControlCharacter,
    /// `sqlite://` with nothing behind it.
    #[error("the SQLite URL has no path; write sqlite://chancery.db or sqlite:///abs/path.db")]
    NoPath,
    /// A database in memory, which connections do not share, or a parameter.
    #[error(
        "a SQLite URL names a plain file, without parameters and not in memory; write \
         sqlite://chancery.db or sqlite:///abs/path.db"
    )]
    NotAPlainFile,
    /// libpq would fall back on the user's name.
    #[error("the PostgreSQL URL names no database; write postgres://USER@HOST/DATABASE")]
    NoDatabase,
    /// libpq would misread it, and a password could not be told from the rest.
    #[error(
        "the PostgreSQL URL cannot be taken apart; write postgres://USER:PASSWORD@HOST:PORT/\
         DATABASE?KEY=VALUE, and in each part %40 for `@`, %3A for `:`, %2F for `/`, %3F for `?`"
    )]
    Malformed,
}

const ALLOWED: &str =
    "sqlite://PATH, postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE";

/// What follows the scheme of a PostgreSQL URL.
struct Parts<'a> {
    user_info: Option<&'a str>,
    hosts: &'a str,
    database: &'a str,
    parameters: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (rest, parameters) = match rest.split_once('?') {
            Some((rest, parameters)) => (rest, Some(parameters)),
            None => (rest, None),
        };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, hosts) = match authority.split_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts),
            None => (None, authority),
        };
        Parts { user_info, hosts, database, parameters }
    }

    fn parameters(&self) -> impl Iterator<Item = &'a str> {
        self.parameters.into_iter().flat_map(|all| all.split('&'))
    }
}

fn sqlite(path: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
    if path.trim().is_empty() {
        return Err(DatabaseUrlError::NoPath);
    }
    if path == ":memory:" || path.starts_with("file:") || path.contains('?') {
        return Err(DatabaseUrlError::NotAPlainFile);
    }
    Ok(DatabaseUrl::Sqlite { path: PathBuf::from(path) })
}

/// Refuses what would make [`redacted`] miss a password: a raw `@`, `/` or `?` inside of one.
fn check_postgres(rest: &str) -> Result<(), DatabaseUrlError> {
    let parts = Parts::of(rest);
    let behind_the_user = [parts.hosts, parts.database, parts.parameters.unwrap_or("")];
    let is_whole = !behind_the_user.iter().any(|part| part.contains('@'))
        && parts.hosts.split(',').all(has_plausible_port)
        && parts.parameters().all(|parameter| parameter.contains('='));
    if !is_whole {
        return Err(DatabaseUrlError::Malformed);
    }
    let by_parameter = |parameter: &str| {
        parameter.strip_prefix("dbname=").is_some_and(|database| !database.is_empty())
    };
    if parts.database.is_empty() && !parts.parameters().any(by_parameter) {
        return Err(DatabaseUrlError::NoDatabase);
    }
    Ok(())
}

/// Whether a host of the list ends in a number, where it has a port at all.
pub(super) fn has_plausible_port(host: &str) -> bool {
    let behind_address = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((_, behind)) => behind,
        None => host,
    };
    match behind_address.split_once(':') {
        Some((_, port)) => port.bytes().all(|byte| byte.is_ascii_digit()),
        None => true,
    }
}

fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let parts = Parts::of(rest);
    let mut shown = format!("{scheme}://");
    if let Some(user_info) = parts.user_info {
        match user_info.split_once(':') {
            Some((user, _)) => shown.push_str(&format!("{user}:***@")),
            None => shown.push_str(&format!("{user_info}@")),
        }
    }
    shown.push_str(parts.hosts);
    if rest.contains('/') {
        shown.push('/');
    }
    shown.push_str(parts.database);
    let parameters: Vec<String> = parts.parameters().map(redacted_parameter).collect();
    if parts.parameters.is_some() {
        shown.push('?');
    }
    shown.push_str(&parameters.join("&"));
    shown
}

/// Hides the value of `password`, `sslpassword` and their like. libpq also percent-decodes the
/// names of parameters, so one that is encoded counts as secret.
fn redacted_parameter(parameter: &str) -> String {
    let (name, _) = parameter.split_once('=').unwrap_or((parameter, ""));
    let lower = name.to_ascii_lowercase();
    if lower.contains("password") || lower.contains("secret") || lower.contains('%') {
        format!("{name}=***")
    } else {
        parameter.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_url_names_a_file_relative_or_absolute() {
        for (url, path) in [
            ("sqlite://chancery.db", "chancery.db"),
            ("sqlite://./some folder/a%20b.db", "./some folder/a%20b.db"),
            ("sqlite:///abs/path.db", "/abs/path.db"),
        ] {
            let parsed: DatabaseUrl = url.parse().unwrap();
            assert_eq!(parsed, DatabaseUrl::Sqlite { path: PathBuf::from(path) });
            assert_eq!(parsed.to_string(), url);
        }
    }

    #[test]
    fn a_postgres_url_is_kept_whole_and_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://h/db", "postgres://h/db"),
            ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db"),
            ("postgres://u:hunter2@h/db", "postgres://u:***@h/db"),
            ("postgres://u:hunter2:x@[::1]:5432/db", "postgres://u:***@[::1]:5432/db"),
            ("postgres://u:hunter2@a:1,b:2/db?a=b", "postgres://u:***@a:1,b:2/db?a=b"),
            ("postgres://h/db?password=hunter2&a=b", "postgres://h/db?password=***&a=b"),
            ("postgres://h/db?a=b&sslpassword=hunter2", "postgres://h/db?a=b&sslpassword=***"),
            ("postgres://h/db?p%61ssword=hunter2", "postgres://h/db?p%61ssword=***"),
            ("postgres:///db?host=/run/pg", "postgres:///db?host=/run/pg"),
            ("postgres://?dbname=db&user=u", "postgres://?dbname=db&user=u"),
        ] {
            let parsed: DatabaseUrl = url.parse().unwrap();
            assert_eq!(parsed, DatabaseUrl::Postgres { url: url.to_owned() });
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(format!("{parsed:?}"), format!("DatabaseUrl({shown})"));
        }
    }

    #[test]
    fn a_url_that_leads_nowhere_is_refused_with_what_is_allowed() {
        let allowed =
            "sqlite://PATH, postgres://USER@HOST/DATABASE and postgresql://USER@HOST/DATABASE";
        let no_scheme = format!("a database URL starts with its scheme; allowed are {allowed}");
        let control =
            format!("the database URL has a control character in it; allowed are {allowed}");
        let mysql = format!("unknown scheme `mysql://`; allowed are {allowed}");
        let upper = format!("unknown scheme `Postgres://`; allowed are {allowed}");
        let no_path =
            "the SQLite URL has no path; write sqlite://chancery.db or sqlite:///abs/path.db";
        let not_plain = "a SQLite URL names a plain file, without parameters and not in memory; \
                         write sqlite://chancery.db or sqlite:///abs/path.db";
        let no_database =
            "the PostgreSQL URL names no database; write postgres://USER@HOST/DATABASE";
        for (url, message) in [
            ("", no_scheme.as_str()),
            ("chancery.db", &no_scheme),
            ("sqlite:chancery.db", &no_scheme),
            ("u:hunter2@h://db", &no_scheme),
            ("sqlite://chancery.db\r", &control),
            ("mysql://u:hunter2@h/db", &mysql),
            ("Postgres://u:hunter2@h/db", &upper),
            ("sqlite://", no_path),
            ("sqlite:// ", no_path),
            ("sqlite://:memory:", not_plain),
            ("sqlite://file:a.db", not_plain),
            ("sqlite://a.db?mode=ro", not_plain),
            ("postgres://", no_database),
            ("postgres://u:hunter2@h", no_database),
            ("postgres://u:hunter2@h/", no_database),
            ("postgres://h/?dbname=", no_database),
        ] {
            let error = url.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(error.to_string(), message, "for {url:?}");
        }
    }

    #[test]
    fn a_password_with_a_raw_separator_is_refused_and_not_shown_in_part() {
        for url in [
            "postgres://u:hunt@er2@h/db",
            "postgres://u:hunt/er2@h/db",
            "postgres://u:hunt?er2@h/db",
            "postgres://u:12/hunter2?a=b@h/db",
            "postgres://u:hunter2/db",
            "postgres://h/db?hunter2",
        ] {
            let refused = url.parse::<DatabaseUrl>();
            assert_eq!(refused, Err(DatabaseUrlError::Malformed), "for {url}");
            let message = DatabaseUrlError::Malformed.to_string();
            assert!(message.contains("%40 for `@`"), "{message}");
        }
    }
}
