//! Private keys as others write them: PKCS#8 in PEM, and JWK.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use zeroize::Zeroizing;

use crate::signing::PrivateKey;

/// Why a private key cannot be taken in. It never quotes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateKeyError {
    /// It is no PKCS#8 private key of Ed25519 in PEM.
    #[error(
        "this is no Ed25519 private key in PEM: it must be PKCS#8 (RFC 8410), not encrypted, as \
         `openssl genpkey -algorithm ed25519` writes it"
    )]
    Pem,
    /// It is no JWK of Ed25519.
    #[error("the JWK must have kty OKP and crv Ed25519 (RFC 8037)")]
    JwkType,
    /// `d` or `x` are not 32 bytes.
    #[error("the JWK's d and x must be 32 bytes each, as base64url without padding")]
    JwkBytes,
    /// The public key is another's.
    #[error("the public key beside it is not that of the private key")]
    Mismatch,
}

/// Reads a PKCS#8 private key (RFC 5958, RFC 8410) in PEM. A public key in it must be its own.
///
/// # Errors
/// [`PrivateKeyError::Pem`].
pub fn from_pem(pem: &str) -> Result<PrivateKey, PrivateKeyError> {
    let key = SigningKey::from_pkcs8_pem(pem).map_err(|_| PrivateKeyError::Pem)?;
    Ok(PrivateKey::from_seed(Zeroizing::new(key.to_bytes())))
}

/// Reads the members of a private JWK (RFC 8037, section 2).
///
/// # Errors
/// [`PrivateKeyError::JwkType`], [`PrivateKeyError::JwkBytes`], [`PrivateKeyError::Mismatch`].
pub fn from_jwk(kty: &str, crv: &str, x: &str, d: &str) -> Result<PrivateKey, PrivateKeyError> {
    if (kty, crv) != ("OKP", "Ed25519") {
        return Err(PrivateKeyError::JwkType);
    }
    let mut seed = Zeroizing::new([0; 32]);
    let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(d).map_err(|_| PrivateKeyError::JwkBytes)?);
    if decoded.len() != seed.len() {
        return Err(PrivateKeyError::JwkBytes);
    }
    seed.copy_from_slice(&decoded);
    let public = URL_SAFE_NO_PAD.decode(x).map_err(|_| PrivateKeyError::JwkBytes)?;
    if public.len() != 32 {
        return Err(PrivateKeyError::JwkBytes);
    }
    let key = PrivateKey::from_seed(seed);
    if key.public_key().as_bytes().as_slice() == public {
        Ok(key)
    } else {
        Err(PrivateKeyError::Mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::jwk;

    /// RFC 8410, section 10.3.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    /// The same with its public key, and one of another key.
    const PEM_WITH_PUBLIC: &str = "-----BEGIN PRIVATE KEY-----\n\
        MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n\
        Z9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PRIVATE KEY-----\n";
    const X: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";

    #[test]
    fn keys_of_rfc_8410_are_read() {
        for pem in [PEM, PEM_WITH_PUBLIC] {
            let key = from_pem(pem).unwrap();
            assert_eq!(URL_SAFE_NO_PAD.encode(key.public_key().as_bytes()), X);
        }
        let with_another = PEM_WITH_PUBLIC.replace("Z9w7", "Z9w8");
        for bad in [
            "",
            "x",
            &with_another,
            &PEM.replace("BQYDK2Vw", "BQYDK2Vx"),
            &jwk::pem(&from_pem(PEM).unwrap().public_key()),
        ] {
            assert_eq!(from_pem(bad).err(), Some(PrivateKeyError::Pem), "{bad}");
        }
    }

    #[test]
    fn a_jwk_is_read_and_its_public_key_compared() {
        // RFC 8037, appendix A.1.
        let d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let key = from_jwk("OKP", "Ed25519", x, d).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.encode(key.public_key().as_bytes()), x);
        let error = |kty, crv, x, d| from_jwk(kty, crv, x, d).err();
        assert_eq!(error("EC", "Ed25519", x, d), Some(PrivateKeyError::JwkType));
        assert_eq!(error("OKP", "X25519", x, d), Some(PrivateKeyError::JwkType));
        assert_eq!(error("OKP", "Ed25519", x, &d[1..]), Some(PrivateKeyError::JwkBytes));
        assert_eq!(error("OKP", "Ed25519", "AA", d), Some(PrivateKeyError::JwkBytes));
        assert_eq!(error("OKP", "Ed25519", X, d), Some(PrivateKeyError::Mismatch));
    }
}
