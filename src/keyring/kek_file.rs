//! A KEK as one line of text: plain, or encrypted under a passphrase.
//!
//! - plain: `chancery-kek-v1:` and the 32 bytes;
//! - encrypted: `chancery-kek-argon2id-v1:MEMORY,PASSES,LANES:SALT:SEALED`. A key of 32 bytes is derived
//!   from the passphrase by Argon2id (RFC 9106, version 0x13; MEMORY in KiB; a SALT of 16 bytes) and
//!   seals the KEK by XChaCha20-Poly1305: SEALED is the nonce (24 bytes), the encrypted KEK (32) and
//!   the tag (16). The associated data are the line up to and with its last colon.
//!
//! All bytes are in base64url without padding (RFC 4648, section 5). A file has mode 0600.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::cipher::{CipherKey, SEALED_BYTES};
use super::private_file::{self, Custody, PrivateFileError};
use super::{Kek, Passphrase};

impl Kek {
    /// Writes a new KEK to a new file, durably and with mode 0600; encrypted, if there is a passphrase.
    ///
    /// # Errors
    /// [`KekError::File`] if anything has that name or it cannot be written, after which no file is
    /// left; and [`KekError::Randomness`].
    pub fn generate_file(path: &Path, passphrase: Option<&Passphrase>) -> Result<Self, KekError> {
        let kek = Self::generate()?;
        let text = match passphrase {
            None => kek.plain_text(),
            Some(passphrase) => kek.encrypted_text(passphrase, COST)?,
        };
        private_file::create("KEK file", path, |file| write(file, &text))?;
        Ok(kek)
    }

    /// Reads a plain KEK from a file that nobody else can have read.
    ///
    /// # Errors
    /// If the file is not private, or holds something else; every message names the path.
    pub fn load_file(path: &Path) -> Result<Self, KekError> {
        let text = private_file::read("KEK file", path, Custody::Own, LONGEST_KEK_TEXT)?;
        Self::parse(&text, &path.display().to_string(), None)
    }

    /// Reads the text of a KEK that came from `source`.
    ///
    /// # Errors
    /// [`KekError::Contents`], [`KekError::NeedsPassphrase`], [`KekError::WrongPassphrase`].
    pub fn parse(
        text: &[u8],
        source: &str,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, KekError> {
        let contents = |reason| KekError::Contents { source_name: source.to_owned(), reason };
        let line = text.strip_suffix(b"\n").unwrap_or(text);
        if let Some(encoded) = line.strip_prefix(PLAIN.as_bytes()) {
            return plain(encoded).ok_or_else(|| {
                contents("what follows `chancery-kek-v1:` is not 32 bytes in base64url")
            });
        }
        if !line.starts_with(ENCRYPTED.as_bytes()) {
            return Err(contents(
                "it begins neither with `chancery-kek-v1:` nor with `chancery-kek-argon2id-v1:`",
            ));
        }
        let parts = Encrypted::parse(line).map_err(contents)?;
        let Some(passphrase) = passphrase else {
            return Err(KekError::NeedsPassphrase { source_name: source.to_owned() });
        };
        let wrong = || KekError::WrongPassphrase { source_name: source.to_owned() };
        let opened = parts.key(passphrase).ok_or_else(wrong)?.open(parts.bound, &parts.sealed);
        opened.ok().and_then(|bytes| Kek::copy_of(bytes.as_slice())).ok_or_else(wrong)
    }

    /// Whether a text is that of a KEK under a passphrase.
    #[must_use]
    pub fn needs_passphrase(text: &[u8]) -> bool {
        text.starts_with(ENCRYPTED.as_bytes())
    }

    fn plain_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(LONGEST_KEK_TEXT));
        text.push_str(PLAIN);
        URL_SAFE_NO_PAD.encode_string(self.as_bytes(), &mut text);
        text.push('\n');
        text
    }

    fn encrypted_text(
        &self,
        passphrase: &Passphrase,
        cost: Cost,
    ) -> Result<Zeroizing<String>, KekError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(KekError::Randomness)?;
        let Cost { memory_kib, passes, lanes } = cost;
        let salt_text = URL_SAFE_NO_PAD.encode(salt);
        let bound = format!("{ENCRYPTED}{memory_kib},{passes},{lanes}:{salt_text}:");
        let key = cost.derive(passphrase, &salt).ok_or(KekError::Argon2)?;
        let sealed = key.seal(bound.as_bytes(), self.as_bytes()).map_err(KekError::Randomness)?;
        Ok(Zeroizing::new(format!("{bound}{}\n", URL_SAFE_NO_PAD.encode(sealed))))
    }
}

