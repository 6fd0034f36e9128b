//! Suites in wall time: everybody's guests are there at once and are measured in turn, so that what disturbs one disturbs
//! all, and the median of several rounds counts. Knows which guests these are, not how a stream is sent.

use anyhow::Result;
use drayage_peer::report::SpinReport;
use std::time::Duration;

use crate::bench::delay::{Pings, Trip, VARIED, round_trips};
use crate::bench::flow::{Pair, Router, Transmitter};
use crate::bench::lab::{Competitor, ENDS, Effort, Lab, REPEATS};
use crate::bench::row::{Label, Peer, Row, median, noise};
use crate::bench::rx::Receiver;
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::rows::one_stream;
use crate::demo::search::Measurement;
use crate::demo::sender::Stream;
use crate::dom0::{Dom0, Mode};

const MODE: Mode = Mode::Pvh;

/// Pings of one round, far enough apart for a slow emulator.
const PINGS: Pings = Pings { count: 60, interval_ms: 25 };

/// Rates of the stream beside the pings: no more than the slowest guest can take in an emulator's second.
const LOADS: [u64; 3] = [0, 1_000, 5_000];

/// What is measured in turn: the suite, the case, and the sizes of frames.
#[derive(Clone, Copy)]
struct Round<'a> {
    suite: &'static str,
    case: &'a str,
    frames: &'a [usize],
}

/// Measures entrants in turn.
fn in_turn<T>(
    lab: &mut Lab<'_>,
    round: Round<'_>,
    entrants: &[(Peer, T)],
    rates: &mut Vec<Option<u64>>,
    measure: impl Fn(&T, &mut Dom0, Stream) -> Result<Measurement>,
) -> Result<()> {
    let Round { suite, case, frames } = round;
    for &frame_bytes in frames {
        let measure = &measure;
        let mut competitors: Vec<Competitor<'_>> = entrants
            .iter()
            .map(|(peer, entrant)| Competitor {
                label: Label {
                    suite,
                    peer: *peer,
                    mode: MODE,
                    case: case.to_owned(),
                    frame_bytes: Some(frame_bytes),
                    varied: None,
                },
                measure: Box::new(move |dom0, count, rate| {
                    measure(entrant, dom0, Stream { frame_bytes, count, rate })
                }),
            })
            .collect();
        lab.compete(&mut competitors, rates)?;
    }
    Ok(())
}

/// Makes a guest of each peer's that counts what it gets, each at a place of its own.
fn receivers(lab: &mut Lab<'_>, source: Source) -> Result<Vec<(Peer, Receiver)>> {
    let mut all = Vec::new();
    for (number, peer) in lab.peers(&Peer::ALL).into_iter().enumerate() {
        let mut receiver = Receiver::new(peer, MODE, Site(number as u8), "");
        receiver.create(lab)?;
        receiver.prepare(lab, source)?;
        all.push((peer, receiver));
    }
    Ok(all)
}

fn end(lab: &mut Lab<'_>, receivers: Vec<(Peer, Receiver)>) -> Result<()> {
    receivers.into_iter().try_for_each(|(_, receiver)| receiver.path.end(lab.dom0))
}

fn receive(receiver: &Receiver, dom0: &mut Dom0, stream: Stream) -> Result<Measurement> {
    one_stream(dom0, receiver.path.as_ref(), &receiver.reader, Source::Direct, stream)
}

/// Runs suite `rx`.
pub fn rx(lab: &mut Lab<'_>) -> Result<()> {
    let all = receivers(lab, Source::Direct)?;
    let round = Round { suite: "rx", case: "direct", frames: &ENDS };
    in_turn(lab, round, &all, &mut Vec::new(), receive)?;
    end(lab, all)
}

/// Runs suite `tx`.
pub fn tx(lab: &mut Lab<'_>) -> Result<()> {
    let mut all = Vec::new();
    for (number, peer) in lab.peers(&[Peer::A, Peer::C, Peer::D]).into_iter().enumerate() {
        let site = Site(number as u8);
        all.push((peer, (Transmitter::create(lab.dom0, peer, MODE, site, "port")?, site)));
    }
    let round = Round { suite: "tx", case: "port", frames: &ENDS };
    in_turn(lab, round, &all, &mut Vec::new(), |(transmitter, site), dom0, stream| {
        transmitter.measure(dom0, *site, stream)
    })?;
    all.into_iter().try_for_each(|(_, (transmitter, _))| transmitter.fabric.end(lab.dom0))
}

/// Runs suite `intervm`.
pub fn intervm(lab: &mut Lab<'_>) -> Result<()> {
    let mut all = Vec::new();
    for (number, peer) in lab.peers(&Peer::ALL).into_iter().enumerate() {
        let site = Site(number as u8);
        all.push((peer, (Pair::create(lab.dom0, peer, MODE, site)?, site)));
    }
    let round = Round { suite: "intervm", case: "guest to guest", frames: &ENDS };
    in_turn(lab, round, &all, &mut Vec::new(), |(pair, site), dom0, stream| {
        pair.measure(dom0, *site, stream)
    })?;
    all.into_iter().try_for_each(|(_, (pair, _))| pair.fabric.end(lab.dom0))
}

