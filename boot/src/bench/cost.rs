//! What a packet costs, by the product's own counters: hypercalls, grant operations, events, copies; and by valgrind's,
//! in one process.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::backend;
use crate::bench::breakdown::SUITE;
use crate::bench::flow::Transmitter;
use crate::bench::lab::{ENDS, Lab};
use crate::bench::row::{Label, Peer, Row};
use crate::bench::rx::Receiver;
use crate::count::{Caches, Counter, Events};
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::rows::one_stream;
use crate::demo::sender::Stream;
use crate::dom0::{Dom0, Mode};

/// Counters of an interface by which a packet's cost is told: where they are in the statistics, below a direction where
/// they begin without a slash, and their name.
const COUNTERS: [(&str, &str); 7] = [
    ("/hypercalls", "hypercalls of the backend"),
    ("grant_ops", "grant copies (pages)"),
    ("slots", "ring slots"),
    ("/events_out", "events to the guest"),
    ("/events_in", "events from the guest"),
    ("/wakeups", "passes of the worker"),
    ("copies", "copies by the CPU"),
];

/// Our guests: what `drayage attach` is told, and how the case says that.
const WAYS: [(Peer, &str, &str); 3] =
    [(Peer::C, "", ""), (Peer::D, "--staged off", ""), (Peer::D, "--staged on", ", pages mapped")];

/// Packets of a stream that is counted: some hundred containers, as its beginning and its end have an event each.
fn packets(frame_bytes: usize) -> u64 {
    if frame_bytes < 1000 { 250_000 } else { 50_000 }
}

/// Runs suite `cost`.
pub fn cost(lab: &mut Lab<'_>) -> Result<()> {
    in_one_process(lab)?;
    let mode = Mode::Pvh;
    let peers = lab.peers(&[Peer::C, Peer::D]);
    for (peer, options, pages) in WAYS.into_iter().filter(|(peer, ..)| peers.contains(peer)) {
        let mut receiver = Receiver::new(peer, mode, Site::FIRST, options);
        receiver.create(lab)?;
        for source in [Source::Direct, Source::Linux] {
            receiver.prepare(lab, source)?;
            for frame_bytes in ENDS {
                let before = interface(lab.dom0)?;
                let stream = Stream { frame_bytes, count: packets(frame_bytes), rate: None };
                one_stream(lab.dom0, receiver.path.as_ref(), &receiver.reader, source, stream)?;
                let after = interface(lab.dom0)?;
                let case = format!("into the guest, source {}{pages}", source.name());
                counted(lab, (peer, mode), &case, frame_bytes, Grown { before: &before, after: &after })?;
            }
        }
        receiver.path.end(lab.dom0)?;
        let site = Site::FIRST;
        let transmitter = Transmitter::create_with(lab.dom0, peer, mode, site, "port", options, "")?;
        for frame_bytes in ENDS {
            let before = interface(lab.dom0)?;
            transmitter.measure(
                lab.dom0,
                site,
                Stream { frame_bytes, count: packets(frame_bytes), rate: None },
            )?;
            let after = interface(lab.dom0)?;
            let case = format!("out of the guest, to drayage's port{pages}");
            counted(lab, (peer, mode), &case, frame_bytes, Grown { before: &before, after: &after })?;
        }
        transmitter.fabric.end(lab.dom0)?;
    }
    Ok(())
}

