//! x
use super::{Context, Outcome};
/// Demo
#[derive(clap::Args)]
pub(super) struct Demo {}
impl Demo {
    pub(super) fn run(self, _c: Context) -> anyhow::Result<Outcome> {
        Ok(Outcome::Broken)
    }
}
