//! The containers of one guest on their way out: the open one, and those that wait for ring slots.
//!
//! Packets are appended straight into the open container and are never moved again; each of its pages is
//! page-aligned, so that it goes out in exactly one copy. This module knows neither rings nor grants nor
//! policies: it is told when to close a container, and hands closed ones over in order.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{
    DESCRIPTOR_BYTES, HEADER_BYTES, MAX_PACKETS, MAX_RX_BYTES, MIN_SIZE_BYTES, Meta, Packet, Writer,
    readdress,
};
use drayage_wire::netif::RING_SLOTS;

use crate::policy::Reason;
use crate::vif::holds::Stamps;
use crate::vif::scratch::Lent;

/// Where a closed container lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the guest's region.
    Own,
    /// Where another guest's was copied to.
    Lent(Lent),
    /// In the guest's pages already.
    Across,
}

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

/// A closed container.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Where it starts in the guest's region, in bytes; a multiple of a page.
    pub start: u32,
    /// Where it lies.
    pub place: Place,
    /// Its length in bytes.
    pub bytes: u32,
    /// Packets in it.
    pub packets: u32,
    /// Ring slots to be left empty before it.
    pub skip: u32,
    /// When it got its first packet.
    pub opened_ns: u64,
    /// When it was closed.
    pub closed_ns: u64,
    /// Bytes of all that waited then, its own included.
    pub queued_bytes: u32,
    /// Why it was closed.
    pub reason: Reason,
}

impl Closed {
    const NONE: Self = Self {
        start: 0,
        place: Place::Own,
        bytes: 0,
        packets: 0,
        skip: 0,
        opened_ns: 0,
        closed_ns: 0,
        queued_bytes: 0,
        reason: Reason::Full,
    };

    /// Returns how many ring slots it takes, the skipped ones included.
    pub fn slots(&self) -> u32 {
        self.skip + self.bytes.div_ceil(PAGE_SIZE as u32)
    }
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
        // At most: the open one is full, the next one ends with the ring, the third takes it.
        if !self.writer.is_some_and(|w| w.fits(len)) {
            if self.writer.is_some() {
                self.close(region, now_ns, Reason::Full);
            }
            self.open(now_ns, len)?;
        }
        let buffer = buffer(region, self.current, self.stride);
        let Some(writer) = &mut self.writer else { return Err(Refusal::NoRoom) };
        writer.push_with(buffer, len, meta, fill).map_err(|_| Refusal::TooLarge)?;
        self.stamps[self.current].add(now_ns.saturating_sub(self.opened_ns));
        Ok(())
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
        let mut closed = Closed {
            start,
            place,
            bytes: bytes as u32,
            packets: packets as u32,
            skip: self.skip,
            opened_ns: self.opened_ns,
            closed_ns: now_ns,
            queued_bytes: self.waiting_bytes as u32,
            reason,
        };
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
mod tests {
    use super::*;
    use drayage_wire::container::Manifest;

    fn push(open: &mut Aggregator, region: &mut [u8], len: usize, byte: u8) -> Result<(), Refusal> {
        open.push_with(region, 0, len, Meta::default(), |b| b.fill(byte))
    }

    #[test]
    fn small_containers_wait_in_all_of_the_region() {
        for (size, least) in [(4096, 64), (5000, 32), (16_384, 16), (65_536, 4)] {
            let mut region = vec![0; REGION_BYTES];
            let mut open = Aggregator::new(size, Wrap::Allowed, 0);
            let mut packets = 0u64;
            while push(&mut open, &mut region, 1000, packets as u8).is_ok() {
                packets += 1;
            }
            assert!(open.waiting_count() >= least, "{} of {size} bytes", open.waiting_count());
            assert!(!open.has_room_for(1000));
            // All of them are whole, apart from each other, and in order.
            let (mut seen, mut manifest) = (0u64, Manifest::new());
            for (sequence, closed) in (0..).zip(open.waiting()) {
                let start = closed.start as usize;
                assert!(start.is_multiple_of(PAGE_SIZE) && closed.bytes as usize <= size);
                let bytes = &region[start..start + closed.bytes as usize];
                assert_eq!(manifest.read(bytes).expect("a good container").sequence, sequence);
                for packet in manifest.packets() {
                    assert!(bytes[packet.range()].iter().all(|b| *b == seen as u8));
                    seen += 1;
                }
            }
            assert_eq!(seen, packets);
            open.release(1);
            assert!(push(&mut open, &mut region, 1000, 0).is_ok(), "and they are used again");
        }
    }

