//! Towards the guest: packets into its containers, or frames into its queue, as far as there is room and the guest takes
//! them; `emit` takes them from there into the pages that the guest posted.
//!
//! It knows no hypervisor, no switch and no xenstore.

mod across;
mod emit;
mod lent;
mod placed;
mod requests;

use drayage_wire::PAGE_SIZE;
use drayage_wire::checksum;
use drayage_wire::container::{Checksum, DESCRIPTOR_BYTES, GsoKind, HEADER_BYTES, Meta, Packet, Writer};
use drayage_wire::netif::{self, RING_SLOTS};
use drayage_wire::ring::{BackRing, Index, SharedWords};

use super::Connection;
use super::across::Whole;
use super::counters::Counters;
use super::floods::{Audience, Floods};
use super::holds::Holds;
use super::plain::FrameQueue;
use super::scratch::{Leases, Parcel, Pins};
use super::staging::Table;
use super::tx::Taken;
use crate::aggregate::{Aggregator, Refusal, Wrap};
use crate::class::Classes;
use crate::policy::Policy;
use crate::segment;
use crate::slo::Slo;
use crate::xen::{DomainId, PageAccess};
pub use emit::{Emission, Sources};
use requests::Requests;

/// What the guest takes, as it said when it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Frames of several slots.
    pub scatter: bool,
    /// TCP super-frames over IPv4.
    pub gso_v4: bool,
    /// TCP super-frames over IPv6.
    pub gso_v6: bool,
    /// Blank checksums over IPv4.
    pub blank_v4: bool,
    /// Blank checksums over IPv6.
    pub blank_v6: bool,
}

impl Accepts {
    fn gso(self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::TcpV4 => self.gso_v4,
            GsoKind::TcpV6 => self.gso_v6,
        }
    }

    /// Returns whether the guest takes this frame with a blank checksum.
    fn blank(self, frame: &[u8]) -> bool {
        if self.blank_v4 == self.blank_v6 {
            return self.blank_v4;
        }
        match checksum::locate(frame).map(|site| site.ip) {
            Some(checksum::IpVersion::V4) => self.blank_v4,
            Some(checksum::IpVersion::V6) => self.blank_v6,
            None => false,
        }
    }
}

/// How much more may wait for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Packets.
    pub packets: usize,
    /// Bytes of containers, or of frames.
    pub bytes: usize,
    /// What one container takes of that at least, where it is handed on whole; 0 for a guest without containers.
    pub container_bytes: usize,
}

/// How RX chains look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One frame each.
    Plain,
    /// One container each.
    Containers {
        /// The largest, in bytes.
        size: usize,
        /// Whether one may go from slot 255 to slot 0.
        wrap: Wrap,
    },
}

#[derive(Debug)]
enum Queue {
    Plain(FrameQueue),
    Containers(Aggregator),
}

/// When a vif wants to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// When the guest says something.
    Event,
    /// At this time, at the latest.
    At(u64),
    /// At once.
    Now,
}

/// The RX side of a vif.
#[derive(Debug)]
pub struct Rx<P> {
    ring: BackRing<netif::Rx, P>,
    domain: DomainId,
    queue: Queue,
    /// The blocks of what guests sent that the queue refers to.
    pins: Pins,
    floods: Floods,
    /// For whom what is being pushed is.
    audience: Audience,
    accepts: Accepts,
    policy: Policy,
    /// What is learned to keep a bound on delay, where the policy is one.
    slo: Option<Slo>,
    urgent: Classes,
    holds: Holds,
    /// Whether what waits is waiting for the guest to post buffers.
    blocked: bool,
    /// When the guest last took something.
    moved_ns: u64,
    /// When the running pass began.
    pass_ns: u64,
    /// The most buffers that the guest had posted at a time.
    posted_most: u32,
    /// Chains of the running pass that are in the guest's pages already, and the slots that they took.
    across: usize,
    across_slots: usize,
    /// Chains that the running batch carries, the number of slots they take, and where their operations are.
    emitted: usize,
    emitted_slots: usize,
    first_op: usize,
    /// Where its grant operations are among those of the batch.
    first_granted: usize,
    ids: [u16; RING_SLOTS as usize],
    /// Those that were read ahead.
    requests: Requests,
}