/// Runs suite `forward`; each router has two places.
pub fn forward(lab: &mut Lab<'_>) -> Result<()> {
    let mut all = Vec::new();
    for (number, peer) in lab.peers(&[Peer::A, Peer::C, Peer::D]).into_iter().enumerate() {
        let inner = Site(2 * number as u8);
        all.push((peer, Router::create(lab.dom0, peer, MODE, inner, "direct")?));
    }
    let round = Round { suite: "forward", case: "direct", frames: &ENDS };
    in_turn(lab, round, &all, &mut Vec::new(), |router, dom0, stream| router.measure(dom0, stream))?;
    all.into_iter().try_for_each(|(_, router)| router.fabric.end(lab.dom0))
}

/// Runs suite `latency`; beside its percentiles stands what an idle loop sees on the same machine.
pub fn latency(lab: &mut Lab<'_>) -> Result<()> {
    let all = receivers(lab, Source::Linux)?;
    let idle: SpinReport = lab.dom0.json("peer spin --ms 1000", Duration::from_secs(20))?;
    let us = |ns: u64| ns as f64 / 1000.0;
    let beside = format!(
        "an idle loop of the driver domain, in windows of 200 µs: kept for {:.0} µs or less in 99 of 100, for {:.0} at most",
        us(idle.p99_ns),
        us(idle.max_ns)
    );
    for load in LOADS {
        let mut trips: Vec<Vec<Trip>> = vec![Vec::new(); all.len()];
        for _ in 0..REPEATS {
            for ((peer, receiver), trips) in all.iter().zip(&mut trips) {
                trips.extend(Trip::of(&round_trips(lab.dom0, receiver, *peer, load, PINGS)?));
            }
        }
        for ((peer, _), trips) in all.iter().zip(&trips) {
            let Some(first) = trips.first() else {
                lab.failures.push(format!("latency {}: no ping answered at {load} /s", peer.letter()));
                continue;
            };
            for (at, (case, metric, _)) in first.kinds().into_iter().enumerate() {
                let label = Label {
                    suite: "latency",
                    peer: *peer,
                    mode: MODE,
                    case: case.into(),
                    frame_bytes: None,
                    varied: Some((VARIED, load as f64)),
                };
                let samples: Vec<f64> = trips.iter().map(|trip| trip.kinds()[at].2).collect();
                let mut row = Row::new(&label, lab.time, metric, "µs", median(&samples));
                row.note = format!(
                    "{} rounds of {REPEATS} with answers, noise ±{:.0} %; {beside}",
                    samples.len(),
                    100.0 * noise(&samples)
                );
                row.samples = samples;
                lab.add(row, &label);
            }
        }
    }
    end(lab, all)
}

/// Where the guest and what serves it run.
struct Placement {
    name: &'static str,
    /// CPUs of the machine on which the guest may run.
    guest: &'static str,
    /// Whether the driver domain has a second virtual CPU, on the second of the machine.
    second: Second,
}

/// A second virtual CPU of the driver domain.
enum Second {
    /// There is none.
    Absent,
    /// Interrupts come to the first, and the backend's threads (netback's, or drayage's) are held to the second.
    ForBackend,
    /// It is for whatever the scheduler puts there.
    ForAnything,
}

/// The placements on two CPUs. dom0's first virtual CPU is on CPU 0.
const PLACEMENTS: [Placement; 4] = [
    Placement { name: "guest and driver domain apart", guest: "1", second: Second::Absent },
    Placement { name: "guest and driver domain on one core", guest: "0", second: Second::Absent },
    Placement {
        name: "interrupts apart, backend and guest on one core",
        guest: "1",
        second: Second::ForBackend,
    },
    Placement { name: "nothing pinned", guest: "0-1", second: Second::ForAnything },
];

/// Runs suite `cores`.
pub fn cores(lab: &mut Lab<'_>) -> Result<()> {
    let all = receivers(lab, Source::Direct)?;
    // What differs between placements shows with small frames.
    let frames = if lab.effort == Effort::Thorough { &ENDS[..] } else { &ENDS[..1] };
    let mut rates = Vec::new();
    for placement in &PLACEMENTS {
        for (_, receiver) in &all {
            lab.dom0.shell(&format!("xl vcpu-pin {} 0 {}", receiver.name(), placement.guest))?;
        }
        place_backends(lab.dom0, &placement.second)?;
        let round = Round { suite: "cores", case: placement.name, frames };
        in_turn(lab, round, &all, &mut rates, receive)?;
    }
    end(lab, all)
}

/// Lets the driver domain have its second virtual CPU or not, and holds the backends' threads where they belong.
fn place_backends(dom0: &mut Dom0, second: &Second) -> Result<()> {
    let (online, mask) = match second {
        Second::Absent => (0, 1),
        Second::ForBackend => (1, 2),
        Second::ForAnything => (1, 3),
    };
    // A task that is held to a CPU that goes is moved elsewhere, so the CPU comes before the tasks.
    dom0.shell(&format!(
        "cpu=/sys/devices/system/cpu/cpu1/online; [ $(cat $cpu) = {online} ] || echo {online} > $cpu; \
         for task in /proc/[0-9]*/task/[0-9]*; do case $(cat $task/comm 2>/dev/null) in \
         vif*|drayage*|worker*) taskset -p {mask} ${{task##*/}} > /dev/null || exit 1;; esac; done"
    ))
    .map(drop)
}
