//! What signing and verification promise.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::types::{Position, RecordId};

fn hex<const N: usize>(digits: &str) -> [u8; N] {
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    let pair = |two: &[char]| u8::from_str_radix(&String::from_iter(two), 16).unwrap();
    digits.chunks(2).map(pair).collect::<Vec<_>>().try_into().unwrap()
}

fn records(count: i64) -> Vec<Record> {
    (0..count)
        .map(|n| Record {
            position: Position { xid: 0, id: RecordId(n) },
            payload: format!("record {n}").into_bytes(),
        })
        .collect()
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(Zeroizing::new([seed; 32]))
}

/// Payloads signed in turn by three keys, as (key, payload, signature).
fn signed(count: i64) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let keys = [key(1), key(2), key(3)];
    let mut signed = Vec::new();
    for (record, key) in records(count).into_iter().zip(keys.iter().cycle()) {
        let signature = sign_one(Engine::AwsLc, key, &record.payload).unwrap();
        signed.push((key.public_key().0.to_vec(), record.payload, signature.0.to_vec()));
    }
    signed
}

fn verify(signed: &[(Vec<u8>, Vec<u8>, Vec<u8>)]) -> Result<(), Vec<usize>> {
    let items: Vec<_> = signed
        .iter()
        .map(|(public_key, payload, signature)| Verifiable { public_key, payload, signature })
        .collect();
    verify_all(&items)
}

/// RFC 8032, section 7.1.
fn assert_vector(seed: &str, public_key: &str, payload: &[u8], signature: &str) {
    let key = PrivateKey::from_seed(Zeroizing::new(hex(seed)));
    assert_eq!(key.public_key().0, hex(public_key));
    let records = [Record { position: Position::START, payload: payload.to_vec() }];
    for engine in Engine::ALL {
        let signatures = sign_each(*engine, &key, &records, || true).unwrap();
        assert_eq!(signatures, [Signature(hex(signature))], "{engine}");
        assert_eq!(verify_one(&key.public_key(), payload, &signatures[0]), Ok(()));
    }
}

