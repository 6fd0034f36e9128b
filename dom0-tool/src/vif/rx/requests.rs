//! The requests at the head of a guest's RX ring that were read, because something was written into their pages already: each
//! is read once, whatever the guest makes of its slot before the request is taken.
//!
//! It knows neither pages nor what goes into them.

use drayage_wire::netif::{self, RING_SLOTS, RxRequest};
use drayage_wire::ring::{BackRing, SharedWords};

/// Requests that were read, from the next one of the ring on.
#[derive(Debug)]
pub(super) struct Requests {
    by_slot: Box<[RxRequest; RING_SLOTS as usize]>,
    read: u32,
}

impl Default for Requests {
    fn default() -> Self {
        Self { by_slot: Box::new([RxRequest::default(); RING_SLOTS as usize]), read: 0 }
    }
}

impl Requests {
    /// Returns the request so many after the next one; there are as many in the ring.
    pub(super) fn get<P: SharedWords>(&mut self, ring: &BackRing<netif::Rx, P>, ahead: u32) -> RxRequest {
        let next = ring.next_request().slot() as u32;
        let slot = |ahead| ((next + ahead) % RING_SLOTS) as usize;
        while self.read <= ahead {
            self.by_slot[slot(self.read)] = ring.peek(self.read);
            self.read += 1;
        }
        self.by_slot[slot(ahead)]
    }

    /// Takes `n` requests out of the ring.
    pub(super) fn advance<P: SharedWords>(&mut self, ring: &mut BackRing<netif::Rx, P>, n: u32) {
        ring.advance(n);
        self.read = self.read.saturating_sub(n);
    }
}
