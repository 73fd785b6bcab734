//! What a person at a terminal sees: progress bars, numbers, and lines that do not break bars.

use std::io::{self, Write};
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All bars of the process; they draw on standard error, and only if it is a terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A bar over `total` records.
pub(super) fn record_bar(what: &'static str, total: u64) -> ProgressBar {
    let template =
        "{prefix:>9} {bar:32.cyan/blue} {human_pos}/{human_len} records  {per_sec}  ETA {eta}";
    bar(what, total, template)
}

/// A bar over `total` keys.
pub(super) fn key_bar(what: &'static str, total: u64) -> ProgressBar {
    bar(what, total, "{prefix:>9} {bar:32.cyan/blue} {human_pos}/{human_len} keys  ETA {eta}")
}

/// A bar over `total` bytes.
pub(super) fn byte_bar(what: &'static str, total: u64) -> ProgressBar {
    let template =
        "{prefix:>9} {bar:32.cyan/blue} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}";
    bar(what, total, template)
}

fn bar(what: &'static str, total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    BARS.add(ProgressBar::new(total).with_style(style).with_prefix(what))
}

/// Writes a line to standard error without breaking a bar.
pub(super) fn eprint_line(line: &str) {
    BARS.suspend(|| {
        // With standard error gone there is nobody to tell.
        let _ = writeln!(io::stderr(), "{line}");
    });
}

/// Standard error for the log, without breaking a bar.
pub(super) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Prints one JSON document.
pub(super) fn print_json(document: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)?;
    Ok(())
}

/// Prints a line to standard output.
pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

/// Whether an error is a reader that went away.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json =
            cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        [io, json].contains(&Some(io::ErrorKind::BrokenPipe))
    })
}

/// A number with a comma at every third digit.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number and its noun, in the plural but for one.
pub(super) fn counted(number: u64, one: &str) -> String {
    if number == 1 {
        return format!("1 {one}");
    }
    let many = match one.strip_suffix('y') {
        // entry, entries; but key, keys
        Some(stem) if !stem.ends_with('e') => format!("{stem}ies"),
        _ if one.ends_with("ch") => format!("{one}es"),
        _ => format!("{one}s"),
    };
    format!("{} {many}", count(number))
}

/// A duration in seconds, to the hundredth.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// How many a second, in words.
pub(super) fn rate(number: u64, time: Duration) -> String {
    let per_second = number as f64 / time.as_secs_f64().max(1e-9);
    format!("{} a second", count(per_second as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn one_of_a_thing_is_not_a_plural() {
        assert_eq!(counted(1, "batch"), "1 batch");
        assert_eq!(counted(2, "batch"), "2 batches");
        assert_eq!(counted(1_200, "record"), "1,200 records");
    }
}
