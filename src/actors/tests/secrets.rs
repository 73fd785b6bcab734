//! What carries a private key through the actors shows none of it.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::actors::key_handle::KeyHandle;
use crate::actors::messages::{Checkout, Granted, SignBatch, SignFailure};
use crate::clock::Deadline;
use crate::config::{Config, DatabaseUrl};
use crate::db::{ClaimedBatch, KeyUse};
use crate::keyring::Kek;
use crate::signing::PrivateKey;
use crate::types::{BatchId, BatchRange, Fence, KeyId, Position, RecordId, RingId, Tick};

/// A byte that stands in nothing else here, and how a seed of it may be written.
const BYTE: u8 = 0xa7;
const WRITTEN: [&str; 5] = ["167, 167", "a7a7", "A7A7", "a7, a7", "p6en"];

#[test]
fn nothing_that_carries_a_private_key_shows_it() {
    let key = Arc::new(PrivateKey::from_seed(Zeroizing::new([BYTE; 32])));
    let deadline = Deadline::new(std::time::Duration::ZERO);
    let key_use =
        KeyUse { ring: RingId(1), fence: Fence(Tick(1)), batch: BatchId(1), key: KeyId(1) };
    let range = BatchRange { low: Position::START, high: Position::START, record_count: 1 };
    let checkout = Checkout {
        batch: ClaimedBatch { key_use, range, attempts: 0 },
        key: KeyHandle::Software(Arc::clone(&key)),
        deadline: deadline.clone(),
    };
    let handle = KeyHandle::Software(Arc::clone(&key));
    let message =
        SignBatch { key: KeyHandle::Software(Arc::clone(&key)), deadline, records: Vec::new() };
    let granted = Granted { checkouts: vec![checkout.clone()], shortage: None };
    let failure = SignFailure::Faulty { record: RecordId(1), signatures: 1 };
    let mut config = Config::default();
    let url: DatabaseUrl = "postgres://u:p6enp6en@h/db?password=a7a7".parse().unwrap();
    config.database.url = url;
    config.telemetry.otlp_endpoint = Some("http://u:p6enp6en@h/?key=a7a7".parse().unwrap());
    let kek = Kek::generate().unwrap();

    let shown: Vec<String> = [
        &key as &dyn std::fmt::Debug,
        &checkout,
        &handle,
        &message,
        &granted,
        &failure,
        &config,
        &kek,
    ]
    .into_iter()
    .flat_map(|one| [format!("{one:?}"), format!("{one:#?}").replace(",\n", ", ")])
    .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
    .collect();
    assert_eq!(shown.iter().filter(|text| text.contains("<redacted>")).count(), 12, "{shown:#?}");
    for text in &shown {
        for secret in WRITTEN {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    // And what is looked for would be found.
    let plain = format!("{:?}", *key.seed());
    assert!(plain.contains(WRITTEN[0]), "{plain}");
}
