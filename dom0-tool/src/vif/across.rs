//! A container in the pages of a guest that has them mapped here: what is decided on is read first, into private memory,
//! and the rest once it is known where it goes: straight into the pages of another guest where those are mapped, too, or into
//! the memory in which an uplink keeps frames.
//!
//! Each byte is read once. Header, table and the first bytes of each packet, from which it is decided, go out from
//! private memory, so that it does not matter what their writer makes of them meanwhile. Where a packet goes is seen by its
//! addresses; where it goes by itself, more is looked at, but nothing behind its headers. It knows pages and packets,
//! and neither rings nor ports.

use std::ops::Range;

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{DESCRIPTOR_BYTES, HEADER_BYTES, MIN_PACKET_BYTES, Packet};

use crate::scattered::{MOST_PARTS, Scattered};
use crate::xen::{GrantRef, PageAccess};

/// Pages of a container, at most.
pub const MOST_PAGES: usize = 16;
/// Bytes of each packet that are decided on: where it goes to and comes from.
const KNOWN_BYTES: usize = MIN_PACKET_BYTES;
/// All that is ever looked at of a packet is in so many bytes: addresses, two tags and the largest headers of IP and TCP.
const HEAD_BYTES: usize = 144;

/// The mapped pages of one container, in order, or some of them.
#[derive(Debug)]
pub struct Mapped<'a, P>([Option<&'a P>; MOST_PAGES]);

impl<'a, P: PageAccess> Mapped<'a, P> {
    /// Finds the pages behind references, the first of which is the container's page `first`. `None` if one is not mapped,
    /// or there are too many.
    pub fn find(
        first: usize,
        grants: impl Iterator<Item = GrantRef>,
        page: impl Fn(GrantRef) -> Option<&'a P>,
    ) -> Option<Self> {
        let mut pages = [None; MOST_PAGES];
        let mut slots = pages.iter_mut().skip(first);
        for grant in grants {
            *slots.next()? = Some(page(grant)?);
        }
        Some(Self(pages))
    }

    /// Calls `each` with each page that has a part of a range, where in the page that part is, and where in the container.
    fn parts(&self, range: Range<usize>, mut each: impl FnMut(&'a P, usize, Range<usize>)) {
        let mut at = range.start;
        while at < range.end {
            let (number, offset) = (at / PAGE_SIZE, at % PAGE_SIZE);
            let end = range.end.min(at - offset + PAGE_SIZE);
            // There are as many pages as the container needs.
            if let Some(page) = self.0.get(number).copied().flatten() {
                each(page, offset, at..end);
            }
            at = end;
        }
    }

    /// Copies a part into the private copy.
    fn read(&self, range: Range<usize>, copy: &mut [u8]) {
        self.parts(range, |page, offset, part| {
            page.copy_out(offset, &mut copy[part]);
        });
    }

    /// Copies a part to somewhere else in private memory, which is as long.
    fn read_into(&self, range: Range<usize>, place: &mut [u8]) {
        let start = range.start;
        self.parts(range, |page, offset, part| {
            page.copy_out(offset, &mut place[part.start - start..part.end - start]);
        });
    }

    /// Copies bytes of private memory to somewhere in the pages.
    fn write(&self, at: usize, bytes: &[u8]) {
        self.parts(at..at + bytes.len(), |page, offset, part| {
            page.copy_in(offset, &bytes[part.start - at..part.end - at]);
        });
    }

    /// Copies a part to somewhere else in other pages.
    fn copy_across(&self, range: Range<usize>, to: &Self, at: usize) {
        let start = range.start;
        self.parts(range, |page, offset, part| {
            let there = at + (part.start - start)..at + (part.end - start);
            let first = there.start;
            to.parts(there, |target, into, piece| {
                page.copy_across(offset + (piece.start - first), target, into, piece.len());
            });
        });
    }

    /// Reads header and table of a container into the private copy, which is as long as the container. Returns how many
    /// bytes that was. Nothing is judged.
    pub fn read_table(&self, copy: &mut [u8]) -> usize {
        let header = HEADER_BYTES.min(copy.len());
        self.read(0..header, copy);
        let count = copy.get(2..4).map_or(0, |count| usize::from(u16::from_le_bytes([count[0], count[1]])));
        let end = (HEADER_BYTES + DESCRIPTOR_BYTES * count).min(copy.len());
        self.read(header..end, copy);
        end.max(header)
    }
}

/// A container, or what was read of it so far.
#[derive(Debug)]
pub struct Whole<'a, P> {
    /// A private copy. Of what was not read, nothing is known of what is here in its place.
    pub bytes: &'a mut [u8],
    /// The packets that were found in it.
    pub packets: &'a [Packet],
    /// Where in the blocks the copy lies, in bytes.
    pub at: u32,
    /// Where the rest is, if not all was read.
    unread: Option<Mapped<'a, P>>,
    /// Bytes of packets that were read so far.
    read_bytes: usize,
    /// Where the packet is of which more was read than its first bytes, and how much of it is known.
    head: (usize, usize),
}

