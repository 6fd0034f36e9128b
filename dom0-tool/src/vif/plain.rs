//! Frames on their way to a guest that takes no containers: a bounded queue of what lies where it was sent from, and of
//! copies in private memory, laid out so that a frame of up to a page never crosses one, and so takes one grant copy.
//!
//! It knows neither rings nor grants.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::Meta;

use super::rx::Room;
use super::scratch::Lent;
use crate::aggregate::Refusal;

/// Frames that may wait.
const DEPTH: usize = 1024;
/// Where frames start inside a page: at multiples of this.
const ALIGN: usize = 32;

/// A frame that waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// Where it starts in the guest's region, in bytes.
    pub start: u32,
    /// Where it lies instead, if it was not copied.
    pub lent: Option<Lent>,
    /// Its length in bytes.
    pub len: u32,
    /// When it was accepted.
    pub accepted_ns: u64,
    /// What travels beside it.
    pub meta: Meta,
}

impl Frame {
    /// Returns how many ring slots it takes.
    pub fn slots(&self) -> u32 {
        self.len.div_ceil(PAGE_SIZE as u32) + u32::from(self.meta.gso.is_some())
    }
}

/// The queue.
#[derive(Debug)]
pub struct FrameQueue {
    capacity: usize,
    frames: Box<[Frame]>,
    first: usize,
    waiting: usize,
    /// Frames that lie in the region, where the oldest of them starts, and where the next one may.
    own: usize,
    head: usize,
    tail: usize,
}

impl FrameQueue {
    /// Makes a queue for a region of `capacity` bytes, a multiple of a page.
    pub fn new(capacity: usize) -> Self {
        let frames = vec![Frame::default(); DEPTH].into_boxed_slice();
        Self { capacity, frames, first: 0, waiting: 0, own: 0, head: 0, tail: 0 }
    }

    /// Returns whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Returns whether a frame of `len` bytes, which is not too large, would be taken.
    pub fn has_room_for(&self, len: usize) -> bool {
        self.waiting < DEPTH && self.place(len).is_some()
    }

    /// Returns how much more may wait for certain: a half of what is free, for frames do not fill all of a page.
    pub fn room(&self) -> Room {
        let used = match self.own {
            0 => 0,
            _ if self.tail > self.head => self.tail - self.head,
            _ => self.capacity - (self.head - self.tail),
        };
        Room { packets: DEPTH - self.waiting, bytes: (self.capacity - used) / 2, container_bytes: 0 }
    }

    /// Returns the frame `ahead` places after the oldest.
    pub fn peek(&self, ahead: usize) -> Option<Frame> {
        (ahead < self.waiting).then(|| self.frames[(self.first + ahead) % DEPTH])
    }

    /// Frees the `n` oldest frames.
    pub fn release(&mut self, n: usize) {
        let n = n.min(self.waiting);
        let own = (0..n).filter_map(|ahead| self.peek(ahead)).filter(|frame| frame.lent.is_none()).count();
        self.first = (self.first + n) % DEPTH;
        self.waiting -= n;
        self.own -= own;
        if own > 0 {
            let oldest = self.iter().find(|frame| frame.lent.is_none());
            self.head = oldest.map_or(0, |frame| frame.start as usize);
        }
    }

    /// Returns the frames, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Frame> + '_ {
        (0..self.waiting).map_while(|ahead| self.peek(ahead))
    }

    /// Appends a frame of `len` bytes that lies elsewhere.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn push_lent(&mut self, now_ns: u64, len: usize, meta: Meta, lent: Lent) -> Result<(), Refusal> {
        if self.waiting == DEPTH {
            return Err(Refusal::NoRoom);
        }
        self.append(Frame { start: 0, lent: Some(lent), len: len as u32, accepted_ns: now_ns, meta });
        Ok(())
    }

    fn append(&mut self, frame: Frame) {
        self.frames[(self.first + self.waiting) % DEPTH] = frame;
        self.waiting += 1;
    }

    /// Appends a frame of `len` bytes that `fill` writes in place.
    ///
    /// # Errors
    /// [`Refusal`]; `fill` has then not run.
    pub fn push_with(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        len: usize,
        meta: Meta,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refusal> {
        if len > self.capacity / 2 {
            return Err(Refusal::TooLarge);
        }
        if self.waiting == DEPTH {
            return Err(Refusal::NoRoom);
        }
        let start = self.place(len).ok_or(Refusal::NoRoom)?;
        fill(&mut region[start..start + len]);
        let next = (start + len).next_multiple_of(ALIGN);
        self.append(Frame { start: start as u32, lent: None, len: len as u32, accepted_ns: now_ns, meta });
        if self.own == 0 {
            self.head = start;
        }
        self.own += 1;
        self.tail = next;
        Ok(())
    }

    /// Returns where a frame of `len` bytes can start, if there is room.
    fn place(&self, len: usize) -> Option<usize> {
        if self.own == 0 {
            return (len <= self.capacity).then_some(0);
        }
        let head = self.head;
        let in_page = self.tail % PAGE_SIZE;
        let start =
            if in_page + len <= PAGE_SIZE { self.tail } else { self.tail.next_multiple_of(PAGE_SIZE) };
        if self.tail > head {
            // Free: from the tail to the end, and from 0 to the head.
            if start + len <= self.capacity {
                return Some(start);
            }
            return (len < head).then_some(0);
        }
        (start + len < head).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_their_bytes_and_small_ones_cross_no_page() {
        let mut region = vec![0u8; 16 * PAGE_SIZE];
        let mut queue = FrameQueue::new(region.len());
        let mut expected = std::collections::VecDeque::new();
        let mut seed = 12345u32;
        let (mut sent, mut refused) = (0u32, 0u32);
        while sent < 20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let len = match seed >> 28 {
                0 => 9000 + (seed >> 8) as usize % 8000,
                1..5 => 1514,
                _ => 60 + (seed >> 8) as usize % 200,
            };
            let byte = (seed >> 16) as u8;
            match queue.push_with(&mut region, 0, len, Meta::default(), |b| b.fill(byte)) {
                Ok(()) => {
                    expected.push_back((len, byte));
                    sent += 1;
                }
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NoRoom);
                    refused += 1;
                    for _ in 0..=(seed >> 20) as usize % expected.len().max(1) {
                        let Some((len, byte)) = expected.pop_front() else { break };
                        let frame = queue.peek(0).unwrap();
                        let start = frame.start as usize;
                        assert_eq!(frame.len as usize, len);
                        assert!(region[start..start + len].iter().all(|b| *b == byte));
                        let crosses = start / PAGE_SIZE != (start + len - 1) / PAGE_SIZE;
                        assert!(!crosses || (len > PAGE_SIZE && start.is_multiple_of(PAGE_SIZE)));
                        queue.release(1);
                    }
                }
            }
        }
        assert!(refused > 100, "the queue filled up now and then");
    }

    #[test]
    fn a_queue_is_bounded() {
        let mut region = vec![0u8; 4 * PAGE_SIZE];
        let mut queue = FrameQueue::new(region.len());
        assert_eq!(
            queue.push_with(&mut region, 0, 2 * PAGE_SIZE + 1, Meta::default(), |_| ()),
            Err(Refusal::TooLarge)
        );
        let mut taken = 0;
        while queue.push_with(&mut region, 0, 1024, Meta::default(), |_| ()).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 16);
        queue.release(16);
        assert!(queue.is_empty() && queue.has_room_for(1024));
    }
}
