//! What an app sees of the network: sockets, the time, the console. It knows nothing of NICs but their
//! counters.

use alloc::vec;
use core::fmt;

use drayage_netfront::inbox::{Inbox, Inboxes};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{IpAddress, IpEndpoint, Ipv4Address};

use super::egress::{Card, Went, Why};
use super::nic::Counters;
use super::transit::gateways;
use super::watch::{Transmit, Watch};
use super::{BATCH_FRAMES, UDP_RX_BYTES, UDP_SHORT_BYTES, UDP_TX_BYTES, UDP_TX_DATAGRAMS};
use crate::forward::Routed;

/// A UDP socket of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHandle {
    socket: SocketHandle,
    /// The number of its queue past the stack, if it has one.
    inbox: Option<usize>,
}

/// A TCP socket of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHandle(SocketHandle);

/// One interface, for the length of a call.
pub struct Net<'a> {
    pub(super) name: &'a str,
    pub(super) now_ns: u64,
    pub(super) counters: Counters,
    pub(super) routed: Routed,
    pub(super) interface: &'a mut Interface,
    pub(super) sockets: &'a mut SocketSet<'static>,
    pub(super) watch: &'a mut Watch,
    pub(super) inboxes: &'a mut Inboxes,
    pub(super) console: &'a mut dyn fmt::Write,
    /// The card, while it can be sent by.
    pub(super) card: Option<&'a mut dyn Card>,
}

impl<'a> Net<'a> {
    /// Opens a UDP socket on a port, for all addresses of the interface. Its receive buffer holds more than one
    /// batch: an app that empties it whenever it is called loses nothing. Allocates: not for the data path.
    ///
    /// A port that is open already, or 0, gives a socket that receives nothing.
    pub fn open_udp(&mut self, port: u16) -> UdpHandle {
        // Twice the batch, because smoltcp spends an entry of its own where the buffer wraps.
        let receive =
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 2 * BATCH_FRAMES], vec![0; UDP_RX_BYTES]);
        let send =
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_TX_DATAGRAMS], vec![0; UDP_TX_BYTES]);
        let mut socket = udp::Socket::new(receive, send);
        let mut inbox = None;
        if !self.watch.ports.contains(&port) && socket.bind(port).is_ok() {
            self.watch.ports.push(port);
            inbox = self.inboxes.open(port, UDP_SHORT_BYTES);
            self.watch.short.expect_sockets(self.watch.ports.len());
        }
        UdpHandle { socket: self.sockets.add(socket), inbox }
    }

    /// Opens a TCP socket with buffers of so many bytes, not yet connected or listening. Allocates: not for the data
    /// path.
    pub fn open_tcp(&mut self, receive_bytes: usize, send_bytes: usize) -> TcpHandle {
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        TcpHandle(self.sockets.add(tcp::Socket::new(buffer(receive_bytes), buffer(send_bytes))))
    }

    /// Tells whether the other end has taken everything that was sent by the interface; where it has not, the app is
    /// called when it has.
    pub fn is_drained(&mut self) -> bool {
        self.card.as_mut().is_none_or(|card| card.drain())
    }

    /// Returns a UDP socket.
    pub fn udp(&mut self, handle: UdpHandle) -> Udp<'_> {
        let card: Option<&mut dyn Card> = match &mut self.card {
            Some(card) => Some(&mut **card),
            None => None,
        };
        Udp {
            socket: self.sockets.get_mut(handle.socket),
            inbox: handle.inbox.and_then(|inbox| self.inboxes.get(inbox)),
            watch: self.watch,
            interface: self.interface,
            card,
        }
    }

    /// Returns a TCP socket.
    pub fn tcp(&mut self, handle: TcpHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle.0)
    }

    /// Connects a TCP socket.
    ///
    /// # Errors
    /// The socket is open, or an address or port is 0.
    pub fn connect(
        &mut self,
        handle: TcpHandle,
        to: IpEndpoint,
        local_port: u16,
    ) -> Result<(), tcp::ConnectError> {
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(handle.0);
        socket.connect(self.interface.context(), to, local_port)
    }

    /// Returns the time in nanoseconds since the machine's start.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Returns an address of the interface from which a packet to `destination` would be sent.
    pub fn source_address(&self, destination: IpAddress) -> Option<IpAddress> {
        let source = self.interface.get_source_address(&destination)?;
        // Without any IPv6 address smoltcp answers with the loopback one.
        self.interface.has_ip_addr(source).then_some(source)
    }

    /// Returns what the interface has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns what became of the packets for others that came in on the interface, in a router.
    pub fn routed(&self) -> Routed {
        self.routed
    }

    /// Returns the routers for what is beyond the interface's own networks, of IPv4 and of IPv6.
    pub fn gateways(&mut self) -> [Option<IpAddress>; 2] {
        gateways(self.interface)
    }

    /// Returns the datagrams for this interface's UDP sockets that did not reach an app: malformed, addressed
    /// to somebody else, or lost in a full socket. What still waits in a socket counts too.
    pub fn dropped(&self) -> u64 {
        self.watch.dropped() + self.inboxes.lost()
    }

    /// Prints a line on the console.
    pub fn print(&mut self, line: fmt::Arguments<'_>) {
        // The console takes what it can; there is nobody to tell that it could not.
        let _ = writeln!(self.console, "{line}");
    }
}

