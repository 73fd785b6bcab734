//! Hardware keys: private keys that a token makes, keeps and uses, by PKCS#11 (version 2.40 or later,
//! with the EdDSA mechanisms of version 3.0).
//!
//! A key is an EC Edwards key pair over edwards25519 whose CKA_ID is the SHA-256 of its JWK thumbprint
//! (RFC 7638), which its kid says in base64url, and whose label is `chancery/DATABASE/RING/KID`.
//! Whatever the module does is done behind one gate: handles mean nothing, or something else, after the
//! module was initialized anew, and nobody may be inside it meanwhile.

mod error;
mod objects;
mod session;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

pub use error::TokenError;
pub use objects::{TokenKey, TokenObject};
pub use session::TokenSession;

use error::Failure;

use crate::signing::PublicKey;
use crate::types::Kid;

/// How long a token that did not come back is not asked again, by whichever thread.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// Which token, and how to log in.
#[derive(Clone)]
pub struct TokenSettings {
    /// The module: a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The user's PIN.
    pub pin: Zeroizing<String>,
}

impl fmt::Debug for TokenSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenSettings { module, token_label, pin: _ } = self;
        write!(f, "TokenSettings {{ module: {module:?}, token_label: {token_label:?}, .. }}")
    }
}

/// A key on a token, as those that sign with it know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKeyRef {
    /// Its thumbprint, by which the token finds it.
    pub kid: Kid,
    /// The key that verifies what it signs.
    pub public_key: PublicKey,
}

/// A token that is open and logged in to; clones are the same token. A process opens a module once.
#[derive(Clone)]
pub struct Token(Arc<Inner>);

struct Inner {
    settings: TokenSettings,
    /// Read while a call is under way, written while the module is initialized.
    gate: RwLock<Gate>,
}

struct Gate {
    module: Pkcs11,
    /// Which initialization of the module this is.
    epoch: u64,
    link: Result<Link, Lost>,
    pin_was_refused: bool,
}

/// A token that is there.
struct Link {
    slot: Slot,
    /// Open as long as the token is, because the last session's end would be the login's.
    home: Mutex<Session>,
}

/// A token that is not there.
struct Lost {
    since: Instant,
    error: TokenError,
}

impl Token {
    /// Loads the module, finds the token by its label and logs in; the PIN is tried once at the most,
    /// and not if a wrong one would lock the token.
    ///
    /// # Errors
    /// What is wrong, by name: the module, the label, the PIN, or a mechanism.
    pub fn open(settings: TokenSettings) -> Result<Self, TokenError> {
        let path = settings.module.clone();
        let module = Pkcs11::new(&path).map_err(|error| TokenError::Module {
            path: path.clone(),
            reason: match error {
                Error::LibraryLoading(error) => error.to_string(),
                other => other.to_string(),
            },
        })?;
        initialize(&module)
            .map_err(|error| TokenError::Module { path, reason: error.to_string() })?;
        let link = link(&module, &settings)?;
        let gate = Gate { module, epoch: 0, link: Ok(link), pin_was_refused: false };
        Ok(Token(Arc::new(Inner { settings, gate: RwLock::new(gate) })))
    }

