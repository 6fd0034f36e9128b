//! What joins two workers: at each of them a port behind which are all of the other's, a queue each way, and
//! the other's bell.
//!
//! A trunk takes frames of every segment that the other worker has ports in, and the segment travels with the
//! frame. It knows queues, and neither guests nor uplinks.

pub mod queue;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bell::Bell;
use crate::switch::Segment;
use queue::{Heap, Label, Receiver, Sender, Share};

/// Trunks of one worker, at most.
pub const MAX_TRUNKS: usize = 15;

/// What went over the trunks of a worker, from its own point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrunkCounters {
    /// Frames for other workers' ports.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames for which the queue had no room.
    pub queue_full: u64,
    /// Frames of other workers' ports.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that came, and for which there was no destination.
    pub no_destination: u64,
    /// Frames that came, from one isolated guest to another.
    pub isolated: u64,
    /// Times that another worker was woken.
    pub rings: u64,
}

impl std::ops::AddAssign for TrunkCounters {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
        self.queue_full += other.queue_full;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.no_destination += other.no_destination;
        self.isolated += other.isolated;
        self.rings += other.rings;
    }
}

/// One end of a trunk.
#[derive(Debug)]
pub struct Trunk {
    out: Sender<Heap>,
    arrives: Receiver<Heap>,
    /// The other worker's.
    bell: Arc<Bell>,
    /// The segments of the other worker's ports, and in how many ports each is.
    behind: Vec<(Segment, usize)>,
    /// Whether the other worker rings when a frame comes.
    armed: bool,
    /// What went over it.
    pub counters: TrunkCounters,
}

/// Makes both ends of a trunk between the workers that two bells wake: first the one that the first worker
/// holds.
pub fn pair(first: &Arc<Bell>, second: &Arc<Bell>) -> (Trunk, Trunk) {
    let (to_second, from_first) = queue::queue(Heap::default());
    let (to_first, from_second) = queue::queue(Heap::default());
    let end = |out, arrives, bell: &Arc<Bell>| Trunk {
        out,
        arrives,
        bell: bell.clone(),
        behind: Vec::new(),
        armed: false,
        counters: TrunkCounters::default(),
    };
    (end(to_second, from_second, second), end(to_first, from_first, first))
}

impl Trunk {
    /// Notes that the other worker has a port more in a segment.
    pub fn extend(&mut self, segment: Segment) {
        match self.behind.iter_mut().find(|(known, _)| *known == segment) {
            Some((_, ports)) => *ports += 1,
            None => self.behind.push((segment, 1)),
        }
    }

    /// Notes that it has one less.
    pub fn shrink(&mut self, segment: Segment) {
        if let Some((_, ports)) = self.behind.iter_mut().find(|(known, _)| *known == segment) {
            *ports = ports.saturating_sub(1);
        }
        self.behind.retain(|(_, ports)| *ports > 0);
    }

    /// Returns whether there is somebody in a segment.
    pub fn reaches(&self, segment: Segment) -> bool {
        self.behind.iter().any(|(known, _)| *known == segment)
    }

    /// Copies a frame for the other worker, if there is room.
    pub fn send(&mut self, label: Label, frame: &[u8], share: Share) {
        match self.out.push(label, frame, share) {
            Ok(()) => {
                self.counters.sent += 1;
                self.counters.sent_bytes += frame.len() as u64;
            }
            Err(queue::Full) => self.counters.queue_full += 1,
        }
    }

    /// Shows the other worker what was sent, and wakes it if it sleeps.
    pub fn publish(&mut self) {
        if self.out.publish() {
            self.bell.ring();
            self.counters.rings += 1;
        }
    }

    /// Returns the length of the next frame of the other worker's, if there is one.
    pub fn next_len(&mut self) -> Option<usize> {
        self.arrives.next_len()
    }

    /// Copies the next frame of the other worker's out, if it fits.
    pub fn receive(&mut self, into: &mut [u8]) -> Option<Label> {
        let (label, len) = self.arrives.pop(into)?;
        self.counters.received += 1;
        self.counters.received_bytes += len as u64;
        self.armed = false;
        Some(label)
    }

    /// Gives back the room of what was received.
    pub fn release(&mut self) {
        self.arrives.release();
    }

    /// Asks to be woken for the next frame, unless that was done. Returns whether there is one already.
    pub fn rearm(&mut self) -> bool {
        if self.armed {
            return false;
        }
        let there = self.arrives.rearm();
        self.armed = !there;
        there
    }
}
