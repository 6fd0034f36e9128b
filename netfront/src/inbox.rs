//! The short way of a received UDP datagram: out of its frame into the queue of its port, past the stack.
//!
//! Only what the stack would do with a frame in the same way is taken: a plain IPv4 datagram, whole and valid, from
//! one host to an address and an open port of ours. All else is left to the stack, whose judgement it is. Order is kept:
//! once something for a port may have gone to the stack, all that follows goes there too, until its reader
//! has seen the end of both.
//!
//! It knows header offsets, bytes and ports; neither a stack nor who brings the frames. Nothing is allocated but
//! by [`Inboxes::open`].

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use drayage_wire::checksum::{Verdict, is_ipv4_header_good, verify};

/// Bytes of the headers of Ethernet, IPv4 and UDP, in front of the payload.
const HEADER_BYTES: usize = 42;
/// Where both IPv4 addresses are in a frame, and then the UDP header: what is queued of a datagram starts here.
const KEPT_AT: usize = 26;
/// Bytes that are queued of a datagram beside its payload.
const KEPT_BYTES: usize = HEADER_BYTES - KEPT_AT;
/// Where the UDP header starts.
const UDP_AT: usize = 34;
/// Where the length of the datagram is.
const UDP_LEN_AT: usize = 38;
/// Addresses of ours that are known here; more are the stack's.
const ADDRESSES: usize = 4;
/// How often datagrams go to the stack all the same. It puts off forgetting a neighbour from which something comes, which
/// it does otherwise after a minute.
const STACK_SEES_NS: u64 = 1_000_000_000;
/// The port of DHCP clients, of which the stack may be one.
const DHCP_CLIENT: u16 = 68;

/// Who verifies UDP checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sums {
    /// Whoever brings the frames has seen to it.
    Verified,
    /// Nobody yet.
    #[default]
    Unverified,
}

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sorted {
    /// It is done with.
    Taken,
    /// The stack's.
    Stack,
}

/// A datagram in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The payload.
    pub bytes: &'a [u8],
    /// The address that it came from.
    pub from: [u8; 4],
    /// The port that it came from.
    pub from_port: u16,
    /// The address of ours that it was sent to.
    pub to: [u8; 4],
}

/// The queues of an interface.
#[derive(Debug, Default)]
pub struct Inboxes {
    /// The interface's MAC address, as the first eight bytes of a frame are compared.
    mac: u64,
    sums: Sums,
    addresses: List,
    /// Broadcast addresses of our networks: nobody sends from them.
    broadcasts: List,
    /// The source that was looked at last and is good.
    source: Option<u32>,
    boxes: Vec<Inbox>,
    now_ns: u64,
    /// When the stack saw datagrams last that could have gone the short way.
    stack_saw_ns: u64,
}

/// A few IPv4 addresses. Those that are not there are 0, which is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct List([u32; ADDRESSES]);

impl List {
    fn add(&mut self, address: u32) {
        if let Some(free) = self.0.iter_mut().find(|place| **place == 0) {
            *free = address;
        }
    }

    #[inline]
    fn has(&self, address: u32) -> bool {
        self.0[0] == address || self.0[1..].contains(&address)
    }
}

/// The six bytes of a MAC address among eight.
const MAC_MASK: u64 = u64::from_be_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

