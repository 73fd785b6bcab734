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
    let Keys { keys } = match serde_json::from_slice(file) {
        Ok(OneOrMany::Many(keys)) => keys,
        Ok(OneOrMany::One(key)) => Keys { keys: vec![key] },
        Err(_) => return Err(PrivateKeyError::Jwk),
    };
    Ok(keys.into_iter().map(Jwk::read).collect())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Keys),
    One(Jwk),
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Jwk>,
}

/// The members that matter. Its `kid` does not: Chancery names keys itself.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
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
        if (self.kty.as_str(), self.crv.as_str()) != ("OKP", "Ed25519") {
            return Err(PrivateKeyError::JwkType);
        }
        // RFC 9864 gives the algorithm a name of its own.
        let signs = self.alg.is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519")
            && self.usage.is_none_or(|usage| usage == "sig")
            && self.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "sign"));
        if !signs {
            return Err(PrivateKeyError::JwkUse);
        }
        match (self.x, self.d) {
            (Some(x), Some(d)) => from_jwk("OKP", "Ed25519", &x, &d),
            (Some(_), None) => Err(PrivateKeyError::Public),
            (None, _) => Err(PrivateKeyError::JwkBytes),
        }
    }
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
