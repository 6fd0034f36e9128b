//! From the guest: its requests judged, its pages copied into private memory, and the frames found there.
//!
//! Every request is copied once out of the ring, and only the copy is judged (XSA-155); every copy's status
//! is looked at; a guest that lies loses its own packets. This module knows no hypervisor and no switch.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, Gso, GsoKind, Header, MIN_PACKET_BYTES, Manifest, Meta, Packet};
use drayage_wire::netif::{
    self, ExtraInfo, ExtraKind, MAX_TX_SLOTS, RING_SLOTS, TxRequest, TxResponse, status, tx_flags,
};
use drayage_wire::ring::{BackRing, Overrun, SharedWords};

use super::counters::{Counters, hypercalls};
use super::multicast::{Change, Subscriptions};
use super::staging::Table;
use crate::segment;
use crate::switch::Mac;
use crate::xen::{Copies, CopyOp, DomainId, GNTST_OKAY, GrantRef, PageAccess};

/// Extra segments of one frame that are read before the chain counts as endless: one of each kind.
const MAX_EXTRAS: u32 = 4;

/// How TX chains look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One frame each.
    Plain,
    /// One container each, of at most so many bytes.
    Containers {
        /// The largest, in bytes.
        size: usize,
    },
}

/// The connection cannot go on: where the next chain starts is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// An index that cannot be true.
    #[error("{0}")]
    Overrun(#[from] Overrun),
    /// A chain that ends beyond what was published.
    #[error("a chain of requests that was only published in part")]
    Unfinished,
    /// A chain that does not end.
    #[error("a chain with more than {MAX_EXTRAS} extra segments")]
    Endless,
}

/// What is to be said about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// As the chain fared.
    Request(u16),
    /// `NETIF_RSP_NULL`.
    Extra,
}

/// A chain that was taken.
#[derive(Clone, Copy, Debug)]
struct Chain {
    start: u32,
    len: u32,
    first_op: u32,
    ops: u16,
    slots: u16,
    meta: Meta,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Copied,
    Malformed,
    /// Nothing to deliver: multicast control.
    Control(Change),
}

/// Private memory for what guests send, filled from the front in each pass.
#[derive(Debug)]
pub struct Scratch {
    memory: crate::memory::Pages,
    used: usize,
}

impl Scratch {
    /// Makes a scratch of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { memory: crate::memory::Pages::new(bytes), used: 0 }
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Returns the memory, for the copies.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// Returns the memory.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Finds room for `len` bytes that cross no page if they fit into one.
    fn place(&mut self, len: usize) -> Option<usize> {
        let in_page = self.used % PAGE_SIZE;
        let start =
            if in_page + len <= PAGE_SIZE { self.used } else { self.used.next_multiple_of(PAGE_SIZE) };
        if start + len > self.memory.bytes().len() {
            return None;
        }
        self.used = (start + len).next_multiple_of(32);
        Some(start)
    }
}

/// The TX side of a vif.
#[derive(Debug)]
pub struct Tx<P> {
    ring: BackRing<netif::Tx, P>,
    domain: DomainId,
    format: Format,
    chains: Vec<Chain>,
    answers: Vec<Answer>,
    taken_bytes: usize,
    first_op: usize,
    /// Where its grant operations are among those of the batch.
    first_granted: usize,
}

/// What a guest sent, copied and judged.
#[derive(Clone, Copy, Debug)]
pub enum Delivery<'a> {
    /// A container, and the packets that were found in it. Nobody has looked at what its writer says of them.
    Container(&'a [u8], &'a [Packet]),
    /// A frame, and what travels beside it.
    Frame(&'a [u8], Meta),
}

/// Whether somebody took a delivery. Nobody asks that of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was dealt with.
    Yes,
    /// It was not.
    No,
}

/// What is left in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Requests that found no room in this pass.
    Some,
    /// Requests of which the next one, of so many bytes, is beyond the limit.
    TooMuch {
        /// See above.
        bytes: usize,
    },
}

impl<P: SharedWords> Tx<P> {
    /// Takes the guest's ring.
    pub fn new(ring: BackRing<netif::Tx, P>, domain: DomainId, format: Format) -> Self {
        Self {
            ring,
            domain,
            format,
            chains: Vec::with_capacity(RING_SLOTS as usize),
            answers: Vec::with_capacity(RING_SLOTS as usize),
            taken_bytes: 0,
            first_op: 0,
            first_granted: 0,
        }
    }

