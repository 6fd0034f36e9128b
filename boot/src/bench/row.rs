//! One measured point, as `--json` writes it. Knows nothing of how it came about.

use serde::Serialize;

use crate::dom0::Mode;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A Linux guest on the stock backend.
    A,
    /// Our guest on the stock backend.
    B,
    /// Our guest on ours, containers off.
    C,
    /// Our guest on ours, containers on.
    D,
}

impl Peer {
    /// All, in the order in which they are shown.
    pub const ALL: [Peer; 4] = [Peer::A, Peer::B, Peer::C, Peer::D];

    /// Returns the letter that tables have.
    pub fn letter(self) -> &'static str {
        match self {
            Peer::A => "a",
            Peer::B => "b",
            Peer::C => "c",
            Peer::D => "d",
        }
    }

    /// Returns who it is, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Peer::A => "Linux guest, stock netback",
            Peer::B => "our guest, stock netback",
            Peer::C => "our guest, drayage, no containers",
            Peer::D => "our guest, drayage, containers",
        }
    }
}

/// What a second is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Time {
    /// 10^9 instructions of the whole machine.
    Instructions,
    /// A second of the emulator's.
    Wall,
}

impl Time {
    /// Returns the unit of a throughput.
    pub fn packet_rate(self) -> &'static str {
        match self {
            Time::Instructions => "packets per 10^9 instructions",
            Time::Wall => "packets per second of the emulator",
        }
    }
}

/// What was measured, before anything is known of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The suite.
    pub suite: &'static str,
    /// Who.
    pub peer: Peer,
    /// How the guest is virtualised.
    pub mode: Mode,
    /// Which way packets take, or what else tells one series of a suite from another.
    pub case: String,
    /// Size of one frame without its FCS.
    pub frame_bytes: Option<usize>,
    /// What is varied beside it: its name with its unit, and its value.
    pub varied: Option<(&'static str, f64)>,
}

/// A measured point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The suite.
    pub suite: String,
    /// What a second is.
    pub time: Time,
    /// Who was measured.
    pub peer: Peer,
    /// "pv" or "pvh".
    pub mode: String,
    /// Which way packets take, or what else tells one series of a suite from another.
    pub case: String,
    /// Size of one frame without its FCS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame_bytes: Option<usize>,
    /// What is varied beside it, with its unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub varied: Option<&'static str>,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<f64>,
    /// What the value says.
    pub metric: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The value; a median where there are samples.
    pub value: f64,
    /// Packets that left the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// Packets that the application got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Packets per container; 1 without containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_container: Option<f64>,
    /// Cost of a packet without its generator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_instructions: Option<f64>,
    /// How many times better than a.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The same without the generators' cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_ratio: Option<f64>,
    /// The single measurements, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
    /// What a reader must know beside it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A throughput, the metric of most suites.
pub const THROUGHPUT: &str = "throughput";

impl Row {
    /// Returns a row with a value and nothing else.
    pub fn new(label: &Label, time: Time, metric: &'static str, unit: &'static str, value: f64) -> Self {
        Row {
            suite: label.suite.to_owned(),
            time,
            peer: label.peer,
            mode: label.mode.name().to_owned(),
            case: label.case.clone(),
            frame_bytes: label.frame_bytes,
            varied: label.varied.map(|(name, _)| name),
            at: label.varied.map(|(_, at)| at),
            metric,
            unit,
            value,
            sent: None,
            received: None,
            packets_per_container: None,
            net_instructions: None,
            ratio: None,
            net_ratio: None,
            samples: Vec::new(),
            note: String::new(),
        }
    }

    /// Tells whether two rows differ in nothing but who was measured and how that guest is virtualised.
    fn is_like(&self, other: &Row) -> bool {
        (&self.suite, self.time, &self.case, self.frame_bytes, self.at, self.metric)
            == (&other.suite, other.time, &other.case, other.frame_bytes, other.at, other.metric)
    }

    /// Tells whether more is worse.
    pub fn is_cost(&self) -> bool {
        self.metric != THROUGHPUT && self.metric != "goodput"
    }
}

/// Compares every row with the better of a's.
pub fn compare(rows: &mut [Row]) {
    let of_a: Vec<Row> = rows.iter().filter(|row| row.peer == Peer::A).cloned().collect();
    for row in rows {
        let rivals = of_a.iter().filter(|a| a.is_like(row) && a.value > 0.0);
        let better = |one: &&Row, two: &&Row| one.value.total_cmp(&two.value);
        let best = if row.is_cost() { rivals.min_by(better) } else { rivals.max_by(better) };
        let Some(a) = best.filter(|_| row.value > 0.0) else { continue };
        row.ratio = Some(if row.is_cost() { a.value / row.value } else { row.value / a.value });
        row.net_ratio = match (a.net_instructions, row.net_instructions) {
            (Some(a), Some(row)) if row > 0.0 => Some(a / row),
            _ => None,
        };
    }
}

/// Returns the median of some values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Returns how far the samples lie from their median at most, as a part of it.
pub fn noise(values: &[f64]) -> f64 {
    let middle = median(values);
    let far = values.iter().map(|value| (value - middle).abs()).fold(0.0, f64::max);
    if middle == 0.0 { 0.0 } else { far / middle }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(peer: Peer, mode: Mode, value: f64, net: f64) -> Row {
        let label =
            Label { suite: "rx", peer, mode, case: "direct".into(), frame_bytes: Some(60), varied: None };
        let mut row = Row::new(&label, Time::Instructions, THROUGHPUT, "packets", value);
        row.net_instructions = Some(net);
        row
    }

    #[test]
    fn a_ratio_is_to_the_better_a() {
        let mut rows = vec![
            row(Peer::A, Mode::Pv, 50.0, 20.0),
            row(Peer::A, Mode::Pvh, 40.0, 25.0),
            row(Peer::D, Mode::Pvh, 500.0, 2.0),
        ];
        compare(&mut rows);
        assert_eq!((rows[2].ratio, rows[2].net_ratio), (Some(10.0), Some(10.0)));
        assert_eq!((rows[0].ratio, rows[1].ratio), (Some(1.0), Some(0.8)));
        rows[2].metric = "round trip";
        rows[0].metric = "round trip";
        compare(&mut rows);
        assert_eq!(rows[2].ratio, Some(0.1), "of a delay, more is worse");
        rows[2].frame_bytes = Some(252);
        rows[2].ratio = None;
        compare(&mut rows);
        assert_eq!(rows[2].ratio, None, "there is nothing to compare it with");
    }

    #[test]
    fn medians_and_noise() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(noise(&[90.0, 100.0, 120.0]), 0.2);
    }
}
