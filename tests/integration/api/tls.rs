//! TLS through curl: the certificate, its renewal, and clients' certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::{address_of, create_token};
use crate::support::program::Signal;
use crate::support::{Site, wait_until};

/// An authority whose certificates last.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Another name than its certificates have, which else would seem to be signed by themselves.
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate of that authority for localhost, and its key.
fn issue(authority: &CertifiedIssuer<'_, KeyPair>, cert: &Path, key: &Path) {
    let pair = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let made = params.signed_by(&pair, authority).unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(key, mode).unwrap();
    std::fs::write(cert, made.pem()).unwrap();
}

fn curl(port: &str, path: &str, more: &[&str]) -> (bool, String) {
    let url = format!("https://localhost:{port}{path}");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "%{http_code}"]);
    let output = command.args(["--noproxy", "*", &url]).args(more).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_certificate_is_renewed_while_it_serves_and_clients_must_show_theirs() {
    let site = Site::sqlite().with(1, 0);
    let [cert, key, ca, new_ca, clients, client_cert, client_key]: [PathBuf; 7] =
        ["cert", "key", "ca", "new-ca", "clients", "client-cert", "client-key"]
            .map(|name| site.path(name));
    let (first, second, of_clients) = (authority(), authority(), authority());
    std::fs::write(&ca, first.pem()).unwrap();
    std::fs::write(&new_ca, second.pem()).unwrap();
    std::fs::write(&clients, of_clients.pem()).unwrap();
    issue(&first, &cert, &key);
    issue(&of_clients, &client_cert, &client_key);
    let text = |path: &PathBuf| path.display().to_string();
    let site = site
        .set("CHANCERY_HTTP__TLS_CERT_FILE", &text(&cert))
        .set("CHANCERY_HTTP__TLS_KEY_FILE", &text(&key))
        .set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
    let token = create_token(&site, &["reader"], &[]);
    let bearer = format!("Authorization: Bearer {token}");

    let serve = site.start(&["serve"]);
    let port = address_of(&serve).rsplit(':').next().unwrap().to_owned();
    let (ca, new_ca) = (text(&ca), text(&new_ca));
    let status = |ca: &str| curl(&port, "/v1/status", &["--cacert", ca, "--header", &bearer]);
    assert!(status(&ca).1.ends_with("200"), "{:?}", status(&ca));
    assert!(!status(&new_ca).0);
    let plain = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    drop(plain);
    issue(&second, &cert, &key);
    wait_until("the new certificate is shown", || status(&new_ca).1.ends_with("200"));
    std::fs::write(&cert, "half a certif").unwrap();
    serve.wait_for_stderr("keeps the TLS certificates that it has");
    assert!(status(&new_ca).0, "the one before stays in force");
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);

    issue(&first, &cert, &key);
    let site = site.set("CHANCERY_HTTP__TLS_CLIENT_CA_FILE", &text(&clients));
    let serve = site.start(&["serve"]);
    let port = address_of(&serve).rsplit(':').next().unwrap().to_owned();
    let (client_cert, client_key) = (text(&client_cert), text(&client_key));
    let trusted = ["--cacert", ca.as_str()];
    let with_cert = ["--cert", client_cert.as_str(), "--key", client_key.as_str()];
    assert!(!curl(&port, "/live", &trusted).0, "let in without a certificate");
    let known = [trusted.as_slice(), &with_cert].concat();
    assert!(curl(&port, "/live", &known).1.ends_with("200"));
    assert!(curl(&port, "/v1/status", &known).1.ends_with("401"), "a token is needed all the same");
    let both = [known.as_slice(), &["--header", &bearer]].concat();
    assert!(curl(&port, "/v1/status", &both).1.ends_with("200"));
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);
}

#[test]
fn what_must_not_be_served_is_refused_at_the_start() {
    let site = Site::sqlite().with(1, 0);
    let site = site.set("CHANCERY_HTTP__BIND", "0.0.0.0:0");
    site.run(&["serve"]).expect_code(2).expect_stderr("http.allow_plain_http");
    let site = site.set("CHANCERY_HTTP__ALLOW_PLAIN_HTTP", "true");
    let serve = site.start(&["serve"]);
    address_of(&serve);
    serve.signal(Signal::TERM);
    serve.wait().expect_code(0);
    let site = site.set("CHANCERY_HTTP__TLS_CERT_FILE", "nowhere.pem");
    site.run(&["serve"]).expect_code(2).expect_stderr("http.tls_key_file is not");
    let site = site.set("CHANCERY_HTTP__TLS_KEY_FILE", "nowhere.key");
    site.run(&["serve"]).expect_code(2).expect_stderr("http.tls_cert_file: nowhere.pem");
}
