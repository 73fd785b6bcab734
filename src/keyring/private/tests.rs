//! What others' tools write is in tests/integration/key_import.rs; here are the RFCs' own keys, and
//! what is refused.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;
use crate::keyring::jwk as public;

/// RFC 8410, section 10.3.
const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
/// The same with its public key.
const PEM_WITH_PUBLIC: &str = "-----BEGIN PRIVATE KEY-----\n\
    MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n\
    Z9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PRIVATE KEY-----\n";
const X: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";
/// RFC 8032, section 7.1, test 1: seed and public key.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const SEED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

fn x(key: &PrivateKey) -> String {
    URL_SAFE_NO_PAD.encode(key.public_key().as_bytes())
}

fn read(file: &[u8]) -> Result<Vec<String>, KeyFileError> {
    Ok(read_keys(file, None, None)?.iter().map(x).collect())
}

fn refused(file: impl AsRef<[u8]>) -> PrivateKeyError {
    read(file.as_ref()).unwrap_err().error
}

#[test]
fn keys_of_rfc_8410_are_read_as_pem_and_der() {
    for pem in [PEM, PEM_WITH_PUBLIC] {
        assert_eq!(read(pem.as_bytes()).unwrap(), [X]);
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        assert_eq!(read(&STANDARD.decode(body).unwrap()).unwrap(), [X]);
    }
    let text = format!("a comment\n{PEM}\nanother\n{PEM_WITH_PUBLIC}");
    assert_eq!(read(text.as_bytes()).unwrap(), [X, X]);
    assert_eq!(read(PEM.replace('\n', "\r\n").as_bytes()).unwrap(), [X]);
}

#[test]
fn a_pem_that_is_no_ed25519_private_key_is_refused_for_what_it_is() {
    let key = read_keys(PEM.as_bytes(), None, None).unwrap().remove(0);
    assert_eq!(refused(PEM_WITH_PUBLIC.replace("Z9w7", "Z9w8")), PrivateKeyError::Mismatch);
    assert_eq!(
        refused(PEM.replace("BQYDK2Vw", "BQYDK2Vu")),
        PrivateKeyError::Algorithm("an X25519")
    );
    assert_eq!(
        refused(PEM.replace("BQYDK2Vw", "BQYDK2Vx")),
        PrivateKeyError::Algorithm("an Ed448")
    );
    assert_eq!(refused(PEM.replace("BQYDK2Vw", "BQYDK2Vz")), PrivateKeyError::Pkcs8);
    assert_eq!(refused(public::pem(&key.public_key())), PrivateKeyError::Public);
    let rsa = "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert_eq!(refused(rsa), PrivateKeyError::Algorithm("an RSA"));
    for cut in [30, 60, 80] {
        assert_eq!(refused(&PEM[..cut]), PrivateKeyError::Pkcs8, "{cut}");
    }
    let second = read(format!("{PEM}{rsa}").as_bytes()).unwrap_err();
    assert_eq!(second.entry, Some(2));
    assert!(second.to_string().starts_with("key 2 of it: this is an RSA key"), "{second}");
}

#[test]
fn a_jwk_is_read_and_its_public_key_compared() {
    // RFC 8037, appendix A.1.
    let d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    let key = from_jwk("OKP", "Ed25519", SEED_X, d).unwrap();
    assert_eq!(x(&key), SEED_X);
    let error = |kty, crv, x, d| from_jwk(kty, crv, x, d).err();
    assert_eq!(error("EC", "Ed25519", SEED_X, d), Some(PrivateKeyError::JwkType));
    assert_eq!(error("OKP", "X25519", SEED_X, d), Some(PrivateKeyError::JwkType));
    assert_eq!(error("OKP", "Ed25519", SEED_X, &d[1..]), Some(PrivateKeyError::JwkBytes));
    assert_eq!(error("OKP", "Ed25519", "AA", d), Some(PrivateKeyError::JwkBytes));
    assert_eq!(error("OKP", "Ed25519", X, d), Some(PrivateKeyError::Mismatch));

    let jwk = |extra: serde_json::Value| {
        let mut jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": SEED_X, "d": d, "kid": "mine" });
        jwk.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        jwk
    };
    for good in [
        json!({}),
        json!({ "alg": "EdDSA", "use": "sig", "key_ops": ["sign", "verify"] }),
        json!({ "alg": "Ed25519" }),
    ] {
        assert_eq!(read(jwk(good).to_string().as_bytes()).unwrap(), [SEED_X]);
    }
    for bad in
        [json!({ "alg": "ES256" }), json!({ "use": "enc" }), json!({ "key_ops": ["verify"] })]
    {
        assert_eq!(refused(jwk(bad).to_string()), PrivateKeyError::JwkUse);
    }
    let set = json!({ "keys": [jwk(json!({})), jwk(json!({ "x": X }))] });
    let second = read(set.to_string().as_bytes()).unwrap_err();
    assert_eq!(second, KeyFileError { entry: Some(2), error: PrivateKeyError::Mismatch });
    assert_eq!(refused(json!({ "keys": [] }).to_string()), PrivateKeyError::Empty);
    let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": SEED_X });
    assert_eq!(refused(public.to_string()), PrivateKeyError::Public);
    let rsa = json!({ "keys": [{ "kty": "RSA" }] });
    assert_eq!(refused(rsa.to_string()), PrivateKeyError::Algorithm("an RSA"));
    for broken in ["{", "{}", "{\"keys\": 1}", "{\"kty\": 1}"] {
        assert_eq!(refused(broken), PrivateKeyError::Jwk, "{broken}");
    }
}

#[test]
fn seeds_are_read_line_by_line() {
    assert_eq!(read(SEED.as_bytes()).unwrap(), [SEED_X]);
    let two = format!("{SEED}\n\n{}\r\n", SEED.to_uppercase());
    assert_eq!(read(two.as_bytes()).unwrap(), [SEED_X, SEED_X]);
    let short = format!("{SEED}\n{}\n", &SEED[1..]);
    let error = KeyFileError { entry: Some(2), error: PrivateKeyError::Hex };
    assert_eq!(read(short.as_bytes()), Err(error));
}

#[test]
fn a_format_that_was_named_is_the_only_one_that_is_read() {
    let hex = read_keys(PEM.as_bytes(), Some(Format::Hex), None).unwrap_err();
    assert_eq!(hex.error, PrivateKeyError::Hex);
    let jwk = read_keys(PEM.as_bytes(), Some(Format::Jwk), None).unwrap_err();
    assert_eq!(jwk.error, PrivateKeyError::Jwk);
    for format in [Format::Pkcs8, Format::OpenSsh] {
        assert!(read_keys(SEED.as_bytes(), Some(format), None).is_err());
    }
}

#[test]
fn what_is_no_key_is_refused_and_never_quoted() {
    assert_eq!(refused(""), PrivateKeyError::Empty);
    assert_eq!(refused(" \n\n"), PrivateKeyError::Empty);
    assert_eq!(refused("secret words"), PrivateKeyError::Unknown);
    assert_eq!(refused([0xff; 100]), PrivateKeyError::Unknown);
    assert_eq!(refused([0x30, 0x82, 1, 2]), PrivateKeyError::Pkcs8);
    assert_eq!(read(format!("0 is how this begins\n{PEM}").as_bytes()).unwrap(), [X]);
    let error =
        read(b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
}
