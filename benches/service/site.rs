//! A database and the means to start services on it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::client::Client;

/// A folder with a database.
pub(crate) struct Site {
    program: PathBuf,
    folder: TempDir,
    database: Option<testkit::Database>,
}

/// A service that runs; it is killed at its end.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: String,
    pub(crate) token: String,
}

impl Site {
    pub(crate) fn start(program: &Path, on_postgres: bool) -> Site {
        let database = on_postgres.then(|| testkit::Postgres::shared().create_database().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let program = program.canonicalize().unwrap();
        let site = Site { program, folder, database };
        site.run(&["migrate"]);
        let kek = site.folder.path().join("kek").display().to_string();
        site.run(&["kek", "generate", "--out", &kek]);
        site.run(&["keys", "generate", "--count", "100"]);
        site
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let url = match &self.database {
            Some(database) => database.url(),
            None => format!("sqlite://{}", self.folder.path().join("chancery.db").display()),
        };
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("CHANCERY_DATABASE__URL", url)
            .env("CHANCERY_KEYS__KEK_FILE", self.folder.path().join("kek"))
            .env("CHANCERY_HTTP__BIND", "127.0.0.1:0")
            .env("CHANCERY_HTTP__REQUESTS_PER_S", "0");
        command
    }

    /// Runs the program to its end; its standard output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a service, with a token that opens all of it.
    pub(crate) fn serve(&self) -> Service {
        let roles = ["--role", "operator", "--role", "writer"];
        let token = self.run(&[["token", "create", "--name", "bench"].as_slice(), &roles].concat());
        let mut child = self.command(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .find_map(|line| line.unwrap().split_once("address=").map(|(_, a)| a.to_owned()))
            .unwrap();
        std::thread::spawn(move || log.for_each(drop));
        Service { child, address, token }
    }
}

impl Service {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address, &self.token)
    }

    /// A service that takes records in and signs none.
    pub(crate) fn paused(self) -> Service {
        let order = b"{\"scope\":\"all\"}";
        self.client().post("/v1/pause", "application/json", order).expect(200);
        self
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
