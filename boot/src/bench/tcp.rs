//! TCP: goodput into a guest and out of it, each on its own, and a stream that is echoed and compared.

use std::time::Duration;

use anyhow::Result;
use drayage_peer::report::{EchoReport, StreamReport};

use crate::bench::lab::Lab;
use crate::bench::row::{Label, Peer, Row, Time};
use crate::demo::greeting::await_guest;
use crate::demo::guests::{Site, linux, ours};
use crate::demo::path::{Containers, Ours, Path, Stock};
use crate::demo::report::Source;
use crate::dom0::{Guest, Mode};

/// Length of a stream.
const BYTES: u64 = 16 << 20;

/// Patience with one.
const STREAM: Duration = Duration::from_secs(120);

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into the guest.
    In,
    /// Out of it.
    Out,
    /// Both, at once.
    Echo,
}

impl Way {
    const ALL: [Way; 3] = [Way::In, Way::Out, Way::Echo];

    /// Returns the name that rows have.
    pub fn name(self) -> &'static str {
        match self {
            Way::In => "into the guest",
            Way::Out => "out of the guest",
            Way::Echo => "echo, both directions",
        }
    }

    /// Returns the guest that serves the other end.
    fn guest(self, peer: Peer, mode: Mode, site: Site, settings: &str) -> Guest {
        let ip = site.guest_ip();
        let app = match (peer, self) {
            (Peer::A, Way::In | Way::Out) => "serve-streams --sent 11",
            (Peer::A, Way::Echo) => "serve-echo",
            (_, Way::In) => "app=sink",
            (_, Way::Out) => "app=source control=11",
            (_, Way::Echo) => "app=echo",
        };
        match peer {
            Peer::A => {
                let up = "ip link set lo up; ip link set eth0 up";
                linux("tcp", mode, &format!("{up}; ip addr add {ip}/24 dev eth0; peer {app}"))
            }
            _ => ours("tcp", mode, &format!("{app} ip={ip}/24{settings}")),
        }
    }
}

/// Runs suite `tcp`.
pub fn tcp(lab: &mut Lab<'_>) -> Result<()> {
    for peer in lab.peers(&Peer::ALL) {
        for &mode in lab.modes("tcp", peer) {
            for way in Way::ALL {
                let label = Label {
                    suite: "tcp",
                    peer,
                    mode,
                    case: way.name().into(),
                    frame_bytes: None,
                    varied: None,
                };
                stream(lab, &label, (way, Source::Veth), "", "")?;
            }
        }
    }
    Ok(())
}

/// Measures a stream with a guest of its own, attached with options and started with settings beyond the usual ones. With
/// source `veth` drayage has one end of a veth, and not a TAP, between itself and dom0's stack; netback needs neither.
pub fn stream(
    lab: &mut Lab<'_>,
    label: &Label,
    (way, source): (Way, Source),
    options: &str,
    settings: &str,
) -> Result<()> {
    let (site, peer) = (Site::FIRST, label.peer);
    let ip = site.guest_ip();
    let mut path: Box<dyn Path> = match peer {
        Peer::A | Peer::B => Box::new(Stock::new(site)),
        Peer::C => Box::new(Ours::new(site, Containers::Off).with_slots()),
        Peer::D => Box::new(Ours::new(site, Containers::On).with_options(options).with_slots()),
    };
    path.create(lab.dom0, &way.guest(peer, label.mode, site, settings))?;
    path.prepare(lab.dom0, if matches!(peer, Peer::A | Peer::B) { Source::Linux } else { source })?;
    await_guest(lab.dom0, &ip)?;
    let (bytes, elapsed_ns) = match way {
        Way::In | Way::Out => {
            let what = if way == Way::In { "tcp-push" } else { "tcp-pull" };
            let port = if way == Way::In { 9 } else { 11 };
            let command = format!("peer {what} {ip} --port {port} --bytes {BYTES}");
            let report: StreamReport = lab.dom0.json(&command, STREAM)?;
            (report.bytes, report.elapsed_ns)
        }
        Way::Echo => {
            let command = format!("peer tcp-echo {ip} --bytes {}", BYTES / 2);
            let report: EchoReport = lab.dom0.json(&command, STREAM)?;
            if report.mismatched > 0 {
                lab.failures.push(format!("tcp {}: {} bytes differ", peer.letter(), report.mismatched));
            }
            (report.sent_bytes + report.received_bytes, report.elapsed_ns)
        }
    };
    let unit = match lab.time {
        Time::Instructions => "MB per 10^9 instructions",
        Time::Wall => "MB per second of the emulator",
    };
    let row = Row::new(label, lab.time, "goodput", unit, bytes as f64 * 1e3 / elapsed_ns as f64);
    lab.add(row, label);
    path.end(lab.dom0)
}
