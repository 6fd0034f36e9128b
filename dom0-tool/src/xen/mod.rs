//! What the data path asks of the hypervisor: grant copies in batches, mapped ring pages, event channels.
//!
//! It knows no ring, no packet and no xenstore. [`Linux`] is the implementation over Linux' device files;
//! memxen has one in memory, for tests.

pub mod evtchn;
pub mod gntdev;
pub mod kept;
mod linux;

use std::ops::Range;
use std::os::fd::BorrowedFd;

use drayage_shared::Span;
use drayage_wire::ring::SharedWords;

pub use linux::{Linux, OpenError};

/// A domain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u16);

impl std::fmt::Display for DomainId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An entry of another domain's grant table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GrantRef(pub u32);

/// An event channel's number in its own domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPort(pub u32);

/// The status of a grant operation that was done (`GNTST_okay`).
pub const GNTST_OKAY: i16 = 0;
/// The status of a grant operation that was not even tried, because the whole batch failed
/// (`GNTST_general_error`).
pub const GNTST_GENERAL_ERROR: i16 = -1;

/// Copies that Linux hands to Xen in one hypercall (`GNTDEV_COPY_BATCH` in `drivers/xen/gntdev.c`).
pub const COPIES_PER_HYPERCALL: u64 = 16;

/// A copy between private memory and a page that another domain granted. Which way it goes is said by the
/// batch that it is in.
#[derive(Clone, Copy, Debug)]
pub struct CopyOp {
    /// Where the bytes are in the batch's private memory.
    pub local: u32,
    /// The granted page.
    pub grant: GrantRef,
    /// Who granted it.
    pub domain: DomainId,
    /// Where in the page, in bytes.
    pub offset: u16,
    /// How many bytes.
    pub len: u16,
    /// What came of it: [`GNTST_OKAY`], or another `GNTST_*`.
    pub status: i16,
    /// Who makes it.
    pub by: By,
}

/// Who makes a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The hypervisor.
    Grant,
    /// This program, through a mapped page: it is made by the time that it is in a batch.
    Mapping,
}

impl CopyOp {
    /// Returns a copy for the hypervisor to make.
    pub const fn new(local: u32, grant: GrantRef, domain: DomainId, offset: u16, len: u16) -> Self {
        Self { local, grant, domain, offset, len, status: GNTST_OKAY, by: By::Grant }
    }
}

/// Copies of one pass: those that the hypervisor is to make, and between them those that were made through
/// mapped pages already.
#[derive(Debug)]
pub struct Copies {
    ops: Vec<CopyOp>,
    granted: usize,
}

impl Copies {
    /// Makes room for so many; there is never more.
    pub fn with_capacity(most: usize) -> Self {
        Self { ops: Vec::with_capacity(most), granted: 0 }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.granted = 0;
    }

    /// Returns how many more there is room for.
    pub fn room(&self) -> usize {
        self.ops.capacity() - self.ops.len()
    }

    /// Adds a copy. There is [`room`](Self::room) for it.
    pub fn push(&mut self, op: CopyOp) {
        self.granted += usize::from(op.by == By::Grant);
        self.ops.push(op);
    }

    /// Returns how many the hypervisor is to make.
    pub fn granted(&self) -> usize {
        self.granted
    }

    /// Returns all, in order.
    pub fn ops(&self) -> &[CopyOp] {
        &self.ops
    }

    /// Returns all, for the hypervisor to make its own.
    pub fn ops_mut(&mut self) -> &mut [CopyOp] {
        &mut self.ops
    }
}

/// What may be done with a mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// A mapped page of another domain, which that domain can write at any time: it is copied from and to, never
/// borrowed.
pub trait PageAccess: SharedWords {
    /// Copies bytes into the page. Returns whether it may be written and has room for them there.
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool;

    /// Copies bytes out of the page. Returns whether it has as many there.
    fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool;

    /// Returns a part of the page for the system to read, if there are as many bytes and it is another domain's.
    fn span(&self, offset: usize, len: usize) -> Option<Span<'_>>;

    /// Copies bytes from the page into another one, at `at`, with no copy in between. Returns whether that may be written and
    /// both have as many there.
    fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) -> bool;
}

