//! Private JWKs (RFC 7517; RFC 8037, section 2).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::PrivateKeyError;
use crate::signing::PrivateKey;

/// Reads a JWK, or each of a set.
pub(super) fn read(
    file: &[u8],
) -> Result<Vec<Result<PrivateKey, PrivateKeyError>>, PrivateKeyError> {
    let file: Jwk = serde_json::from_slice(file).map_err(|_| PrivateKeyError::Jwk)?;
    match (file.keys, &file.kty) {
        (Some(keys), None) => Ok(keys.into_iter().map(Jwk::read).collect()),
        (None, Some(_)) => Ok(vec![Jwk { keys: None, ..file }.read()]),
        _ => Err(PrivateKeyError::Jwk),
    }
}

/// The members that matter of a JWK, or of a set. Its `kid` does not: Chancery names keys itself.
// One type for both: to choose between two, serde would copy the secret first.
#[derive(Deserialize)]
struct Jwk {
    keys: Option<Vec<Jwk>>,
    kty: Option<String>,
    #[serde(default)]
    crv: String,
    x: Option<String>,
    d: Option<Zeroizing<String>>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
}

impl Jwk {
    fn read(self) -> Result<PrivateKey, PrivateKeyError> {
        match (self.kty.as_deref(), self.crv.as_str()) {
            (Some("OKP"), "Ed25519") => {}
            (Some("OKP"), "X25519") => return Err(PrivateKeyError::Algorithm("an X25519")),
            (Some("OKP"), "Ed448") => return Err(PrivateKeyError::Algorithm("an Ed448")),
            (Some("RSA"), _) => return Err(PrivateKeyError::Algorithm("an RSA")),
            (Some("EC"), _) => {
                return Err(PrivateKeyError::Algorithm("an elliptic-curve (ECDSA)"));
            }
            _ => return Err(PrivateKeyError::JwkType),
        }
        let (alg, usage) = (self.alg.as_deref(), self.usage.as_deref());
        if !is_for_signing(alg, usage, self.key_ops.as_deref()) {
            return Err(PrivateKeyError::JwkUse);
        }
        match (self.x, self.d) {
            (Some(x), Some(d)) => from_jwk("OKP", "Ed25519", &x, &d),
            (Some(_), None) => Err(PrivateKeyError::Public),
            (None, _) => Err(PrivateKeyError::JwkBytes),
        }
    }
}

/// Whether a JWK's `alg`, `use` and `key_ops`, where it has them, allow signatures with EdDSA (RFC 7517,
/// section 4; RFC 9864 gives the algorithm a name of its own).
#[must_use]
pub fn is_for_signing(alg: Option<&str>, usage: Option<&str>, key_ops: Option<&[String]>) -> bool {
    alg.is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519")
        && usage.is_none_or(|usage| usage == "sig")
        && key_ops.is_none_or(|ops| ops.iter().any(|op| op == "sign"))
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
