//! What can be wrong with a token, and what each answer of its module means.

use std::path::PathBuf;

use cryptoki::error::{Error, RvError};

use crate::types::Kid;

/// Why a token did not do what it was asked for. It never quotes the PIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The module does not load.
    #[error("the PKCS#11 module {} cannot be used: {reason}", path.display())]
    Module {
        /// The module (pkcs11.module).
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No token has this label.
    #[error("the PKCS#11 module has no token {label:?}: {}", in_words(found))]
    NoSuchToken {
        /// The label wanted (pkcs11.token_label).
        label: String,
        /// The labels that there are.
        found: Vec<String>,
    },
    /// More than one token has this label.
    #[error("several tokens are called {label:?}: give each a label of its own")]
    Ambiguous {
        /// The label.
        label: String,
    },
    /// The PIN is wrong. It is not tried again in the life of this process.
    #[error("token {label:?} refuses the PIN (pkcs11.pin_file); it is not tried again")]
    WrongPin {
        /// The token.
        label: String,
    },
    /// One more wrong PIN would lock the token, so none is tried.
    #[error(
        "token {label:?} would be locked by one more wrong PIN, so none was tried: log in by other \
         means with the right one first"
    )]
    LastTry {
        /// The token.
        label: String,
    },
    /// The token is locked.
    #[error("token {label:?} is locked, or its PIN has expired or was never set")]
    Locked {
        /// The token.
        label: String,
    },
    /// The token cannot do what is needed.
    #[error("token {label:?} does not support {mechanism}")]
    Unsupported {
        /// The token.
        label: String,
        /// The mechanism, by its name in PKCS#11.
        mechanism: &'static str,
    },
    /// The token answers, and does not have the key.
    #[error("token {label:?} does not have key {kid}")]
    NoSuchKey {
        /// The token.
        label: String,
        /// The key.
        kid: Kid,
    },
    /// What the token has under the key's id is something else. Nothing that it signed was used.
    #[error("what token {label:?} has under the id of key {kid} is not that key: {reason}")]
    WrongKey {
        /// The token.
        label: String,
        /// The key.
        kid: Kid,
        /// How that shows.
        reason: String,
    },
    /// The token takes no such data.
    #[error("token {label:?} does not sign this payload: {reason}")]
    Payload {
        /// The token.
        label: String,
        /// Why.
        reason: String,
    },
    /// The token refuses, and will again.
    #[error("token {label:?} refuses: {reason}")]
    Refused {
        /// The token.
        label: String,
        /// Its answer.
        reason: String,
    },
    /// The token is away, also after its session was opened anew.
    #[error("token {label:?} is unavailable: {reason}")]
    Unavailable {
        /// The token.
        label: String,
        /// Its last answer.
        reason: String,
    },
    /// A store of these signatures would be fenced.
    #[error("the deadline passed before every record was signed")]
    PastDeadline,
}

impl TokenError {
    /// Whether the same can succeed later, without anybody's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, TokenError::Unavailable { .. } | TokenError::PastDeadline)
    }

    /// Whether it is the fault of what was to be signed, and not of the token.
    #[must_use]
    pub fn is_of_the_payload(&self) -> bool {
        matches!(self, TokenError::Payload { .. })
    }

    /// As it is told while signing goes on: a token that is missing may come back.
    pub(super) fn while_signing(self, label: &str) -> TokenError {
        match self {
            TokenError::Module { .. }
            | TokenError::NoSuchToken { .. }
            | TokenError::Ambiguous { .. }
            | TokenError::Refused { .. } => {
                TokenError::Unavailable { label: label.to_owned(), reason: self.to_string() }
            }
            other => other,
        }
    }
}

fn in_words(found: &[String]) -> String {
    if found.is_empty() {
        "it has none at all".to_owned()
    } else {
        format!("it has {}", found.join(", "))
    }
}

/// How one call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The session, the token or the device is lost; opening anew may help.
    Lost(String),
    /// Anything else.
    Final(TokenError),
}

impl Failure {
    /// What the module's answer means for the token `label`.
    pub(super) fn of(label: &str, error: &Error) -> Failure {
        let label = label.to_owned();
        let reason = error.to_string().replacen("Function::", "C_", 1);
        let Error::Pkcs11(answer, _) = error else {
            return Failure::Final(TokenError::Refused { label, reason });
        };
        match answer {
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => {
                Failure::Final(TokenError::WrongPin { label })
            }
            RvError::PinLocked | RvError::PinExpired | RvError::UserPinNotInitialized => {
                Failure::Final(TokenError::Locked { label })
            }
            RvError::DataInvalid | RvError::DataLenRange => {
                Failure::Final(TokenError::Payload { label, reason })
            }
            answer if is_of_what_is_asked(answer) => {
                Failure::Final(TokenError::Refused { label, reason })
            }
            // All others, vendors' own among them, may be those of a device that went away.
            _ => Failure::Lost(reason),
        }
    }

    /// The error to be told when opening anew did not help.
    pub(super) fn give_up(self, label: &str) -> TokenError {
        match self {
            Failure::Lost(reason) => TokenError::Unavailable { label: label.to_owned(), reason },
            Failure::Final(error) => error,
        }
    }
}

/// Answers to the question itself, which would be the same in any session.
fn is_of_what_is_asked(answer: &RvError) -> bool {
    matches!(
        answer,
        RvError::ArgumentsBad
            | RvError::AttributeReadOnly
            | RvError::AttributeSensitive
            | RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::ActionProhibited
            | RvError::FunctionNotSupported
            | RvError::CurveNotSupported
            | RvError::KeySizeRange
            | RvError::KeyTypeInconsistent
            | RvError::KeyFunctionNotPermitted
            | RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::SessionReadOnly
            | RvError::TemplateIncomplete
            | RvError::TemplateInconsistent
            | RvError::TokenWriteProtected
            | RvError::DomainParamsInvalid
    )
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn what_a_lost_token_answers_is_retryable_and_what_a_question_gets_is_not() {
        let of = |answer| Failure::of("t", &Error::Pkcs11(answer, Function::Sign)).give_up("t");
        let lost = [
            RvError::DeviceRemoved,
            RvError::DeviceError,
            RvError::TokenNotPresent,
            RvError::SessionHandleInvalid,
            RvError::SessionClosed,
            RvError::UserNotLoggedIn,
            RvError::GeneralError,
            RvError::CryptokiNotInitialized,
            RvError::ObjectHandleInvalid,
            RvError::KeyHandleInvalid,
            RvError::VendorDefined(0x8000_0001),
        ];
        for answer in lost {
            let error = of(answer);
            assert!(error.is_retryable() && !error.is_of_the_payload(), "{answer:?}: {error}");
            assert!(error.to_string().starts_with("token \"t\" is unavailable: C_Sign"), "{error}");
        }
        for answer in [RvError::MechanismInvalid, RvError::PinIncorrect, RvError::PinLocked] {
            assert!(!of(answer).is_retryable(), "{answer:?}");
        }
        assert!(of(RvError::DataLenRange).is_of_the_payload());
    }
}