/// Adds what each packet took of each counter.
fn counted(
    lab: &mut Lab<'_>,
    (peer, mode): (Peer, Mode),
    case: &str,
    frame_bytes: usize,
    grown: Grown<'_>,
) -> Result<()> {
    let way = if case.starts_with("into") { "rx" } else { "tx" };
    let label = Label {
        suite: SUITE,
        peer,
        mode,
        case: case.to_owned(),
        frame_bytes: Some(frame_bytes),
        varied: None,
    };
    let packets = grown.by(&format!("/{way}/packets"))?.max(1.0);
    for (pointer, name) in COUNTERS {
        let value = match pointer.starts_with('/') {
            true => grown.by(pointer)?,
            false => grown.by(&format!("/{way}/{pointer}"))?,
        };
        lab.add(Row::new(&label, lab.time, name, "per packet", value / packets), &label);
    }
    let copied = grown.by(&format!("/{way}/copied_bytes"))?;
    let bytes = grown.by(&format!("/{way}/bytes"))?.max(1.0);
    let mapped = grown.by(&format!("/{way}/mapped_bytes"))?;
    for (name, copied) in
        [("bytes copied by the hypervisor", copied), ("bytes copied through mapped pages", mapped)]
    {
        lab.add(Row::new(&label, lab.time, name, "per packet", copied / packets), &label);
        lab.add(Row::new(&label, lab.time, name, "per byte of frame", copied / bytes), &label);
    }
    let containers = grown.by(&format!("/{way}/containers"))?;
    if containers > 0.0 {
        for (pointer, name) in COUNTERS.into_iter().filter(|(pointer, _)| pointer.starts_with("/events")) {
            lab.add(
                Row::new(&label, lab.time, name, "per container", grown.by(pointer)? / containers),
                &label,
            );
        }
    }
    Ok(())
}

/// What valgrind counts, by callgrind's names: what it is, and the events that are summed up.
const EVENTS: [(&str, &[&str]); 6] = [
    ("instructions", &["Ir"]),
    ("data reads", &["Dr"]),
    ("data writes", &["Dw"]),
    ("misses of the first-level data cache", &["D1mr", "D1mw"]),
    ("misses of the first-level instruction cache", &["I1mr"]),
    ("misses of the last-level cache", &["ILmr", "DLmr", "DLmw"]),
];

/// Counts backend, driver, stack and reader in one process of this side's, with memory in the hypervisor's place.
fn in_one_process(lab: &mut Lab<'_>) -> Result<()> {
    let counter = Counter::new(&lab.context.workspace, lab.context.verbosity)?;
    for frame_bytes in ENDS {
        let alone = counter.per_packet("alone", frame_bytes, Caches::Simulated)?;
        for (peer, way) in [(Peer::C, "plain"), (Peer::D, "channel")] {
            let events = counter.per_packet(way, frame_bytes, Caches::Simulated)?;
            for (name, summed) in EVENTS {
                let sum = |events: &Events| -> Result<f64> {
                    let value =
                        |event: &&str| events.get(*event).with_context(|| format!("no count of {event}"));
                    summed.iter().map(|event| value(event).copied()).sum()
                };
                for (unit, bytes) in [("per packet", 1.0), ("per byte of frame", frame_bytes as f64)] {
                    let label = Label {
                        suite: SUITE,
                        peer,
                        mode: Mode::Pvh,
                        case: "backend, driver, stack and reader in one process, by valgrind".into(),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    };
                    let mut row = Row::new(&label, lab.time, name, unit, sum(&events)? / bytes);
                    row.note = format!("smoltcp alone {:.3}", sum(&alone)? / bytes);
                    lab.add(row, &label);
                }
            }
        }
    }
    Ok(())
}

/// An interface's statistics at two times.
#[derive(Debug, Clone, Copy)]
pub struct Grown<'a> {
    before: &'a Value,
    after: &'a Value,
}

impl<'a> Grown<'a> {
    /// Takes the two.
    pub fn between(before: &'a Value, after: &'a Value) -> Self {
        Grown { before, after }
    }

    /// Returns by how much a counter has grown.
    pub fn by(&self, pointer: &str) -> Result<f64> {
        let number = |stats: &Value| {
            let value = stats.pointer(pointer).and_then(Value::as_u64);
            value.with_context(|| format!("drayage stats has no {pointer}"))
        };
        Ok((number(self.after)? - number(self.before)?) as f64)
    }
}

/// Returns the statistics of the only interface.
pub fn interface(dom0: &mut Dom0) -> Result<Value> {
    let stats = backend::stats(dom0)?;
    stats["interfaces"].get(0).cloned().context("drayage stats has no interface")
}