fn plain(encoded: &[u8]) -> Option<Kek> {
    let mut decoded = Zeroizing::new([0; 64]);
    let length = URL_SAFE_NO_PAD.decode_slice(encoded, decoded.as_mut_slice()).ok()?;
    Kek::copy_of(decoded.get(..length)?)
}

/// The parts of an encrypted KEK.
struct Encrypted<'a> {
    bound: &'a [u8],
    cost: Cost,
    salt: [u8; SALT_BYTES],
    sealed: [u8; SEALED_BYTES],
}

impl<'a> Encrypted<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(line).map_err(|_| "it is no text")?;
        let (bound, sealed) = text.rsplit_once(':').ok_or("it has too few parts")?;
        let fields = bound.strip_prefix(ENCRYPTED).ok_or("it has too few parts")?;
        let (cost, salt) = fields.split_once(':').ok_or("it has too few parts")?;
        Ok(Encrypted {
            bound: &line[..=bound.len()],
            cost: Cost::parse(cost)?,
            salt: exact(salt).ok_or("its salt is not 16 bytes in base64url")?,
            sealed: exact(sealed).ok_or("its last part is not 72 bytes in base64url")?,
        })
    }

    fn key(&self, passphrase: &Passphrase) -> Option<CipherKey> {
        self.cost.derive(passphrase, &self.salt)
    }
}

fn exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// What Argon2id costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// RFC 9106, section 4, the second recommendation: 64 MiB, 3 passes, 4 lanes.
const COST: Cost = Cost { memory_kib: 65_536, passes: 3, lanes: 4 };

impl Cost {
    /// A file may not ask for more than a machine that signs can give within seconds.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut numbers = text.split(',').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let (Some(memory_kib), Some(passes), Some(lanes), None) =
            (next(), next(), next(), numbers.next())
        else {
            return Err("its cost is not three numbers: KiB of memory, passes, lanes");
        };
        let in_bounds = (8 * 1024..=1024 * 1024).contains(&memory_kib)
            && (1..=16).contains(&passes)
            && (1..=16).contains(&lanes);
        if in_bounds {
            Ok(Cost { memory_kib, passes, lanes })
        } else {
            Err(
                "its cost is out of bounds: 8192 to 1048576 KiB of memory, 1 to 16 passes and lanes",
            )
        }
    }

    fn derive(self, passphrase: &Passphrase, salt: &[u8]) -> Option<CipherKey> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()?;
        let mut derived = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt, derived.as_mut_slice())
            .ok()?;
        CipherKey::copy_of(derived.as_slice())
    }
}

fn write(mut file: &File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())
}

const PLAIN: &str = "chancery-kek-v1:";
const ENCRYPTED: &str = "chancery-kek-argon2id-v1:";
const SALT_BYTES: usize = 16;
/// Longer than either form is.
pub const LONGEST_KEK_TEXT: usize = 256;

