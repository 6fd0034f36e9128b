//! An ICMP and ICMPv6 echo client that compares what comes back. Knows nothing of who answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::echo::fill_pseudo_random;
use crate::frame::icmp_echo;
use crate::report::PingReport;
use crate::sys::{self, Readiness};

/// Bytes of an IPv4 header without options.
const IP_HEADER: usize = 20;

/// Whom to ask, and how often.
#[derive(Debug, Clone)]
pub struct PingOptions {
    /// Address.
    pub to: IpAddr,
    /// Requests to send.
    pub count: u64,
    /// Payload of each.
    pub payload_bytes: usize,
    /// Wait for an answer before the next request is sent.
    pub interval_ms: u64,
    /// When to stop.
    pub stop: Stop,
    /// When the next request is sent.
    pub pace: Pace,
}

/// When a ping sends its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Once the last one is answered, or its time is up.
    AtOnce,
    /// When its time is up.
    Spaced,
}

/// When a ping stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After all requests.
    AfterAll,
    /// At the first answer.
    AtFirstAnswer,
}

/// Sends echo requests, one after another.
pub fn ping(options: &PingOptions) -> Result<PingReport> {
    let (domain, protocol) = match options.to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .context("opening a raw ICMP socket (root is needed)")?;
    if options.to.is_ipv6() {
        // What is read has no header that says whom it is from.
        let to = SocketAddr::new(options.to, 0);
        socket.connect(&to.into()).with_context(|| format!("looking for a way to {}", options.to))?;
    }
    let mut pinger = Pinger { socket, to: options.to, identifier: std::process::id() as u16 };
    let mut report = PingReport {
        sent: 0,
        answered: 0,
        mismatched: 0,
        first_answer_ns: None,
        min_rtt_ns: None,
        max_rtt_ns: None,
        median_rtt_ns: None,
        p99_rtt_ns: None,
        jitter_ns: None,
    };
    let mut rtts_ns = Vec::new();
    let started_ns = sys::monotonic_ns();
    for at in 0..options.count {
        let mut payload = vec![0; options.payload_bytes];
        fill_pseudo_random(&mut payload, at + 1);
        let asked_ns = sys::monotonic_ns();
        report.sent += 1;
        let answer = pinger.ask(at as u16, &payload, asked_ns + options.interval_ms * 1_000_000)?;
        let Some(same) = answer else { continue };
        let now_ns = sys::monotonic_ns();
        let rtt_ns = now_ns - asked_ns;
        report.answered += 1;
        report.mismatched += u64::from(same == Payload::Differs);
        report.first_answer_ns.get_or_insert(now_ns - started_ns);
        rtts_ns.push(rtt_ns);
        if options.stop == Stop::AtFirstAnswer {
            break;
        }
        if options.pace == Pace::Spaced {
            sys::sleep_until(asked_ns + options.interval_ms * 1_000_000);
        }
    }
    sum_up(&rtts_ns, &mut report);
    Ok(report)
}

/// Notes what round trips come to, in the order in which they were made.
fn sum_up(rtts_ns: &[u64], report: &mut PingReport) {
    let differences: Vec<u64> = rtts_ns.windows(2).map(|pair| pair[0].abs_diff(pair[1])).collect();
    let mut sorted = rtts_ns.to_vec();
    sorted.sort_unstable();
    let rank =
        |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1))).copied();
    (report.min_rtt_ns, report.max_rtt_ns) = (sorted.first().copied(), sorted.last().copied());
    (report.median_rtt_ns, report.p99_rtt_ns) = (rank(50), rank(99));
    report.jitter_ns =
        (!sorted.is_empty()).then(|| differences.iter().sum::<u64>() / (differences.len() as u64).max(1));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Same,
    Differs,
}

struct Pinger {
    socket: Socket,
    to: IpAddr,
    identifier: u16,
}

impl Pinger {
    /// Sends one request and waits for its answer; `None` when there is none in time.
    fn ask(&mut self, sequence: u16, payload: &[u8], deadline_ns: u64) -> Result<Option<Payload>> {
        let (request, _) = self.kinds();
        let message = icmp_echo(request, self.identifier, sequence, payload);
        let sent = match self.to {
            IpAddr::V4(_) => self.socket.send_to(&message, &SocketAddr::new(self.to, 0).into()),
            IpAddr::V6(_) => self.socket.send(&message),
        };
        match sent {
            Ok(_) => {}
            // While a guest boots its address does not answer ARP; that is no answer, not an error.
            Err(error) if is_unreachable(&error) => {
                sys::sleep_until(deadline_ns);
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("pinging {}", self.to)),
        }
        loop {
            let left = Duration::from_nanos(deadline_ns.saturating_sub(sys::monotonic_ns()));
            if sys::wait_readable(&self.socket, left)? == Readiness::TimedOut {
                return Ok(None);
            }
            if let Some(answer) = self.read_answer(sequence, payload)? {
                return Ok(Some(answer));
            }
        }
    }

    /// Returns the types of a request and of its answer (RFC 792, RFC 4443).
    fn kinds(&self) -> (u8, u8) {
        if self.to.is_ipv4() { (8, 0) } else { (128, 129) }
    }

    fn read_answer(&mut self, sequence: u16, payload: &[u8]) -> Result<Option<Payload>> {
        let mut packet = vec![0; IP_HEADER + 8 + payload.len() + 64];
        let len = match io::Read::read(&mut self.socket, &mut packet) {
            // What became of a request to an address that does not answer yet.
            Err(error) if is_unreachable(&error) => return Ok(None),
            result => result.context("reading ICMP")?,
        };
        let (from, message) = match self.to {
            IpAddr::V4(to) => (packet[12..16] == to.octets(), packet[..len].get(IP_HEADER..)),
            // Without its header, and of the address that we are connected to.
            IpAddr::V6(_) => (true, Some(&packet[..len])),
        };
        let Some(message) = message else { return Ok(None) };
        let (_, reply) = self.kinds();
        let mut ours = icmp_echo(reply, self.identifier, sequence, payload);
        if !from || message.len() < 8 || message[..2] != ours[..2] || message[4..8] != ours[4..8] {
            return Ok(None);
        }
        if self.to.is_ipv6() {
            // The checksum also covers addresses, and Linux has verified it.
            ours[2..4].copy_from_slice(&message[2..4]);
        }
        Ok(Some(if message == ours { Payload::Same } else { Payload::Differs }))
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_summed_up() {
        let mut report = PingReport {
            sent: 0,
            answered: 0,
            mismatched: 0,
            first_answer_ns: None,
            min_rtt_ns: None,
            max_rtt_ns: None,
            median_rtt_ns: None,
            p99_rtt_ns: None,
            jitter_ns: None,
        };
        sum_up(&[], &mut report);
        assert_eq!((report.median_rtt_ns, report.jitter_ns), (None, None));
        sum_up(&[10, 30, 20, 40], &mut report);
        assert_eq!((report.min_rtt_ns, report.max_rtt_ns), (Some(10), Some(40)));
        assert_eq!((report.median_rtt_ns, report.p99_rtt_ns), (Some(30), Some(40)));
        assert_eq!(report.jitter_ns, Some((20 + 10 + 20) / 3));
    }
}
