//! How many of the packets that wait for a guest are for everybody: they may be half of its queue, so that a
//! storm leaves room for what is meant for it alone.
//!
//! Packets leave in the order in which they came, so one bit for each is enough. It knows no queue.

use crate::aggregate::REGION_BYTES;

/// Packets that wait at most, rounded up: a region of the smallest packets with their descriptors.
const PACKETS: u64 = 32_768;
/// Packets for everybody that may wait.
const MOST: u32 = 512;
/// And their bytes.
const MOST_BYTES: u64 = REGION_BYTES as u64 / 2;

/// For whom a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// For this guest.
    One,
    /// For everybody.
    All,
}

/// The packets that wait.
#[derive(Debug)]
pub struct Floods {
    marks: Box<[u64]>,
    first: u64,
    next: u64,
    waiting: u32,
    bytes: u64,
}

impl Default for Floods {
    fn default() -> Self {
        let marks = vec![0; PACKETS as usize / 64].into_boxed_slice();
        Self { marks, first: 0, next: 0, waiting: 0, bytes: 0 }
    }
}

impl Floods {
    /// Returns whether another packet for everybody may wait.
    pub fn may_wait(&self) -> bool {
        self.waiting < MOST && self.bytes < MOST_BYTES
    }

    /// Notes a packet that waits from now on.
    pub fn came(&mut self, audience: Audience, len: usize) {
        let (word, bit) = place(self.next);
        self.next += 1;
        match audience {
            Audience::One => self.marks[word] &= !bit,
            Audience::All => {
                self.marks[word] |= bit;
                self.waiting += 1;
                self.bytes += len as u64;
            }
        }
    }

    /// Notes packets for this guest alone that wait from now on.
    pub fn came_together(&mut self, packets: u64) {
        let end = self.next + packets.min(PACKETS);
        while self.next < end {
            let (word, bit) = place(self.next);
            let here = (end - self.next).min(u64::from(64 - bit.trailing_zeros()));
            self.marks[word] &= !((u64::MAX >> (64 - here)) << bit.trailing_zeros());
            self.next += here;
        }
    }

    /// Notes that the oldest packets do not wait any more.
    pub fn left(&mut self, packets: u64) {
        let mut gone = 0;
        for number in self.first..self.next.min(self.first + packets) {
            let (word, bit) = place(number);
            gone += u32::from(self.marks[word] & bit != 0);
        }
        self.first = self.next.min(self.first + packets);
        // Their lengths are not remembered: those that left were as long as the others.
        if let Some(share) = (self.bytes * u64::from(gone)).checked_div(u64::from(self.waiting)) {
            self.bytes -= share.min(self.bytes);
        }
        self.waiting -= gone.min(self.waiting);
    }
}

/// Returns where the mark of a packet is.
fn place(number: u64) -> (usize, u64) {
    let at = number % PACKETS;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_may_be_half_of_what_waits() {
        let mut floods = Floods::default();
        let mut stormed = 0u64;
        while floods.may_wait() {
            floods.came(Audience::All, 60);
            floods.came(Audience::One, 1514);
            stormed += 1;
        }
        assert_eq!(stormed, u64::from(MOST));
        floods.left(1);
        assert!(floods.may_wait(), "one of them left");
        floods.came(Audience::All, 60);
        floods.left(1);
        assert!(!floods.may_wait(), "that was one of the others");
        for _ in 0..3 * PACKETS {
            floods.left(1);
            floods.came(Audience::One, 60);
        }
        assert_eq!((floods.waiting, floods.bytes), (0, 0));
    }

    #[test]
    fn packets_that_come_together_count_as_if_they_came_alone() {
        let (mut together, mut alone) = (Floods::default(), Floods::default());
        for floods in [&mut together, &mut alone] {
            floods.marks.fill(u64::MAX);
        }
        for packets in [1, 63, 64, 65, 130, 7, 862] {
            together.came_together(packets);
            (0..packets).for_each(|_| alone.came(Audience::One, 60));
            assert_eq!((together.next, &together.marks), (alone.next, &alone.marks));
        }
    }

    #[test]
    fn long_ones_count_by_their_bytes() {
        let mut floods = Floods::default();
        let mut stormed = 0;
        while floods.may_wait() {
            floods.came(Audience::All, 1514);
            stormed += 1;
        }
        assert_eq!(stormed, (REGION_BYTES / 2).div_ceil(1514));
        floods.left(stormed as u64);
        assert_eq!((floods.waiting, floods.bytes), (0, 0));
        floods.left(1000);
        assert_eq!(floods.first, floods.next);
    }
}
