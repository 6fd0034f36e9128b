//! What the loop asks of a network interface card beyond smoltcp's `Device`. The Xen vif and the virtio NIC
//! stand behind it; it knows neither.

use drayage_netfront::datagram::{HEAD_BYTES, Sum, Template};
use smoltcp::phy::{Device, TxToken};
use smoltcp::time::Instant;

/// A network interface card.
///
/// Sending costs nothing but memory until [`Nic::flush`]; the other end is told once for everything. A NIC
/// that is down receives nothing and has no room to send.
pub trait Nic: Device {
    /// Returns its hardware address.
    fn mac(&self) -> [u8; 6];

    /// Hands over what was sent and gives back what was received, and tells the other end if it wants to know.
    fn flush(&mut self);

    /// Clears the card's events and asks for one with the next frame that arrives, or that leaves while
    /// something waits for room.
    fn rearm(&mut self) -> Rearmed;

    /// Hands over what was sent, and returns whether the other end has taken everything; where it has not, [`Nic::rearm`]
    /// asks for an event when it has.
    fn drain(&mut self) -> bool;

    /// Returns what it has counted since it was found.
    fn counters(&self) -> Counters;

    /// Returns whether a frame of so many bytes, which is not too long, finds room; if not, it is as after a `transmit`
    /// that was refused.
    fn has_room(&mut self, bytes: usize) -> bool {
        let _ = bytes;
        self.transmit(Instant::ZERO).is_some()
    }

    /// Sends a frame of so many bytes that `fill` writes in place, for which there is room.
    fn send_frame(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        if let Some(token) = self.transmit(Instant::ZERO) {
            token.consume(bytes, fill);
        }
    }

    /// Sends a datagram of so many bytes whose headers are known and that `fill` writes in place, in a frame that is not
    /// too long. Returns whether there was room; without, `fill` was not called, and it is as after a `transmit` that
    /// was refused.
    fn send_datagram(
        &mut self,
        template: &mut Template,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        send_by_token(self, template, bytes, fill)
    }
}

/// Does what [`Nic::send_datagram`] says for a card of which nothing is known, as the stack would do it.
pub(super) fn send_by_token(
    nic: &mut (impl Device + ?Sized),
    template: &mut Template,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> bool {
    let sum = if nic.capabilities().checksum.udp.tx() { Sum::Full } else { Sum::Zero };
    let Some(token) = nic.transmit(Instant::ZERO) else { return false };
    token.consume(HEAD_BYTES + bytes, |frame| template.write(frame, sum, fill));
    true
}

/// Whether it is safe to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rearmed {
    /// There was nothing, and whatever comes raises an event.
    Armed,
    /// Something came while the event was being asked for.
    WorkWaiting,
}

/// What a card counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed to the stack.
    pub rx_frames: u64,
    /// Containers that were opened.
    pub rx_containers: u64,
    /// Frames that came in containers.
    pub rx_container_frames: u64,
    /// Pages that were taken back from the other end before they were read.
    pub rx_revokes: u64,
    /// Frames that arrived and were not handed to the stack: broken ones, and those of a peer that lied.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Containers sent.
    pub tx_containers: u64,
    /// Frames that the stack sent and that were lost here or by the other end's account.
    pub tx_dropped: u64,
}

impl core::ops::Sub for Counters {
    type Output = Self;

    /// Returns what was counted since an earlier reading.
    fn sub(self, earlier: Self) -> Self {
        Self {
            rx_frames: self.rx_frames.saturating_sub(earlier.rx_frames),
            rx_containers: self.rx_containers.saturating_sub(earlier.rx_containers),
            rx_container_frames: self.rx_container_frames.saturating_sub(earlier.rx_container_frames),
            rx_revokes: self.rx_revokes.saturating_sub(earlier.rx_revokes),
            rx_dropped: self.rx_dropped.saturating_sub(earlier.rx_dropped),
            tx_frames: self.tx_frames.saturating_sub(earlier.tx_frames),
            tx_containers: self.tx_containers.saturating_sub(earlier.tx_containers),
            tx_dropped: self.tx_dropped.saturating_sub(earlier.tx_dropped),
        }
    }
}
