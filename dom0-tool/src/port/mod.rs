//! What stands at the switch beside the guests: uplinks into the kernel's network, a traffic generator, and
//! a sink.
//!
//! It knows no guest, no ring of a guest's and no hypervisor.

mod bpf;
mod device;
pub mod discard;
pub mod generator;
pub mod gso;
mod mapping;
mod outbox;
pub mod packet;
pub mod sink;
pub mod spec;
pub mod tap;
pub mod vhost;
mod vnet;
mod vring;
pub mod xdp;

use std::os::fd::BorrowedFd;

use drayage_wire::container::Meta;
use serde::{Deserialize, Serialize};

use crate::scattered::Scattered;

/// The longest frame that an uplink hands over: 64 KiB and an Ethernet header with a VLAN tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + 18;
/// Frames that one uplink hands over in one pass, at most. The memory in which they wait for a guest holds several
/// times as much: what comes in faster than it goes out in between is lost.
pub const BATCH_FRAMES: usize = 128;
/// Bytes in them, at most (and one frame).
pub const BATCH_BYTES: usize = 96 * 1024;

/// How much an uplink may still hand over in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    frames: usize,
    bytes: usize,
}

impl Budget {
    /// Makes a whole one.
    pub fn new() -> Self {
        Self { frames: BATCH_FRAMES, bytes: BATCH_BYTES }
    }

    /// Makes one for a single frame.
    pub fn one() -> Self {
        Self { frames: 1, bytes: BATCH_BYTES }
    }

    /// Returns whether another frame may be handed over.
    pub fn is_left(self) -> bool {
        self.frames > 0 && self.bytes > 0
    }

    /// Takes a frame's share.
    pub fn spend(&mut self, len: usize) {
        self.frames -= 1;
        self.bytes = self.bytes.saturating_sub(len);
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the MTU that a device has now.
///
/// # Errors
/// When there is no such device.
pub fn mtu_of(device: &str) -> std::io::Result<u16> {
    device::mtu(&device::control_socket()?, device)
}

/// By what an uplink's frames go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Into a TAP device by the kernel's vhost thread, many at a time.
    Vhost,
    /// Into a TAP device by a `write()` each.
    Write,
    /// Out of a ring of slots of a packet socket's.
    #[serde(rename = "tpacket-v2")]
    TpacketV2,
    /// Out of a ring of blocks of a packet socket's.
    #[serde(rename = "tpacket-v3")]
    TpacketV3,
    /// By an XDP program in the driver.
    XdpDriver,
    /// By an XDP program in the stack.
    XdpStack,
    /// By something that has no choice.
    #[default]
    Other,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As scripts read it.
        self.serialize(f)
    }
}

/// What came of sending a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was taken.
    Yes,
    /// It waits for [`Uplink::flush`], which tells what came of it.
    Queued,
    /// There was no room for it, or it was refused.
    No,
}

/// What came of the frames that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Frames that were taken.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that were not.
    pub drops: u64,
}

/// A way into another network.
pub trait Uplink: Send {
    /// Returns the descriptor that is readable when there is something to receive; an uplink without one is
    /// asked in every pass.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Returns whether there is something to receive that the descriptor does not tell of.
    fn has_own(&self) -> bool {
        false
    }

    /// Hands over what is there, oldest first and as far as the budget goes, without waiting. Frames are lent.
    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta));

    /// Says by what its frames go now.
    fn by(&self) -> By {
        By::Other
    }

    /// Sends a frame, or keeps a copy until the next [`flush`](Self::flush), without waiting; only for room in a ring that
    /// the kernel's vhost thread empties it waits, up to 2 ms.
    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent;

    /// Returns whether the kernel has yet to take much of what was sent: what is answered to that comes then.
    fn is_behind(&mut self) -> bool {
        false
    }

    /// Returns whether it keeps frames in memory of its own, into which they can be written.
    fn has_places(&self) -> bool {
        false
    }

    /// Returns where a frame of so many bytes may be written, with whatever in it, if there is room. It goes nowhere unless
    /// [`send_placed`](Self::send_placed) comes next. It waits for room as [`send`](Self::send) does.
    fn place(&mut self, frame_bytes: usize) -> Option<&mut [u8]> {
        let _ = frame_bytes;
        None
    }

    /// Sends the frame that was written where the last [`place`](Self::place) was.
    fn send_placed(&mut self, meta: Meta) -> Sent {
        let _ = meta;
        Sent::No
    }

    /// Returns whether it has the system read long frames where they are.
    fn takes_scattered(&self) -> bool {
        false
    }

    /// Sends a frame, the end of which is read by the system alone. Does not wait.
    fn send_scattered(&mut self, frame: &Scattered<'_>, meta: Meta) -> Sent {
        let _ = (frame, meta);
        Sent::No
    }

    /// Sends what waits; called at the end of every pass.
    fn flush(&mut self) -> Flushed {
        Flushed::default()
    }

    /// Returns how many frames were lost on this side before they could be handed over, where that is known.
    fn receive_drops(&self) -> u64 {
        0
    }

    /// Takes note of an error that the descriptor reports, so that it does not go on reporting it.
    fn clear_error(&mut self) {}
}

/// Why an existing network device could not be made an uplink.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is none of this name.
    #[error("no network device {0:?}; see `ip link`")]
    Missing(String),
    /// It is no Ethernet device.
    #[error("network device {0:?} is no ethernet device, and carries no guest's frames")]
    NotEthernet(String),
    /// We may not.
    #[error("{port}: {doing}: {source}; run as root (CAP_NET_RAW and CAP_NET_ADMIN)")]
    Denied {
        /// The port.
        port: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else.
    #[error("{port}: {doing}: {source}{hint}")]
    Other {
        /// The port.
        port: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
        /// What to do; empty if that is not known.
        hint: String,
    },
}

impl DeviceError {
    /// Wraps what the system said when something was tried. A hint names the device as DEVICE.
    fn wrap(
        port: &dyn std::fmt::Display,
        device: &str,
        doing: &'static str,
        hint: &str,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let (port, hint) = (port.to_string(), hint.replace("DEVICE", device));
        move |source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => Self::Denied { port, doing, source },
            _ => Self::Other { port, doing, source, hint },
        }
    }
}
