//! `app=sink`: takes everything that comes and counts it. The counters are printed once a second while they
//! change, and told to whoever sends a datagram to the port above: `reset` also sets them to zero. With `verify=on`, what
//! is in datagrams is compared with what `app=source` writes there.

use alloc::boxed::Box;
use core::fmt::{self, Write};

use smoltcp::socket::tcp::State;
use smoltcp::socket::udp::UdpMetadata;
use smoltcp::time::Duration;

use super::line::Line;
use super::{App, Next, Starter, source};
use crate::net::{Counters, Net, SILENT_BYTES, STREAM_BYTES, TcpHandle, UdpHandle};
use crate::settings::{Key, SettingError, Words};

pub(super) const PORT: Key =
    Key { name: "port", form: "a UDP and TCP port, 1 to 65534; the one above tells the counters" };

pub(super) const VERIFY: Key =
    Key { name: "verify", form: "on to compare every datagram with what app=source sends, or off" };

/// Connections at a time.
const CONNECTIONS: usize = 4;
const REPORT_INTERVAL_NS: u64 = 1_000_000_000;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that are answered in one turn.
const ANSWERS: usize = 8;

pub(super) fn configure(words: &Words<'_>) -> Result<Starter, SettingError> {
    let port = words.number(&PORT, 1..=65_534)?.and_then(|port| u16::try_from(port).ok()).unwrap_or(9);
    let verify = match words.get(&VERIFY) {
        None | Some("off") => false,
        Some("on") => true,
        Some(_) => return Err(words.wrong(&VERIFY)),
    };
    Ok(Box::new(move |net| {
        let (name, control) = (net.name(), port + 1);
        net.print(format_args!("sink: {name}: udp and tcp port {port}, counters on udp port {control}"));
        Box::new(Sink {
            port,
            verify,
            udp: net.open_udp(port),
            control: net.open_udp(control),
            tcp: core::array::from_fn(|_| net.open_tcp(STREAM_BYTES, SILENT_BYTES)),
            counted: Counted::default(),
            base: Base::default(),
            print_at_ns: None,
        })
    }))
}

struct Sink {
    port: u16,
    /// Whether what is in datagrams is looked at.
    verify: bool,
    udp: UdpHandle,
    control: UdpHandle,
    tcp: [TcpHandle; CONNECTIONS],
    counted: Counted,
    base: Base,
    /// When the line is printed: set by traffic, and taken by printing.
    print_at_ns: Option<u64>,
}

/// What this app took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
    /// Datagrams that are not as `app=source` sends them.
    wrong: u64,
    tcp_bytes: u64,
    first_ns: u64,
    last_ns: u64,
}

/// What the interface had counted when this app's counters were last zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Base {
    nic: Counters,
    dropped: u64,
}

impl App for Sink {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        let before = self.counted;
        self.take_datagrams(net);
        for connection in self.tcp {
            self.take_stream(net, connection);
        }
        if self.counted != before && self.print_at_ns.is_none() {
            self.print_at_ns = Some(net.now_ns() + REPORT_INTERVAL_NS);
        }
        self.answer_requests(net);
        if self.print_at_ns.is_some_and(|at| at <= net.now_ns()) {
            self.print_at_ns = None;
            self.print(net);
        }
        self.print_at_ns.map_or(Next::OnTraffic, Next::At)
    }

    fn finish(&mut self, net: &mut Net<'_>) {
        self.print(net);
    }
}

impl Sink {
    fn take_datagrams(&mut self, net: &mut Net<'_>) {
        let now_ns = net.now_ns();
        let (mut packets, mut bytes, mut wrong) = (0, 0, 0);
        let mut udp = net.udp(self.udp);
        while let Some(datagram) = udp.receive() {
            packets += 1;
            bytes += datagram.bytes.len() as u64;
            wrong += u64::from(self.verify && !source::sent(datagram.bytes));
        }
        if packets > 0 {
            self.counted.packets += packets;
            self.counted.bytes += bytes;
            self.counted.wrong += wrong;
            self.counted.saw(now_ns);
        }
    }

    fn take_stream(&mut self, net: &mut Net<'_>, connection: TcpHandle) {
        let now_ns = net.now_ns();
        let socket = net.tcp(connection);
        if !socket.is_open() {
            socket.set_keep_alive(Some(KEEP_ALIVE));
            socket.set_timeout(Some(TIMEOUT));
            // A closed socket listens on any port but 0.
            let _ = socket.listen(self.port);
            return;
        }
        let mut bytes = 0;
        while socket.can_recv() {
            let Ok(len) = socket.recv(|data| (data.len(), data.len())) else { break };
            bytes += len as u64;
        }
        if socket.state() == State::CloseWait && !socket.can_recv() {
            socket.close();
        }
        if bytes > 0 {
            self.counted.tcp_bytes += bytes;
            self.counted.saw(now_ns);
        }
    }

    /// Answers whoever asks for the counters, with a line of text.
    fn answer_requests(&mut self, net: &mut Net<'_>) {
        for _ in 0..ANSWERS {
            let mut udp = net.udp(self.control);
            let Some(request) = udp.receive() else { return };
            let (answer, reset): (UdpMetadata, bool) =
                (request.answer(), request.bytes.trim_ascii_end() == b"reset");
            if request.to.is_none() {
                continue;
            }
            let mut line = Line::default();
            // The line has room for the longest numbers.
            let _ = write!(line, "{}", self.report(net));
            // Someone who asks faster than answers leave gets fewer of them.
            let _ = net.udp(self.control).send(line.as_bytes(), answer);
            if reset {
                self.counted = Counted::default();
                self.base = Base { nic: net.counters(), dropped: net.dropped() };
            }
        }
    }

    fn print(&self, net: &mut Net<'_>) {
        let report = self.report(net);
        net.print(format_args!("sink: {report}"));
    }

    fn report(&self, net: &Net<'_>) -> Report {
        Report {
            counted: self.counted,
            nic: net.counters() - self.base.nic,
            dropped: net.dropped() - self.base.dropped,
        }
    }
}

impl Counted {
    fn saw(&mut self, now_ns: u64) {
        if self.first_ns == 0 {
            self.first_ns = now_ns;
        }
        self.last_ns = now_ns;
    }
}

/// The counters in one line of `key=value` words.
struct Report {
    counted: Counted,
    nic: Counters,
    dropped: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counted, nic, dropped } = self;
        write!(f, "packets={} bytes={} tcp_bytes={}", counted.packets, counted.bytes, counted.tcp_bytes)?;
        // A frame outside of a container is alone.
        let hundredths = match (nic.rx_containers, nic.rx_frames) {
            (0, 0) => 0,
            (0, _) => 100,
            (containers, _) => nic.rx_container_frames * 100 / containers,
        };
        write!(f, " containers={}", nic.rx_containers)?;
        write!(f, " packets_per_container={}.{:02}", hundredths / 100, hundredths % 100)?;
        write!(f, " revokes={} frames={}", nic.rx_revokes, nic.rx_frames)?;
        write!(f, " dropped={dropped} dropped_by_nic={}", nic.rx_dropped)?;
        write!(f, " first_ns={} last_ns={} wrong={}", counted.first_ns, counted.last_ns, counted.wrong)
    }
}
