//! What the themes share: a site for each test, the program, its database, and the judge.

pub(crate) mod browser;
pub(crate) mod database;
pub(crate) mod judge;
pub(crate) mod program;
pub(crate) mod softhsm;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use database::Database;
use program::{Ended, Input, Running};

/// How long anything may take before a test gives it up: far more than it ever needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Makes of each function, which takes a [`Site`], a test on PostgreSQL and one on SQLite.
macro_rules! on_both_databases {
    ($($test:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[test]
            fn $test() {
                super::$test($crate::support::Site::postgres());
            })+
        }
        mod on_sqlite {
            $(#[test]
            fn $test() {
                super::$test($crate::support::Site::sqlite());
            })+
        }
    };
}

/// Where a test runs the program: a folder, a database and an environment, all gone at its end.
pub(crate) struct Site {
    pub(crate) database: Database,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Site {
    /// On a database of the shared PostgreSQL server.
    pub(crate) fn postgres() -> Site {
        Site::on_server(testkit::Postgres::shared())
    }

    /// On a PostgreSQL server of its own, for tests that stop it or hold a transaction open: one that
    /// has written keeps new records of the whole server from being signed.
    pub(crate) fn postgres_alone() -> Site {
        Site::on_server(&testkit::Postgres::start().unwrap())
    }

    /// On a database of that PostgreSQL server.
    pub(crate) fn on_server(server: &testkit::Postgres) -> Site {
        Site::on(|_| Database::Postgres(server.create_database().unwrap()))
    }

    /// On an SQLite database in the site's folder.
    pub(crate) fn sqlite() -> Site {
        Site::on(|folder| Database::Sqlite(folder.join("chancery.db")))
    }

    /// On an SQLite database at that path.
    pub(crate) fn sqlite_at(path: PathBuf) -> Site {
        Site::on_database(Database::Sqlite(path))
    }

    /// On that database.
    pub(crate) fn on_database(database: Database) -> Site {
        Site::on(|_| database)
    }

    fn on(database: impl FnOnce(&Path) -> Database) -> Site {
        let folder = tempfile::Builder::new().prefix("chancery-test-").tempdir().unwrap();
        let database = database(folder.path());
        let site = Site { database, environment: Vec::new(), folder };
        let url = site.database.url();
        let kek = site.path("kek").display().to_string();
        site.set("CHANCERY_DATABASE__URL", &url).set("CHANCERY_KEYS__KEK_FILE", &kek)
    }

    /// With a variable in the environment of every program started here.
    pub(crate) fn set(mut self, variable: &str, value: &str) -> Site {
        self.environment.retain(|(name, _)| name != variable);
        self.environment.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Without that variable in the environment of the programs started here.
    pub(crate) fn unset(mut self, variable: &str) -> Site {
        self.environment.retain(|(name, _)| name != variable);
        self
    }

    /// With a schema, a key-encryption key, and so many keys and records.
    pub(crate) fn with(self, keys: u32, records: u32) -> Site {
        self.prepare();
        if keys > 0 {
            self.run(&["keys", "generate", "--count", &keys.to_string()]).expect_code(0);
        }
        if records > 0 {
            self.seed(records);
        }
        self
    }

    /// Makes the schema and a key-encryption key.
    pub(crate) fn prepare(&self) {
        self.run(&["migrate"]).expect_code(0);
        let kek = self.path("kek").display().to_string();
        self.run(&["kek", "generate", "--out", &kek]).expect_code(0);
    }

    /// Adds records of the default size, the same each time.
    pub(crate) fn seed(&self, records: u32) {
        let records = records.to_string();
        self.run(&["seed", "--records", &records, "--random-seed", "7"]).expect_code(0);
    }

    /// A path in the site's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).wait()
    }

    /// Runs the program to its end, with `input` on its standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: Vec<u8>) -> Ended {
        let write = move |mut pipe: ChildStdin| drop(pipe.write_all(&input));
        self.start_with_input(arguments, Box::new(write)).wait()
    }

    /// Starts the program.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments), None)
    }

    /// Starts the program and waits until it has stopped itself at a failpoint, `POINT@PASSAGE`;
    /// SIGCONT lets it go on.
    #[track_caller]
    pub(crate) fn start_halted(&self, arguments: &[&str], point: &str) -> Running {
        let mut command = self.command(arguments);
        command.env("CHANCERY_FAILPOINTS", point.replacen('@', "=stop@", 1));
        let running = self.start_command(command);
        wait_until(&format!("it stops at {point}"), || {
            assert!(running.is_alive(), "it ended without coming to {point}: {}", running.stderr());
            running.is_stopped()
        });
        running
    }

    /// Starts the program, with what `input` writes on its standard input.
    pub(crate) fn start_with_input(&self, arguments: &[&str], input: Input) -> Running {
        Running::start(self.command(arguments), Some(input))
    }

    /// Runs a command, made by [`Site::command`] and changed, to its end.
    pub(crate) fn run_command(&self, command: Command) -> Ended {
        self.start_command(command).wait()
    }

    /// Starts a command, made by [`Site::command`] and changed.
    pub(crate) fn start_command(&self, command: Command) -> Running {
        Running::start(command, None)
    }

    /// The program as it would be started here.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        program::command(self.folder.path(), &self.environment, arguments)
    }

    /// How many signatures there are.
    pub(crate) fn signatures(&self) -> i64 {
        self.database.number("SELECT count(*) AS value FROM signatures")
    }

    /// How many key uses are open.
    pub(crate) fn open_uses(&self) -> i64 {
        self.database.number("SELECT count(*) AS value FROM key_uses WHERE end_tick IS NULL")
    }

    /// With the program logging in as that role, on PostgreSQL.
    pub(crate) fn on_login(self, role: &str) -> Site {
        let url = self.database.url_as(role);
        self.set("CHANCERY_DATABASE__URL", &url)
    }

    /// Waits until some but not all of `records` are signed; how many.
    #[track_caller]
    pub(crate) fn wait_for_the_middle(&self, records: i64) -> i64 {
        let mut signed = 0;
        wait_until("some records are signed", || {
            signed = self.signatures();
            signed > 0
        });
        assert!(signed < records, "all {records} were signed before the test could step in");
        signed
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "waited {LIMIT:?} in vain until {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "it polls a database that sends no event")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
