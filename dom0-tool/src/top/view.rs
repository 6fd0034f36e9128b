//! Draws what `top` shows. Columns are left out, the least important first, where the terminal is narrow.
//!
//! It knows a frame to draw in, and no terminal.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table, TableState};

use super::model::{Model, Rate, Row};

/// The least that anything can be shown in.
const LEAST: (u16, u16) = (24, 4);
/// Lines below the table, with its own heading: why containers went out, and why packets were dropped.
const DETAILS: u16 = 3;

struct Column {
    title: &'static str,
    width: u16,
    /// The lowest is left out first.
    weight: u8,
    text: fn(&Row) -> String,
}

const COLUMNS: [Column; 11] = [
    Column { title: "guest", width: 14, weight: 10, text: |row| row.name.clone() },
    Column { title: "id", width: 4, weight: 3, text: |row| row.domain.to_string() },
    Column { title: "vif", width: 3, weight: 4, text: |row| row.vif.to_string() },
    Column { title: "rx/s", width: 6, weight: 9, text: |row| short(row.rx.packets) },
    Column { title: "rx bit/s", width: 8, weight: 5, text: |row| short(row.rx.bits) },
    Column { title: "tx/s", width: 6, weight: 9, text: |row| short(row.tx.packets) },
    Column { title: "tx bit/s", width: 8, weight: 5, text: |row| short(row.tx.bits) },
    Column { title: "rx p/c", width: 6, weight: 7, text: |row| fill(row.rx_fill) },
    Column { title: "tx p/c", width: 6, weight: 6, text: |row| fill(row.tx_fill) },
    Column { title: "p99 us", width: 6, weight: 6, text: |row| row.hold_us.map_or("-".into(), short) },
    Column { title: "drops/s", width: 7, weight: 8, text: |row| short(row.drops) },
];

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        frame.render_widget(Paragraph::new("too small"), area);
        return;
    }
    let uplinks = (model.uplinks.len() as u16 + 1) * u16::from(!model.uplinks.is_empty());
    // The table first: what is below it is left out where there is no room for both.
    let needed = 2 + model.rows.len().clamp(1, 8) as u16;
    let room = |lines: u16, taken: u16| if area.height >= needed + taken + lines { lines } else { 0 };
    let uplinks = room(uplinks, 0);
    let details = room(DETAILS, uplinks);
    let parts =
        [Constraint::Length(1), Constraint::Min(2), Constraint::Length(uplinks), Constraint::Length(details)];
    let [top, middle, below, bottom] = Layout::vertical(parts).areas(area);
    frame.render_widget(Paragraph::new(summary(model)).style(Style::new().add_modifier(Modifier::BOLD)), top);
    interfaces(frame, middle, model);
    if uplinks > 0 {
        frame.render_widget(Paragraph::new(uplink_lines(model)), below);
    }
    if details > 0 {
        frame.render_widget(Paragraph::new(detail_lines(model)), bottom);
    }
}

fn summary(model: &Model) -> String {
    if let Some(trouble) = &model.trouble {
        return trouble.clone();
    }
    let sum = |of: fn(&Row) -> Rate| model.rows.iter().map(|row| of(row).packets).sum::<f64>();
    let guests = model.rows.len();
    format!(
        "drayage: {guests} interface{}, rx {}/s, tx {}/s, {} passes/s, {} sleeps/s, by {} (s, q)",
        if guests == 1 { "" } else { "s" },
        short(sum(|row| row.rx)),
        short(sum(|row| row.tx)),
        short(model.passes),
        short(model.sleeps),
        model.sort.name()
    )
}

/// Returns the columns for which there is room, in their order.
fn columns(width: u16) -> Vec<&'static Column> {
    let mut chosen: Vec<&Column> = COLUMNS.iter().collect();
    let needed = |columns: &[&Column]| columns.iter().map(|c| c.width + 1).sum::<u16>().saturating_sub(1);
    while needed(&chosen) > width {
        let Some(least) = chosen.iter().map(|column| column.weight).min() else { break };
        let Some(at) = chosen.iter().rposition(|column| column.weight == least) else { break };
        chosen.remove(at);
    }
    chosen
}

