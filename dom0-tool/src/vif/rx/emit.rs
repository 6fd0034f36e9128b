//! What waits for a guest, on its way into the pages that it posted: when the open container goes out, which copies are
//! needed, and what is answered once they are made.
//!
//! It knows the ring and the queue, and neither how packets came into the queue nor who makes the copies.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, Meta, Packet};
use drayage_wire::netif::{self, ExtraInfo, ExtraKind, RxRequest, RxResponse, rx_flags, status};
use drayage_wire::ring::{BackRing, Overrun, SharedWords};

use super::{Queue, Rx, Wish};
use crate::aggregate::{Closed, Held, Piece, Place};
use crate::policy::{Policy, Reason};
use crate::slo::{Cause, Handed, Turn};
use crate::vif::across::MOST_PAGES;
use crate::vif::counters::{Counters, hypercalls};
use crate::vif::scratch::{Leases, Lent};
use crate::vif::staging::Table;
use crate::xen::{Copies, CopyOp, DomainId, GNTST_OKAY, GrantRef, PageAccess};

/// What a chain carries.
#[derive(Clone, Copy)]
pub enum Emission<'a> {
    /// A container, and the way to find its packets: pieces of it may lie elsewhere.
    Container {
        /// Header and table, at least, where they belong.
        bytes: &'a [u8],
        /// Finds the bytes of a packet. Those that went into the guest's pages before there was a capture are not here.
        packet: &'a dyn Fn(&Packet) -> Option<&'a [u8]>,
    },
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

