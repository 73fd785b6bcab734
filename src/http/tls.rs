//! TLS by rustls: the server's certificate and who may issue clients' certificates, read again when
//! their files change.
//!
//! Invariant: no error and no log line holds a byte of what the files hold.

mod clients;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, ServerConfig};

use self::clients::Clients;
use crate::config::HttpConfig;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

const CERT_KEY: &str = "tls_cert_file";
const KEY_KEY: &str = "tls_key_file";
const CLIENTS_KEY: &str = "tls_client_ca_file";

/// Why TLS cannot be spoken as it is configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// One of the pair is missing.
    #[error("http.{given} is set and http.{missing} is not: TLS needs both")]
    Half {
        /// The key that is set.
        given: &'static str,
        /// The key that is not.
        missing: &'static str,
    },
    /// Clients' certificates without TLS.
    #[error(
        "http.tls_client_ca_file is set, and TLS is not: set http.tls_cert_file and \
         http.tls_key_file as well"
    )]
    ClientsWithoutTls,
    /// A file cannot be read, or does not hold what it should.
    #[error("http.{key}: {path}: {problem}", path = .path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The private key is another's.
    #[error(
        "http.tls_key_file: {key_file} is not the private key of the first certificate in {cert_file} \
         (http.tls_cert_file): put the server's own certificate first, and beside it its own key",
        key_file = .key_file.display(), cert_file = .cert_file.display()
    )]
    Pair {
        /// The certificate's file.
        cert_file: PathBuf,
        /// The private key's file.
        key_file: PathBuf,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Library(#[source] Error),
}

/// What a server speaks TLS with.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) config: ServerConfig,
    pub(super) certificate: Arc<Certificate>,
}

/// The server's certificate, and whom it takes clients' certificates from, as their files have it.
#[derive(Debug)]
pub(super) struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    clients: Option<Arc<Clients>>,
    /// How the files were before they were read first.
    first: Stamps,
}

/// Reads what the configuration says of TLS; `None` if it says nothing. A change of the files is taken
/// in for as long as [`Certificate::follow`] runs.
///
/// # Errors
/// [`TlsError`], which names the key of the configuration.
pub(super) fn load(config: &HttpConfig) -> Result<Option<Tls>, TlsError> {
    let (cert_file, key_file) = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert_file), Some(key_file)) => (cert_file.clone(), key_file.clone()),
        (Some(_), None) => return Err(TlsError::Half { given: CERT_KEY, missing: KEY_KEY }),
        (None, Some(_)) => return Err(TlsError::Half { given: KEY_KEY, missing: CERT_KEY }),
        (None, None) if config.tls_client_ca_file.is_some() => {
            return Err(TlsError::ClientsWithoutTls);
        }
        (None, None) => return Ok(None),
    };
    let clients_file = config.tls_client_ca_file.as_deref();
    // Before they are read, so that no change falls between.
    let first = Stamps::of(&cert_file, &key_file, clients_file);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let current = ArcSwap::from_pointee(read_pair(&cert_file, &key_file, &provider)?);
    let clients = match clients_file {
        None => None,
        Some(file) => Some(Arc::new(Clients::read(file.to_owned(), Arc::clone(&provider))?)),
    };
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Library)?;
    let builder = match &clients {
        None => versions.with_no_client_auth(),
        Some(clients) => versions.with_client_cert_verifier(Arc::clone(clients) as Arc<_>),
    };
    let asks_clients = clients.is_some();
    let certificate =
        Arc::new(Certificate { cert_file, key_file, provider, current, clients, first });
    let resolver = Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>;
    let mut config = builder.with_cert_resolver(resolver);
    if asks_clients {
        // A resumed session would let a client in by a certificate that has expired since, or whose
        // issuer has been taken out of the file.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Some(Tls { config, certificate }))
}