fn interfaces(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let columns = columns(area.width);
    let cell = |at: usize, text: String| {
        let alignment = if at == 0 { Alignment::Left } else { Alignment::Right };
        Cell::from(Text::from(text).alignment(alignment))
    };
    let titles = columns.iter().enumerate().map(|(at, column)| cell(at, column.title.into()));
    let header = Cells::new(titles).style(Style::new().add_modifier(Modifier::UNDERLINED));
    let rows = model.rows.iter().map(|row| {
        let cells = columns.iter().enumerate().map(|(at, column)| cell(at, (column.text)(row)));
        let style =
            if row.state == "connected" { Style::new() } else { Style::new().add_modifier(Modifier::DIM) };
        Cells::new(cells).style(style)
    });
    // The first one takes what the others leave.
    let widths = columns.iter().enumerate().map(|(at, column)| match at {
        0 => Constraint::Min(column.width),
        _ => Constraint::Length(column.width),
    });
    let highlight = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(rows, widths).header(header).row_highlight_style(highlight);
    let mut state = TableState::new();
    if !model.rows.is_empty() {
        state.select(Some(model.selected));
    }
    frame.render_stateful_widget(table, area, &mut state);
    if model.rows.is_empty() && model.trouble.is_none() && area.height > 1 {
        let line = Rect { y: area.y + 1, height: 1, ..area };
        frame.render_widget(Paragraph::new("nothing is attached: `drayage attach DOMAIN`"), line);
    }
}

fn uplink_lines(model: &Model) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from("uplinks").style(Style::new().add_modifier(Modifier::UNDERLINED))];
    for one in &model.uplinks {
        lines.push(Line::from(format!(
            "{}: in {}/s {} bit/s, out {}/s {} bit/s, drops {}/s",
            one.port,
            short(one.received.packets),
            short(one.received.bits),
            short(one.sent.packets),
            short(one.sent.bits),
            short(one.drops)
        )));
    }
    lines
}

fn detail_lines(model: &Model) -> Vec<Line<'static>> {
    let Some(row) = model.rows.get(model.selected) else { return Vec::new() };
    let list = |what: &str, reasons: &[(String, u64)]| {
        let parts: Vec<String> = reasons.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("{what}: {}", if parts.is_empty() { "none".to_owned() } else { parts.join(", ") })
    };
    let title = format!("{} vif {}: {}", row.name, row.vif, row.state);
    vec![
        Line::from(title).style(Style::new().add_modifier(Modifier::UNDERLINED)),
        Line::from(list("flushes", &row.flush_reasons)),
        Line::from(list("drops", &row.drop_reasons)),
    ]
}

/// Returns a number in at most five characters.
fn short(value: f64) -> String {
    for (unit, size) in [("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)] {
        let scaled = value / size;
        // What would be rounded up to four digits is the next unit's.
        if scaled < 99.95 && !unit.is_empty() {
            return format!("{scaled:.1}{unit}");
        }
        if scaled < 999.5 {
            return format!("{scaled:.0}{unit}");
        }
    }
    format!("{:.0}T", value / 1e12)
}

fn fill(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.1}"))
}

#[cfg(test)]
mod tests {
    use drayage::control::views::{InterfaceStats, UplinkStats};
    use drayage::ipc::Stats;
    use drayage::vif::holds::{HoldBucket, HoldTimes};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::{Key, Sort};
    use super::*;

    /// Returns a document as the daemon sends it: the counters of a guest after so many packets.
    fn interface(name: &str, domain: u16, packets: u64) -> InterfaceStats {
        let mut counters = drayage::vif::Counters::default();
        counters.rx.packets = packets;
        counters.rx.bytes = packets * 1000;
        counters.rx.containers = packets / 25;
        counters.tx.packets = packets / 10;
        counters.drops.queue_full = packets / 100;
        counters.flushes.full = packets / 25;
        let bucket = |below_ns, packets| HoldBucket { below_ns, packets };
        let buckets = vec![bucket(1024, packets / 2), bucket(1_234_000, packets / 2)];
        InterfaceStats {
            domain,
            name: name.into(),
            vif: 0,
            state: "connected".into(),
            rx_packets_per_container: None,
            tx_packets_per_container: None,
            hold: Some(HoldTimes { buckets, ..HoldTimes::default() }),
            counters,
        }
    }

