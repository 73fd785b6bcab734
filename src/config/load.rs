//! Loading in layers: flags over environment over file over default.
//!
//! One rule serves all layers. A single value is put into the table of what was set so far, and
//! the whole is read as a [`Config`]; it was right before, so what is wrong now is that value's
//! fault, and its place is known.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::{env, fs, io};

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::Config;
use super::error::{ConfigError, Origin, hint_for_key, hint_for_section};

/// The file that is read from the current folder, if it is there and no other is named.
pub const DEFAULT_FILE: &str = "chancery.toml";

impl Config {
    /// Loads the configuration: `overrides` over `env` over `file` over the defaults.
    ///
    /// Without a `file`, [`DEFAULT_FILE`] in the current folder is read if it is there. Of `env`
    /// (see [`process_environment`]) every variable `CHANCERY_SECTION__KEY` is read; one of that
    /// form that names no key is an error, and so is a key with a single underscore. Any other
    /// variable is passed over.
    ///
    /// # Errors
    /// The first mistake found, with its place and with what would be right.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Loaded, ConfigError> {
        load_from(Path::new(""), file, env, overrides)
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<Key, Origin>,
}

impl Loaded {
    /// The effective configuration as TOML, with a comment that names each value's origin. A
    /// password shows as `***`; a key that is not set and has no default stands in a comment.
    ///
    /// # Errors
    /// A value was put into [`Loaded::config`] by hand that TOML cannot express.
    pub fn render(&self) -> Result<String, toml::ser::Error> {
        let values = Table::try_from(&self.config)?;
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = key.section;
                // Writing to a string cannot fail, here and below.
                let _ = writeln!(text, "{gap}[{section}]");
            }
            let origin = self.origins.get(&key).unwrap_or(&Origin::Default);
            let _ = match values.get(key.section).and_then(|values| values.get(key.name)) {
                Some(value) => writeln!(text, "{} = {value}  # {origin}", key.name),
                None => writeln!(text, "# {} is not set  # {origin}", key.name),
            };
        }
        Ok(text)
    }
}

impl Loaded {
    /// The configuration that the text of a file is, without environment and flags; `path` names it in
    /// errors.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn from_text(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
        let mut layers = Layers::default();
        layers.add_file(path, text)?;
        Ok(layers.loaded)
    }
}

/// What the command line says, each value as it was written there; so it has no `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--database-url`
    pub database_url: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
    /// `--ring`
    pub ring: Option<String>,
    /// `--batch-size`
    pub batch_size: Option<String>,
    /// `--signers`
    pub signers: Option<String>,
}

impl Overrides {
    fn entries(&self) -> [(&'static str, Key, Option<&str>); 5] {
        [
            ("--database-url", Key::new("database", "url"), self.database_url.as_deref()),
            ("--log-format", Key::new("log", "format"), self.log_format.as_deref()),
            ("--ring", Key::new("signing", "ring"), self.ring.as_deref()),
            ("--batch-size", Key::new("signing", "batch_size"), self.batch_size.as_deref()),
            ("--signers", Key::new("signing", "signers"), self.signers.as_deref()),
        ]
    }
}

/// The environment of this process; bytes that are not UTF-8 arrive as U+FFFD.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

/// The name of a configuration value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its table in the file.
    pub section: &'static str,
    /// Its name in that table.
    pub name: &'static str,
}

impl Key {
    const fn new(section: &'static str, name: &'static str) -> Self {
        Key { section, name }
    }

    fn find(section: &str, name: &str) -> Option<Key> {
        KEYS.into_iter().find(|key| key.section == section && key.name == name)
    }

    /// Its environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}__{}", self.section, self.name).to_ascii_uppercase()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.section, self.name)
    }
}

/// Every key, in the order of the documentation; those of a section stand together.
pub(super) const KEYS: [Key; 43] = [
    Key::new("database", "url"),
    Key::new("database", "wait_s"),
    Key::new("database", "pool_size"),
    Key::new("database", "runtime_role"),
    Key::new("signing", "ring"),
    Key::new("signing", "batch_size"),
    Key::new("signing", "ring_batch_sizes"),
    Key::new("signing", "signers"),
    Key::new("signing", "loaders"),
    Key::new("signing", "writers"),
    Key::new("signing", "engine"),
    Key::new("signing", "max_in_flight"),
    Key::new("signing", "max_in_flight_bytes"),
    Key::new("signing", "slice_bytes"),
    Key::new("signing", "verify_before_store"),
    Key::new("lease", "duration_s"),
    Key::new("lease", "max_attempts"),
    Key::new("keys", "kek_file"),
    Key::new("keys", "kek_sources"),
    Key::new("keys", "kek_passphrase"),
    Key::new("keys", "retire_after_signatures"),
    Key::new("keys", "retire_after_days"),
    Key::new("pkcs11", "module"),
    Key::new("pkcs11", "token_label"),
    Key::new("pkcs11", "pin_file"),
    Key::new("memory", "lock"),
    Key::new("memory", "core_dumps"),
    Key::new("http", "bind"),
    Key::new("http", "tls_cert_file"),
    Key::new("http", "tls_key_file"),
    Key::new("http", "tls_client_ca_file"),
    Key::new("http", "allow_plain_http"),
    Key::new("http", "public_metrics"),
    Key::new("http", "workers"),
    Key::new("http", "max_connections"),
    Key::new("http", "max_body_bytes"),
    Key::new("http", "request_timeout_s"),
    Key::new("http", "requests_per_s"),
    Key::new("node", "name"),
    Key::new("log", "format"),
    Key::new("log", "level"),
    Key::new("telemetry", "otlp_endpoint"),
    Key::new("telemetry", "service_name"),
];

