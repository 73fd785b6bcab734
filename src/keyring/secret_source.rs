//! Reading a secret from where the configuration says that it is.
//!
//! A program that gives a secret gets one line of JSON on its standard input,
//! `{"version":1,"request":"secret","name":"KEK"}`, and must write the secret to its standard output and
//! end with code 0 within a minute. Its standard error is ours.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use wait_timeout::ChildExt;
use zeroize::Zeroizing;

use super::private_file::{self, Custody, PrivateFileError};
use crate::config::SecretSource;

/// Reads a secret of at most `limit` bytes; `what` names it in errors, such as `KEK file`.
///
/// # Errors
/// What is wrong with the source, by name.
pub fn read_secret(
    what: &'static str,
    source: &SecretSource,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    match source {
        SecretSource::File(path) => Ok(private_file::read(what, path, Custody::Own, limit)?),
        SecretSource::Credential(name) => {
            let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
                return Err(SecretError::NoCredentials { name: name.clone() });
            };
            let path = PathBuf::from(folder).join(name);
            Ok(private_file::read(what, &path, Custody::Mounted, limit)?)
        }
        SecretSource::Variable(name) => match std::env::var_os(name) {
            Some(path) if !path.is_empty() => {
                Ok(private_file::read(what, &PathBuf::from(path), Custody::Mounted, limit)?)
            }
            _ => Err(SecretError::NoVariable { name: name.clone() }),
        },
        SecretSource::Command(words) => {
            let command = || words.join(" ");
            ask(what, words, limit, PATIENCE)
                .map_err(|reason| SecretError::Command { command: command(), reason })
        }
    }
}

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long its output may stay open after its end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

fn ask(
    what: &str,
    words: &[String],
    limit: usize,
    patience: Duration,
) -> Result<Zeroizing<Vec<u8>>, CommandFailure> {
    let (program, arguments) = words.split_first().ok_or(CommandFailure::Empty)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(CommandFailure::Start)?;
    let output = output_of(&mut child, limit);
    if let Some(mut input) = child.stdin.take() {
        let name = what.trim_end_matches(" file");
        let request = serde_json::json!({ "version": 1, "request": "secret", "name": name });
        // A program that needs no question may have closed its input.
        let _ = writeln!(input, "{request}");
    }
    let status = match child.wait_timeout(patience).map_err(CommandFailure::Start)? {
        Some(status) => status,
        None => {
            // Gone already, or it goes now; either way nobody waits for it any more.
            let _ = child.kill();
            let _ = child.wait();
            return Err(CommandFailure::TooSlow { patience });
        }
    };
    if !status.success() {
        return Err(CommandFailure::Failed { status: status.to_string() });
    }
    let output = output.recv_timeout(LAST_OUTPUT).map_err(|_| CommandFailure::NoOutput)?;
    match output.len() {
        0 => Err(CommandFailure::NoOutput),
        length if length > limit => Err(CommandFailure::TooLong { limit }),
        _ => Ok(output),
    }
}

/// What a program writes, up to one byte more than `limit`, when it has written it all.
fn output_of(child: &mut Child, limit: usize) -> mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut output = Zeroizing::new(Vec::with_capacity(limit + 1));
            let read = stdout.take(limit as u64 + 1).read_to_end(&mut output);
            if read.is_ok() {
                // Nobody listens to a program that was too slow.
                let _ = sender.send(output);
            }
        });
    }
    receiver
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file is not there, or not private.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// There is no folder of credentials.
    #[error(
        "credential:{name}: CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with \
         LoadCredential= or LoadCredentialEncrypted="
    )]
    NoCredentials {
        /// The credential.
        name: String,
    },
    /// The environment names no file.
    #[error("env:{name}: the environment variable {name} is not set to the path of a file")]
    NoVariable {
        /// The variable.
        name: String,
    },
    /// A program gave none.
    #[error("command:{command}")]
    Command {
        /// The program with its arguments.
        command: String,
        /// What happened.
        #[source]
        reason: CommandFailure,
    },
}

/// What is wrong with a program that should give a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandFailure {
    /// There is no program's name.
    #[error("no program is named")]
    Empty,
    /// It cannot be started.
    #[error("it cannot be started")]
    Start(#[source] std::io::Error),
    /// It did not end, and was killed.
    #[error("it did not end within {} s and was killed", patience.as_secs())]
    TooSlow {
        /// How long it had.
        patience: Duration,
    },
    /// It ended with another code than 0.
    #[error("it failed: {status}")]
    Failed {
        /// How.
        status: String,
    },
    /// It wrote nothing, or its output was not closed.
    #[error("it wrote nothing to its standard output, or left that open")]
    NoOutput,
    /// It wrote more than a secret has.
    #[error("it wrote more than {limit} bytes")]
    TooLong {
        /// How many there may be.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn run(script: &str) -> Result<Vec<u8>, CommandFailure> {
        let words = ["sh", "-c", script].map(str::to_owned);
        Ok(ask("KEK file", &words, 64, PATIENCE)?.to_vec())
    }

    #[test]
    fn a_program_is_asked_in_json_and_answers_on_its_output() {
        assert_eq!(run("cat").unwrap().last(), Some(&b'\n'));
        let asked: serde_json::Value = serde_json::from_slice(&run("cat").unwrap()).unwrap();
        assert_eq!(asked, serde_json::json!({ "version": 1, "request": "secret", "name": "KEK" }));
        assert_eq!(run("exec 0<&-; echo secret").unwrap(), b"secret\n");
    }

    #[test]
    fn a_program_that_does_not_answer_is_named_with_what_it_did() {
        let failure = |script| run(script).unwrap_err().to_string();
        assert_eq!(failure("echo secret; exit 3"), "it failed: exit status: 3");
        assert!(failure("true").starts_with("it wrote nothing"));
        assert_eq!(failure("head -c 65 /dev/zero"), "it wrote more than 64 bytes");
        let words = ["/no/such/program".to_owned()];
        let error = ask("KEK file", &words, 64, PATIENCE).unwrap_err();
        assert!(matches!(error, CommandFailure::Start(_)), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let words = ["sh", "-c", "exec tail -f /dev/null"].map(str::to_owned);
        let error = ask("KEK file", &words, 64, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CommandFailure::TooSlow { .. }), "{error}");
    }

    #[test]
    fn a_mounted_secret_may_be_a_link_and_readable_but_not_writable_for_others() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("..data");
        let link = folder.path().join("kek");
        fs::write(&file, "secret").unwrap();
        symlink(&file, &link).unwrap();
        let read = |custody| private_file::read("KEK file", &link, custody, 64);
        for (mode, is_read) in [(0o444, true), (0o640, true), (0o400, true), (0o666, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let secret = read(Custody::Mounted);
            assert_eq!(secret.is_ok(), is_read, "{mode:o}: {secret:?}");
        }
        let error = read(Custody::Own).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
    }

    #[test]
    fn what_the_environment_does_not_say_is_named() {
        let error = |source: &str| {
            let source = source.parse().unwrap();
            read_secret("KEK file", &source, 64).unwrap_err().to_string()
        };
        let message = error("env:CHANCERY_TEST_NO_SUCH_VARIABLE");
        assert!(message.contains("CHANCERY_TEST_NO_SUCH_VARIABLE is not set"), "{message}");
        let message = error("credential:kek");
        assert!(message.contains("CREDENTIALS_DIRECTORY"), "{message}");
    }
}
