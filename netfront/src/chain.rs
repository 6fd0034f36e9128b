//! A chain of RX responses, taken slot by slot and judged when it is complete.
//!
//! It knows what netif.h and SPEC.md say of chains, and touches neither ring nor page.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, MIN_PACKET_BYTES};
use drayage_wire::netif::{ExtraInfo, ExtraKind, RING_SLOTS, RxResponse, rx_flags};

/// The most data slots of a frame: `XEN_NETIF_NR_SLOTS_MIN`, and one more that Linux allows for a small first
/// slot.
pub(crate) const MAX_DATA_SLOTS: usize = 19;
/// The most extra segments of a frame; netif.h defines five kinds.
const MAX_EXTRAS: usize = 5;

/// What a chain did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A negative status.
    Status,
    /// A response that does not name its slot.
    Id,
    /// No bytes, or bytes beyond the page, or a page not filled.
    Length,
    /// Too many slots.
    TooLong,
    /// Shorter than an Ethernet header.
    Runt,
    /// Extra segments where there may be none.
    Extra,
    /// Across the ring's end.
    Wrap,
}

/// A slot's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The slot, and its page.
    pub(crate) slot: u16,
    pub(crate) offset: u16,
    /// Where the data ends never lies beyond the page.
    pub(crate) len: u16,
}

/// What came of taking a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The chain goes on.
    More,
    /// The chain goes on, and whatever follows it will be dropped.
    Hopeless,
    /// The chain is complete.
    Complete,
}

/// A chain so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    pieces: [Piece; MAX_DATA_SLOTS],
    count: usize,
    extras: usize,
    expects_extra: bool,
    super_frame: bool,
    more: bool,
    /// The flags of the first slot.
    flags: u16,
    flaw: Option<Flaw>,
    started: bool,
}

impl Chain {
    /// Returns whether the next slot holds an extra segment.
    pub(crate) fn expects_extra(&self) -> bool {
        self.expects_extra
    }

    /// Returns whether no slot was taken yet.
    pub(crate) fn is_empty(&self) -> bool {
        !self.started
    }

