//! Sending: frames become requests. With containers or without, as agreed when the vif was connected.
//!
//! The page of ring slot *i* is page *i* of one pool, into which the stack writes in place. It knows rings,
//! pages and what netif and SPEC.md say of them, and no network stack.
//!
//! A super-frame's extra segment takes a slot of its own, and no page: the pages of its frame stay one range.
//!
//! A backend may answer out of order (Linux's does), so a page is free when the request that names it was
//! answered, and the slot of a page that is not free is not used: until then, the ring counts as full.

mod pack;

use core::num::NonZeroU16;

use drayage_wire::PAGE_SIZE;
use drayage_wire::checksum::{blank, fill};
use drayage_wire::container::{Checksum, Gso, GsoKind};
use drayage_wire::netif::{
    ExtraInfo, ExtraKind, MAX_TX_SLOTS, RING_SLOTS, Tx, TxRequest, TxResponse, status, tx_flags,
};

use crate::counters::TxCounters;
use crate::platform::{DomainId, GrantRef, Platform, Refused, StillInUse};
use crate::pool::{SendPool, SharedRing};
use crate::rx::{Broken, MIRROR_PAGES};
use pack::{FRONT_BYTES, Open};

/// Slots that only replies to received packets may use, so that a full ring does not cost them.
const RESERVED_SLOTS: u32 = 32;
/// The most bytes of a frame: a request says how many in 16 bits.
const MAX_FRAME_BYTES: usize = u16::MAX as usize;

/// What the backend takes from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) mode: Mode,
    /// Blank TCP and UDP checksums over IPv4.
    pub(crate) blank_v4: bool,
    /// And over IPv6.
    pub(crate) blank_v6: bool,
    /// TCP super-frames over IPv4.
    pub(crate) gso_v4: bool,
}

/// What a chain of slots carries, fixed when the vif is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A frame of at most this many slots.
    Frames {
        /// See above.
        max_slots: usize,
    },
    /// A container of at most this many bytes.
    Containers {
        /// See above.
        max_bytes: usize,
    },
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) struct TxQueue<P> {
    ring: SharedRing<Tx, P>,
    pool: SendPool<P>,
    platform: P,
    terms: Terms,
    /// A bit for each page, set while a request that names it is in flight.
    busy: [u64; 4],
    open: Option<Open>,
    /// Packets and bytes sent since the last flush, and between that and the one before. The next container's
    /// table is sized from them: one that is too small ends the container early, one that is too large costs
    /// bytes.
    round: [(usize, usize); 2],
    sequence: u32,
    /// The stack was refused since there was last room.
    starved: bool,
    /// Somebody waits until everything is answered.
    draining: bool,
    notify: bool,
}

impl<P: Platform + Clone> TxQueue<P> {
    /// Allocates ring and pool. Nothing is granted yet.
    pub(crate) fn new(platform: &P) -> Result<Self, Refused> {
        let mut ring = SharedRing::new(platform.clone())?;
        let pool = match SendPool::new(platform.clone(), MIRROR_PAGES) {
            Ok(pool) => pool,
            Err(error) => {
                // It was never granted, so nobody uses it.
                let _ = ring.reclaim();
                return Err(error);
            }
        };
        let mode = Mode::Frames { max_slots: 1 };
        let terms = Terms { mode, blank_v4: false, blank_v6: false, gso_v4: false };
        Ok(Self {
            ring,
            pool,
            platform: platform.clone(),
            terms,
            busy: [0; 4],
            open: None,
            round: [(0, 0); 2],
            sequence: 0,
            starved: false,
            draining: false,
            notify: false,
        })
    }
}

impl<P: Platform> TxQueue<P> {
    /// Grants everything and returns the ring's reference.
    pub(crate) fn open(&mut self, peer: DomainId, terms: Terms) -> Result<u32, Refused> {
        self.terms = terms;
        if let Mode::Frames { max_slots } = &mut self.terms.mode
            && self.pool.mirrored() < MIRROR_PAGES
        {
            // A longer frame might not find its pages in one piece at the ring's end.
            *max_slots = 1;
        }
        self.pool.grant_all(peer)?;
        Ok(self.ring.grant(peer)?.0)
    }

