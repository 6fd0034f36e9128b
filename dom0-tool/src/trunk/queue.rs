//! A bounded queue of frames from one thread to one other, without a lock and without allocation: copied in by
//! the one, copied out by the other.
//!
//! Everything in it is a word that both may load, so that a model checker can stand in for the memory and no
//! `unsafe` is needed. Who sleeps is woken by the rule of Xen's rings (`RING_PUSH_*_AND_CHECK_NOTIFY`): the
//! receiver says from which word on it wants to be told. It knows no port and no switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use drayage_wire::container::{Checksum, Gso, GsoKind, Meta};

use crate::rules::Privacy;
use crate::switch::Segment;

/// How far the sender has written, in words since the beginning.
const WRITTEN: usize = 0;
/// How far the receiver has read. On a cache line of its own, as is the next.
const READ: usize = 16;
/// The receiver wants to be told of the word with this number.
const EVENT: usize = 17;
/// The first word of the frames.
const FIRST: usize = 32;
/// Bytes in a word.
const WORD: usize = 8;
/// Words of a queue between two workers: half a megabyte, a third of a thousand frames of full size.
const WORDS: usize = FIRST + (1 << 16);
/// The longest frame that is taken, in bytes.
const MAX_BYTES: usize = crate::port::MAX_FRAME_BYTES;

/// The memory of a queue.
///
/// Implemented by [`Heap`] and, in tests, by a model checker's.
pub trait Words {
    /// Returns how many words there are.
    fn count(&self) -> usize;
    /// Loads a word.
    fn load(&self, word: usize, order: Ordering) -> u64;
    /// Stores a word.
    fn store(&self, word: usize, value: u64, order: Ordering);
    /// Orders every earlier store before every later load.
    fn full_fence(&self);
}

/// Memory that two threads of this process share.
#[derive(Clone, Debug)]
pub struct Heap(Arc<[AtomicU64]>);

impl Default for Heap {
    fn default() -> Self {
        Self::new(WORDS)
    }
}

