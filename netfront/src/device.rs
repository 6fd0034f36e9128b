//! The one file that names smoltcp: a [`Vif`] is a `smoltcp::phy::Device`.
//!
//! TCP and UDP checksums are the driver's business in both directions, so that the stack's capabilities stay
//! the same whatever a backend can do: received ones are verified by the driver where nobody vouches for
//! them, sent ones are left blank where the backend takes that and computed here where it does not. The stack
//! sees to those of IPv4 headers and ICMP.
//!
//! The stack leaves the cutting of TCP streams over IPv4 into segments to us where the backend takes
//! super-frames. Not those over IPv6: smoltcp 0.14 drops what is longer than the MTU there, and says nothing of
//! the size of a segment.

use core::num::{NonZeroU16, NonZeroUsize};

use drayage_wire::container::Checksum;
use smoltcp::iface::{Interface, PollIngressSingleResult, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken as _};
use smoltcp::time::Instant;

use crate::counters::TxCounters;
use crate::datagram::{Flows, HEAD_BYTES, Sum, Template};
use crate::inbox::Sorted;
use crate::platform::Platform;
use crate::tx::TxQueue;
use crate::vif::{ETHERNET_HEADER_BYTES, Vif};

/// A received frame. Its bytes lie where the backend put them, and are ours until the token is gone.
#[derive(Debug)]
pub struct RxToken<'a>(&'a [u8]);

impl smoltcp::phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// The right to send a frame.
#[derive(Debug)]
pub struct TxToken<'a, P> {
    queue: &'a mut TxQueue<P>,
    spare: &'a mut [u8],
    counters: &'a mut TxCounters,
    /// Payload bytes of the segments that the frame is to be cut into; none for a frame that is none too long.
    segment_bytes: Option<NonZeroU16>,
}

impl<P: Platform> smoltcp::phy::TxToken for TxToken<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.queue.send(len, self.segment_bytes, self.spare, self.counters, f)
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_bytes = meta.segmentation_offload_size;
    }
}

/// The right to send a frame, which is shown to flows as the stack wrote it.
#[derive(Debug)]
pub struct Shown<'a, T> {
    /// The right.
    pub token: T,
    /// Who is shown it, and the time in nanoseconds.
    pub to: Option<(&'a mut Flows, u64)>,
}

