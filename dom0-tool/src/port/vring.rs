//! A split virtqueue with frames on their way out, as the driver's side sees it (`linux/virtio_ring.h`).
//!
//! It knows shared memory and indices, and not who takes the frames. That side is the kernel, which may be trusted;
//! what it writes is checked all the same, because a wrong index here would hand out memory that is in use.
//! Frames are taken in order, so that descriptor `n` always belongs to entry `n` of the ring.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;

use super::mapping::Mapping;
use super::vnet::VNET_BYTES;

/// Entries of the ring.
pub(super) const ENTRIES: u16 = 1024;
/// `struct vring_desc`.
const DESC_BYTES: usize = 16;
/// `struct vring_used_elem`.
const USED_BYTES: usize = 8;
/// Where the other two parts are, and the frames. Each begins at a page.
const AVAIL_AT: usize = ENTRIES as usize * DESC_BYTES;
const USED_AT: usize = AVAIL_AT + 4096;
const FRAMES_AT: usize = USED_AT + 3 * 4096;
/// Room for frames.
pub(super) const FRAME_BYTES: usize = 1 << 20;
/// `VRING_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u32 = 1;
/// `VRING_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u32 = 1;

const _: () = assert!(ENTRIES.is_power_of_two() && FRAME_BYTES.is_power_of_two());
const _: () = assert!(6 + 2 * ENTRIES as usize <= 4096 && 6 + USED_BYTES * ENTRIES as usize <= 3 * 4096);

/// Returns the constants by their names in the header.
pub(super) fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("VRING_AVAIL_F_NO_INTERRUPT", NO_INTERRUPT.into()),
        ("VRING_USED_F_NO_NOTIFY", NO_NOTIFY.into()),
        ("sizeof(struct vring_desc)", DESC_BYTES as u64),
        ("sizeof(struct vring_used_elem)", USED_BYTES as u64),
        ("offsetof(struct vring_desc, len)", 8),
        ("offsetof(struct vring_desc, flags)", 12),
        ("offsetof(struct vring_avail, idx)", 2),
        ("offsetof(struct vring_avail, ring)", 4),
        ("offsetof(struct vring_used, idx)", 2),
        ("offsetof(struct vring_used, ring)", 4),
    ]
}

/// The other side said that it took what it cannot have taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Whether the other side sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consumer {
    /// It is to be told.
    Sleeps,
    /// It looks by itself.
    Looks,
}

/// The ring, and the frames in it.
///
/// Indices count frames and wrap: `seen <= published <= next`, at most [`ENTRIES`] apart.
#[derive(Debug)]
pub(super) struct Vring {
    memory: Mapping,
    /// Of the next frame to be written.
    next: u16,
    /// The other side may take what is before this.
    published: u16,
    /// It has taken what is before this.
    seen: u16,
    /// Bytes that were ever used, and that are free again; the difference is in use. Both start over at the memory's
    /// begin when nothing is, so that little of it is touched.
    written: u64,
    freed: u64,
    /// What `freed` becomes when an entry's frame is taken.
    ends: Box<[u64; ENTRIES as usize]>,
    /// Where the next frame is being written, until it is kept.
    placed: Option<Placed>,
}

/// Room for a frame and its header.
#[derive(Clone, Copy, Debug)]
struct Placed {
    at: usize,
    len: usize,
    end: u64,
}

impl Vring {
    /// Makes an empty ring.
    pub(super) fn new() -> io::Result<Self> {
        let memory = Mapping::anonymous(FRAMES_AT + FRAME_BYTES)?;
        // Entry `n` names descriptor `n`, for good. Two of them share a word.
        for n in (0..ENTRIES).step_by(2) {
            let pair = u32::from(n) | u32::from(n + 1) << 16;
            memory.word(AVAIL_AT + 4 + 2 * usize::from(n)).store(pair, Relaxed);
        }
        let ends = Box::new([0; ENTRIES as usize]);
        let ring = Self { memory, next: 0, published: 0, seen: 0, written: 0, freed: 0, ends, placed: None };
        ring.say(NO_INTERRUPT);
        Ok(ring)
    }

