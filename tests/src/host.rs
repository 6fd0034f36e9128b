//! A smoltcp stack on any device, and the transfers that tests make between two of them. Every byte
//! that arrives is compared with what was sent, and hashed.
//!
//! It knows stacks and sockets; neither rings nor backends.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};

/// A stack with its sockets. The device under it is passed in.
pub struct Stack {
    /// The interface.
    pub interface: Interface,
    /// The sockets.
    pub sockets: SocketSet<'static>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stack {:?}", self.interface.ip_addrs())
    }
}

/// Returns the stack's notion of a time in nanoseconds.
pub fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

impl Stack {
    /// Returns a stack with one address, such as `10.0.0.1/24`.
    ///
    /// # Panics
    /// When the address is none.
    pub fn new(device: &mut impl Device, mac: [u8; 6], address: &str) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = u64::from(mac[5]) + 1;
        let mut interface = Interface::new(config, device, Instant::ZERO);
        let address: IpCidr = address.parse().expect("an address with a prefix length");
        interface.update_ip_addrs(|list| list.push(address).expect("there is room for one"));
        Self { interface, sockets: SocketSet::new(Vec::new()) }
    }

    /// Lets the stack do what it can at a time.
    pub fn poll(&mut self, device: &mut impl Device, now_ns: u64) {
        self.interface.poll(instant(now_ns), device, &mut self.sockets);
    }

    /// Returns when the stack wants to be polled next, in nanoseconds from now; `None` when it waits for frames.
    pub fn delay_ns(&mut self, now_ns: u64) -> Option<u64> {
        let delay = self.interface.poll_delay(instant(now_ns), &self.sockets);
        delay.map(|delay| delay.total_micros() * 1000)
    }

    /// Opens a UDP socket on a port, with room for `packets` of 2 KiB each way.
    ///
    /// # Panics
    /// On port 0.
    pub fn udp(&mut self, port: u16, packets: usize) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; packets], vec![0; packets * 2048]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a port other than 0");
        self.sockets.add(socket)
    }

    /// Opens a TCP socket that waits on a port.
    ///
    /// # Panics
    /// On port 0.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = tcp_socket();
        socket.listen(port).expect("a port other than 0");
        self.sockets.add(socket)
    }

    /// Opens a TCP socket that connects to an endpoint.
    ///
    /// # Panics
    /// When there is no way to it.
    pub fn connect(&mut self, to: IpEndpoint, from_port: u16) -> SocketHandle {
        let mut socket = tcp_socket();
        socket.connect(self.interface.context(), to, from_port).expect("an endpoint on the link");
        self.sockets.add(socket)
    }

    /// Returns a UDP socket.
    pub fn udp_socket(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Returns a TCP socket.
    pub fn tcp_socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 64 * 1024]);
    tcp::Socket::new(buffer(), buffer())
}

/// The byte that stands at a place of a stream: cheap, without a short period, and another for each stream.
pub fn byte_at(stream: u32, at: u64) -> u8 {
    let mixed = (at ^ u64::from(stream) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// FNV-1a over what went by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Sends `count` numbered datagrams.
#[derive(Debug)]
pub struct UdpSource {
    socket: SocketHandle,
    to: IpEndpoint,
    stream: u32,
    count: u32,
    sizes: fn(u32) -> usize,
    next: u32,
}

/// Bytes of a datagram's own header: stream and number.
const DATAGRAM_HEAD: usize = 8;

impl UdpSource {
    /// Returns a source; `sizes` tells each datagram's length, at least 8 bytes.
    pub fn new(
        socket: SocketHandle,
        to: IpEndpoint,
        stream: u32,
        count: u32,
        sizes: fn(u32) -> usize,
    ) -> Self {
        Self { socket, to, stream, count, sizes, next: 0 }
    }

    /// Sends what the socket takes, at most `burst`. Returns whether all is sent.
    pub fn step(&mut self, stack: &mut Stack, burst: u32) -> bool {
        let socket = stack.udp_socket(self.socket);
        for _ in 0..burst {
            if self.next == self.count || !socket.can_send() {
                break;
            }
            let number = self.next;
            let len = (self.sizes)(number).max(DATAGRAM_HEAD);
            let Ok(payload) = socket.send(len, self.to) else { break };
            payload[..4].copy_from_slice(&self.stream.to_le_bytes());
            payload[4..8].copy_from_slice(&number.to_le_bytes());
            for (at, byte) in payload.iter_mut().enumerate().skip(DATAGRAM_HEAD) {
                *byte = byte_at(self.stream, u64::from(number) << 16 | at as u64);
            }
            self.next += 1;
        }
        self.next == self.count
    }

    /// Returns how many were sent.
    pub fn sent(&self) -> u32 {
        self.next
    }
}

/// Takes what a [`UdpSource`] of the same shape sends, and judges it.
pub struct UdpSink {
    socket: SocketHandle,
    stream: u32,
    sizes: fn(u32) -> usize,
    seen: Vec<bool>,
    got: u32,
    /// Datagrams that differ from what was sent.
    pub wrong: u32,
    /// Datagrams that came twice.
    pub twice: u32,
    /// Datagrams that came after a later one.
    pub late: u32,
    newest: Option<u32>,
}

impl std::fmt::Debug for UdpSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stream, got, seen, wrong, twice, late, .. } = self;
        let missing: Vec<usize> = (0..seen.len()).filter(|n| !seen[*n]).take(20).collect();
        write!(
            f,
            "UdpSink {stream}: {got} came, {wrong} wrong, {twice} twice, {late} late, missing {missing:?}"
        )
    }
}

