//! `chancery completions`

use clap_complete::Shell;

use super::Outcome;

/// Print a script that completes this command line in a shell
#[derive(clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: clap::Command) -> anyhow::Result<Outcome> {
        clap_complete::generate(self.shell, &mut command, "chancery", &mut std::io::stdout());
        Ok(Outcome::Done)
    }
}
