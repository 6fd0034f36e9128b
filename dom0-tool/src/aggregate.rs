//! The containers of one guest on their way out: the open one, and those that wait for ring slots.
//!
//! Packets are appended straight into the open container and are never moved again, or stay where they are, as pieces of it
//! that lie elsewhere; each of its pages is page-aligned, so that it goes out in exactly one copy where there are no such
//! pieces. This module knows neither rings nor grants nor policies: it is told when to close a container, and hands closed
//! ones over in order.

mod closed;
mod pieces;

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{
    DESCRIPTOR_BYTES, HEADER_BYTES, MAX_PACKETS, MAX_RX_BYTES, MIN_PACKET_BYTES, MIN_SIZE_BYTES, Meta,
    Packet, Writer, readdress,
};
use drayage_wire::netif::RING_SLOTS;

use crate::policy::Reason;
use crate::vif::holds::Stamps;
use crate::vif::scratch::Lent;
pub use closed::{Closed, Place};
pub use pieces::{Held, Part, Piece};
use pieces::{MOST_IN_ONE, Pieces};

/// Bytes of private memory for the containers of one guest: as many as fit may be open or waiting.
pub const REGION_BYTES: usize = 8 * MAX_RX_BYTES;
/// The most containers that may be open or waiting, however small they are.
const MOST_BUFFERS: usize = REGION_BYTES / MIN_SIZE_BYTES;
/// The fewest packets that a table has room for.
const LEAST_TABLE: usize = 8;

/// Whether a chain may go from slot 255 to slot 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// It may.
    Allowed,
    /// It must end at slot 255.
    Forbidden,
}

/// What came of a packet that is not to be copied into the guest's region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referral {
    /// It is in the open container.
    Done,
    /// No more may be referred to, or there is no place for it yet: it is to be copied.
    CopyIt,
}

/// Where in the pages that a guest has posted a packet of the open container belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// How many ring slots are for what goes out before the container.
    pub slots_before: u32,
    /// Where in the container it starts, in bytes.
    pub start: usize,
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All containers are full and wait for ring slots.
    NoRoom,
    /// It is larger than any container of this guest.
    TooLarge,
}

/// The containers of one guest.
#[derive(Debug)]
pub struct Aggregator {
    size: usize,
    wrap: Wrap,
    writer: Option<Writer>,
    pieces: Pieces,
    opened_ns: u64,
    /// Whether the open container has a packet that does not wait.
    urgent: bool,
    /// The buffer that is open, or will be next.
    current: usize,
    skip: u32,
    /// The ring slot at which the next container starts.
    slot: u32,
    sequence: u32,
    /// How far the buffers of two containers lie apart, in bytes, and how many there are.
    stride: usize,
    buffers: usize,
    closed: Box<[Closed; MOST_BUFFERS]>,
    /// When the packets in each buffer were accepted.
    stamps: Box<[Stamps; MOST_BUFFERS]>,
    first: usize,
    waiting: usize,
    waiting_bytes: usize,
    mean_bytes: usize,
    /// How many packets the next table is for.
    table: usize,
    /// How many packets the open container's table is for.
    open_table: usize,
}

impl Aggregator {
    /// Makes the aggregator of a guest that takes containers of at most `size` bytes and whose next ring slot
    /// is `slot`.
    pub fn new(size: usize, wrap: Wrap, slot: u32) -> Self {
        let size = size.clamp(MIN_SIZE_BYTES, MAX_RX_BYTES);
        // At page boundaries, so that each of a container's pages is one copy.
        let stride = size.next_multiple_of(PAGE_SIZE);
        Self {
            size,
            wrap,
            writer: None,
            pieces: Pieces::default(),
            opened_ns: 0,
            urgent: false,
            current: 0,
            skip: 0,
            slot: slot % RING_SLOTS,
            sequence: 0,
            stride,
            buffers: (REGION_BYTES / stride).min(MOST_BUFFERS),
            closed: Box::new([Closed::NONE; MOST_BUFFERS]),
            stamps: Box::new([Stamps::NONE; MOST_BUFFERS]),
            first: 0,
            waiting: 0,
            waiting_bytes: 0,
            mean_bytes: 60,
            table: 64,
            open_table: 0,
        }
    }

    /// Begins with another sequence number than 0.
    #[must_use]
    pub fn numbered_from(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// Returns the sequence number of the oldest container that was not released.
    pub fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_sub(self.waiting as u32)
    }

    /// Returns the largest container.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns when the open container got its first packet, if there is one.
    pub fn open_since_ns(&self) -> Option<u64> {
        self.writer.is_some().then_some(self.opened_ns)
    }

