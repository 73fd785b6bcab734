//! Keys as objects on a token: made, found, listed, destroyed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cryptoki::error::Error;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::error::Failure;
use super::{Token, TokenError};
use crate::keyring::jwk;
use crate::signing::PublicKey;
use crate::types::Kid;

/// The DER of the object identifier 1.3.101.112, id-Ed25519 (RFC 8410, section 3), as CKA_EC_PARAMS.
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// A key that a token has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKey {
    /// Its thumbprint.
    pub kid: Kid,
    /// The key that verifies what it signs.
    pub public_key: PublicKey,
}

/// A private key on a token, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenObject {
    /// The kid that its id stands for, if it can be one.
    pub kid: Option<Kid>,
    /// Its label.
    pub label: String,
}

impl Token {
    /// Makes a key on the token that signs and does nothing else, and that never leaves it. Its label
    /// will be `prefix`, a slash and its kid.
    ///
    /// # Errors
    /// [`TokenError`]; no key is left then, unless the token went away in the middle.
    pub fn generate(&self, prefix: &str) -> Result<TokenKey, TokenError> {
        self.at_home(|module, link, session| {
            let generation = MechanismType::ECC_EDWARDS_KEY_PAIR_GEN;
            if module.get_mechanism_info(link.slot, generation).is_err() {
                return Err(Failure::Final(TokenError::Unsupported {
                    label: self.label().to_owned(),
                    mechanism: "CKM_EC_EDWARDS_KEY_PAIR_GEN",
                }));
            }
            loop {
                let (public, private) = generate_pair(session, prefix).map_err(self.failure())?;
                match self.name(session, prefix, public, private) {
                    // One in 64 could be taken for a flag on the command line.
                    Ok(key) if !key.kid.0.starts_with('-') => return Ok(key),
                    other => {
                        for object in [private, public] {
                            session.destroy_object(object).map_err(self.failure())?;
                        }
                        other?;
                    }
                }
            }
        })
    }

    /// Gives a new pair its id and label, and checks that the token keeps the private key to itself.
    fn name(
        &self,
        session: &Session,
        prefix: &str,
        public: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<TokenKey, Failure> {
        let refused = |reason: String| {
            Failure::Final(TokenError::Refused { label: self.label().to_owned(), reason })
        };
        let public_key = self.public_key(session, public)?.map_err(refused)?;
        let kid = jwk::kid(&public_key);
        let id = id(&kid).ok_or_else(|| refused(format!("{kid} is no thumbprint")))?;
        let label = format!("{prefix}/{kid}").into_bytes();
        for object in [public, private] {
            let names = [Attribute::Id(id.clone()), Attribute::Label(label.clone())];
            session.update_attributes(object, &names).map_err(self.failure())?;
        }
        let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
        let kept = session.get_attributes(private, &wanted).map_err(self.failure())?;
        let kept_inside = kept.contains(&Attribute::Sensitive(true))
            && kept.contains(&Attribute::Extractable(false));
        if !kept_inside {
            return Err(refused("it would let the private key out".to_owned()));
        }
        Ok(TokenKey { kid, public_key })
    }

    /// The public key of that kid, if the token has the private one.
    ///
    /// # Errors
    /// [`TokenError`]; a public key of another kid is a [`TokenError::WrongKey`].
    pub fn find(&self, kid: &Kid) -> Result<Option<PublicKey>, TokenError> {
        self.at_home(|_, _, session| {
            let wrong = |reason: String| {
                let label = self.label().to_owned();
                Failure::Final(TokenError::WrongKey { label, kid: kid.clone(), reason })
            };
            let Some(id) = id(kid) else { return Ok(None) };
            let of = |class| self.objects(session, class, &id);
            if of(ObjectClass::PRIVATE_KEY)?.is_empty() {
                return Ok(None);
            }
            let Some(public) = of(ObjectClass::PUBLIC_KEY)?.pop() else { return Ok(None) };
            let public_key = self.public_key(session, public)?.map_err(wrong)?;
            if jwk::kid(&public_key) == *kid {
                Ok(Some(public_key))
            } else {
                Err(wrong("its public key is another's".to_owned()))
            }
        })
    }

    /// Destroys the key of that kid; whether there was one.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn destroy(&self, kid: &Kid) -> Result<bool, TokenError> {
        self.at_home(|_, _, session| {
            let Some(id) = id(kid) else { return Ok(false) };
            let mut there = false;
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                for object in self.objects(session, class, &id)? {
                    session.destroy_object(object).map_err(self.failure())?;
                    there = true;
                }
            }
            Ok(there)
        })
    }

    /// The Edwards private keys on the token, whoever made them.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        self.at_home(|_, _, session| {
            let template = [
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::KeyType(KeyType::EC_EDWARDS),
            ];
            let mut list = Vec::new();
            for object in session.find_objects(&template).map_err(self.failure())? {
                let wanted = [AttributeType::Id, AttributeType::Label];
                let mut found = TokenObject { kid: None, label: String::new() };
                for attribute in session.get_attributes(object, &wanted).map_err(self.failure())? {
                    match attribute {
                        Attribute::Id(id) if id.len() == 32 => {
                            found.kid = Some(Kid(URL_SAFE_NO_PAD.encode(id)));
                        }
                        Attribute::Label(label) => {
                            found.label = String::from_utf8_lossy(&label).into_owned();
                        }
                        _ => {}
                    }
                }
                list.push(found);
            }
            Ok(list)
        })
    }

    /// The token's own objects of that class and id.
    pub(super) fn objects(
        &self,
        session: &Session,
        class: ObjectClass,
        id: &[u8],
    ) -> Result<Vec<ObjectHandle>, Failure> {
        let template = [
            Attribute::Token(true),
            Attribute::Class(class),
            Attribute::KeyType(KeyType::EC_EDWARDS),
            Attribute::Id(id.to_vec()),
        ];
        session.find_objects(&template).map_err(self.failure())
    }

    /// The public key that an object holds, or what is wrong with it.
    pub(super) fn public_key(
        &self,
        session: &Session,
        public: ObjectHandle,
    ) -> Result<Result<PublicKey, String>, Failure> {
        let attributes =
            session.get_attributes(public, &[AttributeType::EcPoint]).map_err(self.failure())?;
        let Some(Attribute::EcPoint(point)) = attributes.first() else {
            return Ok(Err("its public key has no CKA_EC_POINT".to_owned()));
        };
        Ok(read_point(point))
    }

    pub(super) fn failure(&self) -> impl Fn(Error) -> Failure + '_ {
        |error| Failure::of(self.label(), &error)
    }
}

