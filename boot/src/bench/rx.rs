//! Reception: packets into a guest's application, from as close to the backend as it gets, and from Linux. With it,
//! the suite that is reception by sizes and policies of containers.

use anyhow::Result;

use crate::bench::cost::{Grown, interface};
use crate::bench::lab::{ENDS, Effort, Lab, Source as Known};
use crate::bench::row::{Label, Peer, Row};
use crate::demo::greeting::await_guest;
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
    /// Where the guest is.
    pub site: Site,
    guest: Guest,
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

    /// Returns the same with less memory, or more.
    pub fn with_memory(mut self, mib: u32) -> Self {
        self.guest.memory_mib = mib;
        self
    }

    /// Returns the same with further words for the guest.
    pub fn with_settings(mut self, words: &str) -> Self {
        self.guest.arguments.push_str(words);
        self
    }

    /// Creates the guest.
    pub fn create(&mut self, lab: &mut Lab<'_>) -> Result<()> {
        self.path.create(lab.dom0, &self.guest)
    }

    /// Makes everything ready for a source: the guest answers before packets count.
    pub fn prepare(&mut self, lab: &mut Lab<'_>, source: Source) -> Result<()> {
        self.path.prepare(lab.dom0, source)?;
        await_guest(lab.dom0, &self.site.guest_ip())
    }

    /// Returns the guest's name.
    pub fn name(&self) -> &str {
        &self.guest.name
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
    for peer in lab.peers(&Peer::ALL) {
        for &mode in lab.modes("rx", peer) {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            receiver.create(lab)?;
            for source in Source::ALL {
                receiver.prepare(lab, source)?;
                // What grows with size shows with the first source.
                let frames = lab.frames(if source == Source::Direct { "rx" } else { "rx from Linux" });
                for &frame_bytes in frames {
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

/// Counters that tell what a container costs: where they are in an interface's statistics, and their names.
const PER_PACKET: [(&str, &str); 4] = [
    ("/rx/containers", "containers"),
    ("/rx/slots", "ring slots (pages)"),
    ("/rx/grant_ops", "grant copies"),
    ("/hypercalls", "hypercalls"),
];

/// Runs suite `containers`: sizes, and the policies beside opportunistic. Pages are copied here: what a container saves
/// is grant operations, of which there are none where pages stay mapped (suite `staged`).
pub fn containers(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, &ENDS)?;
    let (sizes, others): (&[u32], &[u32]) = match lab.effort {
        Effort::Quick => (&[4, 16, 64], &[64]),
        Effort::Usual => (&[4, 8, 16, 32, 64], &[4, 64]),
        Effort::Thorough => (&[4, 8, 16, 32, 64], &[4, 8, 16, 32, 64]),
    };
    let mut kinds: Vec<(String, f64, String)> = sizes
        .iter()
        .map(|kib| ("opportunistic".to_owned(), f64::from(*kib), format!("--size {}", kib * 1024)))
        .collect();
    for kib in others {
        let options = format!("--size 65536 --policy fixed:size={},timeout=1000", (kib * 1024).min(65_535));
        kinds.push(("fixed, 1 ms".to_owned(), f64::from(*kib), options));
    }
    for kib in others {
        let options = format!("--size {} --policy slo:delay=1000", kib * 1024);
        kinds.push(("a bound of 1 ms on the delay (slo)".to_owned(), f64::from(*kib), options));
    }
    for (policy, kib, options) in kinds {
        let mode = Mode::Pvh;
        let mut receiver = Receiver::new(Peer::D, mode, Site::FIRST, &format!("--staged off {options}"));
        receiver.create(lab)?;
        receiver.prepare(lab, Source::Direct)?;
        for frame_bytes in ENDS {
            let label = Label {
                suite: "containers",
                peer: Peer::D,
                mode,
                case: policy.clone(),
                frame_bytes: Some(frame_bytes),
                varied: Some(("largest container, KiB", kib)),
            };
            let before = interface(lab.dom0)?;
            receiver.measure(lab, Source::Direct, &label)?;
            let after = interface(lab.dom0)?;
            what_is_in_them(lab, &label, Grown::between(&before, &after))?;
        }
        receiver.path.end(lab.dom0)?;
    }
    Ok(())
}

/// Adds what each packet took: whether a larger container brings anything is said by these.
fn what_is_in_them(lab: &mut Lab<'_>, label: &Label, grown: Grown<'_>) -> Result<()> {
    let packets = grown.by("/rx/packets")?.max(1.0);
    for (pointer, name) in PER_PACKET {
        let value = grown.by(pointer)? / packets;
        lab.add(Row::new(label, lab.time, name, "per packet", value), label);
    }
    Ok(())
}
