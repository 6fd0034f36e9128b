//! Reception: responses become frames. With containers or without, as agreed when the vif was connected.
//!
//! The buffer of ring slot *i* is page *i* of one pool, so a chain of slots is one range of memory, and a slot
//! is posted again with the page that it had. It knows rings, pages and what netif and SPEC.md say of them,
//! and no network stack.
//!
//! What the backend writes is judged here. A chain that breaks a rule is dropped and counted; only what makes
//! the ring itself unusable is [`Broken`].

use alloc::boxed::Box;
use alloc::vec;

use drayage_wire::PAGE_SIZE;
use drayage_wire::checksum::{Verdict, verify};
use drayage_wire::container::{Checksum, MIN_PACKET_BYTES, Manifest};
use drayage_wire::netif::{ExtraInfo, Rx, RxRequest, RxResponse, rx_flags, status};
use drayage_wire::ring::Overrun;

use crate::chain::{Chain, Flaw, MAX_DATA_SLOTS, Progress};
use crate::counters::RxCounters;
use crate::platform::{DomainId, GrantRef, Platform, Refused, StillInUse};
use crate::pool::{Reading, ReceivePool, SharedRing};

/// Pages of a receive pool that are mapped twice: the longest chain less one, behind slot 255.
pub(crate) const MIRROR_PAGES: usize = 15;
/// Plain frames after which their buffers are posted again.
const REPOST_BATCH: u32 = 32;
/// Slots and packets that one call looks at, at most, so that a backend that only sends rubbish does not keep
/// the guest from its other work (XSA-391).
const WORK_PER_CALL: u32 = 1024;

/// The backend did what leaves the connection unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It published an index that cannot be true.
    Overrun(Overrun),
    /// It still uses a page that it has said to be done with (XSA-396).
    PageInUse,
    /// It answered a request on the control ring that was not made.
    WrongAnswer,
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Overrun(overrun) => write!(f, "backend broke the ring: {overrun}"),
            Self::PageInUse => write!(f, "backend still uses a page after its response"),
            Self::WrongAnswer => write!(f, "backend answered a control request that was not made"),
        }
    }
}

impl core::error::Error for Broken {}

impl From<Overrun> for Broken {
    fn from(overrun: Overrun) -> Self {
        Self::Overrun(overrun)
    }
}

impl From<StillInUse> for Broken {
    fn from(StillInUse: StillInUse) -> Self {
        Self::PageInUse
    }
}

/// What a chain of slots carries, fixed when the vif is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A frame.
    Frames,
    /// A container of at most this many slots.
    Containers {
        /// See above.
        max_slots: usize,
    },
}

/// Where a frame that can be lent lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// In the pool.
    Pool { first: usize, offset: usize, len: usize },
    /// In the scratch.
    Scratch { offset: usize, len: usize },
}

