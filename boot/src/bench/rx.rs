//! Reception: packets into a guest's application, from as close to the backend as it gets, and from Linux. With it,
//! the suites that are reception under other conditions: sizes and policies of containers, and several guests.

use anyhow::Result;

use crate::bench::lab::{ENDS, Lab, Source as Known};
use crate::bench::row::{Label, Peer, Row, THROUGHPUT, Time};
use crate::demo::guests::{Site, linux, ours, reader_script};
use crate::demo::path::{Containers, GENERATOR, Ours, Path, Stock, measure_generator};
use crate::demo::reader::Reader;
use crate::demo::report::Source;
use crate::demo::rows::one_stream;
use crate::demo::sender::{self, Stream};
use crate::dom0::{Guest, Mode};

/// A guest that counts what it gets, the way to it, and who asks it.
pub struct Receiver {
    /// The way.
    pub path: Box<dyn Path>,
    /// Who asks.
    pub reader: Reader,
    guest: Guest,
    site: Site,
}

impl Receiver {
    /// Returns a guest of a peer's that is not there yet; `options` are further ones of `drayage attach`.
    pub fn new(peer: Peer, mode: Mode, site: Site, options: &str) -> Self {
        let name = format!("rx{}", site.0);
        let (guest, reader) = match peer {
            Peer::A => (linux(&name, mode, &reader_script(site)), Reader::Linux(name)),
            _ => {
                let settings = format!("app=sink ip={}/24", site.guest_ip());
                (ours(&name, mode, &settings), Reader::Sink(site.guest_ip()))
            }
        };
        let path: Box<dyn Path> = match peer {
            Peer::A | Peer::B => Box::new(Stock::new(site)),
            Peer::C => Box::new(Ours::new(site, Containers::Off).with_options(options)),
            Peer::D => Box::new(Ours::new(site, Containers::On).with_options(options)),
        };
        Receiver { path, reader, guest, site }
    }

    /// Creates the guest.
    pub fn create(&mut self, lab: &mut Lab<'_>) -> Result<()> {
        self.path.create(lab.dom0, &self.guest)
    }

    /// Makes everything ready for a source: the guest answers before packets count.
    pub fn prepare(&mut self, lab: &mut Lab<'_>, source: Source) -> Result<()> {
        self.path.prepare(lab.dom0, source)?;
        let ip = self.site.guest_ip();
        lab.dom0.shell(&format!("peer ping {ip} --until-answered --count 600 --interval-ms 50")).map(drop)
    }

    /// Measures one point.
    pub fn measure(&self, lab: &mut Lab<'_>, source: Source, label: &Label) -> Result<()> {
        let frame_bytes = label.frame_bytes.unwrap_or(60);
        let known = match (source, label.peer) {
            (Source::Direct, Peer::C | Peer::D) => GENERATOR,
            _ => sender::NAME,
        };
        lab.saturate(label, Known::Known(known), |dom0, count, rate| {
            one_stream(dom0, self.path.as_ref(), &self.reader, source, Stream { frame_bytes, count, rate })
        })
    }
}

/// Measures what the generators cost alone.
pub fn generators(lab: &mut Lab<'_>, frames: &[usize]) -> Result<()> {
    const PACKETS: u64 = 20_000;
    for frame_bytes in frames {
        if lab.generators.iter().any(|known| known.frame_bytes == *frame_bytes) {
            continue;
        }
        for generator in [
            sender::measure_alone(lab.dom0, *frame_bytes, PACKETS)?,
            measure_generator(lab.dom0, *frame_bytes, PACKETS)?,
        ] {
            println!(
                "generator {} alone, {frame_bytes} B: {:.0} instructions per packet",
                generator.name, generator.instructions_per_packet
            );
            lab.generators.push(generator);
        }
    }
    Ok(())
}

