//! Where spans are sent: a URL that may hold a password, and never shows it.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::database_url::has_plausible_port;

/// `http://USER:PASSWORD@HOST:PORT/PATH?NAME=VALUE` (RFC 3986, section 3), all but the host left out at
/// will. Shown, logged or serialized, it tells no password, no user that stands without one, since that
/// may be a token, and no value of a parameter.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(String);

impl EndpointUrl {
    /// The whole URL, for who sends to it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EndpointUrl {
    type Err = EndpointUrlError;

    fn from_str(url: &str) -> Result<Self, EndpointUrlError> {
        let is_whole = Parts::of(url).is_some_and(|parts| {
            let outside = [parts.host, parts.path, parts.parameters.unwrap_or("")];
            !parts.host.is_empty()
                && !outside.iter().any(|part| part.contains('@'))
                && has_plausible_port(parts.host)
        });
        if is_whole && !url.contains(|c: char| c == '#' || c.is_control() || c.is_whitespace()) {
            Ok(EndpointUrl(url.to_owned()))
        } else {
            Err(EndpointUrlError)
        }
    }
}

impl fmt::Display for EndpointUrl {
    /// The URL with `***` for what may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Parts { user_info, host, path, parameters }) = Parts::of(&self.0) else {
            return f.write_str("***");
        };
        f.write_str(SCHEME)?;
        match user_info.map(|user_info| user_info.split_once(':')) {
            Some(Some((user, _))) => write!(f, "{user}:***@")?,
            Some(None) => f.write_str("***@")?,
            None => {}
        }
        write!(f, "{host}{path}")?;
        for (index, parameter) in parameters.into_iter().flat_map(|all| all.split('&')).enumerate()
        {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            match parameter.split_once('=') {
                Some((name, _)) => write!(f, "{name}=***")?,
                None => f.write_str("***")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({self})")
    }
}

impl Serialize for EndpointUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Url;

        impl Visitor<'_> for Url {
            type Value = EndpointUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a URL such as {EXAMPLE}")
            }

            fn visit_str<E: de::Error>(self, url: &str) -> Result<EndpointUrl, E> {
                url.parse().map_err(E::custom)
            }
        }

        from.deserialize_str(Url)
    }
}

/// A text is no URL of an endpoint. It is not quoted, since it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no URL such as {EXAMPLE}; in a user's name or password write %40 for `@`, %3A for `:`, %2F for \
     `/`, %3F for `?`"
)]
pub struct EndpointUrlError;

const SCHEME: &str = "http://";
const EXAMPLE: &str = "http://localhost:4318/v1/traces";

struct Parts<'a> {
    user_info: Option<&'a str>,
    /// With its port.
    host: &'a str,
    /// From its slash on.
    path: &'a str,
    parameters: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let rest = url.strip_prefix(SCHEME)?;
        let (rest, parameters) = match rest.split_once('?') {
            Some((rest, parameters)) => (rest, Some(parameters)),
            None => (rest, None),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user_info, host) = match authority.split_once('@') {
            Some((user_info, host)) => (Some(user_info), host),
            None => (None, authority),
        };
        Some(Parts { user_info, host, path, parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_keeps_its_url_and_shows_nothing_that_may_be_secret() {
        for (url, shown) in [
            ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318"),
            ("http://user:hunter2@host/v1/traces", "http://user:***@host/v1/traces"),
            ("http://user:hun:ter2@host", "http://user:***@host"),
            ("http://:hunter2@host/", "http://:***@host/"),
            ("http://hunter2@host/", "http://***@host/"),
            ("http://host/v1?key=hunter2&hunter2", "http://host/v1?key=***&***"),
        ] {
            let parsed: EndpointUrl = url.parse().unwrap();
            assert_eq!(parsed.as_str(), url);
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(format!("{parsed:?}"), format!("EndpointUrl({shown})"));
        }
    }

    #[test]
    fn a_url_whose_password_could_not_be_told_from_the_rest_is_refused_and_not_quoted() {
        for url in [
            "",
            "localhost:4318",
            "https://user:hunter2@host/",
            "http://",
            "http://user:hunter2@",
            "http://user:hunt@er2@host/",
            "http://user:hunt/er2@host/",
            "http://user:hunt?er2@host/",
            "http://user:hunt#er2@host/",
            "http://user:hunter2/",
            "http://user:hunter2@host/ path",
            "http://user:hunter2@host/\r",
        ] {
            assert_eq!(url.parse::<EndpointUrl>(), Err(EndpointUrlError), "{url}");
        }
        assert!(!EndpointUrlError.to_string().contains("hunter2"));
        assert!(EndpointUrlError.to_string().contains("%40 for `@`"));
    }
}
