//! Rows as tables for a terminal. Knows nothing of how they came about.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::bench::breakdown::{Breakdown, breakdowns, is_operation};
use crate::bench::row::{Peer, Row, Time};
use crate::demo::report::Generator;

/// What one table shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// What it is about.
    pub title: String,
    /// What the values say.
    pub metric: &'static str,
    /// Their unit.
    pub unit: &'static str,
    /// What a column is.
    pub across: String,
    /// The columns, in order.
    pub columns: Vec<f64>,
    /// The lines: a label, and a row for each column where there is one.
    pub lines: Vec<Line<'a>>,
}

/// One line of a table: a guest's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<'a> {
    /// Whose.
    pub peer: Peer,
    /// "pv" or "pvh".
    pub mode: &'a str,
    /// For each column.
    pub cells: Vec<Option<&'a Row>>,
}

/// Returns the groups of rows that belong into one table each, in the order of the rows. What a packet took is not among
/// them.
pub fn groups(rows: &[Row]) -> Vec<Group<'_>> {
    let mut keys: Vec<(&str, Time, String, &str)> = Vec::new();
    for row in rows.iter().filter(|row| !is_operation(row)) {
        let key = key(row);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.iter().map(|wanted| group(rows.iter().filter(|row| key(row) == *wanted).collect())).collect()
}

/// Rows in one table share this. What is varied goes across; where both are varied, there is a table for each frame.
fn key(row: &Row) -> (&str, Time, String, &str) {
    let frame = match (row.varied, row.frame_bytes) {
        (Some(_), Some(frame)) => format!(", {frame} B"),
        _ => String::new(),
    };
    (&row.suite, row.time, format!("{}{frame}", row.case), row.metric)
}

fn column(row: &Row) -> f64 {
    row.at.or(row.frame_bytes.map(|bytes| bytes as f64)).unwrap_or_default()
}

fn group(rows: Vec<&Row>) -> Group<'_> {
    let mut columns: Vec<f64> = rows.iter().map(|row| column(row)).collect();
    columns.sort_by(f64::total_cmp);
    columns.dedup();
    let mut who: Vec<(Peer, &str)> = rows.iter().map(|row| (row.peer, row.mode.as_str())).collect();
    who.sort_unstable();
    who.dedup();
    let lines = who
        .into_iter()
        .map(|(peer, mode)| {
            let cell = |at: &f64| {
                let here = |row: &&&Row| row.peer == peer && row.mode == mode && column(row) == *at;
                rows.iter().find(here).copied()
            };
            Line { peer, mode, cells: columns.iter().map(cell).collect() }
        })
        .collect();
    let first = rows[0];
    let (_, time, case, metric) = key(first);
    let time = if time == Time::Wall { ", wall time" } else { "" };
    let across = match (first.varied, first.frame_bytes) {
        (Some(varied), _) => varied.to_owned(),
        (None, Some(_)) => "frame in bytes, without FCS".to_owned(),
        (None, None) => first.metric.to_owned(),
    };
    Group {
        title: format!("{}: {metric}, {case}{time}", first.suite),
        metric: first.metric,
        unit: first.unit,
        across,
        columns,
        lines,
    }
}

impl Group<'_> {
    /// Returns whose rows these are.
    pub fn suite(&self) -> Option<&str> {
        self.lines.iter().flat_map(|line| line.cells.iter().flatten()).next().map(|row| row.suite.as_str())
    }

    /// Returns what stands above a column: what is varied, or nothing where nothing is.
    pub fn heading(&self, at: f64) -> String {
        let varied = self
            .lines
            .iter()
            .flat_map(|line| line.cells.iter().flatten())
            .any(|row| row.at.is_some() || row.frame_bytes.is_some());
        if varied { at.to_string() } else { String::new() }
    }

    /// Returns what a reader must know beside the values, each once, with those of whom it is said.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<(String, String)> = Vec::new();
        for line in &self.lines {
            for (row, at) in line.cells.iter().zip(&self.columns).filter_map(|(row, at)| Some(((*row)?, at)))
            {
                if row.note.is_empty() {
                    continue;
                }
                let who = format!("{} {} {}", line.peer.letter(), line.mode, self.heading(*at));
                match notes.iter_mut().find(|(note, _)| *note == row.note) {
                    Some((_, whose)) => whose.push_str(&format!(", {}", who.trim_end())),
                    None => notes.push((row.note.clone(), who.trim_end().to_owned())),
                }
            }
        }
        notes.into_iter().map(|(note, who)| format!("{who}: {note}")).collect()
    }
}

