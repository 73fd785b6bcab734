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

/// Records a second, run by run.
#[derive(Default)]
pub(crate) struct Cell {
    chancery: Vec<f64>,
    bare: Vec<f64>,
    python: Vec<f64>,
    ratios: Vec<f64>,
}

impl Cell {
    pub(crate) fn add(&mut self, chancery: f64, bare: f64, python: Option<f64>) {
        self.chancery.push(chancery);
        self.bare.push(bare);
        self.ratios.push(chancery / bare);
        self.python.extend(python);
    }

    pub(crate) fn chancery(&self) -> f64 {
        median(&self.chancery)
    }

    pub(crate) fn bare(&self) -> f64 {
        median(&self.bare)
    }
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) const HEAD: &str = "\
| records | payload | batch size | signers | nodes | records/s | bare, records/s | ratio (lowest to highest) | Python, records/s |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

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
             ({lowest:.2} to {highest:.2}) | {python} |",
            self.cell.chancery(),
            self.cell.bare(),
            median(ratios),
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