    /// Returns where its memory and its three parts are: all of it, descriptors, available, used.
    pub(super) fn addresses(&self) -> [u64; 4] {
        let base = self.memory.address();
        [base, base, base + AVAIL_AT as u64, base + USED_AT as u64]
    }

    /// Returns how long its memory is.
    pub(super) fn len_bytes() -> usize {
        FRAMES_AT + FRAME_BYTES
    }

    /// Writes flags and index of the available part, which share a word.
    fn say(&self, flags: u32) {
        self.memory.store(AVAIL_AT, flags | u32::from(self.published) << 16);
    }

    /// Returns how many frames wait to be published.
    pub(super) fn waiting(&self) -> u16 {
        self.next.wrapping_sub(self.published)
    }

    /// Returns whether the other side has taken all that was published, as far as is known.
    pub(super) fn is_drained(&self) -> bool {
        self.seen == self.published
    }

    /// Returns where a frame of so many bytes may be written that is then [kept](Self::keep), behind its header, if there is
    /// room.
    pub(super) fn place(&mut self, frame_bytes: usize) -> Option<&mut [u8]> {
        self.placed = None;
        if self.next.wrapping_sub(self.seen) == ENTRIES {
            return None;
        }
        let len = VNET_BYTES + frame_bytes;
        let room = (len as u64).next_multiple_of(16);
        let mut start = self.written;
        let left = FRAME_BYTES as u64 - start % FRAME_BYTES as u64;
        if room > left {
            // It does not fit before the end of the memory.
            start += left;
        }
        let end = start + room;
        if end - self.freed > FRAME_BYTES as u64 {
            return None;
        }
        let at = FRAMES_AT + (start % FRAME_BYTES as u64) as usize;
        self.placed = Some(Placed { at, len, end });
        // SAFETY: the bytes are in no published descriptor: they lie after all that is in use, and no further than
        // one round, as was just checked. The other side only reads what is published.
        Some(unsafe { self.memory.lend(at + VNET_BYTES, frame_bytes) })
    }

    /// Returns how many bytes are in use, as far as is known.
    pub(super) fn used_bytes(&self) -> u64 {
        self.written - self.freed
    }

    /// Keeps the frame that was written where the last [place](Self::place) was, behind the header that `head` makes of it.
    /// Returns its length.
    pub(super) fn keep(&mut self, head: impl FnOnce(&[u8]) -> [u8; VNET_BYTES]) -> usize {
        let Some(Placed { at, len, end }) = self.placed.take() else { return 0 };
        // SAFETY: as in `place`, since when nothing was published and no room taken.
        let bytes = unsafe { self.memory.lend(at, len) };
        let (first, frame) = bytes.split_at_mut(VNET_BYTES);
        first.copy_from_slice(&head(frame));
        self.written = end;
        let entry = self.next % ENTRIES;
        self.ends[usize::from(entry)] = end;
        let descriptor = usize::from(entry) * DESC_BYTES;
        let address = self.memory.address() + at as u64;
        self.memory.word(descriptor).store(address as u32, Relaxed);
        self.memory.word(descriptor + 4).store((address >> 32) as u32, Relaxed);
        // Flags and the next descriptor, which is none, are the last word, and stay zero.
        self.memory.word(descriptor + 8).store(len as u32, Relaxed);
        self.next = self.next.wrapping_add(1);
        len - VNET_BYTES
    }

    /// Takes the only frame back that waits, with its header, when everything before it was taken.
    pub(super) fn take_lone(&mut self) -> Option<&[u8]> {
        if self.waiting() != 1 || !self.is_drained() {
            return None;
        }
        self.next = self.published;
        let descriptor = usize::from(self.next % ENTRIES) * DESC_BYTES;
        let len = self.memory.word(descriptor + 8).load(Relaxed) as usize;
        let low = u64::from(self.memory.word(descriptor).load(Relaxed));
        let address = low | u64::from(self.memory.word(descriptor + 4).load(Relaxed)) << 32;
        self.start_over();
        let at = (address - self.memory.address()) as usize;
        // SAFETY: the frame was never published, and the next one is only written when this borrow has ended.
        Some(unsafe { self.memory.lend(at, len) })
    }

