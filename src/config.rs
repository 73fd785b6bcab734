//! The configuration: every key with its type, its range and its default, and how it is loaded.
//!
//! A value that is out of range never gets past [`Config::load`]. What each key means to an
//! operator stands in `chancery.example.toml`; a test keeps the two in step.

mod database_url;
mod endpoint_url;
mod error;
mod load;
mod rings;
mod secret_source;
mod value;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::database_url::{DatabaseUrl, DatabaseUrlError};
pub use self::endpoint_url::{EndpointUrl, EndpointUrlError};
pub use self::error::{ConfigError, Origin};
pub use self::load::{DEFAULT_FILE, Key, Loaded, Overrides, process_environment};
pub use self::rings::{RingBatchSizes, RingNames, is_ring_name};
pub use self::secret_source::{NoSecretSource, SecretSource};
pub use self::value::Auto;
use crate::types::BatchSize;

/// Everything a process may be told from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the records are.
    pub database: DatabaseConfig,
    /// How they are signed.
    pub signing: SigningConfig,
    /// How long a checkout holds, and how often a batch may fail.
    pub lease: LeaseConfig,
    /// How private keys are unsealed.
    pub keys: KeysConfig,
    /// Where hardware keys are.
    pub pkcs11: Pkcs11Config,
    /// How they are guarded in memory.
    pub memory: MemoryConfig,
    /// The endpoints.
    pub http: HttpConfig,
    /// This process among others.
    pub node: NodeConfig,
    /// What is logged, and in which form.
    pub log: LogConfig,
    /// Where spans are sent.
    pub telemetry: TelemetryConfig,
}

/// `[database]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// Which database.
    pub url: DatabaseUrl,
    /// Seconds to wait for the database at start, 0 to 86,400.
    #[serde(deserialize_with = "value::whole::<0, 86_400, _, _>")]
    pub wait_s: u32,
    /// Connections of this process, 1 to 1,000.
    #[serde(deserialize_with = "value::whole::<1, 1_000, _, _>")]
    pub pool_size: u32,
    /// The PostgreSQL role that `migrate` grants the runtime rights to.
    #[serde(deserialize_with = "value::optional_text")]
    pub runtime_role: Option<String>,
}

impl DatabaseConfig {
    /// How long to wait for the database at start.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_s.into())
    }
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        DatabaseConfig { url: DatabaseUrl::default(), wait_s: 60, pool_size: 8, runtime_role: None }
    }
}

/// `[signing]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SigningConfig {
    /// The rings that are signed and served; commands on one ring are about it.
    #[serde(deserialize_with = "rings::names")]
    pub ring: RingNames,
    /// Records in a full batch, 1 to 1,000,000.
    #[serde(deserialize_with = "value::whole::<1, 1_000_000, _, _>")]
    pub batch_size: BatchSize,
    /// Records in a full batch of rings that have a size of their own.
    #[serde(deserialize_with = "rings::batch_sizes")]
    pub ring_batch_sizes: RingBatchSizes,
    /// Signer threads, 1 to 1,024.
    #[serde(deserialize_with = "value::auto::<1, 1_024, _, _>")]
    pub signers: Auto<usize>,
    /// Threads that load payloads, 1 to 256.
    #[serde(deserialize_with = "value::auto::<1, 256, _, _>")]
    pub loaders: Auto<usize>,
    /// Threads that store signatures, 1 to 16.
    #[serde(deserialize_with = "value::whole::<1, 16, _, _>")]
    pub writers: usize,
    /// Which implementation computes the signatures.
    #[serde(deserialize_with = "value::engine")]
    pub engine: EngineName,
    /// Batches claimed and not yet stored, 1 to 100,000.
    #[serde(deserialize_with = "value::auto::<1, 100_000, _, _>")]
    pub max_in_flight: Auto<usize>,
    /// Payload bytes in memory at once, at least 1 MiB.
    #[serde(deserialize_with = "value::whole::<1_048_576, { value::NO_MOST }, _, _>")]
    pub max_in_flight_bytes: u64,
    /// Payload bytes loaded and signed at a time, 64 KiB to 1 GiB.
    #[serde(deserialize_with = "value::whole::<65_536, 1_073_741_824, _, _>")]
    pub slice_bytes: u64,
    /// How signatures are verified before they are stored.
    #[serde(deserialize_with = "value::verify_before_store")]
    pub verify_before_store: VerifyBeforeStore,
}