impl<P: SharedWords> Rx<P> {
    /// Takes the guest's ring. `sequence` is the number of the next container, and `region_bytes` the size of the
    /// region that is later passed in.
    pub fn new(
        ring: BackRing<netif::Rx, P>,
        sequence: u32,
        connection: &Connection,
        region_bytes: usize,
    ) -> Self {
        let Connection { domain, rx_format, accepts, policy, urgent, .. } = *connection;
        let queue = match rx_format {
            Format::Plain => Queue::Plain(FrameQueue::new(region_bytes)),
            Format::Containers { size, wrap } => {
                let size = policy.size_bytes().unwrap_or(size).min(size);
                let slot = ring.next_request().slot() as u32;
                Queue::Containers(Aggregator::new(size, wrap, slot).numbered_from(sequence))
            }
        };
        Self {
            ring,
            domain,
            queue,
            pins: Pins::default(),
            floods: Floods::default(),
            audience: Audience::One,
            accepts,
            policy,
            slo: matches!(policy, Policy::Slo { .. }).then(|| Slo::new(policy.hold_ns())),
            urgent,
            holds: Holds::default(),
            blocked: false,
            moved_ns: 0,
            pass_ns: 0,
            posted_most: 1,
            across: 0,
            across_slots: 0,
            emitted: 0,
            emitted_slots: 0,
            first_op: 0,
            first_granted: 0,
            ids: [0; RING_SLOTS as usize],
            requests: Requests::default(),
        }
    }

    /// Returns whether nothing waits for the guest.
    pub fn is_idle(&self) -> bool {
        match &self.queue {
            Queue::Plain(frames) => frames.is_empty(),
            Queue::Containers(open) => open.open_since_ns().is_none() && open.waiting_count() == 0,
        }
    }

    /// Returns whether the policy is a bound on delay.
    pub fn has_bound(&self) -> bool {
        self.slo.is_some()
    }

    /// Returns how long packets were held.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Returns whether a frame of `len` bytes would be taken: a source that can wait asks first.
    pub fn has_room_for(&self, len: usize) -> bool {
        match &self.queue {
            Queue::Plain(frames) => frames.has_room_for(len),
            Queue::Containers(open) => open.has_room_for(len) && !self.would_be_late(open),
        }
    }

    /// Returns how much more may be queued for certain, in packets and in bytes; at least one container's worth where
    /// nothing is queued.
    pub fn room(&self) -> Room {
        match &self.queue {
            Queue::Plain(frames) => frames.room(),
            // A container may be closed half empty, by its table or by one that is taken whole: two are kept for that.
            Queue::Containers(open) => {
                let container_bytes = open.size();
                let bytes = open.room_bytes().saturating_sub(2 * container_bytes);
                Room { packets: usize::MAX, bytes, container_bytes }
            }
        }
    }

    /// Returns since when the guest has taken nothing although there is something for it, `None` where there is not.
    pub fn stuck_since_ns(&self) -> Option<u64> {
        self.blocked.then_some(self.moved_ns)
    }

    /// Returns whether so much is queued that another packet would be held for longer than the policy allows.
    fn would_be_late(&self, open: &Aggregator) -> bool {
        self.slo.as_ref().is_some_and(|slo| open.queued_bytes() >= slo.queue_bytes())
    }

    /// Returns whether another packet is refused for that. As long as the guest has buffers, a burst is taken whole.
    fn is_too_late(&self) -> bool {
        matches!(&self.queue, Queue::Containers(open) if self.blocked && self.would_be_late(open))
    }