#[inline]
fn half(head: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

#[inline]
fn word(head: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// Returns whether the sum of an IPv4 header without options is right.
#[inline]
fn is_header_good(head: &[u8; HEADER_BYTES]) -> bool {
    head.get(14..).and_then(<[u8]>::first_chunk).is_some_and(is_ipv4_header_good)
}

impl Inboxes {
    /// Opens a queue of so many bytes for a port and returns its number, or `None` for a port that has none: 0, and
    /// that of DHCP clients. Allocates.
    pub fn open(&mut self, port: u16, bytes: usize) -> Option<usize> {
        if port == 0 || port == DHCP_CLIENT || self.boxes.iter().any(|inbox| inbox.port == port) {
            return None;
        }
        self.boxes.push(Inbox::new(port, bytes));
        Some(self.boxes.len() - 1)
    }

    /// Says what the interface is from now on: its MAC address, and its IPv4 addresses with the lengths of their
    /// networks' prefixes.
    pub fn configure(
        &mut self,
        mac: [u8; 6],
        sums: Sums,
        addresses: impl IntoIterator<Item = ([u8; 4], u8)>,
    ) {
        let [a, b, c, d, e, f] = mac;
        self.mac = u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
        self.sums = sums;
        (self.addresses, self.broadcasts, self.source) = (List::default(), List::default(), None);
        for (address, prefix) in addresses {
            let address = u32::from_be_bytes(address);
            // The short way is closed as a whole where not every network is known.
            if self.addresses.0[ADDRESSES - 1] != 0 {
                self.addresses = List::default();
                return;
            }
            self.addresses.add(address);
            // Networks of one and of two hosts have no broadcast address (RFC 3021).
            if prefix < 31 {
                self.broadcasts.add(address | u32::MAX >> prefix);
            }
        }
    }

    /// Begins a batch.
    pub fn begin(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if now_ns.saturating_sub(self.stack_saw_ns) >= STACK_SEES_NS {
            self.leave_all();
        }
    }

    /// Returns an open queue.
    pub fn get(&mut self, number: usize) -> Option<&mut Inbox> {
        self.boxes.get_mut(number)
    }

    /// Returns the datagrams that found a full queue.
    pub fn lost(&self) -> u64 {
        self.boxes.iter().map(|inbox| inbox.lost).sum()
    }

    /// Takes a frame if it may go the short way.
    #[inline]
    pub fn sort(&mut self, frame: &[u8]) -> Sorted {
        if self.try_take(frame).is_some() {
            return Sorted::Taken;
        }
        self.leave(frame);
        Sorted::Stack
    }

    #[inline]
    fn try_take(&mut self, frame: &[u8]) -> Option<()> {
        let head = frame.first_chunk::<HEADER_BYTES>()?;
        let mac = u64::from(word(head, 0)) << 32 | u64::from(word(head, 4));
        let plain = (mac ^ self.mac) & MAC_MASK == 0
            // IPv4, in a header without options, whatever its type of service.
            && word(head, 12) >> 8 == 0x08_0045
            // Neither a fragment nor the first of several.
            && half(head, 20) & 0x3fff == 0
            && head[23] == 17;
        let (packet_end, end) =
            (14 + usize::from(half(head, 16)), UDP_AT + usize::from(half(head, UDP_LEN_AT)));
        if !plain
            || end < HEADER_BYTES
            || end > packet_end
            || packet_end > frame.len()
            || !is_header_good(head)
        {
            return None;
        }
        let (from, to, port) = (word(head, 26), word(head, 30), half(head, 36));
        if to == 0 || !self.addresses.has(to) || Some(from) != self.source && !self.may_send(from) {
            return None;
        }
        self.source = Some(from);
        let inbox = self.boxes.iter_mut().find(|inbox| inbox.port == port)?;
        if self.sums == Sums::Unverified && verify(frame) == Verdict::Bad {
            return None;
        }
        if inbox.is_left {
            self.stack_saw_ns = self.now_ns;
            return None;
        }
        inbox.push(frame.get(KEPT_AT..end)?);
        Some(())
    }

    /// Tells whether an address can be that of one other host.
    #[cold]
    fn may_send(&self, address: u32) -> bool {
        let [first, ..] = address.to_be_bytes();
        (1..224).contains(&first) && !self.broadcasts.has(address)
    }

    /// Notes that a frame goes to the stack.
    #[cold]
    fn leave(&mut self, frame: &[u8]) {
        const TCP: u8 = 6;
        // What holds no datagram, as far as can be told without a parser, overtakes none.
        let holds_none = match frame.get(12..24) {
            Some([0x08, 0x00, _, _, _, _, _, _, _, _, _, protocol]) => *protocol == TCP,
            Some([0x86, 0xdd, _, _, _, _, _, _, next, ..]) => *next == TCP,
            Some(_) => true,
            None => true,
        };
        if !holds_none {
            self.leave_all();
        }
    }

    fn leave_all(&mut self) {
        self.boxes.iter_mut().for_each(|inbox| inbox.is_left = true);
    }
}

/// The queue of a port: datagrams one after another in a ring of bytes, each in one piece.
#[derive(Debug)]
pub struct Inbox {
    port: u16,
    /// Whether datagrams go to the stack until the reader has seen that nothing waits.
    is_left: bool,
    bytes: Box<[u8]>,
    /// Where the oldest datagram is.
    head: usize,
    /// Where the next one goes. It is never put where it would reach the oldest, so both are the same only when the queue
    /// is empty.
    tail: usize,
    /// Where `head` starts over, once `tail` has.
    turn: usize,
    lost: u64,
}

impl Inbox {
    fn new(port: u16, bytes: usize) -> Self {
        Self { port, is_left: false, bytes: vec![0; bytes].into(), head: 0, tail: 0, turn: 0, lost: 0 }
    }

    /// Tells whether nothing is queued.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Says that the reader has found nothing here, nor in the stack.
    #[inline]
    pub fn has_ended(&mut self) {
        if self.is_empty() {
            self.is_left = false;
        }
    }

    /// Queues what is kept of a frame, or counts it as lost.
    #[inline]
    fn push(&mut self, kept: &[u8]) {
        let len = kept.len();
        if self.is_empty() {
            (self.head, self.tail) = (0, 0);
        }
        if self.tail >= self.head {
            if self.bytes.len() - self.tail < len {
                // The rest of the ring stays empty.
                if self.head <= len {
                    self.lost += 1;
                    return;
                }
                (self.turn, self.tail) = (self.tail, 0);
            }
        } else if self.head - self.tail <= len {
            self.lost += 1;
            return;
        }
        if let Some(room) = self.bytes.get_mut(self.tail..self.tail + len) {
            copy(kept, room);
            // The length that was looked at: the frame may lie where its sender still writes.
            let datagram = (len - (UDP_AT - KEPT_AT)) as u16;
            room[UDP_LEN_AT - KEPT_AT..][..2].copy_from_slice(&datagram.to_be_bytes());
            self.tail += len;
        }
    }

    /// Takes the oldest datagram.
    #[inline]
    pub fn pop(&mut self) -> Option<Received<'_>> {
        if self.is_empty() {
            return None;
        }
        if self.tail < self.head && self.head == self.turn {
            self.head = 0;
        }
        let rest = self.bytes.get(self.head..)?;
        let (&[a, b, c, d, e, f, g, h, i, j, _, _, high, low, _, _], rest) =
            rest.split_first_chunk::<KEPT_BYTES>()?;
        // Written when it was queued.
        let len = usize::from(u16::from_be_bytes([high, low])) - (HEADER_BYTES - UDP_AT);
        self.head += KEPT_BYTES + len;
        let bytes = rest.get(..len)?;
        Some(Received { bytes, from: [a, b, c, d], from_port: u16::from_be_bytes([i, j]), to: [e, f, g, h] })
    }
}

/// Copies at least 16 bytes; a few without asking a general routine.
#[inline]
fn copy(from: &[u8], to: &mut [u8]) {
    const FEW: usize = 256;
    if from.len() <= FEW
        && let (Some(last), Some(to_last)) = (from.last_chunk::<16>(), to.last_chunk_mut::<16>())
    {
        // What is beyond the last whole chunk is in the last 16 bytes, of which others are written twice.
        *to_last = *last;
        for (from, to) in from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0) {
            *to = *from;
        }
    } else {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests;