/// Runs suite `rx`.
pub fn rx(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, lab.frames("rx"))?;
    for peer in Peer::ALL {
        for &mode in lab.modes("rx") {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            receiver.create(lab)?;
            for source in Source::ALL {
                receiver.prepare(lab, source)?;
                for &frame_bytes in lab.frames("rx") {
                    let label = Label {
                        suite: "rx",
                        peer,
                        mode,
                        case: source.name().into(),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    };
                    receiver.measure(lab, source, &label)?;
                }
            }
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Runs suite `containers`: sizes, and the policies beside opportunistic.
pub fn containers(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, &ENDS)?;
    let mut kinds: Vec<(String, f64, String)> = [4, 8, 16, 32, 64]
        .map(|kib| ("opportunistic".to_owned(), f64::from(kib), format!("--size {}", kib * 1024)))
        .to_vec();
    for kib in [4, 16, 64] {
        let options = format!("--size 65536 --policy fixed:size={},timeout=1000", (kib * 1024).min(65_535));
        kinds.push(("fixed, 1 ms".to_owned(), f64::from(kib), options));
    }
    for (policy, kib, options) in kinds {
        let mode = Mode::Pvh;
        let mut receiver = Receiver::new(Peer::D, mode, Site::FIRST, &options);
        receiver.create(lab)?;
        receiver.prepare(lab, Source::Direct)?;
        for frame_bytes in ENDS {
            let label = Label {
                suite: "containers",
                peer: Peer::D,
                mode,
                case: policy.clone(),
                frame_bytes: Some(frame_bytes),
                varied: Some(("container KiB", kib)),
            };
            receiver.measure(lab, Source::Direct, &label)?;
        }
        receiver.path.end(lab.dom0)?;
    }
    Ok(())
}

/// Guests of suite `guests`.
const MOST_GUESTS: u8 = 6;

/// Runs suite `guests`: a Linux sender for each, all at once, and what all guests together got.
pub fn guests(lab: &mut Lab<'_>) -> Result<()> {
    let mode = Mode::Pvh;
    for peer in [Peer::A, Peer::C, Peer::D] {
        let mut receivers: Vec<Receiver> = Vec::new();
        for number in 0..MOST_GUESTS {
            let mut receiver = Receiver::new(peer, mode, Site(number), "");
            receiver.create(lab)?;
            receiver.prepare(lab, Source::Linux)?;
            receivers.push(receiver);
            if ![1, 2, 4, 6].contains(&receivers.len()) {
                continue;
            }
            for frame_bytes in ENDS {
                let label = Label {
                    suite: "guests",
                    peer,
                    mode,
                    case: "linux".into(),
                    frame_bytes: Some(frame_bytes),
                    varied: Some(("guests", receivers.len() as f64)),
                };
                let row = all_at_once(lab, peer, &receivers, &label)?;
                lab.add(row, &label);
            }
        }
        for receiver in receivers {
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

fn all_at_once(lab: &mut Lab<'_>, peer: Peer, receivers: &[Receiver], label: &Label) -> Result<Row> {
    const EACH: u64 = 10_000;
    let stream = Stream { frame_bytes: label.frame_bytes.unwrap_or(60), count: EACH, rate: None };
    let mut readings = Vec::new();
    for receiver in receivers {
        readings.push(receiver.reader.begin(lab.dom0)?);
    }
    let senders: Vec<String> = receivers
        .iter()
        .map(|receiver| {
            let site = receiver.site;
            let device = if peer == Peer::A { site.bridge() } else { site.tap() };
            format!("{} > /dev/null &", sender::command(&device, site, stream))
        })
        .collect();
    let started_ns = lab.dom0.agent().clock_ns()?;
    lab.dom0.shell(&format!("{} wait", senders.join(" ")))?;
    let ended_ns = lab.dom0.agent().clock_ns()?;
    let mut received = 0;
    for reading in readings {
        received += reading.end(lab.dom0)?.packets;
    }
    let sent = EACH * receivers.len() as u64;
    let pps = received as f64 * 1e9 / (ended_ns - started_ns) as f64;
    let unit = match lab.time {
        Time::Instructions => "packets per 10^9 instructions",
        Time::Wall => "packets per second of the emulator",
    };
    let mut row = Row::new(label, lab.time, THROUGHPUT, unit, pps);
    (row.sent, row.received) = (Some(sent), Some(received));
    row.note =
        format!("{:.1} % lost; all guests share pCPU 1", 100.0 * (1.0 - received as f64 / sent as f64));
    Ok(row)
}
