//! A network cable in memory: two ends, each a queue of frames that came and a way to send. It can lose frames on
//! purpose, by count and not by chance, and calls somebody when a frame arrives.
//!
//! It knows frames as bytes, and smoltcp's `Device`; not who holds its ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Calls whoever must learn of an arrival.
type Bell = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Lane {
    frames: VecDeque<Vec<u8>>,
    /// Every so many frames one is lost; 0 loses none.
    lose_every: u64,
    passed: u64,
    lost: u64,
    bell: Option<Bell>,
}

/// One end of a cable; clones are the same end.
#[derive(Clone)]
pub struct End {
    arrives: Arc<Mutex<Lane>>,
    departs: Arc<Mutex<Lane>>,
    /// The longest frame that a stack on this end makes.
    frame_bytes: usize,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("End").field("waiting", &self.waiting()).finish()
    }
}

/// Returns both ends of a new cable.
pub fn cable() -> (End, End) {
    let (there, back) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
    let end = |arrives: &Arc<_>, departs: &Arc<_>| End {
        arrives: Arc::clone(arrives),
        departs: Arc::clone(departs),
        frame_bytes: 1514,
    };
    (end(&there, &back), end(&back, &there))
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl End {
    /// Loses one of every `n` frames that arrive here from now on; 0 loses none.
    pub fn lose_every(&self, n: u64) {
        lock(&self.arrives).lose_every = n;
    }

    /// Loses one of every `n` frames that leave here from now on; 0 loses none.
    pub fn lose_departing_every(&self, n: u64) {
        lock(&self.departs).lose_every = n;
    }

    /// Returns how many frames were lost on their way to this end.
    pub fn lost(&self) -> u64 {
        lock(&self.arrives).lost
    }

    /// Calls `bell` whenever a frame arrives here.
    pub fn ring_on_arrival(&self, bell: Bell) {
        lock(&self.arrives).bell = Some(bell);
    }

    /// Sends a frame to the other end.
    pub fn send(&self, frame: Vec<u8>) {
        let mut lane = lock(&self.departs);
        lane.passed += 1;
        if lane.lose_every != 0 && lane.passed.is_multiple_of(lane.lose_every) {
            lane.lost += 1;
            return;
        }
        lane.frames.push_back(frame);
        let bell = lane.bell.clone();
        drop(lane);
        if let Some(bell) = bell {
            bell();
        }
    }

    /// Takes the next frame that arrived.
    pub fn take(&self) -> Option<Vec<u8>> {
        lock(&self.arrives).frames.pop_front()
    }

    /// Returns how many frames arrived and were not taken.
    pub fn waiting(&self) -> usize {
        lock(&self.arrives).frames.len()
    }
}

impl End {
    /// Returns how many frames were sent from here and not taken at the other end.
    pub fn departing(&self) -> usize {
        lock(&self.departs).frames.len()
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Arrived(Vec<u8>);

/// Room for a frame to send.
#[derive(Debug)]
pub struct Room<'a>(&'a End);

impl phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for End {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Room<'_>)> {
        let frame = self.take()?;
        Some((Arrived(frame), Room(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_bytes;
        capabilities
    }
}