    /// Returns the references of all pages, read-only for the backend.
    pub(crate) fn grants(&self) -> &[GrantRef] {
        self.pool.grants()
    }

    /// Returns the longest frame that can be sent, in bytes.
    pub(crate) fn max_frame_bytes(&self) -> usize {
        match self.terms.mode {
            Mode::Frames { max_slots } => (max_slots.min(MAX_TX_SLOTS) * PAGE_SIZE).min(MAX_FRAME_BYTES),
            // A container of one page always finds one, whatever the position in the ring.
            Mode::Containers { max_bytes } if self.pool.mirrored() >= MIRROR_PAGES => max_bytes - FRONT_BYTES,
            Mode::Containers { .. } => PAGE_SIZE - FRONT_BYTES,
        }
    }

    /// Returns whether the backend takes blank checksums over IPv4.
    pub(crate) fn blanks_v4(&self) -> bool {
        self.terms.blank_v4
    }

    /// Returns the longest TCP super-frame over IPv4 that can be sent, if any can.
    pub(crate) fn max_super_frame_bytes(&self) -> Option<usize> {
        self.terms.gso_v4.then(|| self.max_frame_bytes())
    }

    fn is_busy(&self, page: usize) -> bool {
        self.busy[page / 64] >> (page % 64) & 1 != 0
    }

    /// Takes the answers that are there.
    ///
    /// # Errors
    /// [`Broken`]: the queue must not be used any further.
    pub(crate) fn reap(&mut self, counters: &mut TxCounters) -> Result<(), Broken> {
        let ring = self.ring.get();
        let available = ring.available()?;
        for ahead in 0..available {
            let response: TxResponse = ring.peek(ahead);
            if response.status == status::NULL {
                // The slot of an extra segment, which named no page.
                continue;
            }
            let page = usize::from(response.id);
            let bit = 1 << (page % 64);
            match self.busy.get_mut(page / 64).filter(|bits| **bits & bit != 0) {
                Some(bits) => *bits &= !bit,
                None => counters.bad_responses += 1,
            }
            counters.errors += u64::from(response.status < 0);
        }
        ring.advance(available);
        Ok(())
    }

    /// Returns how many slots from the next one on can be used as one range, `most` at the most.
    fn room(&mut self, most: usize) -> usize {
        let ring = self.ring.get();
        let (first, free) = (ring.next_request().slot(), ring.free_slots() as usize);
        let until_end = RING_SLOTS as usize - first + self.pool.mirrored();
        let most = most.min(free).min(until_end);
        (0..most).take_while(|n| !self.is_busy((first + n) % RING_SLOTS as usize)).count()
    }

