//! A network device of Linux's as an uplink, by a packet socket with a receive ring (`linux/if_packet.h`).
//!
//! The ring is a `TPACKET_V2` one: a frame is there as soon as its slot says so, and how many are taken with
//! one wake-up is our decision (the worker's hold-off). In a `TPACKET_V3` ring it would be the kernel's, whose
//! block timeout is at least a tick: up to 4 ms for a lone packet. Frames are lent straight from the ring. A
//! super-frame that GRO or a veth's other end made does not fit into a slot: the kernel keeps a whole copy of
//! it for us (`PACKET_COPY_THRESH`), which is read in its turn, so that it reaches the guest whole.
//!
//! Linux goes on using the device: what arrives is seen by both, what Linux itself sends is not seen here.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use drayage_wire::container::Meta;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use super::device::{self, option, set_option};
use super::mapping::Mapping;
use super::outbox::Outbox;
use super::spec::PacketSpec;
use super::vnet::{self, VNET_BYTES, parse_header};
use super::{Budget, DeviceError, Flushed, MAX_FRAME_BYTES, Sent, Uplink};

/// Bytes of the ring.
const RING_BYTES: usize = 8 << 20;
/// Bytes of one of its blocks, in each of which there is a whole number of slots.
const BLOCK_BYTES: usize = 64 * 1024;
/// Bytes in front of a frame in its slot, and room for a VLAN tag.
const SLOT_OVERHEAD: usize = 128;
/// Bytes of copies of super-frames that the kernel keeps for us.
const COPIES_BYTES: libc::c_int = 8 << 20;
/// Bytes of frames on their way out, by Linux's count, which adds its own structures.
const SENDING_BYTES: libc::c_int = 8 << 20;
/// Bytes of a slot's header (`struct tpacket2_hdr`).
const HEADER_BYTES: usize = 32;

/// Returns constants and layouts by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("PACKET_RX_RING", libc::PACKET_RX_RING as u64),
        ("PACKET_VERSION", libc::PACKET_VERSION as u64),
        ("PACKET_VNET_HDR", libc::PACKET_VNET_HDR as u64),
        ("PACKET_COPY_THRESH", libc::PACKET_COPY_THRESH as u64),
        ("PACKET_IGNORE_OUTGOING", libc::PACKET_IGNORE_OUTGOING as u64),
        ("PACKET_ADD_MEMBERSHIP", libc::PACKET_ADD_MEMBERSHIP as u64),
        ("PACKET_STATISTICS", libc::PACKET_STATISTICS as u64),
        ("PACKET_MR_PROMISC", libc::PACKET_MR_PROMISC as u64),
        ("TPACKET_V2", libc::tpacket_versions::TPACKET_V2 as u64),
        ("TP_STATUS_USER", u64::from(USER)),
        ("TP_STATUS_COPY", u64::from(COPY)),
        ("TP_STATUS_VLAN_VALID", u64::from(VLAN_VALID)),
        ("TP_STATUS_VLAN_TPID_VALID", u64::from(VLAN_TPID_VALID)),
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

const USER: u32 = libc::TP_STATUS_USER;
const COPY: u32 = libc::TP_STATUS_COPY;
const VLAN_VALID: u32 = libc::TP_STATUS_VLAN_VALID;
const VLAN_TPID_VALID: u32 = libc::TP_STATUS_VLAN_TPID_VALID;

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
    let tag = (status & VLAN_VALID != 0).then(|| {
        let tpid = if status & VLAN_TPID_VALID != 0 { half(26) } else { 0x8100 };
        let ([a, b], [c, d]) = (tpid.to_be_bytes(), half(24).to_be_bytes());
        [a, b, c, d]
    });
    Slot { frame_at, len, whole, tag }
}

/// Puts a VLAN tag back behind the addresses of the frame that starts at `at`. Returns where it starts then:
/// four bytes earlier.
fn put_tag_back(bytes: &mut [u8], at: usize, tag: [u8; 4]) -> usize {
    bytes.copy_within(at..at + 12, at - 4);
    bytes[at + 8..at + 12].copy_from_slice(&tag);
    at - 4
}

/// A device, open.
#[derive(Debug)]
pub struct Packet {
    socket: OwnedFd,
    ring: Mapping,
    slot_bytes: usize,
    slots: usize,
    /// The slot that is filled next.
    at: usize,
    /// A super-frame that is being handed over.
    large: Box<[u8]>,
    outbox: Outbox,
    /// Frames that were lost because the ring or the queue of copies was full.
    lost: Cell<u64>,
}