    /// Takes chains and adds the copies of their pages, as far as there is room for them, and no more than `limit`
    /// bytes. Pages that are in `staged` are copied at once.
    ///
    /// # Errors
    /// [`Fatal`]: the ring is not to be used any more.
    pub fn gather(
        &mut self,
        scratch: &mut Scratch,
        staged: Option<&Table<P>>,
        copies: &mut Copies,
        limit: usize,
    ) -> Result<Left, Fatal>
    where
        P: PageAccess,
    {
        self.chains.clear();
        self.answers.clear();
        self.taken_bytes = 0;
        self.first_op = copies.ops().len();
        self.first_granted = copies.granted();
        let incoming = &mut Incoming { scratch, staged, copies };
        let mut available = self.ring.available()?;
        while available > 0 {
            let first: TxRequest = self.ring.peek(0);
            let bytes = usize::from(first.size);
            if bytes > limit - self.taken_bytes {
                return Ok(Left::TooMuch { bytes });
            }
            let taken = match self.format {
                Format::Plain => self.take_frame(first, available, incoming)?,
                Format::Containers { size } => self.take_container(first, available, size, incoming)?,
            };
            // A ring holds as many chains as it has slots at most, so the lists never grow.
            let Some(slots) = taken else { return Ok(Left::Some) };
            self.ring.advance(slots);
            available -= slots;
            self.taken_bytes += bytes;
        }
        Ok(Left::Nothing)
    }

    /// Returns how many bytes the last look took.
    pub fn taken_bytes(&self) -> usize {
        self.taken_bytes
    }

    /// Takes a plain frame's chain, whose first request was read. Returns its slots, or `None` if there is no room.
    fn take_frame(
        &mut self,
        first: TxRequest,
        available: u32,
        incoming: &mut Incoming<'_, P>,
    ) -> Result<Option<u32>, Fatal>
    where
        P: PageAccess,
    {
        let mut slots = 1;
        let mut meta = Meta { checksum: checksum_of(first.flags), gso: None };
        let mut fate = Fate::Copied;
        if first.flags & tx_flags::EXTRA_INFO != 0 {
            loop {
                if slots > MAX_EXTRAS {
                    return Err(Fatal::Endless);
                }
                if slots >= available {
                    return Err(Fatal::Unfinished);
                }
                let extra: ExtraInfo = self.ring.peek(slots);
                slots += 1;
                match extra.kind {
                    ExtraKind::Gso { size, gso_type } => match GsoKind::from_netif(gso_type) {
                        Some(kind) if size > 0 => {
                            meta = Meta { checksum: Checksum::Blank, gso: Some(Gso { kind, size }) };
                        }
                        _ => fate = Fate::Malformed,
                    },
                    ExtraKind::McastAdd(mac) => fate = Fate::Control(Change::Add(Mac(mac))),
                    ExtraKind::McastDel(mac) => fate = Fate::Control(Change::Remove(Mac(mac))),
                    ExtraKind::Other(_) => fate = Fate::Malformed,
                }
                if !extra.more {
                    break;
                }
            }
        }
        let extras = slots - 1;
        // The rest of the chain is copied once into `parts`, so that two looks see the same.
        let mut parts = [TxRequest::default(); MAX_TX_SLOTS];
        parts[0] = first;
        let mut count = 1;
        let mut more = first.flags & tx_flags::MORE_DATA != 0;
        while more {
            if slots >= available {
                return Err(Fatal::Unfinished);
            }
            let part: TxRequest = self.ring.peek(slots);
            slots += 1;
            more = part.flags & tx_flags::MORE_DATA != 0;
            match parts.get_mut(count) {
                Some(slot) => *slot = part,
                // Longer than any frontend may send: it is answered slot by slot, and dropped.
                None => fate = Fate::Malformed,
            }
            count += 1;
        }
        let total = usize::from(first.size);
        let parts = &mut parts[..count.min(MAX_TX_SLOTS)];
        if fate == Fate::Copied && !sizes_make_sense(parts, total) {
            fate = Fate::Malformed;
        }
        let mut chain = Chain {
            start: 0,
            len: 0,
            first_op: incoming.copies.ops().len() as u32,
            ops: 0,
            slots: slots as u16,
            meta,
            fate,
        };
        if fate == Fate::Copied {
            if incoming.copies.room() < parts.len() {
                return Ok(None);
            }
            let Some(start) = incoming.scratch.place(total) else { return Ok(None) };
            chain.start = start as u32;
            chain.len = total as u32;
            chain.ops = parts.len() as u16;
            let mut local = start as u32;
            for part in parts {
                incoming.copy(self.domain, part, local);
                local += u32::from(part.size);
            }
        }
        self.note_answers(slots, extras, first.id);
        self.chains.push(chain);
        Ok(Some(slots))
    }