    #[test]
    fn a_container_is_taken_whole_behind_what_is_open() {
        let mut theirs = vec![0xee; MAX_RX_BYTES];
        let mut writer = Writer::new(16_384, 100);
        for n in 0..100u8 {
            writer.push_with(&mut theirs, 61, Meta::default(), |b| b.fill(n)).unwrap();
        }
        let total = writer.finish(&mut theirs, 4711, 5);
        let mut manifest = Manifest::new();
        manifest.read(&theirs[..total]).unwrap();
        let mut region = vec![0; REGION_BYTES];
        let mut open = Aggregator::new(16_384, Wrap::Allowed, 0).numbered_from(40);
        push(&mut open, &mut region, 60, 0xaa).unwrap();
        assert_eq!(
            open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own),
            Ok(())
        );
        push(&mut open, &mut region, 60, 0xbb).unwrap();
        open.close(&mut region, 9, Reason::Idle);
        let waiting: Vec<Closed> = open.waiting().collect();
        assert_eq!(waiting.iter().map(|closed| closed.packets).collect::<Vec<_>>(), [1, 100, 1]);
        for (closed, (sequence, first)) in waiting.iter().zip([(40, 0xaa), (41, 0), (42, 0xbb)]) {
            let bytes = &region[closed.start as usize..][..closed.bytes as usize];
            let header = manifest.read(bytes).expect("a good container");
            assert_eq!(header.sequence, sequence);
            assert_eq!(bytes[manifest.packets()[0].range()][0], first);
        }
        manifest.read(&theirs[..total]).unwrap();
        while open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own).is_ok() {}
        assert_eq!((open.has_room_for(60), open.room_bytes()), (false, 0));
        assert_eq!(
            open.push_whole(&mut region, 9, &mut theirs[..16_385], manifest.packets(), Place::Own),
            Err(Refusal::TooLarge)
        );
        // At the ring's end, where it may not be crossed.
        let mut open = Aggregator::new(16_384, Wrap::Forbidden, 255);
        assert_eq!(
            open.push_whole(&mut region, 9, &mut theirs[..total], manifest.packets(), Place::Own),
            Err(Refusal::NoRoom)
        );
    }

    #[test]
    fn no_container_crosses_the_rings_end_where_that_is_forbidden() {
        for start in 200..=255 {
            let mut region = vec![0; REGION_BYTES];
            let mut open = Aggregator::new(65_536, Wrap::Forbidden, start);
            let (mut slot, mut skipped, mut ends) = (start, 0, 0);
            for n in 0..2000usize {
                let len = if n % 50 == 0 { 9000 } else { 14 + n * 37 % 1500 };
                push(&mut open, &mut region, len, 0).expect("what waits is taken away");
                for closed in open.waiting() {
                    slot += closed.skip;
                    skipped += closed.skip;
                    assert!(closed.skip == 0 || slot.is_multiple_of(RING_SLOTS), "only up to the ring's end");
                    let pages = closed.slots() - closed.skip;
                    assert!(slot % RING_SLOTS + pages <= RING_SLOTS, "from {slot}, {pages} pages");
                    slot += pages;
                    ends += u32::from(closed.reason == Reason::RingEnd);
                }
                open.release(open.waiting_count());
            }
            assert!(slot > 2 * RING_SLOTS && ends > 0, "the end was met: {slot}, {ends}, {skipped}");
        }
    }
}
