//! The figures as a picture (SVG 1.1): records a second over the batch size, beside the bare pipeline.

use crate::table::Line;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 30.0;
const PLOT_WIDTH: f64 = 480.0;
const PLOT_HEIGHT: f64 = 290.0;

/// One figure over the ten tenths of a run.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) points: Vec<f64>,
}

/// Draws panels side by side, each from 0.
pub(crate) fn panels(panels: &[Panel]) -> String {
    let (width, height) = (230.0, 150.0);
    let whole = width * panels.len() as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{whole}\" height=\"{}\" fill=\"#ffffff\"/>\n",
        height + 60.0,
        height + 60.0
    );
    for (n, Panel { title, points }) in panels.iter().enumerate() {
        let left = width * n as f64 + 40.0;
        let top = points.iter().copied().fold(0.0, f64::max) * 1.15;
        let x = |tenth: usize| left + (width - 60.0) * tenth as f64 / 9.0;
        let y = |value: f64| 30.0 + height * (1.0 - value / top);
        let path: Vec<String> =
            points.iter().enumerate().map(|(i, v)| format!("{:.1},{:.1}", x(i), y(*v))).collect();
        let (right, bottom) = (x(9), y(0.0));
        svg.push_str(&format!(
            "<text x=\"{left}\" y=\"18\">{title}</text>\
             <line x1=\"{left}\" y1=\"{bottom}\" x2=\"{right:.1}\" y2=\"{bottom}\" stroke=\"#9ca3af\"/>\
             <text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>\
             <text x=\"{left}\" y=\"{:.1}\">first tenth</text>\
             <text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">last</text>\
             <polyline points=\"{}\" fill=\"none\" stroke=\"#2563eb\" stroke-width=\"2\"/>\n",
            left - 4.0,
            left - 4.0,
            y(top / 1.15) + 4.0,
            top / 1.15,
            bottom + 16.0,
            bottom + 16.0,
            path.join(" ")
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

type Rate = fn(&Line) -> f64;

/// Draws the axis of batch sizes; without it, an empty picture.
pub(crate) fn plot(lines: &[Line]) -> String {
    let series: [(&str, &str, &str, Rate); 4] = [
        ("PostgreSQL", "postgres", "#2563eb", |line| line.cell.chancery()),
        ("PostgreSQL, bare", "postgres", "#93c5fd", |line| line.cell.bare()),
        ("SQLite", "sqlite", "#b45309", |line| line.cell.chancery()),
        ("SQLite, bare", "sqlite", "#fcd34d", |line| line.cell.bare()),
    ];
    let points: Vec<&Line> = lines.iter().filter(|line| line.axis == "batch-size").collect();
    let most = points.iter().flat_map(|line| [line.cell.chancery(), line.cell.bare()]);
    let most = most.fold(1.0, f64::max);
    let step = 20_000.0;
    let top = (most / step).ceil() * step;
    let x = |batch_size: usize| LEFT + (batch_size as f64).log10() / 5_000_f64.log10() * PLOT_WIDTH;
    let y = |rate: f64| TOP + PLOT_HEIGHT * (1.0 - rate / top);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">Records signed a second, by batch size</text>\n"
    );
    let mut rate = 0.0;
    while rate <= top {
        let (y, label) = (y(rate), rate / 1000.0);
        let (right, text) = (LEFT + PLOT_WIDTH, LEFT - 8.0);
        svg.push_str(&format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e5e7eb\"/>\
             <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label:.0}k</text>\n",
            y + 4.0
        ));
        rate += step;
    }
    for batch_size in [1, 10, 100, 500, 5_000] {
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{batch_size}</text>\n",
            x(batch_size),
            TOP + PLOT_HEIGHT + 18.0
        ));
    }
    for (n, (name, database, colour, rate)) in series.into_iter().enumerate() {
        let of_database = points.iter().filter(|line| line.database == database);
        let at: Vec<(f64, f64)> =
            of_database.map(|line| (x(line.load.batch_size), y(rate(line)))).collect();
        let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        svg.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        ));
        for (x, y) in at {
            svg.push_str(&format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\n"
            ));
        }
        let (x, y) = (LEFT + PLOT_WIDTH + 16.0, TOP + 14.0 + 22.0 * n as f64);
        svg.push_str(&format!(
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{y}\">{name}</text>\n",
            y - 10.0,
            x + 18.0
        ));
    }
    svg.push_str("</svg>\n");
    svg
}
