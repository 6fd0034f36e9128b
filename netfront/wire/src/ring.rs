//! The shared ring of `xen/include/public/io/ring.h`: index arithmetic and the notify protocol, both halves.
//!
//! A ring is one page: `req_prod`, `req_event`, `rsp_prod`, `rsp_event` in its first 16 bytes, then 256
//! slots from byte 64 on, in which a response takes the place of a request. This module moves words around
//! very carefully; it knows neither what a slot means nor how a page comes to be shared.
//!
//! Each half keeps its own indices in private fields. What the peer publishes is loaded once for each call,
//! and is bounded before it is used: an index that cannot be true is an [`Overrun`], never an out-of-range
//! access.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::netif::RING_SLOTS;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;
/// The word at which slot 0 starts (byte 64).
const FIRST_SLOT: usize = 16;

/// A page of 1024 words that the other end can read and write at any time.
///
/// Implemented by the real shared page and, in tests, by a model checker's.
pub trait SharedWords {
    /// Loads the word with the given index (below 1024).
    fn load(&self, word: usize, order: Ordering) -> u32;
    /// Stores the word with the given index (below 1024).
    fn store(&self, word: usize, value: u32, order: Ordering);
    /// Orders every earlier store before every later load (`xen_mb()`).
    fn full_fence(&self);
}

/// The words of a slot; those beyond the slot are zero.
pub type Words = [u32; 4];

/// A message that fits in a slot.
pub trait Slot: Copy {
    /// Packs the message; words beyond the slot are zero.
    fn to_words(self) -> Words;
    /// Unpacks a message; every bit pattern is some message.
    fn from_words(words: Words) -> Self;
}

/// One of netif's rings.
pub trait RingKind {
    /// Words in a slot.
    const SLOT_WORDS: usize;
    /// Slots, a power of two: as many as fit into the page, rounded down (`__RING_SIZE`).
    const SLOTS: u32 = RING_SLOTS;
}

/// A free-running ring index. It wraps at 2^32, and is compared by distance only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Index(pub u32);

impl Index {
    /// Returns the index `n` further on.
    #[must_use]
    pub const fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// Returns how far `self` lies beyond `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Returns the slot that the index names in a ring of packets.
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 % RING_SLOTS) as usize
    }
}

/// The peer published an index that cannot be true. The ring must not be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// How many messages the peer claims.
    pub claimed: u32,
    /// How many there can be at most.
    pub possible: u32,
}

impl core::fmt::Display for Overrun {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ring index claims {} messages where at most {} can be", self.claimed, self.possible)
    }
}

impl core::error::Error for Overrun {}

fn first_word<K: RingKind>(at: Index) -> usize {
    const { assert!(K::SLOTS.is_power_of_two() && FIRST_SLOT + K::SLOTS as usize * K::SLOT_WORDS <= 1024) };
    FIRST_SLOT + (at.0 % K::SLOTS) as usize * K::SLOT_WORDS
}

fn load_slot<K: RingKind, P: SharedWords>(page: &P, at: Index) -> Words {
    let base = first_word::<K>(at);
    let mut words = Words::default();
    for (i, word) in words.iter_mut().take(K::SLOT_WORDS).enumerate() {
        *word = page.load(base + i, Ordering::Relaxed);
    }
    words
}

fn store_slot<K: RingKind, P: SharedWords>(page: &P, at: Index, words: Words) {
    let base = first_word::<K>(at);
    for (i, word) in words.into_iter().take(K::SLOT_WORDS).enumerate() {
        page.store(base + i, word, Ordering::Relaxed);
    }
}

/// Publishes `new` in the producer word and returns whether the peer asked to be notified of a message in
/// `old..new` (`RING_PUSH_*_AND_CHECK_NOTIFY`).
fn publish<P: SharedWords>(page: &P, prod: usize, event: usize, old: Index, new: Index) -> bool {
    page.store(prod, new.0, Ordering::Release);
    page.full_fence();
    let wanted = Index(page.load(event, Ordering::Relaxed));
    new.since(wanted) < new.since(old)
}

/// The frontend's half of a ring.
#[derive(Debug)]
pub struct FrontRing<K, P> {
    page: P,
    req_prod: Index,
    req_published: Index,
    rsp_cons: Index,
    kind: PhantomData<K>,
}

