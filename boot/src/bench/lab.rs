//! The machine that suites measure on, and what they have in common: how hard they try, what a point comes to, and
//! where rows go. Knows no suite.

use std::time::Duration;

use anyhow::Result;

use crate::agent::Watch;
use crate::bench::row::{Label, Peer, Row, THROUGHPUT, Time, median, noise};
use crate::bench::table::shown;
use crate::commands::Context;
use crate::demo::report::Generator;
use crate::demo::search::{Found, Measurement, highest_rate, highest_rate_near};
use crate::dom0::{Dom0, Mode};
use crate::progress::Verbosity;

/// Packets of one stream, where nothing else is asked for.
const PACKETS: u64 = 20_000;

/// The same for those whose packets cost the machine several times as much, so that all streams take about as long.
const FEWER_PACKETS: u64 = 10_000;

/// The sizes of the paper's evaluation, without FCS.
const FRAMES: [usize; 6] = [60, 124, 252, 508, 1020, 1514];

/// The sizes for which something is to be reached.
const TARGETED: [usize; 3] = [60, 252, 1514];

/// The sizes where less must do.
pub const ENDS: [usize; 2] = [60, 1514];

/// The same in wall time, where each point is measured several times.
const WALL_PACKETS: u64 = 5_000;

/// Wall-time measurements of one point.
pub const REPEATS: usize = 5;

/// A machine with its daemon running, and the results so far.
#[derive(Debug)]
pub struct Lab<'a> {
    /// Where things are on this side.
    pub context: &'a Context,
    /// The driver domain.
    pub dom0: &'a mut Dom0,
    /// What a second is here.
    pub time: Time,
    /// How long each point is measured, in the machine's seconds; as short as it may be when absent.
    pub seconds: Option<f64>,
    /// How much is measured.
    pub effort: Effort,
    /// Whose guests are measured; everybody's when empty.
    pub only: &'a [Peer],
    /// The last point, without the size of its frames, and its highest rate.
    pub last: Option<(Label, Option<u64>)>,
    /// What was measured.
    pub rows: &'a mut Vec<Row>,
    /// What the generators cost alone.
    pub generators: &'a mut Vec<Generator>,
    /// Loss that nobody accounts for, and its like.
    pub failures: &'a mut Vec<String>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Two frame sizes, one kind of guest.
    Quick,
    /// One kind of guest and three sizes, but for reception.
    Usual,
    /// Every size, both kinds of guests.
    Thorough,
}

/// Who sends, by the name that its cost alone is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A generator, whose cost is known.
    Known(&'static str),
    /// An application in a guest.
    Guest,
}

/// The host's time that may pass from one row to the next; on a quiet machine it is a tenth of that at most.
const ROW: Duration = Duration::from_secs(15 * 60);

