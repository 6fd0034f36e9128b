//! The rows of the comparison, one after another on one machine. Knows which guest meets which
//! backend; the parts know how.

use std::time::Duration;

use anyhow::{Context, Result};
use drayage_peer::report::{EchoReport, PingReport};

use crate::demo::guests::{GUEST_IP, GUEST_MAC, linux, linux_reader_script, ours, stock_vif};
use crate::demo::reader::Reader;
use crate::demo::report::{Boot, Report, Run, Source};
use crate::demo::search::{Found, Measurement, highest_rate};
use crate::demo::sender::{self, Stream, send};
use crate::demo::show::run_line;
use crate::demo::stock::StockPath;
use crate::dom0::{Dom0, Guest, Mode, Start};

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

impl Plan {
    /// Returns the whole comparison.
    pub fn full() -> Self {
        Plan {
            frames: vec![60, 252, 1514],
            modes: Mode::ALL.to_vec(),
            sources: vec![Source::Direct, Source::Linux],
            rows: vec![Row::A, Row::B, Row::C, Row::D],
            packets: 30_000,
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

    fn has(&self, row: Row) -> bool {
        self.rows.contains(&row)
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
    for frame_bytes in &plan.frames {
        let generator = sender::measure_alone(dom0, *frame_bytes, plan.packets)?;
        println!(
            "generator {} alone, {frame_bytes:>4} B: {:.0} instructions per packet",
            generator.name, generator.instructions_per_packet
        );
        outcome.report.generators.push(generator);
    }
    if plan.has(Row::A) {
        row_a(dom0, plan, outcome)?;
    }
    for mode in &plan.modes {
        answer_on_stock(dom0, *mode, outcome)?;
        if plan.has(Row::B) {
            row_b(dom0, plan, *mode, outcome)?;
        }
    }
    Ok(())
}

fn versions(dom0: &mut Dom0, report: &mut Report) -> Result<()> {
    let text = dom0.shell("xl info xen_version; uname -r")?;
    let mut lines = text.lines();
    report.xen = lines.next().unwrap_or_default().trim().to_owned();
    println!(
        "Xen {} with Linux {} as dom0, two CPUs; one nanosecond of its time is one instruction",
        report.xen,
        lines.next().unwrap_or_default().trim()
    );
    Ok(())
}

/// Row a: a Linux guest in both modes, of which the better one counts.
fn row_a(dom0: &mut Dom0, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
    let mut runs = Vec::new();
    for mode in &plan.modes {
        let mut guest = linux("linux", *mode, &linux_reader_script());
        guest.vifs = vec![stock_vif(GUEST_MAC)];
        let path = boot(dom0, &guest, outcome)?;
        let reader = Reader::Linux(guest.name.clone());
        let line = Line { row: "a", guest: "linux", mode: *mode };
        runs.extend(stock_runs(dom0, plan, &line, &reader, path, outcome)?);
        dom0.destroy(&guest.name)?;
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

/// Boots our guest on the stock backend and compares what it answers.
fn answer_on_stock(dom0: &mut Dom0, mode: Mode, outcome: &mut Outcome) -> Result<()> {
    let mut guest = ours("echo", mode, &format!("app=echo ip={GUEST_IP}/24"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    boot(dom0, &guest, outcome)?.remove(dom0)?;
    dom0.destroy(&guest.name)
}

/// Row b: our guest on the stock backend.
fn row_b(dom0: &mut Dom0, plan: &Plan, mode: Mode, outcome: &mut Outcome) -> Result<()> {
    let mut guest = ours("sink", mode, &format!("app=sink ip={GUEST_IP}/24"));
    guest.vifs = vec![stock_vif(GUEST_MAC)];
    dom0.create(&guest, Start::Running)?;
    let path = StockPath::direct(dom0, &guest.name)?;
    let line = Line { row: "b", guest: "drayage", mode };
    let runs = stock_runs(dom0, plan, &line, &Reader::Sink, path, outcome)?;
    outcome.report.runs.extend(runs);
    dom0.destroy(&guest.name)
}

/// Boots a guest on the stock backend, times its first answered ping, and compares what it echoes.
fn boot(dom0: &mut Dom0, guest: &Guest, outcome: &mut Outcome) -> Result<StockPath> {
    let started_ns = dom0.agent().clock_ns()?;
    dom0.create(guest, Start::Running)?;
    let path = StockPath::direct(dom0, &guest.name)?;
    let kind = if guest.ramdisk.is_some() { "linux" } else { "drayage" };
    let answered = greet(dom0, started_ns)?;
    let differences = match answered {
        Some(_) => compare_echoes(dom0)?,
        None => vec![format!("no ping was answered within {} s", GREETING.as_secs())],
    };
    let name = format!("{kind} guest, {}, stock backend", guest.mode.name());
    match (&answered, differences.is_empty()) {
        (Some(ms), true) => {
            println!("{name}: first answered ping after {ms:.0} ms; ICMP, UDP and TCP echo: same bytes")
        }
        _ => println!("{name}: FAILED: {}", differences.join("; ")),
    }
    outcome.failures.extend(differences.iter().map(|difference| format!("{name}: {difference}")));
    outcome.report.boots.push(Boot {
        guest: kind.to_owned(),
        backend: "netback".to_owned(),
        mode: guest.mode.name().to_owned(),
        ok: differences.is_empty(),
        first_ping_ms: answered,
    });
    Ok(path)
}

/// Patience with a guest's first answer, in the machine's time.
const GREETING: Duration = Duration::from_secs(60);

/// Returns the milliseconds from a time to the guest's first answered ping.
fn greet(dom0: &mut Dom0, since_ns: u64) -> Result<Option<f64>> {
    const INTERVAL_MS: u64 = 20;
    let count = GREETING.as_millis() as u64 / INTERVAL_MS;
    let report: PingReport = dom0.json(
        &format!("peer ping {GUEST_IP} --until-answered --interval-ms {INTERVAL_MS} --count {count}"),
        2 * GREETING,
    )?;
    let now_ns = dom0.agent().clock_ns()?;
    Ok((report.answered > 0).then(|| (now_ns - since_ns) as f64 / 1e6))
}

/// Returns what differed between payloads sent to the guest and those that came back.
fn compare_echoes(dom0: &mut Dom0) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let ping: PingReport = dom0.json(&format!("peer ping {GUEST_IP} --bytes 1000"), GREETING)?;
    if ping.answered < ping.sent || ping.mismatched > 0 {
        differences.push(format!("ping: {ping:?}"));
    }
    for command in ["udp-echo", "tcp-echo"] {
        let report = dom0.json::<EchoReport>(&format!("peer {command} {GUEST_IP}"), GREETING);
        match report {
            Ok(report) if report.mismatched == 0 && report.received_bytes == report.sent_bytes => {}
            Ok(report) => differences.push(format!("{report:?}")),
            Err(error) => differences.push(format!("{command}: {error:#}")),
        }
    }
    Ok(differences)
}

/// What the runs of one row and mode have in common.
struct Line {
    row: &'static str,
    guest: &'static str,
    mode: Mode,
}

fn stock_runs(
    dom0: &mut Dom0,
    plan: &Plan,
    line: &Line,
    reader: &Reader,
    mut path: StockPath,
    outcome: &mut Outcome,
) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for source in &plan.sources {
        if *source == Source::Linux {
            path = path.bridged(dom0)?;
        }
        // The bridge is a new neighbour: the guest's answers must find it before packets count.
        dom0.shell(&format!("peer ping {GUEST_IP} --count 3 --interval-ms 300"))?;
        for frame_bytes in &plan.frames {
            let found = highest_rate(
                |rate| {
                    let stream = Stream { frame_bytes: *frame_bytes, count: plan.packets, rate };
                    stock_stream(dom0, &path, reader, stream)
                },
                |measurement| account(line, *source, *frame_bytes, measurement, &mut outcome.failures),
            )
            .with_context(|| format!("row {}, {}, {frame_bytes} bytes", line.row, line.mode.name()))?;
            let run = new_run(line, *source, *frame_bytes, &found);
            println!("{}", run_line(&run));
            runs.push(run);
        }
    }
    path.remove(dom0)?;
    Ok(runs)
}

fn stock_stream(dom0: &mut Dom0, path: &StockPath, reader: &Reader, stream: Stream) -> Result<Measurement> {
    let before = path.drops(dom0)?;
    let reading = reader.begin(dom0)?;
    let sent = send(dom0, &path.device, stream)?;
    let arrived = reading.end(dom0)?;
    let after = path.drops(dom0)?;
    let mut lost: Vec<(String, u64)> =
        before.iter().zip(after).map(|((_, before), (place, after))| (place, after - before)).collect();
    lost.extend(arrived.lost);
    Ok(Measurement {
        sent: sent.sent,
        received: arrived.packets,
        elapsed_ns: sent.elapsed_ns.max(arrived.span_ns),
        lost,
        packets_per_container: arrived.packets_per_container,
    })
}

/// Notes a failure when packets are gone that nobody counted.
fn account(line: &Line, source: Source, frame_bytes: usize, run: &Measurement, failures: &mut Vec<String>) {
    if run.unaccounted() != 0 {
        failures.push(format!(
            "row {}, {}, source {}, {frame_bytes} bytes: {} packets sent, {} received, lost and counted {:?}: \
             {} unaccounted for",
            line.row,
            line.mode.name(),
            source.name(),
            run.sent,
            run.received,
            run.lost,
            run.unaccounted()
        ));
    }
}

fn new_run(line: &Line, source: Source, frame_bytes: usize, found: &Found) -> Run {
    let measurement = &found.measurement;
    let pps = measurement.pps();
    Run {
        row: line.row.to_owned(),
        source,
        guest: line.guest.to_owned(),
        mode: line.mode.name().to_owned(),
        backend: if matches!(line.row, "a" | "b") { "netback" } else { "drayage" }.to_owned(),
        containers: line.row == "d",
        frame_bytes,
        sent: measurement.sent,
        received: measurement.received,
        pps,
        instructions_per_packet: 1e9 / pps.max(f64::MIN_POSITIVE),
        packets_per_container: measurement.packets_per_container,
    }
}
