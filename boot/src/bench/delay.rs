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
use crate::dom0::{Dom0, Mode};

/// Rates of the stream beside the pings, in packets a second; none of them where pings are alone.
pub const LOADS: [u64; 4] = [0, 1_000, 5_000, 20_000];

/// Memory with which our guest boots, as little as it is meant to run with.
const OUR_LEAST_MIB: u32 = 8;

/// Pings of one point: enough for a 99th percentile.
const PINGS: u64 = 1_000;

/// Time from one ping to the next.
const INTERVAL_MS: u64 = 2;

/// What is varied.
pub const VARIED: &str = "packets per second beside the pings";

/// What our guest prints before it sleeps for the first time with a network that is up.
const NETWORK_IS_UP: &str = "boot: network is up, cpu_ns=";

/// Runs suite `latency`.
pub fn latency(lab: &mut Lab<'_>) -> Result<()> {
    for peer in lab.peers(&Peer::ALL) {
        for &mode in lab.modes("latency", peer) {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            receiver.create(lab)?;
            receiver.prepare(lab, Source::Linux)?;
            for load in LOADS {
                let label = |case: &str| Label {
                    suite: "latency",
                    peer,
                    mode,
                    case: case.into(),
                    frame_bytes: None,
                    varied: Some((VARIED, load as f64)),
                };
                let before = holds(lab, peer)?;
                let report = round_trips(lab.dom0, &receiver, peer, load, PINGS)?;
                let kinds = Trip::of(&report)?.kinds();
                for (case, metric, us) in kinds {
                    let label = label(case);
                    let mut row = Row::new(&label, lab.time, metric, "µs", us);
                    (row.sent, row.received) = (Some(report.sent), Some(report.answered));
                    if report.answered < report.sent {
                        row.note =
                            format!("{} of {} not answered", report.sent - report.answered, report.sent);
                    }
                    lab.add(row, &label);
                }
                if let (Some(before), Some(after)) = (before, holds(lab, peer)?) {
                    let mean_us = after.0.saturating_sub(before.0) as f64
                        / after.1.saturating_sub(before.1).max(1) as f64
                        / 1000.0;
                    let label = label("mean over all packets");
                    lab.add(Row::new(&label, lab.time, "hold time", "µs", mean_us), &label);
                }
            }
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Pings a guest, with a stream beside that lasts a little longer where there is one.
pub fn round_trips(
    dom0: &mut Dom0,
    receiver: &Receiver,
    peer: Peer,
    load: u64,
    pings: u64,
) -> Result<PingReport> {
    let site = receiver.site;
    let ip = site.guest_ip();
    let ping = format!("peer ping {ip} --count {pings} --interval-ms {INTERVAL_MS} --spaced");
    if load == 0 {
        return dom0.json(&ping, Duration::from_secs(60));
    }
    let count = load * pings * INTERVAL_MS * 11 / 10_000;
    let stream = Stream { frame_bytes: 60, count, rate: Some(load) };
    let device = match peer {
        Peer::A | Peer::B => site.bridge(),
        _ => site.tap(),
    };
    let command = sender::command(&device, site, stream);
    dom0.json(&format!("{command} > /dev/null & {ping}; wait"), Duration::from_secs(90))
}

/// What some round trips come to, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trip {
    median_us: f64,
    p99_us: f64,
    jitter_us: f64,
}

impl Trip {
    /// Takes what `peer ping` reports.
    pub fn of(report: &PingReport) -> Result<Self> {
        let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1000.0).context("no ping was answered");
        Ok(Trip {
            median_us: us(report.median_rtt_ns)?,
            p99_us: us(report.p99_rtt_ns)?,
            jitter_us: us(report.jitter_ns)?,
        })
    }

    /// Returns each value with the case and the metric that its row has.
    pub fn kinds(self) -> [(&'static str, &'static str, f64); 3] {
        [
            ("median", "round trip", self.median_us),
            ("99th percentile", "round trip", self.p99_us),
            ("mean difference of two round trips in a row", "jitter", self.jitter_us),
        ]
    }
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
    for peer in lab.peers(&Peer::ALL) {
        // There is time for both: a boot is one point.
        for mode in Mode::ALL {
            let mut receiver = Receiver::new(peer, mode, Site::FIRST, "");
            if peer != Peer::A {
                receiver = receiver.with_memory(OUR_LEAST_MIB);
            }
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
            own_time(lab, peer, mode)?;
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Adds the CPU time that the guest took to get its network: what our guest says at that moment, or what Xen says of a
/// Linux guest's domain right after it.
fn own_time(lab: &mut Lab<'_>, peer: Peer, mode: Mode) -> Result<()> {
    let cpu_ms = if peer == Peer::A {
        let list = lab.dom0.shell("xl list rx0")?;
        let seconds = list.lines().last().and_then(|line| line.split_whitespace().last());
        let seconds: f64 = seconds
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("CPU time of the guest in {list:?}"))?;
        seconds * 1e3
    } else {
        let said = lab.dom0.await_console("rx0", 0, &[NETWORK_IS_UP], Duration::from_secs(30))?.0;
        let text = said.trim().strip_prefix(NETWORK_IS_UP).unwrap_or_default();
        let cpu_ns: f64 = text.trim().parse().with_context(|| format!("CPU time of the guest: {text:?}"))?;
        cpu_ns / 1e6
    };
    let label = Label {
        suite: "boot",
        peer,
        mode,
        case: "until the network is up, by the domain itself".into(),
        frame_bytes: None,
        varied: None,
    };
    let mut row = Row::new(&label, lab.time, "CPU time", "million instructions", cpu_ms);
    if peer == Peer::A {
        row.note = "Xen tells a domain's CPU time in steps of 100 million".into();
    }
    lab.add(row, &label);
    Ok(())
}
