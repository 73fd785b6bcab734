//! The command line: one file a subcommand, and the way from an error to an exit code.

mod audit;
mod completions;
mod config;
mod demo;
mod export;
mod import;
mod kek;
mod keys;
mod logging;
mod migrate;
mod output;
mod rings;
mod run;
mod seed;
mod serve;
mod status;
mod token;
mod traces;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::traces::Traces;
use crate::app::{self, Connected, MissingDatabase, UsageError};
use crate::config::{Config, ConfigError, Loaded, Overrides, RingNames, process_environment};
use crate::db::{Ring, Store, StoreError};
use crate::failpoint;
use crate::hardening::{self, HardeningError, Protection};
use crate::types::{NodeId, RingId};

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 failed; 2 usage or configuration; 3 finished with records in quarantine;
4 a rule or a signature found broken (verify, audit).

Every key of the configuration file can also be set in the environment as CHANCERY_SECTION__KEY,
for example CHANCERY_DATABASE__URL. Flags win over the environment, which wins over the file.";

/// A build that can be made to fail on purpose says so.
const VERSION: &str = if cfg!(feature = "failpoints") {
    concat!(env!("CARGO_PKG_VERSION"), " with failpoints, for tests only")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Signs every record of a database exactly once, concurrently, and proves that it did.
#[derive(Parser)]
#[command(name = "chancery", version = VERSION, about, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Globals {
    /// Configuration file [default: chancery.toml, where there is one]
    #[arg(long, global = true, value_name = "FILE", env = "CHANCERY_CONFIG")]
    config: Option<PathBuf>,
    /// Database: sqlite://PATH or postgres://USER@HOST/DATABASE [default: sqlite://chancery.db]
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Form of the log on standard error: pretty or json [default: pretty]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Ring; `run` and `serve` take several, by commas or repetition, or `*` for all [default: default]
    #[arg(long = "ring", global = true, value_name = "NAME")]
    rings: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Migrate(migrate::Migrate),
    Status(status::Status),
    Config(config::ShowConfig),
    Completions(completions::Completions),
    #[command(subcommand)]
    Keys(keys::Keys),
    #[command(subcommand)]
    Rings(rings::Rings),
    Seed(seed::Seed),
    Import(import::Import),
    Run(run::Run),
    Serve(serve::Serve),
    Verify(verify::Verify),
    Audit(audit::Audit),
    Export(export::Export),
    #[command(subcommand)]
    Kek(kek::KekCommand),
    #[command(subcommand)]
    Token(token::TokenCommand),
}

impl Command {
    /// Whether it has the key-encryption key or a private key in its memory.
    fn loads_keys(&self) -> bool {
        match self {
            Command::Demo(_) | Command::Run(_) | Command::Kek(_) => true,
            Command::Serve(serve) => serve.loads_keys(),
            Command::Keys(keys) => keys.loads_keys(),
            Command::Migrate(_)
            | Command::Status(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Seed(_)
            | Command::Import(_)
            | Command::Verify(_)
            | Command::Audit(_)
            | Command::Export(_)
            | Command::Rings(_)
            | Command::Token(_) => false,
        }
    }

    /// The flags that stand for keys of the configuration.
    fn overrides(&self, globals: &Globals) -> Overrides {
        let signing = match self {
            Command::Run(run) => Some(&run.signing),
            Command::Serve(serve) => Some(&serve.signing),
            _ => None,
        };
        Overrides {
            database_url: globals.database_url.clone(),
            log_format: globals.log_format.clone(),
            ring: (!globals.rings.is_empty()).then(|| globals.rings.join(",")),
            batch_size: signing.and_then(|flags| flags.batch_size.clone()),
            signers: signing.and_then(|flags| flags.signers.clone()),
        }
    }
}

/// Before there is anything in it to protect.
fn protect_memory(config: &Config) -> anyhow::Result<()> {
    match hardening::protect(&config.memory) {
        Ok(Protection { hint: Some(hint), .. }) => {
            tracing::info!("private keys may reach the swap: {hint}");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error @ HardeningError::Lock(_)) => Err(UsageError(error.to_string()).into()),
        Err(error) => Err(error.into()),
    }
}

/// The flags of commands that sign.
#[derive(Args, Default)]
struct SigningFlags {
    /// Records in a batch, fixed while the process runs [default: 500]
    #[arg(long, value_name = "N")]
    batch_size: Option<String>,
    /// Signer threads [default: auto, one for each core]
    #[arg(long, value_name = "N")]
    signers: Option<String>,
}

/// How a command ended, if not by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
    Quarantined,
    Broken,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        ExitCode::from(match outcome {
            Outcome::Done => 0,
            Outcome::Interrupted => 1,
            Outcome::Quarantined => 3,
            Outcome::Broken => 4,
        })
    }
}

