//! What a packet took, by operation: operations down; guests and sizes of frames, or of containers, across; as tables and as
//! plots. Knows nothing of how the rows came about.

use std::cmp::Ordering;
use std::fmt::Write;

use anyhow::{Result, anyhow};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bench::plot::colour;
use crate::bench::row::{Peer, Row, THROUGHPUT};
use crate::bench::table::shown;

/// The suite all of whose rows are shown in this way.
pub const SUITE: &str = "cost";

/// Tells whether a row is shown in this way, and in no other: a plot for each operation would be too many.
pub fn is_operation(row: &Row) -> bool {
    row.suite == SUITE || (row.suite == "containers" && row.metric != THROUGHPUT)
}

/// Width of a plot, and of the names in it.
const WIDTH: u32 = 760;
const NAMES: u32 = 250;

/// Height of a bar, and of what is above and below all of them.
const BAR: u32 = 17;
const FRAME: u32 = 100;

/// One table: a way of packets.
#[derive(Debug, Clone, PartialEq)]
pub struct Breakdown<'a> {
    /// The way, and what the values are of.
    pub title: String,
    unit: &'static str,
    /// Whose rows these are.
    pub suite: &'a str,
    columns: Vec<Column>,
    lines: Vec<Line<'a>>,
}

/// What is across.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Column {
    frame_bytes: usize,
    /// What is varied beside, and decides alone where something is.
    at: Option<f64>,
    peer: Peer,
}

impl Column {
    fn of(row: &Row) -> Self {
        Column { frame_bytes: row.frame_bytes.unwrap_or_default(), at: row.at, peer: row.peer }
    }

    fn heading(&self) -> String {
        match self.at {
            Some(at) => format!("{}, {at}", self.peer.letter()),
            None => format!("{}, {} B", self.peer.letter(), self.frame_bytes),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Line<'a> {
    operation: &'a str,
    note: String,
    cells: Vec<Option<&'a Row>>,
}

/// Returns a table for each way and unit, in the order of the rows.
pub fn breakdowns(rows: &[Row]) -> Vec<Breakdown<'_>> {
    let rows: Vec<&Row> = rows.iter().filter(|row| is_operation(row)).collect();
    // Where something is varied, that is across, and there is a table for each frame.
    let way = |row: &Row| {
        let frame = row.at.and(row.frame_bytes);
        (row.suite.clone(), row.case.clone(), row.unit, frame)
    };
    let mut ways = Vec::new();
    for row in &rows {
        if !ways.contains(&way(row)) {
            ways.push(way(row));
        }
    }
    ways.iter()
        .map(|wanted| breakdown(rows.iter().filter(|row| way(row) == *wanted).copied().collect()))
        .collect()
}

fn breakdown(rows: Vec<&Row>) -> Breakdown<'_> {
    let mut columns: Vec<Column> = rows.iter().map(|row| Column::of(row)).collect();
    let order = |column: &Column| (column.frame_bytes, column.at.unwrap_or_default(), column.peer);
    columns.sort_by(|one, two| order(one).partial_cmp(&order(two)).unwrap_or(Ordering::Equal));
    columns.dedup();
    let mut operations: Vec<&str> = Vec::new();
    for row in &rows {
        if !operations.contains(&row.metric) {
            operations.push(row.metric);
        }
    }
    let line = |operation: &&'static str| {
        let of = |at: &Column| rows.iter().find(|row| row.metric == *operation && Column::of(row) == *at);
        let cells: Vec<Option<&Row>> = columns.iter().map(|at| of(at).copied()).collect();
        let mut notes: Vec<String> = Vec::new();
        for row in cells.iter().flatten().filter(|row| !row.note.is_empty()) {
            let note = format!("{} B: {}", row.frame_bytes.unwrap_or_default(), row.note);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        Line { operation, note: notes.join("; "), cells }
    };
    let first = rows[0];
    let varied = match (first.varied, first.frame_bytes) {
        (Some(varied), Some(frame)) => format!("{frame} B, by {varied}, "),
        _ => String::new(),
    };
    let title = format!("{}: {}, {varied}{}", first.suite, first.case, first.unit);
    Breakdown {
        title,
        unit: first.unit,
        suite: &first.suite,
        lines: operations.iter().map(line).collect(),
        columns,
    }
}

fn value(cell: &Option<&Row>) -> String {
    cell.map(|row| shown(row.value)).unwrap_or_default()
}

