//! Copies of the frames that pass one port, on their way to a file.
//!
//! The data path's half: it fills records that were made beforehand and hands them to a bounded queue; when none is
//! free, or the queue is full, the frame is counted as lost to the capture and goes its way. It neither waits nor
//! allocates, and knows no file.

pub mod file;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::switch::PortId;

/// Records, and so frames that may wait for the file.
const RECORDS: usize = 4096;
/// Notes on the frames of one pass, at most; what is beyond goes without.
const NOTES: usize = 16_384;
/// The least and the most bytes of a frame that can be kept.
pub const SNAP_BYTES: std::ops::RangeInclusive<usize> = 64..=crate::port::MAX_FRAME_BYTES;

/// Which way a frame goes, seen from the port that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the network behind the port, or from the guest.
    In,
    /// To it.
    Out,
}

/// How a frame travels between us and a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Travel {
    /// It was not taken by any guest, nor sent by one.
    Nowhere,
    /// Without a container.
    Alone {
        /// The guest's interface.
        vif: PortId,
    },
    /// In a container.
    Container {
        /// The guest's interface.
        vif: PortId,
        /// The container's number.
        sequence: u32,
        /// The frame's place in it, from 0.
        position: u32,
        /// How long the container was open; `None` while it is, which an [`Item::Closed`] ends.
        hold_ns: Option<u32>,
    },
}

/// A copy of a frame.
#[derive(Debug)]
pub struct Record {
    /// When it passed, by the worker's clock.
    pub at_ns: u64,
    /// Which way.
    pub way: Way,
    /// How.
    pub travel: Travel,
    /// Its length.
    pub len: usize,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// What goes to the file.
#[derive(Debug)]
pub enum Item {
    /// A frame.
    Frame(Box<Record>),
    /// A container was closed.
    Closed {
        /// The guest's interface.
        vif: PortId,
        /// The container's number.
        sequence: u32,
        /// How long it was open.
        hold_ns: u32,
    },
}

/// The data path's end.
#[derive(Debug)]
pub struct Capture {
    port: PortId,
    full: SyncSender<Item>,
    free: Receiver<Box<Record>>,
    snap: usize,
    lost: Arc<AtomicU64>,
    ended: bool,
    /// How the frames of one pass of one guest's travel, in their order.
    notes: Vec<Travel>,
}

/// The file's end.
#[derive(Debug)]
pub struct Source {
    /// What passed.
    pub full: Receiver<Item>,
    /// Where records go that have been written.
    pub free: SyncSender<Box<Record>>,
    /// Frames that were lost to the capture.
    pub lost: Arc<AtomicU64>,
}

/// Makes both ends, for frames that pass `port`, of each of which at most `snap` bytes are kept.
pub fn capture(port: PortId, snap: usize) -> (Capture, Source) {
    let (full, filled) = sync_channel(2 * RECORDS);
    let (give_back, free) = sync_channel(RECORDS);
    for _ in 0..RECORDS {
        let bytes = Vec::with_capacity(snap);
        let record = Record { at_ns: 0, way: Way::In, travel: Travel::Nowhere, len: 0, bytes };
        // There is room for all of them.
        let _ = give_back.try_send(Box::new(record));
    }
    let lost = Arc::new(AtomicU64::new(0));
    let notes = Vec::with_capacity(NOTES);
    let ours = Capture { port, full, free, snap, lost: lost.clone(), ended: false, notes };
    (ours, Source { full: filled, free: give_back, lost })
}

impl Capture {
    /// Returns the port that is watched.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Returns whether the other end is gone.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether the other end is gone, by asking it.
    pub fn is_over(&mut self) -> bool {
        // Nothing of it is lost: what comes back is used up by the next frame.
        self.ended |= Arc::strong_count(&self.lost) == 1;
        self.ended
    }

    /// Copies a frame.
    pub fn take(&mut self, at_ns: u64, way: Way, travel: Travel, frame: &[u8]) {
        let Ok(mut record) = self.free.try_recv() else { return self.lose() };
        record.at_ns = at_ns;
        record.way = way;
        record.travel = travel;
        record.len = frame.len();
        record.bytes.clear();
        // As much as was reserved, so that it never grows.
        record.bytes.extend_from_slice(&frame[..frame.len().min(self.snap)]);
        self.hand(Item::Frame(record));
    }

    /// Tells that a container was closed.
    pub fn close(&mut self, vif: PortId, sequence: u32, hold_ns: u32) {
        self.hand(Item::Closed { vif, sequence, hold_ns });
    }

    fn hand(&mut self, item: Item) {
        match self.full.try_send(item) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.lose(),
            Err(TrySendError::Disconnected(_)) => self.ended = true,
        }
    }

    fn lose(&mut self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets the notes.
    pub fn clear_notes(&mut self) {
        self.notes.clear();
    }

    /// Notes how the next frame travels.
    pub fn note(&mut self, travel: Travel) {
        if self.notes.len() < self.notes.capacity() {
            self.notes.push(travel);
        }
    }

    /// Returns how a frame travels, by its number.
    pub fn noted(&self, number: usize) -> Travel {
        self.notes.get(number).copied().unwrap_or(Travel::Nowhere)
    }
}
