//! The report of a part.

use std::fmt::Display;

/// What happened, a line for each.
#[derive(Default)]
pub(crate) struct Table(Vec<(String, String)>);

impl Table {
    /// With one more line.
    pub(crate) fn row(mut self, what: &str, value: impl Display) -> Table {
        self.0.push((what.to_owned(), value.to_string()));
        self
    }

    /// Prints it.
    pub(crate) fn print(&self) {
        println!();
        for (what, value) in &self.0 {
            println!("  {what:<46} {value:>10}");
        }
    }
}
