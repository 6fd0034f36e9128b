//! Frames that cannot leave at once, in places of a fixed size: those that wait for a neighbour, and those that go back where
//! they came from. It knows neither routes nor neighbours.

use alloc::boxed::Box;
use alloc::vec;

use super::packet::{Address, Packet};

/// Frames that wait on one interface at most.
pub(super) const WAITING: usize = 16;
/// Those of its places that are never taken by what waits for a neighbour: without them, the question for it would
/// find none where packets came faster than it could be asked.
pub(super) const RESERVED: usize = 4;
/// The longest of them.
const WAITING_BYTES: usize = 1514;

/// A place for a frame.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) state: State,
    pub(super) len: usize,
    pub(super) bytes: Box<[u8]>,
}

/// What a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// It can leave.
    Ready,
    /// It leaves once this neighbour is known. Its bytes are as they came in on that side.
    For {
        next: Address,
        packet: Packet,
        from: usize,
    },
}

/// The frames that wait on one interface.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) frames: [Waiting; WAITING],
    /// Those that can leave.
    pub(super) ready: usize,
}

impl Outbox {
    /// Makes an empty one: all that it will ever take of memory.
    pub(super) fn new() -> Self {
        let waiting =
            |_| Waiting { state: State::Free, len: 0, bytes: vec![0; WAITING_BYTES].into_boxed_slice() };
        Self { frames: core::array::from_fn(waiting), ready: 0 }
    }

    /// Returns a free place; one whose bytes are out on loan is none.
    fn place(&mut self) -> Option<&mut Waiting> {
        self.frames.iter_mut().find(|waiting| waiting.state == State::Free && !waiting.bytes.is_empty())
    }

    /// Adds a copy of a frame and returns it, if there is room.
    pub(super) fn add(&mut self, frame: &[u8], state: State) -> Option<&mut [u8]> {
        let free = |waiting: &Waiting| waiting.state == State::Free && frame.len() <= waiting.bytes.len();
        let first = if state == State::Ready { 0 } else { RESERVED };
        let place = self.frames.iter_mut().skip(first).find(|waiting| free(waiting))?;
        self.ready += usize::from(state == State::Ready);
        (place.len, place.state) = (frame.len(), state);
        let bytes = place.bytes.get_mut(..frame.len())?;
        bytes.copy_from_slice(frame);
        Some(bytes)
    }

    /// Lets a frame be written that can leave at once; tells whether there was room, and something to say.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let Some(place) = self.place() else { return false };
        let Some(len) = write(&mut place.bytes) else { return false };
        (place.len, place.state) = (len, State::Ready);
        self.ready += 1;
        true
    }
}
