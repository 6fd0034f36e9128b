//! The short way of a datagram that an app sends: past the stack, which has decided before where such a one goes. It
//! knows when the stack must be asked, and how much an app may send at once; not what a frame looks like.

use alloc::vec::Vec;

use drayage_netfront::datagram::{Flow, Flows, HEAD_BYTES, Template};
use smoltcp::iface::Interface;
use smoltcp::socket::udp;
use smoltcp::wire::IpAddress;

use super::nic::Nic;
use super::{UDP_TX_BYTES, UDP_TX_DATAGRAMS};

/// A card, as far as the short way needs it.
pub(super) trait Card {
    /// See [`Nic::send_datagram`].
    fn send(&mut self, template: &mut Template, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool;

    /// See [`Nic::drain`].
    fn drain(&mut self) -> bool;
}

impl<N: Nic> Card for N {
    fn send(&mut self, template: &mut Template, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        self.send_datagram(template, bytes, fill)
    }

    fn drain(&mut self) -> bool {
        Nic::drain(self)
    }
}

/// The short way out of one interface.
#[derive(Debug, Default)]
pub(super) struct Short {
    pub(super) flows: Flows,
    /// The largest frame.
    frame_bytes: usize,
    /// What the time is in this turn.
    pub(super) now_ns: u64,
    /// What an app may send before the stack has its turn: as much as a socket holds.
    left_datagrams: usize,
    left_bytes: usize,
    /// Datagrams sent in this turn.
    pub(super) sent: usize,
    /// Ports of sockets in which an empty datagram was queued last: their queue looks empty, and is not.
    behind: Vec<u16>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// It is sent.
    Sent,
    /// There is room neither in the card nor for more in this call.
    Full(Why),
    /// The stack is to send it.
    Not,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The card has none; an event tells when it has.
    Card,
    /// The app has sent as much as it may at once.
    Turn,
}

impl Short {
    /// Begins a turn.
    pub(super) fn begin(&mut self, now_ns: u64) {
        (self.now_ns, self.sent) = (now_ns, 0);
    }

    /// Lets an app send.
    pub(super) fn refill(&mut self) {
        (self.left_datagrams, self.left_bytes) = (UDP_TX_DATAGRAMS, UDP_TX_BYTES);
    }

    /// Begins anew on a card, whose frames may have another length.
    pub(super) fn reset(&mut self, frame_bytes: usize) {
        self.flows.forget();
        self.frame_bytes = frame_bytes;
    }

    /// Makes room for what is to be known of so many sockets.
    pub(super) fn expect_sockets(&mut self, sockets: usize) {
        self.behind.reserve(sockets);
    }

    /// Sends a datagram that `fill` writes, if it is one of a flow that is known, and nothing waits in front of it.
    pub(super) fn send(
        &mut self,
        card: &mut dyn Card,
        socket: &udp::Socket<'_>,
        bytes: usize,
        to: &udp::UdpMetadata,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Went {
        let Some(flow) = flow(socket, to) else { return Went::Not };
        let is_queued =
            socket.send_queue() > 0 || !self.behind.is_empty() && self.behind.contains(&flow.from_port);
        if is_queued || bytes + HEAD_BYTES > self.frame_bytes {
            return Went::Not;
        }
        let Some(template) = self.flows.find(flow, self.now_ns) else { return Went::Not };
        if self.left_datagrams == 0 || self.left_bytes < bytes {
            return Went::Full(Why::Turn);
        }
        if !card.send(template, bytes, fill) {
            return Went::Full(Why::Card);
        }
        self.left_datagrams -= 1;
        self.left_bytes -= bytes;
        self.sent += 1;
        Went::Sent
    }

    /// Takes note of a datagram that was queued for the stack: what it makes of it is good for the next ones.
    pub(super) fn queued(
        &mut self,
        interface: &Interface,
        socket: &udp::Socket<'_>,
        bytes: usize,
        to: &udp::UdpMetadata,
    ) {
        let port = socket.endpoint().port;
        match (bytes, self.behind.iter().position(|other| *other == port)) {
            (0, None) => self.behind.push(port),
            (1.., Some(at)) => _ = self.behind.swap_remove(at),
            _ => {}
        }
        let Some(flow) = flow(socket, to).filter(|_| bytes + HEAD_BYTES <= self.frame_bytes) else { return };
        let source = to.local_address.or_else(|| interface.get_source_address(&to.endpoint.addr));
        if let Some(IpAddress::Ipv4(source)) = source {
            self.flows.await_frame(flow, source.octets());
        }
    }
}

/// Returns the flow of a datagram over IPv4.
fn flow(socket: &udp::Socket<'_>, to: &udp::UdpMetadata) -> Option<Flow> {
    let IpAddress::Ipv4(addr) = to.endpoint.addr else { return None };
    let from = match to.local_address {
        Some(IpAddress::Ipv4(from)) => from.octets(),
        Some(IpAddress::Ipv6(_)) => return None,
        None => [0; 4],
    };
    Some(Flow { from, to: addr.octets(), from_port: socket.endpoint().port, to_port: to.endpoint.port })
}
