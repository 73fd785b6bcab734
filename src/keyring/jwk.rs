//! Public keys for others to read: key names, JWK sets and PEM.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::signing::PublicKey;
use crate::types::Kid;

/// The key's name: its JWK thumbprint (RFC 7638 with SHA-256; RFC 8037, section 2).
#[must_use]
pub fn kid(public_key: &PublicKey) -> Kid {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, x(public_key));
    Kid(URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)))
}

/// A public Ed25519 key as a JWK (RFC 7517; RFC 8037, section 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwk {
    kty: &'static str,
    crv: &'static str,
    x: String,
    kid: Kid,
    alg: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
}

impl From<&PublicKey> for Jwk {
    fn from(public_key: &PublicKey) -> Self {
        Jwk {
            kty: "OKP",
            crv: "Ed25519",
            x: x(public_key),
            kid: kid(public_key),
            alg: "EdDSA",
            usage: "sig",
        }
    }
}

/// A JWK set (RFC 7517, section 5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

impl<'a> FromIterator<&'a PublicKey> for Jwks {
    fn from_iter<I: IntoIterator<Item = &'a PublicKey>>(public_keys: I) -> Self {
        Jwks { keys: public_keys.into_iter().map(Jwk::from).collect() }
    }
}

/// The key as a SubjectPublicKeyInfo (RFC 8410, section 4) in PEM (RFC 7468, section 13), with
/// nothing before or after it but a last newline.
#[must_use]
pub fn pem(public_key: &PublicKey) -> String {
    let der = [SPKI_PREFIX.as_slice(), public_key.as_bytes()].concat();
    let body = STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
}

/// All of the DER but the key: SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }.
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn x(public_key: &PublicKey) -> String {
    URL_SAFE_NO_PAD.encode(public_key.as_bytes())
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::VerifyingKey;
    use ed25519_dalek::pkcs8::DecodePublicKey;
    use serde_json::json;

    use super::*;
    use crate::signing::PrivateKey;

    fn public_key(x: &str) -> PublicKey {
        PublicKey::from_bytes(&URL_SAFE_NO_PAD.decode(x).unwrap()).unwrap()
    }

    /// RFC 8037, appendix A.2.
    const RFC_8037_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    /// RFC 8037, appendix A.3.
    const RFC_8037_THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    #[test]
    fn a_kid_is_the_thumbprint_of_rfc_8037() {
        assert_eq!(kid(&public_key(RFC_8037_X)).0, RFC_8037_THUMBPRINT);
    }

    #[test]
    fn a_jwk_set_holds_each_key_with_its_use() {
        let other = PrivateKey::generate().unwrap().public_key();
        let jwks: Jwks = [&public_key(RFC_8037_X), &other].into_iter().collect();
        let jwks = serde_json::to_value(jwks).unwrap();
        assert_eq!(
            jwks["keys"][0],
            json!({
                "kty": "OKP",
                "crv": "Ed25519",
                "x": RFC_8037_X,
                "kid": RFC_8037_THUMBPRINT,
                "alg": "EdDSA",
                "use": "sig",
            })
        );
        assert_eq!(jwks["keys"][1]["kid"], kid(&other).0);
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
        assert_eq!(serde_json::to_string(&Jwks::default()).unwrap(), r#"{"keys":[]}"#);
    }

    #[test]
    fn a_pem_is_that_of_rfc_8410() {
        let key = public_key("Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE");
        let expected = "-----BEGIN PUBLIC KEY-----\n\
                        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                        -----END PUBLIC KEY-----\n";
        assert_eq!(pem(&key), expected);
    }

    #[test]
    fn a_pem_is_read_back_by_another_implementation() {
        let key = PrivateKey::generate().unwrap().public_key();
        let read = VerifyingKey::from_public_key_pem(&pem(&key)).unwrap();
        assert_eq!(read.as_bytes(), key.as_bytes());
    }
}
