//! Every parser of what comes from outside, as a function of any bytes that panics where a promise is
//! broken: for the fuzz targets in `fuzz/`, and for the property tests below.

use std::path::Path;

use crate::config::Loaded;
use crate::intake::{Fields, Format, Intake};
use crate::keyring::{
    Algorithm, DataKey, DataKeyPlace, Kek, KeyIdentity, Opener, jwk, private, unseal,
};
use crate::types::{KeyId, Kid, RingId};

/// Private keys: whatever is read is a key that is read again from its seed.
///
/// # Panics
/// If it is not.
pub fn private_key(data: &[u8]) {
    let Ok(keys) = private::read_keys(data, None, None) else { return };
    assert!(!keys.is_empty(), "a file without a key is an error");
    for key in keys {
        let seed: String = key.seed().iter().map(|byte| format!("{byte:02x}")).collect();
        let again = private::read_keys(seed.as_bytes(), None, None);
        let again = again.ok().and_then(|mut keys| keys.pop()).map(|key| key.public_key());
        assert_eq!(again, Some(key.public_key()));
    }
}

/// Sealed keys and wrapped data keys: nothing opens but the vectors of docs/SECURITY.md.
///
/// # Panics
/// If something else does.
pub fn sealed_key(data: &[u8]) {
    let Ok(kek) = Kek::parse(KEK, "a vector", None) else { return };
    let place = DataKeyPlace { database_id: "a database".to_owned(), ring: RingId(1) };
    let opens = DataKey::unwrap(&kek, &place, data).is_ok();
    assert_eq!(opens, data == DATA_KEY, "only the wrapped data key opens");
    let Ok(data_key) = DataKey::unwrap(&kek, &place, &DATA_KEY) else { return };
    let identity = KeyIdentity {
        database_id: "a database".to_owned(),
        ring: RingId(1),
        key: KeyId(2),
        kid: Kid(KID.to_owned()),
        algorithm: Algorithm::Ed25519,
    };
    for opener in [Opener::DataKey(&data_key), Opener::Kek(&kek)] {
        if let Ok(key) = unseal(opener, &identity, &PUBLIC_KEY, data) {
            assert_eq!(jwk::kid(&key.public_key()).0, KID);
            assert!(
                data == SEALED_KEY || data == SEALED_KEY_VERSION_1,
                "only the sealed keys open"
            );
        }
    }
}

/// KEKs: a plain one is the same KEK when it is read again, and an encrypted one stays shut.
///
/// # Panics
/// If it is not so.
pub fn kek_text(data: &[u8]) {
    if let Ok(kek) = Kek::parse(data, "fuzz", None) {
        assert!(!Kek::needs_passphrase(data));
        let again = Kek::parse(data, "fuzz", None).map(|kek| kek.id()).ok();
        assert_eq!(again, Some(kek.id()));
    }
}

