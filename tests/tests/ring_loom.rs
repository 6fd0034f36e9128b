//! The ring's index and notify protocol under loom, which tries every interleaving and every value that the
//! memory model lets a load return: no message is torn or stale, and no wake-up is lost.
//!
//! Both halves are the product's own; only the page is loom's. Two pages are broken on purpose, one without the
//! full fence and one whose loads and stores order nothing, so that it is seen that loom would have found it.

use core::sync::atomic::Ordering;

use drayage_wire::netif::{Rx, RxRequest, RxResponse};
use drayage_wire::ring::{BackRing, FrontRing, SharedWords};
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, fence};
use loom::thread;

/// What a [`Page`] does with the orderings it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// What it is asked for.
    Honest,
    /// No full fence.
    Unfenced,
    /// Every access is relaxed.
    Relaxed,
}

/// Slots that the models reach.
const SLOTS: usize = 3;

/// The words of a page that the models reach: four indices, and the first slots.
struct Page {
    indices: [AtomicU32; 4],
    slots: [AtomicU32; SLOTS * 2],
    memory: Memory,
}

impl Page {
    fn new(memory: Memory) -> Self {
        let word = |_| AtomicU32::new(0);
        Self { indices: core::array::from_fn(word), slots: core::array::from_fn(word), memory }
    }

    fn word(&self, word: usize) -> &AtomicU32 {
        if word < 4 { &self.indices[word] } else { &self.slots[word - 16] }
    }

    fn order(&self, asked: Ordering) -> Ordering {
        if self.memory == Memory::Relaxed { Ordering::Relaxed } else { asked }
    }
}

/// A page or event channel of one execution. It is leaked: loom panics again when one of its objects is dropped
/// while a panic of its own unwinds, and that would end the whole test binary.
fn leaked<T>(object: T) -> &'static T {
    Box::leak(Box::new(object))
}

#[derive(Clone, Copy)]
struct Shared(&'static Page);

impl SharedWords for Shared {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.0.word(word).load(self.0.order(order))
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.0.word(word).store(value, self.0.order(order));
    }
    fn full_fence(&self) {
        match self.0.memory {
            Memory::Honest => fence(Ordering::SeqCst),
            Memory::Unfenced => {}
            // A fence would order the accesses around it; what is tested then is only the slot's contents.
            Memory::Relaxed => {}
        }
    }
}

/// Both halves of a new ring, as their owners have them before the first message.
fn ring(memory: Memory) -> (FrontRing<Rx, Shared>, BackRing<Rx, Shared>) {
    let page = Shared(leaked(Page::new(memory)));
    let front = FrontRing::new(page);
    (front, BackRing::attach(page))
}

fn request(n: u32) -> RxRequest {
    RxRequest { id: 0x100 + n as u16, gref: 0x0010_0000 + n }
}

fn response(n: u32) -> RxResponse {
    RxResponse { id: 0x200 + n as u16, offset: 0, flags: 1, status: 60 + n as i16 }
}

/// A backend that sleeps whenever it finds nothing, against a frontend that publishes `total` requests one by
/// one. An event channel is loom's `Notify`: if a wake-up is lost, the backend sleeps for ever, and loom says
/// "deadlock".
fn requests_arrive(memory: Memory, total: u32) {
    let (mut front, mut back) = ring(memory);
    let event = leaked(Notify::new());
    let frontend = thread::spawn(move || {
        for n in 0..total {
            front.push(request(n)).expect("the ring has room");
            if front.publish() {
                event.notify();
            }
        }
    });
    let mut taken = 0;
    while taken < total {
        let there = back.available().expect("nobody lies here");
        for n in taken..taken + there {
            assert_eq!(back.peek::<RxRequest>(n - taken), request(n), "a stale slot");
        }
        back.advance(there);
        taken += there;
        if taken < total && there == 0 && !back.rearm() {
            event.wait();
        }
    }
    frontend.join().expect("no panic");
}

/// The other direction: a frontend that posted `total` buffers sleeps until they are answered, and asks to be
/// told of every `every`th response only.
fn responses_arrive(memory: Memory, total: u32, every: u32) {
    let (mut front, mut back) = ring(memory);
    for n in 0..total {
        front.push(request(n)).expect("the ring has room");
    }
    let _ = front.publish();
    back.advance(back.available().expect("nobody lies here"));
    let event = leaked(Notify::new());
    // The event index is set before the backend starts, as a frontend does before it connects.
    assert!(!front.rearm_after(every));
    let backend = thread::spawn(move || {
        for n in 0..total {
            back.respond(response(n)).expect("there is an unanswered request");
            if back.publish() {
                event.notify();
            }
        }
    });
    let mut taken = 0;
    while taken < total {
        let there = front.available().expect("nobody lies here");
        for n in taken..taken + there {
            assert_eq!(front.peek::<RxResponse>(n - taken), response(n), "a stale slot");
        }
        front.advance(there);
        taken += there;
        // No more than will come: who waits for a fourth of three sleeps for ever, and rightly.
        let wanted = every.min(total - taken);
        if wanted > 0 && !front.rearm_after(wanted) {
            event.wait();
        }
    }
    backend.join().expect("no panic");
}

/// A message there and its answer back, both ends asleep while they wait.
fn a_message_comes_back(memory: Memory) {
    let (mut front, mut back) = ring(memory);
    let (to_back, to_front) = (leaked(Notify::new()), leaked(Notify::new()));
    let backend = thread::spawn(move || {
        while back.available().expect("nobody lies here") == 0 {
            if !back.rearm() {
                to_back.wait();
            }
        }
        assert_eq!(back.peek::<RxRequest>(0), request(0), "a stale slot");
        back.advance(1);
        back.respond(response(0)).expect("there is an unanswered request");
        if back.publish() {
            to_front.notify();
        }
    });
    front.push(request(0)).expect("the ring has room");
    if front.publish() {
        to_back.notify();
    }
    while front.available().expect("nobody lies here") == 0 {
        if !front.rearm() {
            to_front.wait();
        }
    }
    assert_eq!(front.peek::<RxResponse>(0), response(0), "a stale slot");
    backend.join().expect("no panic");
}

#[test]
fn no_request_is_lost_or_stale() {
    loom::model(|| requests_arrive(Memory::Honest, 2));
}

#[test]
fn no_response_is_lost_or_stale() {
    loom::model(|| responses_arrive(Memory::Honest, 2, 1));
}

#[test]
fn no_response_is_lost_to_who_asks_for_every_second() {
    loom::model(|| responses_arrive(Memory::Honest, 3, 2));
}

#[test]
fn a_message_and_its_answer_arrive() {
    loom::model(|| a_message_comes_back(Memory::Honest));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_its_fence_the_backend_would_sleep_for_ever() {
    loom::model(|| requests_arrive(Memory::Unfenced, 2));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_its_fence_the_frontend_would_sleep_for_ever() {
    loom::model(|| responses_arrive(Memory::Unfenced, 2, 1));
}

#[test]
#[should_panic(expected = "a stale slot")]
fn without_its_orderings_a_slot_would_be_stale() {
    loom::model(|| responses_arrive(Memory::Relaxed, 1, 1));
}