impl<P: SharedWords> Rx<P> {
    /// Shows what the batch that was just copied carries, in order. `region` is this guest's, and `blocks` what guests sent.
    pub fn show_emitted(&self, region: &[u8], blocks: &[u8], mut each: impl FnMut(Emission<'_>)) {
        let bytes = |start: u32, lent: Option<Lent>, len: u32| match lent {
            None => &region[start as usize..(start + len) as usize],
            Some(lent) => &blocks[lent.at as usize..(lent.at + len) as usize],
        };
        match &self.queue {
            Queue::Containers(open) => {
                for closed in open.waiting().take(self.emitted) {
                    let lent = match closed.place {
                        Place::Own => None,
                        Place::Lent(lent) => Some(lent),
                        // A capture lets none go that way.
                        Place::Across => continue,
                    };
                    let bytes = bytes(closed.start, lent, closed.bytes);
                    let packet = |packet: &Packet| {
                        let offset = u32::from(packet.offset);
                        let piece =
                            open.pieces_of(&closed).find(|piece| (piece.start..piece.end).contains(&offset));
                        match piece {
                            None => Some(&bytes[packet.range()]),
                            Some(Piece { start, place: Held::Lent(lent), .. }) => {
                                let at = (lent.at + offset - start) as usize;
                                Some(&blocks[at..at + usize::from(packet.len)])
                            }
                            Some(Piece { place: Held::Placed, .. }) => None,
                        }
                    };
                    each(Emission::Container { bytes, packet: &packet });
                }
            }
            Queue::Plain(frames) => {
                for frame in (0..self.emitted).filter_map(|ahead| frames.peek(ahead)) {
                    each(Emission::Frame(bytes(frame.start, frame.lent, frame.len)));
                }
            }
        }
    }

    pub(super) fn available(&mut self) -> Result<u32, Overrun> {
        let available = self.ring.available()?;
        self.posted_most = self.posted_most.max(available + self.ring.unanswered());
        Ok(available)
    }

    /// Adds the copies for what waits and fits into posted buffers, and for the open container if its time has
    /// come; what goes to pages that are in `staged` is copied there at once. Returns what the vif wishes for.
    ///
    /// # Errors
    /// [`Overrun`]: the ring is not to be used any more.
    pub fn fill_batch(
        &mut self,
        mut sources: Sources<'_>,
        now_ns: u64,
        staged: Option<&Table<P>>,
        copies: &mut Copies,
    ) -> Result<Wish, Overrun>
    where
        P: PageAccess,
    {
        (self.emitted, self.emitted_slots) = (self.across, self.across_slots);
        self.first_op = copies.ops().len();
        self.first_granted = copies.granted();
        self.pass_ns = now_ns;
        match self.emit(&mut Outgoing { sources: sources.again(), staged, copies })? {
            Emitted::All => {}
            Emitted::LacksSlots => return Ok(Wish::Event),
            Emitted::LacksRoom => return Ok(Wish::Now),
        }
        match self.settle(sources.region, now_ns)? {
            Settled::Closed => Ok(match self.emit(&mut Outgoing { sources, staged, copies })? {
                Emitted::All | Emitted::LacksSlots => Wish::Event,
                Emitted::LacksRoom => Wish::Now,
            }),
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
            if out.copies.room() < closed.copies as usize {
                return Some(0);
            }
            let mut grants = [GrantRef::default(); MOST_PAGES];
            for ahead in 0..slots {
                let request = self.requests.get(&self.ring, ahead);
                self.ids[self.emitted_slots] = request.id;
                self.emitted_slots += 1;
                if let Some(page) = ahead.checked_sub(closed.skip) {
                    grants[page as usize] = GrantRef(request.gref);
                }
            }
            open.clear_gaps(&closed, out.sources.region, out.sources.blocks);
            for part in open.parts(&closed) {
                let offset = part.start as usize % PAGE_SIZE;
                let grant = grants[part.start as usize / PAGE_SIZE];
                out.copy(self.domain, (grant, offset), (part.from, part.is_lent), part.len);
            }
            self.requests.advance(&mut self.ring, slots);
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
            let mut start = frame.lent.map_or(frame.start, |lent| lent.at);
            for ahead in 0..slots {
                let request: RxRequest = self.ring.peek(ahead);
                self.ids[self.emitted_slots] = request.id;
                self.emitted_slots += 1;
                if frame.meta.gso.is_some() && ahead == 1 {
                    continue;
                }
                let len = left.min(PAGE_SIZE as u32) as u16;
                out.copy(
                    self.domain,
                    (GrantRef(request.gref), 0),
                    (start, frame.lent.is_some()),
                    u32::from(len),
                );
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
    pub fn complete(
        &mut self,
        ops: &[CopyOp],
        done_ns: u64,
        leases: &mut Leases,
        counters: &mut Counters,
    ) -> bool {
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
                    let good = if closed.place == Place::Across {
                        answers.container(&closed, true);
                        counters.rx.mapped_ops += u64::from(slots);
                        counters.rx.mapped_bytes += u64::from(closed.bytes);
                        true
                    } else {
                        let done = &ops[op..op + closed.copies as usize];
                        op += closed.copies as usize;
                        let good = done.iter().all(|op| op.status == GNTST_OKAY);
                        answers.container(&closed, good);
                        good
                    };
                    if let Place::Lent(lent) = closed.place {
                        self.pins.unpin(leases, lent);
                    }
                    for lent in open.pieces_of(&closed).filter_map(Piece::lent) {
                        self.pins.unpin(leases, lent);
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
                    if let Some(lent) = frame.lent {
                        self.pins.unpin(leases, lent);
                    }
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
        (self.across, self.across_slots) = (0, 0);
        self.ring.publish()
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

/// Where that lies which waits.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The guest's region.
    pub region: &'a mut [u8],
    /// Where it starts in the memory of a batch.
    pub region_start: usize,
    /// The blocks of what guests sent.
    pub blocks: &'a mut [u8],
    /// Where they start there.
    pub blocks_start: usize,
}

impl Sources<'_> {
    fn again(&mut self) -> Sources<'_> {
        Sources { region: self.region, blocks: self.blocks, ..*self }
    }
}

/// What goes out in a pass: from where, and into what.
struct Outgoing<'a, P> {
    sources: Sources<'a>,
    staged: Option<&'a Table<P>>,
    copies: &'a mut Copies,
}

impl<P: PageAccess> Outgoing<'_, P> {
    /// Adds the copy of bytes of the region, or of what is lent, to some place in a posted page; makes it, if the page is mapped.
    fn copy(
        &mut self,
        domain: DomainId,
        (grant, offset): (GrantRef, usize),
        (start, is_lent): (u32, bool),
        len: u32,
    ) {
        let Sources { region, region_start, blocks, blocks_start } = &self.sources;
        let (memory, base) = if is_lent { (&**blocks, *blocks_start) } else { (&**region, *region_start) };
        let mut op = CopyOp::new(base as u32 + start, grant, domain, offset as u16, len as u16);
        if let Some(table) = self.staged {
            table.copy_in(&mut op, &memory[start as usize..(start + len) as usize]);
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

    /// Answers the chain of a container.
    fn container(&mut self, closed: &Closed, good: bool) {
        let mut left = closed.bytes;
        while left > 0 {
            let len = left.min(PAGE_SIZE as u32);
            left -= len;
            let more = if left > 0 { rx_flags::MORE_DATA } else { 0 };
            if good {
                self.give(more, len as i16);
            } else {
                self.give(0, status::DROPPED);
            }
        }
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