/// Configurations: what loads is rendered as what loads again as the same.
///
/// # Panics
/// If it is not.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Loaded::from_text(Path::new("fuzz.toml"), text) {
        Ok(loaded) => {
            let Ok(rendered) = loaded.render() else { return };
            // A password shows as ***, and is another one then.
            let has_password = rendered.contains("***");
            let again = Loaded::from_text(Path::new("fuzz.toml"), &rendered);
            let again = again.map(|again| again.config).ok();
            assert!(has_password || again.as_ref() == Some(&loaded.config), "{rendered}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Files to import: no payload is longer than allowed, lines only rise, and plain lines lose no byte.
/// The first byte picks the format and the fields.
///
/// # Panics
/// If it is not so.
pub fn import(data: &[u8]) {
    const MOST: usize = 1000;
    let Some((&choice, file)) = data.split_first() else { return };
    let format = match choice % 3 {
        0 => Format::Jsonl,
        1 => Format::Csv,
        _ => Format::Lines,
    };
    let field = |bit: u8, name: &str| (choice & bit != 0).then(|| name.to_owned());
    let fields = match format {
        Format::Lines => Fields::default(),
        _ => Fields { id: field(4, "id"), payload: field(8, "text") },
    };
    let Ok(records) = Intake::new(file, format, fields, MOST) else { return };
    let mut line = 0;
    let mut is_whole = true;
    let mut lines = Vec::new();
    for record in records {
        match record {
            Ok(record) => {
                assert!(record.payload.len() <= MOST);
                assert!(record.line > line, "lines rise");
                line = record.line;
                lines.push(record.payload);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                is_whole = false;
            }
        }
    }
    if format == Format::Lines && is_whole {
        assert_eq!(lines.join(&b'\n'), file.strip_suffix(b"\n").unwrap_or(file));
    }
}

const KEK: &[u8] = b"chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
const KID: &str = "E916XTjJCK82vAibEGGhB3lDV7wANvlLfxiCNTqfo_c";
const DATA_KEY: [u8; 73] = [
    2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 75,
    204, 87, 233, 38, 245, 116, 231, 159, 102, 128, 129, 178, 96, 255, 160, 102, 123, 198, 42, 30,
    24, 180, 154, 24, 191, 133, 110, 124, 110, 105, 103, 183, 35, 164, 228, 150, 62, 129, 182, 74,
    97, 240, 166, 177, 231, 70, 213,
];
const SEALED_KEY: [u8; 73] = [
    2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 58,
    138, 249, 153, 231, 75, 16, 10, 20, 48, 114, 10, 208, 155, 100, 29, 19, 91, 71, 11, 147, 27,
    197, 124, 224, 96, 196, 46, 29, 222, 216, 11, 107, 128, 174, 23, 203, 87, 10, 176, 199, 247,
    187, 237, 116, 163, 193, 140,
];
const SEALED_KEY_VERSION_1: [u8; 73] = [
    1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 160,
    31, 163, 141, 242, 20, 83, 173, 45, 207, 137, 79, 238, 234, 167, 164, 87, 222, 48, 31, 28, 255,
    63, 121, 251, 21, 191, 137, 146, 196, 156, 159, 26, 63, 20, 141, 192, 184, 34, 171, 156, 67,
    218, 227, 116, 22, 158, 56,
];
const PUBLIC_KEY: [u8; 32] = [
    19, 152, 246, 44, 109, 26, 69, 124, 81, 186, 106, 75, 95, 61, 189, 47, 105, 252, 169, 50, 22,
    33, 141, 200, 153, 126, 65, 107, 209, 125, 147, 202,
];

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The files of the target's corpus, which fuzzing starts from as well.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{target}");
        files.into_iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// What is done to a file: bytes changed, cut out and put in.
    type Change = (prop::sample::Index, u8, u8);

    fn change(file: &mut Vec<u8>, (index, how, byte): &Change) {
        if file.is_empty() {
            file.push(*byte);
            return;
        }
        let at = index.index(file.len());
        match how % 4 {
            0 => file[at] = *byte,
            1 => file[at] ^= 1 << (byte % 8),
            2 => file.insert(at, *byte),
            _ => {
                file.remove(at);
            }
        }
    }

    /// Runs a target over its corpus, over the corpus with some changes, and over any bytes.
    fn try_out(target: &str, run: fn(&[u8])) {
        let corpus = corpus(target);
        corpus.iter().for_each(|file| run(file));
        let config =
            ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let changes = vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 0..6);
        let cases = (any::<prop::sample::Index>(), changes, vec(any::<u8>(), 0..200));
        let result = runner.run(&cases, |(index, changes, bytes)| {
            let mut file = index.get(&corpus).clone();
            changes.iter().for_each(|one| change(&mut file, one));
            run(&file);
            run(&bytes);
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn private_keys_of_any_bytes_keep_their_promises() {
        try_out("private_key", private_key);
    }

    #[test]
    fn sealed_keys_of_any_bytes_keep_their_promises() {
        try_out("sealed_key", sealed_key);
    }

    #[test]
    fn keks_of_any_bytes_keep_their_promises() {
        try_out("kek_text", kek_text);
    }

    #[test]
    fn configurations_of_any_bytes_keep_their_promises() {
        try_out("config", config);
    }

    #[test]
    fn imports_of_any_bytes_keep_their_promises() {
        try_out("import", import);
    }
}
