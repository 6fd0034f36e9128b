//! A port that takes everything and keeps nothing: what a source costs by itself.
//!
//! Packets are written into real containers, which are counted and dropped where a guest's would be copied.

use drayage_wire::container::{MAX_RX_BYTES, Meta};
use serde::{Deserialize, Serialize};

use crate::aggregate::{Aggregator, REGION_BYTES, Wrap};
use crate::memory::Pages;

/// The sink.
#[derive(Debug)]
pub struct Sink {
    memory: Pages,
    open: Aggregator,
    /// What it took.
    pub counters: SinkCounters,
}

/// What a sink took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Containers.
    pub containers: u64,
}

impl Default for Sink {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink {
    /// Makes an empty sink.
    pub fn new() -> Self {
        Self {
            memory: Pages::new(REGION_BYTES),
            open: Aggregator::new(MAX_RX_BYTES, Wrap::Allowed, 0),
            counters: SinkCounters::default(),
        }
    }

    /// Takes a packet of `len` bytes that `fill` writes in place.
    pub fn push_with(&mut self, now_ns: u64, len: usize, fill: impl FnOnce(&mut [u8])) {
        if self.open.push_with(self.memory.bytes_mut(), now_ns, len, Meta::default(), fill).is_ok() {
            self.counters.packets += 1;
            self.counters.bytes += len as u64;
        }
        let closed = self.open.waiting_count();
        self.counters.containers += closed as u64;
        self.open.release(closed);
    }
}
