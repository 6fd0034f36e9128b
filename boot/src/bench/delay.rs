//! Delay: a lone ping, pings while a stream runs, how long containers are held open, and how long a guest takes to
//! boot.

use std::time::Duration;

use anyhow::{Context, Result};
use drayage_peer::report::PingReport;

use crate::backend;
use crate::bench::lab::Lab;
use crate::bench::row::{Label, Peer, Row};
use crate::bench::rx::Receiver;
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::sender::{self, Stream};
use crate::dom0::Mode;

/// Rates of the stream beside the pings, in packets a second.
const LOADS: [u64; 3] = [1_000, 5_000, 20_000];

/// What our guest prints before it sleeps for the first time with a network that is up.
const NETWORK_IS_UP: &str = "boot: network is up, cpu_ns=";

/// Pings of one point.
const PINGS: u64 = 100;

/// Runs suite `latency`.
pub fn latency(lab: &mut Lab<'_>) -> Result<()> {
    for peer in Peer::ALL {
        for &mode in lab.modes("latency") {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            receiver.create(lab)?;
            receiver.prepare(lab, Source::Linux)?;
            let label = |case: &str, load: u64| Label {
                suite: "latency",
                peer,
                mode,
                case: case.into(),
                frame_bytes: None,
                varied: Some(("packets per second beside it", load as f64)),
            };
            let ip = Site::FIRST.guest_ip();
            let ping = format!("peer ping {ip} --count {PINGS} --interval-ms 5 --spaced");
            let lone: PingReport = lab.dom0.json(&ping, Duration::from_secs(30))?;
            note(lab, &label("round trip", 0), &lone)?;
            for load in LOADS {
                let before = holds(lab, peer)?;
                let stream = Stream { frame_bytes: 60, count: load * 6 / 10, rate: Some(load) };
                let device = match peer {
                    Peer::A | Peer::B => Site::FIRST.bridge(),
                    _ => Site::FIRST.tap(),
                };
                let command = sender::command(&device, Site::FIRST, stream);
                let report: PingReport = lab
                    .dom0
                    .json(&format!("{command} > /dev/null & {ping}; wait"), Duration::from_secs(60))?;
                note(lab, &label("round trip", load), &report)?;
                if let (Some(before), Some(after)) = (before, holds(lab, peer)?) {
                    let mean_us = after.0.saturating_sub(before.0) as f64
                        / after.1.saturating_sub(before.1).max(1) as f64
                        / 1000.0;
                    let label = label("hold of a packet", load);
                    lab.add(Row::new(&label, lab.time, "hold time", "µs", mean_us), &label);
                }
            }
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

fn note(lab: &mut Lab<'_>, label: &Label, report: &PingReport) -> Result<()> {
    let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1000.0).context("no ping was answered");
    let mut row = Row::new(label, lab.time, "round trip", "µs", us(report.median_rtt_ns)?);
    (row.sent, row.received) = (Some(report.sent), Some(report.answered));
    let (least, most) = (us(report.min_rtt_ns)?, us(report.max_rtt_ns)?);
    row.note = format!("least {least:.0}, p99 {:.0}, most {most:.0}", us(report.p99_rtt_ns)?);
    lab.add(row, label);
    let jitter = Label { case: "jitter".into(), ..label.clone() };
    let value = us(report.jitter_ns)?;
    lab.add(Row::new(&jitter, lab.time, "jitter", "µs", value), &jitter);
    Ok(())
}

/// Returns how long a guest's packets were held in all, and how many there were; nothing without containers.
fn holds(lab: &mut Lab<'_>, peer: Peer) -> Result<Option<(u64, u64)>> {
    if peer != Peer::D {
        return Ok(None);
    }
    let stats = backend::stats(lab.dom0)?;
    let interface = &stats["interfaces"][0];
    let (mean_ns, packets) = (interface["hold"]["mean_ns"].as_u64(), interface["hold"]["packets"].as_u64());
    Ok(mean_ns.zip(packets).map(|(mean_ns, packets)| (mean_ns * packets, packets)))
}

/// Runs suite `boot`: from `xl create` to the first answered ping.
pub fn boot(lab: &mut Lab<'_>) -> Result<()> {
    for peer in Peer::ALL {
        for &mode in lab.modes("rx") {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            let started_ns = lab.dom0.agent().clock_ns()?;
            receiver.create(lab)?;
            let ip = Site::FIRST.guest_ip();
            let _: PingReport = lab.dom0.json(
                &format!("peer ping {ip} --until-answered --count 6000 --interval-ms 10"),
                Duration::from_secs(90),
            )?;
            let ended_ns = lab.dom0.agent().clock_ns()?;
            let label = Label {
                suite: "boot",
                peer,
                mode,
                case: "first answered ping".into(),
                frame_bytes: None,
                varied: None,
            };
            let row = Row::new(&label, lab.time, "time to boot", "ms", (ended_ns - started_ns) as f64 / 1e6);
            lab.add(row, &label);
            if peer != Peer::A {
                own_time(lab, peer, mode)?;
            }
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Adds what the guest itself says about the CPU time that it took to get its network.
fn own_time(lab: &mut Lab<'_>, peer: Peer, mode: Mode) -> Result<()> {
    let said = lab.dom0.await_console("rx0", 0, &[NETWORK_IS_UP], Duration::from_secs(30))?.0;
    let text = said.trim().strip_prefix(NETWORK_IS_UP).unwrap_or_default();
    let cpu_ns: f64 = text.trim().parse().with_context(|| format!("CPU time of the guest: {text:?}"))?;
    let label = Label {
        suite: "boot",
        peer,
        mode,
        case: "guest's own CPU time".into(),
        frame_bytes: None,
        varied: None,
    };
    lab.add(Row::new(&label, lab.time, "cpu time", "million instructions", cpu_ns / 1e6), &label);
    Ok(())
}
