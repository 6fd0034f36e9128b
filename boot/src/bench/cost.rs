//! What a packet costs, by the product's own counters: hypercalls, grant operations, events, copies. With it, TCP and
//! the placement on CPUs.

use std::time::Duration;

use anyhow::{Context, Result};
use drayage_peer::report::EchoReport;
use serde_json::Value;

use crate::backend;
use crate::bench::lab::{Competitor, ENDS, Lab};
use crate::bench::row::{Label, Peer, Row, Time};
use crate::bench::rx::Receiver;
use crate::count::{Caches, Counter, Events};
use crate::demo::guests::{Site, linux, ours};
use crate::demo::path::{Containers, Ours, Path, Stock};
use crate::demo::report::Source;
use crate::demo::rows::one_stream;
use crate::demo::sender::Stream;
use crate::dom0::{Dom0, Mode};

/// Counters of an interface by which a packet's cost is told: where they are in the statistics, and their name.
const COUNTERS: [(&str, &str); 7] = [
    ("/hypercalls", "hypercalls"),
    ("/rx/grant_ops", "grant copies"),
    ("/rx/slots", "ring slots"),
    ("/events_out", "events to the guest"),
    ("/events_in", "events from the guest"),
    ("/wakeups", "passes of the worker"),
    ("/rx/copies", "copies by the CPU"),
];

/// Runs suite `cost`.
pub fn cost(lab: &mut Lab<'_>) -> Result<()> {
    in_one_process(lab)?;
    const PACKETS: u64 = 50_000;
    let mode = Mode::Pvh;
    for peer in [Peer::C, Peer::D] {
        let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
        receiver.create(lab)?;
        for source in [Source::Direct, Source::Linux] {
            receiver.prepare(lab, source)?;
            for frame_bytes in ENDS {
                let before = interface(lab.dom0)?;
                let stream = Stream { frame_bytes, count: PACKETS, rate: None };
                one_stream(lab.dom0, receiver.path.as_ref(), &receiver.reader, source, stream)?;
                let after = interface(lab.dom0)?;
                let label = |name: &str| Label {
                    suite: "cost",
                    peer,
                    mode,
                    case: format!("{}: {name}", source.name()),
                    frame_bytes: Some(frame_bytes),
                    varied: None,
                };
                let grown = |pointer: &str| -> Result<f64> {
                    let number = |stats: &Value| {
                        let value = stats.pointer(pointer).and_then(Value::as_u64);
                        value.with_context(|| format!("drayage stats has no {pointer}"))
                    };
                    Ok((number(&after)? - number(&before)?) as f64)
                };
                let packets = grown("/rx/packets")?.max(1.0);
                for (pointer, name) in COUNTERS {
                    let label = label(name);
                    let value = grown(pointer)? / packets;
                    lab.add(Row::new(&label, lab.time, "cost", "per packet", value), &label);
                }
                let label = label("bytes copied by the hypervisor");
                let value = grown("/rx/copied_bytes")? / grown("/rx/bytes")?.max(1.0);
                lab.add(Row::new(&label, lab.time, "cost", "per byte of frame", value), &label);
            }
        }
        receiver.path.end(lab.dom0)?;
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
                        suite: "cost",
                        peer,
                        mode: Mode::Pvh,
                        case: format!("in one process: {name} {unit}"),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    };
                    let mut row = Row::new(&label, lab.time, "cost", unit, sum(&events)? / bytes);
                    row.note = format!("smoltcp alone, in both: {:.3}", sum(&alone)? / bytes);
                    lab.add(row, &label);
                }
            }
        }
    }
    Ok(())
}

/// Returns the statistics of the only interface.
fn interface(dom0: &mut Dom0) -> Result<Value> {
    let stats = backend::stats(dom0)?;
    stats["interfaces"].get(0).cloned().context("drayage stats has no interface")
}