#[test]
fn the_vectors_of_rfc_8032_are_reproduced() {
    assert_vector(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e
         39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    );
    assert_vector(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        &[0x72],
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f
         3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    assert_vector(
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        &[0xaf, 0x82],
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67
         f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    );
    assert_vector(
        "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5",
        "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
        &hex::<1023>(RFC_8032_TEST_1024),
        "0aab4c900501b3e24d7cdf4663326a3a87df5e4843b2cbdb67cbf6e460fec350aa5371b1508f9f4528ec
         ea23c436d94b5e8fcd4f681e30a6ac00a9704a188a03",
    );
    assert_vector(
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        &hex::<64>(
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfb
         c7c66431e0303dca179c138ac17ad9bef1177331a704",
    );
}

#[test]
fn every_engine_gives_the_same_bytes() {
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let mut compared = 0;
    for _ in 0..24 {
        let mut seed = Zeroizing::new([0; 32]);
        generator.fill_bytes(seed.as_mut_slice());
        let key = PrivateKey::from_seed(seed);
        for length in [0, 1, 63, 64, 111, 112, 127, 128, 129, 256, 4_096, 70_000] {
            let mut payload = vec![0; length];
            generator.fill_bytes(&mut payload);
            let [first, rest @ ..] = Engine::ALL else { panic!("there are several engines") };
            let signature = sign_one(*first, &key, &payload).unwrap();
            for engine in rest {
                assert_eq!(sign_one(*engine, &key, &payload).unwrap(), signature, "{engine}");
                compared += 1;
            }
        }
    }
    assert!(compared > 200);
}

#[test]
fn the_deadline_is_asked_for_before_each_signature_and_respected() {
    let sign_until = |limit| {
        let mut asked = 0;
        let may_go_on = || {
            asked += 1;
            asked <= limit
        };
        let result = sign_each(Engine::Dalek, &key(1), &records(5), may_go_on);
        (result.map(|signatures| signatures.len()), asked)
    };
    assert!(matches!(sign_until(5), (Ok(5), 5)));
    assert!(matches!(sign_until(3), (Err(SigningError::PastDeadline), 4)));
    assert!(matches!(sign_until(0), (Err(SigningError::PastDeadline), 1)));
}

#[test]
fn a_signature_is_good_for_its_own_key_and_payload_only() {
    let signature = sign_one(Engine::Dalek, &key(1), b"payload").unwrap();
    let verify = |seed, payload: &[u8]| verify_one(&key(seed).public_key(), payload, &signature);
    assert_eq!(verify(1, b"payload"), Ok(()));
    assert_eq!(verify(2, b"payload"), Err(BadSignature));
    assert_eq!(verify(1, b"Payload"), Err(BadSignature));
}

#[test]
fn good_signatures_pass_in_lists_of_any_length() {
    assert_eq!(verify(&[]), Ok(()));
    for count in [1, 1_023, 1_024, 1_025, 2_100] {
        let signed = signed(count);
        assert_eq!(signed.len(), usize::try_from(count).unwrap());
        assert_eq!(verify(&signed), Ok(()));
    }
}

#[test]
fn every_tampered_item_is_found_at_its_index() {
    let mut signed = signed(2_100);
    signed[0].2[5] ^= 1;
    signed[1_023].1.push(b'!');
    signed[1_024].0 = key(9).public_key().0.to_vec();
    signed[1_200].2[63] ^= 0x80;
    signed[1_300].2.truncate(63);
    signed[1_301].0 = vec![0xff; 32];
    signed[1_302].0.clear();
    signed[2_099].1[0] ^= 1;
    assert_eq!(verify(&signed), Err(vec![0, 1_023, 1_024, 1_200, 1_300, 1_301, 1_302, 2_099]));
}

#[test]
fn swapped_signatures_of_one_key_are_found() {
    let mut signed = signed(9);
    let first = signed[1].2.clone();
    signed[1].2 = std::mem::replace(&mut signed[4].2, first);
    assert_eq!(verify(&signed), Err(vec![1, 4]));
}

#[test]
fn a_key_is_read_back_from_its_bytes() {
    let key = PrivateKey::generate().unwrap();
    assert_eq!(PublicKey::from_bytes(key.public_key().as_bytes()), Ok(key.public_key()));
    assert_eq!(PrivateKey::from_seed(key.seed()).public_key(), key.public_key());
    assert_ne!(PrivateKey::generate().unwrap().seed(), key.seed());
}

#[test]
fn bytes_that_are_no_sound_public_key_are_refused() {
    let refusal = |bytes: &[u8]| PublicKey::from_bytes(bytes).unwrap_err();
    assert_eq!(refusal(&[0; 31]), PublicKeyError::Length { bytes: 31 });
    assert_eq!(refusal(&with_low_byte(2)), PublicKeyError::NotAPoint);
    assert_eq!(refusal(&with_low_byte(1)), PublicKeyError::Weak);
    assert_eq!(refusal(&with_low_byte(0)), PublicKeyError::Weak);

    // y = 3 is a point of the curve; y = p + 3 encodes the same one.
    let mut above_p = [0xff; 32];
    (above_p[0], above_p[31]) = (0xed + 3, 0x7f);
    assert!(VerifyingKey::from_bytes(&above_p).is_ok());
    assert_eq!(refusal(&above_p), PublicKeyError::NotCanonical);

    let order_4 = VerifyingKey::from_bytes(&with_low_byte(0)).unwrap();
    let sound = key(1).dalek.verifying_key();
    let mixed = VerifyingKey::from(order_4.to_edwards() + sound.to_edwards());
    assert!(!mixed.is_weak());
    assert_eq!(refusal(mixed.as_bytes()), PublicKeyError::Weak);
}

fn with_low_byte(byte: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = byte;
    bytes
}

#[test]
fn a_private_key_is_wiped_and_shows_nothing_in_debug_output() {
    fn is_wiped<T: zeroize::ZeroizeOnDrop>(_: &T) {}
    is_wiped(&*key(1).dalek);
    assert_eq!(format!("{:?}", key(0xab)), "PrivateKey(<redacted>)");
}

#[test]
fn an_engine_reads_back_from_its_name() {
    for engine in Engine::ALL {
        assert_eq!(engine.to_string().parse(), Ok(*engine));
    }
    assert_eq!(Engine::default(), Engine::AwsLc);
    assert_eq!(
        "ring".parse::<Engine>(),
        Err(UnknownWord { what: "signing engine", value: "ring".to_owned() })
    );
}

const RFC_8032_TEST_1024: &str = "
    08b8b2b733424243760fe426a4b54908632110a66c2f6591eabd3345e3e4eb98fa6e264bf09efe12ee50f8f54e
    9f77b1e355f6c50544e23fb1433ddf73be84d879de7c0046dc4996d9e773f4bc9efe5738829adb26c81b37c93a
    1b270b20329d658675fc6ea534e0810a4432826bf58c941efb65d57a338bbd2e26640f89ffbc1a858efcb8550e
    e3a5e1998bd177e93a7363c344fe6b199ee5d02e82d522c4feba15452f80288a821a579116ec6dad2b3b310da9
    03401aa62100ab5d1a36553e06203b33890cc9b832f79ef80560ccb9a39ce767967ed628c6ad573cb116dbefef
    d75499da96bd68a8a97b928a8bbc103b6621fcde2beca1231d206be6cd9ec7aff6f6c94fcd7204ed3455c68c83
    f4a41da4af2b74ef5c53f1d8ac70bdcb7ed185ce81bd84359d44254d95629e9855a94a7c1958d1f8ada5d0532e
    d8a5aa3fb2d17ba70eb6248e594e1a2297acbbb39d502f1a8c6eb6f1ce22b3de1a1f40cc24554119a831a9aad6
    079cad88425de6bde1a9187ebb6092cf67bf2b13fd65f27088d78b7e883c8759d2c4f5c65adb7553878ad575f9
    fad878e80a0c9ba63bcbcc2732e69485bbc9c90bfbd62481d9089beccf80cfe2df16a2cf65bd92dd597b0707e0
    917af48bbb75fed413d238f5555a7a569d80c3414a8d0859dc65a46128bab27af87a71314f318c782b23ebfe80
    8b82b0ce26401d2e22f04d83d1255dc51addd3b75a2b1ae0784504df543af8969be3ea7082ff7fc9888c144da2
    af58429ec96031dbcad3dad9af0dcbaaaf268cb8fcffead94f3c7ca495e056a9b47acdb751fb73e666c6c655ad
    e8297297d07ad1ba5e43f1bca32301651339e22904cc8c42f58c30c04aafdb038dda0847dd988dcda6f3bfd15c
    4b4c4525004aa06eeff8ca61783aacec57fb3d1f92b0fe2fd1a85f6724517b65e614ad6808d6f6ee34dff7310f
    dc82aebfd904b01e1dc54b2927094b2db68d6f903b68401adebf5a7e08d78ff4ef5d63653a65040cf9bfd4aca7
    984a74d37145986780fc0b16ac451649de6188a7dbdf191f64b5fc5e2ab47b57f7f7276cd419c17a3ca8e1b939
    ae49e488acba6b965610b5480109c8b17b80e1b7b750dfc7598d5d5011fd2dcc5600a32ef5b52a1ecc820e308a
    a342721aac0943bf6686b64b2579376504ccc493d97e6aed3fb0f9cd71a43dd497f01f17c0e2cb3797aa2a2f25
    6656168e6c496afc5fb93246f6b1116398a346f1a641f3b041e989f7914f90cc2c7fff357876e506b50d334ba7
    7c225bc307ba537152f3f1610e4eafe595f6d9d90d11faa933a15ef1369546868a7f3a45a96768d40fd9d03412
    c091c6315cf4fde7cb68606937380db2eaaa707b4c4185c32eddcdd306705e4dc1ffc872eeee475a64dfac86ab
    a41c0618983f8741c5ef68d3a101e8a3b8cac60c905c15fc910840b94c00a0b9d0";