    /// Takes a container's chain (SPEC.md, section 3), whose first request was read. Returns its slots, or `None` if there
    /// is no room.
    fn take_container(
        &mut self,
        first: TxRequest,
        available: u32,
        size: usize,
        incoming: &mut Incoming<'_, P>,
    ) -> Result<Option<u32>, Fatal>
    where
        P: PageAccess,
    {
        let total = usize::from(first.size);
        let expected = total.div_ceil(PAGE_SIZE).max(1) as u32;
        let mut fate = if total > size { Fate::Malformed } else { Fate::Copied };
        // The chain's length decides where the next one starts, so it is read before anything is judged.
        let mut parts = [TxRequest::default(); 16];
        let mut slots = 0;
        loop {
            if slots >= available {
                return Err(Fatal::Unfinished);
            }
            let part: TxRequest = if slots == 0 { first } else { self.ring.peek(slots) };
            match parts.get_mut(slots as usize) {
                Some(slot) => *slot = part,
                None => fate = Fate::Malformed,
            }
            slots += 1;
            if part.flags & tx_flags::EXTRA_INFO != 0 {
                fate = Fate::Malformed;
            }
            if part.flags & tx_flags::MORE_DATA == 0 {
                break;
            }
        }
        if slots != expected {
            fate = Fate::Malformed;
        }
        let mut left = total;
        let parts = &mut parts[..(slots as usize).min(16)];
        for (i, part) in parts.iter_mut().enumerate() {
            let len = left.min(PAGE_SIZE);
            if part.offset != 0 || (i > 0 && usize::from(part.size) != len) {
                fate = Fate::Malformed;
            }
            part.size = len as u16;
            left -= len;
        }
        let mut chain = Chain {
            start: 0,
            len: 0,
            first_op: incoming.copies.ops().len() as u32,
            ops: 0,
            slots: slots as u16,
            meta: Meta::default(),
            fate,
        };
        if fate == Fate::Copied {
            if incoming.copies.room() < parts.len() {
                return Ok(None);
            }
            // At a page's start, so that every slot's page is one copy.
            incoming.scratch.used = incoming.scratch.used.next_multiple_of(PAGE_SIZE);
            let Some(start) = incoming.scratch.place(total) else { return Ok(None) };
            chain.start = start as u32;
            chain.len = total as u32;
            chain.ops = parts.len() as u16;
            let mut local = start as u32;
            for part in parts {
                incoming.copy(self.domain, part, local);
                local += u32::from(part.size);
            }
        }
        self.note_answers(slots, 0, first.id);
        self.chains.push(chain);
        Ok(Some(slots))
    }

    /// Notes what is to be answered to `slots` requests, of which `extras` after the first are none.
    fn note_answers(&mut self, slots: u32, extras: u32, first_id: u16) {
        self.answers.push(Answer::Request(first_id));
        for ahead in 1..slots {
            self.answers.push(if ahead <= extras {
                Answer::Extra
            } else {
                Answer::Request(self.ring.peek::<TxRequest>(ahead).id)
            });
        }
    }

