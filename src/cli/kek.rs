//! `chancery kek`

use std::path::PathBuf;

use super::{Outcome, output};
use crate::app::UsageError;
use crate::keyring::{Kek, KekError};

/// Make key-encryption keys
#[derive(clap::Subcommand)]
pub(super) enum KekCommand {
    /// Make a key-encryption key in a new file of mode 0600; never overwrites
    Generate {
        /// The file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl KekCommand {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let KekCommand::Generate { out } = self;
        let kek = Kek::generate_file(&out).map_err(|error| match error {
            KekError::Exists { .. } => anyhow::Error::from(UsageError(error.to_string())),
            other => other.into(),
        })?;
        let id = kek.id().0;
        output::print_line(&format!("made the key-encryption key {id} in {}", out.display()))?;
        output::print_line("keep a copy in a safe place: without it no private key can be opened")?;
        Ok(Outcome::Done)
    }
}