impl Lab<'_> {
    /// Has the work on the next row watched: what takes too long fails, and what takes long says so.
    pub fn watch(&mut self, what: impl Into<String>) {
        self.dom0.agent().watch(Some(Watch::begin(what, ROW)));
    }

    /// Returns those of some peers that are to be measured.
    pub fn peers(&self, peers: &[Peer]) -> Vec<Peer> {
        peers.iter().copied().filter(|peer| self.only.is_empty() || self.only.contains(peer)).collect()
    }

    /// Returns the sizes of frames that a suite sends.
    pub fn frames(&self, suite: &str) -> &'static [usize] {
        match self.effort {
            Effort::Quick => &ENDS,
            Effort::Usual if suite != "rx" => &TARGETED,
            Effort::Usual | Effort::Thorough => &FRAMES,
        }
    }

    /// Returns the modes in which a peer's guest is tried; the better one counts. Linux has both tried for reception
    /// even where all are in a hurry, so that what it is compared with is never the worse one.
    pub fn modes(&self, suite: &str, peer: Peer) -> &'static [Mode] {
        match self.effort {
            Effort::Thorough => &Mode::ALL,
            Effort::Usual if suite == "rx" && peer == Peer::A => &Mode::ALL,
            Effort::Quick | Effort::Usual => &[Mode::Pvh],
        }
    }

    /// Returns how many packets a peer's streams have.
    fn packets(&self, peer: Peer) -> u64 {
        match (self.effort, peer) {
            (Effort::Thorough, _) | (_, Peer::D) => PACKETS,
            _ => FEWER_PACKETS,
        }
    }

    /// Measures the highest rate at which under one percent is lost, and adds a row. Frames of one size begin where
    /// those of the last one ended.
    pub fn saturate(
        &mut self,
        label: &Label,
        source: Source,
        mut measure: impl FnMut(&mut Dom0, u64, Option<u64>) -> Result<Measurement>,
    ) -> Result<()> {
        let packets = self.packets(label.peer);
        let mut unaccounted = 0;
        let near = self.near(label);
        self.watch(format!("row {}", name(label)));
        let verbosity = self.context.verbosity;
        let dom0 = &mut *self.dom0;
        let mut measure = |dom0: &mut Dom0, packets: u64, rate: Option<u64>| {
            let measurement = measure(dom0, packets, rate)?;
            if verbosity == Verbosity::Verbose {
                eprintln!("= at {rate:?} a second: {measurement:?}");
            }
            anyhow::Ok(measurement)
        };
        let found = fastest(
            near,
            |rate| measure(dom0, packets, rate),
            |measurement| unaccounted += measurement.unaccounted().max(0),
        )?;
        let found = self.prolong(found, packets, &mut measure)?;
        self.last = Some((Label { frame_bytes: None, ..label.clone() }, found.rate));
        self.note(label, source, &found.measurement, &[found.measurement.pps()], unaccounted);
        Ok(())
    }

    /// Returns the highest rate of the last point, where that differs in the size of its frames only.
    fn near(&self, label: &Label) -> Option<u64> {
        let like = Label { frame_bytes: None, ..label.clone() };
        self.last.as_ref().filter(|(last, _)| *last == like).and_then(|(_, rate)| *rate)
    }

    /// Measures once more at the rate that was found, for as long as was asked for.
    fn prolong(
        &mut self,
        found: Found,
        packets: u64,
        measure: &mut impl FnMut(&mut Dom0, u64, Option<u64>) -> Result<Measurement>,
    ) -> Result<Found> {
        let Some(seconds) = self.seconds else { return Ok(found) };
        let wanted = (found.measurement.pps() * seconds) as u64;
        if wanted <= packets {
            return Ok(found);
        }
        Ok(Found { measurement: measure(self.dom0, wanted, found.rate)?, rate: found.rate })
    }

    /// Measures several competitors in turn, so that what disturbs one disturbs all, and adds a row with the median
    /// for each. Every one is measured at its own highest rate, which is looked for first, near that of `rates`, and left
    /// there.
    pub fn compete(
        &mut self,
        competitors: &mut [Competitor<'_>],
        rates: &mut Vec<Option<u64>>,
    ) -> Result<()> {
        rates.resize(competitors.len(), None);
        for (competitor, rate) in competitors.iter_mut().zip(rates.iter_mut()) {
            self.watch(format!("row {}", name(&competitor.label)));
            let dom0 = &mut *self.dom0;
            let found = fastest(*rate, |rate| (competitor.measure)(dom0, WALL_PACKETS, rate), |_| ())?;
            *rate = found.rate;
        }
        let mut samples = vec![Vec::new(); competitors.len()];
        let mut sums = vec![Measurement::default(); competitors.len()];
        for _ in 0..REPEATS {
            for (at, competitor) in competitors.iter_mut().enumerate() {
                self.watch(format!("row {}", name(&competitor.label)));
                let measurement = (competitor.measure)(self.dom0, WALL_PACKETS, rates[at])?;
                samples[at].push(measurement.pps());
                let sum = &mut sums[at];
                sum.sent += measurement.sent;
                sum.received += measurement.received;
                sum.packets_per_container = measurement.packets_per_container;
            }
        }
        for (at, competitor) in competitors.iter().enumerate() {
            self.note(&competitor.label, Source::Guest, &sums[at], &samples[at], 0);
        }
        Ok(())
    }

    fn note(
        &mut self,
        label: &Label,
        source: Source,
        measurement: &Measurement,
        samples: &[f64],
        unaccounted: i64,
    ) {
        let mut row = Row::new(label, self.time, THROUGHPUT, self.time.packet_rate(), median(samples));
        (row.sent, row.received) = (Some(measurement.sent), Some(measurement.received));
        row.packets_per_container = Some(measurement.packets_per_container);
        if let (Source::Known(name), Time::Instructions, Some(frame)) = (source, self.time, label.frame_bytes)
        {
            let alone = self.generators.iter().find(|known| known.name == name && known.frame_bytes == frame);
            row.net_instructions = alone.map(|alone| 1e9 / row.value - alone.instructions_per_packet);
        }
        if samples.len() > 1 {
            row.note = format!("{} samples, noise ±{:.0} %", samples.len(), 100.0 * noise(samples));
            row.samples = samples.to_vec();
        }
        if measurement.loss() > 0.01 {
            row.note = format!("{:.1} % lost; {}", 100.0 * measurement.loss(), row.note);
        }
        if unaccounted > 0 {
            self.failures
                .push(format!("{}: {unaccounted} packets neither arrived nor were counted", name(label)));
        }
        self.add(row, label);
    }

    /// Adds a row, and shows it.
    pub fn add(&mut self, row: Row, label: &Label) {
        let note = if row.note.is_empty() { String::new() } else { format!("; {}", row.note) };
        println!("{:<52} {:>10} {} ({}){note}", name(label), shown(row.value), row.unit, row.metric);
        self.rows.push(row);
        self.watch(format!("what follows row {}", name(label)));
    }
}

/// Looks for the highest rate, beginning at that of a similar case if there is one.
fn fastest(
    near: Option<u64>,
    measure: impl FnMut(Option<u64>) -> Result<Measurement>,
    inspect: impl FnMut(&Measurement),
) -> Result<Found> {
    match near {
        Some(near) => highest_rate_near(near, measure, inspect),
        None => highest_rate(measure, inspect),
    }
}

/// Who is measured in turn with others.
pub struct Competitor<'a> {
    /// What the row says.
    pub label: Label,
    /// Sends a number of packets at a rate.
    #[expect(clippy::type_complexity, reason = "it is written once")]
    pub measure: Box<dyn FnMut(&mut Dom0, u64, Option<u64>) -> Result<Measurement> + 'a>,
}

fn name(label: &Label) -> String {
    let Label { suite, peer, mode, case, frame_bytes, varied } = label;
    let frame = frame_bytes.map(|bytes| format!(" {bytes} B")).unwrap_or_default();
    let varied = varied.map(|(what, at)| format!(" {what}={at}")).unwrap_or_default();
    format!("{suite} {} {} {case}{frame}{varied}", peer.letter(), mode.name())
}