impl<'a, P: PageAccess> Whole<'a, P> {
    /// Takes a container that was read, or of which header and table were; then reads what is decided on.
    pub fn new(bytes: &'a mut [u8], packets: &'a [Packet], at: u32, unread: Option<Mapped<'a, P>>) -> Self {
        let mut whole = Self { bytes, packets, at, unread, read_bytes: 0, head: (0, 0) };
        if let Some(pages) = &whole.unread {
            for packet in packets {
                let start = packet.range().start;
                pages.read(start..start + KNOWN_BYTES, whole.bytes);
            }
            whole.read_bytes = KNOWN_BYTES * packets.len();
        }
        whole
    }

    /// Returns where its last packet ends.
    pub fn end(&self) -> usize {
        self.packets.last().map_or(0, |packet| packet.range().end)
    }

    /// Returns whether not all was read.
    pub fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// Returns how many bytes of packets were read.
    pub fn read_bytes(&self) -> usize {
        self.read_bytes
    }

    /// Reads the rest.
    pub fn fill(&mut self) {
        let Some(pages) = self.unread.take() else { return };
        for packet in self.packets {
            let Range { start, end } = packet.range();
            pages.read(start + KNOWN_BYTES..end, self.bytes);
            self.read_bytes += end - start - KNOWN_BYTES;
        }
    }

    /// Writes a packet, all of it, to a place in private memory that is as long: what it was decided on, and the rest from
    /// where it is.
    pub fn read_packet(&mut self, packet: &Packet, place: &mut [u8]) {
        let Range { start, end } = packet.range();
        let known = if self.unread.is_some() { start + KNOWN_BYTES } else { end };
        let (first, rest) = place.split_at_mut(known - start);
        first.copy_from_slice(&self.bytes[start..known]);
        if let Some(pages) = &self.unread {
            pages.read_into(known..end, rest);
            self.read_bytes += end - known;
        }
    }

    /// Returns a packet of which no more is read than its headers, for the system to read the rest of it. `None` if that cannot
    /// be.
    pub fn scatter(&mut self, packet: &Packet) -> Option<Scattered<'_>> {
        let packet = packet.range();
        self.read_up_to(&packet, HEAD_BYTES.min(packet.len()));
        let known = self.known(&packet);
        let mut rest = [None; MOST_PARTS];
        let (mut places, mut found) = (rest.iter_mut(), known);
        self.unread.as_ref()?.parts(packet.start + known..packet.end, |page, offset, part| {
            if let (Some(span), Some(place)) = (page.span(offset, part.len()), places.next()) {
                found += span.len();
                *place = Some(span);
            }
        });
        if found < packet.len() {
            return None;
        }
        self.read_bytes += packet.len() - known;
        Some(Scattered { frame: &self.bytes[packet], known, rest })
    }

    /// Returns how many bytes of a packet are known.
    fn known(&self, packet: &Range<usize>) -> usize {
        let (start, known) = self.head;
        match &self.unread {
            None => packet.len(),
            Some(_) if start == packet.start => known,
            Some(_) => KNOWN_BYTES,
        }
    }

    /// Reads a packet up to a length into the private copy.
    fn read_up_to(&mut self, packet: &Range<usize>, len: usize) {
        let known = self.known(packet);
        if let Some(pages) = &self.unread
            && known < len
        {
            pages.read(packet.start + known..packet.start + len, self.bytes);
            self.read_bytes += len - known;
            self.head = (packet.start, len);
        }
    }

    /// Returns what is known of a packet.
    pub fn known_part(&self, packet: &Packet) -> &[u8] {
        let packet = packet.range();
        &self.bytes[packet.start..packet.start + self.known(&packet)]
    }

    /// Returns whether a packet is worth being handed on from where it is: not all of it is known.
    pub fn is_worth_placing(&self, packet: &Packet) -> bool {
        self.unread.is_some() && usize::from(packet.len) > HEAD_BYTES
    }

    /// Reads the headers of a packet into the private copy. Returns the packet there: nothing is known of what is behind
    /// its first `HEAD_BYTES`.
    pub fn read_head(&mut self, packet: &Packet) -> &[u8] {
        let packet = packet.range();
        self.read_up_to(&packet, HEAD_BYTES.min(packet.len()));
        &self.bytes[packet]
    }

    /// Reads the rest of a packet into the private copy, and returns all of it there.
    pub fn fill_packet(&mut self, packet: &Packet) -> &[u8] {
        let packet = packet.range();
        self.read_up_to(&packet, packet.len());
        &self.bytes[packet]
    }

    /// Copies a packet to a place in another guest's pages: from the private copy what is known of it, and the rest from where
    /// it is, which is not read again.
    pub fn write_packet(&self, packet: &Packet, to: &Mapped<'_, P>, at: usize) {
        let packet = packet.range();
        let known = self.known(&packet);
        to.write(at, &self.bytes[packet.start..packet.start + known]);
        if let Some(pages) = &self.unread {
            pages.copy_across(packet.start + known..packet.end, to, at + known);
        }
    }

    /// Copies the container into another guest's pages: from the private copy what it was decided on, with what lies between
    /// packets, which was cleared there; and the rest from where it is, which is not read again.
    pub fn write_across(&mut self, to: &Mapped<'_, P>) {
        let Some(pages) = self.unread.take() else { return };
        let mut done = 0;
        for packet in self.packets {
            let Range { start, end } = packet.range();
            to.write(done, &self.bytes[done..start + KNOWN_BYTES]);
            pages.copy_across(start + KNOWN_BYTES..end, to, start + KNOWN_BYTES);
            done = end;
        }
    }
}
