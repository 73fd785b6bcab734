//! The library's own way to a token, each test in a process of its own: the module finds its tokens by
//! the process's environment, and is initialized for a whole process.

use std::path::{Path, PathBuf};
use std::process::Command;

use chancery::keyring::pkcs11::{Token, TokenError, TokenKeyRef, TokenSettings};
use chancery::signing::verify_one;
use chancery::types::{Position, Record, RecordId};
use cryptoki::context::Pkcs11;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

use crate::support::softhsm::{LABEL, PIN, make_token, module};

const OWN_PROCESS: &str = "CHANCERY_TEST_TOKEN_PROCESS";

/// Runs `test` over a new token, in a process that does only that.
fn in_own_process(name: &str, test: impl FnOnce(Token)) {
    if std::env::var_os(OWN_PROCESS).is_some() {
        return test(open());
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = make_token(folder.path(), LABEL);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("token::module::{name}"), "--nocapture"])
        .env(OWN_PROCESS, "1")
        .env("SOFTHSM2_CONF", settings)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

fn open() -> Token {
    let pin = Zeroizing::new(PIN.to_owned());
    Token::open(TokenSettings { module: module(), token_label: LABEL.to_owned(), pin }).unwrap()
}

fn generate(token: &Token) -> TokenKeyRef {
    let key = token.generate("chancery/test/ring").unwrap();
    TokenKeyRef { kid: key.kid, public_key: key.public_key }
}

fn records(count: i64) -> Vec<Record> {
    let record = |id| Record {
        position: Position { xid: 0, id: RecordId(id) },
        payload: format!("record {id}").into_bytes(),
    };
    (0..count).map(record).collect()
}

/// A way to the module beside the library's, in a session that is logged in because the library is.
fn beside(path: &Path) -> (Pkcs11, Session) {
    let module = Pkcs11::new(path).unwrap();
    let slots = module.get_slots_with_initialized_token().unwrap();
    let session = module.open_rw_session(slots[0]).unwrap();
    (module, session)
}