    /// Hands over what waits. Returns whether the other side is to be told of it.
    pub(super) fn publish(&mut self) -> Consumer {
        self.published = self.next;
        self.say(NO_INTERRUPT);
        // What was published is visible before it is looked whether the other side sleeps: it goes to sleep first, and
        // then looks whether something was published.
        fence(SeqCst);
        match self.memory.load(USED_AT) & NO_NOTIFY {
            0 => Consumer::Sleeps,
            _ => Consumer::Looks,
        }
    }

    /// Asks to be told when frames are taken, until the next [`publish`](Self::publish). What was taken before may
    /// have gone unsaid: it is to be [looked at](Self::reclaim) once more.
    pub(super) fn ask(&self) {
        self.say(0);
        fence(SeqCst);
    }

    /// Takes back the room of what was taken. Returns whether there was any.
    ///
    /// # Errors
    /// [`Broken`]: nothing in the ring is to be used any more.
    pub(super) fn reclaim(&mut self) -> Result<bool, Broken> {
        let used = (self.memory.load(USED_AT) >> 16) as u16;
        let taken = used.wrapping_sub(self.seen);
        if taken > self.published.wrapping_sub(self.seen) {
            return Err(Broken);
        }
        for _ in 0..taken {
            let entry = self.seen % ENTRIES;
            let at = USED_AT + 4 + usize::from(entry) * USED_BYTES;
            if self.memory.word(at).load(Relaxed) != u32::from(entry) {
                return Err(Broken);
            }
            self.freed = self.ends[usize::from(entry)];
            self.seen = self.seen.wrapping_add(1);
        }
        self.start_over();
        Ok(taken > 0)
    }

    /// Goes back to the begin of the memory when no frame is in it.
    fn start_over(&mut self) {
        if self.seen == self.next {
            self.placed = None;
            (self.written, self.freed) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Vring {
        /// Keeps a frame behind its header. Returns whether there was room.
        fn push(&mut self, header: &[u8; VNET_BYTES], frame: &[u8]) -> bool {
            let Some(place) = self.place(frame.len()) else { return false };
            place.copy_from_slice(frame);
            self.keep(|_| *header);
            true
        }
    }

    /// The other side, as the header describes it: it reads addresses, and keeps an index of its own.
    struct Taker<'a> {
        memory: &'a Mapping,
        seen: u16,
    }

    impl Taker<'_> {
        fn half(&self, at: usize) -> u16 {
            (self.memory.load(at & !3) >> (8 * (at & 2))) as u16
        }

        /// Takes up to `most` frames, and says so.
        fn take(&mut self, most: usize) -> Vec<Vec<u8>> {
            let mut frames = Vec::new();
            while frames.len() < most && self.half(AVAIL_AT + 2) != self.seen {
                let head = self.half(AVAIL_AT + 4 + 2 * usize::from(self.seen % ENTRIES));
                let word = |at| self.memory.load(usize::from(head) * DESC_BYTES + at);
                assert_eq!(word(12), 0, "one descriptor, to be read");
                let at = (u64::from(word(0)) | u64::from(word(4)) << 32) - self.memory.address();
                let (at, len) = (at as usize, word(8) as usize);
                let byte = |at: usize| (self.memory.load(at & !3) >> (8 * (at % 4))) as u8;
                frames.push((at..at + len).map(byte).collect());
                self.put(head.into());
            }
            frames
        }

        /// Says that a descriptor was taken.
        fn put(&mut self, head: u32) {
            let at = USED_AT + 4 + USED_BYTES * usize::from(self.seen % ENTRIES);
            self.memory.store(at, head);
            self.seen = self.seen.wrapping_add(1);
            self.say(0);
        }

        fn say(&self, flags: u32) {
            self.memory.store(USED_AT, flags | u32::from(self.seen) << 16);
        }
    }