impl<T: smoltcp::phy::TxToken> smoltcp::phy::TxToken for Shown<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Self { token, to } = self;
        token.consume(len, |frame| {
            let result = f(frame);
            if let Some((flows, now_ns)) = to.filter(|(flows, _)| flows.awaits_any()) {
                flows.see(frame, now_ns);
            }
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}

impl<P: Platform> Device for Vif<P> {
    type RxToken<'a>
        = RxToken<'a>
    where
        P: 'a;
    type TxToken<'a>
        = TxToken<'a, P>
    where
        P: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        if !self.is_up() {
            return None;
        }
        let link = self.link.as_mut()?;
        match link.rx.next(&mut self.counters.rx) {
            Ok(place) => {
                let frame = link.rx.bytes(place?)?;
                let (queue, spare, counters) = (&mut link.tx, &mut *self.spare, &mut self.counters.tx);
                Some((RxToken(frame), TxToken { queue, spare, counters, segment_bytes: None }))
            }
            Err(broken) => {
                self.broken = Some(broken);
                None
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let longest = self.longest_frame_bytes();
        if !self.is_up() {
            return None;
        }
        let link = self.link.as_mut()?;
        match link.tx.ready(longest, &mut self.counters.tx) {
            Ok(true) => {
                let (queue, spare, counters) = (&mut link.tx, &mut *self.spare, &mut self.counters.tx);
                Some(TxToken { queue, spare, counters, segment_bytes: None })
            }
            Ok(false) => None,
            Err(broken) => {
                self.broken = Some(broken);
                None
            }
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu() + ETHERNET_HEADER_BYTES;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.udp = smoltcp::phy::Checksum::None;
        capabilities.checksum.tcp = smoltcp::phy::Checksum::None;
        capabilities.segmentation.tcpv4 = self.super_frame_bytes().and_then(NonZeroUsize::new);
        capabilities
    }
}

impl<P: Platform> Vif<P> {
    /// Returns whether a frame of so many bytes finds room now; where it does not, it is as after a `transmit` that was
    /// refused. Unlike there, it is not asked whether the longest frame would.
    pub fn has_room(&mut self, bytes: usize) -> bool {
        if !self.is_up() {
            return false;
        }
        let Some(link) = self.link.as_mut() else { return false };
        link.tx.ready(bytes, &mut self.counters.tx).unwrap_or_else(|broken| {
            self.broken = Some(broken);
            false
        })
    }

    /// Sends a frame of so many bytes that `fill` writes in place. Without room, which [`has_room`](Self::has_room) tells
    /// of, it is lost, and counted.
    pub fn send_frame(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        if let Some(link) = self.link.as_mut() {
            link.tx.send(bytes, None, &mut self.spare, &mut self.counters.tx, fill);
        }
    }

    /// Sends a datagram of so many bytes whose headers are known and that `fill` writes in place. Returns whether there
    /// was room; without, `fill` was not called, and there is as after a `transmit` that was refused.
    pub fn send_datagram(
        &mut self,
        template: &mut Template,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        let len = HEAD_BYTES + bytes;
        if !self.has_room(len) {
            return false;
        }
        let Some(link) = self.link.as_mut() else { return false };
        let (sum, becomes) = match link.tx.blanks_v4() {
            true => (Sum::Blank, Checksum::Blank),
            false => (Sum::Full, Checksum::Valid),
        };
        link.tx.send_summed(len, None, &mut self.spare, &mut self.counters.tx, |frame| {
            template.write(frame, sum, fill);
            ((), becomes)
        });
        true
    }

    /// Hands up to `most` received frames to the stack and returns how many there were. After each such batch
    /// the application runs, then one pass of egress, then [`flush`](Self::flush).
    pub fn ingress(
        &mut self,
        now: Instant,
        interface: &mut Interface,
        sockets: &mut SocketSet<'_>,
        most: usize,
    ) -> usize {
        for done in 0..most {
            if interface.poll_ingress_single(now, self, sockets) == PollIngressSingleResult::None {
                return done;
            }
        }
        most
    }
}

/// Takes a frame from a device and hands it to the stack, unless `sort` says that it is done with. Returns
/// `None` when there is no frame. The stack's part in a frame that it never sees is nothing.
#[inline]
pub fn take_frame<D: Device>(
    device: &mut D,
    now: Instant,
    interface: &mut Interface,
    sockets: &mut SocketSet<'_>,
    sort: impl FnOnce(&[u8]) -> Sorted,
) -> Option<Sorted> {
    let (frame, reply) = device.receive(now)?;
    let meta = frame.meta();
    Some(frame.consume(|bytes| {
        let sorted = sort(bytes);
        if sorted == Sorted::Stack {
            // The same kind of token as for what the stack sends of its own accord: the stack is compiled once.
            let reply = Shown { token: reply, to: None };
            let mut one = One(Some((Lent { bytes, meta }, reply)));
            // What it came to is of no interest: it was a frame.
            interface.poll_ingress_single(now, &mut one, sockets);
        }
        sorted
    }))
}

/// A device that has one frame.
struct One<'a, T>(Option<(Lent<'a>, T)>);

struct Lent<'a> {
    bytes: &'a [u8],
    meta: PacketMeta,
}

impl smoltcp::phy::RxToken for Lent<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.bytes)
    }

    fn meta(&self) -> PacketMeta {
        self.meta
    }
}

impl<'f, T: smoltcp::phy::TxToken> Device for One<'f, T> {
    type RxToken<'a>
        = Lent<'f>
    where
        Self: 'a;
    type TxToken<'a>
        = T
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Lent<'f>, T)> {
        self.0.take()
    }

    fn transmit(&mut self, _: Instant) -> Option<T> {
        None
    }

    /// Says what the medium is; nobody asks for more of it.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities
    }
}
