//! A ring of slots of one size, each of which the kernel hands over by itself (`TPACKET_V2`).
//!
//! A super-frame that GRO or a veth's other end made does not fit into a slot: the kernel keeps a whole copy of it in the
//! socket's queue (`PACKET_COPY_THRESH`), which is read in its turn. It knows the ring, and not what is sent.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use drayage_wire::container::Meta;
use rustix::net::{RecvFlags, recv};

use super::{COPY, RING_BYTES, SLOT_OVERHEAD, USER, frame_in, tag_of};
use crate::port::device::set_option;
use crate::port::mapping::Mapping;
use crate::port::vnet::VNET_BYTES;
use crate::port::{Budget, MAX_FRAME_BYTES};

/// Bytes of a block, in each of which there is a whole number of slots.
const BLOCK_BYTES: usize = 64 * 1024;
/// Bytes of a slot's header (`struct tpacket2_hdr`).
const HEADER_BYTES: usize = 32;

pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("PACKET_COPY_THRESH", libc::PACKET_COPY_THRESH as u64),
        ("TPACKET_V2", libc::tpacket_versions::TPACKET_V2 as u64),
        ("TP_STATUS_COPY", u64::from(COPY)),
        ("sizeof(struct tpacket_req)", size_of::<libc::tpacket_req>() as u64),
        ("sizeof(struct tpacket2_hdr)", HEADER_BYTES as u64),
        ("offsetof(struct tpacket2_hdr, tp_status)", 0),
        ("offsetof(struct tpacket2_hdr, tp_len)", 4),
        ("offsetof(struct tpacket2_hdr, tp_snaplen)", 8),
        ("offsetof(struct tpacket2_hdr, tp_mac)", 12),
        ("offsetof(struct tpacket2_hdr, tp_vlan_tci)", 24),
        ("offsetof(struct tpacket2_hdr, tp_vlan_tpid)", 26),
    ]
}

/// What a slot's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// Where the frame starts in the slot.
    frame_at: usize,
    /// Its bytes in the slot.
    len: usize,
    /// Where all of it is.
    whole: Whole,
    /// The VLAN tag that the kernel took out of it.
    tag: Option<[u8; 4]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    /// In the slot.
    Here,
    /// In the socket's queue.
    Copied,
    /// Nowhere: there was no room for a copy.
    Nowhere,
}

/// Reads a slot's header. The kernel fills it in; what could not be true is taken for a frame that is lost.
fn parse_slot(header: &[u8; HEADER_BYTES], slot_bytes: usize) -> Slot {
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let (status, full, len, frame_at) = (word(0), word(4) as usize, word(8) as usize, usize::from(half(12)));
    let fits = frame_at >= HEADER_BYTES + VNET_BYTES && frame_at + len <= slot_bytes;
    let whole = match status & COPY {
        0 if full == len && fits => Whole::Here,
        0 => Whole::Nowhere,
        _ => Whole::Copied,
    };
    Slot { frame_at, len, whole, tag: tag_of(status, half(24), half(26)) }
}

/// The ring.
#[derive(Debug)]
pub(super) struct Slots {
    ring: Mapping,
    slot_bytes: usize,
    slots: usize,
    /// The slot that is filled next.
    at: usize,
    /// A super-frame that is being handed over.
    large: Box<[u8]>,
}