    fn stats(packets: [u64; 2]) -> Stats {
        let uplink = drayage::UplinkCounters {
            received: packets[0],
            received_bytes: packets[0],
            receive_drops: packets[0] / 100,
            ..Default::default()
        };
        Stats {
            interfaces: vec![interface("web", 3, packets[0]), interface("db", 12, packets[1])],
            uplinks: vec![UplinkStats { port: "tap:dry0".into(), counters: uplink }],
            worker: drayage::worker::WorkerCounters { passes: packets[0], ..Default::default() },
            workers: Vec::new(),
        }
    }

    /// Returns a model after two readings, two seconds apart.
    fn model() -> Model {
        let mut model = Model::new();
        model.update(stats([1000, 1000]), 1_000_000_000);
        model.update(stats([3000, 201_000]), 3_000_000_000);
        model
    }

    fn screen(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_wide_screen_shows_everything() {
        let expected = "\
drayage: 2 interfaces, rx 101k/s, tx 10.1k/s, 1.0k passes/s, 0 sleeps/s, by rx (s, q)
guest                  id vif   rx/s rx bit/s   tx/s tx bit/s rx p/c tx p/c p99 us drops/s
db                     12   0   100k     800M  10.0k        0   25.0      -   1.2k    1.0k
web                     3   0   1.0k     8.0M    100        0   25.0      -   1.2k      10

uplinks
tap:dry0: in 1.0k/s 8.0k bit/s, out 0/s 0 bit/s, drops 10/s
db vif 0: connected
flushes: full 8040
drops: queue full 2010";
        assert_eq!(screen(&model(), 90, 10), expected);
    }

    #[test]
    fn a_narrow_screen_keeps_what_matters_most() {
        let expected = "\
drayage: 2 interfaces, rx 101k/s, tx 10.
guest            rx/s   tx/s drops/s
db               100k  10.0k    1.0k
web              1.0k    100      10";
        let shown = screen(&model(), 40, 4);
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&shown), squeeze(expected), "{shown}");
        assert_eq!(screen(&model(), 10, 3), "too small\n\n");
    }

    #[test]
    fn rows_are_ordered_as_asked_and_the_chosen_one_is_followed() {
        let mut model = model();
        assert_eq!((model.sort, model.rows[0].name.as_str(), model.selected), (Sort::Rx, "db", 0));
        assert!(model.key(Key::Down) && model.key(Key::Down));
        assert_eq!(model.selected, 1, "the last one");
        assert!(model.key(Key::PreviousSort));
        assert_eq!((model.sort, model.rows[1].name.as_str(), model.selected), (Sort::Name, "web", 1));
        assert!(model.key(Key::Up) && model.key(Key::Up));
        assert_eq!(model.selected, 0);
        // The other one becomes the busier.
        model.key(Key::NextSort);
        model.update(stats([900_000, 202_000]), 4_000_000_000);
        assert_eq!((model.rows[0].name.as_str(), model.selected), ("web", 1));
        assert!(!model.key(Key::Quit));
    }

    #[test]
    fn counters_that_start_anew_make_no_wild_rates() {
        let mut model = model();
        model.update(stats([100, 201_000]), 4_000_000_000);
        let web = model.rows.iter().find(|row| row.name == "web").unwrap();
        assert_eq!((web.rx.packets, web.rx_fill), (100.0, None));
    }

    #[test]
    fn nothing_and_nobody_are_said() {
        let mut model = Model::new();
        assert!(screen(&model, 60, 5).contains("nothing is attached"));
        model.trouble = Some("the daemon does not run".into());
        let shown = screen(&model, 60, 5);
        assert!(
            shown.starts_with("the daemon does not run") && !shown.contains("nothing is attached"),
            "{shown}"
        );
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12.3k"),
            (99_960.0, "100k"),
            (123_456_789.0, "123M"),
            (5e12, "5T"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
