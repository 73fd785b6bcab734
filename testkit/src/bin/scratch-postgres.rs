//! Holds a private PostgreSQL server until its standard input ends: to try things by hand.
//!
//! It prints the server's address and its folder, a line each. `cargo run -p testkit`, and Ctrl-D.

use std::error::Error;
use std::io::{self, Write};

use testkit::Postgres;

fn main() -> Result<(), Box<dyn Error>> {
    let server = Postgres::start()?;
    let mut out = io::stdout();
    writeln!(out, "{}\n{}", server.url("postgres"), server.folder().display())?;
    out.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
