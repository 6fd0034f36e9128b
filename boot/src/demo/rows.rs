//! The rows of the comparison, one after another on one machine. Knows which guest meets which
//! backend; the parts know how.

use anyhow::{Context, Result};

use crate::backend::Daemon;
use crate::demo::drops::drops;
use crate::demo::greeting::{Names, greet};
use crate::demo::guests::{GUEST_IP, Site, linux, linux_reader_script, ours};
use crate::demo::path::{Containers, Ours, Path, Stock, measure_generator};
use crate::demo::reader::Reader;
use crate::demo::report::{Generator, Report, Run, Source};
use crate::demo::search::{Found, Measurement, highest_rate};
use crate::demo::sender::{self, Stream};
use crate::demo::show::run_line;
use crate::dom0::{Dom0, Mode};

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    frames: Vec<usize>,
    modes: Vec<Mode>,
    sources: Vec<Source>,
    rows: Vec<Row>,
    packets: u64,
}

/// The rows of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// A Linux guest on the stock backend.
    A,
    /// Our guest on the stock backend.
    B,
    /// Our guest on our backend, containers off.
    C,
    /// Our guest on our backend, containers on.
    D,
}

impl Row {
    /// Returns the name that the report has.
    fn letter(self) -> &'static str {
        match self {
            Row::A => "a",
            Row::B => "b",
            Row::C => "c",
            Row::D => "d",
        }
    }
}

impl Plan {
    /// Returns the whole comparison.
    pub fn full() -> Self {
        Plan {
            frames: vec![60, 252, 1514],
            modes: Mode::ALL.to_vec(),
            sources: vec![Source::Direct, Source::Linux],
            rows: vec![Row::A, Row::B, Row::C, Row::D],
            packets: 12_000,
        }
    }

    /// Returns a part of it that takes less time.
    pub fn quick() -> Self {
        Plan {
            frames: vec![60],
            modes: vec![Mode::Pvh],
            sources: vec![Source::Direct],
            rows: vec![Row::A, Row::D],
            ..Plan::full()
        }
    }

    /// Returns a part of it with frames of all sizes.
    pub fn brief() -> Self {
        Plan { modes: vec![Mode::Pvh], rows: vec![Row::A, Row::D], ..Plan::full() }
    }

    /// Measures packets from other sources.
    pub fn with_sources(self, sources: &[Source]) -> Self {
        Plan { sources: sources.to_vec(), ..self }
    }

    fn has(&self, row: Row) -> bool {
        self.rows.contains(&row)
    }

    /// Returns how many packets a stream has: half of them where each costs the machine several times as much,
    /// so that all streams take about the same time.
    fn packets(&self, row: Row, source: Source) -> u64 {
        match (row, source) {
            (Row::C | Row::D, Source::Direct) => self.packets,
            _ => self.packets / 2,
        }
    }
}

/// What the demo found out, and what went wrong.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The results.
    pub report: Report,
    /// Why the demo fails.
    pub failures: Vec<String>,
}

/// Boots every guest of a plan and measures.
pub fn measure(dom0: &mut Dom0, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
    versions(dom0, &mut outcome.report)?;
    // Neighbour discovery and its like would be counted among the packets that are measured.
    dom0.shell("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    for frame_bytes in &plan.frames {
        note_generator(sender::measure_alone(dom0, *frame_bytes, plan.packets)?, outcome);
    }
    if plan.has(Row::A) {
        row_a(dom0, plan, outcome)?;
    }
    for mode in &plan.modes {
        if plan.has(Row::B) {
            answer(dom0, *mode, Box::new(Stock::default()), "netback", outcome)?;
            our_row(dom0, plan, Row::B, *mode, outcome)?;
        }
    }
    let daemon = Daemon::start(dom0)?;
    for frame_bytes in &plan.frames {
        note_generator(measure_generator(dom0, *frame_bytes, plan.packets)?, outcome);
    }
    for mode in &plan.modes {
        answer(dom0, *mode, Box::new(Ours::new(Site::FIRST, Containers::On)), "drayage", outcome)?;
        for row in [Row::C, Row::D] {
            if plan.has(row) {
                our_row(dom0, plan, row, *mode, outcome)?;
            }
        }
    }
    daemon.stop(dom0)
}

fn versions(dom0: &mut Dom0, report: &mut Report) -> Result<()> {
    let text = dom0.shell("xl info xen_version; uname -r; drayage --version")?;
    let mut lines = text.lines().map(str::trim);
    report.xen = lines.next().unwrap_or_default().to_owned();
    let (linux, drayage) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    println!("Xen {} with Linux {linux} as dom0, two CPUs; {drayage}", report.xen);
    println!(
        "time is counted in instructions: one nanosecond of the machine's clocks is one instruction, of"
    );
    println!(
        "hypervisor, dom0 and guest together; every row runs at the highest rate with under 1 % of loss"
    );
    Ok(())
}

fn note_generator(generator: Generator, outcome: &mut Outcome) {
    println!(
        "generator {:>8} alone, {:>4} B: {:.0} instructions per packet",
        generator.name, generator.frame_bytes, generator.instructions_per_packet
    );
    outcome.report.generators.push(generator);
}