impl SigningConfig {
    /// Records in a full batch of that ring.
    #[must_use]
    pub fn batch_size_of(&self, ring: &str) -> BatchSize {
        self.ring_batch_sizes.of(ring).unwrap_or(self.batch_size)
    }
}

impl Default for SigningConfig {
    fn default() -> Self {
        SigningConfig {
            ring: RingNames::default(),
            batch_size: BatchSize(const { NonZeroU32::new(500).unwrap() }),
            ring_batch_sizes: RingBatchSizes::default(),
            signers: Auto::Auto,
            loaders: Auto::Auto,
            writers: 1,
            engine: EngineName::AwsLc,
            max_in_flight: Auto::Auto,
            max_in_flight_bytes: 64 * 1024 * 1024,
            slice_bytes: 8 * 1024 * 1024,
            verify_before_store: VerifyBeforeStore::Off,
        }
    }
}

/// `[lease]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// Seconds a checkout holds without renewal, 1 to 3,600.
    #[serde(deserialize_with = "value::whole::<1, 3_600, _, _>")]
    pub duration_s: u32,
    /// Failures and reclaims of a batch before it is quarantined, 1 to 1,000.
    #[serde(deserialize_with = "value::whole::<1, 1_000, _, _>")]
    pub max_attempts: u32,
}

impl LeaseConfig {
    /// How long a checkout holds without renewal.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.duration_s.into())
    }
}

impl Default for LeaseConfig {
    fn default() -> Self {
        LeaseConfig { duration_s: 15, max_attempts: 5 }
    }
}

/// `[keys]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// The file that holds the key-encryption key.
    #[serde(deserialize_with = "value::optional_path")]
    pub kek_file: Option<PathBuf>,
    /// Where the key-encryption keys are, if not in [`KeysConfig::kek_file`]: the first seals, any
    /// opens.
    #[serde(deserialize_with = "value::secret_sources", skip_serializing_if = "Vec::is_empty")]
    pub kek_sources: Vec<SecretSource>,
    /// Where the passphrase of encrypted KEKs is.
    #[serde(deserialize_with = "value::optional_secret_source")]
    pub kek_passphrase: Option<SecretSource>,
    /// After how many signatures a key is retired and replaced, 1 to 2^62; `None` for never.
    #[serde(deserialize_with = "value::optional_whole::<1, { 1 << 62 }, _, _>")]
    pub retire_after_signatures: Option<u64>,
    /// After how many days a key is retired and replaced, 1 to 36,500; `None` for never.
    #[serde(deserialize_with = "value::optional_whole::<1, 36_500, _, _>")]
    pub retire_after_days: Option<u32>,
}

impl KeysConfig {
    /// How old a key may get before it is retired, in seconds' resolution; `None` for any age.
    #[must_use]
    pub fn retire_after(&self) -> Option<Duration> {
        self.retire_after_days.map(|days| Duration::from_secs(u64::from(days) * 86_400))
    }
}

/// `[pkcs11]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pkcs11Config {
    /// The module of the token: a shared library.
    #[serde(deserialize_with = "value::optional_path")]
    pub module: Option<PathBuf>,
    /// The token's label.
    #[serde(deserialize_with = "value::optional_text")]
    pub token_label: Option<String>,
    /// The file that holds the user's PIN, of mode 0600.
    #[serde(deserialize_with = "value::optional_path")]
    pub pin_file: Option<PathBuf>,
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Whether memory is kept from being swapped out.
    #[serde(deserialize_with = "value::lock_memory")]
    pub lock: LockMemory,
    /// Whether a crash may leave a core file, and a debugger may be attached.
    pub core_dumps: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { lock: LockMemory::Auto, core_dumps: false }
    }
}

