//! Delay: a lone ping, pings while a stream runs, how long containers are held open, and how long a guest takes to
//! boot.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drayage_peer::report::PingReport;
use serde_json::Value;

use crate::backend;
use crate::bench::lab::{Effort, Lab};
use crate::bench::row::{Label, Peer, Row};
use crate::bench::rx::Receiver;
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::sender::{self, Stream};
use crate::dom0::{Dom0, Mode};

/// Rates of the stream beside the pings, in packets a second; none of them where pings are alone.
const LOADS: [u64; 4] = [0, 1_000, 5_000, 20_000];

/// Memory with which our guest boots, as little as it is meant to run with.
const OUR_LEAST_MIB: u32 = 8;

/// Pings of one point: enough for a 99th percentile; and where that is looked at less closely.
const PINGS: u64 = 1_000;
const FEWER_PINGS: u64 = 200;

/// Time from one ping to the next in instruction time, where a round trip takes a tenth of it.
const INTERVAL_MS: u64 = 2;

/// Pings of one point.
#[derive(Debug, Clone, Copy)]
pub struct Pings {
    /// How many.
    pub count: u64,
    /// From one to the next; what comes later is not answered.
    pub interval_ms: u64,
}

/// What is varied.
pub const VARIED: &str = "packets per second beside the pings";

/// What our guest prints before it sleeps for the first time with a network that is up.
const NETWORK_IS_UP: &str = "boot: network is up, cpu_ns=";

/// Runs suite `latency`.
pub fn latency(lab: &mut Lab<'_>) -> Result<()> {
    let count = if lab.effort == Effort::Quick { FEWER_PINGS } else { PINGS };
    let pings = Pings { count, interval_ms: INTERVAL_MS };
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
                let report = round_trips(lab.dom0, &receiver, peer, load, pings)?;
                let Some(trip) = Trip::of(&report) else {
                    lab.failures.push(format!("latency {}: no ping answered at {load} /s", peer.letter()));
                    continue;
                };
                for (case, metric, us) in trip.kinds() {
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
                    for (case, metric, us) in after.since(&before).kinds() {
                        let label = label(case);
                        lab.add(Row::new(&label, lab.time, metric, "µs", us), &label);
                    }
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
    pings: Pings,
) -> Result<PingReport> {
    let Pings { count: pings, interval_ms } = pings;
    let site = receiver.site;
    let ip = site.guest_ip();
    let ping = format!("peer ping {ip} --count {pings} --interval-ms {interval_ms} --spaced");
    if load == 0 {
        return dom0.json(&ping, Duration::from_secs(60));
    }
    let count = load * pings * interval_ms * 11 / 10_000;
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
    /// Takes what `peer ping` reports; nothing when it got no answer.
    pub fn of(report: &PingReport) -> Option<Self> {
        let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1000.0);
        Some(Trip {
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

/// Returns for how long a guest's packets were held so far; nothing without containers.
fn holds(lab: &mut Lab<'_>, peer: Peer) -> Result<Option<Holds>> {
    if peer != Peer::D {
        return Ok(None);
    }
    let keys = "interfaces hold packets mean_ns jitter_ns buckets below_ns";
    let stats = backend::stats_of(lab.dom0, keys)?;
    Holds::of(&stats["interfaces"][0]["hold"]).map(Some)
}

/// For how long packets were held, in a form that subtracts.
#[derive(Debug, Clone, Default, PartialEq)]
struct Holds {
    packets: u64,
    sum_ns: f64,
    differences_ns: f64,
    /// Packets held for less than so long.
    buckets: BTreeMap<u64, u64>,
}

impl Holds {
    /// Takes what the daemon's statistics say.
    fn of(hold: &Value) -> Result<Self> {
        let number = |of: &Value, key: &str| {
            of[key].as_u64().with_context(|| format!("drayage stats has no {key} in {of}"))
        };
        let packets = number(hold, "packets")?;
        let mut buckets = BTreeMap::new();
        for bucket in hold["buckets"].as_array().context("drayage stats has no buckets of hold times")? {
            buckets.insert(number(bucket, "below_ns")?, number(bucket, "packets")?);
        }
        let all = |mean_ns: u64| mean_ns as f64 * packets as f64;
        let (sum_ns, differences_ns) = (all(number(hold, "mean_ns")?), all(number(hold, "jitter_ns")?));
        Ok(Holds { packets, sum_ns, differences_ns, buckets })
    }

    /// Returns what came after an earlier look.
    fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets.clone();
        for (below_ns, packets) in &mut buckets {
            *packets -= before.buckets.get(below_ns).copied().unwrap_or_default().min(*packets);
        }
        Holds {
            packets: self.packets.saturating_sub(before.packets),
            sum_ns: (self.sum_ns - before.sum_ns).max(0.0),
            differences_ns: (self.differences_ns - before.differences_ns).max(0.0),
            buckets,
        }
    }

    /// Returns the time within which a part of the packets was handed over, as exactly as the buckets tell.
    fn quantile_us(&self, part: f64) -> f64 {
        let all: u64 = self.buckets.values().sum();
        let mut below = 0;
        for (below_ns, packets) in &self.buckets {
            below += packets;
            if below as f64 >= part * all as f64 {
                return *below_ns as f64 / 1e3;
            }
        }
        0.0
    }

    /// Returns each value with the case and the metric that its row has.
    fn kinds(&self) -> [(&'static str, &'static str, f64); 4] {
        let each_us = |sum_ns: f64| sum_ns / self.packets.max(1) as f64 / 1e3;
        [
            ("mean over all packets", "hold time", each_us(self.sum_ns)),
            ("median of all packets", "hold time", self.quantile_us(0.5)),
            ("99th percentile of all packets", "hold time", self.quantile_us(0.99)),
            (
                "mean difference of two packets in a row",
                "jitter of the hold time",
                each_us(self.differences_ns),
            ),
        ]
    }
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
            let report: PingReport = lab.dom0.json(
                &format!("peer ping {ip} --until-answered --count 6000 --interval-ms 10"),
                Duration::from_secs(90),
            )?;
            let ended_ns = lab.dom0.agent().clock_ns()?;
            ensure!(report.answered > 0, "the guest has not answered a ping in a minute");
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hold_times_of_one_load_are_told_from_those_before() {
        let hold = |packets: u64, mean_ns: u64, buckets: &[(u64, u64)]| {
            let bucket =
                |(below_ns, packets): &(u64, u64)| json!({ "below_ns": below_ns, "packets": packets });
            let buckets: Vec<Value> = buckets.iter().map(bucket).collect();
            json!({ "packets": packets, "mean_ns": mean_ns, "jitter_ns": 0, "buckets": buckets })
        };
        let before = Holds::of(&hold(100, 1_000, &[(2_000, 100)])).unwrap();
        let after = Holds::of(&hold(200, 25_500, &[(2_000, 100), (50_000, 98), (90_000, 2)])).unwrap();
        let grown = after.since(&before);
        assert_eq!(grown.packets, 100);
        let us: Vec<f64> = grown.kinds().iter().map(|(_, _, us)| *us).collect();
        assert_eq!(us, [50.0, 50.0, 90.0, 0.0]);
        assert!(Holds::of(&json!({ "packets": 1 })).is_err());
    }
}
