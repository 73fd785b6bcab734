//! Sealing private keys, and opening them: `cargo bench --bench micro -- seal`.

use std::hint::black_box;

use chancery::keyring::{self, Algorithm, DataKey, DataKeyPlace, Kek, KeyIdentity, Opener, jwk};
use chancery::signing::PrivateKey;
use chancery::types::{KeyId, RingId};
use criterion::Criterion;

/// A private key under a data key; both ways compute its public key, to prove that it is the right one.
pub(crate) fn seal(criterion: &mut Criterion) {
    let place = DataKeyPlace { database_id: "a database".to_owned(), ring: RingId(1) };
    let (data_key, _) = DataKey::generate(&Kek::generate().unwrap(), &place).unwrap();
    let key = PrivateKey::generate().unwrap();
    let public_key = key.public_key();
    let identity = KeyIdentity {
        database_id: place.database_id,
        ring: place.ring,
        key: KeyId(1),
        kid: jwk::kid(&public_key),
        algorithm: Algorithm::Ed25519,
    };
    let blob = keyring::seal(&data_key, &identity, &key).unwrap();

    let mut group = criterion.benchmark_group("seal");
    group.bench_function("seal", |b| {
        b.iter(|| keyring::seal(&data_key, &identity, black_box(&key)).unwrap());
    });
    group.bench_function("unseal", |b| {
        let (opener, blob) = (Opener::DataKey(&data_key), blob.as_slice());
        let public_key = public_key.as_bytes();
        b.iter(|| keyring::unseal(opener, &identity, public_key, black_box(blob)).unwrap());
    });
    group.finish();
}