fn read_pair(
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(CERT_KEY, cert_file)?;
    let key = read_key(key_file)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => {
            TlsError::Pair { cert_file: cert_file.to_owned(), key_file: key_file.to_owned() }
        }
        Error::InvalidCertificate(_) => file_error(CERT_KEY, cert_file, error),
        error => {
            let problem = format!("this private key cannot be used: {error}; make an ECDSA one");
            file_error(KEY_KEY, key_file, problem)
        }
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |problem: &dyn ToString| file_error(KEY_KEY, path, problem.to_string());
    let mut file = File::open(path).map_err(|error| wrong(&error))?;
    let mode = file.metadata().map_err(|error| wrong(&error))?.mode();
    // Its group may be one that manages certificates; everybody is nobody's group. A key that anybody
    // could have copied is none, and a warning is read by nobody until then.
    if mode & 0o007 != 0 {
        return Err(wrong(&"everybody may use this private key: `chmod o-rwx` it"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            wrong(&"there is no private key in PEM in it, or an encrypted one: decrypt it")
        }
        _ => wrong(&NOT_PEM),
    })
}

fn read_certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = fs::read(path).map_err(|error| file_error(key, path, error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(file_error(key, path, "there is no certificate in PEM in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(_) => Err(file_error(key, path, NOT_PEM)),
    }
}

/// In place of the parser's own words, which quote the file: of a private key whose line breaks were
/// lost, all of it.
const NOT_PEM: &str =
    "it is damaged, or not PEM (RFC 7468): its BEGIN and END lines must be whole lines";

fn file_error(key: &'static str, path: &Path, problem: impl ToString) -> TlsError {
    TlsError::File { key, path: path.to_owned(), problem: problem.to_string() }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// What tells that the files have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamps([Option<Stamp>; 3]);

/// Size and inode, and when it was written and, as by chmod, changed.
type Stamp = (u64, u64, (i64, i64), (i64, i64));

impl Stamps {
    fn of(cert_file: &Path, key_file: &Path, clients_file: Option<&Path>) -> Self {
        let stamp = |data: Metadata| {
            let written = (data.mtime(), data.mtime_nsec());
            (data.len(), data.ino(), written, (data.ctime(), data.ctime_nsec()))
        };
        let of = |path: &Path| fs::metadata(path).ok().map(stamp);
        Stamps([of(cert_file), of(key_file), clients_file.and_then(of)])
    }
}

/// What has been seen of the files.
struct Watch {
    seen: Stamps,
    /// Why what they hold is not in use, if it is not.
    refused: Option<String>,
}

impl Certificate {
    /// Looks at the files now and again, for ever, and takes what is new and whole. What is not leaves
    /// the one before in force, is tried again at each look, and is told once.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut watch = Watch { seen: self.first.clone(), refused: None };
        loop {
            tokio::time::sleep(LOOK).await;
            let certificate = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                let news = certificate.look(&mut watch);
                (watch, news)
            });
            let news;
            (watch, news) = match looked.await {
                Ok(looked) => looked,
                // Only at the end of the process is a look not finished.
                Err(error) => {
                    return tracing::error!(%error, "looks at no TLS certificate any more");
                }
            };
            match news {
                None => {}
                Some(Ok(())) => tracing::info!("took the TLS certificates that are new into use"),
                Some(Err(error)) => {
                    tracing::error!(%error, "keeps the TLS certificates that it has: new ones are bad");
                }
            }
        }
    }

    /// Takes what is new; what came of it, if that has not been told.
    fn look(&self, watch: &mut Watch) -> Option<Result<(), TlsError>> {
        let clients_file = self.clients.as_deref().map(Clients::file);
        let now = Stamps::of(&self.cert_file, &self.key_file, clients_file);
        let has_changed = now != watch.seen;
        if !has_changed && watch.refused.is_none() {
            return None;
        }
        watch.seen = now;
        let taken = self.read_again();
        let refused = taken.as_ref().err().map(ToString::to_string);
        let is_news = has_changed || refused != watch.refused;
        watch.refused = refused;
        is_news.then_some(taken)
    }

    fn read_again(&self) -> Result<(), TlsError> {
        let pair = read_pair(&self.cert_file, &self.key_file, &self.provider)
            .map(|pair| self.current.store(Arc::new(pair)));
        // Even if that failed: an issuer that was taken out must be out.
        let clients = self.clients.as_ref().map_or(Ok(()), |clients| clients.read_again());
        pair.and(clients)
    }
}
