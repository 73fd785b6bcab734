//! `chancery migrate`

use super::{Context, Outcome, output};
use crate::app;
use crate::db::migrate;

/// Bring the database's schema up to date; on PostgreSQL as the owner of the schema
#[derive(clap::Args)]
pub(super) struct Migrate {}

impl Migrate {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = &context.config.database;
        let applied = app::wait_for_database(&context.config, || {
            migrate::migrate(&database.url, database.runtime_role.as_deref())
        })?;
        for version in &applied {
            output::print_line(&format!("applied {version}"))?;
        }
        let version = migrate::newest_version();
        output::print_line(&format!("{}: the schema is at version {version}", database.url))?;
        if let Some(role) = &database.runtime_role {
            output::print_line(&format!("granted the runtime rights to role {role}"))?;
        }
        Ok(Outcome::Done)
    }
}
