//! Several guests at once: a Linux sender for each, at the highest rate of all together at which hardly a packet is lost.

use anyhow::{Context, Result};
use drayage_peer::report::SendReport;

use crate::bench::lab::{ENDS, Effort, Lab, Source as Known};
use crate::bench::row::{Label, Peer};
use crate::bench::rx::{Receiver, generators};
use crate::demo::drops::{Places, drops};
use crate::demo::guests::Site;
use crate::demo::reader::{Reader, end_all};
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
        Effort::Quick => &[1, 6],
        Effort::Usual => &[1, 2, 4, 6],
        Effort::Thorough => &[1, 2, 3, 4, 5, 6],
    };
    for peer in lab.peers(&Peer::ALL) {
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
    let places: Vec<Places> = receivers.iter().map(|receiver| receiver.path.places()).collect();
    let before = drops(dom0, &places)?;
    let readers: Vec<&Reader> = receivers.iter().map(|receiver| &receiver.reader).collect();
    let readings = Reader::begin_all(dom0, &readers)?;
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
    for arrived in end_all(dom0, readings)? {
        sum.received += arrived.packets;
        sum.elapsed_ns = sum.elapsed_ns.max(arrived.span_ns);
        sum.packets_per_container += arrived.packets_per_container / many as f64;
        sum.lost.extend(arrived.lost);
    }
    let after = drops(dom0, &places)?;
    let grown = before.iter().zip(after);
    sum.lost.extend(grown.map(|((_, before), (place, after))| (place, after.saturating_sub(*before))));
    Ok(sum)
}
