//! The network of a guest: interfaces with a stack and an app on each, and the loop that turns them.
//!
//! It knows smoltcp and what a NIC must be able to do; it knows no hypervisor, no ring and no machine.

mod address;
mod egress;
mod ingress;
mod io;
mod link;
mod nic;
mod run;
mod transit;
mod vif;
mod watch;

pub use crate::forward::Routed;
pub use io::{Datagram, Net, TcpHandle, Udp, UdpHandle};
pub use nic::{Counters, Nic, Rearmed};
pub use run::{Change, Ended, Machine, run};

/// The most frames that the stack is given before the app and the senders get their turn.
pub const BATCH_FRAMES: usize = 64;
/// The most frames that are taken before they do, those included that go the short way past the stack.
pub const SHORT_BATCH_FRAMES: usize = 256;
/// The most bytes that are taken before they do; the frame that reaches it is still taken. A UDP socket that
/// holds [`UDP_RX_BYTES`] and is emptied after every batch never overflows.
pub const BATCH_BYTES: usize = 128 << 10;
/// The receive buffer of a UDP socket: a batch, and the largest datagram beyond it.
pub const UDP_RX_BYTES: usize = BATCH_BYTES + (64 << 10);
/// The receive queue of a UDP socket past the stack: a batch, in which what is kept of a frame is shorter than the frame,
/// and what a datagram may leave unused at its end.
pub const UDP_SHORT_BYTES: usize = BATCH_BYTES + (16 << 10);
/// The send buffer of a UDP socket.
pub const UDP_TX_BYTES: usize = 128 << 10;
/// Datagrams that wait in the send buffer of a UDP socket at most.
pub const UDP_TX_DATAGRAMS: usize = 256;
/// Each of the two buffers of a TCP socket that speaks and listens, and so its window.
pub const TCP_BYTES: usize = 128 << 10;
/// The buffer of a TCP stream in its one direction: eight of the longest super-frames, so that the two ends are woken for
/// several at a time.
pub const STREAM_BYTES: usize = 512 << 10;
/// The buffer in the other direction.
pub const SILENT_BYTES: usize = 4 << 10;

#[cfg(test)]
mod allocation;
#[cfg(test)]
mod egress_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod ingress_tests;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod tests;