    /// Does something as the other side of a ring.
    fn as_taker<R>(ring: &Vring, work: impl FnOnce(&mut Taker<'_>) -> R) -> R {
        let seen = (ring.memory.load(USED_AT) >> 16) as u16;
        work(&mut Taker { memory: &ring.memory, seen })
    }

    fn header(n: usize) -> [u8; VNET_BYTES] {
        std::array::from_fn(|at| (n + at) as u8)
    }

    fn frame(n: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (n * 7 + at) as u8).collect()
    }

    #[test]
    fn frames_of_all_sizes_arrive_in_order_over_many_rounds() {
        let mut ring = Vring::new().unwrap();
        let (mut sent, mut arrived) = (0usize, 0usize);
        let len = |n: usize| [60, 1514, 252, 65_000, 61, 9000][n % 6] + n % 5;
        for round in 0..1_000 {
            for _ in 0..1 + round % 7 {
                if !ring.push(&header(sent), &frame(sent, len(sent))) {
                    break;
                }
                sent += 1;
            }
            ring.publish();
            for got in as_taker(&ring, |taker| taker.take(1 + round % 5)) {
                assert_eq!(got[..VNET_BYTES], header(arrived));
                assert_eq!(got[VNET_BYTES..], frame(arrived, len(arrived)));
                arrived += 1;
            }
            ring.reclaim().unwrap();
        }
        arrived += as_taker(&ring, |taker| taker.take(usize::MAX)).len();
        assert!(arrived == sent && sent > 2_000, "{sent} {arrived}");
        ring.reclaim().unwrap();
        assert!(ring.is_drained() && ring.waiting() == 0);
        assert_eq!((ring.written, ring.freed), (0, 0), "the next frame is at the begin again");
    }

    #[test]
    fn a_frame_is_written_in_place_and_only_one_that_is_kept_goes_out() {
        let mut ring = Vring::new().unwrap();
        ring.place(60).unwrap().copy_from_slice(&frame(1, 60));
        ring.place(1514).unwrap().copy_from_slice(&frame(2, 1514));
        let kept = ring.keep(|written| {
            assert_eq!(written, frame(2, 1514));
            header(2)
        });
        assert_eq!((kept, ring.waiting()), (1514, 1));
        assert_eq!((ring.keep(|_| header(3)), ring.waiting()), (0, 1), "once");
        assert!(ring.push(&header(4), &frame(4, 60)));
        ring.publish();
        let taken = as_taker(&ring, |taker| taker.take(9));
        assert_eq!(
            taken,
            [[&header(2)[..], &frame(2, 1514)].concat(), [&header(4)[..], &frame(4, 60)].concat()]
        );
        assert!(ring.place(FRAME_BYTES).is_none(), "there is never so much room");
    }

    #[test]
    fn nothing_is_taken_before_it_is_published() {
        let mut ring = Vring::new().unwrap();
        assert!(ring.push(&header(1), &frame(1, 60)));
        assert_eq!(as_taker(&ring, |taker| taker.take(9)).len(), 0);
        assert_eq!((ring.waiting(), ring.publish()), (1, Consumer::Sleeps));
        as_taker(&ring, |taker| taker.say(NO_NOTIFY));
        assert!(ring.push(&header(2), &frame(2, 60)));
        assert_eq!(ring.publish(), Consumer::Looks);
        assert_eq!(as_taker(&ring, |taker| taker.take(9)).len(), 2);
        assert_eq!((ring.reclaim(), ring.reclaim()), (Ok(true), Ok(false)));
    }