impl Breakdown<'_> {
    /// Returns the table for a terminal.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY);
        let mut header = vec!["operation".to_owned()];
        header.extend(self.columns.iter().map(Column::heading));
        table.set_header(header);
        for line in &self.lines {
            let mut cells = vec![line.operation.to_owned()];
            cells.extend(line.cells.iter().map(value));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("\n{}\n{table}\n", self.title);
        for line in self.lines.iter().filter(|line| !line.note.is_empty()) {
            let _ = writeln!(text, " {}: {}", line.operation, line.note);
        }
        text
    }

    /// Returns the table for the page.
    pub fn html(&self) -> String {
        let mut text = format!("<table><caption>{}</caption><tr><th>operation<th>", self.title);
        for column in &self.columns {
            let _ = write!(text, "<th>{}", column.heading());
        }
        text.push_str("</tr>");
        for line in &self.lines {
            let _ = write!(text, "<tr><td>{}<td>{}", line.operation, line.note);
            for cell in &line.cells {
                let _ = write!(text, "<td>{}", value(cell));
            }
            text.push_str("</tr>");
        }
        text + "</table>"
    }

    /// Draws the table as bars; the axis is logarithmic, for the values of one packet lie far apart.
    pub fn draw(&self) -> Result<String> {
        let mut text = String::new();
        self.bars(&mut text).map_err(|error| anyhow!("drawing {:?}: {error}", self.title))?;
        Ok(text)
    }

    fn bars(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let values = || self.lines.iter().flat_map(|line| line.cells.iter().flatten()).map(|row| row.value);
        let most = values().fold(f64::MIN_POSITIVE, f64::max);
        let least = values().filter(|value| *value > 0.0).fold(most, f64::min);
        // Whole decades, and room for the number behind the longest bar.
        let low = 10_f64.powf(least.log10().floor() - 0.2);
        let high = most * (most / low).powf(0.25);
        let each = self.columns.len() as u32 + 1;
        let bars = self.lines.len() as u32 * each;
        let root = SVGBackend::with_string(text, (WIDTH, FRAME + bars * BAR)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(NAMES)
            .build_cartesian_2d((low..high).log_scale(), f64::from(bars)..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .max_light_lines(1)
            .x_desc(format!("{}, logarithmic", self.unit))
            .x_label_formatter(&|value| shown(*value))
            .draw()?;
        let mut at = 0.5;
        for line in &self.lines {
            for (column, cell) in self.columns.iter().zip(&line.cells) {
                let value = cell.map_or(0.0, |row| row.value);
                let colour = colour(column.peer);
                let area = [(low, at + 0.1), (value.max(low), at + 0.9)];
                chart.draw_series([Rectangle::new(area, colour.filled())])?;
                let place = (value.max(low) * (high / low).powf(0.01), at + 0.2);
                let label = format!("{}: {}", column.heading(), shown(value));
                chart.draw_series([Text::new(label, place, ("sans-serif", 12))])?;
                at += 1.0;
            }
            at += 1.0;
        }
        drop(chart);
        // The names stand outside of the axes, each beside its bars.
        let caption = 12 + 24;
        for (number, line) in self.lines.iter().enumerate() {
            let middle = caption + (number as u32 * each * BAR + each * BAR / 2) as i32 - 6;
            let style = TextStyle::from(("sans-serif", 13)).pos(Pos::new(HPos::Right, VPos::Top));
            root.draw(&Text::new(line.operation.to_owned(), (NAMES as i32, middle), style))?;
        }
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Label, Time};
    use crate::dom0::Mode;

    #[test]
    fn operations_go_down_and_guests_across() {
        let row = |peer, frame_bytes, metric, unit, value| {
            let label = Label {
                suite: SUITE,
                peer,
                mode: Mode::Pvh,
                case: "rx, direct".into(),
                frame_bytes: Some(frame_bytes),
                varied: None,
            };
            Row::new(&label, Time::Instructions, metric, unit, value)
        };
        let mut rows = vec![
            row(Peer::C, 60, "hypercalls", "per packet", 0.25),
            row(Peer::D, 60, "hypercalls", "per packet", 0.002),
            row(Peer::D, 60, "wake-ups", "per packet", 0.0),
            row(Peer::D, 60, "bytes copied", "per byte", 1.5),
        ];
        rows[1].note = "beside".into();
        let found = breakdowns(&rows);
        assert_eq!(found.len(), 2, "a table for each unit");
        let headings: Vec<String> = found[0].columns.iter().map(Column::heading).collect();
        assert_eq!(headings, ["c, 60 B", "d, 60 B"]);
        let text = found[0].text();
        assert!(
            text.contains("hypercalls") && text.contains("0.0020") && text.contains("60 B: beside"),
            "{text}"
        );
        let svg = found[0].draw().unwrap();
        assert!(svg.contains("d, 60 B: 0.0020") && svg.contains("wake-ups"), "{svg}");
        assert!(found[0].html().contains("<td>0.2500"), "{}", found[0].html());
        rows[0].suite = "containers".into();
        (rows[0].at, rows[0].varied) = (Some(64.0), Some("KiB"));
        assert_eq!(breakdowns(&rows)[0].title, "containers: rx, direct, 60 B, by KiB, per packet");
        rows[0].metric = THROUGHPUT;
        assert_eq!(breakdowns(&rows).len(), 2, "a throughput is shown elsewhere");
    }
}
