//! The demo's results, as `--json` writes them. Knows nothing of how they came about.

use serde::Serialize;

/// Everything that one run of the demo found out.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Xen's version.
    pub xen: String,
    /// The guests that were booted.
    pub boots: Vec<Boot>,
    /// What was measured.
    pub runs: Vec<Run>,
    /// What the generators cost alone.
    pub generators: Vec<Generator>,
    /// What containers bring.
    pub ratios: Vec<Ratio>,
}

/// A guest's boot.
#[derive(Debug, Serialize)]
pub struct Boot {
    /// "linux" or "drayage".
    pub guest: String,
    /// "netback" or "drayage".
    pub backend: String,
    /// "pv" or "pvh".
    pub mode: String,
    /// Whether a ping was answered and every payload came back as it was sent.
    pub ok: bool,
    /// From `xl create` to the first answered ping, in the machine's own time.
    pub first_ping_ms: Option<f64>,
}

/// A stream of packets through one guest.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// "a" to "d".
    pub row: String,
    /// Where the packets come from.
    pub source: Source,
    /// "linux" or "drayage".
    pub guest: String,
    /// "pv" or "pvh".
    pub mode: String,
    /// "netback" or "drayage".
    pub backend: String,
    /// Whether packets travel in containers.
    pub containers: bool,
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
    /// Packets that left the source.
    pub sent: u64,
    /// Packets that the application in the guest read from its socket.
    pub received: u64,
    /// Packets received per 10^9 instructions of the whole machine.
    pub pps: f64,
    /// Instructions of the whole machine per packet received.
    pub instructions_per_packet: f64,
    /// Packets per container; 1 without containers, where each travels alone.
    pub packets_per_container: f64,
}

/// Where packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// As close to the backend as it gets.
    Direct,
    /// The same sender on a device of Linux for every row.
    Linux,
    /// The same sender on one end of a veth for every row: its other end is in a bridge, or our uplink.
    Veth,
}

impl Source {
    /// All, in the order in which they are shown.
    pub const ALL: [Source; 3] = [Source::Direct, Source::Linux, Source::Veth];

    /// Returns the name that the report has.
    pub fn name(self) -> &'static str {
        match self {
            Source::Direct => "direct",
            Source::Linux => "linux",
            Source::Veth => "veth",
        }
    }
}

/// A generator alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generator {
    /// "sendmmsg" or "drayage".
    pub name: String,
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
    /// What one packet costs before anybody takes it.
    pub instructions_per_packet: f64,
}

/// What containers bring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// Where the packets come from.
    pub source: Source,
    /// Size of one frame without its FCS.
    pub frame_bytes: usize,
    /// Packets per instruction of row d, divided by row a's.
    pub d_over_a: f64,
    /// The same without what the generators cost.
    pub d_over_a_net: f64,
}

impl Report {
    /// Computes the ratios from the runs; of several guest modes the better one counts on both sides.
    pub fn compute_ratios(&mut self) {
        self.ratios.clear();
        for source in Source::ALL {
            let mut sizes: Vec<usize> =
                self.runs.iter().filter(|run| run.source == source).map(|run| run.frame_bytes).collect();
            sizes.sort_unstable();
            sizes.dedup();
            for frame_bytes in sizes {
                self.ratios.extend(self.ratio(source, frame_bytes));
            }
        }
    }

    /// Returns the cheapest run of a row.
    pub fn best(&self, row: &str, source: Source, frame_bytes: usize) -> Option<&Run> {
        let of_row = |run: &&Run| run.row == row && run.source == source && run.frame_bytes == frame_bytes;
        let runs = self.runs.iter().filter(of_row).filter(|run| run.received > 0);
        runs.min_by(|one, two| one.instructions_per_packet.total_cmp(&two.instructions_per_packet))
    }

    fn ratio(&self, source: Source, frame_bytes: usize) -> Option<Ratio> {
        let (a, d) = (self.best("a", source, frame_bytes)?, self.best("d", source, frame_bytes)?);
        let generator_of_d = match source {
            Source::Direct => "drayage",
            Source::Linux | Source::Veth => "sendmmsg",
        };
        let net_a = a.instructions_per_packet - self.generator("sendmmsg", frame_bytes)?;
        let net_d = d.instructions_per_packet - self.generator(generator_of_d, frame_bytes)?;
        Some(Ratio {
            source,
            frame_bytes,
            d_over_a: a.instructions_per_packet / d.instructions_per_packet,
            d_over_a_net: net_a / net_d,
        })
    }

    fn generator(&self, name: &str, frame_bytes: usize) -> Option<f64> {
        let found =
            self.generators.iter().find(|known| known.name == name && known.frame_bytes == frame_bytes);
        found.map(|known| known.instructions_per_packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(row: &str, mode: &str, instructions_per_packet: f64) -> Run {
        Run {
            row: row.into(),
            source: Source::Direct,
            guest: "linux".into(),
            mode: mode.into(),
            backend: "netback".into(),
            containers: false,
            frame_bytes: 60,
            sent: 10,
            received: 10,
            pps: 1e9 / instructions_per_packet,
            instructions_per_packet,
            packets_per_container: 0.0,
        }
    }

    fn generator(name: &str, instructions_per_packet: f64) -> Generator {
        Generator { name: name.into(), frame_bytes: 60, instructions_per_packet }
    }

    #[test]
    fn a_ratio_takes_the_better_mode_on_both_sides_and_each_sides_generator() {
        let mut report = Report {
            runs: vec![
                run("a", "pv", 20_000.0),
                run("a", "pvh", 18_000.0),
                run("d", "pv", 4_000.0),
                run("d", "pvh", 5_000.0),
            ],
            generators: vec![generator("sendmmsg", 3_000.0), generator("drayage", 1_000.0)],
            ..Report::default()
        };
        report.compute_ratios();
        let expected = Ratio { source: Source::Direct, frame_bytes: 60, d_over_a: 4.5, d_over_a_net: 5.0 };
        assert_eq!(report.ratios, [expected]);
    }

    #[test]
    fn without_one_side_there_is_no_ratio() {
        let mut report = Report { runs: vec![run("a", "pv", 20_000.0)], ..Report::default() };
        report.compute_ratios();
        assert!(report.ratios.is_empty());
    }

    #[test]
    fn the_json_has_the_names_that_scripts_rely_on() {
        let report =
            Report { xen: "4.17.7".into(), runs: vec![run("a", "pv", 20_000.0)], ..Report::default() };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["runs"][0]["source"], "direct");
        assert_eq!(json["runs"][0]["pps"], 50_000.0);
        for key in ["xen", "boots", "runs", "generators", "ratios"] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