const PREFIX: &str = "CHANCERY_";

fn load_from(
    folder: &Path,
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::default();
    match file {
        Some(path) => match read(path)? {
            Some(text) => layers.add_file(path, &text)?,
            None => return Err(ConfigError::Missing { path: path.to_owned() }),
        },
        None => {
            let path = folder.join(DEFAULT_FILE);
            if let Some(text) = read(&path)? {
                layers.add_file(&path, &text)?;
            }
        }
    }
    for (variable, value) in env {
        layers.add_variable(&variable, &value)?;
    }
    for (flag, key, value) in overrides.entries() {
        if let Some(value) = value {
            layers.set_text(key, value, Origin::Flag(flag))?;
        }
    }
    Ok(layers.loaded)
}

/// The file's text, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
    }
}

#[derive(Default)]
struct Layers {
    /// What was set so far; it always reads as `loaded.config`.
    set: Table,
    loaded: Loaded,
}

impl Layers {
    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file = File { path, text };
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            origin: file.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        for (section, values) in in_written_order(document.into_inner()) {
            self.add_section(file, &section, values)?;
        }
        Ok(())
    }

    fn add_section(
        &mut self,
        file: File<'_>,
        section: &Name<'_>,
        values: Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let section_at = section.span().start;
        let section = section.get_ref().as_ref();
        if !KEYS.iter().any(|key| key.section == section) {
            return Err(ConfigError::Unknown {
                origin: file.origin(section_at),
                what: format!("section [{section}]"),
                hint: hint_for_section(section),
            });
        }
        let values_at = values.span().start;
        let DeValue::Table(values) = values.into_inner() else {
            return Err(ConfigError::Value {
                origin: file.origin(values_at),
                what: section.to_owned(),
                message: format!("a single value, expected a section: a line [{section}]"),
            });
        };
        for (name, value) in in_written_order(values) {
            let name_at = name.span().start;
            let name = name.get_ref().as_ref();
            let Some(key) = Key::find(section, name) else {
                return Err(ConfigError::Unknown {
                    origin: file.origin(name_at),
                    what: format!("key `{name}` in [{section}]"),
                    hint: hint_for_key(section, name, |key| format!("`{key}`")),
                });
            };
            let origin = file.origin(value.span().start);
            self.set(key, file.owned(value), origin)?;
        }
        Ok(())
    }

    fn add_variable(&mut self, variable: &str, value: &str) -> Result<(), ConfigError> {
        let Some(rest) = variable.strip_prefix(PREFIX) else { return Ok(()) };
        let origin = Origin::Variable(variable.to_owned());
        let Some((section, name)) = rest.split_once("__") else {
            let meant =
                KEYS.iter().map(Key::variable).find(|key| key.replace("__", "_") == variable);
            return match meant {
                Some(key) => Err(ConfigError::Unknown {
                    origin,
                    what: "configuration key".to_owned(),
                    hint: format!("did you mean {key}, with two underscores?"),
                }),
                None => Ok(()),
            };
        };
        match KEYS.into_iter().find(|key| key.variable() == variable) {
            Some(key) => self.set_text(key, value, origin),
            None => Err(ConfigError::Unknown {
                origin,
                what: "configuration key".to_owned(),
                hint: hint_for_key(
                    &section.to_ascii_lowercase(),
                    &name.to_ascii_lowercase(),
                    Key::variable,
                ),
            }),
        }
    }

    /// Sets what is written without TOML's quotes: as a number, say, if the key takes that, or
    /// else as a string.
    fn set_text(&mut self, key: Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let string = Value::String(text.to_owned());
        match text.trim().parse::<Value>() {
            Ok(scalar) if !scalar.is_table() && !scalar.is_array() => self
                .set(key, scalar, origin.clone())
                .or_else(|error| self.set(key, string, origin).map_err(|_| error)),
            _ => self.set(key, string, origin),
        }
    }

    fn set(&mut self, key: Key, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let mut set = self.set.clone();
        let section = set.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.name.to_owned(), value);
        }
        self.loaded.config = match set.clone().try_into() {
            Ok(config) => config,
            Err(error) => {
                let message = error.message().to_owned();
                return Err(ConfigError::Value { origin, what: key.to_string(), message });
            }
        };
        self.set = set;
        self.loaded.origins.insert(key, origin);
        Ok(())
    }
}

/// The file that is being read.
#[derive(Clone, Copy)]
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    /// The place of the byte `start`.
    fn origin(self, start: usize) -> Origin {
        let before = self.text.get(..start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Origin::File { path: self.path.to_owned(), line, column }
    }

    fn owned(self, value: Spanned<DeValue<'_>>) -> Value {
        let span = value.span();
        Value::deserialize(ValueDeserializer::from(value)).unwrap_or_else(|_| {
            // An integer beyond 64 bits: no key takes it, and the key's reader shall say so.
            let number = self.text.get(span).and_then(|number| number.parse().ok());
            Value::Float(number.unwrap_or(f64::INFINITY))
        })
    }
}

type Name<'a> = Spanned<Cow<'a, str>>;

/// The entries as the file has them, so that the first mistake is reported first.
fn in_written_order(table: DeTable<'_>) -> Vec<(Name<'_>, Spanned<DeValue<'_>>)> {
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

#[cfg(test)]
mod tests;