/// Whether memory is kept from being swapped out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMemory {
    /// Where the limits allow it.
    Auto,
    /// Or the program does not start.
    Required,
    /// No.
    Off,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Where the endpoints listen; port 0 takes any free one.
    #[serde(deserialize_with = "value::socket_address")]
    pub bind: SocketAddr,
    /// The certificate chain in PEM, the server's own first; with it the endpoints speak TLS.
    #[serde(deserialize_with = "value::optional_path")]
    pub tls_cert_file: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[serde(deserialize_with = "value::optional_path")]
    pub tls_key_file: Option<PathBuf>,
    /// The certificates in PEM of those who may issue clients' certificates; with them a client needs
    /// one, beside its token.
    #[serde(deserialize_with = "value::optional_path")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Whether another address than loopback may be listened on without TLS.
    pub allow_plain_http: bool,
    /// Whether `/metrics` needs no token.
    pub public_metrics: bool,
    /// Threads that answer, 1 to 64.
    #[serde(deserialize_with = "value::whole::<1, 64, _, _>")]
    pub workers: usize,
    /// Connections at once, 16 to 1,000,000.
    #[serde(deserialize_with = "value::whole::<16, 1_000_000, _, _>")]
    pub max_connections: usize,
    /// The largest body of a request, and of a line of one that streams, 1 KiB to 1 GiB.
    #[serde(deserialize_with = "value::whole::<1_024, 1_073_741_824, _, _>")]
    pub max_body_bytes: usize,
    /// Seconds for a request's head, and for a body that does not go on, 1 to 3,600.
    #[serde(deserialize_with = "value::whole::<1, 3_600, _, _>")]
    pub request_timeout_s: u32,
    /// Requests a second of each token, or of each address without one; 0 for no limit.
    #[serde(deserialize_with = "value::whole::<0, 1_000_000, _, _>")]
    pub requests_per_s: u32,
}

impl HttpConfig {
    /// How long a request's head may take, and a body may stand still.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s.into())
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            allow_plain_http: false,
            public_metrics: false,
            workers: 1,
            max_connections: 2048,
            max_body_bytes: 16 * 1024 * 1024,
            request_timeout_s: 30,
            requests_per_s: 10_000,
        }
    }
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where spans are sent, as OTLP over HTTP.
    pub otlp_endpoint: Option<EndpointUrl>,
    /// The service's name among them.
    #[serde(deserialize_with = "value::text")]
    pub service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig { otlp_endpoint: None, service_name: "chancery".to_owned() }
    }
}

/// `[node]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name in the database and in logs, if it was given one; else the host's name and
    /// the process id.
    #[serde(deserialize_with = "value::optional_text")]
    pub name: Option<String>,
}

impl NodeConfig {
    /// The host's name, or else `unnamed`.
    #[must_use]
    pub fn host(&self) -> String {
        let host = hostname::get().ok().map(|host| host.to_string_lossy().into_owned());
        host.unwrap_or_else(|| "unnamed".to_owned())
    }

    /// The configured name, or else the host's with this process's id.
    #[must_use]
    pub fn name_or_default(&self) -> String {
        let default = || format!("{}-{}", self.host(), std::process::id());
        self.name.clone().unwrap_or_else(default)
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How a line looks.
    #[serde(deserialize_with = "value::log_format")]
    pub format: LogFormat,
    /// A level, or directives for `tracing_subscriber::EnvFilter`.
    #[serde(deserialize_with = "value::log_filter")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { format: LogFormat::Pretty, level: "info".to_owned() }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// How signatures are verified before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyBeforeStore {
    /// Not at all.
    Off,
    /// All that were made at a time together.
    Batch,
}

/// The name of an implementation of Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    /// AWS-LC, through the crate `aws-lc-rs`.
    AwsLc,
    /// The crate `ed25519-dalek`.
    Dalek,
}

impl EngineName {
    /// The word that stands in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EngineName::AwsLc => "aws_lc",
            EngineName::Dalek => "dalek",
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
