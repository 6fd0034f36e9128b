//! The demo's results for a person to read. Knows nothing of how they came about.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::demo::report::{Report, Run, Source};

/// Returns a line about one run, printed as soon as it is done.
pub fn run_line(run: &Run) -> String {
    let containers = if run.containers {
        format!(", {:.1} packets per container", run.packets_per_container)
    } else {
        String::new()
    };
    format!(
        "row {} {:>7}/{:<3} on {:<7} {:>6} source {:>4} B: {:>7.1} k packets per 10^9 instructions \
         ({:.0} each){containers}",
        run.row,
        run.guest,
        run.mode,
        run.backend,
        run.source.name(),
        run.frame_bytes,
        run.pps / 1000.0,
        run.instructions_per_packet,
    )
}

/// Returns the tables at the end.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    for source in Source::ALL {
        if let Some(table) = comparison(report, source) {
            text.push_str(&format!(
                "\nsmall-packet reception, source {}, packets per 10^9 instructions of the whole machine\n{table}\n",
                source.name()
            ));
        }
    }
    if !report.generators.is_empty() {
        text.push_str(&format!("\ngenerators alone\n{}\n", generators(report)));
    }
    for ratio in &report.ratios {
        text.push_str(&format!(
            "d : a, source {:>6}, {:>4} B: {:.2} raw, {:.2} net of the generators\n",
            ratio.source.name(),
            ratio.frame_bytes,
            ratio.d_over_a,
            ratio.d_over_a_net
        ));
    }
    text
}

fn comparison(report: &Report, source: Source) -> Option<Table> {
    let runs: Vec<&Run> = report.runs.iter().filter(|run| run.source == source).collect();
    let mut sizes: Vec<usize> = runs.iter().map(|run| run.frame_bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() {
        return None;
    }
    let mut table = new_table();
    let mut header = vec!["row".to_owned(), "guest".into(), "backend".into(), "containers".into()];
    header.extend(sizes.iter().map(|size| format!("{size} B")));
    table.set_header(header);
    let mut lines: Vec<(&str, &str)> = runs.iter().map(|run| (run.row.as_str(), run.mode.as_str())).collect();
    lines.sort_unstable();
    lines.dedup();
    for (row, mode) in lines {
        let of_line: Vec<&&Run> = runs.iter().filter(|run| run.row == row && run.mode == mode).collect();
        let first = of_line.first()?;
        let mut cells = vec![
            row.to_owned(),
            format!("{} {mode}", first.guest),
            first.backend.clone(),
            if first.containers { "on" } else { "off" }.to_owned(),
        ];
        for size in &sizes {
            let run = of_line.iter().find(|run| run.frame_bytes == *size);
            cells.push(run.map(|run| cell(run)).unwrap_or_default());
        }
        table.add_row(cells);
    }
    align(&mut table, 4);
    Some(table)
}

fn cell(run: &Run) -> String {
    let rate = format!("{:.1} k", run.pps / 1000.0);
    if run.containers { format!("{rate} ({:.1}/container)", run.packets_per_container) } else { rate }
}

fn generators(report: &Report) -> Table {
    let mut table = new_table();
    table.set_header(["generator", "frame", "instructions per packet"]);
    for generator in &report.generators {
        table.add_row([
            generator.name.clone(),
            format!("{} B", generator.frame_bytes),
            format!("{:.0}", generator.instructions_per_packet),
        ]);
    }
    align(&mut table, 1);
    table
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table
}

/// Aligns the columns from one on to the right, as numbers want it.
fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