impl UdpSink {
    /// Returns a sink for `count` datagrams.
    pub fn new(socket: SocketHandle, stream: u32, count: u32, sizes: fn(u32) -> usize) -> Self {
        let seen = vec![false; count as usize];
        Self { socket, stream, sizes, seen, got: 0, wrong: 0, twice: 0, late: 0, newest: None }
    }

    /// Takes what is there, at most `most` datagrams. Returns how many have come.
    pub fn step(&mut self, stack: &mut Stack, most: u32) -> u32 {
        let socket = stack.udp_socket(self.socket);
        for _ in 0..most {
            let Ok((payload, _)) = socket.recv() else { break };
            let Some((head, _)) = payload.split_first_chunk::<DATAGRAM_HEAD>() else {
                self.wrong += 1;
                continue;
            };
            let stream = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let number = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let right = stream == self.stream
                && (number as usize) < self.seen.len()
                && payload.len() == (self.sizes)(number).max(DATAGRAM_HEAD)
                && payload
                    .iter()
                    .enumerate()
                    .skip(DATAGRAM_HEAD)
                    .all(|(at, byte)| *byte == byte_at(self.stream, u64::from(number) << 16 | at as u64));
            if !right {
                self.wrong += 1;
                continue;
            }
            let again = std::mem::replace(&mut self.seen[number as usize], true);
            self.twice += u32::from(again);
            self.got += u32::from(!again);
            self.late += u32::from(self.newest > Some(number));
            self.newest = self.newest.max(Some(number));
        }
        self.got()
    }

    /// Returns how many datagrams have come.
    pub fn got(&self) -> u32 {
        self.got
    }

    /// Asserts that nothing that came was wrong, twice or out of order.
    ///
    /// # Panics
    /// See above.
    pub fn assert_right(&self) {
        let Self { stream, wrong, twice, late, .. } = self;
        assert_eq!((*wrong, *twice, *late), (0, 0, 0), "wrong, twice, late in stream {stream}");
    }
}

/// Sends a stream of bytes over a connection, and closes it.
#[derive(Debug)]
pub struct TcpSource {
    socket: SocketHandle,
    stream: u32,
    bytes: u64,
    sent: u64,
    hash: Hash,
}

impl TcpSource {
    /// Returns a source of `bytes` bytes.
    pub fn new(socket: SocketHandle, stream: u32, bytes: u64) -> Self {
        Self { socket, stream, bytes, sent: 0, hash: Hash::default() }
    }

    /// Sends what the socket takes. Returns whether all is sent and the connection is closed from here.
    pub fn step(&mut self, stack: &mut Stack) -> bool {
        let socket = stack.tcp_socket(self.socket);
        while self.sent < self.bytes && socket.can_send() {
            let (stream, sent, left) = (self.stream, self.sent, self.bytes - self.sent);
            let hash = &mut self.hash;
            let taken = socket.send(|room| {
                let len = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                for (at, byte) in room[..len].iter_mut().enumerate() {
                    *byte = byte_at(stream, sent + at as u64);
                }
                hash.add(&room[..len]);
                (len, len)
            });
            self.sent += taken.expect("can_send said so") as u64;
        }
        let done = self.sent == self.bytes;
        if done {
            socket.close();
        }
        done
    }

    /// Returns how many bytes the socket took.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the hash of what was sent.
    pub fn hash(&self) -> Hash {
        self.hash
    }
}

/// Takes a stream of bytes, and judges it.
#[derive(Debug)]
pub struct TcpSink {
    socket: SocketHandle,
    stream: u32,
    got: u64,
    /// Bytes that differ from what was sent.
    pub wrong: u64,
    hash: Hash,
}

impl TcpSink {
    /// Returns a sink.
    pub fn new(socket: SocketHandle, stream: u32) -> Self {
        Self { socket, stream, got: 0, wrong: 0, hash: Hash::default() }
    }

    /// Takes at most `most` bytes. Returns how many came so far.
    pub fn step(&mut self, stack: &mut Stack, most: usize) -> u64 {
        let socket = stack.tcp_socket(self.socket);
        let mut left = most;
        while left > 0 && socket.can_recv() {
            let (stream, got) = (self.stream, self.got);
            let (hash, wrong) = (&mut self.hash, &mut self.wrong);
            let taken = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(left)];
                let differs = |(at, byte): &(usize, &u8)| **byte != byte_at(stream, got + *at as u64);
                *wrong += bytes.iter().enumerate().filter(differs).count() as u64;
                hash.add(bytes);
                (bytes.len(), bytes.len())
            });
            let taken = taken.expect("can_recv said so");
            self.got += taken as u64;
            left -= taken;
        }
        self.got
    }

    /// Returns whether the other end has closed the connection and all of it was taken.
    pub fn ended(&self, stack: &mut Stack) -> bool {
        let socket = stack.tcp_socket(self.socket);
        !socket.may_recv() && !socket.can_recv() && self.got > 0
    }

    /// Returns how many bytes came.
    pub fn got(&self) -> u64 {
        self.got
    }

    /// Returns the hash of what came.
    pub fn hash(&self) -> Hash {
        self.hash
    }
}
