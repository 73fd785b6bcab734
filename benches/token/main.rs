//! Signing with keys on a token: how much of a token's own rate is reached.
//!
//! ```sh
//! cargo bench --bench token                            # SoftHSM2, two sessions
//! cargo bench --bench token -- --sessions 4 --runs 9
//! ```
//!
//! It makes a SoftHSM2 token of its own and measures, in turn in each run, a bare loop over the module
//! (no check, no lease), the sessions that the signers use, and the built program on SQLite, each with as
//! many sessions. Medians, and their ratios to the bare loop's, are printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on ends, and its message says why"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chancery::keyring::pkcs11::{Token, TokenKeyRef, TokenSettings};
use chancery::types::{Position, Record, RecordId};
use clap::Parser;
use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, ObjectClass};
use zeroize::Zeroizing;

const LABEL: &str = "bench";
const PIN: &str = "648219";
const FOLDER: &str = "CHANCERY_BENCH_TOKEN_FOLDER";
const BATCH: usize = 500;

/// Measures how much of a token's own rate is reached.
#[derive(Parser)]
struct Arguments {
    /// The module
    #[arg(long, default_value = "/usr/lib/softhsm/libsofthsm2.so")]
    module: PathBuf,
    /// Sessions, and threads
    #[arg(long, default_value_t = 2)]
    sessions: usize,
    /// How often each figure is taken
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Signatures in each run
    #[arg(long, default_value_t = 8_000)]
    signatures: usize,
    /// The program [default: the one that was built with this benchmark, which has failpoints]
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chancery"))]
    program: PathBuf,
    // What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    match std::env::var_os(FOLDER) {
        Some(folder) => measure(&arguments, Path::new(&folder)),
        None => {
            let folder = tempfile::tempdir().unwrap();
            make_token(folder.path());
            // The module finds its tokens by the environment of its process.
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(std::env::args_os().skip(1)).env(FOLDER, folder.path());
            child.env("SOFTHSM2_CONF", folder.path().join("softhsm2.conf"));
            assert!(child.status().unwrap().success());
        }
    }
}

fn make_token(folder: &Path) {
    let tokens = folder.join("tokens");
    fs::create_dir(&tokens).unwrap();
    let settings = folder.join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    fs::write(&settings, text).unwrap();
    let pin = folder.join("pin");
    fs::write(&pin, PIN).unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let mut init = Command::new("softhsm2-util");
    init.args(["--init-token", "--free", "--label", LABEL, "--so-pin", "87654321", "--pin", PIN]);
    assert!(init.env("SOFTHSM2_CONF", settings).output().unwrap().status.success());
}