    /// Takes a packet of `len` bytes that `fill` writes in place. It must need no change for this guest.
    ///
    /// # Errors
    /// [`Refusal`], counted.
    pub fn push_with(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        len: usize,
        meta: Meta,
        counters: &mut Counters,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refusal> {
        if self.is_too_late() {
            counters.drops.too_late += 1;
            return Err(Refusal::NoRoom);
        }
        let result = match &mut self.queue {
            Queue::Containers(open) => {
                let (classes, mut urgent) = (self.urgent, false);
                // Judged where it lies now, while its bytes are at hand.
                let pushed = open.push_with(region, now_ns, len, meta, |bytes| {
                    fill(bytes);
                    urgent = classes.contain(bytes);
                });
                if urgent {
                    open.hurry();
                }
                if let Some(slo) = &mut self.slo {
                    slo.arrive();
                }
                pushed
            }
            Queue::Plain(_) if len > PAGE_SIZE && !self.accepts.scatter => Err(Refusal::TooLarge),
            Queue::Plain(frames) => frames.push_with(region, now_ns, len, meta, fill),
        };
        self.note(result, len, meta, counters);
        result
    }

    /// Notes a packet that is in the open container now.
    #[inline]
    fn count_arrival(&mut self, urgent: bool) {
        if let (true, Queue::Containers(open)) = (urgent, &mut self.queue) {
            open.hurry();
        }
        if let Some(slo) = &mut self.slo {
            slo.arrive();
        }
    }

    /// Counts what came of a packet.
    #[inline]
    fn note(&mut self, result: Result<(), Refusal>, len: usize, meta: Meta, counters: &mut Counters) {
        match result {
            Ok(()) => {
                counters.rx.packets += 1;
                counters.rx.bytes += len as u64;
                self.floods.came(self.audience, len);
                counters.rx.super_frames += u64::from(meta.gso.is_some());
            }
            Err(Refusal::NoRoom) => counters.drops.queue_full += 1,
            Err(Refusal::TooLarge) => counters.drops.too_large += 1,
        }
    }

    /// As [`accept`](Self::accept), for a frame that goes to everybody: such frames may be half of what waits.
    pub fn accept_flood(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        parcel: &Parcel<'_>,
        leases: &mut Leases,
        counters: &mut Counters,
    ) {
        if !self.floods.may_wait() {
            counters.drops.queue_full += 1;
            return;
        }
        self.audience = Audience::All;
        self.accept(region, now_ns, parcel, leases, counters);
        self.audience = Audience::One;
    }

    /// Takes a frame, changed as far as this guest needs it: a blank checksum filled, a super-frame segmented. What another
    /// guest sent and needs no change is not copied, but stays where it is.
    pub fn accept(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        parcel: &Parcel<'_>,
        leases: &mut Leases,
        counters: &mut Counters,
    ) {
        let Parcel { bytes: frame, meta, at } = *parcel;
        if let Some(gso) = meta.gso
            && !(self.accepts.gso(gso.kind) && self.takes_whole(frame.len()))
        {
            let whole = segment::tcp(frame, gso, |len, write| {
                let filled = Meta { checksum: Checksum::Valid, gso: None };
                counters.rx.moved(len);
                let _ = self.push_with(region, now_ns, len, filled, counters, write);
            });
            match whole {
                Ok(()) => counters.segmented += 1,
                Err(segment::NotSegmentable) => counters.drops.not_segmentable += 1,
            }
            return;
        }
        let len = frame.len();
        if meta.checksum == Checksum::Blank && meta.gso.is_none() && !self.accepts.blank(frame) {
            let filled = Meta { checksum: Checksum::Valid, gso: None };
            counters.checksums_filled += 1;
            counters.rx.moved(len);
            let _ = self.push_with(region, now_ns, len, filled, counters, |bytes| {
                bytes.copy_from_slice(frame);
                checksum::fill(bytes);
            });
            return;
        }
        if at.is_some() && self.push_lent(region, now_ns, parcel, leases, counters) == Taken::Yes {
            return;
        }
        counters.rx.moved(len);
        let _ = self.push_with(region, now_ns, len, meta, counters, |bytes| bytes.copy_from_slice(frame));
    }

    /// Takes a container that another guest wrote, all of whose packets are for this one. Returns whether it was: nobody has
    /// changed anything where it was not. Such a container waits for nothing, as it is full enough, and is not copied.
    pub fn accept_container(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        whole: &mut Whole<'_, P>,
        (staged, leases): (Option<&Table<P>>, &mut Leases),
        counters: &mut Counters,
    ) -> Taken
    where
        P: PageAccess,
    {
        let packets = whole.packets;
        // The other policies have a say in how large a container is to be.
        let Policy::Opportunistic { .. } = self.policy else { return Taken::No };
        let Queue::Containers(_) = &self.queue else { return Taken::No };
        let blanks = self.accepts.blank_v4 && self.accepts.blank_v6;
        let mut bytes = 0;
        for Packet { len, meta, .. } in packets {
            if meta.gso.is_some() || (meta.checksum == Checksum::Blank && !blanks) {
                return Taken::No;
            }
            bytes += usize::from(*len);
        }
        // A sparse one would cost the guest more pages than its packets need.
        let needed = bytes + HEADER_BYTES + DESCRIPTOR_BYTES * packets.len();
        if 4 * needed < 3 * whole.bytes.len().next_multiple_of(PAGE_SIZE) {
            return Taken::No;
        }
        let across = staged.is_some_and(|staged| self.accept_across(region, now_ns, whole, staged));
        if !across && self.accept_copy(region, now_ns, whole, leases, counters).is_err() {
            return Taken::No;
        }
        counters.rx.packets += packets.len() as u64;
        counters.rx.bytes += bytes as u64;
        self.floods.came_together(packets.len() as u64);
        Taken::Yes
    }

    fn takes_whole(&self, len: usize) -> bool {
        match &self.queue {
            Queue::Plain(_) => len <= PAGE_SIZE || self.accepts.scatter,
            Queue::Containers(open) => Writer::could_ever_fit(open.size(), len),
        }
    }

    /// Returns the number of the open container, and the position of the last packet in it; `None` without
    /// containers.
    pub fn last(&self) -> Option<(u32, u32)> {
        match &self.queue {
            Queue::Containers(open) => open.last(),
            Queue::Plain(_) => None,
        }
    }

    /// Returns the ring index of the next response, for tests and for a later owner of the ring.
    pub fn next_slot(&self) -> Index {
        self.ring.next_request()
    }
}