    /// Returns whether the stack may send a frame of `len` bytes of its own accord: some slots are kept for
    /// replies, which cannot wait. Where there is no room, what was answered
    /// meanwhile is taken first.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn ready(&mut self, len: usize, counters: &mut TxCounters) -> Result<bool, Broken> {
        if self.open.is_some_and(|open| open.writer.fits(len)) || self.has_room(len) {
            return Ok(true);
        }
        // What is open would be closed by this frame anyway, unless it turns out shorter than it may be.
        self.close_container(counters);
        self.reap(counters)?;
        let ready = self.has_room(len);
        if !ready {
            self.starved = true;
            counters.refused += 1;
        }
        Ok(ready)
    }

    fn has_room(&mut self, len: usize) -> bool {
        // What is open leaves first; what it leaves free of its last page is not used any more.
        let open = self.open.map_or(0, |open| open.writer.total_bytes().div_ceil(PAGE_SIZE));
        let (pages, extras) = match self.terms.mode {
            Mode::Frames { .. } => (len.div_ceil(PAGE_SIZE), usize::from(self.terms.gso_v4)),
            Mode::Containers { .. } => ((len + FRONT_BYTES).div_ceil(PAGE_SIZE), 0),
        };
        let slots = open + pages + extras;
        self.ring.get().free_slots() >= RESERVED_SLOTS + slots as u32 && self.has_pages(open, pages)
    }

    /// Returns whether so many pages from the next slot on are free, and so many more behind them in one range.
    fn has_pages(&mut self, open: usize, pages: usize) -> bool {
        let first = self.ring.get().next_request().slot();
        let ring = RING_SLOTS as usize;
        let start = (first + open) % ring;
        start + pages <= ring + self.pool.mirrored() && !any_is_busy(&self.busy, first, open + pages)
    }

    /// Sends a frame of `len` bytes that `write` fills in; with `segment_bytes` it is a TCP super-frame over
    /// IPv4, to be cut into segments of so much payload. When it cannot be sent, `write` fills `spare`, and the
    /// loss is counted.
    pub(crate) fn send<R>(
        &mut self,
        len: usize,
        segment_bytes: Option<NonZeroU16>,
        spare: &mut [u8],
        counters: &mut TxCounters,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let terms = self.terms;
        self.send_summed(len, segment_bytes, spare, counters, |frame| {
            let result = write(frame);
            (result, finish_checksum(frame, terms))
        })
    }

    /// As [`send`](Self::send), where `write` has seen to the checksum as well, and says what became of it.
    #[inline]
    pub(crate) fn send_summed<R>(
        &mut self,
        len: usize,
        segment_bytes: Option<NonZeroU16>,
        spare: &mut [u8],
        counters: &mut TxCounters,
        write: impl FnOnce(&mut [u8]) -> (R, Checksum),
    ) -> R {
        let gso = segment_bytes.map(|size| Gso { kind: GsoKind::TcpV4, size: size.get() });
        let sent = match self.terms.mode {
            Mode::Frames { max_slots } => self.send_frame(len, gso, max_slots, counters, write),
            Mode::Containers { max_bytes } => self.pack_frame(len, gso, max_bytes, counters, write),
        };
        match sent {
            Ok(result) => {
                self.round[0].0 += 1;
                self.round[0].1 += len;
                counters.packets += 1;
                counters.bytes += len as u64;
                counters.super_frames += u64::from(gso.is_some());
                result
            }
            Err(write) => {
                let too_long = len > self.max_frame_bytes();
                counters.dropped_long += u64::from(too_long);
                counters.dropped_full += u64::from(!too_long);
                write(&mut spare[..len]).0
            }
        }
    }

    fn send_frame<R, F: FnOnce(&mut [u8]) -> (R, Checksum)>(
        &mut self,
        len: usize,
        gso: Option<Gso>,
        max_slots: usize,
        counters: &mut TxCounters,
        write: F,
    ) -> Result<R, F> {
        let pages = len.div_ceil(PAGE_SIZE);
        let slots = pages + usize::from(gso.is_some());
        if pages > max_slots || len > MAX_FRAME_BYTES || !self.make_room(pages, slots, counters) {
            return Err(write);
        }
        let first = self.ring.get().next_request().slot();
        let Some(frame) = self.pool.bytes_mut(first, len) else { return Err(write) };
        let (result, checksum) = write(frame);
        let flags = match checksum {
            Checksum::Blank => tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED,
            Checksum::Valid => tx_flags::DATA_VALIDATED,
            Checksum::Unverified => 0,
        };
        counters.blank_checksums += u64::from(flags & tx_flags::CSUM_BLANK != 0);
        self.push_chain(len, flags, gso, counters);
        Ok(result)
    }

    /// Returns whether `slots` slots and as many pages as one range can be used, after a look at the answers if
    /// need be.
    fn make_room(&mut self, pages: usize, slots: usize, counters: &mut TxCounters) -> bool {
        // An answer that breaks the ring is found again, and acted on, by the next `flush`.
        self.has_space(pages, slots) || (self.reap(counters).is_ok() && self.has_space(pages, slots))
    }

    fn has_space(&mut self, pages: usize, slots: usize) -> bool {
        self.ring.get().free_slots() as usize >= slots && self.room(pages) == pages
    }

    /// Pushes the requests for `total` bytes from the next slot's page on. There is room for them.
    fn push_chain(&mut self, total: usize, flags: u16, gso: Option<Gso>, counters: &mut TxCounters) {
        let ring = self.ring.get();
        let pages = total.div_ceil(PAGE_SIZE);
        let first = ring.next_request().slot();
        let first_flags = flags | if gso.is_some() { tx_flags::EXTRA_INFO } else { 0 };
        for n in 0..pages {
            let page = (first + n) % RING_SLOTS as usize;
            let size = if n == 0 { total } else { (total - n * PAGE_SIZE).min(PAGE_SIZE) };
            let more = if n + 1 < pages { tx_flags::MORE_DATA } else { 0 };
            let flags = if n == 0 { first_flags | more } else { more };
            let gref = self.pool.grant_ref(page).0;
            let _ = ring.push(TxRequest { gref, offset: 0, flags, id: page as u16, size: size as u16 });
            self.busy[page / 64] |= 1 << (page % 64);
            if let (0, Some(gso)) = (n, gso) {
                let kind = ExtraKind::Gso { size: gso.size, gso_type: gso.kind.to_netif() };
                let _ = ring.push(ExtraInfo { kind, more: false });
            }
        }
        counters.slots += (pages + usize::from(gso.is_some())) as u64;
    }

    /// Sends what is open or not published, takes answers, and returns whether the backend is to be notified.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn flush(&mut self, counters: &mut TxCounters) -> Result<bool, Broken> {
        self.close_container(counters);
        self.notify |= self.ring.get().publish();
        if self.round[0].0 > 0 {
            self.round = [(0, 0), self.round[0]];
        }
        self.reap(counters)?;
        Ok(core::mem::take(&mut self.notify))
    }

    /// Returns whether the stack was refused and has not been told since that there is room.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Returns whether an answer is waited for.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.starved || self.draining
    }

    /// If the stack was refused, asks for an event when half of what is in flight is answered; if somebody waits for
    /// that, when all is. Returns whether it is so already.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn rearm(&mut self, len: usize, counters: &mut TxCounters) -> Result<bool, Broken> {
        while self.awaits_answers() {
            self.reap(counters)?;
            if self.starved && self.has_room(len) {
                self.starved = false;
                return Ok(true);
            }
            let ring = self.ring.get();
            let left = ring.in_flight();
            if self.draining && left == 0 {
                self.draining = false;
                return Ok(true);
            }
            if !ring.rearm_after(if self.starved { left / 2 + 1 } else { left }) {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Returns whether everything is answered; where it is not, asks for an event when it is, as [`rearm`](Self::rearm)
    /// does from now on.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn drain(&mut self, counters: &mut TxCounters) -> Result<bool, Broken> {
        loop {
            self.reap(counters)?;
            let ring = self.ring.get();
            let left = ring.in_flight();
            self.draining = left > 0;
            if left == 0 {
                return Ok(true);
            }
            if !ring.rearm_after(left) {
                return Ok(false);
            }
        }
    }

    /// Gives everything back.
    ///
    /// # Errors
    /// [`StillInUse`]: to be asked again later.
    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.pool.reclaim()?;
        self.ring.reclaim()
    }
}