    /// The token's label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.0.settings.token_label
    }

    /// A session for one thread; it opens when it is first needed.
    #[must_use]
    pub fn session(&self) -> TokenSession {
        TokenSession::new(self.clone())
    }

    /// Whether the token answers; if not, it is opened anew.
    ///
    /// # Errors
    /// [`TokenError::Unavailable`], and others that say why not.
    pub fn probe(&self) -> Result<(), TokenError> {
        self.at_home(|module, link, _| {
            let answer = module.get_token_info(link.slot);
            answer.map(drop).map_err(|error| Failure::of(self.label(), &error))
        })
    }

    /// Does something in the session that this token keeps; once more if the token was lost.
    fn at_home<T>(
        &self,
        work: impl Fn(&Pkcs11, &Link, &Session) -> Result<T, Failure>,
    ) -> Result<T, TokenError> {
        let mut again = true;
        loop {
            let gate = self.enter();
            let epoch = gate.epoch;
            let failure = match &gate.link {
                Ok(link) => match work(&gate.module, link, &link.home()) {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                },
                Err(lost) => Failure::Lost(lost.error.to_string()),
            };
            drop(gate);
            match failure {
                Failure::Lost(_) if again => self.reopen(epoch)?,
                failure => return Err(failure.give_up(self.label())),
            }
            again = false;
        }
    }

    fn enter(&self) -> RwLockReadGuard<'_, Gate> {
        self.0.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter_alone(&self) -> RwLockWriteGuard<'_, Gate> {
        self.0.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the use of the module for good: no thread calls it afterwards, while the process ends and the
    /// module's own statics go.
    pub fn shut_down(&self) {
        let mut gate = self.enter_alone();
        // Whatever it says to that, nobody asks it again.
        let _ = gate.module.clone().finalize();
        gate.epoch += 1;
        gate.pin_was_refused = true;
        let error = TokenError::Unavailable {
            label: self.label().to_owned(),
            reason: "this process ends".to_owned(),
        };
        gate.link = Err(Lost { since: Instant::now(), error });
    }

    /// Initializes the module anew and logs in, unless somebody has done so since `epoch`, or did so in
    /// vain just now.
    fn reopen(&self, epoch: u64) -> Result<(), TokenError> {
        let mut gate = self.enter_alone();
        if gate.epoch != epoch && gate.link.is_ok() {
            return Ok(());
        }
        if let Err(lost) = &gate.link
            && (lost.since.elapsed() < REOPEN_PAUSE || gate.pin_was_refused)
        {
            return Err(lost.error.clone());
        }
        // What it says to that, it may have forgotten already what it was.
        let _ = gate.module.clone().finalize();
        gate.epoch += 1;
        let opened = initialize(&gate.module)
            .map_err(|error| Failure::of(self.label(), &error).give_up(self.label()))
            .and_then(|()| link(&gate.module, &self.0.settings));
        match opened {
            Ok(link) => {
                gate.link = Ok(link);
                Ok(())
            }
            Err(error) => {
                gate.pin_was_refused |= matches!(error, TokenError::WrongPin { .. });
                let error = error.while_signing(self.label());
                gate.link = Err(Lost { since: Instant::now(), error: error.clone() });
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.0.settings).finish()
    }
}

impl Link {
    fn home(&self) -> MutexGuard<'_, Session> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        result => result,
    }
}

fn link(module: &Pkcs11, settings: &TokenSettings) -> Result<Link, TokenError> {
    let label = &settings.token_label;
    let failed = |error: Error| Failure::of(label, &error).give_up(label);
    let mut slots = Vec::new();
    let mut found = Vec::new();
    for slot in module.get_slots_with_token().map_err(failed)? {
        // Another's token may be broken without being any of our business.
        let Ok(info) = module.get_token_info(slot) else { continue };
        if info.token_initialized() && info.label().trim_end() == label {
            slots.push((slot, info));
        } else if info.token_initialized() {
            found.push(format!("{:?}", info.label().trim_end()));
        }
    }
    let (slot, info) = match slots.pop() {
        Some(_) if !slots.is_empty() => return Err(TokenError::Ambiguous { label: label.clone() }),
        Some(one) => one,
        None => return Err(TokenError::NoSuchToken { label: label.clone(), found }),
    };
    if module.get_mechanism_info(slot, MechanismType::EDDSA).is_err() {
        return Err(TokenError::Unsupported { label: label.clone(), mechanism: "CKM_EDDSA" });
    }
    if info.user_pin_locked() {
        return Err(TokenError::Locked { label: label.clone() });
    }
    if info.user_pin_final_try() {
        return Err(TokenError::LastTry { label: label.clone() });
    }
    // Not closed when it is dropped: after the module was initialized anew, its handle may be another's.
    let home = module.open_rw_session_no_drop(slot).map_err(failed)?;
    match home.login(UserType::User, Some(&AuthPin::from(settings.pin.as_str()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(error) => {
            // It is of no use any more, and if it stays open the module ends it.
            let _ = home.close();
            return Err(failed(error));
        }
    }
    Ok(Link { slot, home: Mutex::new(home) })
}
