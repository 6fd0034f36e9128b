//! `app=source`: sends datagrams of one size to one address, at a rate or as fast as they leave. Each starts
//! with its number, so that a receiver can tell what it missed, and is filled with that number's last byte. What to send is said on the command line, or, with
//! `control=`, by datagrams: `send to=… size=… count=… rate=…` begins a stream, anything else asks how far it is. Who
//! connects to the same port by TCP is sent bytes for as long as he reads.

use alloc::boxed::Box;
use core::fmt::{self, Write};
use core::net::SocketAddr;

use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::line::Line;
use super::{App, Next, Starter};
use crate::net::{Net, SILENT_BYTES, STREAM_BYTES, TcpHandle, Udp, UdpHandle};
use crate::settings::{Key, SettingError, Words};

pub(super) const TO: Key = Key { name: "to", form: "ADDRESS:PORT, or [ADDRESS]:PORT for IPv6" };
pub(super) const SIZE: Key = Key {
    name: "size",
    form: "the bytes of an Ethernet frame without its checksum, 60 to 1514 (70 to 1514 for IPv6)",
};
pub(super) const RATE: Key =
    Key { name: "rate", form: "packets per second, up to 100000000; 0 for no limit" };
pub(super) const COUNT: Key = Key { name: "count", form: "a number of packets; 0 for no end" };

pub(super) const CONTROL: Key = Key {
    name: "control",
    form: "a UDP and TCP port that takes orders, in place of to, size, rate and count",
};

/// The port that datagrams come from.
const LOCAL_PORT: u16 = 4000;
const ETHERNET_AND_UDP_BYTES: usize = 14 + 8;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// A number is 8 bytes.
const NUMBER_BYTES: usize = 8;
/// How far apart two wake-ups are at least: at high rates every one sends several datagrams.
const TICK_NS: u64 = 200_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Requests that are answered in one turn.
const ANSWERS: usize = 8;
/// A reader that does not answer for so long loses its connection.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn configure(words: &Words<'_>) -> Result<Starter, SettingError> {
    if let Some(port) = words.port(&CONTROL)? {
        for key in [&TO, &SIZE, &RATE, &COUNT] {
            if words.get(key).is_some() {
                return Err(words.wrong_with(key, "nothing, because control= takes orders"));
            }
        }
        return Ok(Box::new(move |net| {
            let name = net.name();
            net.print(format_args!("source: {name}: orders on udp port {port}"));
            let udp = net.open_udp(LOCAL_PORT);
            let stream = net.open_tcp(SILENT_BYTES, STREAM_BYTES);
            let control = Some(Control { port, orders: net.open_udp(port), stream });
            Box::new(Source { plan: Plan::NONE, udp, control, sent: 0, state: State::Sent { in_ns: 0 } })
        }));
    }
    let to =
        words.endpoint(&TO)?.ok_or(SettingError::Missing { app: "source", key: TO.name, form: TO.form })?;
    let headers = ETHERNET_AND_UDP_BYTES + if to.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
    let least = (headers + NUMBER_BYTES).max(60);
    let size = words.number(&SIZE, least as u64..=1514)?.map_or(least, |size| size as usize);
    let plan = Plan {
        to: to.into(),
        payload_bytes: size - headers,
        rate: words.number(&RATE, 0..=100_000_000)?.unwrap_or(1000),
        count: words.number(&COUNT, 0..=u64::MAX)?.unwrap_or(0),
    };
    Ok(Box::new(move |net| {
        announce(net, to, size, plan);
        Box::new(Source {
            plan,
            udp: net.open_udp(LOCAL_PORT),
            control: None,
            sent: 0,
            state: State::Waiting,
        })
    }))
}

fn announce(net: &mut Net<'_>, to: SocketAddr, size: usize, plan: Plan) {
    let name = net.name();
    net.print(format_args!(
        "source: {name}: frames of {size} bytes to {to}, rate={} count={}",
        plan.rate, plan.count
    ));
}

#[derive(Clone, Copy)]
struct Plan {
    to: IpEndpoint,
    payload_bytes: usize,
    rate: u64,
    count: u64,
}

