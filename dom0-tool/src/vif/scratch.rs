//! Private memory for what guests send, to this worker or another: blocks that a pass fills, and that nobody fills again for as long as somebody's
//! queue refers to what lies in them. So a frame goes on to a guest from where it was copied to, and is not copied again.
//!
//! It knows nothing of what lies in it. There is a block for each that all queues together may refer to, and those of a
//! pass besides, so a guest that does not read costs nobody else any room.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{MAX_RX_BYTES, Meta, aligned};

use crate::fabric::MAX_GUESTS;
use crate::memory::Pages;

/// Bytes of a block: the largest container fits.
const BLOCK_BYTES: usize = MAX_RX_BYTES;
/// Blocks that one pass begins, at most.
const BLOCKS_PER_PASS: usize = 16;
/// Blocks that one guest's queue may refer to, counted by [`Pins`], which may count one too few.
const MOST_PINNED: usize = 7;
/// All blocks.
const BLOCKS: usize = MAX_GUESTS * (MOST_PINNED + 1) + BLOCKS_PER_PASS;

/// A frame in private memory that is handed on, and where in the blocks it lies, if it does.
#[derive(Clone, Copy, Debug)]
pub struct Parcel<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// What travels beside it.
    pub meta: Meta,
    /// See above, in bytes.
    pub at: Option<u32>,
}

/// How many refer to each block.
#[derive(Debug)]
pub struct Leases {
    references: Box<[u32]>,
    /// The last that became free is taken first, for it is in the cache.
    free: Vec<u16>,
}

impl Default for Leases {
    fn default() -> Self {
        Self { references: vec![0; BLOCKS].into_boxed_slice(), free: (0..BLOCKS as u16).rev().collect() }
    }
}

impl Leases {
    fn take(&mut self) -> Option<u16> {
        let block = self.free.pop()?;
        self.references[usize::from(block)] = 1;
        Some(block)
    }

    fn hold(&mut self, block: u16) {
        self.references[usize::from(block)] += 1;
    }

    fn release(&mut self, block: u16) {
        let references = &mut self.references[usize::from(block)];
        *references -= 1;
        if *references == 0 {
            self.free.push(block);
        }
    }

    /// Returns how many blocks somebody refers to.
    pub fn taken(&self) -> usize {
        BLOCKS - self.free.len()
    }
}

/// Something in a block that a queue refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// Where in the blocks it lies, in bytes.
    pub at: u32,
    /// Whether the queue referred to another block before.
    begins: bool,
}

impl Lent {
    fn block(self) -> u16 {
        (self.at as usize / BLOCK_BYTES) as u16
    }

    /// Returns whether what lies at `at` is in the same block.
    pub fn shares_block_with(self, at: u32) -> bool {
        self.block() == Self { at, ..self }.block()
    }
}

/// How many blocks one queue refers to. What it refers to is let go in the order in which it came, so that only the
/// rest of the oldest block may be missing.
#[derive(Debug, Default)]
pub struct Pins {
    blocks: usize,
    last: Option<u16>,
}

impl Pins {
    /// Refers to what lies at `at`. `None` if the queue refers to as much as it may.
    pub fn pin(&mut self, leases: &mut Leases, at: u32) -> Option<Lent> {
        let mut lent = Lent { at, begins: false };
        let block = lent.block();
        if self.last != Some(block) {
            if self.blocks == MOST_PINNED {
                return None;
            }
            self.blocks += 1;
            self.last = Some(block);
            lent.begins = true;
        }
        leases.hold(block);
        Some(lent)
    }

    /// Does not refer to it any more.
    pub fn unpin(&mut self, leases: &mut Leases, lent: Lent) {
        leases.release(lent.block());
        if lent.begins {
            self.blocks -= 1;
            // What comes now is counted as another block's.
            self.last = self.last.filter(|last| *last != lent.block());
        }
    }
}

/// The blocks' memory, and how far it is filled.
#[derive(Debug)]
pub struct Scratch {
    memory: Pages,
    /// The block that is being filled, and how far it is.
    block: Option<u16>,
    used: usize,
    /// Other blocks that the running pass has filled.
    filled: Vec<u16>,
}

impl Default for Scratch {
    fn default() -> Self {
        let memory = Pages::new(BLOCKS * BLOCK_BYTES);
        Self { memory, block: None, used: 0, filled: Vec::with_capacity(BLOCKS_PER_PASS) }
    }
}

