//! TLS by rustls: the server's certificate, read again when its files change, and the certificates
//! that clients must show, if any.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::config::HttpConfig;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

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
    #[error("http.tls_client_ca_file is set, and TLS is not: set http.tls_cert_file as well")]
    ClientsWithoutTls,
    /// A file cannot be read, or does not hold what it should.
    #[error("http.{key}: {path}: {problem}", path = .path.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The private key is another's.
    #[error(
        "http.tls_key_file is not the private key of the certificate in http.tls_cert_file: {0}"
    )]
    Pair(rustls::Error),
}

/// What a server speaks TLS with.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) config: ServerConfig,
    pub(super) certificate: Arc<Certificate>,
}

/// The server's certificate as its files have it.
#[derive(Debug)]
pub(super) struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
}

/// Reads what the configuration says of TLS; `None` if it says nothing.
///
/// # Errors
/// [`TlsError`], which names the key of the configuration.
pub(super) fn load(config: &HttpConfig) -> Result<Option<Tls>, TlsError> {
    let (cert_file, key_file) = match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(cert_file), Some(key_file)) => (cert_file.clone(), key_file.clone()),
        (Some(_), None) => {
            return Err(TlsError::Half { given: "tls_cert_file", missing: "tls_key_file" });
        }
        (None, Some(_)) => {
            return Err(TlsError::Half { given: "tls_key_file", missing: "tls_cert_file" });
        }
        (None, None) if config.tls_client_ca_file.is_some() => {
            return Err(TlsError::ClientsWithoutTls);
        }
        (None, None) => return Ok(None),
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let current = ArcSwap::from_pointee(read_pair(&cert_file, &key_file, &provider)?);
    let certificate =
        Arc::new(Certificate { cert_file, key_file, provider: Arc::clone(&provider), current });
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?;
    let builder = match &config.tls_client_ca_file {
        None => versions.with_no_client_auth(),
        Some(path) => versions.with_client_cert_verifier(clients(path, provider)?),
    };
    let resolver = Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>;
    Ok(Some(Tls { config: builder.with_cert_resolver(resolver), certificate }))
}

/// Who may issue clients' certificates. Read once: a change needs a restart.
fn clients(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let key = "tls_client_ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(key, path)? {
        roots.add(certificate).map_err(|error| file_error(key, path, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| file_error(key, path, error))
}

fn read_pair(
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates("tls_cert_file", cert_file)?;
    let key = "tls_key_file";
    let metadata = fs::metadata(key_file).map_err(|error| file_error(key, key_file, error))?;
    // Its group may be one that manages certificates; everybody is nobody's group.
    if metadata.mode() & 0o007 != 0 {
        let problem = "everybody may use this private key: `chmod o-rwx` it";
        return Err(file_error(key, key_file, problem));
    }
    let private = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
        file_error(key, key_file, format!("no private key in PEM can be read from it: {error}"))
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(TlsError::Pair)
}

fn read_certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(file_error(key, path, "there is no certificate in PEM in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(file_error(key, path, error)),
    }
}

fn file_error(key: &'static str, path: &Path, problem: impl ToString) -> TlsError {
    TlsError::File { key, path: path.to_owned(), problem: problem.to_string() }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// What tells that a file has changed: its size, its inode, and when it was written.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let of = |data: Metadata| (data.len(), data.ino(), data.mtime(), data.mtime_nsec());
    fs::metadata(path).ok().map(of)
}

impl Certificate {
    fn stamps(&self) -> (Stamp, Stamp) {
        (stamp(&self.cert_file), stamp(&self.key_file))
    }

    /// Looks at the files now and again, for ever, and takes a pair that is new and whole. One that is not
    /// leaves the one before in force, and is told once.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut seen = self.stamps();
        loop {
            tokio::time::sleep(LOOK).await;
            let of_files = Arc::clone(&self);
            let Ok(now) = tokio::task::spawn_blocking(move || of_files.stamps()).await else {
                continue;
            };
            if now == seen {
                continue;
            }
            seen = now;
            let of_files = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || of_files.reload()).await {
                Ok(Ok(())) => tracing::info!("took a new TLS certificate into use"),
                Ok(Err(error)) => {
                    tracing::error!(%error, "could not take the TLS certificate that is new");
                }
                Err(error) => tracing::error!(%error, "reading the TLS certificate failed"),
            }
        }
    }

    fn reload(&self) -> Result<(), TlsError> {
        let pair = read_pair(&self.cert_file, &self.key_file, &self.provider)?;
        self.current.store(Arc::new(pair));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    struct Files {
        folder: TempDir,
        config: HttpConfig,
    }

    impl Files {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            let config = HttpConfig {
                tls_cert_file: Some(folder.path().join("cert")),
                tls_key_file: Some(folder.path().join("key")),
                ..HttpConfig::default()
            };
            let files = Files { folder, config };
            files.write(true, true);
            files
        }

        /// Writes a new certificate and its key, or only one of them.
        fn write(&self, cert: bool, key: bool) {
            let names = vec!["localhost".to_owned()];
            let Made { cert: made, signing_key } = generate_simple_self_signed(names).unwrap();
            if cert {
                fs::write(self.path("cert"), made.pem()).unwrap();
            }
            if key {
                fs::write(self.path("key"), signing_key.serialize_pem()).unwrap();
                self.set_mode(0o640);
            }
        }

        fn set_mode(&self, mode: u32) {
            fs::set_permissions(self.path("key"), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        #[track_caller]
        fn expect_error(&self, words: &str) {
            let error = load(&self.config).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn each_mistake_names_its_key_of_the_configuration() {
        assert!(load(&HttpConfig::default()).unwrap().is_none());
        let mut files = Files::new();
        assert!(load(&files.config).unwrap().is_some());

        files.set_mode(0o644);
        files.expect_error("http.tls_key_file: ");
        files.set_mode(0o600);
        files.write(true, false);
        files.expect_error("http.tls_key_file is not the private key of the certificate");
        files.write(true, true);
        fs::write(files.path("cert"), "no certificate").unwrap();
        files.expect_error("there is no certificate in PEM in it");
        fs::remove_file(files.path("cert")).unwrap();
        files.expect_error("http.tls_cert_file: ");
        files.write(true, false);
        fs::write(files.path("key"), "no key").unwrap();
        files.expect_error("no private key in PEM can be read from it");

        files.write(true, true);
        files.config.tls_client_ca_file = Some(files.path("key"));
        files.expect_error("http.tls_client_ca_file: ");
        let key = files.config.tls_key_file.take();
        files.expect_error("http.tls_cert_file is set and http.tls_key_file is not");
        files.config.tls_cert_file = None;
        files.expect_error("http.tls_client_ca_file is set, and TLS is not");
        files.config.tls_key_file = key;
        files.expect_error("http.tls_key_file is set and http.tls_cert_file is not");
    }

    #[test]
    fn a_new_pair_is_taken_and_half_of_one_is_not() {
        let files = Files::new();
        let tls = load(&files.config).unwrap().unwrap();
        let shown = || tls.certificate.current.load().cert[0].to_vec();
        let (first, stamps) = (shown(), tls.certificate.stamps());

        files.write(true, false);
        assert_ne!(tls.certificate.stamps(), stamps);
        assert!(matches!(tls.certificate.reload(), Err(TlsError::Pair(_))));
        assert_eq!(shown(), first);

        files.write(true, true);
        tls.certificate.reload().unwrap();
        assert_ne!(shown(), first);
    }
}
