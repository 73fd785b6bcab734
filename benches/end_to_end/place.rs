//! Seeded databases, and copies of them on which one figure is taken.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::Load;

/// A database with keys and unsigned records.
pub(crate) struct Seeded {
    program: PathBuf,
    folder: TempDir,
    database: Option<testkit::Database>,
    load: Load,
}

/// Where the records are.
pub(crate) enum Url {
    Postgres(String),
    Sqlite(PathBuf),
}

impl Url {
    fn text(&self) -> String {
        match self {
            Url::Postgres(url) => url.clone(),
            Url::Sqlite(path) => format!("sqlite://{}", path.display()),
        }
    }
}

/// A copy of a seeded database; it is removed at its end.
pub(crate) struct Place<'a> {
    seeded: &'a Seeded,
    _folder: TempDir,
    name: Option<String>,
    pub(crate) url: Url,
}

const FILE: &str = "chancery.db";

impl Seeded {
    pub(crate) fn new(program: &Path, on_postgres: bool, load: Load) -> Seeded {
        let database = on_postgres.then(|| testkit::Postgres::shared().create_database().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let seeded = Seeded { program: program.to_owned(), folder, database, load };
        let url = seeded.url();
        let kek = seeded.folder.path().join("kek").display().to_string();
        let (records, bytes) = (load.records.to_string(), load.payload_bytes.to_string());
        for arguments in [
            ["migrate"].as_slice(),
            &["kek", "generate", "--out", &kek],
            &["keys", "generate", "--count", "100"],
            &["seed", "--records", &records, "--payload-bytes", &bytes],
        ] {
            let output = seeded.command(&url, arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
        if let Some(database) = &seeded.database {
            database.sql("CHECKPOINT").unwrap();
        }
        seeded
    }

    pub(crate) fn load(&self) -> Load {
        self.load
    }

    /// Verifies and audits what stands in it, and says how long that took.
    pub(crate) fn check(&self) -> String {
        let url = self.url();
        let mut said = String::new();
        for command in ["verify", "audit"] {
            let begin = Instant::now();
            let output = self.command(&url, &[command]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let took = begin.elapsed().as_secs_f64();
            let rate = self.load.records as f64 / took;
            said.push_str(&format!("- `{command}`: {took:.1} s, {rate:.0} signatures/s\n"));
        }
        said
    }

    fn url(&self) -> Url {
        match &self.database {
            Some(database) => Url::Postgres(database.url()),
            None => Url::Sqlite(self.folder.path().join(FILE)),
        }
    }

    fn command(&self, url: &Url, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("CHANCERY_DATABASE__URL", url.text())
            .env("CHANCERY_KEYS__KEK_FILE", self.folder.path().join("kek"));
        command
    }
}

impl<'a> Place<'a> {
    pub(crate) fn copy_of(seeded: &'a Seeded) -> Place<'a> {
        let folder = tempfile::tempdir().unwrap();
        let mut name = None;
        let url = match &seeded.database {
            Some(database) => {
                let server = database.server();
                let copy = format!("{}_copy", database.name());
                let source = database.name();
                server
                    .sql("postgres", &format!("CREATE DATABASE {copy} TEMPLATE {source}"))
                    .unwrap();
                server.sql("postgres", "CHECKPOINT").unwrap();
                let url = server.url(&copy);
                name = Some(copy);
                Url::Postgres(url)
            }
            None => {
                let path = folder.path().join(FILE);
                std::fs::copy(seeded.folder.path().join(FILE), &path).unwrap();
                std::fs::File::open(&path).unwrap().sync_all().unwrap();
                Url::Sqlite(path)
            }
        };
        Place { seeded, _folder: folder, name, url }
    }

    /// The seeded database itself.
    pub(crate) fn of(seeded: &'a Seeded) -> Place<'a> {
        Place { seeded, _folder: tempfile::tempdir().unwrap(), name: None, url: seeded.url() }
    }

    /// Starts to sign, with each check-out in the log.
    pub(crate) fn start_observed(&self) -> Child {
        let batch_size = self.seeded.load.batch_size.to_string();
        let mut command = self.seeded.command(&self.url, &["run", "--batch-size", &batch_size]);
        command.env("CHANCERY_LOG__FORMAT", "json").env("CHANCERY_LOG__LEVEL", "chancery=debug");
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn server(&self) -> Option<&testkit::Postgres> {
        self.seeded.database.as_ref().map(testkit::Database::server)
    }

    /// How large the database is now, with what belongs to it.
    pub(crate) fn database_bytes(&self) -> f64 {
        match &self.url {
            Url::Postgres(_) => {
                let size = "SELECT pg_database_size(current_database())";
                self.seeded.database.as_ref().unwrap().sql(size).unwrap().trim().parse().unwrap()
            }
            Url::Sqlite(path) => {
                let files = [path.clone(), path.with_extension("db-wal")];
                files
                    .iter()
                    .filter_map(|file| std::fs::metadata(file).ok())
                    .map(|m| m.len() as f64)
                    .sum()
            }
        }
    }

    /// Signs every record with the program; records a second, as it says itself. With several nodes, from
    /// the start of the first process to the end of the last.
    pub(crate) fn sign(&self) -> f64 {
        let Load { batch_size, signers, nodes, records, .. } = self.seeded.load;
        let (batch_size, signers) = (batch_size.to_string(), signers.to_string());
        let arguments = ["run", "--batch-size", &batch_size, "--signers", &signers];
        let mut command = self.seeded.command(&self.url, &arguments);
        if nodes == 1 {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            return printed_rate(&String::from_utf8(output.stdout).unwrap());
        }
        let begin = Instant::now();
        let start = |_| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let children: Vec<_> = (0..nodes).map(start).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        records as f64 / begin.elapsed().as_secs_f64()
    }

    /// Signs every record by `baseline.py`; records a second, as it says itself.
    pub(crate) fn sign_by_python(&self, python: &Path) -> f64 {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/end_to_end/baseline.py");
        let batch_size = self.seeded.load.batch_size.to_string();
        let arguments = [script, &self.url.text(), &batch_size];
        let output = Command::new(python).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let (Some(name), Some(database)) = (&self.name, &self.seeded.database) {
            database
                .server()
                .sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"))
                .unwrap();
        }
    }
}

/// Out of "signed 100,000 records in ... in 1.36 s: 73,298 a second".
fn printed_rate(text: &str) -> f64 {
    let rate = text.lines().find_map(|line| line.strip_suffix(" a second")?.rsplit(' ').next());
    rate.unwrap().replace(',', "").parse().unwrap()
}
