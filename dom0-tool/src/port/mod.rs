//! What stands at the switch beside the guests: uplinks into the kernel's network, a traffic generator, and
//! a sink.
//!
//! It knows no guest, no ring and no hypervisor.

pub mod generator;
pub mod sink;
pub mod spec;
pub mod tap;

use std::os::fd::BorrowedFd;

use drayage_wire::container::Meta;

/// The longest frame that an uplink hands over: 64 KiB and an Ethernet header with a VLAN tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + 18;
/// Frames that one uplink hands over in one pass, at most.
pub const BATCH_FRAMES: usize = 64;
/// Bytes of the memory for them.
const BATCH_BYTES: usize = 4 * MAX_FRAME_BYTES + BATCH_FRAMES * 2048;

/// Frames that an uplink handed over.
#[derive(Debug)]
pub struct Batch {
    memory: Box<[u8]>,
    frames: Vec<Received>,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Received {
    start: u32,
    len: u32,
    meta: Meta,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Makes an empty batch.
    pub fn new() -> Self {
        let memory = vec![0; BATCH_BYTES].into_boxed_slice();
        Self { memory, frames: Vec::with_capacity(BATCH_FRAMES), used: 0 }
    }

    /// Forgets the frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }

    /// Returns how many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns whether another frame of any size can be taken.
    pub fn has_room(&self) -> bool {
        self.frames.len() < BATCH_FRAMES && self.memory.len() - self.used >= MAX_FRAME_BYTES + 64
    }

    /// Adds a frame that `fill` writes into the memory it is given (at least [`MAX_FRAME_BYTES`] and 64 more).
    /// `fill` returns where in there the frame is, and what travels beside it.
    ///
    /// # Errors
    /// What `fill` says; nothing is then added.
    pub fn push_with<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<(std::ops::Range<usize>, Meta), E>,
    ) -> Result<(), E> {
        let (range, meta) = fill(&mut self.memory[self.used..])?;
        let start = self.used + range.start;
        self.frames.push(Received { start: start as u32, len: range.len() as u32, meta });
        self.used = (self.used + range.end).next_multiple_of(16);
        Ok(())
    }

    /// Returns the frames, oldest first.
    pub fn frames(&self) -> impl Iterator<Item = (&[u8], Meta)> {
        self.frames.iter().map(|f| (&self.memory[f.start as usize..(f.start + f.len) as usize], f.meta))
    }
}

/// What came of sending a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was taken.
    Yes,
    /// There was no room for it, or it was refused.
    No,
}

/// A way into another network.
pub trait Uplink: Send {
    /// Returns the descriptor that is readable when there is something to receive; an uplink without one is
    /// asked in every pass.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Adds what is there to a batch, as far as there is room, without waiting.
    fn receive(&mut self, batch: &mut Batch);

    /// Sends a frame, without waiting.
    fn send(&mut self, frame: &[u8], meta: Meta) -> Sent;
}
