//! A ring of blocks, each of which the kernel fills with frames of any size and hands over when it is full or its time
//! is over (`TPACKET_V3`).
//!
//! How many frames there are in the block that the kernel has not handed over could be read, but they are not ours:
//! the count goes up before a frame is copied. Every frame that we carry fits into an empty block, super-frames too.
//! It knows the ring, and not what is sent.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use drayage_wire::container::Meta;

use super::{RING_BYTES, SLOT_OVERHEAD, USER, frame_in, tag_of};
use crate::port::device::set_option;
use crate::port::mapping::Mapping;
use crate::port::vnet::VNET_BYTES;
use crate::port::{Budget, MAX_FRAME_BYTES};

/// Bytes of a block.
const BLOCK_BYTES: usize = 128 * 1024;
const BLOCKS: usize = RING_BYTES / BLOCK_BYTES;
/// A divisor of a block's size that the kernel asks for, and that says nothing in this format.
const SLOT_BYTES: usize = 2048;
/// Bytes of a block's header (`struct tpacket_block_desc`), and where its words are.
const BLOCK_HEADER_BYTES: usize = 48;
const STATUS_AT: usize = 8;
const FRAMES_AT: usize = 12;
const FIRST_AT: usize = 16;
/// Bytes of a frame's header (`struct tpacket3_hdr`).
const HEADER_BYTES: usize = 48;

const _: () = assert!(BLOCK_HEADER_BYTES + SLOT_OVERHEAD + MAX_FRAME_BYTES <= BLOCK_BYTES);

pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("TPACKET_V3", libc::tpacket_versions::TPACKET_V3 as u64),
        ("sizeof(struct tpacket_req3)", size_of::<libc::tpacket_req3>() as u64),
        ("sizeof(struct tpacket_block_desc)", BLOCK_HEADER_BYTES as u64),
        ("offsetof(struct tpacket_block_desc, hdr.bh1.block_status)", STATUS_AT as u64),
        ("offsetof(struct tpacket_block_desc, hdr.bh1.num_pkts)", FRAMES_AT as u64),
        ("offsetof(struct tpacket_block_desc, hdr.bh1.offset_to_first_pkt)", FIRST_AT as u64),
        ("sizeof(struct tpacket3_hdr)", HEADER_BYTES as u64),
        ("offsetof(struct tpacket3_hdr, tp_next_offset)", 0),
        ("offsetof(struct tpacket3_hdr, tp_snaplen)", 12),
        ("offsetof(struct tpacket3_hdr, tp_len)", 16),
        ("offsetof(struct tpacket3_hdr, tp_status)", 20),
        ("offsetof(struct tpacket3_hdr, tp_mac)", 24),
        ("offsetof(struct tpacket3_hdr, hv1.tp_vlan_tci)", 32),
        ("offsetof(struct tpacket3_hdr, hv1.tp_vlan_tpid)", 36),
    ]
}

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// Where the next one is, from this one; 0 behind the last.
    next: usize,
    /// Where the frame starts, from its header on.
    frame_at: usize,
    /// Its bytes in the block.
    len: usize,
    /// Whether these are all of it.
    is_whole: bool,
    /// The VLAN tag that the kernel took out of it.
    tag: Option<[u8; 4]>,
}

fn parse_entry(header: &[u8; HEADER_BYTES]) -> Entry {
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let (len, full, frame_at) = (word(12), word(16), usize::from(half(24)));
    Entry {
        next: word(0) as usize,
        frame_at,
        len: len as usize,
        is_whole: len == full && frame_at >= HEADER_BYTES + VNET_BYTES,
        tag: tag_of(word(20), word(32) as u16, half(36)),
    }
}

/// The ring.
#[derive(Debug)]
pub(super) struct Blocks {
    ring: Mapping,
    /// The block in which frames are left, or that is handed over next.
    block: usize,
    /// How many are left in it.
    left: u32,
    /// Where the next of them is in it.
    next: usize,
}