    /// Hands over what the batch that was just copied brought, in order. A container that is not taken as one comes
    /// again frame by frame.
    pub fn deliver(
        &mut self,
        scratch: &[u8],
        ops: &[CopyOp],
        manifest: &mut Manifest,
        subscriptions: &mut Subscriptions<P>,
        counters: &mut Counters,
        mut each: impl FnMut(Delivery<'_>, &mut Counters) -> Taken,
    ) {
        let mut answers = self.answers.iter();
        let mut granted = 0;
        for chain in &self.chains {
            let first_op = chain.first_op as usize;
            let done = &ops[first_op..first_op + usize::from(chain.ops)];
            let bytes = &scratch[chain.start as usize..(chain.start + chain.len) as usize];
            let mut answer = status::OKAY;
            match chain.fate {
                Fate::Copied if done.iter().any(|op| op.status != GNTST_OKAY) => {
                    counters.drops.unreadable += 1;
                    counters.guest_errors += 1;
                    answer = status::ERROR;
                }
                Fate::Copied => {
                    granted += counters.tx.count_copies(done);
                    if self.format == Format::Plain {
                        counters.tx.packets += 1;
                        counters.tx.bytes += bytes.len() as u64;
                        if let Some(meta) = judge(bytes, chain.meta, counters) {
                            each(Delivery::Frame(bytes, meta), counters);
                        }
                    } else if manifest.read(bytes).is_ok() {
                        let packets = manifest.packets();
                        counters.tx.containers += 1;
                        counters.tx.packets += packets.len() as u64;
                        counters.tx.bytes += packets.iter().map(|packet| u64::from(packet.len)).sum::<u64>();
                        if each(Delivery::Container(bytes, packets), counters) == Taken::No {
                            for packet in packets {
                                let frame = &bytes[packet.range()];
                                if let Some(meta) = judge(frame, packet.meta, counters) {
                                    each(Delivery::Frame(frame, meta), counters);
                                }
                            }
                        }
                    } else {
                        counters.drops.malformed += 1;
                        counters.guest_errors += 1;
                        answer = status::ERROR;
                    }
                }
                Fate::Malformed => {
                    counters.drops.malformed += 1;
                    counters.guest_errors += 1;
                    answer = status::ERROR;
                }
                Fate::Control(change) => {
                    if subscriptions.change(change).is_err() {
                        counters.guest_errors += 1;
                        answer = status::ERROR;
                    }
                }
            }
            counters.tx.slots += u64::from(chain.slots);
            for noted in answers.by_ref().take(usize::from(chain.slots)) {
                let response = match *noted {
                    Answer::Request(id) => TxResponse { id, status: answer },
                    Answer::Extra => TxResponse { id: 0, status: status::NULL },
                };
                // As many answers were noted as requests were taken.
                let _ = self.ring.respond(response);
            }
        }
        counters.hypercalls += hypercalls(&(self.first_granted..self.first_granted + granted));
        self.chains.clear();
        self.answers.clear();
    }

    /// Shows how each frame travelled that [`deliver`](Self::deliver) is about to hand over, in the same order: its
    /// container's header and its position in it, or `None` if it came alone.
    pub fn show_gathered(
        &self,
        scratch: &[u8],
        ops: &[CopyOp],
        manifest: &mut Manifest,
        mut each: impl FnMut(Option<(Header, u32)>),
    ) {
        for chain in self.chains.iter().filter(|chain| chain.fate == Fate::Copied) {
            let first_op = chain.first_op as usize;
            let done = &ops[first_op..first_op + usize::from(chain.ops)];
            if done.iter().any(|op| op.status != GNTST_OKAY) {
                continue;
            }
            if self.format == Format::Plain {
                each(None);
                continue;
            }
            let bytes = &scratch[chain.start as usize..(chain.start + chain.len) as usize];
            if let Ok(header) = manifest.read(bytes) {
                for position in 0..manifest.packets().len() as u32 {
                    each(Some((header, position)));
                }
            }
        }
    }

    /// Returns whether chains were taken and not delivered yet.
    pub fn has_chains(&self) -> bool {
        !self.chains.is_empty()
    }

    /// Publishes the answers. Returns whether the guest is to be notified.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Asks to be told of the next request. Returns whether there is one already.
    pub fn rearm(&mut self) -> bool {
        self.ring.rearm()
    }
}

/// Where what guests sent goes to, and how.
struct Incoming<'a, P> {
    scratch: &'a mut Scratch,
    staged: Option<&'a Table<P>>,
    copies: &'a mut Copies,
}

impl<P: PageAccess> Incoming<'_, P> {
    /// Adds the copy of a part of a page into private memory; makes it, if the page is mapped. Either way each
    /// byte is read once, and what is judged and delivered is the copy.
    fn copy(&mut self, domain: DomainId, part: &TxRequest, local: u32) {
        let mut op = CopyOp::new(local, GrantRef(part.gref), domain, part.offset, part.size);
        if let Some(table) = self.staged {
            let start = local as usize;
            let into = &mut self.scratch.bytes_mut()[start..start + usize::from(part.size)];
            table.copy_out(&mut op, into);
        }
        self.copies.push(op);
    }
}

/// Judges what a guest says of a frame, before somebody else believes it: a super-frame must be one, and its
/// checksum is blank whatever the flags. Returns what travels beside the frame, or `None` for one to be dropped.
fn judge(frame: &[u8], meta: Meta, counters: &mut Counters) -> Option<Meta> {
    let Some(gso) = meta.gso else { return Some(meta) };
    if !segment::is_sound(frame, gso) {
        counters.drops.malformed += 1;
        return None;
    }
    counters.tx.super_frames += 1;
    Some(Meta { checksum: Checksum::Blank, gso: Some(gso) })
}

fn checksum_of(flags: u16) -> Checksum {
    if flags & tx_flags::CSUM_BLANK != 0 {
        Checksum::Blank
    } else if flags & tx_flags::DATA_VALIDATED != 0 {
        Checksum::Valid
    } else {
        Checksum::Unverified
    }
}

/// Judges the sizes of a frame's slots (XSA-423 and its kin), and turns the first slot's size from that of
/// the frame into its own.
fn sizes_make_sense(parts: &mut [TxRequest], total: usize) -> bool {
    let rest: usize = parts[1..].iter().map(|p| usize::from(p.size)).sum();
    if total < MIN_PACKET_BYTES || rest >= total {
        return false;
    }
    parts[0].size = (total - rest) as u16;
    parts.iter().all(|p| p.size > 0 && usize::from(p.offset) + usize::from(p.size) <= PAGE_SIZE)
}
