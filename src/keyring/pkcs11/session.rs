//! One thread's session on a token, which signs.

use std::collections::HashMap;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::error::Failure;
use super::objects::id;
use super::{Gate, Link, Token, TokenError, TokenKeyRef};
use crate::signing::{Signature, verify_one};
use crate::types::{Kid, Record};

/// A session of one thread; it opens when it is first needed, and anew when it is lost.
pub struct TokenSession {
    token: Token,
    open: Option<Open>,
}

struct Open {
    session: Session,
    /// The initialization of the module in which the session's handles mean anything.
    epoch: u64,
    keys: HashMap<Kid, ObjectHandle>,
}

impl TokenSession {
    pub(super) fn new(token: Token) -> Self {
        TokenSession { token, open: None }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Signs each record by itself, in order, and answers with as many signatures: pure Ed25519.
    ///
    /// `may_go_on` is asked before each signature. A session that is lost is opened anew, and so is a
    /// token, once each. The first signature that comes from a session is checked against the public
    /// key, so that no other key's can pass.
    ///
    /// # Errors
    /// [`TokenError::PastDeadline`] as soon as `may_go_on` says no, [`TokenError::Unavailable`] if
    /// opening anew did not help, and the others; what was signed is dropped.
    pub fn sign_each(
        &mut self,
        key: &TokenKeyRef,
        records: &[Record],
        may_go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Signature>, TokenError> {
        let mut signatures = Vec::with_capacity(records.len());
        let mut tries = 0;
        while let Some(record) = records.get(signatures.len()) {
            if !may_go_on() {
                return Err(TokenError::PastDeadline);
            }
            match self.sign_one(key, &record.payload) {
                Ok(signature) => {
                    signatures.push(signature);
                    continue;
                }
                Err(failure @ Failure::Final(_)) => {
                    self.forget(key);
                    return Err(failure.give_up(self.token.label()));
                }
                Err(failure) => {
                    tries += 1;
                    self.forget(key);
                    match (tries, self.open.take()) {
                        // The token may be well, and only the session lost.
                        (1, Some(open)) => self.close(open),
                        (1 | 2, open) => {
                            let epoch = open.map_or_else(|| self.token.enter().epoch, |o| o.epoch);
                            self.token.reopen(epoch)?;
                        }
                        _ => return Err(failure.give_up(self.token.label())),
                    }
                }
            }
        }
        Ok(signatures)
    }

    fn sign_one(&mut self, key: &TokenKeyRef, payload: &[u8]) -> Result<Signature, Failure> {
        // A guard of its own lifetime, since the session below is a part of `self`.
        let token = self.token.clone();
        let gate = token.enter();
        let link = match &gate.link {
            Ok(link) => link,
            Err(lost) => return Err(Failure::Lost(lost.error.to_string())),
        };
        let open = Self::open(&mut self.open, &token, &gate, link)?;
        let (handle, is_proven) = match open.keys.get(&key.kid) {
            Some(handle) => (*handle, true),
            None => (look_up(&token, &gate.module, link, &open.session, key)?, false),
        };
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
        let bytes = open.session.sign(&mechanism, handle, payload).map_err(token.failure())?;
        let signature = Signature::try_from(bytes.as_slice()).map_err(|_| {
            let reason = format!("it gave a signature of {} bytes", bytes.len());
            Failure::Final(TokenError::Refused { label: token.label().to_owned(), reason })
        })?;
        if !is_proven {
            // Whatever session and token this handle is of: its first signature shows whose it is.
            if verify_one(&key.public_key, payload, &signature).is_err() {
                return Err(wrong(&token, key, "its signature does not verify"));
            }
            open.keys.insert(key.kid.clone(), handle);
        }
        Ok(signature)
    }

    /// The session, opened if it is not, or is one of before the module was initialized.
    fn open<'a>(
        open: &'a mut Option<Open>,
        token: &Token,
        gate: &Gate,
        link: &Link,
    ) -> Result<&'a mut Open, Failure> {
        let current = open.take().filter(|open| open.epoch == gate.epoch);
        let current = match current {
            Some(current) => current,
            None => {
                // Logged in, because the token's own session is.
                let session = gate.module.open_ro_session_no_drop(link.slot);
                Open {
                    session: session.map_err(token.failure())?,
                    epoch: gate.epoch,
                    keys: HashMap::new(),
                }
            }
        };
        Ok(open.insert(current))
    }

    fn forget(&mut self, key: &TokenKeyRef) {
        if let Some(open) = &mut self.open {
            open.keys.remove(&key.kid);
        }
    }

    fn close(&self, open: Open) {
        let gate = self.token.enter();
        // After the module was initialized anew, the handle may be another's.
        if open.epoch == gate.epoch {
            // One that is lost cannot be closed either.
            let _ = open.session.close();
        }
    }
}

impl Drop for TokenSession {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.close(open);
        }
    }
}

/// The private key's handle, if the public key beside it is the right one.
fn look_up(
    token: &Token,
    module: &Pkcs11,
    link: &Link,
    session: &Session,
    key: &TokenKeyRef,
) -> Result<ObjectHandle, Failure> {
    let label = token.label();
    let missing = || TokenError::NoSuchKey { label: label.to_owned(), kid: key.kid.clone() };
    let id = id(&key.kid).ok_or_else(|| Failure::Final(missing()))?;
    let mut private = token.objects(session, ObjectClass::PRIVATE_KEY, &id)?;
    let Some(handle) = private.pop() else {
        // A token that went away may say that it has no keys, instead of that it is away.
        return match module.get_token_info(link.slot) {
            Ok(_) => Err(Failure::Final(missing())),
            Err(error) => Err(Failure::Lost(token.failure()(error).give_up(label).to_string())),
        };
    };
    if !private.is_empty() {
        return Err(wrong(token, key, "there are several"));
    }
    for public in token.objects(session, ObjectClass::PUBLIC_KEY, &id)? {
        if token.public_key(session, public)? != Ok(key.public_key) {
            return Err(wrong(token, key, "its public key is another's"));
        }
    }
    Ok(handle)
}

fn wrong(token: &Token, key: &TokenKeyRef, reason: &str) -> Failure {
    Failure::Final(TokenError::WrongKey {
        label: token.label().to_owned(),
        kid: key.kid.clone(),
        reason: reason.to_owned(),
    })
}