/// Why a page could not be mapped or an event channel not be bound.
#[derive(Debug, thiserror::Error)]
pub enum XenError {
    /// The grant reference is not one that the domain gave us.
    #[error("mapping grant {grant} of domain {domain}: {source}")]
    Map {
        /// The domain.
        domain: u16,
        /// The grant.
        grant: u32,
        /// What the system said.
        source: std::io::Error,
    },
    /// The event channel is not one that waits for us.
    #[error("binding event channel {port} of domain {domain}: {source}")]
    Bind {
        /// The domain.
        domain: u16,
        /// The port.
        port: u32,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A hypervisor, as a backend's data path uses it.
pub trait Xen {
    /// A mapped page of another domain, or one that is kept, which is unmapped when it is dropped.
    type Page: PageAccess;

    /// Maps a granted page.
    ///
    /// # Errors
    /// [`XenError::Map`].
    fn map(&mut self, domain: DomainId, grant: GrantRef, access: Access) -> Result<Self::Page, XenError>;

    /// Returns a page of our own that outlives this process: the same one for the same name, until it is
    /// [given up](Self::give_up). `None` where there is none to be had.
    fn keep(&mut self, name: &str) -> Option<Self::Page>;

    /// Removes a kept page from where its name finds it.
    fn give_up(&mut self, name: &str);

    /// Binds to another domain's event channel. The new port is pending at once.
    ///
    /// # Errors
    /// [`XenError::Bind`].
    fn bind(&mut self, domain: DomainId, remote: EventPort) -> Result<EventPort, XenError>;

    /// Closes a port.
    fn unbind(&mut self, port: EventPort);

    /// Sends an event to the other end.
    fn notify(&mut self, port: EventPort);

    /// Takes pending ports, at most as many as `into` has room for, and returns how many. Each stays masked
    /// until [`unmask`](Self::unmask).
    fn take_pending(&mut self, into: &mut [EventPort]) -> usize;

    /// Lets ports become pending again. Events that came while they were masked are not lost.
    fn unmask(&mut self, ports: &[EventPort]);

    /// Makes the copies that are [its own](By::Grant), from `local` into granted pages. Each gets a status of its own. The
    /// second piece of `local` is numbered on from the first.
    fn copy_to_guests(&mut self, local: [&[u8]; 2], ops: &mut [CopyOp]);

    /// Makes the copies that are [its own](By::Grant), from granted pages into `local`. Each gets a status of its own.
    fn copy_from_guests(&mut self, local: &mut [u8], ops: &mut [CopyOp]);

    /// Returns the descriptor that is readable while a port is pending, if there is one.
    fn event_descriptor(&self) -> Option<BorrowedFd<'_>>;
}

impl CopyOp {
    /// Returns which bytes of private memory it is about, if all of them are there and it stays inside its page.
    pub fn range(&self, local_len: usize) -> Option<Range<usize>> {
        let (start, len) = (self.local as usize, usize::from(self.len));
        let inside =
            start.checked_add(len)? <= local_len && usize::from(self.offset) + len <= drayage_wire::PAGE_SIZE;
        inside.then(|| start..start + len)
    }

    /// As [`range`](Self::range), the bytes themselves, in memory of two pieces, the second of which is numbered on from
    /// the first.
    pub fn bytes<'a>(&self, local: [&'a [u8]; 2]) -> Option<&'a [u8]> {
        let [first, second] = local;
        match (self.local as usize).checked_sub(first.len()) {
            None => first.get(self.range(first.len())?),
            Some(start) => second.get(Self { local: start as u32, ..*self }.range(second.len())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_about_one_of_two_pieces_and_stays_inside() {
        let (first, second) = ([1u8, 2, 3, 4], [5u8, 6, 7]);
        let bytes = |local, offset, len| {
            let op = CopyOp::new(local, GrantRef(8), DomainId(5), offset, len);
            op.bytes([&first, &second]).map(<[u8]>::to_vec)
        };
        assert_eq!(bytes(1, 0, 3), Some(vec![2, 3, 4]));
        assert_eq!(bytes(4, 4093, 3), Some(vec![5, 6, 7]));
        assert_eq!(bytes(5, 0, 1), Some(vec![6]));
        assert_eq!(bytes(3, 0, 2), None, "across the two");
        assert_eq!(bytes(5, 0, 3), None, "beyond the end");
        assert_eq!(bytes(8, 0, 0), None);
        assert_eq!(bytes(u32::MAX, 0, 1), None);
        assert_eq!(bytes(0, 4094, 3), None, "beyond the page");
    }
}