/// A UDP socket, for the length of a call.
pub struct Udp<'a> {
    socket: &'a mut udp::Socket<'static>,
    inbox: Option<&'a mut Inbox>,
    watch: &'a mut Watch,
    interface: &'a Interface,
    card: Option<&'a mut dyn Card>,
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The payload.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub from: IpEndpoint,
    /// The address of ours that it was sent to; none when it was sent to many.
    pub to: Option<IpAddress>,
}

impl Datagram<'_> {
    /// Returns where an answer goes, from the address that was asked.
    pub fn answer(&self) -> udp::UdpMetadata {
        udp::UdpMetadata { local_address: self.to, ..self.from.into() }
    }
}

impl Udp<'_> {
    /// Takes the oldest datagram out of the socket.
    #[inline]
    pub fn receive(&mut self) -> Option<Datagram<'_>> {
        let Self { socket, inbox, watch, interface, .. } = self;
        // Nothing goes the short way while something waits that went the long one.
        match inbox.as_deref_mut() {
            Some(inbox) if !inbox.is_empty() => {
                let received = inbox.pop()?;
                let from = IpEndpoint::new(Ipv4Address::from(received.from).into(), received.from_port);
                Some(Datagram {
                    bytes: received.bytes,
                    from,
                    to: Some(Ipv4Address::from(received.to).into()),
                })
            }
            inbox => receive_from_stack(socket, inbox, watch, interface),
        }
    }

    /// Sends a datagram, or queues it; it is dropped when the socket is full or the address is none.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn send(&mut self, bytes: &[u8], to: impl Into<udp::UdpMetadata>) -> Result<(), udp::SendError> {
        let to = to.into();
        match self.send_short(bytes.len(), &to, &mut |place| place.copy_from_slice(bytes)) {
            Went::Sent => Ok(()),
            Went::Full(_) | Went::Not => self.queue(bytes.len(), to, |place| place.copy_from_slice(bytes)),
        }
    }

    /// Sends or queues a datagram that `fill` writes in place.
    ///
    /// # Errors
    /// There is no room, or the address is none; `fill` was not called. The app is called again when there is room.
    pub fn send_with(
        &mut self,
        len: usize,
        to: impl Into<udp::UdpMetadata>,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), udp::SendError> {
        let to = to.into();
        let mut fill = Some(fill);
        let mut write = |place: &mut [u8]| {
            if let Some(fill) = fill.take() {
                fill(place);
            }
        };
        let sent = match self.send_short(len, &to, &mut write) {
            Went::Sent => return Ok(()),
            Went::Full(why) => {
                if why == Why::Card {
                    self.watch.transmit = Transmit::Full;
                }
                Err(udp::SendError::BufferFull)
            }
            Went::Not => self.queue(len, to, write),
        };
        self.watch.crowded |= sent.is_err();
        sent
    }

    fn send_short(&mut self, len: usize, to: &udp::UdpMetadata, fill: &mut dyn FnMut(&mut [u8])) -> Went {
        match &mut self.card {
            Some(card) => self.watch.short.send(&mut **card, self.socket, len, to, fill),
            None => Went::Not,
        }
    }

    fn queue(
        &mut self,
        len: usize,
        to: udp::UdpMetadata,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), udp::SendError> {
        fill(self.socket.send(len, to)?);
        self.watch.short.queued(self.interface, self.socket, len, &to);
        Ok(())
    }

    /// Tells whether the socket can queue a datagram of this size now.
    pub fn has_room(&self, len: usize) -> bool {
        self.socket.can_send() && self.socket.payload_send_capacity() - self.socket.send_queue() >= len
    }

    /// Tells whether everything queued has left.
    pub fn is_flushed(&self) -> bool {
        self.socket.send_queue() == 0
    }
}

/// Takes the oldest datagram that went through the stack. When there is none, the short way is open again.
fn receive_from_stack<'a>(
    socket: &'a mut udp::Socket<'static>,
    inbox: Option<&mut Inbox>,
    watch: &mut Watch,
    interface: &Interface,
) -> Option<Datagram<'a>> {
    let Ok((bytes, meta)) = socket.recv() else {
        inbox.into_iter().for_each(Inbox::has_ended);
        return None;
    };
    watch.taken += 1;
    let to = meta.local_address.filter(|address| interface.has_ip_addr(*address));
    Some(Datagram { bytes, from: meta.endpoint, to })
}