fn measure(arguments: &Arguments, folder: &Path) {
    let program = Program::new(arguments, folder);
    let token = Token::open(TokenSettings {
        module: arguments.module.clone(),
        token_label: LABEL.to_owned(),
        pin: Zeroizing::new(PIN.to_owned()),
    })
    .unwrap();
    // As many objects on the token for all three: the program's ring has its own.
    let keys: Vec<TokenKeyRef> = (0..arguments.sessions)
        .map(|_| token.generate("bench").unwrap())
        .map(|key| TokenKeyRef { kid: key.kid, public_key: key.public_key })
        .collect();
    let records: Vec<Record> = (0..BATCH)
        .map(|n| Record {
            position: Position { xid: 0, id: RecordId(n.try_into().unwrap()) },
            payload: vec![u8::try_from(n % 251).unwrap(); 256],
        })
        .collect();
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for run in 1..=arguments.runs {
        let taken = [
            bare(arguments, &keys, &records),
            ours(arguments, &token, &keys, &records),
            program.run(arguments),
        ];
        println!(
            "run {run}: bare {:.0}, sessions {:.0}, program {:.0}",
            taken[0], taken[1], taken[2]
        );
        for (rates, rate) in rates.iter_mut().zip(taken) {
            rates.push(rate);
        }
    }
    // Paired: what slows the machine down slows the three of one run down together.
    let ratio = |of: usize| {
        median(rates[of].iter().zip(&rates[0]).map(|(rate, bare)| rate / bare).collect())
    };
    let ratios = [ratio(1), ratio(2)];
    let [bare, ours, program] = rates.map(median);
    println!(
        "{} sessions, medians of {} runs, signatures a second:",
        arguments.sessions, arguments.runs
    );
    println!("bare loop  {bare:.0}");
    println!("sessions   {ours:.0}  {:.3} of the bare loop in the same run", ratios[0]);
    println!("program    {program:.0}  {:.3} of the bare loop in the same run", ratios[1]);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(signatures: usize, begun: Instant) -> f64 {
    signatures as f64 / begun.elapsed().as_secs_f64()
}

fn batches(arguments: &Arguments) -> usize {
    arguments.signatures.div_ceil(BATCH * arguments.sessions)
}

fn bare(arguments: &Arguments, keys: &[TokenKeyRef], records: &[Record]) -> f64 {
    let module = Pkcs11::new(&arguments.module).unwrap();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let batches = batches(arguments);
    let begun = Instant::now();
    thread::scope(|scope| {
        for key in keys {
            let module = module.clone();
            scope.spawn(move || {
                let session = module.open_ro_session(slot).unwrap();
                let id = URL_SAFE_NO_PAD.decode(&key.kid.0).unwrap();
                let private = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(id)];
                let handle = session.find_objects(&private).unwrap()[0];
                let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
                for _ in 0..batches {
                    for record in records {
                        let signature = session.sign(&mechanism, handle, &record.payload).unwrap();
                        assert_eq!(signature.len(), 64);
                    }
                }
            });
        }
    });
    rate(batches * BATCH * keys.len(), begun)
}

fn ours(arguments: &Arguments, token: &Token, keys: &[TokenKeyRef], records: &[Record]) -> f64 {
    let batches = batches(arguments);
    let begun = Instant::now();
    thread::scope(|scope| {
        for key in keys {
            scope.spawn(move || {
                let mut session = token.session();
                for _ in 0..batches {
                    let signed = session.sign_each(key, records, &mut || true).unwrap();
                    assert_eq!(signed.len(), BATCH);
                }
            });
        }
    });
    rate(batches * BATCH * keys.len(), begun)
}

/// The built program, on an SQLite database with a ring of its own keys on the token.
struct Program {
    path: PathBuf,
    folder: PathBuf,
    module: PathBuf,
}

impl Program {
    fn new(arguments: &Arguments, folder: &Path) -> Program {
        let program = Program {
            path: arguments.program.clone(),
            folder: folder.to_owned(),
            module: arguments.module.clone(),
        };
        program.call(&["migrate"]);
        let database = folder.join("chancery.db");
        let mut connection = <diesel::sqlite::SqliteConnection as diesel::Connection>::establish(
            database.to_str().unwrap(),
        )
        .unwrap();
        diesel::connection::SimpleConnection::batch_execute(
            &mut connection,
            "INSERT INTO rings (name, provider) VALUES ('hsm', 'pkcs11')",
        )
        .unwrap();
        program.call(&["keys", "generate", "--count", "8"]);
        program
    }

    fn call(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.path);
        command.args(arguments).current_dir(&self.folder);
        command.env("CHANCERY_DATABASE__URL", "sqlite://chancery.db");
        command.env("CHANCERY_SIGNING__RING", "hsm");
        command.env("CHANCERY_PKCS11__MODULE", &self.module);
        command.env("CHANCERY_PKCS11__TOKEN_LABEL", LABEL);
        command.env("CHANCERY_PKCS11__PIN_FILE", self.folder.join("pin"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The rate that the program itself tells, from the start of its actors to its last record.
    fn run(&self, arguments: &Arguments) -> f64 {
        self.call(&["seed", "--records", &arguments.signatures.to_string()]);
        let said = self.call(&["run", "--signers", &arguments.sessions.to_string()]);
        let line = said.lines().find(|line| line.starts_with("signed")).unwrap_or_default();
        let figure = line.rsplit(": ").next().and_then(|rate| rate.split(' ').next());
        figure.unwrap_or_default().replace(',', "").parse().unwrap_or_else(|_| panic!("{said}"))
    }
}