/// Runs suite `tcp`: an echoed stream, which is both directions at once.
pub fn tcp(lab: &mut Lab<'_>) -> Result<()> {
    const BYTES: u64 = 8 << 20;
    for peer in Peer::ALL {
        for &mode in lab.modes("tcp") {
            let site = Site::FIRST;
            let ip = site.guest_ip();
            let guest = match peer {
                Peer::A => linux(
                    "echo",
                    mode,
                    &format!(
                        "ip link set lo up; ip link set eth0 up; ip addr add {ip}/24 dev eth0; peer serve-echo"
                    ),
                ),
                _ => ours("echo", mode, &format!("app=echo ip={ip}/24")),
            };
            let mut path: Box<dyn Path> = match peer {
                Peer::A | Peer::B => Box::new(Stock::new(site)),
                Peer::C => Box::new(Ours::new(site, Containers::Off)),
                Peer::D => Box::new(Ours::new(site, Containers::On)),
            };
            path.create(lab.dom0, &guest)?;
            path.prepare(lab.dom0, Source::Linux)?;
            lab.dom0.shell(&format!("peer ping {ip} --until-answered --count 600 --interval-ms 50"))?;
            let report: EchoReport =
                lab.dom0.json(&format!("peer tcp-echo {ip} --bytes {BYTES}"), Duration::from_secs(120))?;
            let label = Label {
                suite: "tcp",
                peer,
                mode,
                case: "echo, both directions".into(),
                frame_bytes: None,
                varied: None,
            };
            let unit = match lab.time {
                Time::Instructions => "MB per 10^9 instructions",
                Time::Wall => "MB per second of the emulator",
            };
            let goodput = (report.sent_bytes + report.received_bytes) as f64 * 1e3 / report.elapsed_ns as f64;
            let mut row = Row::new(&label, lab.time, "goodput", unit, goodput);
            if report.mismatched > 0 {
                lab.failures.push(format!("tcp {}: {} bytes differ", peer.letter(), report.mismatched));
            }
            row.note = format!("{} MB each way", BYTES >> 20);
            lab.add(row, &label);
            path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Where the guest runs, beside dom0 on pCPU 0.
const PLACEMENTS: [(&str, u32); 2] = [("apart", 1), ("sharing a core", 0)];

/// Runs suite `cores`, in wall time: the guest on a core of its own, and on dom0's.
pub fn cores(lab: &mut Lab<'_>) -> Result<()> {
    in_turn(lab, "cores", &PLACEMENTS)
}

/// Measures reception in wall time, a's and d's guests in turn.
pub fn rx_in_turn(lab: &mut Lab<'_>) -> Result<()> {
    in_turn(lab, "rx", &PLACEMENTS[..1])
}

fn in_turn(lab: &mut Lab<'_>, suite: &'static str, placements: &[(&'static str, u32)]) -> Result<()> {
    let mode = Mode::Pvh;
    let mut receivers = Vec::new();
    for (number, peer) in [Peer::A, Peer::C, Peer::D].into_iter().enumerate() {
        let mut receiver = Receiver::new(peer, mode, Site(number as u8), "");
        receiver.create(lab)?;
        receiver.prepare(lab, Source::Direct)?;
        receivers.push((peer, receiver, format!("rx{number}")));
    }
    for (placement, cpu) in placements {
        for (.., name) in &receivers {
            lab.dom0.shell(&format!("xl vcpu-pin {name} 0 {cpu}"))?;
        }
        for frame_bytes in ENDS {
            let mut competitors: Vec<Competitor<'_>> = receivers
                .iter()
                .map(|(peer, receiver, _)| Competitor {
                    label: Label {
                        suite,
                        peer: *peer,
                        mode,
                        case: format!("direct, {placement}"),
                        frame_bytes: Some(frame_bytes),
                        varied: None,
                    },
                    measure: Box::new(move |dom0, count, rate| {
                        let stream = Stream { frame_bytes, count, rate };
                        one_stream(dom0, receiver.path.as_ref(), &receiver.reader, Source::Direct, stream)
                    }),
                })
                .collect();
            lab.compete(&mut competitors)?;
        }
    }
    for (_, receiver, _) in receivers {
        receiver.path.end(lab.dom0)?;
    }
    Ok(())
}
