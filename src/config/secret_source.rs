//! Where a secret comes from: a file, a credential of systemd's, a mounted secret, or a program.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Where a secret comes from. It never holds the secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// `file:PATH`: a file of this user, of mode 0600 or stricter.
    File(PathBuf),
    /// `credential:NAME`: a file in the folder that systemd names in `CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// `env:VARIABLE`: the file that the environment variable names, as secrets of Docker and
    /// Kubernetes are mounted.
    Variable(String),
    /// `command:PROGRAM ARGUMENT ...`: what a program prints. Words are parted by blanks; there is no
    /// shell.
    Command(Vec<String>),
}

/// A text is none of the forms of a [`SecretSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("file:PATH, credential:NAME, env:VARIABLE or command:PROGRAM ARGUMENT ...")]
pub struct NoSecretSource;

impl FromStr for SecretSource {
    type Err = NoSecretSource;

    fn from_str(text: &str) -> Result<Self, NoSecretSource> {
        let (kind, rest) = text.trim().split_once(':').ok_or(NoSecretSource)?;
        if rest.trim().is_empty() || text.contains(char::is_control) {
            return Err(NoSecretSource);
        }
        match kind {
            "file" => Ok(SecretSource::File(rest.into())),
            "credential" if is_name(rest) => Ok(SecretSource::Credential(rest.to_owned())),
            "env" if is_name(rest) => Ok(SecretSource::Variable(rest.to_owned())),
            "command" => {
                let words = rest.split_whitespace().map(str::to_owned).collect();
                Ok(SecretSource::Command(words))
            }
            _ => Err(NoSecretSource),
        }
    }
}

/// Of letters, digits, dots, dashes and underscores, and no way out of a folder.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.chars().all(fits) && !text.starts_with('.')
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::File(path) => write!(f, "file:{}", path.display()),
            SecretSource::Credential(name) => write!(f, "credential:{name}"),
            SecretSource::Variable(name) => write!(f, "env:{name}"),
            SecretSource::Command(words) => write!(f, "command:{}", words.join(" ")),
        }
    }
}

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back_as_it_is_written() {
        for text in [
            "file:/etc/chancery/kek",
            "file:relative, with a comma",
            "credential:chancery.kek",
            "env:CHANCERY_KEK_FILE",
            "command:/usr/bin/vault kv get -field=kek secret/chancery",
        ] {
            assert_eq!(text.parse::<SecretSource>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "/etc/chancery/kek",
            "file:",
            "file: ",
            "vault:kek",
            "credential:../kek",
            "credential:.",
            "credential:a/b",
            "env:A B",
            "command:  ",
            "file:a\nb",
        ] {
            assert_eq!(text.parse::<SecretSource>(), Err(NoSecretSource), "{text:?}");
        }
    }
}
