//! `chancery config`

use super::{Context, Outcome, output};

/// Show the effective configuration and where each value comes from, secrets redacted
#[derive(clap::Args)]
pub(super) struct ShowConfig {}

impl ShowConfig {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        output::print_line(context.loaded.render()?.trim_end())?;
        Ok(Outcome::Done)
    }
}
