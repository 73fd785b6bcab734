//! Who may issue clients' certificates: rustls' own verifier, over a list that can be replaced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::{CLIENTS_KEY, TlsError, file_error, read_certificates};

/// Takes a client's certificate if an issuer in the file stands behind it. Every client needs one.
#[derive(Debug)]
pub(super) struct Clients {
    file: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Arc<dyn ClientCertVerifier>>,
}

impl Clients {
    /// Those whose issuers are in `file`.
    pub(super) fn read(file: PathBuf, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(verifier(&file, &provider)?);
        Ok(Clients { file, provider, current })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn read_again(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(verifier(&self.file, &self.provider)?));
        Ok(())
    }
}

fn verifier(
    file: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(CLIENTS_KEY, file)? {
        roots.add(certificate).map_err(|error| file_error(CLIENTS_KEY, file, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| file_error(CLIENTS_KEY, file, error))
}

impl ClientCertVerifier for Clients {
    /// None: a client shows what it has, also where the issuer's name has just changed.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current.load().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.load().verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().supported_verify_schemes()
    }
}