/// Why there is no KEK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// No KEK could be generated.
    #[error("the operating system gives no randomness for a KEK")]
    Randomness(#[source] getrandom::Error),
    /// No key could be derived from a passphrase.
    #[error("Argon2id gave no key for this passphrase")]
    Argon2,
    /// The file is not private, not there, or there already.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// It is not what [`Kek::generate_file`] writes.
    #[error("{source_name} holds no KEK: {reason}")]
    Contents {
        /// Where it came from.
        source_name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no passphrase to open it with.
    #[error(
        "the KEK of {source_name} is encrypted: set keys.kek_passphrase to where its passphrase is, \
         or start Chancery at a terminal, where it asks"
    )]
    NeedsPassphrase {
        /// Where it came from.
        source_name: String,
    },
    /// The passphrase does not open it.
    #[error("the KEK of {source_name} does not open: the passphrase is wrong, or it was changed")]
    WrongPassphrase {
        /// Where it came from.
        source_name: String,
    },
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use rustix::fs::Mode;
    use tempfile::TempDir;

    use super::*;

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Files(TempDir::new().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, contents: &str, mode: u32) -> PathBuf {
            let path = self.path(name);
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    /// Asserts that the refusal names the path and `reason`.
    fn assert_refused(path: &Path, reason: &str) {
        let message = Kek::load_file(path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(message.contains(reason), "{message}");
    }

    const GOOD: &str = "chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n";

    #[test]
    fn a_generated_file_is_private_and_loads_as_the_same_kek() {
        let files = Files::new();
        let path = files.path("kek");
        let kek = Kek::generate_file(&path, None).unwrap();
        assert_eq!(Kek::load_file(&path).unwrap().as_bytes(), kek.as_bytes());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(metadata.len(), GOOD.len() as u64);
    }

    #[test]
    fn the_file_format_stays_readable_in_later_versions() {
        let files = Files::new();
        let read_only = files.write("read-only", GOOD, 0o400);
        assert_eq!(Kek::load_file(&read_only).unwrap().as_bytes(), &[7; 32]);
        let no_newline = files.write("no-newline", GOOD.trim_end(), 0o600);
        assert_eq!(Kek::load_file(&no_newline).unwrap().as_bytes(), &[7; 32]);
    }

    #[test]
    fn generating_never_overwrites_a_file_or_a_link() {
        let files = Files::new();
        let path = files.write("kek", "mine", 0o600);
        let link = files.path("link");
        std::os::unix::fs::symlink(files.path("nowhere"), &link).unwrap();
        for path in [&path, &link] {
            let error = Kek::generate_file(path, None).unwrap_err();
            assert!(error.to_string().ends_with("is never overwritten"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(!files.path("nowhere").exists());
    }

    #[test]
    fn a_file_is_private_from_the_start_and_goes_when_writing_fails() {
        let files = Files::new();
        let path = files.path("kek");
        let mut mode = 0o777;
        let result = private_file::create("KEK file", &path, |file| {
            mode = file.metadata()?.mode() & 0o777;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = result.unwrap_err();
        assert!(matches!(error.reason, private_file::Reason::Io(_)), "{error}");
        assert_eq!(mode & !0o600, 0);
        assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn generating_into_a_missing_folder_names_the_path() {
        let path = Files::new().path("missing/kek");
        let error = Kek::generate_file(&path, None).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_mode_that_lets_others_in_is_refused_with_the_command_that_mends_it() {
        let files = Files::new();
        for mode in [0o601, 0o604, 0o620, 0o640, 0o644, 0o660, 0o700, 0o4600] {
            let path = files.write(&format!("it's {mode:o}"), GOOD, mode);
            assert_refused(&path, &format!("mode {mode:04o}"));
            let shown = path.display().to_string().replace('\'', r"'\''");
            let command = format!("chmod 600 '{shown}'");
            let message = Kek::load_file(&path).unwrap_err().to_string();
            assert!(message.ends_with(&command), "{message}");
            assert!(command.ends_with(&format!(r"/it'\''s {mode:o}'")), "{command}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let files = Files::new();
        let path = if rustix::process::geteuid().is_root() {
            let path = files.write("kek", GOOD, 0o600);
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            path
        } else {
            PathBuf::from("/etc/passwd")
        };
        assert_refused(&path, "belongs to user");
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let files = Files::new();
        let target = files.write("target", GOOD, 0o600);
        let link = files.path("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let folder = files.path("folder");
        fs::create_dir(&folder).unwrap();
        let pipe = files.path("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();

        assert!(Kek::load_file(&target).is_ok());
        assert_refused(&link, "symbolic link");
        assert_refused(&folder, "not a regular file");
        assert_refused(&pipe, "not a regular file");
        assert_refused(&files.path("missing"), "not found");
    }

    #[test]
    fn contents_that_are_no_kek_are_refused() {
        let files = Files::new();
        let prefix = "begins neither with `chancery-kek-v1:`";
        let bytes = "not 32 bytes in base64url";
        let cases = [
            ("", prefix),
            ("\n", prefix),
            ("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n", prefix),
            ("chancery-kek-v2:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n", prefix),
            ("chancery-kek-v1:\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwd\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHB/+\n", bytes),
            ("chancery-kek-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\n\n", bytes),
        ];
        for (number, (contents, reason)) in cases.into_iter().enumerate() {
            assert_refused(&files.write(&number.to_string(), contents, 0o600), reason);
        }
        let long = GOOD.repeat(100_000);
        assert_refused(&files.write("long", &long, 0o600), "more than 256 bytes");
    }

    #[test]
    fn a_refusal_never_quotes_the_contents() {
        let files = Files::new();
        let path = files.write("kek", GOOD.trim_start_matches("chancery-"), 0o600);
        let error = Kek::load_file(&path).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("BwcH"));
    }

    /// As cheap as may be.
    const CHEAP: Cost = Cost { memory_kib: 8192, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::of(text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn an_encrypted_kek_opens_under_its_passphrase_only() {
        let kek = Kek::generate().unwrap();
        let text = kek.encrypted_text(&passphrase("correct horse"), CHEAP).unwrap();
        assert!(Kek::needs_passphrase(text.as_bytes()));
        assert!(text.len() <= LONGEST_KEK_TEXT);
        let open = |text: &str, with: Option<&str>| {
            Kek::parse(text.as_bytes(), "a test", with.map(passphrase).as_ref())
        };
        let opened = open(&text, Some("correct horse")).unwrap();
        assert_eq!(opened.as_bytes(), kek.as_bytes());

        let wrong = open(&text, Some("battery staple")).unwrap_err();
        assert!(matches!(wrong, KekError::WrongPassphrase { .. }), "{wrong}");
        let missing = open(&text, None).unwrap_err();
        assert!(matches!(missing, KekError::NeedsPassphrase { .. }), "{missing}");
        // A cheaper cost in the line is another key, and other associated data.
        let cheaper = text.replacen("8192,1,1", "8193,1,1", 1);
        let error = open(&cheaper, Some("correct horse")).unwrap_err();
        assert!(matches!(error, KekError::WrongPassphrase { .. }), "{error}");
    }

    #[test]
    fn a_generated_file_may_be_encrypted() {
        let files = Files::new();
        let path = files.path("kek");
        let kek = Kek::generate_file(&path, Some(&passphrase("correct horse"))).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("chancery-kek-argon2id-v1:65536,3,4:"), "{text}");
        let error = Kek::load_file(&path).unwrap_err().to_string();
        assert!(error.contains("keys.kek_passphrase"), "{error}");
        let opened = Kek::parse(text.as_bytes(), "a test", Some(&passphrase("correct horse")));
        assert_eq!(opened.unwrap().as_bytes(), kek.as_bytes());
    }

    /// The test vector of docs/SECURITY.md, made by another implementation.
    #[test]
    fn encrypted_keks_stay_readable_in_later_versions() {
        let opened = Kek::parse(VECTOR.as_bytes(), "a test", Some(&passphrase("correct horse")));
        assert_eq!(opened.unwrap().as_bytes(), &[7; 32]);
    }

    const VECTOR: &str = "chancery-kek-argon2id-v1:65536,3,4:AAECAwQFBgcICQoLDA0ODw:AQ\
                          IDBAUGBwgJCgsMDQ4PEBESExQVFhcYV70vsiKPx0NBQ0qhZNTYUxxquyBqQNiSTd87yJXiKa5Ln1CQGdG3uwGg-W5BdpLN";

    #[test]
    fn an_encrypted_kek_may_not_cost_more_than_a_machine_can_give() {
        for cost in ["1048577,1,1", "8191,1,1", "8192,17,1", "8192,1,17", "8192,0,1", "8192,1,0"] {
            let error = Cost::parse(cost).unwrap_err();
            assert!(error.contains("out of bounds"), "{cost}: {error}");
        }
        for cost in ["", "8192", "8192,1", "8192,1,1,1", "8192,1,x", "99999999999,1,1", "-1,1,1"] {
            let error = Cost::parse(cost).unwrap_err();
            assert!(error.contains("three numbers"), "{cost}: {error}");
        }
        assert_eq!(Cost::parse("65536,3,4"), Ok(COST));
    }
}