fn object(session: &Session, class: ObjectClass, key: &TokenKeyRef) -> ObjectHandle {
    let label = format!("chancery/test/ring/{}", key.kid).into_bytes();
    let found = session.find_objects(&[Attribute::Class(class), Attribute::Label(label)]).unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

fn set_id(session: &Session, class: ObjectClass, key: &TokenKeyRef, id: &[u8]) {
    let object = object(session, class, key);
    session.update_attributes(object, &[Attribute::Id(id.to_vec())]).unwrap();
}

fn id_of(session: &Session, key: &TokenKeyRef) -> Vec<u8> {
    let object = object(session, ObjectClass::PRIVATE_KEY, key);
    match session.get_attributes(object, &[AttributeType::Id]).unwrap().remove(0) {
        Attribute::Id(id) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_is_found_by_its_kid_signs_and_stays_on_the_token() {
    in_own_process("a_key_is_found_by_its_kid_signs_and_stays_on_the_token", |token| {
        let (key, other) = (generate(&token), generate(&token));
        assert_eq!(token.find(&key.kid).unwrap(), Some(key.public_key));
        let (_module, session) = beside(&module());
        let private = object(&session, ObjectClass::PRIVATE_KEY, &key);
        let asked = [
            AttributeType::Token,
            AttributeType::Private,
            AttributeType::Sensitive,
            AttributeType::AlwaysSensitive,
            AttributeType::NeverExtractable,
            AttributeType::Extractable,
            AttributeType::Sign,
            AttributeType::Decrypt,
            AttributeType::Unwrap,
            AttributeType::Derive,
        ];
        let attributes = session.get_attributes(private, &asked).unwrap();
        let yes = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::AlwaysSensitive(true),
            Attribute::NeverExtractable(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
        ];
        assert_eq!(attributes, yes);

        let records = records(50);
        let signatures = token.session().sign_each(&key, &records, &mut || true).unwrap();
        assert_eq!(signatures.len(), records.len());
        for (record, signature) in records.iter().zip(&signatures) {
            verify_one(&key.public_key, &record.payload, signature).unwrap();
        }
        assert!(token.destroy(&key.kid).unwrap());
        assert!(!token.destroy(&key.kid).unwrap());
        let gone = token.session().sign_each(&key, &records, &mut || true).unwrap_err();
        assert!(matches!(gone, TokenError::NoSuchKey { .. }), "{gone}");
        let left: Vec<_> = token.list().unwrap().into_iter().map(|object| object.kid).collect();
        assert_eq!(left, [Some(other.kid)]);
    });
}

#[test]
fn the_deadline_is_asked_for_before_each_signature() {
    in_own_process("the_deadline_is_asked_for_before_each_signature", |token| {
        let key = generate(&token);
        let mut asked = 0;
        let mut may_go_on = || {
            asked += 1;
            asked <= 3
        };
        let ended = token.session().sign_each(&key, &records(10), &mut may_go_on);
        assert_eq!((ended, asked), (Err(TokenError::PastDeadline), 4));
    });
}

#[test]
fn what_another_key_signed_is_never_given_out() {
    in_own_process("what_another_key_signed_is_never_given_out", |token| {
        let (key, other) = (generate(&token), generate(&token));
        let (_module, session) = beside(&module());
        let id = id_of(&session, &key);
        let mut signing = token.session();
        signing.sign_each(&key, &records(2), &mut || true).unwrap();

        // The other private key in its place, under the right public key.
        set_id(&session, ObjectClass::PRIVATE_KEY, &key, &[1; 32]);
        set_id(&session, ObjectClass::PRIVATE_KEY, &other, &id);
        let wrong = |expected: &str| {
            let error = token.session().sign_each(&key, &records(2), &mut || true).unwrap_err();
            assert!(matches!(error, TokenError::WrongKey { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        };
        wrong("its signature does not verify");
        // The other pair as a whole.
        set_id(&session, ObjectClass::PUBLIC_KEY, &key, &[1; 32]);
        set_id(&session, ObjectClass::PUBLIC_KEY, &other, &id);
        wrong("its public key is another's");
        assert!(token.find(&key.kid).is_err());
        // Both.
        set_id(&session, ObjectClass::PRIVATE_KEY, &key, &id);
        wrong("there are several");
    });
}

#[test]
fn a_lost_session_and_a_lost_module_are_opened_anew() {
    in_own_process("a_lost_session_and_a_lost_module_are_opened_anew", |token| {
        let key = generate(&token);
        let (mut first, mut second) = (token.session(), token.session());
        let records = records(5);
        for session in [&mut first, &mut second] {
            session.sign_each(&key, &records, &mut || true).unwrap();
        }
        Pkcs11::new(module()).unwrap().finalize().unwrap();
        // One finds out first; the other's handles are of before, and could be anybody's now.
        for session in [&mut first, &mut second] {
            let signatures = session.sign_each(&key, &records, &mut || true).unwrap();
            for (record, signature) in records.iter().zip(&signatures) {
                verify_one(&key.public_key, &record.payload, signature).unwrap();
            }
        }
        token.probe().unwrap();
    });
}

#[test]
fn a_token_that_is_away_says_so_and_comes_back() {
    in_own_process("a_token_that_is_away_says_so_and_comes_back", |token| {
        let key = generate(&token);
        let mut session = token.session();
        session.sign_each(&key, &records(1), &mut || true).unwrap();
        let settings = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap());
        let tokens = settings.with_file_name("tokens");
        let away = settings.with_file_name("away");
        std::fs::rename(&tokens, &away).unwrap();
        let error = session.sign_each(&key, &records(1), &mut || true).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains(LABEL), "{error}");
        assert!(token.probe().unwrap_err().is_retryable());
        std::fs::rename(&away, &tokens).unwrap();
        crate::support::wait_until("the token is back", || token.probe().is_ok());
        assert_eq!(session.sign_each(&key, &records(3), &mut || true).unwrap().len(), 3);
    });
}
