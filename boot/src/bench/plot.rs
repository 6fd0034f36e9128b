//! Groups of rows as SVG plots. Knows nothing of how they came about, and needs no font of the system's: the browser
//! that shows a plot sets its text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::bench::row::{Peer, Row};
use crate::bench::table::{Group, shown};

const SIZE: (u32, u32) = (760, 420);

/// How much higher an axis is than its values, so that the legend hides none.
const LEGEND_ROOM: f64 = 1.25;

/// Returns a peer's colour, of those that people who do not see all of them tell apart (Okabe and Ito).
pub fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::A => RGBColor(0xd5, 0x5e, 0x00),
        Peer::B => RGBColor(0xe6, 0x9f, 0x00),
        Peer::C => RGBColor(0x56, 0xb4, 0xe9),
        Peer::D => RGBColor(0x00, 0x72, 0xb2),
    }
}

/// Returns the better of a peer's guests at each column.
fn series<'a>(group: &Group<'a>) -> Vec<(Peer, Vec<(f64, &'a Row)>)> {
    let mut out = Vec::new();
    for peer in Peer::ALL {
        let mut points = Vec::new();
        for (at, column) in group.columns.iter().enumerate() {
            let rows = group.lines.iter().filter(|line| line.peer == peer).filter_map(|line| line.cells[at]);
            let better = |one: &&Row, two: &&Row| {
                let order = one.value.total_cmp(&two.value);
                if one.is_cost() { order.reverse() } else { order }
            };
            points.extend(rows.max_by(better).map(|row| (*column, row)));
        }
        if !points.is_empty() {
            out.push((peer, points));
        }
    }
    out
}

/// Draws a group: lines where something is varied, bars where nothing is.
pub fn draw(group: &Group<'_>) -> Result<String> {
    let mut text = String::new();
    let drawn = if group.columns.len() > 1 { lines(group, &mut text) } else { bars(group, &mut text) };
    drawn.map_err(|error| anyhow!("plot of {:?}: {error}", group.title))?;
    Ok(text)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn most(group: &Group<'_>) -> f64 {
    let values = group.lines.iter().flat_map(|line| line.cells.iter().flatten()).map(|row| row.value);
    values.fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.1
}

fn lines(group: &Group<'_>, text: &mut String) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (first, last) = (group.columns[0], group.columns[group.columns.len() - 1]);
    let mut chart = ChartBuilder::on(&root)
        .caption(&group.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(
            first - 0.02 * (last - first)..last + 0.02 * (last - first),
            0.0..LEGEND_ROOM * most(group),
        )?;
    chart
        .configure_mesh()
        .x_desc(&group.across)
        .y_desc(format!("{}, {}", group.metric, group.unit))
        .max_light_lines(1)
        // All that is varied is counted in whole numbers, and half a guest has no name.
        .x_label_formatter(&|at| if at.fract() == 0.0 { at.to_string() } else { String::new() })
        .y_label_formatter(&|value| shown(*value))
        .draw()?;
    for (peer, points) in series(group) {
        let colour = colour(peer);
        let points: Vec<(f64, f64)> = points.iter().map(|(at, row)| (*at, row.value)).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(format!("{}: {}", peer.letter(), peer.describe()))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    // In the corner away from where the highest values are.
    let highest = |at: usize| {
        let values = group.lines.iter().filter_map(|line| line.cells[at]).map(|row| row.value);
        values.fold(0.0, f64::max)
    };
    let corner = if highest(0) > highest(group.columns.len() - 1) {
        SeriesLabelPosition::UpperRight
    } else {
        SeriesLabelPosition::UpperLeft
    };
    chart
        .configure_series_labels()
        .position(corner)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn bars(group: &Group<'_>, text: &mut String) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let lines: Vec<_> =
        group.lines.iter().filter_map(|line| Some((line.peer, line.mode, line.cells[0]?.value))).collect();
    let mut chart = ChartBuilder::on(&root)
        .caption(&group.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..lines.len() as f64, 0.0..most(group))?;
    let name = |at: &f64| {
        let line = lines.get((*at - 0.5).round().max(0.0) as usize);
        let near = (at.fract() - 0.5).abs() < 0.01;
        line.filter(|_| near).map(|(peer, mode, _)| format!("{} {mode}", peer.letter())).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * lines.len() + 1)
        .x_desc("guest and kind of virtualisation")
        .y_desc(format!("{}, {}", group.metric, group.unit))
        .max_light_lines(1)
        .x_label_formatter(&name)
        .y_label_formatter(&|value| shown(*value))
        .draw()?;
    chart.draw_series(lines.iter().enumerate().map(|(at, (peer, _, value))| {
        let left = at as f64;
        Rectangle::new([(left + 0.2, 0.0), (left + 0.8, *value)], colour(*peer).filled())
    }))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Label, THROUGHPUT, Time};
    use crate::bench::table::groups;
    use crate::dom0::Mode;

    fn row(peer: Peer, at: Option<f64>, value: f64) -> Row {
        let varied = at.map(|at| ("guests", at));
        let label =
            Label { suite: "x", peer, mode: Mode::Pvh, case: "here".into(), frame_bytes: None, varied };
        Row::new(&label, Time::Instructions, THROUGHPUT, "packets per hour", value)
    }

    #[test]
    fn a_plot_has_its_axes_named_with_their_units() {
        let rows = [row(Peer::A, Some(1.0), 3.0), row(Peer::A, Some(2.0), 4.0), row(Peer::D, Some(1.0), 9.0)];
        let svg = draw(&groups(&rows)[0]).unwrap();
        let numbers = |number: &str| svg.lines().filter(|line| line.trim() == number).count();
        assert_eq!((numbers("1"), numbers("2")), (1, 1), "each number of guests once: {svg}");
        for wanted in
            ["<svg", "guests", "packets per hour", "a: Linux guest", "d: our guest", "x: throughput, here"]
        {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
    }

    #[test]
    fn single_values_are_bars() {
        let rows = [row(Peer::A, None, 3.0), row(Peer::D, None, 9.0)];
        let svg = draw(&groups(&rows)[0]).unwrap();
        assert!(svg.contains("a pvh") && svg.contains("d pvh"), "{svg}");
    }
}
