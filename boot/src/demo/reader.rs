//! Asks the application in a guest what arrived: a Linux guest's reader prints a report for every
//! stream, our `sink` answers questions. Knows nothing of where packets come from.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use drayage_peer::query::word;
use drayage_peer::report::RecvReport;

use crate::agent::Process;
use crate::backend;
use crate::dom0::{Dom0, parse_last_line};

/// UDP port on which `sink` tells its counters.
const SINK_CONTROL_PORT: u16 = 10;

/// Patience with a reader's report, which comes after an idle gap.
const REPORT: Duration = Duration::from_secs(60);

/// The application that reads the packets.
#[derive(Debug, Clone)]
pub enum Reader {
    /// `peer recv` in a Linux guest of this name.
    Linux(String),
    /// `app=sink` of our guest with this address.
    Sink(String),
    /// `peer recv` in dom0 itself, printing to [`HOST_LOG`].
    Host,
    /// A counter of packets in a file of dom0's.
    Counter(String),
    /// What the daemon has sent to an uplink of this name.
    Uplink(String),
}

/// Where the reader in dom0 prints.
pub const HOST_LOG: &str = "/run/reader.log";

/// Questions before a counter that goes on counts as restless.
const PATIENCE: usize = 200;

/// A reader that was told to begin.
#[derive(Debug)]
pub struct Reading<'a> {
    reader: &'a Reader,
    /// Where it was when it began: an offset, or a count.
    at: u64,
}

/// What a counter says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Count {
    packets: u64,
    ended_ns: Option<u64>,
}

/// What a reader read.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Packets that the application read.
    pub packets: u64,
    /// From the first to the last; 0 where that is not known.
    pub span_ns: u64,
    /// When the last came, by dom0's clock, where the reader says so.
    pub ended_ns: Option<u64>,
    /// Packets lost inside the guest, by place.
    pub lost: Vec<(String, u64)>,
    /// Packets per container; 1 without containers, where each travels alone.
    pub packets_per_container: f64,
}

impl Reader {
    /// Begins to count with several at once: where all of them are asked from dom0, by one command.
    pub fn begin_all<'a>(dom0: &mut Dom0, readers: &[&'a Reader]) -> Result<Vec<Reading<'a>>> {
        match ask_all(readers, "reset") {
            Some(command) => {
                dom0.shell(&command)?;
                Ok(readers.iter().map(|reader| Reading { reader, at: 0 }).collect())
            }
            None => readers.iter().map(|reader| reader.begin(dom0)).collect(),
        }
    }

    /// Begins to count.
    pub fn begin(&self, dom0: &mut Dom0) -> Result<Reading<'_>> {
        let at = match self {
            Reader::Linux(name) => dom0.console_len(name)?,
            Reader::Sink(ip) => {
                dom0.shell(&format!("peer query {ip} --port {SINK_CONTROL_PORT} --text reset"))?;
                0
            }
            Reader::Host => file_len(dom0, HOST_LOG)?,
            Reader::Counter(_) | Reader::Uplink(_) => self.count(dom0)?.packets,
        };
        Ok(Reading { reader: self, at })
    }
}

/// Returns the command that asks several sinks one after another, if that is what all readers are.
fn ask_all(readers: &[&Reader], text: &str) -> Option<String> {
    let ask = |reader: &&Reader| match reader {
        Reader::Sink(ip) => Some(format!("peer query {ip} --port {SINK_CONTROL_PORT} --text {text}")),
        _ => None,
    };
    Some(readers.iter().map(ask).collect::<Option<Vec<_>>>()?.join(" && "))
}

/// Waits until nothing more arrives at any of several readers, and returns the counts of each.
pub fn end_all(dom0: &mut Dom0, readings: Vec<Reading<'_>>) -> Result<Vec<Arrived>> {
    let readers: Vec<&Reader> = readings.iter().map(|reading| reading.reader).collect();
    match ask_all(&readers, "stats --still packets") {
        Some(command) => dom0.shell(&command)?.lines().map(parse_sink).collect(),
        None => readings.into_iter().map(|reading| reading.end(dom0)).collect(),
    }
}