    #[test]
    fn the_flag_says_whether_to_tell_us() {
        let mut ring = Vring::new().unwrap();
        let flags = |ring: &Vring| ring.memory.load(AVAIL_AT) & 0xffff;
        assert_eq!(flags(&ring), NO_INTERRUPT);
        assert!(ring.push(&header(1), &frame(1, 60)));
        ring.publish();
        ring.ask();
        assert_eq!((flags(&ring), ring.memory.load(AVAIL_AT) >> 16), (0, 1));
        ring.publish();
        assert_eq!(flags(&ring), NO_INTERRUPT);
    }

    #[test]
    fn a_full_ring_takes_no_more_until_something_is_taken() {
        let mut ring = Vring::new().unwrap();
        for n in 0..usize::from(ENTRIES) {
            assert!(ring.push(&header(n), &frame(n, 60)), "{n}");
        }
        assert!(!ring.push(&header(0), &frame(0, 60)), "no entry is left");
        ring.publish();
        assert_eq!(as_taker(&ring, |taker| taker.take(1)).len(), 1);
        assert!(ring.reclaim().unwrap() && ring.push(&header(0), &frame(0, 60)));
        assert!(!ring.push(&header(0), &frame(0, 60)));
        let mut ring = Vring::new().unwrap();
        let count = (0..).take_while(|n| ring.push(&header(*n), &frame(*n, 65_000))).count();
        assert_eq!(count, FRAME_BYTES / 65_024, "no bytes are left");
        assert!(!ring.push(&header(0), &vec![0; FRAME_BYTES]), "and never so many");
    }

    #[test]
    fn a_lone_frame_is_taken_back() {
        let mut ring = Vring::new().unwrap();
        assert_eq!(ring.take_lone(), None);
        for n in 0..3000 {
            assert!(ring.push(&header(n), &frame(n, 60)));
            let bytes = ring.take_lone().unwrap();
            assert_eq!((&bytes[..VNET_BYTES], &bytes[VNET_BYTES..]), (&header(n)[..], &frame(n, 60)[..]));
        }
        assert_eq!(ring.publish(), Consumer::Sleeps);
        assert_eq!(as_taker(&ring, |taker| taker.take(9)).len(), 0, "it is not sent twice");
        assert!(ring.push(&header(1), &frame(1, 60)) && ring.push(&header(2), &frame(2, 60)));
        assert_eq!(ring.take_lone(), None, "there are two");
        ring.publish();
        assert!(ring.push(&header(3), &frame(3, 60)));
        assert_eq!(ring.take_lone(), None, "it would overtake");
        assert_eq!(as_taker(&ring, |taker| taker.take(9)).len(), 2);
        ring.reclaim().unwrap();
        assert_eq!(ring.take_lone().map(|bytes| bytes[VNET_BYTES..].to_vec()), Some(frame(3, 60)));
    }

    #[test]
    fn a_liar_is_found_out() {
        let mut ring = Vring::new().unwrap();
        ring.push(&header(1), &frame(1, 60));
        ring.push(&header(2), &frame(2, 60));
        as_taker(&ring, |taker| taker.put(0));
        assert_eq!(ring.reclaim(), Err(Broken), "what was not published yet");
        for (head, what) in [(1, "another one"), (ENTRIES.into(), "none of the ring's"), (u32::MAX, "none")] {
            let mut ring = Vring::new().unwrap();
            ring.push(&header(1), &frame(1, 60));
            ring.push(&header(2), &frame(2, 60));
            ring.publish();
            as_taker(&ring, |taker| taker.put(head));
            assert_eq!(ring.reclaim(), Err(Broken), "{what}");
        }
        let mut ring = Vring::new().unwrap();
        ring.push(&header(1), &frame(1, 60));
        ring.publish();
        as_taker(&ring, |taker| {
            taker.put(0);
            taker.put(1);
        });
        assert_eq!(ring.reclaim(), Err(Broken), "more than there were");
        ring.memory.store(USED_AT, 0xffff << 16);
        assert_eq!(ring.reclaim(), Err(Broken), "an index from behind");
    }
}