/// What every command works with.
struct Context {
    config: Config,
    loaded: Loaded,
    node: NodeId,
    /// Whether the command line names the ring.
    ring_flag: bool,
}

impl Context {
    fn connect(&self, missing: MissingDatabase) -> anyhow::Result<Connected> {
        app::connect(&self.config, &self.node, missing)
    }

    /// The ring of a command that is about one.
    fn ring(&self, database: &Connected) -> anyhow::Result<Ring> {
        match &self.config.signing.ring {
            RingNames::These(names) if names.len() == 1 => {
                app::ask_database(&self.config, || database.store.ring(&names[0]))
            }
            several => Err(UsageError(format!(
                "this is about one ring, and signing.ring is {several:?}: pick one with --ring NAME",
                several = several.to_string()
            ))
            .into()),
        }
    }

    /// The rings of a command that takes several.
    fn rings(&self, database: &Connected) -> anyhow::Result<Vec<Ring>> {
        let store = &database.store;
        match &self.config.signing.ring {
            RingNames::All => app::ask_database(&self.config, || store.rings()),
            RingNames::These(names) => app::ask_database(&self.config, || {
                names.iter().map(|name| store.ring(name)).collect()
            }),
        }
    }

    /// The rings that the command line names: for commands that are about all unless it does.
    fn named_rings(&self, database: &Connected) -> anyhow::Result<Option<Vec<RingId>>> {
        if !self.ring_flag {
            return Ok(None);
        }
        Ok(Some(self.rings(database)?.into_iter().map(|ring| ring.id).collect()))
    }

    /// The rings of a command that signs: each batch size must be of one of them.
    fn signed_rings(&self, database: &Connected) -> anyhow::Result<Vec<Ring>> {
        let rings = self.rings(database)?;
        let is_signed = |name: &str| rings.iter().any(|ring| ring.name == name);
        if let Some(name) =
            self.config.signing.ring_batch_sizes.rings().find(|name| !is_signed(name))
        {
            return Err(UsageError(format!(
                "signing.ring_batch_sizes: ring {name} is none of those that are signed ({})",
                rings.iter().map(|ring| ring.name.as_str()).collect::<Vec<_>>().join(", ")
            ))
            .into());
        }
        Ok(rings)
    }
}

/// Runs the program: reads the arguments, does the work, says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Sends what is left of the spans when it is dropped: after the last word, which must not wait.
    let mut traces = None;
    match dispatch(cli, &mut traces) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // A closed pipe (`chancery status | head`) is the reader's wish.
            if output::is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            output::eprint_line(&format!("error: {error:#}"));
            let usage = error.downcast_ref::<UsageError>().is_some()
                || error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// From how many new records on the table is worth a VACUUM, which has to look at its other new pages too.
const LARGE_INTAKE: u64 = 10_000;

/// Brings the database up to date with so many new records, for the check-outs that follow.
fn after_intake(store: &dyn Store, records: u64) -> Result<(), StoreError> {
    if records >= LARGE_INTAKE
        && let Err(error) = store.vacuum()
    {
        // The records are in, and autovacuum comes to them in a while.
        tracing::warn!(%error, "could not vacuum the records");
    }
    // Last: a VACUUM only estimates how many records there are in the pages that it passes over.
    if records > 0 {
        store.analyze()?;
    }
    Ok(())
}

fn dispatch(cli: Cli, traces: &mut Option<Traces>) -> anyhow::Result<Outcome> {
    if let Command::Completions(completions) = cli.command {
        return completions.run(<Cli as clap::CommandFactory>::command());
    }
    let overrides = cli.command.overrides(&cli.globals);
    let loaded = Config::load(cli.globals.config.as_deref(), process_environment(), &overrides)?;
    let config = loaded.config.clone();
    let node = app::node_id(&config)?;
    *traces = logging::start(&config, &node)?;
    failpoint::check().map_err(UsageError)?;
    if cli.command.loads_keys() {
        protect_memory(&config)?;
    }
    let ring_flag = !cli.globals.rings.is_empty();
    let context = Context { config, loaded, node, ring_flag };
    match cli.command {
        Command::Demo(demo) => demo.run(context),
        Command::Migrate(migrate) => migrate.run(&context),
        Command::Status(status) => status.run(&context),
        Command::Config(show) => show.run(&context),
        Command::Completions(_) => Ok(Outcome::Done),
        Command::Keys(keys) => keys.run(&context),
        Command::Rings(rings) => rings.run(&context),
        Command::Seed(seed) => seed.run(&context),
        Command::Import(import) => import.run(&context),
        Command::Run(run) => run.run(&context),
        Command::Serve(serve) => serve.run(&context),
        Command::Verify(verify) => verify.run(&context),
        Command::Audit(audit) => audit.run(&context),
        Command::Export(export) => export.run(&context),
        Command::Kek(kek) => kek.run(&context),
        Command::Token(token) => token.run(&context),
    }
}
