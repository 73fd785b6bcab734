//! `chancery export`

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context as _;

use super::{Context, Outcome, output};
use crate::app::MissingDatabase;
use crate::inspect::{ExportFormat, export};

/// Write the signed records, or with --ring those of a ring, with their signatures, key ids and public keys
#[derive(clap::Args)]
pub(super) struct Export {
    /// jsonl or csv; bytes are in base64
    #[arg(long, value_name = "FORMAT", default_value_t = ExportFormat::Jsonl)]
    format: ExportFormat,
    /// A new file [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Export {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let store = database.store.as_ref();
        let rings = context.named_rings(&database)?;
        let rings = rings.as_deref();
        let Some(path) = self.out else {
            // No bar: what is written to a terminal would run through it.
            let mut out = BufWriter::new(std::io::stdout().lock());
            export(store, rings, self.format, &mut out, &|_| {})?;
            out.flush()?;
            return Ok(Outcome::Done);
        };
        let named = || format!("cannot write {}", path.display());
        // Beside its place under another name first, so that no half file ever stands there.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file =
            tempfile::NamedTempFile::new_in(folder.unwrap_or(".".as_ref())).with_context(named)?;
        let bar = output::record_bar("exporting", store.signature_count()?);
        let mut out = BufWriter::new(file.as_file_mut());
        let written = export(store, rings, self.format, &mut out, &|done| bar.set_position(done));
        bar.finish_and_clear();
        let written = written.with_context(named)?;
        out.flush().with_context(named)?;
        drop(out);
        file.as_file().sync_all().with_context(named)?;
        file.persist_noclobber(&path).map_err(|error| error.error).with_context(named)?;
        let records = output::counted(written, "signed record");
        output::print_line(&format!("wrote {records} to {}", path.display()))?;
        Ok(Outcome::Done)
    }
}