    /// Returns the number of the open container, and the position of the last packet in it.
    pub fn last(&self) -> Option<(u32, u32)> {
        self.writer.as_ref().map(|writer| (self.sequence, (writer.count() as u32).saturating_sub(1)))
    }

    /// Returns how many bytes the open container has.
    pub fn open_bytes(&self) -> usize {
        self.writer.map_or(0, |w| w.total_bytes())
    }

    /// Returns how many packets the open container has.
    pub fn open_packets(&self) -> usize {
        self.writer.map_or(0, |w| w.count())
    }

    /// Returns whether the open container has a packet that does not wait.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Says that the packet that was just appended does not wait.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Returns how many bytes are in containers, the open one included.
    pub fn queued_bytes(&self) -> usize {
        self.waiting_bytes + self.open_bytes()
    }

    /// Returns when the packets of a waiting container were accepted: so long after the first, so many.
    pub fn stamps(&self, closed: &Closed) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.stamps[closed.start as usize / self.stride].iter()
    }

    /// Returns whether a packet of `len` bytes, which is not too large, would be taken.
    pub fn has_room_for(&self, len: usize) -> bool {
        match &self.writer {
            Some(writer) => writer.fits(len) || self.waiting + 1 < self.buffers,
            None => self.waiting < self.buffers,
        }
    }

    /// Returns how many bytes of containers, however they are filled, there is room for at least.
    pub fn room_bytes(&self) -> usize {
        let used = self.waiting + usize::from(self.writer.is_some());
        self.buffers.saturating_sub(used) * self.size
    }

    /// Returns the containers that wait, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = Closed> + '_ {
        (0..self.waiting).map(|i| self.closed[(self.first + i) % self.buffers])
    }

    /// Returns how many containers wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting
    }

    /// Frees the buffers of the `n` oldest waiting containers.
    pub fn release(&mut self, n: usize) {
        let n = n.min(self.waiting);
        let pieces = self.waiting().take(n).map(|closed| closed.pieces).sum();
        self.pieces.release(pieces);
        self.waiting_bytes -= self.waiting().take(n).map(|closed| closed.bytes as usize).sum::<usize>();
        self.first = (self.first + n) % self.buffers;
        self.waiting -= n;
    }

    /// Appends a packet of `len` bytes that `fill` writes in place. `region` is the guest's region.
    ///
    /// # Errors
    /// [`Refusal`]; `fill` has then not run.
    pub fn push_with(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        len: usize,
        meta: Meta,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refusal> {
        self.make_room(region, now_ns, len)?;
        let buffer = buffer(region, self.current, self.stride);
        let Some(writer) = &mut self.writer else { return Err(Refusal::NoRoom) };
        writer.push_with(buffer, len, meta, fill).map_err(|_| Refusal::TooLarge)?;
        self.stamps[self.current].add(now_ns.saturating_sub(self.opened_ns));
        Ok(())
    }

    /// Appends a packet of `len` bytes that lies at `at` in the blocks of what guests sent, and stays there. What lies behind
    /// the packet before it, as it does in the container, is referred to together with that; else `refer` refers to it.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is then referred to.
    pub fn push_lent(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        (len, meta): (usize, Meta),
        at: u32,
        refer: impl FnOnce() -> Option<Lent>,
    ) -> Result<Referral, Refusal> {
        if len < MIN_PACKET_BYTES {
            return Err(Refusal::TooLarge);
        }
        self.make_room(region, now_ns, len)?;
        let Some(mut writer) = self.writer else { return Err(Refusal::NoRoom) };
        let mut start = writer.next_offset() as u32;
        if !self.pieces.extend(start, len as u32, Some(at)) {
            if self.pieces.in_open() == MOST_IN_ONE {
                self.close(region, now_ns, Reason::Full);
                self.make_room(region, now_ns, len)?;
                let Some(next) = self.writer else { return Err(Refusal::NoRoom) };
                writer = next;
                start = writer.next_offset() as u32;
            }
            if !self.pieces.have_room() {
                return Ok(Referral::CopyIt);
            }
            let Some(lent) = refer() else { return Ok(Referral::CopyIt) };
            self.pieces.push(Piece { start, end: start + len as u32, place: Held::Lent(lent) });
        }
        self.describe(region, now_ns, writer, len, meta);
        Ok(Referral::Done)
    }

    /// Appends a packet of `len` bytes that `place` writes to where it belongs in the guest's pages, if it can.
    ///
    /// # Errors
    /// [`Refusal`]; `place` has then not run.
    pub fn push_placed(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        (len, meta): (usize, Meta),
        place: impl FnOnce(Spot) -> bool,
    ) -> Result<Referral, Refusal> {
        self.make_room(region, now_ns, len)?;
        let Some(writer) = self.writer else { return Err(Refusal::NoRoom) };
        // What went across has taken its slots.
        let slots: u32 = self.waiting().filter(|one| one.place != Place::Across).map(|one| one.slots()).sum();
        let spot = Spot { slots_before: slots + self.skip, start: writer.next_offset() };
        let room = self.pieces.have_room() && self.pieces.in_open() < MOST_IN_ONE;
        if !room || !place(spot) {
            return Ok(Referral::CopyIt);
        }
        let (start, end) = (spot.start as u32, (spot.start + len) as u32);
        if !self.pieces.extend(start, len as u32, None) {
            self.pieces.push(Piece { start, end, place: Held::Placed });
        }
        self.describe(region, now_ns, writer, len, meta);
        Ok(Referral::Done)
    }

    /// Adds a packet to the open container's table that lies elsewhere, and fits.
    fn describe(&mut self, region: &mut [u8], now_ns: u64, mut writer: Writer, len: usize, meta: Meta) {
        let _ = writer.push_with(buffer(region, self.current, self.stride), len, meta, |_| ());
        self.writer = Some(writer);
        self.stamps[self.current].add(now_ns.saturating_sub(self.opened_ns));
    }

    /// Returns the copies that a waiting container takes, in order.
    pub fn parts(&self, closed: &Closed) -> impl Iterator<Item = Part> + use<'_> {
        let whole = |lent| Piece { start: 0, end: closed.bytes, place: Held::Lent(lent) };
        let whole = if let Place::Lent(lent) = closed.place { Some(whole(lent)) } else { None };
        pieces::parts(closed.start, closed.bytes, whole.into_iter().chain(self.pieces_of(closed)))
    }

    /// Returns the pieces of a waiting container, in order.
    pub fn pieces_of(&self, closed: &Closed) -> impl Iterator<Item = Piece> + use<'_> {
        self.pieces.numbered(closed.first_piece, closed.pieces)
    }

    /// Returns all pieces, those of the open container included.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.all()
    }

    /// Clears what lies between the packets of a waiting container's pieces, and goes out with them.
    pub fn clear_gaps(&self, closed: &Closed, region: &[u8], blocks: &mut [u8]) {
        if closed.pieces == 0 {
            return;
        }
        let table = &region[closed.start as usize + HEADER_BYTES..];
        let (table, _) = table[..DESCRIPTOR_BYTES * closed.packets as usize].as_chunks();
        pieces::clear_gaps(table, self.pieces_of(closed), blocks);
    }

    /// Appends a container of another writer's whole: its packets, which a manifest found in it, are taken, and what
    /// lies between them is cleared. It is copied only if its place is to be our own, and takes the place of one of ours in
    /// any case. What is open is closed before it, so that packets stay in order.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing has changed.
    pub fn push_whole(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        container: &mut [u8],
        packets: &[Packet],
        place: Place,
    ) -> Result<(), Refusal> {
        if container.len() > self.size || packets.is_empty() {
            return Err(Refusal::TooLarge);
        }
        let open_slots =
            self.open_bytes().div_ceil(PAGE_SIZE) as u32 + if self.writer.is_some() { self.skip } else { 0 };
        let slot = (self.slot + open_slots) % RING_SLOTS;
        let crosses = slot as usize + container.len().div_ceil(PAGE_SIZE) > RING_SLOTS as usize;
        if self.waiting + usize::from(self.writer.is_some()) >= self.buffers
            || (self.wrap == Wrap::Forbidden && crosses)
        {
            return Err(Refusal::NoRoom);
        }
        self.close(region, now_ns, Reason::Whole);
        let bytes = readdress(container, packets, self.sequence, 0);
        if place == Place::Own {
            buffer(region, self.current, self.stride)[..bytes].copy_from_slice(&container[..bytes]);
        }
        self.skip = 0;
        self.stamps[self.current].clear();
        self.stamps[self.current].add_many(0, packets.len() as u32);
        self.opened_ns = now_ns;
        self.append(now_ns, bytes, packets.len(), Reason::Whole, place);
        Ok(())
    }

    /// Closes the open container and opens the next, if need be, so that a packet of `len` bytes fits into it.
    fn make_room(&mut self, region: &mut [u8], now_ns: u64, len: usize) -> Result<(), Refusal> {
        // At most: the open one is full, the next one ends with the ring, the third takes it.
        if !self.writer.is_some_and(|w| w.fits(len)) {
            if self.writer.is_some() {
                self.close(region, now_ns, Reason::Full);
            }
            self.open(now_ns, len)?;
        }
        Ok(())
    }

    /// Opens a container into which a packet of `len` bytes fits.
    fn open(&mut self, now_ns: u64, len: usize) -> Result<(), Refusal> {
        if !Writer::could_ever_fit(self.size, len) {
            return Err(Refusal::TooLarge);
        }
        if self.waiting == self.buffers {
            return Err(Refusal::NoRoom);
        }
        let mut limit = self.size;
        self.skip = 0;
        if self.wrap == Wrap::Forbidden {
            let left = (RING_SLOTS - self.slot) as usize * PAGE_SIZE;
            if Writer::could_ever_fit(left, len) {
                limit = limit.min(left);
            } else {
                self.skip = RING_SLOTS - self.slot;
            }
        }
        self.open_table = self.table.min(table_for(limit, self.mean_bytes));
        let mut writer = Writer::new(limit, self.open_table);
        if !writer.fits(len) {
            self.open_table = 1;
            writer = Writer::new(limit, 1);
        }
        self.writer = Some(writer);
        self.opened_ns = now_ns;
        self.urgent = false;
        self.stamps[self.current].clear();
        Ok(())
    }

    /// Closes the open container, if there is one.
    pub fn close(&mut self, region: &mut [u8], now_ns: u64, reason: Reason) {
        let Some(mut writer) = self.writer.take() else { return };
        let buffer = buffer(region, self.current, self.stride);
        let packets = writer.count();
        let hold_ns = now_ns.saturating_sub(self.opened_ns).try_into().unwrap_or(u32::MAX);
        let bytes = writer.finish(buffer, self.sequence, hold_ns);
        self.append(now_ns, bytes, packets, reason, Place::Own);
        self.learn(bytes, packets);
    }

    /// Lets the container in the current buffer wait, and goes on to the next buffer.
    fn append(&mut self, now_ns: u64, bytes: usize, packets: usize, reason: Reason, place: Place) {
        self.sequence = self.sequence.wrapping_add(1);
        let start = (self.current * self.stride) as u32;
        self.waiting_bytes += bytes;
        let (first_piece, pieces) = self.pieces.close();
        let mut closed = Closed {
            start,
            place,
            bytes: bytes as u32,
            packets: packets as u32,
            copies: bytes.div_ceil(PAGE_SIZE) as u32,
            pieces,
            first_piece,
            skip: self.skip,
            opened_ns: self.opened_ns,
            closed_ns: now_ns,
            queued_bytes: self.waiting_bytes as u32,
            reason,
        };
        if pieces > 0 {
            closed.copies = self.parts(&closed).count() as u32;
        }
        self.urgent = false;
        self.slot = (self.slot + closed.slots()) % RING_SLOTS;
        if self.wrap == Wrap::Forbidden && self.slot == 0 && reason == Reason::Full {
            closed.reason = Reason::RingEnd;
        }
        self.closed[(self.first + self.waiting) % self.buffers] = closed;
        self.waiting += 1;
        self.current = (self.current + 1) % self.buffers;
    }

    /// Shapes the next table after the container that was just closed.
    fn learn(&mut self, bytes: usize, packets: usize) {
        let payload = bytes.saturating_sub(HEADER_BYTES + DESCRIPTOR_BYTES * self.open_table);
        self.mean_bytes = (3 * self.mean_bytes + payload / packets.max(1)) / 4;
        // A large table costs a container with one packet a second page, a small one only makes it close
        // early: it doubles while it is what closes containers, and shrinks with the packets counted.
        if packets >= self.open_table {
            self.table = (2 * self.table).min(MAX_PACKETS);
        } else if packets < self.table / 4 {
            self.table = (self.table / 2).max(LEAST_TABLE);
        }
    }
}

/// Returns how many packets of `mean_bytes` fit into `size` bytes, with their descriptors.
fn table_for(size: usize, mean_bytes: usize) -> usize {
    let each = mean_bytes.next_multiple_of(4) + DESCRIPTOR_BYTES;
    size.saturating_sub(HEADER_BYTES + 2).div_ceil(each.max(1)).max(1)
}

#[inline]
fn buffer(region: &mut [u8], index: usize, stride: usize) -> &mut [u8] {
    &mut region[index * stride..(index + 1) * stride]
}

#[cfg(test)]
mod tests;
