//! The figures as Markdown.

use std::fmt;

use crate::Load;

/// What was measured at one point of an axis.
pub(crate) struct Line {
    pub(crate) database: &'static str,
    pub(crate) axis: &'static str,
    pub(crate) load: Load,
    pub(crate) cell: Cell,
}

/// What one run showed.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    /// Records a second.
    pub(crate) rate: f64,
    /// Processor time in microseconds a record: of the client, and of PostgreSQL.
    pub(crate) work: Option<(f64, f64)>,
}

/// Run by run.
#[derive(Default)]
pub(crate) struct Cell {
    chancery: Vec<Figure>,
    bare: Vec<Figure>,
    python: Vec<f64>,
    ratios: Vec<f64>,
}

impl Cell {
    pub(crate) fn add(&mut self, chancery: Figure, bare: Figure, python: Option<f64>) {
        self.chancery.push(chancery);
        self.bare.push(bare);
        self.ratios.push(chancery.rate / bare.rate);
        self.python.extend(python);
    }

    pub(crate) fn chancery(&self) -> f64 {
        rate(&self.chancery)
    }

    pub(crate) fn bare(&self) -> f64 {
        rate(&self.bare)
    }
}

fn rate(figures: &[Figure]) -> f64 {
    median(&figures.iter().map(|figure| figure.rate).collect::<Vec<_>>())
}

/// The client's and the server's median processor time, as `6.6 + 2.2`.
fn work(figures: &[Figure]) -> String {
    let (client, server): (Vec<f64>, Vec<f64>) =
        figures.iter().filter_map(|figure| figure.work).unzip();
    match (median(&client), median(&server)) {
        (client, _) if client.is_nan() => String::new(),
        (client, 0.0) => format!("{client:.1}"),
        (client, server) => format!("{client:.1} + {server:.1}"),
    }
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) const HEAD: &str = "\
| records | payload | batch size | signers | nodes | records/s | bare, records/s | ratio (lowest to highest) | work, µs a record | bare, µs a record | Python, records/s |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { records, payload_bytes, batch_size, signers, nodes } = self.load;
        let Cell { ratios, python, .. } = &self.cell;
        let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = ratios.iter().copied().fold(0.0, f64::max);
        let python =
            if python.is_empty() { "".to_owned() } else { format!("{:.0}", median(python)) };
        write!(
            f,
            "| {records} | {payload_bytes} B | {batch_size} | {signers} | {nodes} | {:.0} | {:.0} | {:.2} \
             ({lowest:.2} to {highest:.2}) | {} | {} | {python} |",
            self.cell.chancery(),
            self.cell.bare(),
            median(ratios),
            work(&self.cell.chancery),
            work(&self.cell.bare),
        )
    }
}

/// All tables of a run.
pub(crate) fn page(lines: &[Line], runs: usize) -> String {
    let mut page = format!("<!-- cargo bench --bench end_to_end; medians of {runs} runs -->\n");
    let mut last = ("", "");
    for line in lines {
        if last != (line.database, line.axis) {
            page.push_str(&format!("\n### {}: {}\n\n{HEAD}\n", line.database, line.axis));
            last = (line.database, line.axis);
        }
        page.push_str(&format!("{line}\n"));
    }
    page
}