impl Blocks {
    /// Makes a socket's ring, of which a block is handed over after so many milliseconds. Says what was tried when it
    /// cannot be made.
    pub(super) fn new(socket: &OwnedFd, retire_ms: u32) -> Result<Self, (&'static str, io::Error)> {
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, version)
            .map_err(|error| ("choosing the ring's format", error))?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as libc::c_uint,
            tp_block_nr: BLOCKS as libc::c_uint,
            tp_frame_size: SLOT_BYTES as libc::c_uint,
            tp_frame_nr: (RING_BYTES / SLOT_BYTES) as libc::c_uint,
            tp_retire_blk_tov: retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, request)
            .map_err(|error| ("making its ring", error))?;
        let ring = Mapping::new(socket, RING_BYTES, 0).map_err(|error| ("mapping its ring", error))?;
        Ok(Self::over(ring))
    }

    fn over(ring: Mapping) -> Self {
        Self { ring, block: 0, left: 0, next: 0 }
    }

    /// Hands over what is there, as far as the budget goes; a block is given back when all its frames were taken.
    /// Returns how many frames were lost instead.
    pub(super) fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) -> u64 {
        let mut lost = 0;
        while budget.is_left() {
            let block_at = self.block * BLOCK_BYTES;
            if self.left == 0 {
                if self.ring.load(block_at + STATUS_AT) & USER == 0 {
                    break;
                }
                self.left = self.ring.load(block_at + FRAMES_AT);
                self.next = self.ring.load(block_at + FIRST_AT) as usize;
            }
            let mut taken = 1;
            match self.entry(block_at) {
                None => {
                    // There is no way to those behind it.
                    lost += u64::from(self.left);
                    taken = self.left;
                }
                Some((entry, frame)) => {
                    match frame {
                        Some((frame, meta)) => {
                            budget.spend(frame.len());
                            each(frame, meta);
                        }
                        None => lost += 1,
                    }
                    self.next += entry.next;
                }
            }
            self.left -= taken;
            if self.left == 0 {
                self.ring.store(block_at + STATUS_AT, libc::TP_STATUS_KERNEL);
                self.block = if self.block + 1 == BLOCKS { 0 } else { self.block + 1 };
            }
        }
        lost
    }

    /// Returns the next header of a block that is ours, and its frame; no frame if that was cut off, and nothing if there
    /// is no header.
    #[allow(clippy::type_complexity)]
    fn entry(&mut self, block_at: usize) -> Option<(Entry, Option<(&[u8], Meta)>)> {
        if self.left == 0 {
            return None;
        }
        let at = block_at + BLOCK_HEADER_BYTES;
        // SAFETY: the kernel has handed the block over, and gets it back only after the borrow has ended. Behind its
        // header, it looks at nothing in it meanwhile.
        let bytes = unsafe { self.ring.lend(at, BLOCK_BYTES - BLOCK_HEADER_BYTES) };
        let bytes = bytes.get_mut(self.next.checked_sub(BLOCK_HEADER_BYTES)?..)?;
        let entry = parse_entry(bytes.first_chunk()?);
        let frame = if entry.is_whole { frame_in(bytes, entry.frame_at, entry.len, entry.tag) } else { None };
        Some((entry, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drayage_wire::container::{Checksum, Gso, GsoKind};

    const PLAIN: Meta = Meta { checksum: Checksum::Unverified, gso: None };

    struct Kernel(Blocks);

    impl Kernel {
        fn new() -> Self {
            Self(Blocks::over(Mapping::anonymous(RING_BYTES).unwrap()))
        }

        fn write(&mut self, at: usize, bytes: &[u8]) {
            // SAFETY: nobody else has this memory.
            unsafe { self.0.ring.lend(at, bytes.len()) }.copy_from_slice(bytes);
        }

        /// Writes a frame's header with its vnet header, and the frame 92 bytes behind its start; returns where the next
        /// one goes.
        fn put(
            &mut self,
            at: usize,
            status: u32,
            frame: &[u8],
            full: usize,
            vnet: [u8; VNET_BYTES],
        ) -> usize {
            let next = (92 + frame.len()).next_multiple_of(8);
            let mut header = [0; HEADER_BYTES];
            header[0..4].copy_from_slice(&(next as u32).to_ne_bytes());
            header[12..16].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
            header[16..20].copy_from_slice(&(full as u32).to_ne_bytes());
            header[20..24].copy_from_slice(&status.to_ne_bytes());
            header[24..26].copy_from_slice(&92u16.to_ne_bytes());
            header[32..36].copy_from_slice(&0x2005u32.to_ne_bytes());
            header[36..38].copy_from_slice(&0x88a8u16.to_ne_bytes());
            self.write(at, &header);
            self.write(at + 92 - VNET_BYTES, &vnet);
            self.write(at + 92, frame);
            at + next
        }

        fn hand_over(&mut self, block: usize, frames: u32) {
            let at = block * BLOCK_BYTES;
            self.0.ring.store(at + FRAMES_AT, frames);
            self.0.ring.store(at + FIRST_AT, BLOCK_HEADER_BYTES as u32);
            // TP_STATUS_BLK_TMO
            self.0.ring.store(at + STATUS_AT, USER | 1 << 5);
        }

        fn take(&mut self, mut budget: Budget) -> (Vec<(Vec<u8>, Meta)>, u64) {
            let mut taken = Vec::new();
            let lost = self.0.receive(&mut budget, &mut |frame, meta| taken.push((frame.to_vec(), meta)));
            (taken, lost)
        }

        fn is_ours(&self, block: usize) -> bool {
            self.0.ring.load(block * BLOCK_BYTES + STATUS_AT) & USER != 0
        }
    }

    #[test]
    fn a_block_is_given_back_with_its_last_frame_and_not_read_before_it_is_ours() {
        let mut kernel = Kernel::new();
        for round in 0..2 * BLOCKS {
            let block = round % BLOCKS;
            let mut at = block * BLOCK_BYTES + BLOCK_HEADER_BYTES;
            for n in 0..3u8 {
                at = kernel.put(at, USER, &[n; 61], 61, [0; VNET_BYTES]);
            }
            kernel.0.ring.store(block * BLOCK_BYTES + FRAMES_AT, 3);
            assert_eq!(kernel.take(Budget::new()).0, [], "the kernel may be writing there");
            kernel.hand_over(block, 3);
            for n in 0..3 {
                assert!(kernel.is_ours(block));
                assert_eq!(kernel.take(Budget::one()), (vec![(vec![n; 61], PLAIN)], 0));
            }
            assert!(!kernel.is_ours(block), "block {block}");
        }
    }

    #[test]
    fn tags_and_offloads_are_read() {
        let mut kernel = Kernel::new();
        let frame: Vec<u8> = (0..20).collect();
        let vnet = [1, 4, 86, 0, 0x94, 5, 54, 0, 16, 0];
        let at = kernel.put(BLOCK_HEADER_BYTES, USER | 0x50, &frame, 20, vnet);
        kernel.put(at, USER, &frame, 20, [0; VNET_BYTES]);
        kernel.hand_over(0, 2);
        let (taken, lost) = kernel.take(Budget::new());
        let tagged = [&frame[..12], &[0x88, 0xa8, 0x20, 5], &frame[12..]].concat();
        let gso = Some(Gso { kind: GsoKind::TcpV6, size: 1428 });
        assert_eq!(taken, [(tagged, Meta { checksum: Checksum::Blank, gso }), (frame, PLAIN)]);
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_frame_that_was_cut_off_is_lost_and_those_behind_it_are_not() {
        let mut kernel = Kernel::new();
        let at = kernel.put(BLOCK_HEADER_BYTES, USER, &[1; 60], 200_000, [0; VNET_BYTES]);
        kernel.put(at, USER, &[2; 60], 60, [0; VNET_BYTES]);
        kernel.hand_over(0, 2);
        assert_eq!(kernel.take(Budget::new()), (vec![(vec![2; 60], PLAIN)], 1));
        assert!(!kernel.is_ours(0));
    }

    #[test]
    fn what_cannot_be_true_costs_its_block_only() {
        let mut kernel = Kernel::new();
        kernel.put(BLOCK_HEADER_BYTES, USER, &[1; 60], 60, [0; VNET_BYTES]);
        kernel.write(BLOCK_HEADER_BYTES, &u32::MAX.to_ne_bytes());
        kernel.hand_over(0, 3);
        let before_first = BLOCK_BYTES + FIRST_AT;
        kernel.hand_over(1, 5);
        kernel.0.ring.store(before_first, 8);
        kernel.hand_over(2, 0);
        kernel.put(3 * BLOCK_BYTES + BLOCK_HEADER_BYTES, USER, &[4; 60], 60, [0; VNET_BYTES]);
        kernel.hand_over(3, 1);
        let expected = vec![(vec![1; 60], PLAIN), (vec![4; 60], PLAIN)];
        assert_eq!(kernel.take(Budget::new()), (expected, 2 + 5));
        assert!((0..4).all(|block| !kernel.is_ours(block)));
    }
}
