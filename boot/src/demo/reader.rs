//! Asks the application in a guest what arrived: a Linux guest's reader prints a report for every
//! stream, our `sink` answers questions. Knows nothing of where packets come from.

use std::time::Duration;

use anyhow::{Context, Result};
use drayage_peer::query::word;
use drayage_peer::report::RecvReport;

use crate::demo::guests::GUEST_IP;
use crate::dom0::{Dom0, parse_last_line};

/// UDP port on which `sink` tells its counters.
const SINK_CONTROL_PORT: u16 = 10;

/// Patience with a reader's report, which comes after an idle gap.
const REPORT: Duration = Duration::from_secs(20);

/// The application that reads the packets.
#[derive(Debug, Clone)]
pub enum Reader {
    /// `peer recv` in a Linux guest of this name.
    Linux(String),
    /// `app=sink` of our guest.
    Sink,
}

/// A reader that was told to begin.
#[derive(Debug)]
pub struct Reading<'a> {
    reader: &'a Reader,
    console_at: u64,
}

/// What a reader read.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Packets that the application read.
    pub packets: u64,
    /// From the first to the last.
    pub span_ns: u64,
    /// Packets lost inside the guest, by place.
    pub lost: Vec<(String, u64)>,
    /// Packets per container; 1 without containers, where each travels alone.
    pub packets_per_container: f64,
}

impl Reader {
    /// Begins to count.
    pub fn begin(&self, dom0: &mut Dom0) -> Result<Reading<'_>> {
        let console_at = match self {
            Reader::Linux(name) => dom0.console_len(name)?,
            Reader::Sink => {
                dom0.shell(&format!("peer query {GUEST_IP} --port {SINK_CONTROL_PORT} --text reset"))?;
                0
            }
        };
        Ok(Reading { reader: self, console_at })
    }
}

impl Reading<'_> {
    /// Waits until nothing more arrives and returns the counts.
    pub fn end(self, dom0: &mut Dom0) -> Result<Arrived> {
        match self.reader {
            Reader::Linux(name) => {
                let (line, _) = dom0
                    .await_console(name, self.console_at, &["\"packets\":"], REPORT)
                    .context("the reader in the Linux guest (did no packet arrive?)")?;
                let report: RecvReport = parse_last_line(&line)?;
                Ok(Arrived {
                    packets: report.packets,
                    span_ns: report.span_ns,
                    lost: vec![
                        ("full socket".into(), report.socket_full),
                        ("bad datagram".into(), report.socket_errors),
                    ],
                    packets_per_container: 1.0,
                })
            }
            Reader::Sink => {
                let question =
                    format!("peer query {GUEST_IP} --port {SINK_CONTROL_PORT} --text stats --still packets");
                parse_sink(dom0.shell(&question)?.trim())
            }
        }
    }
}

/// Reads the line in which `sink` tells its counters.
fn parse_sink(line: &str) -> Result<Arrived> {
    let text = |key: &str| word(line, key).with_context(|| format!("sink's answer has no {key}: {line:?}"));
    let number = |key: &str| {
        let text = text(key)?;
        text.parse::<u64>().with_context(|| format!("sink's answer has {key}={text}"))
    };
    Ok(Arrived {
        packets: number("packets")?,
        span_ns: number("last_ns")?.saturating_sub(number("first_ns")?),
        lost: vec![
            ("guest's stack".into(), number("dropped")?),
            ("guest's driver".into(), number("dropped_by_nic")?),
        ],
        packets_per_container: text("packets_per_container")?.parse().context("packets_per_container")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_sink() {
        let line = "packets=20000 bytes=360000 tcp_bytes=0 containers=500 packets_per_container=39.97 \
                    frames=20005 dropped=3 dropped_by_nic=1 first_ns=1000 last_ns=91000";
        let arrived = parse_sink(line).unwrap();
        assert_eq!((arrived.packets, arrived.span_ns), (20_000, 90_000));
        assert_eq!(arrived.packets_per_container, 39.97);
        assert_eq!(arrived.lost, [("guest's stack".into(), 3), ("guest's driver".into(), 1)]);
        let error = parse_sink("packets=1").unwrap_err().to_string();
        assert!(error.contains("last_ns"), "{error}");
    }
}