impl<K: RingKind, P: SharedWords> FrontRing<K, P> {
    /// Initialises the page (`SHARED_RING_INIT`) and returns the half. The page must not be granted yet.
    pub fn new(page: P) -> Self {
        Self::starting_at(page, Index(0))
    }

    /// As [`new`](Self::new), with all indices at `start`, so that tests reach the wrap.
    pub fn starting_at(page: P, start: Index) -> Self {
        page.store(REQ_PROD, start.0, Ordering::Relaxed);
        page.store(RSP_PROD, start.0, Ordering::Relaxed);
        page.store(REQ_EVENT, start.plus(1).0, Ordering::Relaxed);
        page.store(RSP_EVENT, start.plus(1).0, Ordering::Release);
        Self { page, req_prod: start, req_published: start, rsp_cons: start, kind: PhantomData }
    }

    /// Returns how many requests can be pushed now.
    pub fn free_slots(&self) -> u32 {
        K::SLOTS - self.req_prod.since(self.rsp_cons)
    }

    /// Returns how many requests, published or not, have no taken response yet.
    pub fn in_flight(&self) -> u32 {
        self.req_prod.since(self.rsp_cons)
    }

    /// Returns the index that the next pushed request will have.
    pub fn next_request(&self) -> Index {
        self.req_prod
    }

    /// Returns the index of the next response to take.
    pub fn next_response(&self) -> Index {
        self.rsp_cons
    }

    /// Writes a request into the next slot, unpublished. Returns its index, or `None` when the ring is full.
    pub fn push(&mut self, request: impl Slot) -> Option<Index> {
        if self.free_slots() == 0 {
            return None;
        }
        let at = self.req_prod;
        store_slot::<K, P>(&self.page, at, request.to_words());
        self.req_prod = at.plus(1);
        Some(at)
    }