/// The container whose packets are being lent.
#[derive(Clone, Copy, Debug)]
struct Current {
    /// The page that it starts in; `None` when it is in the scratch.
    first: Option<usize>,
    next: usize,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct RxQueue<P> {
    ring: SharedRing<Rx, P>,
    pool: ReceivePool<P>,
    mode: Mode,
    /// Responses that were seen to be there and are not taken yet.
    ready: u32,
    chain: Chain,
    /// Slots at the end of those taken that must not be posted yet: a chain that is not complete.
    held: u32,
    current: Option<Current>,
    manifest: Box<Manifest>,
    /// The sequence number that the next container should have.
    sequence: u32,
    /// Frames that do not lie in one piece are copied here, and all that is received where the backend might
    /// change it; empty where neither can be.
    scratch: Box<[u8]>,
    /// Pages are to be revoked again before they are read, as soon as nothing is lent.
    unstage_due: bool,
    notify: bool,
}

impl<P: Platform + Clone> RxQueue<P> {
    /// Allocates ring and pool. Nothing is granted yet.
    pub(crate) fn new(platform: &P) -> Result<Self, Refused> {
        let mut ring = SharedRing::new(platform.clone())?;
        let pool = match ReceivePool::new(platform.clone(), MIRROR_PAGES) {
            Ok(pool) => pool,
            Err(error) => {
                // It was never granted, so nobody uses it.
                let _ = ring.reclaim();
                return Err(error);
            }
        };
        Ok(Self {
            ring,
            pool,
            mode: Mode::Frames,
            ready: 0,
            chain: Chain::default(),
            held: 0,
            current: None,
            manifest: Box::new(Manifest::new()),
            sequence: 0,
            scratch: Box::default(),
            unstage_due: false,
            notify: false,
        })
    }
}

impl<P: Platform> RxQueue<P> {
    /// Grants everything, posts all buffers and returns the ring's reference.
    /// `staged` is how pages are read that the backend maps, if it is asked to map them.
    pub(crate) fn open(
        &mut self,
        peer: DomainId,
        mode: Mode,
        staged: Option<Reading>,
    ) -> Result<u32, Refused> {
        self.mode = mode;
        if mode == Mode::Frames || staged == Some(Reading::Copied) {
            self.scratch = vec![0; MAX_DATA_SLOTS * PAGE_SIZE].into_boxed_slice();
        }
        self.pool.grant_all(peer)?;
        let reference = self.ring.grant(peer)?;
        self.repost(&mut RxCounters::default());
        // Nobody listens yet; the backend is told once it is there.
        self.notify = false;
        Ok(reference.0)
    }

    /// Returns the references of all pages.
    pub(crate) fn grants(&self) -> &[GrantRef] {
        self.pool.grants()
    }

    /// Returns what keeps pages from changing while they are read.
    pub(crate) fn reading(&self) -> Reading {
        self.pool.reading()
    }

    /// Prepares for the backend to map all pages: none is revoked from here on. Returns whether that can be,
    /// which it cannot while something is lent.
    pub(crate) fn stage(&mut self, reading: Reading, counters: &mut RxCounters) -> bool {
        if self.current.is_some() {
            return false;
        }
        self.repost(counters);
        self.unstage_due = false;
        self.pool.set_reading(reading)
    }

    /// Goes back to revoking pages, from the next chain on: the backend maps none of them.
    pub(crate) fn unstage(&mut self) {
        self.unstage_due = true;
    }

    /// Returns whether a chain may go from the last slot to the first.
    pub(crate) fn can_wrap(&self) -> bool {
        self.pool.mirrored() >= MIRROR_PAGES
    }

    /// Posts every buffer that is not needed any more.
    fn repost(&mut self, counters: &mut RxCounters) {
        let ring = self.ring.get();
        let posts = ring.free_slots() - self.held;
        for _ in 0..posts {
            let slot = ring.next_request().slot();
            counters.regrants += u64::from(self.pool.regrant(slot));
            let _ = ring.push(RxRequest { id: slot as u16, gref: self.pool.grant_ref(slot).0 });
        }
        self.notify |= ring.publish();
    }

    /// Posts what can be posted and returns whether the backend is to be notified of it.
    pub(crate) fn flush(&mut self, counters: &mut RxCounters) -> bool {
        if self.current.is_none() {
            self.repost(counters);
        }
        core::mem::take(&mut self.notify)
    }

    /// Returns whether there is something to receive.
    pub(crate) fn has_work(&mut self) -> bool {
        self.current.is_some() || self.ready > 0 || self.ring.get().available() != Ok(0)
    }

    /// Asks for an event with the next response. Returns whether there is something to receive already.
    pub(crate) fn rearm(&mut self) -> bool {
        self.current.is_some() || self.ready > 0 || self.ring.get().rearm()
    }