impl Plan {
    const NONE: Self = Self {
        to: IpEndpoint { addr: IpAddress::v4(0, 0, 0, 0), port: 0 },
        payload_bytes: 0,
        rate: 0,
        count: 0,
    };

    /// Reads an order's words; `None` when one of them makes no sense, or there is no destination.
    fn ordered(words: &str) -> Option<Self> {
        let (mut to, mut size, mut plan) = (None, None, Self { count: 1, ..Self::NONE });
        for word in words.split_ascii_whitespace() {
            let (key, value) = word.split_once('=')?;
            match key {
                "to" => to = Some(value.parse::<SocketAddr>().ok().filter(|to| to.port() != 0)?),
                "size" => size = Some(value.parse::<usize>().ok().filter(|size| *size <= 1514)?),
                "rate" => plan.rate = value.parse().ok().filter(|rate| *rate <= 100_000_000)?,
                "count" => plan.count = value.parse().ok()?,
                _ => return None,
            }
        }
        let to = to?;
        let headers = ETHERNET_AND_UDP_BYTES + if to.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        plan.to = to.into();
        plan.payload_bytes =
            size.unwrap_or(60).checked_sub(headers).filter(|bytes| *bytes >= NUMBER_BYTES)?;
        Some(plan)
    }
}

struct Source {
    plan: Plan,
    udp: UdpHandle,
    /// Where orders come from.
    control: Option<Control>,
    sent: u64,
    state: State,
}

#[derive(Clone, Copy)]
struct Control {
    port: u16,
    orders: UdpHandle,
    stream: TcpHandle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// For an address of our own.
    Waiting,
    /// The first datagram is queued; it leaves once the neighbour is known.
    Asking,
    /// Since this time.
    Sending { since_ns: u64 },
    /// All are sent, and it took this long.
    Sent { in_ns: u64 },
}

impl App for Source {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        let now_ns = net.now_ns();
        // Answers, if any come, would fill the socket and be counted as lost.
        while net.udp(self.udp).receive().is_some() {}
        self.take_orders(net);
        match self.state {
            State::Waiting => {
                let has_address = net.source_address(self.plan.to.addr).is_some();
                if has_address && send(&mut net.udp(self.udp), self.sent, self.plan) {
                    self.sent += 1;
                    self.state = State::Asking;
                }
                Next::OnTraffic
            }
            State::Asking => {
                if net.udp(self.udp).is_flushed() {
                    self.state = State::Sending { since_ns: now_ns };
                    return self.send_due(net, now_ns);
                }
                Next::OnTraffic
            }
            State::Sending { since_ns } => self.send_due(net, since_ns),
            State::Sent { .. } => self.after_all(),
        }
    }

    fn finish(&mut self, net: &mut Net<'_>) {
        let elapsed_ns = match self.state {
            State::Waiting | State::Asking => 0,
            State::Sending { since_ns } => net.now_ns() - since_ns,
            State::Sent { in_ns } => in_ns,
        };
        let rate = u128::from(self.sent) * u128::from(SECOND_NS) / u128::from(elapsed_ns.max(1));
        let rate = if elapsed_ns == 0 { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) };
        net.print(format_args!(
            "source: packets={} bytes={} elapsed_ns={elapsed_ns} pps={rate}",
            self.sent,
            self.sent * self.plan.payload_bytes as u64
        ));
        if let State::Waiting | State::Asking = self.state {
            net.print(format_args!("source: {} was not reached", self.plan.to));
        }
    }
}

impl Source {
    /// Returns what follows a stream's end: the guest's, or another order.
    fn after_all(&self) -> Next {
        if self.control.is_some() { Next::OnTraffic } else { Next::Done }
    }

