//! Backups of a test's server: a dump of one database, a copy of all its files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binaries::run;
use crate::postgres::data_path;
use crate::{Database, Error, Postgres};

/// A copy of a stopped server's files, removed with the server's folder.
#[derive(Debug)]
pub struct ColdCopy(PathBuf);

impl Postgres {
    /// Copies the files of the server, which must be stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with what `cp` says.
    pub fn copy_files(&self) -> Result<ColdCopy, Error> {
        let copy = self.folder().join("copy");
        copy_tree(&data_path(self.folder()), &copy)?;
        Ok(ColdCopy(copy))
    }

    /// Puts a copy in the place of the files of the server, which must be stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with what `rm` or `cp` says.
    pub fn put_files_back(&self, copy: &ColdCopy) -> Result<(), Error> {
        let data = data_path(self.folder());
        run(Command::new("rm").arg("-rf").arg(&data))?;
        copy_tree(&copy.0, &data)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    run(Command::new("cp").arg("--archive").arg(from).arg(to)).map(drop)
}

impl Database {
    /// The database as `pg_dump` writes it: statements that make it again.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with what `pg_dump` says.
    pub fn dump(&self) -> Result<String, Error> {
        let binaries = self.server().binaries();
        let mut command = binaries.as_server(binaries.path("pg_dump"));
        run(command.current_dir("/").arg("--dbname").arg(self.url()))
    }

    /// Runs the statements of a dump in this database, which must be empty.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if they cannot be written to a file, [`Error::Failed`] with what `psql` says.
    pub fn restore(&self, dump: &str) -> Result<(), Error> {
        let file = self.server().folder().join(format!("{}.sql", self.name()));
        std::fs::write(&file, dump).map_err(Error::io("write the dump"))?;
        let binaries = self.server().binaries();
        let mut command = binaries.as_server(binaries.path("psql"));
        command.current_dir("/").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url()]);
        run(command.arg("-f").arg(file)).map(drop)
    }
}