/// Returns a value as a person reads it.
pub fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 10_000.0 => format!("{:.1} k", value / 1000.0),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 1.0 => format!("{value:.2}"),
        large if large >= 0.001 => format!("{value:.4}"),
        // Two digits that say something, however small it is.
        tiny => format!("{value:.*}", (1.0 - tiny.log10().floor()).min(12.0) as usize),
    }
}

/// Returns what stands in a cell.
pub fn cell(row: &Row) -> String {
    let mut text = shown(row.value);
    if let Some(ratio) = row.ratio.filter(|_| row.peer != Peer::A) {
        text.push_str(&format!(" ({ratio:.2} ×"));
        if let Some(net) = row.net_ratio {
            text.push_str(&format!(", net {net:.2} ×"));
        }
        text.push(')');
    }
    if row.samples.len() > 1 {
        text.push_str(&format!(" ±{:.0} %", 100.0 * crate::bench::row::noise(&row.samples)));
    }
    text
}

/// Returns all tables.
pub fn tables(rows: &[Row], generators: &[Generator]) -> String {
    let mut text: String = breakdowns(rows).iter().map(Breakdown::text).collect();
    for group in groups(rows) {
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY);
        let mut header = vec!["guest".to_owned(), format!("{} →", group.across)];
        header.extend(group.columns.iter().map(|at| group.heading(*at)));
        table.set_header(header);
        for line in &group.lines {
            let mut cells =
                vec![format!("{} {}", line.peer.letter(), line.mode), line.peer.describe().into()];
            cells.extend(line.cells.iter().map(|row| row.map(cell).unwrap_or_default()));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        text.push_str(&format!("\n{} ({}; × = times better than a)\n{table}\n", group.title, group.unit));
        for note in group.notes() {
            text.push_str(&format!(" {note}\n"));
        }
    }
    for generator in generators {
        text.push_str(&format!(
            "generator {} alone, {} B: {:.0} instructions per packet\n",
            generator.name, generator.frame_bytes, generator.instructions_per_packet
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Label, THROUGHPUT};
    use crate::dom0::Mode;

    fn row(peer: Peer, frame_bytes: usize, value: f64) -> Row {
        let label = Label {
            suite: "rx",
            peer,
            mode: Mode::Pv,
            case: "direct".into(),
            frame_bytes: Some(frame_bytes),
            varied: None,
        };
        Row::new(&label, Time::Instructions, THROUGHPUT, "packets per 10^9 instructions", value)
    }

    #[test]
    fn values_are_shown_with_the_digits_that_matter() {
        let values = [0.0, 12_345.0, 123.4, 1.234, 0.12345, 0.00128, 0.00008].map(shown);
        assert_eq!(values, ["0", "12.3 k", "123", "1.23", "0.1235", "0.0013", "0.000080"]);
    }

    #[test]
    fn rows_become_lines_and_columns() {
        let mut rows =
            vec![row(Peer::A, 60, 50_000.0), row(Peer::A, 1514, 40_000.0), row(Peer::D, 60, 400_000.0)];
        crate::bench::row::compare(&mut rows);
        let text = tables(&rows, &[]);
        assert!(text.contains("rx: throughput, direct (packets per 10^9 instructions"), "{text}");
        assert!(text.contains("400.0 k (8.00 ×)"), "{text}");
        let groups = groups(&rows);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].columns, [60.0, 1514.0]);
        assert!(groups[0].lines[1].cells[1].is_none());
    }
}