impl Heap {
    /// Makes so many words.
    pub fn new(words: usize) -> Self {
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Words for Heap {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn load(&self, word: usize, order: Ordering) -> u64 {
        self.0[word].load(order)
    }
    fn store(&self, word: usize, value: u64, order: Ordering) {
        self.0[word].store(value, order);
    }
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What travels with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where it is heard.
    pub segment: Segment,
    /// Whether its sender is isolated.
    pub privacy: Privacy,
    /// Checksum and segmentation.
    pub meta: Meta,
}

impl Label {
    fn pack(self, len: usize) -> u64 {
        let checksum = match self.meta.checksum {
            Checksum::Unverified => 0u64,
            Checksum::Valid => 1,
            Checksum::Blank => 2,
        };
        let (kind, size) = match self.meta.gso {
            None => (0, 0),
            Some(Gso { kind: GsoKind::TcpV4, size }) => (1u64, size),
            Some(Gso { kind: GsoKind::TcpV6, size }) => (2, size),
        };
        let flags = checksum | kind << 2 | u64::from(self.privacy == Privacy::Isolated) << 4;
        len as u64 | flags << 24 | u64::from(self.segment.0) << 32 | u64::from(size) << 48
    }

    fn unpack(word: u64) -> (Self, usize) {
        let flags = word >> 24;
        let checksum = match flags & 3 {
            0 => Checksum::Unverified,
            1 => Checksum::Valid,
            _ => Checksum::Blank,
        };
        let size = (word >> 48) as u16;
        let gso = match flags >> 2 & 3 {
            0 => None,
            1 => Some(Gso { kind: GsoKind::TcpV4, size }),
            _ => Some(Gso { kind: GsoKind::TcpV6, size }),
        };
        let privacy = if flags & 16 == 0 { Privacy::Shared } else { Privacy::Isolated };
        let segment = Segment((word >> 32) as u16);
        (Self { segment, privacy, meta: Meta { checksum, gso } }, (word & 0xff_ffff) as usize)
    }
}

/// How much of a queue a frame may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of it.
    All,
    /// The half: a storm of frames to everybody leaves the other to those that are meant for somebody.
    Half,
}

/// There was no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The end that frames go into.
#[derive(Debug)]
pub struct Sender<W> {
    words: W,
    capacity: u64,
    written: u64,
    published: u64,
    /// How far the receiver has read, when it was last looked at.
    read: u64,
}

/// The end that frames come out of.
#[derive(Debug)]
pub struct Receiver<W> {
    words: W,
    capacity: u64,
    read: u64,
    released: u64,
    /// How far the sender has written, when it was last looked at.
    written: u64,
}

/// Makes a queue in memory that is all zero. Its capacity is the largest power of two that fits.
///
/// # Panics
/// When the memory holds no frame at all.
pub fn queue<W: Words + Clone>(words: W) -> (Sender<W>, Receiver<W>) {
    let room = words.count().saturating_sub(FIRST);
    assert!(room > 0, "a queue of {} words", words.count());
    let capacity = 1 << room.ilog2();
    let sender = Sender { words: words.clone(), capacity, written: 0, published: 0, read: 0 };
    (sender, Receiver { words, capacity, read: 0, released: 0, written: 0 })
}

/// Returns where the word with a number is.
fn place(number: u64, capacity: u64) -> usize {
    FIRST + (number & (capacity - 1)) as usize
}

impl<W: Words> Sender<W> {
    /// Copies a frame in. It is seen at the other end once it is [published](Self::publish).
    ///
    /// # Errors
    /// [`Full`]; the queue is then as it was.
    pub fn push(&mut self, label: Label, frame: &[u8], share: Share) -> Result<(), Full> {
        if frame.len() > MAX_BYTES {
            return Err(Full);
        }
        let needed = 1 + frame.len().div_ceil(WORD) as u64;
        let limit = if share == Share::Half { self.capacity / 2 } else { self.capacity };
        if self.written + needed - self.read > limit {
            // Acquire: what the receiver read from there was read before it is written again.
            self.read = self.words.load(READ, Ordering::Acquire);
            if self.written + needed - self.read > limit {
                return Err(Full);
            }
        }
        let mut number = self.written;
        let mut put = |value| {
            self.words.store(place(number, self.capacity), value, Ordering::Relaxed);
            number += 1;
        };
        put(label.pack(frame.len()));
        let (words, rest) = frame.as_chunks::<WORD>();
        for word in words {
            put(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            put(u64::from_le_bytes(last));
        }
        self.written = number;
        Ok(())
    }

    /// Shows the other end what was pushed. Returns whether it sleeps, and is to be woken.
    pub fn publish(&mut self) -> bool {
        if self.written == self.published {
            return false;
        }
        let old = std::mem::replace(&mut self.published, self.written);
        self.words.store(WRITTEN, self.written, Ordering::Release);
        self.words.full_fence();
        let wanted = self.words.load(EVENT, Ordering::Relaxed);
        self.written.wrapping_sub(wanted + 1) < self.written - old
    }
}

impl<W: Words> Receiver<W> {
    /// Returns the length of the next frame, if there is one.
    pub fn next_len(&mut self) -> Option<usize> {
        if self.read == self.written {
            self.written = self.words.load(WRITTEN, Ordering::Acquire);
            if self.read == self.written {
                return None;
            }
        }
        let (_, len) = Label::unpack(self.words.load(place(self.read, self.capacity), Ordering::Relaxed));
        Some(len)
    }

    /// Copies the next frame out, if there is one and it fits. Returns what travelled with it, and its length.
    pub fn pop(&mut self, into: &mut [u8]) -> Option<(Label, usize)> {
        let into = into.get_mut(..self.next_len()?)?;
        let mut number = self.read;
        let mut get = || {
            let value = self.words.load(place(number, self.capacity), Ordering::Relaxed);
            number += 1;
            value
        };
        let (label, len) = Label::unpack(get());
        let (words, rest) = into.as_chunks_mut::<WORD>();
        for word in words {
            *word = get().to_le_bytes();
        }
        if !rest.is_empty() {
            let last = get().to_le_bytes();
            rest.copy_from_slice(&last[..rest.len()]);
        }
        self.read = number;
        Some((label, len))
    }

    /// Gives back the room of the frames that were taken.
    pub fn release(&mut self) {
        if self.released != self.read {
            self.released = self.read;
            self.words.store(READ, self.read, Ordering::Release);
        }
    }

