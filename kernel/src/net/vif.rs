//! A Xen vif as the loop's network interface card. It knows the driver's names and ours, and does nothing else.

use drayage_netfront::datagram::Template;
use drayage_netfront::platform::Platform;
use drayage_netfront::{Readiness, Vif};

use super::nic::{Counters, Nic, Rearmed};

impl<P: Platform> Nic for Vif<P> {
    fn mac(&self) -> [u8; 6] {
        Self::mac(self)
    }

    fn flush(&mut self) {
        Self::flush(self);
    }

    fn rearm(&mut self) -> Rearmed {
        match Self::rearm(self) {
            Readiness::Busy => Rearmed::WorkWaiting,
            Readiness::Idle | Readiness::SendBlocked => Rearmed::Armed,
        }
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        Self::has_room(self, bytes)
    }

    fn send_frame(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        Self::send_frame(self, bytes, fill);
    }

    fn drain(&mut self) -> bool {
        Self::drain(self)
    }

    fn send_datagram(
        &mut self,
        template: &mut Template,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        Self::send_datagram(self, template, bytes, fill)
    }

    fn counters(&self) -> Counters {
        let (rx, tx) = (&Self::counters(self).rx, &Self::counters(self).tx);
        Counters {
            rx_frames: rx.packets,
            rx_containers: rx.containers,
            rx_container_frames: rx.container_packets,
            rx_revokes: rx.revokes,
            rx_dropped: rx.dropped.total(),
            tx_frames: tx.packets,
            tx_containers: tx.containers,
            tx_dropped: tx.errors + tx.dropped_full + tx.dropped_long,
        }
    }
}