/// Sees to the TCP or UDP checksum, which the stack has left to us: it stays blank where the backend takes
/// that, and is computed elsewhere.
fn finish_checksum(frame: &mut [u8], terms: Terms) -> Checksum {
    let v6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
    let blanks = if v6 { terms.blank_v6 } else { terms.blank_v4 };
    if blanks && blank(frame).is_some() {
        return Checksum::Blank;
    }
    if !blanks && fill(frame) {
        return Checksum::Valid;
    }
    Checksum::Unverified
}

/// Returns whether one of so many pages is busy, from `first` on and around the ring's end. Asked for every packet,
/// so it looks at 64 pages at a time.
fn any_is_busy(busy: &[u64; 4], first: usize, pages: usize) -> bool {
    let (mut page, mut left) = (first % RING_SLOTS as usize, pages);
    while left > 0 {
        let (word, bit) = (page / 64, page % 64);
        let here = left.min(64 - bit);
        if busy[word] & ((u64::MAX >> (64 - here)) << bit) != 0 {
            return true;
        }
        (page, left) = ((page + here) % RING_SLOTS as usize, left - here);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_page_is_found_in_any_range_that_has_it() {
        for page in [0, 1, 63, 64, 127, 200, 255] {
            let mut busy = [0; 4];
            busy[page / 64] |= 1 << (page % 64);
            for first in 0..256 {
                for pages in [0, 1, 2, 16, 63, 64, 65, 130, 256] {
                    let expected = (first..first + pages).any(|at| at % 256 == page);
                    assert_eq!(any_is_busy(&busy, first, pages), expected, "{page} in {pages} from {first}");
                }
            }
        }
    }
}