    /// Returns the next frame, or `None` when there is none, or none was found with a bounded amount of work.
    /// What was lent before is over: its buffers go back to the backend.
    ///
    /// # Errors
    /// [`Broken`]: the queue must not be used any further.
    pub(crate) fn next(&mut self, counters: &mut RxCounters) -> Result<Option<Place>, Broken> {
        let mut work = WORK_PER_CALL;
        loop {
            let found = match self.next_packet(counters) {
                Some(found) => found,
                None => match self.next_chain(counters, &mut work)? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            };
            let (place, checksum) = found;
            let Some(bytes) = self.bytes(place) else { continue };
            if checksum == Checksum::Unverified && verify(bytes) == Verdict::Bad {
                counters.dropped.bad_checksum += 1;
            } else {
                counters.packets += 1;
                counters.bytes += bytes.len() as u64;
                counters.udp_packets += u64::from(is_udp(bytes));
                return Ok(Some(place));
            }
            work = work.saturating_sub(1);
            if work == 0 {
                return Ok(None);
            }
        }
    }

    /// Lends a frame that [`next`](Self::next) returned last.
    #[inline]
    pub(crate) fn bytes(&self, place: Place) -> Option<&[u8]> {
        match place {
            Place::Pool { first, offset, len } => self.pool.bytes(first, offset, len),
            Place::Scratch { offset, len } => self.scratch.get(offset..offset.checked_add(len)?),
        }
    }

    /// Returns the next packet of the current container.
    #[inline]
    fn next_packet(&mut self, counters: &mut RxCounters) -> Option<(Place, Checksum)> {
        let current = self.current.as_mut()?;
        let Some(packet) = self.manifest.packets().get(current.next) else {
            self.current = None;
            return None;
        };
        current.next += 1;
        counters.super_frames += u64::from(packet.meta.gso.is_some());
        let (offset, len) = (usize::from(packet.offset), usize::from(packet.len));
        let place = match current.first {
            Some(first) => Place::Pool { first, offset, len },
            None => Place::Scratch { offset, len },
        };
        Some((place, packet.meta.checksum))
    }

    /// Takes responses until a chain is complete and good. For a container, returns its first packet.
    fn next_chain(
        &mut self,
        counters: &mut RxCounters,
        work: &mut u32,
    ) -> Result<Option<(Place, Checksum)>, Broken> {
        if self.unstage_due {
            self.unstage_due = false;
            self.pool.set_reading(Reading::Revoked);
        }
        // The previous frame or container is done with. A container's pages go back at once, those of plain
        // frames by the batch.
        let batch = if self.mode == Mode::Frames { REPOST_BATCH } else { 1 };
        if self.ring.get().free_slots() - self.held >= batch {
            self.repost(counters);
        }
        while *work > 0 {
            if self.ready == 0 {
                self.ready = self.ring.get().available()?;
                if self.ready == 0 {
                    return Ok(None);
                }
            }
            *work -= 1;
            counters.slots += 1;
            let complete = self.take_slot(counters);
            if complete {
                let found = self.finish(counters);
                self.chain.clear();
                self.held = 0;
                if let Some(found) = found? {
                    return Ok(Some(found));
                }
            }
            if self.ring.get().free_slots() - self.held >= REPOST_BATCH {
                self.repost(counters);
            }
        }
        Ok(None)
    }

    /// Takes one response into the chain. Returns whether that completes it.
    fn take_slot(&mut self, counters: &mut RxCounters) -> bool {
        let ring = self.ring.get();
        let slot = ring.next_response().slot();
        let progress = if self.chain.expects_extra() {
            let extra: ExtraInfo = ring.peek(0);
            self.chain.extra(extra)
        } else {
            let response: RxResponse = ring.peek(0);
            let alone = response.flags & (rx_flags::MORE_DATA | rx_flags::EXTRA_INFO) == 0;
            if self.chain.is_empty() && response.status == status::DROPPED && alone {
                ring.advance(1);
                self.ready -= 1;
                counters.dropped.empty_slots += 1;
                return false;
            }
            self.chain.data(slot, response)
        };
        ring.advance(1);
        self.ready -= 1;
        self.held += 1;
        match progress {
            Progress::Complete => true,
            Progress::More => false,
            // A chain that is too long is lost anyway: its buffers need not wait for its end.
            Progress::Hopeless => {
                self.held = 0;
                false
            }
        }
    }

