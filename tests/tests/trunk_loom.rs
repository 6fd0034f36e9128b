//! The queue between two workers under loom, which tries every interleaving and every value that the memory model
//! lets a load return: no frame is torn, stale or overwritten before it was read, and no wake-up is lost.
//!
//! Both ends are the product's own; only the memory is loom's. It can be broken on purpose, so that it is seen that
//! loom would have found it.

use std::sync::atomic::Ordering;

use drayage::port::MAX_FRAME_BYTES;
use drayage::rules::Privacy;
use drayage::switch::Segment;
use drayage::trunk::queue::{Label, Receiver, Sender, Share, Words, queue};
use drayage_wire::container::Meta;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

/// What the memory does with the orderings it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// What it is asked for.
    Honest,
    /// No full fence.
    Unfenced,
    /// Every access is relaxed.
    Relaxed,
}

/// The first word of the frames; those before are indices, of which three are used.
const FIRST: usize = 32;

struct Shared {
    indices: [AtomicU64; 3],
    frames: Vec<AtomicU64>,
    memory: Memory,
}

/// The memory of one execution. It is leaked: loom panics again when one of its objects is dropped while a panic of its
/// own unwinds, and that would end the whole test binary.
#[derive(Clone, Copy)]
struct Modelled(&'static Shared);

fn leaked<T>(object: T) -> &'static T {
    Box::leak(Box::new(object))
}

impl Modelled {
    fn new(memory: Memory, words: usize) -> Self {
        let word = |_| AtomicU64::new(0);
        let frames = (0..words).map(word).collect();
        Self(leaked(Shared { indices: core::array::from_fn(word), frames, memory }))
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        match word {
            0 => &self.0.indices[0],
            16 | 17 => &self.0.indices[word - 15],
            _ => &self.0.frames[word - FIRST],
        }
    }

    fn order(&self, asked: Ordering) -> Ordering {
        if self.0.memory == Memory::Relaxed { Ordering::Relaxed } else { asked }
    }
}

impl Words for Modelled {
    fn count(&self) -> usize {
        FIRST + self.0.frames.len()
    }
    fn load(&self, word: usize, order: Ordering) -> u64 {
        self.word(word).load(self.order(order))
    }
    fn store(&self, word: usize, value: u64, order: Ordering) {
        self.word(word).store(value, self.order(order));
    }
    fn full_fence(&self) {
        if self.0.memory == Memory::Honest {
            fence(Ordering::SeqCst);
        }
    }
}

fn label(n: u8) -> Label {
    Label { segment: Segment(u16::from(n)), privacy: Privacy::Isolated, meta: Meta::default() }
}

fn push(sender: &mut Sender<Modelled>, n: u8) -> bool {
    sender.push(label(n), &[n; 8], Share::All).is_ok()
}

fn pop(receiver: &mut Receiver<Modelled>, into: &mut [u8; MAX_FRAME_BYTES]) -> Option<u8> {
    let (got, len) = receiver.pop(into)?;
    let n = into[0];
    assert!(got == label(n) && into[..len] == [n; 8], "a stale frame: {got:?}, {:?}", &into[..len]);
    Some(n)
}

/// A receiver that sleeps whenever it finds nothing, against a sender that publishes frames one by one. A bell is
/// loom's `Notify`: if a wake-up is lost, the receiver sleeps for ever, and loom says "deadlock".
fn frames_arrive(memory: Memory, total: u8) {
    let (mut sender, mut receiver) = queue(Modelled::new(memory, 8));
    let bell = leaked(Notify::new());
    let sending = thread::spawn(move || {
        for n in 1..=total {
            assert!(push(&mut sender, n), "there is room");
            if sender.publish() {
                bell.notify();
            }
        }
    });
    let mut into = Box::new([0; MAX_FRAME_BYTES]);
    let mut next = 1;
    while next <= total {
        match pop(&mut receiver, &mut into) {
            Some(n) => {
                assert_eq!(n, next, "a stale frame");
                next += 1;
            }
            None => {
                receiver.release();
                if !receiver.rearm() {
                    bell.wait();
                }
            }
        }
    }
    sending.join().expect("no panic");
}

/// A queue with room for one frame: the second takes the first one's place.
fn room_is_used_again(memory: Memory) {
    let (mut sender, mut receiver) = queue(Modelled::new(memory, 2));
    assert!(push(&mut sender, 1));
    sender.publish();
    let sending = thread::spawn(move || {
        // Once is as good as many times: loom also tries the run in which the room comes in time.
        if push(&mut sender, 2) {
            sender.publish();
        }
    });
    let mut into = Box::new([0; MAX_FRAME_BYTES]);
    assert_eq!(pop(&mut receiver, &mut into), Some(1), "a stale frame");
    receiver.release();
    if let Some(n) = pop(&mut receiver, &mut into) {
        assert_eq!(n, 2, "a stale frame");
    }
    sending.join().expect("no panic");
}

#[test]
fn no_frame_is_lost_or_stale() {
    loom::model(|| frames_arrive(Memory::Honest, 2));
}

#[test]
fn no_frame_is_overwritten_before_it_was_read() {
    loom::model(|| room_is_used_again(Memory::Honest));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_its_fence_the_receiver_would_sleep_for_ever() {
    loom::model(|| frames_arrive(Memory::Unfenced, 2));
}

#[test]
#[should_panic(expected = "a stale frame")]
fn without_its_orderings_a_frame_would_be_stale() {
    loom::model(|| frames_arrive(Memory::Relaxed, 1));
}
