//! Towards the guest: packets into its containers (or frames into its queue), and those into the pages that
//! it posted.
//!
//! It knows no hypervisor: it asks for copies and is told what came of them. It knows no switch and no
//! xenstore.

use drayage_wire::PAGE_SIZE;
use drayage_wire::checksum;
use drayage_wire::container::{Checksum, DESCRIPTOR_BYTES, GsoKind, HEADER_BYTES, Meta, Packet};
use drayage_wire::netif::{self, ExtraInfo, ExtraKind, RING_SLOTS, RxRequest, RxResponse, rx_flags, status};
use drayage_wire::ring::{BackRing, Index, Overrun, SharedWords};

use super::Connection;
use super::counters::{Counters, hypercalls};
use super::floods::{Audience, Floods};
use super::holds::Holds;
use super::plain::FrameQueue;
use super::staging::Table;
use super::tx::Taken;
use crate::aggregate::{Aggregator, Closed, Refusal, Wrap};
use crate::class::Classes;
use crate::policy::{Policy, Reason};
use crate::segment;
use crate::slo::{Cause, Handed, Slo, Turn};
use crate::xen::{Copies, CopyOp, DomainId, GNTST_OKAY, GrantRef, PageAccess};

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

/// What a chain carries.
#[derive(Clone, Copy, Debug)]
pub enum Emission<'a> {
    /// A container.
    Container(&'a [u8]),
    /// A frame.
    Frame(&'a [u8]),
}

/// What came of adding copies to a batch.
enum Emitted {
    /// Everything that waited is in it.
    All,
    /// The guest has posted too few buffers, and will say when it has posted more.
    LacksSlots,
    /// The batch is full.
    LacksRoom,
}

/// What came of looking at the open container.
enum Settled {
    /// There is none.
    Nothing,
    /// It was closed.
    Closed,
    /// It stays open.
    Held { until_ns: u64 },
}

/// The RX side of a vif.
#[derive(Debug)]
pub struct Rx<P> {
    ring: BackRing<netif::Rx, P>,
    domain: DomainId,
    queue: Queue,
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
    /// Chains that the running batch carries, the number of slots they take, and where their operations are.
    emitted: usize,
    emitted_slots: usize,
    first_op: usize,
    /// Where its grant operations are among those of the batch.
    first_granted: usize,
    ids: [u16; RING_SLOTS as usize],
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
            emitted: 0,
            emitted_slots: 0,
            first_op: 0,
            first_granted: 0,
            ids: [0; RING_SLOTS as usize],
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
                Room { packets: usize::MAX, bytes: open.room_bytes().saturating_sub(2 * open.size()) }
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
        // As long as the guest has buffers, a burst is taken whole.
        if let Queue::Containers(open) = &self.queue
            && self.blocked
            && self.would_be_late(open)
        {
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
        result
    }

    /// As [`accept`](Self::accept), for a frame that goes to everybody: such frames may be half of what waits.
    pub fn accept_flood(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        frame: &[u8],
        meta: Meta,
        counters: &mut Counters,
    ) {
        if !self.floods.may_wait() {
            counters.drops.queue_full += 1;
            return;
        }
        self.audience = Audience::All;
        self.accept(region, now_ns, frame, meta, counters);
        self.audience = Audience::One;
    }

    /// Takes a copy of a frame, changed as far as this guest needs it: a blank checksum filled, a super-frame
    /// segmented.
    pub fn accept(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        frame: &[u8],
        meta: Meta,
        counters: &mut Counters,
    ) {
        if let Some(gso) = meta.gso
            && !(self.accepts.gso(gso.kind) && self.takes_whole(frame.len()))
        {
            let whole = segment::tcp(frame, gso, |len, write| {
                let filled = Meta { checksum: Checksum::Valid, gso: None };
                counters.rx.copies += 1;
                let _ = self.push_with(region, now_ns, len, filled, counters, write);
            });
            match whole {
                Ok(()) => counters.segmented += 1,
                Err(segment::NotSegmentable) => counters.drops.not_segmentable += 1,
            }
            return;
        }
        counters.rx.copies += 1;
        let len = frame.len();
        if meta.checksum == Checksum::Blank && meta.gso.is_none() && !self.accepts.blank(frame) {
            let filled = Meta { checksum: Checksum::Valid, gso: None };
            counters.checksums_filled += 1;
            let _ = self.push_with(region, now_ns, len, filled, counters, |bytes| {
                bytes.copy_from_slice(frame);
                checksum::fill(bytes);
            });
            return;
        }
        let _ = self.push_with(region, now_ns, len, meta, counters, |bytes| bytes.copy_from_slice(frame));
    }

    /// Takes a container that another guest wrote, all of whose packets are for this one, `bytes` of them. Returns whether
    /// it was: nobody has changed anything where it was not. Such a container waits for nothing, as it is full enough.
    pub fn accept_container(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        container: &[u8],
        packets: &[Packet],
        counters: &mut Counters,
    ) -> Taken {
        // The other policies have a say in how large a container is to be.
        let Policy::Opportunistic { .. } = self.policy else { return Taken::No };
        let Queue::Containers(open) = &mut self.queue else { return Taken::No };
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
        if 4 * needed < 3 * container.len().next_multiple_of(PAGE_SIZE) {
            return Taken::No;
        }
        if open.push_whole(region, now_ns, container, packets).is_err() {
            return Taken::No;
        }
        counters.rx.packets += packets.len() as u64;
        counters.rx.bytes += bytes as u64;
        counters.rx.copies += 1;
        self.floods.came_together(packets.len() as u64);
        Taken::Yes
    }

    fn takes_whole(&self, len: usize) -> bool {
        match &self.queue {
            Queue::Plain(_) => len <= PAGE_SIZE || self.accepts.scatter,
            Queue::Containers(open) => drayage_wire::container::Writer::could_ever_fit(open.size(), len),
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

    /// Shows what the batch that was just copied carries, in order. `region` is this guest's.
    pub fn show_emitted(&self, region: &[u8], mut each: impl FnMut(Emission<'_>)) {
        match &self.queue {
            Queue::Containers(open) => {
                for closed in open.waiting().take(self.emitted) {
                    let start = closed.start as usize;
                    each(Emission::Container(&region[start..start + closed.bytes as usize]));
                }
            }
            Queue::Plain(frames) => {
                for frame in (0..self.emitted).filter_map(|ahead| frames.peek(ahead)) {
                    let start = frame.start as usize;
                    each(Emission::Frame(&region[start..start + frame.len as usize]));
                }
            }
        }
    }

    fn available(&mut self) -> Result<u32, Overrun> {
        let available = self.ring.available()?;
        self.posted_most = self.posted_most.max(available + self.ring.unanswered());
        Ok(available)
    }

    /// Adds the copies for what waits and fits into posted buffers, and for the open container if its time has
    /// come. `region` is this guest's, and lies at `region_start` in the batch's memory; what goes to pages that
    /// are in `staged` is copied there at once. Returns what the vif wishes for.
    ///
    /// # Errors
    /// [`Overrun`]: the ring is not to be used any more.
    pub fn fill_batch(
        &mut self,
        region: &mut [u8],
        region_start: usize,
        now_ns: u64,
        staged: Option<&Table<P>>,
        copies: &mut Copies,
    ) -> Result<Wish, Overrun>
    where
        P: PageAccess,
    {
        self.emitted = 0;
        self.emitted_slots = 0;
        self.first_op = copies.ops().len();
        self.first_granted = copies.granted();
        self.pass_ns = now_ns;
        match self.emit(&mut Outgoing { region, region_start, staged, copies })? {
            Emitted::All => {}
            Emitted::LacksSlots => return Ok(Wish::Event),
            Emitted::LacksRoom => return Ok(Wish::Now),
        }
        match self.settle(region, now_ns)? {
            Settled::Closed => {
                Ok(match self.emit(&mut Outgoing { region, region_start, staged, copies })? {
                    Emitted::All | Emitted::LacksSlots => Wish::Event,
                    Emitted::LacksRoom => Wish::Now,
                })
            }
            Settled::Nothing => Ok(Wish::Event),
            Settled::Held { until_ns } => Ok(Wish::At(until_ns)),
        }
    }

    /// Closes the open container if its time has come. All that was closed before is in the batch.
    fn settle(&mut self, region: &mut [u8], now_ns: u64) -> Result<Settled, Overrun> {
        let available = self.available()?;
        let Queue::Containers(open) = &mut self.queue else { return Ok(Settled::Nothing) };
        let Some(since_ns) = open.open_since_ns() else { return Ok(Settled::Nothing) };
        let mut until_ns = since_ns + self.policy.hold_ns();
        let mut enough = false;
        if let Some(slo) = &mut self.slo {
            slo.look(now_ns);
            until_ns = since_ns + slo.hold_ns();
            enough = open.open_packets() >= slo.target() || open.open_bytes() >= slo.queue_bytes();
        }
        let reason = match self.policy {
            _ if open.is_urgent() => Reason::Class,
            _ if now_ns >= until_ns => Reason::Deadline,
            Policy::Slo { .. } if enough => Reason::Target,
            // The guest sleeps, or has given back all that it had; else it is to say when it has. A guest
            // that is just being given something is about to be busy, whatever it says.
            Policy::Opportunistic { .. }
                if available >= self.posted_most
                    || (self.emitted == 0 && self.ring.frontend_waits())
                    || self.ring.rearm_after(self.posted_most) =>
            {
                Reason::Idle
            }
            _ => return Ok(Settled::Held { until_ns }),
        };
        open.close(region, now_ns, reason);
        Ok(Settled::Closed)
    }

    /// Adds the copies for what waits and fits into posted buffers.
    fn emit(&mut self, out: &mut Outgoing<'_, P>) -> Result<Emitted, Overrun>
    where
        P: PageAccess,
    {
        loop {
            let mut available = self.available()?;
            let lacking = match &self.queue {
                Queue::Containers(_) => self.emit_containers(&mut available, out),
                Queue::Plain(_) => self.emit_frames(&mut available, out),
            };
            self.blocked = matches!(lacking, Some(1..));
            match lacking {
                None => return Ok(Emitted::All),
                Some(0) => return Ok(Emitted::LacksRoom),
                Some(needed) => {
                    if !self.ring.rearm_after(needed) {
                        return Ok(Emitted::LacksSlots);
                    }
                }
            }
        }
    }

    /// Returns the slots that the next chain lacks, 0 if it lacks room in the batch.
    fn emit_containers(&mut self, available: &mut u32, out: &mut Outgoing<'_, P>) -> Option<u32>
    where
        P: PageAccess,
    {
        let Queue::Containers(open) = &self.queue else { return None };
        for closed in open.waiting().skip(self.emitted) {
            let slots = closed.slots();
            if slots > *available {
                return Some(slots);
            }
            if out.copies.room() < slots as usize {
                return Some(0);
            }
            let mut left = closed.bytes;
            let mut start = closed.start;
            for ahead in 0..slots {
                let request: RxRequest = self.ring.peek(ahead);
                self.ids[self.emitted_slots] = request.id;
                self.emitted_slots += 1;
                if ahead >= closed.skip {
                    let len = left.min(PAGE_SIZE as u32) as u16;
                    out.copy(self.domain, request, start, len);
                    start += u32::from(len);
                    left -= u32::from(len);
                }
            }
            self.ring.advance(slots);
            *available -= slots;
            self.emitted += 1;
        }
        None
    }

    fn emit_frames(&mut self, available: &mut u32, out: &mut Outgoing<'_, P>) -> Option<u32>
    where
        P: PageAccess,
    {
        let Queue::Plain(frames) = &self.queue else { return None };
        while let Some(frame) = frames.peek(self.emitted) {
            let slots = frame.slots();
            if slots > *available {
                return Some(slots);
            }
            if out.copies.room() < slots as usize {
                return Some(0);
            }
            let mut left = frame.len;
            let mut start = frame.start;
            for ahead in 0..slots {
                let request: RxRequest = self.ring.peek(ahead);
                self.ids[self.emitted_slots] = request.id;
                self.emitted_slots += 1;
                if frame.meta.gso.is_some() && ahead == 1 {
                    continue;
                }
                let len = left.min(PAGE_SIZE as u32) as u16;
                out.copy(self.domain, request, start, len);
                start += u32::from(len);
                left -= u32::from(len);
            }
            self.ring.advance(slots);
            *available -= slots;
            self.emitted += 1;
        }
        None
    }

    /// Answers the chains of the batch that was just copied, at `done_ns`. Returns whether the guest is to be
    /// notified.
    pub fn complete(&mut self, ops: &[CopyOp], done_ns: u64, counters: &mut Counters) -> bool {
        if self.emitted == 0 {
            return false;
        }
        self.moved_ns = done_ns;
        let mut answers = Answers { ring: &mut self.ring, ids: &self.ids, at: 0 };
        let mut op = self.first_op;
        match &mut self.queue {
            Queue::Containers(open) => {
                for closed in open.waiting().take(self.emitted) {
                    for _ in 0..closed.skip {
                        answers.give(0, status::DROPPED);
                    }
                    let slots = closed.slots() - closed.skip;
                    let done = &ops[op..op + slots as usize];
                    op += slots as usize;
                    let good = done.iter().all(|op| op.status == GNTST_OKAY);
                    for (i, copy) in (1..=slots).zip(done) {
                        let more = if i < slots { rx_flags::MORE_DATA } else { 0 };
                        if good {
                            answers.give(more, copy.len as i16);
                        } else {
                            answers.give(0, status::DROPPED);
                        }
                    }
                    self.floods.left(u64::from(closed.packets));
                    counters.flushes.count(closed.reason);
                    if good {
                        counters.rx.containers += 1;
                    } else {
                        counters.drops.bad_buffer += u64::from(closed.packets);
                        counters.guest_errors += 1;
                    }
                    let hold_ns = done_ns.saturating_sub(closed.opened_ns);
                    counters.longest_hold_ns = counters.longest_hold_ns.max(hold_ns);
                    counters.late.judge(hold_ns, self.policy.hold_ns());
                    for (after_ns, packets) in open.stamps(&closed) {
                        self.holds.count(hold_ns.saturating_sub(after_ns), packets);
                    }
                    if let Some(slo) = &mut self.slo {
                        slo.learn(&handed(&closed, self.pass_ns, done_ns));
                    }
                }
                open.release(self.emitted);
                self.ring.mark(open.next_sequence());
            }
            Queue::Plain(frames) => {
                for i in 0..self.emitted {
                    let Some(frame) = frames.peek(i) else { break };
                    let slots = frame.len.div_ceil(PAGE_SIZE as u32) as usize;
                    let done = &ops[op..op + slots];
                    op += slots;
                    self.holds.count(done_ns.saturating_sub(frame.accepted_ns), 1);
                    if !answers.frame(frame.meta, done) {
                        counters.drops.bad_buffer += 1;
                        counters.guest_errors += 1;
                    }
                }
                frames.release(self.emitted);
                self.floods.left(self.emitted as u64);
            }
        }
        let range = self.first_op..op;
        let granted = counters.rx.count_copies(&ops[range]);
        counters.hypercalls += hypercalls(&(self.first_granted..self.first_granted + granted));
        counters.rx.slots += self.emitted_slots as u64;
        self.emitted = 0;
        self.ring.publish()
    }

    /// Returns the ring index of the next response, for tests and for a later owner of the ring.
    pub fn next_slot(&self) -> Index {
        self.ring.next_request()
    }
}

/// Returns what a container that was handed over says about delays.
fn handed(closed: &Closed, pass_ns: u64, done_ns: u64) -> Handed {
    Handed {
        open_ns: closed.closed_ns.saturating_sub(closed.opened_ns),
        wait_ns: done_ns.saturating_sub(closed.closed_ns),
        queued_bytes: closed.queued_bytes as usize,
        bytes: closed.bytes as usize,
        cause: if closed.reason == Reason::Deadline { Cause::Deadline } else { Cause::Other },
        turn: if closed.closed_ns < pass_ns { Turn::Later } else { Turn::Same },
    }
}

/// What goes out in a pass: from where, and into what.
struct Outgoing<'a, P> {
    region: &'a [u8],
    region_start: usize,
    staged: Option<&'a Table<P>>,
    copies: &'a mut Copies,
}

impl<P: PageAccess> Outgoing<'_, P> {
    /// Adds the copy of bytes of the region into a posted page; makes it, if the page is mapped.
    fn copy(&mut self, domain: DomainId, request: RxRequest, start: u32, len: u16) {
        let local = self.region_start as u32 + start;
        let mut op = CopyOp::new(local, GrantRef(request.gref), domain, 0, len);
        if let Some(table) = self.staged {
            table.copy_in(&mut op, &self.region[start as usize..start as usize + usize::from(len)]);
        }
        self.copies.push(op);
    }
}

/// Writes responses in the order of the requests.
struct Answers<'a, P> {
    ring: &'a mut BackRing<netif::Rx, P>,
    ids: &'a [u16],
    at: usize,
}

impl<P: SharedWords> Answers<'_, P> {
    fn give(&mut self, flags: u16, status: i16) {
        let id = self.ids[self.at];
        self.at += 1;
        let answer = RxResponse { id, offset: 0, flags, status };
        // There is a request for each answer: as many ids were noted as requests were taken.
        let _ = self.ring.respond(answer);
    }

    /// Answers the chain of a plain frame. Returns whether it went out.
    fn frame(&mut self, meta: Meta, done: &[CopyOp]) -> bool {
        let good = done.iter().all(|op| op.status == GNTST_OKAY);
        let mut first = match meta.checksum {
            _ if !good => 0,
            Checksum::Unverified => 0,
            Checksum::Valid => rx_flags::DATA_VALIDATED,
            Checksum::Blank => rx_flags::DATA_VALIDATED | rx_flags::CSUM_BLANK,
        };
        if meta.gso.is_some() && good {
            first |= rx_flags::EXTRA_INFO;
        }
        for (i, op) in done.iter().enumerate() {
            let more = if i + 1 < done.len() && good { rx_flags::MORE_DATA } else { 0 };
            let flags = more | if i == 0 { first } else { 0 };
            self.give(flags, if good { op.len as i16 } else { status::ERROR });
            if let (0, Some(gso)) = (i, meta.gso) {
                if good {
                    let kind = ExtraKind::Gso { size: gso.size, gso_type: gso.kind.to_netif() };
                    self.at += 1;
                    let _ = self.ring.respond(ExtraInfo { kind, more: false });
                } else {
                    self.give(0, status::ERROR);
                }
            }
        }
        good
    }
}