    fn take_orders(&mut self, net: &mut Net<'_>) {
        let Some(control) = self.control else { return };
        fill_stream(net, control);
        for _ in 0..ANSWERS {
            let mut udp = net.udp(control.orders);
            let Some(request) = udp.receive() else { return };
            if request.to.is_none() {
                continue;
            }
            let answer = request.answer();
            let order = core::str::from_utf8(request.bytes).unwrap_or_default().trim_ascii();
            let order = order.strip_prefix("send ").map(Plan::ordered);
            let mut line = Line::default();
            // The line has room for the longest numbers.
            let _ = match order {
                Some(None) => write!(line, "not understood"),
                // A stream under way is not ended by another one's order, which may be a repetition of its own.
                Some(Some(_)) if !matches!(self.state, State::Sent { .. }) => write!(line, "busy"),
                Some(Some(plan)) => {
                    (self.plan, self.sent, self.state) = (plan, 0, State::Waiting);
                    write!(line, "started")
                }
                None => write!(line, "{}", Progress { sent: self.sent, state: self.state }),
            };
            // Someone who asks faster than answers leave gets fewer of them.
            let _ = net.udp(control.orders).send(line.as_bytes(), answer);
        }
    }

    fn send_due(&mut self, net: &mut Net<'_>, since_ns: u64) -> Next {
        let elapsed_ns = net.now_ns() - since_ns;
        let due = match self.plan.rate {
            0 => u64::MAX,
            rate => self.due_by(elapsed_ns, rate),
        };
        let last = if self.plan.count == 0 { u64::MAX } else { self.plan.count };
        let mut udp = net.udp(self.udp);
        while self.sent < due.min(last) {
            if !send(&mut udp, self.sent, self.plan) {
                // The rest follows when some have left.
                return Next::OnTraffic;
            }
            self.sent += 1;
        }
        if self.sent >= last {
            // Sent is what the other end has taken, not what lies in a ring.
            if !udp.is_flushed() || !net.is_drained() {
                return Next::OnTraffic;
            }
            self.state = State::Sent { in_ns: elapsed_ns };
            return self.after_all();
        }
        let next_ns = u128::from(self.sent) * u128::from(SECOND_NS) / u128::from(self.plan.rate.max(1));
        let next_ns = u64::try_from(next_ns).unwrap_or(u64::MAX).max(elapsed_ns + TICK_NS);
        Next::At(since_ns.saturating_add(next_ns))
    }

    /// Returns how many datagrams should have been sent by a time. The first is due at once.
    fn due_by(&self, elapsed_ns: u64, rate: u64) -> u64 {
        let due = u128::from(elapsed_ns) * u128::from(rate) / u128::from(SECOND_NS);
        u64::try_from(due).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Sends a datagram with its number; tells whether there was room.
fn send(udp: &mut Udp<'_>, number: u64, Plan { to, payload_bytes, .. }: Plan) -> bool {
    let fill = |bytes: &mut [u8]| {
        let (head, tail) = bytes.split_at_mut(NUMBER_BYTES.min(bytes.len()));
        head.copy_from_slice(&number.to_be_bytes()[..head.len()]);
        tail.fill(number as u8);
    };
    udp.send_with(payload_bytes, to, fill).is_ok()
}

/// Returns whether a datagram's bytes are as [`send`] writes them, whatever its number.
pub(super) fn sent(bytes: &[u8]) -> bool {
    let Some((number, tail)) = bytes.split_first_chunk::<NUMBER_BYTES>() else { return false };
    tail.iter().all(|byte| *byte == number[NUMBER_BYTES - 1])
}

/// Sends as many bytes as there is room for to who has connected.
fn fill_stream(net: &mut Net<'_>, control: Control) {
    let socket = net.tcp(control.stream);
    if !socket.is_open() {
        socket.set_timeout(Some(STREAM_TIMEOUT));
        // A closed socket listens on any port but 0.
        let _ = socket.listen(control.port);
        return;
    }
    while socket.can_send() {
        let filled = socket.send(|room| {
            room.fill(b'Z');
            (room.len(), ())
        });
        if filled.is_err() {
            return;
        }
    }
    if socket.state() == tcp::State::CloseWait {
        // He has closed, and wants no more.
        socket.abort();
    }
}

/// How far a stream is, in one line of `key=value` words.
struct Progress {
    sent: u64,
    state: State,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, in_ns) = match self.state {
            State::Sent { in_ns } => (1, in_ns),
            _ => (0, 0),
        };
        write!(f, "sent={} done={done} elapsed_ns={in_ns}", self.sent)
    }
}
