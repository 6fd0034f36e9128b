//! A network cable in memory: two ends, each a queue of frames that came and a way to send. It can lose frames on
//! purpose, by count and not by chance, and calls somebody when a frame arrives.
//!
//! It knows frames as bytes, and smoltcp's `Device`; not who holds its ends.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drayage_wire::checksum;
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Calls whoever must learn of an arrival.
type Bell = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Lane {
    frames: VecDeque<Frame>,
    /// Every so many frames one is lost; 0 loses none.
    lose_every: u64,
    passed: u64,
    lost: u64,
    bell: Option<Bell>,
}

/// A frame on the cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// For a TCP super-frame, the payload bytes of the segments that it is to be cut into.
    pub segment_bytes: Option<NonZeroU16>,
}

/// One end of a cable; clones are the same end.
#[derive(Clone)]
pub struct End {
    arrives: Arc<Mutex<Lane>>,
    departs: Arc<Mutex<Lane>>,
    /// The longest frame that a stack on this end makes, super-frames aside.
    pub frame_bytes: usize,
    /// The longest TCP super-frame over IPv4 that it makes, if it makes any.
    pub super_frame_bytes: Option<NonZeroUsize>,
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
        super_frame_bytes: None,
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
    pub fn send(&self, bytes: Vec<u8>) {
        self.send_whole(Frame { bytes, segment_bytes: None });
    }

    /// Sends a frame, which may be a super-frame, to the other end.
    pub fn send_whole(&self, frame: Frame) {
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
        self.take_whole().map(|frame| frame.bytes)
    }

    /// Takes the next frame that arrived, and what is known of it.
    pub fn take_whole(&self) -> Option<Frame> {
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
pub struct Arrived(Frame);

/// Room for a frame to send.
#[derive(Debug)]
pub struct Room<'a> {
    end: &'a End,
    segment_bytes: Option<NonZeroU16>,
}

impl phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0.bytes)
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        if self.segment_bytes.is_some() {
            // The stack leaves that out of every TCP frame where it makes super-frames.
            checksum::blank(&mut bytes);
        } else if self.end.super_frame_bytes.is_some() {
            checksum::fill(&mut bytes);
        }
        self.end.send_whole(Frame { bytes, segment_bytes: self.segment_bytes });
        result
    }

    fn set_meta(&mut self, meta: phy::PacketMeta) {
        self.segment_bytes = meta.segmentation_offload_size;
    }
}

impl Device for End {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Room<'_>)> {
        let frame = self.take_whole()?;
        Some((Arrived(frame), Room { end: self, segment_bytes: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room { end: self, segment_bytes: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_bytes;
        if self.super_frame_bytes.is_some() {
            capabilities.segmentation.tcpv4 = self.super_frame_bytes;
            capabilities.checksum.tcp = Checksum::Rx;
        }
        capabilities
    }
}
