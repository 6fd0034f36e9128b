//! A container that was closed, and waits to go out. It knows nothing of how it was filled.

use drayage_wire::PAGE_SIZE;

use crate::policy::Reason;
use crate::vif::scratch::Lent;

/// Where a closed container lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the guest's region, but for pieces of it that lie elsewhere.
    Own,
    /// Where another guest's was copied to.
    Lent(Lent),
    /// In the guest's pages already.
    Across,
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
    /// How many copies it takes.
    pub copies: u32,
    /// How many pieces of it lie elsewhere, and the number of the first.
    pub(super) pieces: u32,
    pub(super) first_piece: u32,
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
    pub(super) const NONE: Self = Self {
        start: 0,
        place: Place::Own,
        bytes: 0,
        packets: 0,
        copies: 0,
        pieces: 0,
        first_piece: 0,
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