/// Row a: a Linux guest in each mode, of which the better one counts.
fn row_a(dom0: &mut Dom0, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
    let mut runs = Vec::new();
    for mode in &plan.modes {
        let guest = linux("linux", *mode, &linux_reader_script());
        let mut path: Box<dyn Path> = Box::new(Stock::default());
        greet(dom0, path.as_mut(), &guest, Names { guest: "linux", backend: "netback" }, outcome)?;
        let reader = Reader::Linux(guest.name.clone());
        let line = Line { row: Row::A, mode: *mode };
        runs.extend(streams(dom0, plan, line, &reader, path.as_mut(), outcome)?);
        path.end(dom0)?;
    }
    for run in &runs {
        let better = runs.iter().any(|other| {
            (other.source, other.frame_bytes) == (run.source, run.frame_bytes) && other.pps > run.pps
        });
        if !better {
            outcome.report.runs.push(run.clone());
        }
    }
    Ok(())
}

/// Boots our guest and compares what it answers.
fn answer(
    dom0: &mut Dom0,
    mode: Mode,
    mut path: Box<dyn Path>,
    backend: &'static str,
    outcome: &mut Outcome,
) -> Result<()> {
    let guest = ours("echo", mode, &format!("app=echo ip={GUEST_IP}/24"));
    greet(dom0, path.as_mut(), &guest, Names { guest: "drayage", backend }, outcome)?;
    path.end(dom0)
}

/// Rows b, c and d: our guest on one backend or the other.
fn our_row(dom0: &mut Dom0, plan: &Plan, row: Row, mode: Mode, outcome: &mut Outcome) -> Result<()> {
    let mut path: Box<dyn Path> = match row {
        Row::A | Row::B => Box::new(Stock::default()),
        Row::C => Box::new(Ours::new(Site::FIRST, Containers::Off)),
        Row::D => Box::new(Ours::new(Site::FIRST, Containers::On)),
    };
    path.create(dom0, &ours("counter", mode, &format!("app=sink ip={GUEST_IP}/24")))?;
    let runs = streams(
        dom0,
        plan,
        Line { row, mode },
        &Reader::Sink(Site::FIRST.guest_ip()),
        path.as_mut(),
        outcome,
    )?;
    outcome.report.runs.extend(runs);
    path.end(dom0)
}

/// What the runs of one row and mode have in common.
#[derive(Debug, Clone, Copy)]
struct Line {
    row: Row,
    mode: Mode,
}

fn streams(
    dom0: &mut Dom0,
    plan: &Plan,
    line: Line,
    reader: &Reader,
    path: &mut dyn Path,
    outcome: &mut Outcome,
) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for source in &plan.sources {
        path.prepare(dom0, *source)?;
        // The other end may be a new neighbour: the guest's answers must find it before packets count.
        dom0.shell(&format!("peer ping {GUEST_IP} --until-answered --count 200 --interval-ms 50"))?;
        for frame_bytes in &plan.frames {
            let found = highest_rate(
                |rate| {
                    let count = plan.packets(line.row, *source);
                    let stream = Stream { frame_bytes: *frame_bytes, count, rate };
                    one_stream(dom0, path, reader, *source, stream)
                },
                |measurement| account(line, *source, *frame_bytes, measurement, &mut outcome.failures),
            )
            .with_context(|| {
                format!("row {}, {}, {frame_bytes} bytes", line.row.letter(), line.mode.name())
            })?;
            let run = new_run(line, *source, *frame_bytes, &found);
            println!("{}", run_line(&run));
            runs.push(run);
        }
    }
    Ok(runs)
}

/// Sends one stream, and returns what came of it.
pub fn one_stream(
    dom0: &mut Dom0,
    path: &dyn Path,
    reader: &Reader,
    source: Source,
    stream: Stream,
) -> Result<Measurement> {
    let places = [path.places()];
    let before = drops(dom0, &places)?;
    let reading = reader.begin(dom0)?;
    let sent = path.send(dom0, source, stream)?;
    let arrived = reading.end(dom0)?;
    let after = drops(dom0, &places)?;
    let mut lost: Vec<(String, u64)> = before
        .iter()
        .zip(after)
        .map(|((_, before), (place, after))| (place, after.saturating_sub(*before)))
        .collect();
    lost.extend(arrived.lost);
    Ok(Measurement {
        sent: sent.sent,
        received: arrived.packets,
        elapsed_ns: sent.elapsed_ns.max(arrived.span_ns),
        lost,
        packets_per_container: arrived.packets_per_container,
    })
}

/// Notes a failure when packets are gone that nobody counted, or came twice.
fn account(line: Line, source: Source, frame_bytes: usize, run: &Measurement, failures: &mut Vec<String>) {
    if run.unaccounted() > 0 || run.received > run.sent {
        failures.push(format!(
            "row {}, {}, source {}, {frame_bytes} bytes: {} packets sent, {} received, lost and counted {:?}: \
             {} unaccounted for",
            line.row.letter(),
            line.mode.name(),
            source.name(),
            run.sent,
            run.received,
            run.lost,
            run.unaccounted()
        ));
    }
}

fn new_run(line: Line, source: Source, frame_bytes: usize, found: &Found) -> Run {
    let measurement = &found.measurement;
    let pps = measurement.pps();
    Run {
        row: line.row.letter().to_owned(),
        source,
        guest: if line.row == Row::A { "linux" } else { "drayage" }.to_owned(),
        mode: line.mode.name().to_owned(),
        backend: if matches!(line.row, Row::A | Row::B) { "netback" } else { "drayage" }.to_owned(),
        containers: line.row == Row::D,
        frame_bytes,
        sent: measurement.sent,
        received: measurement.received,
        pps,
        instructions_per_packet: 1e9 / pps.max(f64::MIN_POSITIVE),
        packets_per_container: measurement.packets_per_container,
    }
}