impl Reading<'_> {
    /// Waits until nothing more arrives and returns the counts.
    pub fn end(self, dom0: &mut Dom0) -> Result<Arrived> {
        match self.reader {
            Reader::Linux(name) => {
                let (line, _) = dom0
                    .await_console(name, self.at, &["\"packets\":"], REPORT)
                    .context("the reader in the Linux guest (did no packet arrive?)")?;
                of_report(&line)
            }
            Reader::Host => {
                let found = dom0.agent().await_line(HOST_LOG, self.at, &["\"packets\":"], REPORT)?;
                let (line, _) = found.context("the reader in dom0 (did no packet arrive?)")?;
                of_report(&line)
            }
            Reader::Counter(_) | Reader::Uplink(_) => {
                let Count { packets, ended_ns } = self.reader.settled(dom0)?;
                let packets = packets - self.at;
                Ok(Arrived { packets, ended_ns, packets_per_container: 1.0, ..Arrived::default() })
            }
            Reader::Sink(ip) => {
                let question =
                    format!("peer query {ip} --port {SINK_CONTROL_PORT} --text stats --still packets");
                parse_sink(dom0.shell(&question)?.trim())
            }
        }
    }
}

impl Reader {
    /// Starts the reader in dom0, if this is that.
    pub fn start(&self, dom0: &mut Dom0) -> Result<Option<Process>> {
        match self {
            Reader::Host => dom0.spawn(&format!("exec peer recv > {HOST_LOG}")).map(Some),
            _ => Ok(None),
        }
    }

    fn count(&self, dom0: &mut Dom0) -> Result<Count> {
        match self {
            Reader::Counter(file) => {
                let text = dom0.shell(&format!("cat {file}"))?;
                let packets = text.trim().parse().with_context(|| format!("{file} has {text:?}"))?;
                Ok(Count { packets, ended_ns: None })
            }
            Reader::Uplink(name) => {
                let stats = backend::stats_of(dom0, "uplinks port sent sent_last_ns")?;
                let uplinks = stats["uplinks"].as_array().context("drayage stats has no uplinks")?;
                let uplink = uplinks.iter().find(|uplink| uplink["port"] == **name);
                let uplink = uplink.with_context(|| format!("drayage stats has no uplink {name:?}"))?;
                let packets = uplink["sent"].as_u64().context("drayage stats has no count of sent frames")?;
                Ok(Count { packets, ended_ns: uplink["sent_last_ns"].as_u64() })
            }
            _ => bail!("{self:?} is no counter"),
        }
    }

    /// Returns a counter once it stands still.
    fn settled(&self, dom0: &mut Dom0) -> Result<Count> {
        let mut last = self.count(dom0)?;
        for _ in 0..PATIENCE {
            dom0.shell("usleep 20000")?;
            let count = self.count(dom0)?;
            if count == last {
                return Ok(count);
            }
            last = count;
        }
        bail!("{self:?} does not stand still")
    }
}

fn file_len(dom0: &mut Dom0, path: &str) -> Result<u64> {
    let text = dom0.shell(&format!("stat -c %s {path}"))?;
    text.trim().parse().with_context(|| format!("length of {path}: {text:?}"))
}

/// Reads what `peer recv` prints.
fn of_report(line: &str) -> Result<Arrived> {
    let report: RecvReport = parse_last_line(line)?;
    Ok(Arrived {
        packets: report.packets,
        span_ns: report.span_ns,
        ended_ns: None,
        lost: vec![("full socket".into(), report.socket_full), ("bad datagram".into(), report.socket_errors)],
        packets_per_container: 1.0,
    })
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
        ended_ns: None,
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
    fn sinks_are_asked_by_one_command() {
        let [one, two] = ["10.0.0.2", "10.0.1.2"].map(|ip| Reader::Sink(ip.into()));
        assert_eq!(
            ask_all(&[&one, &two], "reset").unwrap(),
            "peer query 10.0.0.2 --port 10 --text reset && peer query 10.0.1.2 --port 10 --text reset"
        );
        assert_eq!(ask_all(&[&one, &Reader::Host], "reset"), None);
    }

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
