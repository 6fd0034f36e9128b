//! Several workers in one thread, joined by trunks, with frontends played by hand: what the daemon's threads are, each
//! pass a test's own doing.
//!
//! It knows workers and who tells whom of what, and nothing of xenstore.

use std::sync::Arc;

use drayage::bell::Bell;
use drayage::switch::{Mac, PortId, Segment};
use drayage::vif::{Connection, Counters};
use drayage::worker::trunks::join;
use drayage::worker::{Settings, Worker};
use memxen::{DomainId, Hypervisor};

use crate::back::Back;
use crate::cable::{End, cable};
use crate::rawfront::{RawFront, mac};
use crate::uplink::{Arriving, CableUplink};
use crate::world::{LAN, WorldClock};

/// The workers.
pub struct Fleet {
    /// The hypervisor.
    pub hv: Hypervisor,
    /// Them.
    pub workers: Vec<Worker<Back, WorldClock>>,
    /// The time, which stands still unless a test lets it go on.
    pub clock: WorldClock,
    /// What wakes each.
    pub bells: Vec<Arc<Bell>>,
    trunks: Vec<Vec<Option<PortId>>>,
}

impl Fleet {
    /// Makes `count` workers, every two of them joined.
    ///
    /// # Panics
    /// When the system gives no eventfd.
    pub fn new(count: usize) -> Self {
        let hv = Hypervisor::new();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let clock = WorldClock::default();
        let worker = |_| Worker::new(Back::new(&hv), clock.clone(), settings);
        let mut workers: Vec<_> = (0..count).map(worker).collect();
        let bells: Vec<_> = (0..count).map(|_| Arc::new(Bell::new().expect("an eventfd"))).collect();
        let trunks = join(&mut workers, &bells);
        Self { hv, workers, clock, bells, trunks }
    }

    fn announce(&mut self, at: usize, segment: Segment, mac: Option<Mac>) {
        for (worker, trunks) in self.workers.iter_mut().zip(&self.trunks) {
            if let Some(trunk) = trunks[at] {
                worker.announce(trunk, segment, mac);
            }
        }
    }

    /// Gives a worker an uplink. Returns its far end.
    ///
    /// # Panics
    /// When the worker has no room.
    pub fn uplink(&mut self, at: usize, segment: Segment) -> End {
        let (end, far) = cable();
        let link = CableUplink { end, arriving: Arriving::Filled, super_frames: true };
        self.workers[at].add_uplink(segment, Box::new(link)).expect("there is room");
        self.announce(at, segment, None);
        far
    }

    /// Connects a guest with 64 posted buffers to a worker.
    pub fn guest(&mut self, at: usize, id: u16, shape: impl FnOnce(&mut Connection)) -> RawFront {
        let mut front = RawFront::connect_as(&self.hv, &mut self.workers[at], DomainId(id), shape);
        self.announce(at, LAN, Some(Mac(mac(DomainId(id)))));
        front.post_pages(0, 64);
        front
    }

    /// Disconnects a guest.
    pub fn disconnect(&mut self, at: usize, id: u16, front: &RawFront) {
        self.workers[at].disconnect(front.id);
        for (worker, trunks) in self.workers.iter_mut().zip(&self.trunks) {
            if let Some(trunk) = trunks[at] {
                worker.retract(trunk, LAN, Some(Mac(mac(DomainId(id)))));
            }
        }
    }

    /// Lets all workers pass until none has anything to do, a bounded number of times.
    pub fn passes(&mut self) {
        for _ in 0..16 {
            for worker in &mut self.workers {
                worker.pass();
            }
        }
    }

    /// A guest sends a frame, and it goes where it goes.
    pub fn sends(&mut self, front: &mut RawFront, frame: &[u8]) {
        front.send_frame(200, frame);
        self.passes();
        front.answers();
    }

    /// Returns a guest's counters.
    ///
    /// # Panics
    /// When it is not connected.
    pub fn counters(&self, at: usize, front: &RawFront) -> Counters {
        self.workers[at].counters(front.id).expect("it is served")
    }
}

/// Returns a guest's address.
pub fn own(id: u16) -> [u8; 6] {
    mac(DomainId(id))
}

/// Returns a frame of 60 bytes.
pub fn frame(to: [u8; 6], from: [u8; 6], byte: u8) -> Vec<u8> {
    let mut frame = vec![byte; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}
