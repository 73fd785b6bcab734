//! The readers of single values: each says what it would have taken.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{EngineName, LockMemory, LogFormat, SecretSource, VerifyBeforeStore};
use crate::types::BatchSize;

/// A number, or the word `auto` for one that the machine suggests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// What fits the machine.
    #[default]
    Auto,
    /// What the user said.
    Exactly(T),
}

impl<T> Auto<T> {
    /// The user's number, or else `suggested`.
    #[must_use]
    pub fn resolve(self, suggested: T) -> T {
        match self {
            Auto::Auto => suggested,
            Auto::Exactly(number) => number,
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => serializer.serialize_str("auto"),
            Auto::Exactly(number) => number.serialize(serializer),
        }
    }
}

/// As `MOST`: no upper limit but that of TOML's integers.
pub(super) const NO_MOST: u64 = i64::MAX as u64;

/// A whole number from `LEAST` to `MOST`. TOML's integers are `i64`, so no other is read.
pub(super) fn whole<'de, const LEAST: u64, const MOST: u64, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromWhole,
    D: Deserializer<'de>,
{
    from.deserialize_any(Whole::<LEAST, MOST, T>(PhantomData))
}

/// As [`whole`], for a key without a default.
pub(super) fn optional_whole<'de, const LEAST: u64, const MOST: u64, T, D>(
    from: D,
) -> Result<Option<T>, D::Error>
where
    T: FromWhole,
    D: Deserializer<'de>,
{
    whole::<LEAST, MOST, T, D>(from).map(Some)
}

/// `auto`, or a whole number from `LEAST` to `MOST`.
pub(super) fn auto<'de, const LEAST: u64, const MOST: u64, T, D>(
    from: D,
) -> Result<Auto<T>, D::Error>
where
    T: FromWhole,
    D: Deserializer<'de>,
{
    from.deserialize_any(AutoOr(Whole::<LEAST, MOST, T>(PhantomData)))
}

/// A type that a whole number may fit.
pub(super) trait FromWhole: Sized {
    fn from_whole(number: u64) -> Option<Self>;
}

impl FromWhole for u32 {
    fn from_whole(number: u64) -> Option<Self> {
        number.try_into().ok()
    }
}

impl FromWhole for u64 {
    fn from_whole(number: u64) -> Option<Self> {
        Some(number)
    }
}

impl FromWhole for usize {
    fn from_whole(number: u64) -> Option<Self> {
        number.try_into().ok()
    }
}

impl FromWhole for BatchSize {
    fn from_whole(number: u64) -> Option<Self> {
        u32::from_whole(number)?.try_into().ok().map(BatchSize)
    }
}

struct Whole<const LEAST: u64, const MOST: u64, T>(PhantomData<T>);

impl<const LEAST: u64, const MOST: u64, T: FromWhole> Whole<LEAST, MOST, T> {
    /// `number`, unless it is out of range; the error says what was `expected` instead.
    fn read<E: de::Error>(number: u64, expected: &dyn de::Expected) -> Result<T, E> {
        let in_range = (LEAST..=MOST).contains(&number);
        let fitting = in_range.then(|| T::from_whole(number)).flatten();
        fitting.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), expected))
    }
}

impl<const LEAST: u64, const MOST: u64, T: FromWhole> Visitor<'_> for Whole<LEAST, MOST, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if MOST == NO_MOST {
            write!(f, "a whole number of at least {LEAST}")
        } else {
            write!(f, "a whole number from {LEAST} to {MOST}")
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Self::read(not_negative(number, &self)?, &self)
    }
}

struct AutoOr<const LEAST: u64, const MOST: u64, T>(Whole<LEAST, MOST, T>);

impl<const LEAST: u64, const MOST: u64, T: FromWhole> Visitor<'_> for AutoOr<LEAST, MOST, T> {
    type Value = Auto<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\" or ")?;
        self.0.expecting(f)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Auto<T>, E> {
        match word {
            "auto" => Ok(Auto::Auto),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Auto<T>, E> {
        let number = not_negative(number, &self)?;
        Whole::<LEAST, MOST, T>::read(number, &self).map(Auto::Exactly)
    }
}

fn not_negative<E: de::Error>(number: i64, expected: &dyn de::Expected) -> Result<u64, E> {
    u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), expected))
}

/// A text that is neither blank nor has control characters (a stray carriage return, say).
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    checked(from, "a text that is not blank, without control characters", |text| {
        is_plain(text).then(|| text.to_owned())
    })
}

/// As [`text`], for a key without a default.
pub(super) fn optional_text<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    text(from).map(Some)
}

/// A path that is neither blank nor has control characters, for a key without a default.
pub(super) fn optional_path<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<PathBuf>, D::Error> {
    checked(from, "a path that is not blank, without control characters", |text| {
        is_plain(text).then(|| Some(PathBuf::from(text)))
    })
}

/// Where a secret comes from, for a key without a default.
pub(super) fn optional_secret_source<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<SecretSource>, D::Error> {
    checked(from, SECRET_SOURCE, |text| text.parse().ok().map(Some))
}

