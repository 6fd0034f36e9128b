//! A network device of Linux's as an uplink, by a packet socket with a receive ring (`linux/if_packet.h`).
//!
//! Of the two formats of rings, `slots` is the default: a frame is there as soon as its slot says so, and how many
//! are taken with one wake-up is our decision (the worker's hold-off). In `blocks` it is the kernel's. Frames are lent
//! straight from the ring.
//!
//! Linux goes on using the device: what arrives is seen by both, what Linux itself sends is not seen here.

mod blocks;
mod slots;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use drayage_wire::container::Meta;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use self::blocks::Blocks;
use self::slots::Slots;
use super::device::{self, option, set_option};
use super::outbox::Outbox;
use super::spec::{PacketSpec, RingFormat};
use super::vnet::{self, VNET_BYTES, parse_header};
use super::{Budget, By, DeviceError, Flushed, Sent, Uplink};
use crate::scattered::Scattered;

/// Bytes of the ring.
const RING_BYTES: usize = 8 << 20;
/// Bytes in front of a frame in its slot, and room for a VLAN tag.
const SLOT_OVERHEAD: usize = 128;
/// Bytes of copies of super-frames that the kernel keeps for us.
const COPIES_BYTES: libc::c_int = 8 << 20;
/// Bytes of frames on their way out, by Linux's count, which adds its own structures.
const SENDING_BYTES: libc::c_int = 8 << 20;

/// Bytes of a super-frame that Linux is asked to keep in one piece (`packet_snd` takes as many as the header's `hdr_len` says):
/// with its own structures that is a piece of 64 KiB, and a longer one would be of 128.
const LINEAR_BYTES: usize = 63 << 10;
/// Where so much was sent to Linux's own stack in a pass, by long frames, answers are looked for together.
const BEHIND_BYTES: usize = 64 << 10;

/// Returns whether the system lacks memory, or such a large piece of it.
fn lacks_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Returns constants and layouts by their names in the headers, so that a test outside can compare them.
#[doc(hidden)]
pub fn constants() -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("PACKET_RX_RING", libc::PACKET_RX_RING as u64),
        ("PACKET_VERSION", libc::PACKET_VERSION as u64),
        ("PACKET_VNET_HDR", libc::PACKET_VNET_HDR as u64),
        ("PACKET_IGNORE_OUTGOING", libc::PACKET_IGNORE_OUTGOING as u64),
        ("PACKET_ADD_MEMBERSHIP", libc::PACKET_ADD_MEMBERSHIP as u64),
        ("PACKET_STATISTICS", libc::PACKET_STATISTICS as u64),
        ("PACKET_MR_PROMISC", libc::PACKET_MR_PROMISC as u64),
        ("TP_STATUS_USER", u64::from(USER)),
        ("TP_STATUS_VLAN_VALID", u64::from(VLAN_VALID)),
        ("TP_STATUS_VLAN_TPID_VALID", u64::from(VLAN_TPID_VALID)),
        ("offsetof(struct tpacket_stats, tp_drops)", 4),
        ("offsetof(struct tpacket_stats_v3, tp_drops)", 4),
    ];
    all.extend(slots::constants());
    all.extend(blocks::constants());
    all
}

const USER: u32 = libc::TP_STATUS_USER;
const COPY: u32 = libc::TP_STATUS_COPY;
const VLAN_VALID: u32 = libc::TP_STATUS_VLAN_VALID;
const VLAN_TPID_VALID: u32 = libc::TP_STATUS_VLAN_TPID_VALID;

/// Returns the VLAN tag that the kernel took out of a frame, if it did.
fn tag_of(status: u32, tci: u16, tpid: u16) -> Option<[u8; 4]> {
    (status & VLAN_VALID != 0).then(|| {
        let tpid = if status & VLAN_TPID_VALID != 0 { tpid } else { 0x8100 };
        let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
        [a, b, c, d]
    })
}

/// Returns the frame at `at` with what the vnet header in front of it says, and its tag put back in that one's place.
/// Nothing if it does not lie in these bytes.
fn frame_in(bytes: &mut [u8], at: usize, len: usize, tag: Option<[u8; 4]>) -> Option<(&[u8], Meta)> {
    let end = at.checked_add(len).filter(|end| *end <= bytes.len())?;
    let (_, vnet) = bytes[..at].split_last_chunk::<VNET_BYTES>()?;
    let meta = parse_header(*vnet);
    let start = match tag {
        Some(tag) if len >= 12 => put_tag_back(bytes, at, tag),
        _ => at,
    };
    Some((&bytes[start..end], meta))
}