impl Slots {
    /// Makes a socket's ring, for a device with this MTU. Says what was tried when it cannot be made.
    pub(super) fn new(socket: &OwnedFd, mtu: u16) -> Result<Self, (&'static str, io::Error)> {
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, version)
            .map_err(|error| ("choosing the ring's format", error))?;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, 1 as libc::c_int)
            .map_err(|error| ("asking for copies of large frames", error))?;
        let slot_bytes = slot_bytes(mtu);
        let slots = RING_BYTES / slot_bytes;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES.max(slot_bytes) as libc::c_uint,
            tp_block_nr: (RING_BYTES / BLOCK_BYTES.max(slot_bytes)) as libc::c_uint,
            tp_frame_size: slot_bytes as libc::c_uint,
            tp_frame_nr: slots as libc::c_uint,
        };
        set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, request)
            .map_err(|error| ("making its ring", error))?;
        let ring = Mapping::new(socket, RING_BYTES, 0).map_err(|error| ("mapping its ring", error))?;
        let large = vec![0; VNET_BYTES + MAX_FRAME_BYTES].into_boxed_slice();
        Ok(Self { ring, slot_bytes, slots, at: 0, large })
    }

    /// Hands over what is there, as far as the budget goes. Returns how many frames were lost instead.
    pub(super) fn receive(
        &mut self,
        socket: &OwnedFd,
        budget: &mut Budget,
        each: &mut dyn FnMut(&[u8], Meta),
    ) -> u64 {
        let mut lost = 0;
        while budget.is_left() {
            let slot_at = self.at * self.slot_bytes;
            if self.ring.load(slot_at) & USER == 0 {
                break;
            }
            match self.frame(socket, slot_at) {
                Some((frame, meta)) => {
                    budget.spend(frame.len());
                    each(frame, meta);
                }
                None => lost += 1,
            }
            self.ring.store(slot_at, libc::TP_STATUS_KERNEL);
            self.at = if self.at + 1 == self.slots { 0 } else { self.at + 1 };
        }
        lost
    }

    /// Returns the frame of a slot that is ours; nothing if it is lost.
    fn frame(&mut self, socket: &OwnedFd, slot_at: usize) -> Option<(&[u8], Meta)> {
        // SAFETY: the kernel has handed the slot over, and gets it back only after the borrow has ended.
        let bytes = unsafe { self.ring.lend(slot_at, self.slot_bytes) };
        let slot = parse_slot(bytes.first_chunk()?, bytes.len());
        match slot.whole {
            Whole::Here => frame_in(bytes, slot.frame_at, slot.len, slot.tag),
            Whole::Copied => {
                let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
                let (read, whole) = recv(socket, &mut self.large[..], flags).ok()?;
                // One that is larger than any that we carry was cut off.
                let len = read.checked_sub(VNET_BYTES).filter(|_| read == whole)?;
                frame_in(&mut self.large, VNET_BYTES, len, slot.tag)
            }
            Whole::Nowhere => None,
        }
    }
}

/// Returns the bytes of a slot into which a device's own frames fit.
fn slot_bytes(mtu: u16) -> usize {
    (usize::from(mtu) + 18 + SLOT_OVERHEAD).next_power_of_two().clamp(2048, 128 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot's header as a little-endian machine has it.
    #[cfg(target_endian = "little")]
    const TAGGED: [u8; HEADER_BYTES] = [
        0x51, 0, 0, 0, // USER, VLAN_VALID and VLAN_TPID_VALID
        60, 0, 0, 0, 60, 0, 0, 0, // all 60 bytes are in the slot
        76, 0, 90, 0, // from byte 76 on, the network header from 90
        1, 0, 0, 0, 2, 0, 0, 0, // a time
        5, 0x20, 0xa8, 0x88, // tag 5 with priority 1, of 802.1ad
        0, 0, 0, 0,
    ];

    #[test]
    fn a_slot_is_read() {
        let slot = parse_slot(&TAGGED, 2048);
        let tag = Some([0x88, 0xa8, 0x20, 5]);
        assert_eq!(slot, Slot { frame_at: 76, len: 60, whole: Whole::Here, tag });
        let mut plain = TAGGED;
        plain[0] = 1;
        assert_eq!(parse_slot(&plain, 2048).tag, None);
        let mut untold = TAGGED;
        untold[0] = 0x11;
        assert_eq!(
            parse_slot(&untold, 2048).tag,
            Some([0x81, 0, 0x20, 5]),
            "802.1Q unless it says otherwise"
        );
        let mut large = TAGGED;
        large[0] = 0x03;
        large[5] = 8;
        assert_eq!(parse_slot(&large, 2048).whole, Whole::Copied);
        large[0] = 0x01;
        assert_eq!(parse_slot(&large, 2048).whole, Whole::Nowhere, "cut off, and there is no copy");
        assert_eq!(parse_slot(&TAGGED, 100).whole, Whole::Nowhere, "it would end behind the slot");
    }

    #[test]
    fn slots_fit_a_devices_frames_and_blocks_fit_slots() {
        for (mtu, bytes) in [(1280, 2048), (1500, 2048), (1902, 2048), (1903, 4096), (9000, 16_384)] {
            assert_eq!(slot_bytes(mtu), bytes);
        }
        for mtu in 68..=u16::MAX {
            let (slot, block) = (slot_bytes(mtu), BLOCK_BYTES.max(slot_bytes(mtu)));
            assert!(slot >= usize::from(mtu) + 18 + SLOT_OVERHEAD && block.is_multiple_of(slot));
        }
    }
}