fn generate_pair(session: &Session, prefix: &str) -> Result<(ObjectHandle, ObjectHandle), Error> {
    // What a crash before the end of `name` leaves behind, `list` finds by this.
    let label = Attribute::Label(format!("{prefix}/unfinished").into_bytes());
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::KeyType(KeyType::EC_EDWARDS),
        Attribute::EcParams(ED25519.to_vec()),
        Attribute::Verify(true),
        label.clone(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        label,
    ];
    session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
}

/// The CKA_ID of a key: the 32 bytes that its kid says.
pub(super) fn id(kid: &Kid) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(&kid.0).ok().filter(|id| id.len() == 32)
}

/// Reads CKA_EC_POINT: a DER OCTET STRING around the 32 bytes (PKCS#11 v3.0, section 2.3.5), or, as
/// some tokens have it, the bytes alone or a BIT STRING around them.
fn read_point(point: &[u8]) -> Result<PublicKey, String> {
    let bytes = match point {
        [0x04, 0x20, bytes @ ..] if bytes.len() == 32 => bytes,
        [0x03, 0x21, 0x00, bytes @ ..] if bytes.len() == 32 => bytes,
        bytes => bytes,
    };
    PublicKey::from_bytes(bytes).map_err(|error| format!("its public key: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::PrivateKey;

    #[test]
    fn a_point_is_read_in_each_of_the_forms_that_tokens_give_it() {
        let key = PrivateKey::generate().unwrap().public_key();
        let bytes = key.as_bytes().as_slice();
        let wrapped = [&[0x04, 0x20], bytes].concat();
        let bits = [&[0x03, 0x21, 0x00], bytes].concat();
        for point in [bytes, &wrapped, &bits] {
            assert_eq!(read_point(point), Ok(key));
        }
        for bad in [&[][..], &bytes[1..], &wrapped[..33], &[wrapped.as_slice(), &[0]].concat()] {
            assert!(read_point(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_id_of_a_key_is_the_thumbprint_that_its_kid_says() {
        let kid = jwk::kid(&PrivateKey::generate().unwrap().public_key());
        let bytes = id(&kid).unwrap();
        assert_eq!((bytes.len(), URL_SAFE_NO_PAD.encode(&bytes)), (32, kid.0));
        assert_eq!(id(&Kid("short".to_owned())), None);
    }
}