/// Puts a VLAN tag back behind the addresses of the frame that starts at `at`. Returns where it starts then:
/// four bytes earlier.
fn put_tag_back(bytes: &mut [u8], at: usize, tag: [u8; 4]) -> usize {
    bytes.copy_within(at..at + 12, at - 4);
    bytes[at + 8..at + 12].copy_from_slice(&tag);
    at - 4
}

#[derive(Debug)]
enum Ring {
    Slots(Slots),
    Blocks(Blocks),
}

/// A device, open.
#[derive(Debug)]
pub struct Packet {
    socket: OwnedFd,
    ring: Ring,
    outbox: Outbox,
    /// Frames that were lost because the ring or the queue of copies was full.
    lost: Cell<u64>,
    /// Bytes of scattered frames that were sent in this pass.
    scattered_bytes: usize,
    /// Whether those of the last pass were many.
    is_behind: bool,
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
        set(libc::PACKET_VNET_HDR, 1).map_err(failed("turning on offload headers"))?;
        set(libc::PACKET_IGNORE_OUTGOING, 1).map_err(failed("ignoring what linux sends"))?;
        for (name, bytes) in [(libc::SO_RCVBUFFORCE, COPIES_BYTES), (libc::SO_SNDBUFFORCE, SENDING_BYTES)] {
            set_option(&socket, libc::SOL_SOCKET, name, bytes).map_err(failed("setting its buffers"))?;
        }
        let ring = match spec.ring {
            RingFormat::Slots => Slots::new(&socket, found.mtu).map(Ring::Slots),
            RingFormat::Blocks { retire_ms } => Blocks::new(&socket, retire_ms).map(Ring::Blocks),
        }
        .map_err(|(doing, error)| failed(doing)(error))?;
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
        let packet = Self {
            socket,
            ring,
            outbox: Outbox::new(VNET_BYTES),
            lost: Cell::new(0),
            scattered_bytes: 0,
            is_behind: false,
        };
        Ok((packet, found.mtu))
    }

    fn lose(&self, frames: u64) {
        self.lost.set(self.lost.get() + frames);
    }
}

impl Uplink for Packet {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn by(&self) -> By {
        match self.ring {
            Ring::Slots(_) => By::TpacketV2,
            Ring::Blocks(_) => By::TpacketV3,
        }
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        let lost = match &mut self.ring {
            Ring::Slots(slots) => slots.receive(&self.socket, budget, each),
            Ring::Blocks(blocks) => blocks.receive(budget, each),
        };
        if lost > 0 {
            self.lose(lost);
        }
    }

    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent {
        self.outbox
            .push(&self.socket, frame, |header| header.copy_from_slice(&vnet::make_header(frame, meta)))
    }

    fn takes_scattered(&self) -> bool {
        true
    }

    fn send_scattered(&mut self, frame: &Scattered<'_>, meta: Meta) -> Sent {
        let mut header = vnet::make_header(frame.frame, meta);
        let whole = frame.frame.len().min(LINEAR_BYTES);
        let in_one = vnet::ask_for_piece(&mut header, whole);
        let mut sent = self.outbox.send_scattered(&self.socket, &header, frame);
        // There may be no such piece.
        if in_one && sent.as_ref().is_err_and(lacks_memory) {
            header = vnet::make_header(frame.frame, meta);
            sent = self.outbox.send_scattered(&self.socket, &header, frame);
        }
        if sent.is_err() {
            return Sent::No;
        }
        self.scattered_bytes += frame.frame.len();
        Sent::Yes
    }

    fn is_behind(&mut self) -> bool {
        self.is_behind
    }

    fn flush(&mut self) -> Flushed {
        self.is_behind = std::mem::take(&mut self.scattered_bytes) >= BEHIND_BYTES;
        self.outbox.flush(&self.socket)
    }

    fn receive_drops(&self) -> u64 {
        // Reading the kernel's count sets it back. In both formats `tp_packets`, then `tp_drops`.
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
    fn a_frame_must_lie_in_its_memory() {
        let mut bytes = [0; 100];
        assert!(frame_in(&mut bytes, 10, 90, None).is_some_and(|(frame, _)| frame.len() == 90));
        for (at, len) in [(9, 20), (10, 91), (101, 0), (50, usize::MAX)] {
            assert_eq!(frame_in(&mut bytes, at, len, None), None, "{len} at {at}");
        }
    }
}
