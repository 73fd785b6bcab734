//! What is refused, what is taken, and what a server shows, over real connections.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;

use actix_web::{App, HttpServer, web};
use rcgen::{CertificateParams, CertifiedKey as Made, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
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
        let Made { cert: made, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
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

    /// The certificate in the file.
    fn cert(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(&fs::read(self.path("cert")).unwrap()).unwrap()
    }

    fn load(&self) -> Tls {
        load(&self.config).unwrap().unwrap()
    }

    #[track_caller]
    fn expect_error(&self, words: &str) -> String {
        let error = load(&self.config).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        error
    }
}

impl Tls {
    fn watch(&self) -> Watch {
        Watch { seen: self.certificate.first.clone(), refused: None }
    }

    fn shown(&self) -> CertificateDer<'static> {
        self.certificate.current.load().cert[0].clone()
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
    let error = files.expect_error("http.tls_key_file: ");
    assert!(error.contains("is not the private key of the first certificate"), "{error}");
    files.write(true, true);
    fs::write(files.path("cert"), "no certificate").unwrap();
    files.expect_error("there is no certificate in PEM in it");
    fs::remove_file(files.path("cert")).unwrap();
    files.expect_error("http.tls_cert_file: ");
    files.write(true, false);
    fs::write(files.path("key"), "no key").unwrap();
    files.expect_error("there is no private key in PEM in it");
    let bad = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    fs::write(files.path("key"), bad).unwrap();
    files.expect_error("this private key cannot be used: ");
    fs::remove_file(files.path("key")).unwrap();
    files.expect_error("http.tls_key_file: ");

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
fn no_error_holds_what_a_file_holds() {
    let mut files = Files::new();
    let whole = fs::read_to_string(files.path("key")).unwrap();
    let canary = whole.lines().nth(1).unwrap()[..16].to_owned();
    let as_numbers = format!("{:?}", canary.as_bytes());
    let lost_breaks = whole.trim_end().replace('\n', " ");
    let no_end = whole.split("-----END").next().unwrap().to_owned();
    let begins_wrong = lost_breaks.replace(" -----END PRIVATE KEY-----", "");
    let no_base64 = whole.replace(&canary, &format!("{canary}*"));
    files.config.tls_client_ca_file = Some(files.path("clients"));
    let mut errors = 0;
    for text in [lost_breaks, no_end, begins_wrong, no_base64] {
        // Each of the files may be the private key's by mistake.
        for name in ["key", "cert", "clients"] {
            files.write(true, true);
            fs::write(files.path("clients"), fs::read(files.path("cert")).unwrap()).unwrap();
            fs::write(files.path(name), &text).unwrap();
            let error = load(&files.config).unwrap_err();
            for said in [error.to_string(), format!("{error:?}")] {
                let numbers = as_numbers.trim_matches(['[', ']']);
                assert!(!said.contains(&canary) && !said.contains(numbers), "{said}");
                assert!(said.len() < 300, "{said}");
                errors += 1;
            }
        }
    }
    assert_eq!(errors, 24);
}

#[test]
fn a_new_pair_is_taken_and_half_of_one_is_told_once_and_is_not() {
    let files = Files::new();
    let tls = files.load();
    let mut watch = tls.watch();
    let first = tls.shown();
    assert!(tls.certificate.look(&mut watch).is_none());

    files.write(true, false);
    let told = tls.certificate.look(&mut watch).unwrap();
    assert!(matches!(told, Err(TlsError::Pair { .. })));
    assert!(tls.certificate.look(&mut watch).is_none());
    assert_eq!(tls.shown(), first);

    files.write(true, true);
    tls.certificate.look(&mut watch).unwrap().unwrap();
    assert_eq!(tls.shown(), files.cert());
    assert_ne!(tls.shown(), first);
    assert!(tls.certificate.look(&mut watch).is_none());
}

#[test]
fn a_pair_is_taken_once_its_mode_is_put_right() {
    let files = Files::new();
    let tls = files.load();
    let mut watch = tls.watch();
    files.write(true, true);
    files.set_mode(0o644);
    assert!(tls.certificate.look(&mut watch).unwrap().is_err());
    assert_ne!(tls.shown(), files.cert());
    files.set_mode(0o640);
    tls.certificate.look(&mut watch).unwrap().unwrap();
    assert_eq!(tls.shown(), files.cert());
}

#[test]
fn what_could_not_be_read_is_tried_again_though_nothing_has_changed() {
    let files = Files::new();
    let tls = files.load();
    let mut watch = tls.watch();
    files.write(true, true);
    tls.certificate.look(&mut watch).unwrap().unwrap();
    // As after a look that ran out of descriptors.
    watch.refused = Some("too many open files".to_owned());
    tls.certificate.look(&mut watch).unwrap().unwrap();
    assert!(tls.certificate.look(&mut watch).is_none());
}

#[actix_web::test]
async fn a_server_speaks_http_1_and_shows_new_certificates_to_new_connections() {
    let files = Files::new();
    let tls = files.load();
    let (certificate, address) = (Arc::clone(&tls.certificate), start(tls.config));
    let mut watch = Watch { seen: certificate.first.clone(), refused: None };
    for _ in 0..2 {
        let answer = ask(address, &files, None).await.unwrap();
        assert_eq!(answer.alpn.as_deref(), Some(b"http/1.1".as_slice()));
        assert_eq!(answer.cert, files.cert());
        assert!(answer.text.starts_with("HTTP/1.1 200 OK"), "{}", answer.text);
        files.write(true, true);
        // A client that trusts the new one alone.
        assert!(ask(address, &files, None).await.is_err());
        certificate.look(&mut watch).unwrap().unwrap();
    }
}

#[actix_web::test]
async fn clients_need_a_certificate_of_an_issuer_that_is_in_the_file_now() {
    let mut files = Files::new();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    files.config.tls_client_ca_file = Some(files.path("clients"));
    fs::write(files.path("clients"), &first.pem).unwrap();
    let tls = files.load();
    let (certificate, address) = (Arc::clone(&tls.certificate), start(tls.config));
    let mut watch = Watch { seen: certificate.first.clone(), refused: None };
    // One configuration for all its connections, as a client that would resume a session has.
    let (known, other) = (first.client(&files), second.client(&files));
    assert!(ask(address, &files, None).await.is_err());
    assert!(ask(address, &files, Some(&other)).await.is_err());
    for _ in 0..2 {
        assert!(ask(address, &files, Some(&known)).await.is_ok());
    }

    fs::write(files.path("clients"), "none").unwrap();
    assert!(certificate.look(&mut watch).unwrap().is_err());
    assert!(ask(address, &files, Some(&known)).await.is_ok());

    fs::write(files.path("clients"), &second.pem).unwrap();
    certificate.look(&mut watch).unwrap().unwrap();
    assert!(ask(address, &files, Some(&known)).await.is_err());
    assert!(ask(address, &files, Some(&other)).await.is_ok());
}

/// Issues clients' certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A client with a certificate of this one, which trusts the server in `files`.
    fn client(&self, files: &Files) -> Arc<ClientConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        client(files, Some((cert.der().clone(), key)))
    }
}

fn client(
    files: &Files,
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(files.cert()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key).unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn start(config: ServerConfig) -> SocketAddr {
    let app = || App::new().route("/", web::get().to(|| async { "here" }));
    let server = HttpServer::new(app).workers(1).disable_signals();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    actix_web::rt::spawn(server.listen_rustls_0_23(listener, config).unwrap().run());
    address
}

struct Answer {
    alpn: Option<Vec<u8>>,
    cert: CertificateDer<'static>,
    text: String,
}

/// Asks over a connection of its own, as `known` or as a client without a certificate.
async fn ask(
    address: SocketAddr,
    files: &Files,
    known: Option<&Arc<ClientConfig>>,
) -> std::io::Result<Answer> {
    let config = known.map_or_else(|| client(files, None), Arc::clone);
    let asking = tokio::task::spawn_blocking(move || {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Answer {
            alpn: stream.conn.alpn_protocol().map(<[u8]>::to_vec),
            cert: stream.conn.peer_certificates().unwrap()[0].clone(),
            text,
        })
    });
    asking.await.unwrap()
}