    /// Publishes what was pushed. Returns whether the backend must be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.req_published == self.req_prod {
            return false;
        }
        let old = self.req_published;
        self.req_published = self.req_prod;
        publish(&self.page, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// Returns how many responses are there to take.
    ///
    /// # Errors
    /// [`Overrun`] when the backend claims to have answered more than was published.
    pub fn available(&self) -> Result<u32, Overrun> {
        let claimed = Index(self.page.load(RSP_PROD, Ordering::Acquire)).since(self.rsp_cons);
        let possible = self.req_published.since(self.rsp_cons);
        if claimed > possible { Err(Overrun { claimed, possible }) } else { Ok(claimed) }
    }

    /// Returns a copy of the response `ahead` places after the next one, which the caller knows to be
    /// [`available`](Self::available), without taking it.
    pub fn peek<S: Slot>(&self, ahead: u32) -> S {
        S::from_words(load_slot::<K, P>(&self.page, self.rsp_cons.plus(ahead)))
    }

    /// Takes `n` responses that [`available`](Self::available) has counted.
    pub fn advance(&mut self, n: u32) {
        debug_assert!(n <= self.req_published.since(self.rsp_cons));
        self.rsp_cons = self.rsp_cons.plus(n);
    }

    /// Asks to be notified of the next response. Returns whether there is one already
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`): a caller that gets `true` must not sleep.
    #[must_use]
    pub fn rearm(&mut self) -> bool {
        self.rearm_after(1)
    }

    /// As [`rearm`](Self::rearm), for the `n`th response from now on (1 or more).
    #[must_use]
    pub fn rearm_after(&mut self, n: u32) -> bool {
        self.page.store(RSP_EVENT, self.rsp_cons.plus(n).0, Ordering::Relaxed);
        self.page.full_fence();
        let ready = Index(self.page.load(RSP_PROD, Ordering::Acquire)).since(self.rsp_cons);
        ready >= n
    }

    /// Returns the page, which is not shared any more.
    pub fn into_page(self) -> P {
        self.page
    }
}

/// A page that only the backend knows and that outlives it, in which answers are complete before the first of
/// them takes the place of a request in the ring. Whoever takes the ring over after a backend that was killed in
/// the middle of answering finds there what the ring's slots were about to hold.
///
/// A backend that is killed stops between two instructions, and every store before that is done. So it is the
/// compiler alone that has to keep the order.
#[derive(Debug)]
pub struct Ledger<P> {
    page: P,
    marks: usize,
}

/// Words in front of the answers: the index up to which they are complete, two marks of two words each, and what
/// tells a ledger from a page that never was one.
const LEDGER_HEAD: usize = 6;
const LEDGER_MAGIC: usize = 5;
/// "ring".
const IS_LEDGER: u32 = 0x676e_6972;

impl<P: SharedWords> Ledger<P> {
    /// Takes a page.
    pub fn new(page: P) -> Self {
        Self { page, marks: 0 }
    }

    /// Notes what the owner of the ring needs to know once the answers up to `to` are published.
    fn mark(&mut self, to: Index, value: u32) {
        let at = 1 + 2 * (self.marks % 2);
        self.marks += 1;
        self.page.store(at, to.0, Ordering::Relaxed);
        self.page.store(at + 1, value, Ordering::Relaxed);
    }

    /// Returns what was noted for the answers up to `to`.
    fn marked(&self, to: Index) -> Option<u32> {
        let read = |word| self.page.load(word, Ordering::Relaxed);
        [1, 3].into_iter().find(|at| read(*at) == to.0).map(|at| read(at + 1))
    }

    fn answer<K: RingKind>(&self, at: Index) -> Words {
        let mut words = Words::default();
        for (i, word) in words.iter_mut().take(K::SLOT_WORDS).enumerate() {
            *word = self.page.load(first_word::<K>(at) - FIRST_SLOT + LEDGER_HEAD + i, Ordering::Relaxed);
        }
        words
    }

    fn note_answer<K: RingKind>(&self, at: Index, words: Words) {
        for (i, word) in words.into_iter().take(K::SLOT_WORDS).enumerate() {
            self.page.store(first_word::<K>(at) - FIRST_SLOT + LEDGER_HEAD + i, word, Ordering::Relaxed);
        }
    }

    /// Says that the answers before `to` are complete.
    fn complete(&self, to: Index) {
        compiler_fence(Ordering::SeqCst);
        self.page.store(0, to.0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Begins anew, at an index of the ring.
    fn begin(&self, at: Index) {
        self.page.store(LEDGER_MAGIC, 0, Ordering::Relaxed);
        self.complete(at);
        self.page.store(LEDGER_MAGIC, IS_LEDGER, Ordering::Relaxed);
    }

    /// Returns how many answers from `published` on are complete.
    fn completed_since<K: RingKind>(&self, published: Index) -> u32 {
        let count = Index(self.page.load(0, Ordering::Relaxed)).since(published);
        let was_kept = self.page.load(LEDGER_MAGIC, Ordering::Relaxed) == IS_LEDGER;
        if count > K::SLOTS || !was_kept { 0 } else { count }
    }
}

/// The backend's half of a ring.
#[derive(Debug)]
pub struct BackRing<K, P> {
    page: P,
    req_cons: Index,
    rsp_prod: Index,
    rsp_published: Index,
    ledger: Option<Ledger<P>>,
    kind: PhantomData<K>,
}

impl<K: RingKind, P: SharedWords> BackRing<K, P> {
    /// Attaches to a page that a frontend initialised, at the responses that are published in it: 0 in a new
    /// ring, and where an earlier backend stopped in an old one. Requests that it took and did not answer are
    /// taken again.
    pub fn attach(page: P) -> Self {
        let at = Index(page.load(RSP_PROD, Ordering::Acquire));
        Self { page, req_cons: at, rsp_prod: at, rsp_published: at, ledger: None, kind: PhantomData }
    }

    /// As [`attach`](Self::attach), to a ring that nobody has answered yet; from now on a ledger is kept.
    #[must_use]
    pub fn keeping(mut self, ledger: Ledger<P>) -> Self {
        ledger.begin(self.rsp_published);
        self.ledger = Some(ledger);
        self
    }

    /// As [`attach`](Self::attach), to a ring that an earlier backend answered and kept this ledger of. Answers
    /// that it had not published are, and their requests are not taken again. Returns the ring and what the
    /// earlier backend [noted](Self::mark) with its last answers.
    pub fn resume(page: P, mut ledger: Ledger<P>) -> (Self, Option<u32>) {
        let at = Index(page.load(RSP_PROD, Ordering::Acquire));
        // A frontend that began anew meanwhile has asked for less than was answered to it before.
        let asked = Index(page.load(REQ_PROD, Ordering::Acquire)).since(at);
        let count = Some(ledger.completed_since::<K>(at)).filter(|count| *count <= asked).unwrap_or(0);
        for ahead in 0..count {
            store_slot::<K, P>(&page, at.plus(ahead), ledger.answer::<K>(at.plus(ahead)));
        }
        let at = at.plus(count);
        page.store(RSP_PROD, at.0, Ordering::Release);
        let was_kept = ledger.page.load(LEDGER_MAGIC, Ordering::Relaxed) == IS_LEDGER;
        let marked = ledger.marked(at).filter(|_| was_kept);
        // The mark that is kept is not the next one to be overwritten.
        ledger.marks = usize::from(ledger.page.load(1, Ordering::Relaxed) == at.0);
        ledger.begin(at);
        let ledger = Some(ledger);
        (Self { page, req_cons: at, rsp_prod: at, rsp_published: at, ledger, kind: PhantomData }, marked)
    }

    /// Notes in the ledger what a later owner of the ring is to know once all that was answered is published.
    pub fn mark(&mut self, value: u32) {
        let to = self.rsp_prod;
        if let Some(ledger) = &mut self.ledger {
            ledger.mark(to, value);
        }
    }

    /// Returns how many requests are there to take.
    ///
    /// # Errors
    /// [`Overrun`] when the frontend claims more unanswered requests than the ring has slots
    /// (`RING_REQUEST_PROD_OVERFLOW`).
    pub fn available(&self) -> Result<u32, Overrun> {
        let published = Index(self.page.load(REQ_PROD, Ordering::Acquire));
        let unanswered = published.since(self.rsp_prod);
        if unanswered > K::SLOTS {
            return Err(Overrun { claimed: unanswered, possible: K::SLOTS });
        }
        let claimed = published.since(self.req_cons);
        // A producer that went backwards, behind what was taken already.
        if claimed > K::SLOTS {
            return Err(Overrun { claimed, possible: K::SLOTS });
        }
        Ok(claimed)
    }

    /// Returns a copy of the request `ahead` places after the next one, which the caller knows to be
    /// [`available`](Self::available), without taking it.
    pub fn peek<S: Slot>(&self, ahead: u32) -> S {
        S::from_words(load_slot::<K, P>(&self.page, self.req_cons.plus(ahead)))
    }

    /// Takes `n` requests that [`available`](Self::available) has counted.
    pub fn advance(&mut self, n: u32) {
        self.req_cons = self.req_cons.plus(n);
    }

    /// Returns the index of the next request to take.
    pub fn next_request(&self) -> Index {
        self.req_cons
    }

    /// Returns how many taken requests have no response yet.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.since(self.rsp_prod)
    }

    /// Writes the response to the oldest unanswered request, unpublished. Returns its index, or `None` when
    /// every taken request is answered.
    pub fn respond(&mut self, response: impl Slot) -> Option<Index> {
        if self.unanswered() == 0 {
            return None;
        }
        let at = self.rsp_prod;
        match &self.ledger {
            Some(ledger) => ledger.note_answer::<K>(at, response.to_words()),
            None => store_slot::<K, P>(&self.page, at, response.to_words()),
        }
        self.rsp_prod = at.plus(1);
        Some(at)
    }

    /// Publishes the responses. Returns whether the frontend must be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.rsp_published == self.rsp_prod {
            return false;
        }
        let old = self.rsp_published;
        if let Some(ledger) = &self.ledger {
            ledger.complete(self.rsp_prod);
            for ahead in 0..self.rsp_prod.since(old) {
                let at = old.plus(ahead);
                store_slot::<K, P>(&self.page, at, ledger.answer::<K>(at));
            }
        }
        self.rsp_published = self.rsp_prod;
        publish(&self.page, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Asks to be notified of the next request. Returns whether there is one already
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`): a caller that gets `true` must not sleep.
    #[must_use]
    pub fn rearm(&mut self) -> bool {
        self.rearm_after(1)
    }

    /// As [`rearm`](Self::rearm), for the `n`th request from now on (1 or more).
    #[must_use]
    pub fn rearm_after(&mut self, n: u32) -> bool {
        self.page.store(REQ_EVENT, self.req_cons.plus(n).0, Ordering::Relaxed);
        self.page.full_fence();
        let ready = Index(self.page.load(REQ_PROD, Ordering::Acquire)).since(self.req_cons);
        ready >= n
    }

    /// Returns whether the frontend asks to be notified of the very next response: it has taken all that is
    /// published and is asleep, or about to be. A frontend that is busy has its event index behind.
    pub fn frontend_waits(&self) -> bool {
        let wanted = Index(self.page.load(RSP_EVENT, Ordering::Relaxed));
        wanted.since(self.rsp_published) == 1
    }

    /// Returns the page, to be unmapped.
    pub fn into_page(self) -> P {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netif::{Rx, RxRequest, RxResponse, Tx, TxRequest, TxResponse};
    use core::cell::Cell;

    /// A page for one thread.
    struct Local([Cell<u32>; 1024]);

    impl SharedWords for &Local {
        fn load(&self, word: usize, _: Ordering) -> u32 {
            self.0[word].get()
        }
        fn store(&self, word: usize, value: u32, _: Ordering) {
            self.0[word].set(value);
        }
        fn full_fence(&self) {}
    }

    fn page() -> Local {
        Local([const { Cell::new(0) }; 1024])
    }

    #[test]
    fn both_halves_agree_across_the_wrap_of_the_index() {
        let page = page();
        let mut front = FrontRing::<Rx, _>::starting_at(&page, Index(u32::MAX - 300));
        let mut back = BackRing::<Rx, _>::attach(&page);
        for round in 0..700u32 {
            let request = RxRequest { id: round as u16, gref: round };
            let at = front.push(request).unwrap();
            assert!(front.publish(), "the backend armed the ring, so it is to be told");
            assert_eq!(back.available(), Ok(1));
            assert_eq!(back.peek::<RxRequest>(0), request);
            back.advance(1);
            assert!(!back.rearm());
            let response = RxResponse { id: request.id, offset: 0, flags: 0, status: 60 };
            assert_eq!(back.respond(response), Some(at));
            assert!(back.frontend_waits());
            assert!(back.publish());
            assert_eq!(front.available(), Ok(1));
            assert_eq!(front.peek::<RxResponse>(0), response);
            front.advance(1);
            assert!(!front.rearm());
        }
    }

    #[test]
    fn a_full_ring_takes_no_more_and_a_busy_peer_is_not_notified() {
        let page = page();
        let mut front = FrontRing::<Tx, _>::new(&page);
        for i in 0..RING_SLOTS {
            assert!(front.push(TxRequest { gref: i, ..TxRequest::default() }).is_some());
        }
        assert!(front.push(TxRequest::default()).is_none());
        assert!(front.publish());
        let mut back = BackRing::<Tx, _>::attach(&page);
        assert_eq!(back.available(), Ok(RING_SLOTS));
        back.advance(RING_SLOTS);
        assert!(back.respond(TxResponse::default()).is_some());
        assert!(back.publish(), "the first response was asked for");
        assert!(!back.frontend_waits(), "the frontend has not taken it yet");
        assert!(back.respond(TxResponse::default()).is_some());
        assert!(!back.publish(), "and the second was not");
        assert_eq!(front.available(), Ok(2));
        front.advance(2);
        assert!(!front.rearm());
        assert!(back.frontend_waits());
    }

    /// A page on which only so many stores happen: where a backend was killed.
    struct Mortal<'a>(&'a Local, &'a Cell<u32>);

    impl SharedWords for Mortal<'_> {
        fn load(&self, word: usize, _: Ordering) -> u32 {
            self.0.0[word].get()
        }
        fn store(&self, word: usize, value: u32, _: Ordering) {
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                self.0.0[word].set(value);
            }
        }
        fn full_fence(&self) {}
    }

    #[test]
    fn a_ring_is_taken_over_wherever_its_backend_was_killed() {
        let request = |n: u32| TxRequest { gref: 100 + n, offset: 0, flags: 0, id: n as u16, size: 60 };
        let response = |n: u32| TxResponse { id: n as u16, status: 0 };
        // Before and in the wrap of the index; the second batch is the one in which it dies.
        for start in [0, u32::MAX - 10] {
            for life in 0..100 {
                let (ring, kept, left) = (page(), page(), Cell::new(u32::MAX));
                let mut front = FrontRing::<Tx, _>::starting_at(&ring, Index(start));
                let ledger = Ledger::new(Mortal(&kept, &left));
                let mut back = BackRing::<Tx, _>::attach(Mortal(&ring, &left)).keeping(ledger);
                for batch in 0..2 {
                    for n in 0..8 {
                        front.push(request(8 * batch + n)).unwrap();
                    }
                    let _ = front.publish();
                    assert_eq!(back.available(), Ok(8));
                    back.advance(8);
                    left.set(if batch == 0 { u32::MAX } else { life });
                    for n in 0..8 {
                        back.respond(response(8 * batch + n)).unwrap();
                    }
                    back.mark(70 + batch);
                    let _ = back.publish();
                }
                left.set(u32::MAX);
                let ledger = Ledger::new(Mortal(&kept, &left));
                let (mut back, marked) = BackRing::<Tx, _>::resume(Mortal(&ring, &left), ledger);
                // Either all of the second batch was answered, or none of it, and then its requests are whole.
                let again = back.available().unwrap();
                assert!(again == 0 || again == 8, "{again} of a batch after {life} stores");
                assert_eq!(marked, Some(if again == 0 { 71 } else { 70 }), "after {life} stores");
                for n in 16 - again..16 {
                    assert_eq!(back.peek::<TxRequest>(0), request(n), "after {life} stores");
                    back.advance(1);
                    back.respond(response(n)).unwrap();
                }
                back.mark(71);
                let _ = back.publish();
                assert_eq!(front.available(), Ok(16));
                for n in 0..16 {
                    assert_eq!(front.peek::<TxResponse>(0), response(n), "after {life} stores");
                    front.advance(1);
                }
            }
        }
    }

    #[test]
    fn a_page_that_was_no_ledger_says_nothing() {
        let (ring, kept) = (page(), page());
        let mut front = FrontRing::<Tx, _>::starting_at(&ring, Index(u32::MAX - 99));
        front.push(TxRequest { gref: 9, ..TxRequest::default() }).unwrap();
        assert!(front.publish());
        let (back, marked) = BackRing::<Tx, _>::resume(&ring, Ledger::new(&kept));
        assert_eq!((back.available(), marked), (Ok(1), None));
        assert_eq!(back.peek::<TxRequest>(0).gref, 9);
    }

    #[test]
    fn lying_indices_are_overruns() {
        let page = page();
        let mut front = FrontRing::<Rx, _>::new(&page);
        front.push(RxRequest::default()).unwrap();
        let _ = front.publish();
        page.0[RSP_PROD].set(2);
        assert_eq!(front.available(), Err(Overrun { claimed: 2, possible: 1 }));
        page.0[RSP_PROD].set(u32::MAX);
        assert!(front.available().is_err(), "nor may it go backwards");
        page.0[RSP_PROD].set(0);
        let mut back = BackRing::<Rx, _>::attach(&page);
        page.0[REQ_PROD].set(257);
        assert_eq!(back.available(), Err(Overrun { claimed: 257, possible: 256 }));
        page.0[REQ_PROD].set(1);
        back.advance(back.available().unwrap());
        page.0[REQ_PROD].set(0);
        assert!(back.available().is_err(), "a taken request cannot be withdrawn");
    }

    #[test]
    fn responses_never_outrun_taken_requests() {
        let page = page();
        let mut front = FrontRing::<Rx, _>::new(&page);
        front.push(RxRequest::default()).unwrap();
        let _ = front.publish();
        let mut back = BackRing::<Rx, _>::attach(&page);
        assert!(back.respond(RxResponse::default()).is_none());
        back.advance(1);
        assert!(back.respond(RxResponse::default()).is_some());
        assert!(back.respond(RxResponse::default()).is_none());
    }
}