    /// Judges the complete chain.
    fn finish(&mut self, counters: &mut RxCounters) -> Result<Option<(Place, Checksum)>, Broken> {
        let judged = match self.mode {
            Mode::Frames => self.chain.as_frame(),
            Mode::Containers { max_slots } => self.chain.as_container(max_slots, self.can_wrap()),
        };
        if let Err(flaw) = judged {
            let dropped = &mut counters.dropped;
            *match flaw {
                Flaw::Status => &mut dropped.backend_error,
                Flaw::Id => &mut dropped.bad_id,
                Flaw::Length => &mut dropped.bad_length,
                Flaw::TooLong => &mut dropped.too_long,
                Flaw::Runt => &mut dropped.runt,
                Flaw::Extra => &mut dropped.bad_extra,
                Flaw::Wrap => &mut dropped.bad_wrap,
            } += 1;
            return Ok(None);
        }
        for piece in self.chain.pieces() {
            let revoked = self.pool.revoke(usize::from(piece.slot))?;
            *if revoked { &mut counters.revokes } else { &mut counters.unrevoked } += 1;
        }
        match self.mode {
            Mode::Frames => {
                counters.super_frames += u64::from(self.chain.is_super_frame());
                Ok(self.place_frame(counters).map(|place| (place, self.chain.checksum())))
            }
            Mode::Containers { .. } => Ok(self.open_container(counters)),
        }
    }

    fn place_frame(&mut self, counters: &mut RxCounters) -> Option<Place> {
        let first = self.chain.pieces().first()?;
        let len = self.chain.bytes();
        let copied = self.pool.reading() == Reading::Copied;
        if self.chain.is_contiguous() && !copied {
            let place =
                Place::Pool { first: usize::from(first.slot), offset: usize::from(first.offset), len };
            if self.bytes(place).is_some() {
                return Some(place);
            }
        }
        let mut at = 0;
        for piece in self.chain.pieces() {
            let (offset, len) = (usize::from(piece.offset), usize::from(piece.len));
            let into = self.scratch.get_mut(at..at + len)?;
            if copied {
                self.pool.copy_out(usize::from(piece.slot), offset, into).then_some(())?;
            } else {
                into.copy_from_slice(self.pool.bytes(usize::from(piece.slot), offset, len)?);
            }
            at += len;
        }
        *if copied { &mut counters.private_copies } else { &mut counters.linearised } += 1;
        Some(Place::Scratch { offset: 0, len })
    }

    fn open_container(&mut self, counters: &mut RxCounters) -> Option<(Place, Checksum)> {
        let first = usize::from(self.chain.pieces().first()?.slot);
        let len = self.chain.bytes();
        let (bytes, first) = if self.pool.reading() == Reading::Copied {
            let private = self.scratch.get_mut(..len)?;
            self.pool.copy_out(first, 0, private).then_some(())?;
            counters.private_copies += 1;
            (&*private, None)
        } else {
            (self.pool.bytes(first, 0, len)?, Some(first))
        };
        let header = match self.manifest.read(bytes) {
            Ok(header) => header,
            Err(reason) => {
                counters.dropped.containers.add(reason);
                return None;
            }
        };
        counters.containers += 1;
        counters.container_packets += u64::from(header.count);
        counters.container_sizes[header.count.ilog2().min(10) as usize] += 1;
        counters.hold_ns += u64::from(header.hold_ns);
        counters.sequence_gaps += u64::from(header.sequence != self.sequence);
        self.sequence = header.sequence.wrapping_add(1);
        self.current = Some(Current { first, next: 0 });
        if let Some(first) = first {
            self.pool.find(first, len);
        }
        self.next_packet(counters)
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

/// Returns whether an untagged frame is a UDP datagram.
fn is_udp(frame: &[u8]) -> bool {
    const UDP: u8 = 17;
    match frame.get(12..24) {
        Some([0x08, 0x00, _, _, _, _, _, _, _, _, _, protocol]) => *protocol == UDP,
        Some([0x86, 0xdd, _, _, _, _, _, _, next, ..]) => *next == UDP,
        _ => false,
    }
}

const _: () = assert!(MIN_PACKET_BYTES == 14 && MIRROR_PAGES + 1 == 16);