impl Scratch {
    /// Begins a pass: what the last one copied is needed no more, unless a queue refers to it.
    pub fn begin(&mut self, leases: &mut Leases) {
        for block in self.filled.drain(..) {
            leases.release(block);
        }
        if self.block.is_some_and(|block| leases.references[usize::from(block)] == 1) {
            self.used = 0;
        }
    }

    /// Returns the memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// Returns the memory.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Finds room for a frame of `len` bytes that crosses no page if it fits into one. It comes to lie behind the last one as in a container, so that both can be copied into one together.
    pub(crate) fn place(&mut self, leases: &mut Leases, len: usize) -> Option<u32> {
        const FIRST: usize = aligned(0);
        if FIRST + len > PAGE_SIZE {
            return self.place_pages(leases, len);
        }
        let start = aligned(self.used);
        let fits = start % PAGE_SIZE + len <= PAGE_SIZE;
        let start = if fits { start } else { start.next_multiple_of(PAGE_SIZE) + FIRST };
        self.place_from(leases, start, FIRST, len)
    }

    /// Finds room for a container, at a page's start, so that each of its pages is one copy.
    pub(super) fn place_pages(&mut self, leases: &mut Leases, len: usize) -> Option<u32> {
        self.place_from(leases, self.used.next_multiple_of(PAGE_SIZE), 0, len)
    }

    /// Takes the room from `start` on in the block that is being filled, or from `first` on in the next.
    fn place_from(&mut self, leases: &mut Leases, mut start: usize, first: usize, len: usize) -> Option<u32> {
        if first + len > BLOCK_BYTES {
            return None;
        }
        let block = match self.block {
            Some(block) if start + len <= BLOCK_BYTES => block,
            full => {
                if self.filled.len() + 1 >= BLOCKS_PER_PASS {
                    return None;
                }
                let block = leases.take()?;
                self.filled.extend(full);
                self.block = Some(block);
                start = first;
                block
            }
        };
        self.used = start + len;
        Some((usize::from(block) * BLOCK_BYTES + start) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_not_filled_again_while_a_queue_refers_to_it() {
        let (mut scratch, mut leases, mut pins) = (Scratch::default(), Leases::default(), Pins::default());
        let mut place = |leases: &mut Leases, len| {
            scratch.begin(leases);
            scratch.place(leases, len).expect("there is room")
        };
        let first = place(&mut leases, 1000);
        assert_eq!(place(&mut leases, 1000), first, "nobody refers to it");
        let lent = pins.pin(&mut leases, first).expect("one");
        let second = place(&mut leases, 1000);
        assert_eq!((first, second), (2, 1002), "as in a container");
        let again = pins.pin(&mut leases, second).expect("the same block");
        let third = place(&mut leases, 65_535);
        assert_eq!((third as usize % BLOCK_BYTES, leases.taken()), (0, 2));
        assert_ne!(third as usize / BLOCK_BYTES, first as usize / BLOCK_BYTES);
        pins.unpin(&mut leases, lent);
        assert_eq!(place(&mut leases, 60), third + 2);
        assert_eq!(leases.taken(), 2, "the other frame is in it");
        pins.unpin(&mut leases, again);
        assert_eq!(leases.taken(), 1);
    }

    #[test]
    fn a_queue_refers_to_so_many_blocks_and_a_pass_fills_so_many() {
        let (mut scratch, mut leases) = (Scratch::default(), Leases::default());
        // As many guests as there may be, none of which reads.
        let mut queues: Vec<_> = (0..MAX_GUESTS).map(|_| (Pins::default(), Vec::new())).collect();
        for (pins, held) in &mut queues {
            for _ in 0..3 {
                scratch.begin(&mut leases);
                let places: Vec<_> = (0..).map_while(|_| scratch.place_pages(&mut leases, 40_000)).collect();
                assert!((BLOCKS_PER_PASS - 1..=BLOCKS_PER_PASS).contains(&places.len()), "room for a pass");
                let pinned: Vec<_> = places.into_iter().map_while(|at| pins.pin(&mut leases, at)).collect();
                assert_eq!(pinned.len(), MOST_PINNED - held.len());
                held.extend(pinned);
                pins.unpin(&mut leases, held.remove(0));
            }
        }
        for (mut pins, held) in queues {
            held.into_iter().for_each(|lent| pins.unpin(&mut leases, lent));
        }
        scratch.begin(&mut leases);
        assert_eq!(leases.taken(), 1, "the one that is being filled");
    }
}