    /// Asks to be told of the next frame. Returns whether there is one already.
    pub fn rearm(&mut self) -> bool {
        self.words.store(EVENT, self.read, Ordering::Relaxed);
        self.words.full_fence();
        self.written = self.words.load(WRITTEN, Ordering::Acquire);
        self.written != self.read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(n: u64) -> Label {
        let checksum = [Checksum::Unverified, Checksum::Valid, Checksum::Blank][n as usize % 3];
        let kind = if n.is_multiple_of(2) { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
        let gso = n.is_multiple_of(5).then_some(Gso { kind, size: n as u16 | 1 });
        let privacy = if n.is_multiple_of(7) { Privacy::Isolated } else { Privacy::Shared };
        Label { segment: Segment(n as u16), privacy, meta: Meta { checksum, gso } }
    }

    #[test]
    fn frames_come_out_as_they_went_in_in_another_thread() {
        let (mut sender, mut receiver) = queue(Heap::new(FIRST + 4096));
        const COUNT: u64 = 20_000;
        let frame = |n: u64| vec![n as u8; 14 + (n * 131 % 2000) as usize];
        let sending = std::thread::spawn(move || {
            let mut full = 0u64;
            for n in 0..COUNT {
                while sender.push(label(n), &frame(n), Share::All).is_err() {
                    full += 1;
                    sender.publish();
                    std::thread::yield_now();
                }
            }
            sender.publish();
            full
        });
        let mut into = Box::new([0; MAX_BYTES]);
        let mut n = 0;
        while n < COUNT {
            let Some((got, len)) = receiver.pop(&mut into[..]) else {
                receiver.release();
                std::thread::yield_now();
                continue;
            };
            assert_eq!((got, &into[..len]), (label(n), &frame(n)[..]), "frame {n}");
            n += 1;
        }
        receiver.release();
        assert!(receiver.pop(&mut into[..]).is_none());
        assert!(sending.join().unwrap() > 0, "it was full now and then");
    }

    #[test]
    fn a_queue_is_bounded_and_a_storm_gets_half_of_it() {
        let (mut sender, mut receiver) = queue(Heap::new(FIRST + 1024));
        let mut push = |share| sender.push(label(1), &[1; 56], share).is_ok();
        let stormed = (0..1000).filter(|_| push(Share::Half)).count();
        let meant = (0..1000).filter(|_| push(Share::All)).count();
        assert_eq!((stormed, meant), (64, 64));
        assert_eq!(sender.push(label(1), &[0; MAX_BYTES + 1], Share::All), Err(Full));
        let mut into = Box::new([0; MAX_BYTES]);
        assert!(receiver.pop(&mut into[..]).is_none(), "not published yet");
        sender.publish();
        assert!(receiver.pop(&mut into[..]).is_some());
        assert!(sender.push(label(1), &[1; 56], Share::All).is_err(), "not released yet");
        receiver.release();
        assert!(sender.push(label(1), &[1; 56], Share::All).is_ok());
    }

    #[test]
    fn who_does_not_sleep_is_not_woken() {
        let (mut sender, mut receiver) = queue(Heap::new(FIRST + 1024));
        let mut into = Box::new([0; MAX_BYTES]);
        let send = |sender: &mut Sender<Heap>| {
            sender.push(label(1), &[1; 60], Share::All).unwrap();
            sender.publish()
        };
        assert!(!sender.publish(), "nothing was pushed");
        assert!(send(&mut sender), "it has not looked yet");
        assert!(!send(&mut sender), "once is enough");
        while receiver.pop(&mut into[..]).is_some() {}
        receiver.release();
        assert!(!send(&mut sender), "it did not say that it would sleep");
        assert!(receiver.rearm(), "and would find that");
        assert!(receiver.pop(&mut into[..]).is_some());
        assert!(!receiver.rearm());
        assert!(send(&mut sender));
        assert!(!send(&mut sender));
    }

    #[test]
    fn labels_are_kept() {
        for n in 0..500 {
            for len in [0, 14, 1514, MAX_BYTES] {
                assert_eq!(Label::unpack(label(n).pack(len)), (label(n), len));
            }
        }
    }
}
