//! A counting UDP reader: `recvmmsg`, a report for every stream. Knows nothing of who sends.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};

use crate::frame::{MAX_FRAME, sequence_of};
use crate::report::RecvReport;
use crate::sys;

/// Datagrams taken with one system call.
const BATCH: usize = 64;

/// Socket buffer: room for a burst while the reader does not run.
const BUFFER_BYTES: usize = 8 << 20;

/// What to read, and when a stream has ended.
#[derive(Debug, Clone)]
pub struct RecvOptions {
    /// UDP port.
    pub port: u16,
    /// Datagrams after which a stream has ended.
    pub count: Option<u64>,
    /// Silence after which a stream has ended.
    pub idle_ms: u64,
    /// Longest wait for a stream's first datagram; for ever when absent.
    pub timeout_ms: Option<u64>,
    /// A multicast group to join, and the device on which.
    pub join: Option<(Ipv4Addr, String)>,
}

/// A bound socket whose streams are counted one after another.
#[derive(Debug)]
pub struct Receiver {
    socket: Socket,
    options: RecvOptions,
    buffers: Vec<Vec<u8>>,
    lengths: Vec<usize>,
}

impl Receiver {
    /// Binds the port.
    pub fn bind(options: RecvOptions) -> Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).context("opening a UDP socket")?;
        socket.set_only_v6(false)?;
        sys::force_receive_buffer(&socket, BUFFER_BYTES)
            .or_else(|_| socket.set_recv_buffer_size(BUFFER_BYTES))
            .context("receive buffer")?;
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, options.port));
        socket.bind(&address.into()).with_context(|| format!("binding UDP port {}", options.port))?;
        if let Some((group, device)) = &options.join {
            let index = InterfaceIndexOrAddress::Index(sys::device_index(device)?);
            socket
                .join_multicast_v4_n(group, &index)
                .with_context(|| format!("joining {group} on {device}"))?;
        }
        let buffers = vec![vec![0; MAX_FRAME]; BATCH];
        Ok(Receiver { socket, options, buffers, lengths: Vec::with_capacity(BATCH) })
    }

    /// Counts one stream: waits for its first datagram, then until its end.
    pub fn stream(&mut self) -> Result<RecvReport> {
        let dropped_before = kernel_drops();
        let mut report = RecvReport {
            packets: 0,
            bytes: 0,
            span_ns: 0,
            batches: 0,
            out_of_order: 0,
            highest: 0,
            socket_full: 0,
            socket_errors: 0,
        };
        let mut first_ns = 0;
        self.socket.set_read_timeout(self.options.timeout_ms.map(Duration::from_millis))?;
        while self.options.count.is_none_or(|count| report.packets < count) {
            match sys::receive_many(&self.socket, &mut self.buffers, &mut self.lengths) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading datagrams"),
            }
            let now_ns = sys::monotonic_ns();
            if report.packets == 0 {
                first_ns = now_ns;
                self.socket.set_read_timeout(Some(Duration::from_millis(self.options.idle_ms)))?;
            }
            report.span_ns = now_ns - first_ns;
            report.batches += 1;
            for (buffer, len) in self.buffers.iter().zip(&self.lengths) {
                note(&mut report, &buffer[..*len]);
            }
        }
        let dropped = kernel_drops();
        report.socket_full = dropped.full - dropped_before.full;
        report.socket_errors = dropped.errors - dropped_before.errors;
        Ok(report)
    }
}

/// Counts streams and prints a line of JSON for each; only the first when a count was given.
pub fn recv(options: RecvOptions, output: &mut impl Write) -> Result<()> {
    let only_one = options.count.is_some() || options.timeout_ms.is_some();
    let mut receiver = Receiver::bind(options)?;
    loop {
        let report = receiver.stream()?;
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
        output.flush()?;
        if only_one {
            return Ok(());
        }
    }
}

fn note(report: &mut RecvReport, payload: &[u8]) {
    report.packets += 1;
    report.bytes += payload.len() as u64;
    if let Some(sequence) = sequence_of(payload) {
        if sequence < report.highest {
            report.out_of_order += 1;
        }
        report.highest = report.highest.max(sequence.saturating_add(1));
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct KernelDrops {
    full: u64,
    errors: u64,
}

fn kernel_drops() -> KernelDrops {
    std::fs::read_to_string("/proc/net/snmp").map(|text| parse_drops(&text)).unwrap_or_default()
}

/// Reads the UDP line of /proc/net/snmp, whose columns are named by the line before it.
fn parse_drops(snmp: &str) -> KernelDrops {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return KernelDrops::default() };
    let value = |wanted: &str| {
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok()).unwrap_or(0u64)
    };
    let full = value("RcvbufErrors");
    // InErrors includes those for a full buffer.
    KernelDrops { full, errors: value("InErrors").saturating_sub(full) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_by_column_name() {
        let snmp = "Ip: A B\nIp: 1 2\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\n\
                    Udp: 100 3 9 80 7\nUdpLite: InDatagrams\nUdpLite: 5\n";
        assert_eq!(parse_drops(snmp), KernelDrops { full: 7, errors: 2 });
        assert_eq!(parse_drops(""), KernelDrops::default());
    }

    #[test]
    fn a_stream_over_loopback_is_counted_to_the_byte() {
        let options = RecvOptions { port: 0, count: None, idle_ms: 100, timeout_ms: Some(5000), join: None };
        let mut receiver = Receiver::bind(options).unwrap();
        let to = receiver.socket.local_addr().unwrap().as_socket().unwrap().port();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for sequence in [0u64, 1, 3, 2, 4] {
            sender.send_to(&[&sequence.to_be_bytes()[..], &[1, 2]].concat(), ("127.0.0.1", to)).unwrap();
        }
        let report = receiver.stream().unwrap();
        assert_eq!((report.packets, report.bytes), (5, 50));
        assert_eq!((report.highest, report.out_of_order), (5, 1));
    }
}
