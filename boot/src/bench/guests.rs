//! Several guests at once: a Linux sender for each, at the highest rate of all together at which hardly a packet is lost.

use anyhow::{Context, Result};
use drayage_peer::report::SendReport;

use crate::bench::lab::{ENDS, Effort, Lab, Source as Known};
use crate::bench::row::{Label, Peer};
use crate::bench::rx::{Receiver, generators};
use crate::demo::guests::Site;
use crate::demo::report::Source;
use crate::demo::search::Measurement;
use crate::demo::sender::{self, Stream};
use crate::dom0::{Dom0, Mode};

/// Guests at most.
const MOST: u8 = 6;

/// Packets of one sender at least: fewer would fit into queues.
const LEAST_PACKETS: u64 = 2_000;

/// Time for the senders' processes to be there before they begin.
const LEAD_NS: u64 = 60_000_000;

/// What is varied. The machine has two CPUs, the driver domain the first of them.
const VARIED: &str = "guests (all of them share pCPU 1, the driver domain has pCPU 0)";

/// Runs suite `guests`.
pub fn guests(lab: &mut Lab<'_>) -> Result<()> {
    generators(lab, &ENDS)?;
    let mode = Mode::Pvh;
    let counts: &[usize] = match lab.effort {
        Effort::Quick => &[1, 3, 6],
        Effort::Usual => &[1, 2, 4, 6],
        Effort::Thorough => &[1, 2, 3, 4, 5, 6],
    };
    for peer in Peer::ALL {
        let mut receivers: Vec<Receiver> = Vec::new();
        for number in 0..MOST {
            let mut receiver = Receiver::new(peer, mode, Site(number), "");
            receiver.create(lab)?;
            receiver.prepare(lab, Source::Veth)?;
            receivers.push(receiver);
            if !counts.contains(&receivers.len()) {
                continue;
            }
            for frame_bytes in ENDS {
                let label = Label {
                    suite: "guests",
                    peer,
                    mode,
                    case: "veth".into(),
                    frame_bytes: Some(frame_bytes),
                    varied: Some((VARIED, receivers.len() as f64)),
                };
                lab.saturate(&label, Known::Known(sender::NAME), |dom0, count, rate| {
                    all_at_once(dom0, &receivers, Stream { frame_bytes, count, rate })
                })?;
            }
        }
        for receiver in receivers {
            receiver.path.end(lab.dom0)?;
        }
    }
    Ok(())
}

/// Sends a stream in equal parts to all guests, beginning with all at the same time.
fn all_at_once(dom0: &mut Dom0, receivers: &[Receiver], all: Stream) -> Result<Measurement> {
    let many = receivers.len() as u64;
    let stream = Stream {
        count: (all.count / many).max(LEAST_PACKETS),
        rate: all.rate.map(|rate| (rate / many).max(1)),
        ..all
    };
    let mut lost: Vec<(String, i64)> = Vec::new();
    let mut readings = Vec::new();
    for receiver in receivers {
        lost.extend(receiver.path.drops(dom0)?.into_iter().map(|(place, count)| (place, -(count as i64))));
        readings.push(receiver.reader.begin(dom0)?);
    }
    let at_ns = dom0.agent().clock_ns()? + LEAD_NS * many;
    let mut command = String::new();
    for receiver in receivers {
        let Site(number) = receiver.site;
        let [near, _] = receiver.site.veth();
        let send = sender::command(&near, receiver.site, stream);
        command.push_str(&format!("{send} --at-ns {at_ns} > /run/sent{number} & "));
    }
    command.push_str("wait; cat");
    for receiver in receivers {
        command.push_str(&format!(" /run/sent{}", receiver.site.0));
    }
    let printed = dom0.shell(&command)?;
    let mut sum = Measurement::default();
    for line in printed.lines().filter(|line| !line.trim().is_empty()) {
        let report: SendReport =
            serde_json::from_str(line).with_context(|| format!("a sender printed {line:?}"))?;
        sum.sent += report.sent;
        sum.elapsed_ns = sum.elapsed_ns.max(report.elapsed_ns);
    }
    for (receiver, reading) in receivers.iter().zip(readings) {
        let arrived = reading.end(dom0)?;
        sum.received += arrived.packets;
        sum.elapsed_ns = sum.elapsed_ns.max(arrived.span_ns);
        sum.packets_per_container += arrived.packets_per_container / many as f64;
        lost.extend(arrived.lost.into_iter().map(|(place, count)| (place, count as i64)));
        lost.extend(receiver.path.drops(dom0)?.into_iter().map(|(place, count)| (place, count as i64)));
    }
    let count: i64 = lost.iter().map(|(_, count)| count).sum();
    sum.lost = vec![("at all places".to_owned(), u64::try_from(count).unwrap_or_default())];
    Ok(sum)
}
