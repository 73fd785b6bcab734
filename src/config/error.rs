//! What can be wrong with a configuration, each with its place and with what would be right.

use std::path::PathBuf;
use std::{fmt, io};

use super::load::{KEYS, Key};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("{}: no such config file; name one that exists, or name none to run on defaults", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("{}: cannot read the config file: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// The place in the file.
        origin: Origin,
        /// What the parser says; it never quotes the file, which may hold a password.
        message: String,
    },
    /// A section or key that does not exist.
    #[error("{origin}: unknown {what}; {hint}")]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// The section or key, as it was written.
        what: String,
        /// The nearest known name, or the list of them.
        hint: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: {what}: {message}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The section or key it was meant for.
        what: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A place in the config file; line and column count from 1, columns in characters.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// An environment variable, by name.
    Variable(String),
    /// A flag on the command line, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What to say to someone who wrote the unknown section `section`.
pub(super) fn hint_for_section(section: &str) -> String {
    // A key that stands outside of any section arrives here too.
    if let Some(key) = KEYS.iter().find(|key| key.name == section) {
        return format!("did you mean `{key}`, the key `{}` in [{}]?", key.name, key.section);
    }
    let nearest = sections()
        .map(|known| (likeness(section, known), known))
        .filter(|(likeness, _)| *likeness >= LIKE)
        .max_by(|(left, _), (right, _)| left.total_cmp(right));
    match nearest {
        Some((_, known)) => format!("did you mean [{known}]?"),
        None => {
            let known: Vec<String> = sections().map(|known| format!("[{known}]")).collect();
            format!("known are {}", known.join(", "))
        }
    }
}

/// What to say to someone who wrote the unknown key `name` in `section`, which may be unknown
/// too; `spell` writes a key as it stands in that place.
pub(super) fn hint_for_key(section: &str, name: &str, spell: impl Fn(&Key) -> String) -> String {
    let nearest = KEYS
        .iter()
        .map(|key| (likeness(name, key.name), likeness(section, key.section), key))
        .filter(|(of_name, of_section, key)| {
            key.name == name || (*of_name >= LIKE && *of_section >= LIKE)
        })
        .max_by(|left, right| (left.0 + left.1).total_cmp(&(right.0 + right.1)));
    if let Some((_, _, key)) = nearest {
        return format!("did you mean {}?", spell(key));
    }
    let same_section = KEYS.iter().any(|key| key.section == section);
    let known: Vec<String> =
        KEYS.iter().filter(|key| !same_section || key.section == section).map(spell).collect();
    format!("known are {}", known.join(", "))
}

/// Names at least this alike are taken for typing errors of each other.
const LIKE: f64 = 0.6;

fn likeness(left: &str, right: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(left, right)
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.chunk_by(|left, right| left.section == right.section).map(|keys| keys[0].section)
}