impl Packet {
    /// Opens the device, and brings it up. Returns it with its MTU.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(spec: &PacketSpec) -> Result<(Self, u16), DeviceError> {
        let failed = |doing| DeviceError::wrap(spec, &spec.device, doing, "");
        let found = device::prepare(spec, &spec.device)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Of no protocol: nothing is received before all is set.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
            .map_err(|error| failed("opening a packet socket")(error.into()))?;
        let set = |name, value: libc::c_int| set_option(&socket, libc::SOL_PACKET, name, value);
        set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as libc::c_int)
            .map_err(failed("choosing the ring's format"))?;
        set(libc::PACKET_VNET_HDR, 1).map_err(failed("turning on offload headers"))?;
        set(libc::PACKET_COPY_THRESH, 1).map_err(failed("asking for copies of large frames"))?;
        set(libc::PACKET_IGNORE_OUTGOING, 1).map_err(failed("ignoring what linux sends"))?;
        for (name, bytes) in [(libc::SO_RCVBUFFORCE, COPIES_BYTES), (libc::SO_SNDBUFFORCE, SENDING_BYTES)] {
            set_option(&socket, libc::SOL_SOCKET, name, bytes).map_err(failed("setting its buffers"))?;
        }
        let slot_bytes = slot_bytes(found.mtu);
        let slots = RING_BYTES / slot_bytes;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES.max(slot_bytes) as libc::c_uint,
            tp_block_nr: (RING_BYTES / BLOCK_BYTES.max(slot_bytes)) as libc::c_uint,
            tp_frame_size: slot_bytes as libc::c_uint,
            tp_frame_nr: slots as libc::c_uint,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, request)
            .map_err(failed("making its ring"))?;
        let ring = Mapping::new(&socket, RING_BYTES, 0).map_err(failed("mapping its ring"))?;
        device::add_promiscuity(&socket, found.index).map_err(failed("making it promiscuous"))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: found.index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        device::bind(&socket, address).map_err(failed("binding a packet socket to it"))?;
        let large = vec![0; VNET_BYTES + MAX_FRAME_BYTES].into_boxed_slice();
        let outbox = Outbox::new(VNET_BYTES);
        let packet = Self { socket, ring, slot_bytes, slots, at: 0, large, outbox, lost: Cell::new(0) };
        Ok((packet, found.mtu))
    }

    fn lose(&self, frames: u64) {
        self.lost.set(self.lost.get() + frames);
    }

    /// Hands over the frame of a slot that is ours.
    fn hand_over(&mut self, slot_at: usize, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        // SAFETY: the kernel has handed the slot over, and gets it back only after this.
        let bytes = unsafe { self.ring.lend(slot_at, self.slot_bytes) };
        let Some(header) = bytes.first_chunk() else { return };
        let slot = parse_slot(header, bytes.len());
        match slot.whole {
            Whole::Here => {
                let at = slot.frame_at;
                let Some((_, vnet)) = bytes[..at].split_last_chunk::<VNET_BYTES>() else { return };
                let meta = parse_header(*vnet);
                let start = match slot.tag {
                    Some(tag) if slot.len >= 12 => put_tag_back(bytes, at, tag),
                    _ => at,
                };
                let frame = &bytes[start..at + slot.len];
                budget.spend(frame.len());
                each(frame, meta);
            }
            Whole::Copied => {
                // Room for a tag is left in front.
                let got = recv(&self.socket, &mut self.large[4..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
                let end = 4 + got.map_or(0, |(read, _)| read);
                let Some(vnet) = self.large[4..end].first_chunk() else { return self.lose(1) };
                let meta = parse_header(*vnet);
                let at = 4 + VNET_BYTES;
                let start = match slot.tag {
                    Some(tag) if end >= at + 12 => put_tag_back(&mut self.large, at, tag),
                    _ => at,
                };
                budget.spend(end - start);
                each(&self.large[start..end], meta);
            }
            Whole::Nowhere => self.lose(1),
        }
    }
}

/// Returns the bytes of a slot into which a device's own frames fit.
fn slot_bytes(mtu: u16) -> usize {
    (usize::from(mtu) + 18 + SLOT_OVERHEAD).next_power_of_two().clamp(2048, 128 * 1024)
}

impl Uplink for Packet {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        while budget.is_left() {
            let slot_at = self.at * self.slot_bytes;
            if self.ring.load(slot_at) & USER == 0 {
                return;
            }
            self.hand_over(slot_at, budget, each);
            self.ring.store(slot_at, libc::TP_STATUS_KERNEL);
            self.at = if self.at + 1 == self.slots { 0 } else { self.at + 1 };
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        self.outbox
            .push(&self.socket, frame, |header| header.copy_from_slice(&vnet::make_header(frame, meta)))
    }

    fn flush(&mut self) -> Flushed {
        self.outbox.flush(&self.socket)
    }

    fn receive_drops(&self) -> u64 {
        // Reading the kernel's count sets it back. `tp_packets`, then `tp_drops`.
        if let Ok([counts]) = option::<1>(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS) {
            self.lose(counts >> 32);
        }
        self.lost.get()
    }

    fn clear_error(&mut self) {
        // The device went down; it is heard again when it is up.
        let _: io::Result<[u64; 1]> = option(&self.socket, libc::SOL_SOCKET, libc::SO_ERROR);
    }
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
    fn a_tag_is_put_back_where_it_was() {
        let mut bytes = [0; 24];
        for (at, byte) in (0..).zip(&mut bytes[8..]) {
            *byte = at;
        }
        let start = put_tag_back(&mut bytes, 8, [0x81, 0, 0, 7]);
        assert_eq!(bytes[start..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0, 7, 12, 13, 14, 15]);
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