    /// Forgets all slots. Cheaper than a new chain: the pieces stay as they are.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
        self.extras = 0;
        self.expects_extra = false;
        self.super_frame = false;
        self.more = false;
        self.flags = 0;
        self.flaw = None;
        self.started = false;
    }

    /// Returns the data of the slots.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }

    /// Returns the length of the data.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces().iter().map(|p| usize::from(p.len)).sum()
    }

    /// Returns what the first slot says of the checksum.
    pub(crate) fn checksum(&self) -> Checksum {
        if self.flags & rx_flags::CSUM_BLANK != 0 {
            Checksum::Blank
        } else if self.flags & rx_flags::DATA_VALIDATED != 0 {
            Checksum::Valid
        } else {
            Checksum::Unverified
        }
    }

    fn fault(&mut self, flaw: Flaw) {
        self.flaw.get_or_insert(flaw);
    }

    fn progress(&self) -> Progress {
        if !self.more && !self.expects_extra {
            Progress::Complete
        } else if self.flaw == Some(Flaw::TooLong) {
            Progress::Hopeless
        } else {
            Progress::More
        }
    }

    /// Takes a data slot.
    pub(crate) fn data(&mut self, slot: usize, response: RxResponse) -> Progress {
        let first = !self.started;
        self.started = true;
        self.more = response.flags & rx_flags::MORE_DATA != 0;
        if first {
            self.flags = response.flags;
            self.expects_extra = response.flags & rx_flags::EXTRA_INFO != 0;
        } else if response.flags & rx_flags::EXTRA_INFO != 0 {
            // Extra segments follow a frame's first slot only.
            self.fault(Flaw::Extra);
        }
        let end = i32::from(response.offset) + i32::from(response.status);
        if self.count == MAX_DATA_SLOTS {
            // Other slots may have done worse, but this is what makes the chain hopeless.
            self.flaw = Some(Flaw::TooLong);
            return self.progress();
        }
        if usize::from(response.id) != slot {
            self.fault(Flaw::Id);
        } else if response.status < 0 {
            self.fault(Flaw::Status);
        } else if response.status == 0 || end > PAGE_SIZE as i32 {
            self.fault(Flaw::Length);
        } else {
            let len = response.status as u16;
            self.pieces[self.count] = Piece { slot: slot as u16, offset: response.offset, len };
        }
        // A bad slot counts too, with whatever is in its piece: the chain is never looked at.
        self.count += 1;
        self.progress()
    }

    /// Returns whether an extra segment says that the frame is a super-frame.
    pub(crate) fn is_super_frame(&self) -> bool {
        self.super_frame
    }

    /// Takes an extra segment. What it says is only counted: a super-frame goes to the stack whole.
    pub(crate) fn extra(&mut self, extra: ExtraInfo) -> Progress {
        self.extras += 1;
        self.expects_extra = extra.more;
        self.super_frame |= matches!(extra.kind, ExtraKind::Gso { .. });
        if self.extras > MAX_EXTRAS {
            self.flaw = Some(Flaw::TooLong);
        }
        self.progress()
    }

    /// Judges the complete chain as a frame.
    pub(crate) fn as_frame(&self) -> Result<(), Flaw> {
        match self.flaw {
            Some(flaw) => Err(flaw),
            None if self.bytes() < MIN_PACKET_BYTES => Err(Flaw::Runt),
            None => Ok(()),
        }
    }

    /// Returns whether the data is one range of the pool, the mirror counted.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.pieces().windows(2).all(|pair| {
            let follows = (u32::from(pair[0].slot) + 1) % RING_SLOTS == u32::from(pair[1].slot);
            follows && usize::from(pair[0].offset + pair[0].len) == PAGE_SIZE && pair[1].offset == 0
        })
    }

    /// Judges the complete chain as a container (SPEC.md, section 3).
    pub(crate) fn as_container(&self, max_slots: usize, can_wrap: bool) -> Result<(), Flaw> {
        if let Some(flaw) = self.flaw {
            return Err(flaw);
        }
        if self.extras > 0 {
            return Err(Flaw::Extra);
        }
        if self.count > max_slots {
            return Err(Flaw::TooLong);
        }
        let [full @ .., last] = self.pieces() else { return Err(Flaw::Length) };
        if last.offset != 0 || full.iter().any(|p| p.offset != 0 || usize::from(p.len) != PAGE_SIZE) {
            return Err(Flaw::Length);
        }
        if !can_wrap && self.pieces().windows(2).any(|pair| pair[1].slot < pair[0].slot) {
            return Err(Flaw::Wrap);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drayage_wire::netif::status;

    fn data(slot: usize, len: i16, flags: u16) -> RxResponse {
        RxResponse { id: slot as u16, offset: 0, flags, status: len }
    }

    const MORE: u16 = rx_flags::MORE_DATA;

    #[test]
    fn a_frame_with_an_extra_segment_is_two_ranges() {
        let mut chain = Chain::default();
        assert_eq!(chain.data(7, data(7, 4096, MORE | rx_flags::EXTRA_INFO)), Progress::More);
        assert!(chain.expects_extra());
        let gso = ExtraInfo { kind: ExtraKind::Gso { size: 1448, gso_type: 1 }, more: false };
        assert_eq!(chain.extra(gso), Progress::More);
        assert_eq!(chain.data(9, data(9, 100, 0)), Progress::Complete);
        assert_eq!(chain.as_frame(), Ok(()));
        assert_eq!((chain.bytes(), chain.is_contiguous()), (4196, false));
        assert!(chain.is_super_frame());
        assert_eq!(chain.as_container(16, true), Err(Flaw::Extra));
    }

    #[test]
    fn each_lie_has_its_flaw() {
        let flaw = |responses: &[RxResponse]| {
            let mut chain = Chain::default();
            for (slot, response) in responses.iter().enumerate() {
                chain.data(slot, *response);
            }
            chain.as_frame().err()
        };
        assert_eq!(flaw(&[data(0, 14, 0)]), None);
        assert_eq!(flaw(&[data(0, 13, 0)]), Some(Flaw::Runt));
        assert_eq!(flaw(&[data(1, 60, 0)]), Some(Flaw::Id));
        assert_eq!(flaw(&[data(0, status::ERROR, 0)]), Some(Flaw::Status));
        assert_eq!(flaw(&[data(0, 0, 0)]), Some(Flaw::Length));
        assert_eq!(flaw(&[data(0, 4097, 0)]), Some(Flaw::Length));
        assert_eq!(flaw(&[data(0, i16::MAX, 0)]), Some(Flaw::Length));
        let beyond = RxResponse { offset: u16::MAX, ..data(0, 60, 0) };
        assert_eq!(flaw(&[beyond]), Some(Flaw::Length));
        assert_eq!(flaw(&[data(0, 60, MORE), data(1, 60, rx_flags::EXTRA_INFO)]), Some(Flaw::Extra));
        let long: [RxResponse; 20] = core::array::from_fn(|i| data(i, 4096, MORE));
        assert_eq!(flaw(&long[..19]), None);
        assert_eq!(flaw(&long), Some(Flaw::TooLong));
        let worse: [RxResponse; 20] = core::array::from_fn(|i| data(i + 1, 0, MORE));
        assert_eq!(flaw(&worse), Some(Flaw::TooLong), "or it would hold the ring's buffers for ever");
    }

    #[test]
    fn a_container_fills_its_pages_and_wraps_only_if_agreed() {
        let chain = |slots: &[usize], lens: &[i16]| {
            let mut chain = Chain::default();
            for (i, (slot, len)) in slots.iter().zip(lens).enumerate() {
                let flags = if i + 1 < slots.len() { MORE } else { 0 };
                chain.data(*slot, data(*slot, *len, flags));
            }
            chain
        };
        assert_eq!(chain(&[254, 255], &[4096, 1]).as_container(2, false), Ok(()));
        assert_eq!(chain(&[254, 255], &[4096, 1]).as_container(1, false), Err(Flaw::TooLong));
        assert_eq!(chain(&[254, 255], &[4095, 1]).as_container(2, false), Err(Flaw::Length));
        assert_eq!(chain(&[255, 0], &[4096, 1]).as_container(2, false), Err(Flaw::Wrap));
        assert_eq!(chain(&[255, 0], &[4096, 1]).as_container(2, true), Ok(()));
        assert!(chain(&[255, 0], &[4096, 1]).is_contiguous());
    }
}