/// Where secrets come from: a list of texts, or one text with a `;` between each two.
pub(super) fn secret_sources<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<SecretSource>, D::Error> {
    from.deserialize_any(SecretSources)
}

const SECRET_SOURCE: &str =
    "file:PATH, credential:NAME, env:VARIABLE or command:PROGRAM ARGUMENT ...";

struct SecretSources;

impl<'de> Visitor<'de> for SecretSources {
    type Value = Vec<SecretSource>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SECRET_SOURCE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let read =
            |part: &str| part.parse().map_err(|_| E::invalid_value(Unexpected::Str(part), &self));
        text.split(';').map(read).collect()
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut sources = Vec::new();
        while let Some(text) = items.next_element::<String>()? {
            let source = text
                .parse()
                .map_err(|_| de::Error::invalid_value(Unexpected::Str(&text), &self))?;
            sources.push(source);
        }
        if sources.is_empty() {
            return Err(de::Error::invalid_length(0, &self));
        }
        Ok(sources)
    }
}

/// An IP address with a port.
pub(super) fn socket_address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    checked(from, "an IP address with a port, such as 127.0.0.1:8080 or [::1]:8080", |text| {
        text.parse().ok()
    })
}

/// How a log line looks.
pub(super) fn log_format<'de, D: Deserializer<'de>>(from: D) -> Result<LogFormat, D::Error> {
    checked(from, "\"pretty\" or \"json\"", |word| match word {
        "pretty" => Some(LogFormat::Pretty),
        "json" => Some(LogFormat::Json),
        _ => None,
    })
}

/// An implementation of Ed25519.
pub(super) fn engine<'de, D: Deserializer<'de>>(from: D) -> Result<EngineName, D::Error> {
    checked(from, "\"aws_lc\" or \"dalek\"", |word| match word {
        "aws_lc" => Some(EngineName::AwsLc),
        "dalek" => Some(EngineName::Dalek),
        _ => None,
    })
}

/// How signatures are verified before they are stored.
pub(super) fn verify_before_store<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<VerifyBeforeStore, D::Error> {
    checked(from, "\"off\" or \"batch\"", |word| match word {
        "off" => Some(VerifyBeforeStore::Off),
        "batch" => Some(VerifyBeforeStore::Batch),
        _ => None,
    })
}

/// Whether memory is kept from being swapped out.
pub(super) fn lock_memory<'de, D: Deserializer<'de>>(from: D) -> Result<LockMemory, D::Error> {
    checked(from, "\"auto\", \"required\" or \"off\"", |word| match word {
        "auto" => Some(LockMemory::Auto),
        "required" => Some(LockMemory::Required),
        "off" => Some(LockMemory::Off),
        _ => None,
    })
}

/// Directives for `EnvFilter`.
pub(super) fn log_filter<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let expected =
        "off, error, warn, info, debug or trace, or directives such as info,chancery::db=debug";
    checked(from, expected, |text| {
        // EnvFilter takes a word alone, `inof` say, as the name of a target and logs nothing else.
        let is_directive = |part: &str| {
            part.contains(['=', '[', ']'])
                || (!part.trim().is_empty() && part.trim().parse::<LevelFilter>().is_ok())
        };
        let is_filter =
            is_plain(text) && text.split(',').all(is_directive) && EnvFilter::try_new(text).is_ok();
        is_filter.then(|| text.to_owned())
    })
}

/// Reads a string by `read`, whose `None` means that it is not what was `expected`.
pub(super) fn checked<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    from.deserialize_str(Checked { expected, read })
}

struct Checked<R> {
    expected: &'static str,
    read: R,
}

impl<R: Fn(&str) -> Option<T>, T> Visitor<'_> for Checked<R> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

pub(super) fn is_plain(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_resolves_to_what_is_suggested_and_a_number_to_itself() {
        assert_eq!(Auto::Auto.resolve(7), 7);
        assert_eq!(Auto::Exactly(3).resolve(7), 3);
    }

    #[test]
    fn a_number_that_its_type_cannot_hold_is_refused_and_not_cut() {
        let too_big = toml::Value::Integer(1 << 32);
        let read = whole::<0, NO_MOST, u32, _>(too_big);
        assert_eq!(
            read.unwrap_err().message(),
            "invalid value: integer `4294967296`, expected a whole number of at least 0"
        );
    }

    #[test]
    fn a_log_filter_is_a_level_or_directives_but_not_a_word_alone() {
        let read = |text: &str| log_filter(toml::Value::String(text.to_owned()));
        for good in ["info", "TRACE", "warn,chancery::db=debug", "info,[batch{ring=a}]=trace"] {
            assert_eq!(read(good).as_deref(), Ok(good));
        }
        for bad in ["", "inof", "info\n", "info,", "chancery=loud", "info,chancery"] {
            assert!(read(bad).is_err(), "{bad:?} was taken");
        }
    }
}
