//! The guest's side of a test: a driver on its platform, and what a kernel's poll loop does with it.

use drayage_netfront::platform::{DomainId, Platform};
use drayage_netfront::{Change, Counters, Event, Fired, Netfront, Options, Vif};
use memxen::Hypervisor;
use memxen::front::Front;
use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::Instant;

/// The guest.
pub(crate) const GUEST: DomainId = DomainId(7);

/// A guest with a driver.
pub(crate) struct Guest {
    pub(crate) hv: Hypervisor,
    pub(crate) front: Front,
    pub(crate) net: Netfront<Front>,
    /// What happened so far.
    pub(crate) changes: Vec<Change>,
}

impl Guest {
    /// Makes a hypervisor with a guest in it.
    pub(crate) fn new(options: Options) -> Self {
        let hv = Hypervisor::new();
        hv.create_domain(GUEST);
        Self::on(&hv, options)
    }

    /// As `new`, on a hypervisor that was prepared.
    pub(crate) fn on(hv: &Hypervisor, options: Options) -> Self {
        let front = Front::new(hv, GUEST);
        let net = Netfront::new(front.clone(), options).unwrap();
        Self { hv: hv.clone(), front, net, changes: Vec::new() }
    }

    /// Hands over watch events until there are none.
    pub(crate) fn pump(&mut self) {
        loop {
            self.net.service();
            while let Some(change) = self.net.next_change() {
                self.changes.push(change);
            }
            let Some(event) = self.front.next_event() else { return };
            assert_eq!(self.net.watch_fired(&event.path, &event.token), Fired::Ours);
        }
    }

    /// Returns what happened to a vif, and forgets everything.
    pub(crate) fn events(&mut self, handle: u32) -> Vec<Event> {
        self.pump();
        self.changes.drain(..).filter(|c| c.handle == handle).map(|c| c.event).collect()
    }

    pub(crate) fn vif(&mut self, handle: u32) -> &mut Vif<Front> {
        self.net.vif_mut(handle).expect("the vif is there")
    }

    pub(crate) fn counters(&mut self, handle: u32) -> Counters {
        *self.vif(handle).counters()
    }

    /// Receives everything that is there and returns it, then flushes.
    pub(crate) fn receive(&mut self, handle: u32) -> Vec<Vec<u8>> {
        let vif = self.vif(handle);
        let mut frames = Vec::new();
        while let Some((rx, _)) = vif.receive(Instant::ZERO) {
            frames.push(rx.consume(<[u8]>::to_vec));
        }
        vif.flush();
        frames
    }

    /// Sends a frame without a flush. Returns whether the driver took it.
    pub(crate) fn send(&mut self, handle: u32, frame: &[u8]) -> bool {
        match self.vif(handle).transmit(Instant::ZERO) {
            Some(token) => {
                token.consume(frame.len(), |buffer| buffer.copy_from_slice(frame));
                true
            }
            None => false,
        }
    }

    /// Asserts that nothing is left of any vif in the guest.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.hv.claimed_grants(GUEST), 0, "grants");
        assert_eq!(self.hv.live_pools(GUEST), 0, "pools");
        assert_eq!(self.hv.open_ports(GUEST), 0, "ports");
        self.hv.assert_clean();
    }

    /// Returns whether an event waits on a port of the vif.
    pub(crate) fn is_woken(&mut self, handle: u32) -> bool {
        let ports: Vec<_> = self.vif(handle).ports().collect();
        ports.into_iter().any(|port| self.hv.is_pending(GUEST, port))
    }

    /// Waits for the next moment at which the driver asks again for pages that were in use.
    pub(crate) fn let_reclaim(&mut self) {
        let deadline = self.front.now_ns() + 150_000_000;
        while self.front.now_ns() < deadline {
            std::thread::yield_now();
        }
        self.pump();
    }
}
