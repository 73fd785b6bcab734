//! Signing by each engine, and verification: `cargo bench --bench micro -- 'sign|verify'`.

use std::hint::black_box;
use std::slice;

use chancery::signing::{
    Engine, PrivateKey, PublicKey, Signature, Verifiable, sign_each, verify_all, verify_one,
};
use chancery::types::{Position, Record, RecordId};
use criterion::{BenchmarkId, Criterion, Throughput};
use ed25519_dalek::{VerifyingKey, verify_batch};

const BATCH: usize = 500;

/// As many as [`verify_all`] hands to the library at once.
const CHUNK: usize = 1024;

/// A batch of payloads of several sizes, in bytes.
pub(crate) fn sign(criterion: &mut Criterion) {
    let key = PrivateKey::generate().unwrap();
    let mut group = criterion.benchmark_group("sign");
    group.throughput(Throughput::Elements(BATCH as u64));
    for payload_bytes in [64, 256, 4096] {
        let records = records_of(BATCH, payload_bytes);
        for engine in Engine::ALL {
            group.bench_function(BenchmarkId::new(engine.as_str(), payload_bytes), |b| {
                let records = records.as_slice();
                b.iter(|| sign_each(*engine, &key, black_box(records), || true).unwrap());
            });
        }
    }
    group.finish();
}

/// Signatures over payloads of 256 bytes: ours, which reads keys and signatures from bytes, and the bare
/// library on what has been read.
pub(crate) fn verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");

    for (keys, what) in [(1, format!("{CHUNK} of one key")), (100, format!("{CHUNK} of 100 keys"))]
    {
        let signed = sign_in_turn(CHUNK, keys);
        let items: Vec<Verifiable<'_>> = signed.iter().map(Signed::verifiable).collect();
        group.throughput(Throughput::Elements(CHUNK as u64));
        group.bench_function(BenchmarkId::new("verify_all", what), |b| {
            b.iter(|| verify_all(black_box(items.as_slice())).unwrap());
        });
    }

    let signed = sign_in_turn(1, 1);
    let one = &signed[0];
    group.throughput(Throughput::Elements(1));
    group.bench_function("verify_one", |b| {
        let payload = one.payload.as_slice();
        b.iter(|| verify_one(&one.public_key, black_box(payload), &one.signature).unwrap());
    });

    for count in [512, 1000] {
        let signed = sign_in_turn(count, 1);
        let payloads: Vec<&[u8]> = signed.iter().map(|one| one.payload.as_slice()).collect();
        let signatures: Vec<ed25519_dalek::Signature> = signed
            .iter()
            .map(|one| ed25519_dalek::Signature::from_bytes(one.signature.as_bytes()))
            .collect();
        let keys: Vec<VerifyingKey> = signed
            .iter()
            .map(|one| VerifyingKey::from_bytes(one.public_key.as_bytes()).unwrap())
            .collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("bare library", count), |b| {
            let payloads = payloads.as_slice();
            b.iter(|| verify_batch(black_box(payloads), &signatures, &keys).unwrap());
        });
    }
    group.finish();
}

fn records_of(count: usize, payload_bytes: usize) -> Vec<Record> {
    (1_i64..)
        .take(count)
        .map(|n| {
            let position = Position { xid: 0, id: RecordId(n) };
            let mut payload = vec![0x5a_u8; payload_bytes];
            payload[..8].copy_from_slice(&n.to_be_bytes());
            Record { position, payload }
        })
        .collect()
}

/// A payload with its signature.
struct Signed {
    public_key: PublicKey,
    payload: Vec<u8>,
    signature: Signature,
}

impl Signed {
    fn verifiable(&self) -> Verifiable<'_> {
        Verifiable {
            public_key: self.public_key.as_bytes(),
            payload: &self.payload,
            signature: self.signature.as_bytes(),
        }
    }
}

/// Payloads that so many keys have signed in turn.
fn sign_in_turn(count: usize, keys: usize) -> Vec<Signed> {
    let keys: Vec<PrivateKey> = (0..keys).map(|_| PrivateKey::generate().unwrap()).collect();
    records_of(count, 256)
        .into_iter()
        .zip(keys.iter().cycle())
        .map(|(record, key)| {
            let alone = slice::from_ref(&record);
            let signatures = sign_each(Engine::default(), key, alone, || true).unwrap();
            Signed {
                public_key: key.public_key(),
                signature: signatures[0],
                payload: record.payload,
            }
        })
        .collect()
}
