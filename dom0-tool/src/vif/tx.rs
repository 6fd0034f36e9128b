//! From the guest: its requests judged, and its pages copied into private memory; `deliver` takes the frames from there.
//!
//! Every request is copied once out of the ring, and only the copy is judged (XSA-155); every copy's status
//! is looked at; a guest that lies loses its own packets. This module knows no hypervisor and no switch.

mod deliver;

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, Gso, GsoKind, MIN_PACKET_BYTES, Meta};
use drayage_wire::netif::{self, ExtraInfo, ExtraKind, MAX_TX_SLOTS, RING_SLOTS, TxRequest, tx_flags};
use drayage_wire::ring::{BackRing, Overrun, SharedWords};

use super::multicast::Change;
use super::scratch::{Leases, Scratch};
use super::staging::Table;
use crate::switch::Mac;
use crate::xen::{By, Copies, CopyOp, DomainId, GrantRef, PageAccess};
pub use deliver::{Delivery, Taken, judge};

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

/// How much of a container whose pages are mapped is read at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All of it.
    Whole,
    /// What is decided on. The rest may go straight to where it belongs.
    First,
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
    /// Whether it is still in the guest's mapped pages.
    unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Copied,
    Malformed,
    /// Nothing to deliver: multicast control.
    Control(Change),
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
    /// bytes. Pages that are in `staged` are copied at once, or not yet, if no more than a first look is wanted.
    ///
    /// # Errors
    /// [`Fatal`]: the ring is not to be used any more.
    pub fn gather(
        &mut self,
        (scratch, leases): (&mut Scratch, &mut Leases),
        staged: Option<&Table<P>>,
        copies: &mut Copies,
        (limit, container_bytes, look): (usize, usize, Look),
    ) -> Result<Left, Fatal>
    where
        P: PageAccess,
    {
        self.chains.clear();
        self.answers.clear();
        self.taken_bytes = 0;
        self.first_op = copies.ops().len();
        self.first_granted = copies.granted();
        let incoming = &mut Incoming { scratch, leases, staged, copies, look };
        let mut available = self.ring.available()?;
        while available > 0 {
            let first: TxRequest = self.ring.peek(0);
            // A container takes a place in the queue that it goes to, however little is in it.
            let least = if self.format == Format::Plain { 0 } else { container_bytes };
            let bytes = usize::from(first.size).max(least);
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
            unread: false,
        };
        if fate == Fate::Copied {
            if incoming.copies.room() < parts.len() {
                return Ok(None);
            }
            let Some(start) = incoming.scratch.place(incoming.leases, total) else { return Ok(None) };
            chain.start = start;
            chain.len = total as u32;
            chain.ops = parts.len() as u16;
            let mut local = start;
            for part in parts {
                incoming.copy(self.domain, part, local, false);
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
            unread: false,
        };
        if fate == Fate::Copied {
            if incoming.copies.room() < parts.len() {
                return Ok(None);
            }
            let Some(start) = incoming.scratch.place_pages(incoming.leases, total) else { return Ok(None) };
            chain.start = start;
            chain.len = total as u32;
            chain.ops = parts.len() as u16;
            let mut local = start;
            chain.unread = incoming.may_wait(parts);
            for part in parts {
                incoming.copy(self.domain, part, local, chain.unread);
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
    leases: &'a mut Leases,
    staged: Option<&'a Table<P>>,
    copies: &'a mut Copies,
    look: Look,
}

impl<P: PageAccess> Incoming<'_, P> {
    /// Returns whether a container may be left where it is for now: all its pages are mapped.
    fn may_wait(&self, parts: &[TxRequest]) -> bool {
        let mapped = |table: &Table<P>| parts.iter().all(|part| table.find(GrantRef(part.gref)).is_some());
        self.look == Look::First && self.staged.is_some_and(mapped)
    }

    /// Adds the copy of a part of a page into private memory; makes it, if the page is mapped. Either way each
    /// byte is read once, and what is judged and delivered is the copy.
    /// One that is left for later counts as made by then.
    fn copy(&mut self, domain: DomainId, part: &TxRequest, local: u32, later: bool) {
        let mut op = CopyOp::new(local, GrantRef(part.gref), domain, part.offset, part.size);
        if later {
            op.by = By::Mapping;
        } else if let Some(table) = self.staged {
            let start = local as usize;
            let into = &mut self.scratch.bytes_mut()[start..start + usize::from(part.size)];
            table.copy_out(&mut op, into);
        }
        self.copies.push(op);
    }
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
