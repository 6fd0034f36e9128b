//! Backends that break the connection itself: it costs them the vif, and nobody else anything.

use drayage_netfront::{Broken, Event, Problem};
use drayage_wire::keys::State;
use drayage_wire::netif::{RxResponse, TxResponse};
use drayage_wire::ring::BackRing;
use memxen::Faults;

use crate::guest::{GUEST, Guest};
use crate::peer::{CONTAINERS, Peer, STOCK, frame, pack};
use crate::states::connected;

/// Asserts that vif 0 is closed for `broken`, that vif 1 works, and that everything comes back.
fn assert_closed(mut guest: Guest, mut peer: Peer, mut other: Peer, is_expected: fn(Broken) -> bool) {
    assert!(guest.receive(0).is_empty());
    guest.vif(0).flush();
    let events = guest.events(0);
    assert!(
        matches!(events[..], [Event::Down, Event::Failed(Problem::Broken(broken))] if is_expected(broken)),
        "{events:?}"
    );
    assert!(!guest.vif(0).is_up());
    assert_eq!(peer.front_state(), State::Closing);
    other.give(&frame(60, 1), 0);
    assert_eq!(guest.receive(1), [frame(60, 1)], "the other vif goes on");
    peer.let_go();
    peer.set_state(State::Closing);
    guest.pump();
    assert_eq!(peer.front_state(), State::Closed);
    peer.set_state(State::Closed);
    guest.pump();
    assert_eq!(peer.front_state(), State::Closed, "it does not come back by itself, though online is 1");
    other.let_go();
    other.unplug();
    peer.unplug();
    guest.let_reclaim();
    guest.assert_nothing_left();
}

fn two_vifs(features: &[(&str, &str)]) -> (Guest, Peer, Peer) {
    let (mut guest, peer) = connected(features);
    let mut other = Peer::plug(&guest.hv, 1);
    other.offer(STOCK);
    guest.pump();
    other.connect();
    guest.pump();
    guest.changes.clear();
    (guest, peer, other)
}

#[test]
fn more_responses_than_requests() {
    let (guest, mut peer, other) = two_vifs(STOCK);
    // A ring half that believes in 300 requests, over the same page.
    let rings = peer.rings();
    rings.rx.advance(300);
    for _ in 0..300 {
        rings.rx.respond(RxResponse { id: 0, offset: 0, flags: 0, status: 60 }).unwrap();
    }
    let _ = rings.rx.publish();
    assert_closed(guest, peer, other, |b| matches!(b, Broken::Overrun(o) if o.claimed == 300));
}

#[test]
fn answers_to_what_was_not_sent() {
    let (mut guest, mut peer, other) = two_vifs(STOCK);
    guest.send(0, &frame(60, 1));
    guest.vif(0).flush();
    let rings = peer.rings();
    rings.tx.advance(2);
    for _ in 0..2 {
        rings.tx.respond(TxResponse::default()).unwrap();
    }
    let _ = rings.tx.publish();
    guest.vif(0).rearm();
    assert_closed(guest, peer, other, |b| matches!(b, Broken::Overrun(o) if o.possible == 1));
}

#[test]
fn responses_that_are_withdrawn() {
    let (mut guest, mut peer, other) = two_vifs(STOCK);
    peer.give(&frame(60, 1), 0);
    assert_eq!(guest.receive(0).len(), 1);
    // A second half over the same page starts at the published responses, and then lies about them.
    let rings = peer.rings();
    let page = std::mem::replace(&mut rings.rx, BackRing::attach(dummy())).into_page();
    use drayage_wire::ring::SharedWords;
    page.store(2, 0, std::sync::atomic::Ordering::Release);
    rings.rx = BackRing::attach(page);
    assert_closed(guest, peer, other, |b| matches!(b, Broken::Overrun(_)));
}

/// Returns a page of nobody's, to be put where a ring was.
fn dummy() -> drayage_shared::SharedPage {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let page = Box::leak(Box::new(Page([0; 4096])));
    // SAFETY: the page is leaked, and nothing else refers to it.
    unsafe { drayage_shared::SharedPage::new(std::ptr::NonNull::from(&mut page.0).cast()) }
}

#[test]
fn a_page_that_is_still_in_use_when_it_is_answered() {
    for features in [STOCK, CONTAINERS] {
        let (guest, mut peer, other) = two_vifs(features);
        let bytes =
            if features == STOCK { frame(5000, 1) } else { pack(&[(frame(5000, 1), Default::default())], 0) };
        peer.give(&bytes, 0);
        guest.hv.set_faults(GUEST, Faults { fail_revokes: 1, ..Faults::default() });
        assert_closed(guest, peer, other, |b| b == Broken::PageInUse);
    }
}

#[test]
fn rubbish_in_every_slot_for_ever_costs_a_bounded_amount_of_work() {
    use smoltcp::phy::Device;
    let (mut guest, mut peer) = connected(STOCK);
    for _ in 0..100 {
        for _ in 0..128 {
            let buffer = peer.take_buffer();
            peer.respond(RxResponse { id: buffer.id, offset: 9, flags: 0xffff, status: -9 });
            peer.respond_extra(drayage_wire::netif::ExtraInfo {
                kind: drayage_wire::netif::ExtraKind::Other(255),
                more: false,
            });
        }
        peer.publish();
        let before = guest.counters(0).rx.slots;
        assert!(guest.vif(0).receive(smoltcp::time::Instant::ZERO).is_none());
        assert!(guest.counters(0).rx.slots - before <= 1024);
        guest.vif(0).flush();
    }
    assert!(guest.vif(0).is_up());
    guest.hv.assert_clean();
}

/// A generator of rubbish that is the same in every run (xorshift64*).
struct Rubbish(u64);

impl Rubbish {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Returns mostly plausible responses, so that much of the driver is reached.
    fn response(&mut self, id: u16) -> RxResponse {
        let flags = [0, 0, 4, 4, 8, 12, self.next() as u16][self.below(7) as usize];
        let status = [60, 1514, 4096, 4096, 0, -1, 13, self.next() as i16][self.below(8) as usize];
        let offset = if self.below(8) == 0 { self.next() as u16 } else { 0 };
        let id = if self.below(16) == 0 { self.next() as u16 } else { id };
        RxResponse { id, offset, flags, status }
    }
}

#[test]
fn whatever_a_backend_says_the_vif_survives_and_accounts_for_it() {
    for features in [STOCK, CONTAINERS] {
        let (mut guest, mut peer) = connected(features);
        let mut rubbish = Rubbish(0x9e37_79b9_7f4a_7c15);
        for _ in 0..3000 {
            for _ in 0..rubbish.below(40) {
                let buffer = peer.take_buffer();
                let mut container =
                    pack(&[(frame(60, 1), Default::default()), (frame(1514, 2), Default::default())], 0);
                if rubbish.below(2) == 0 {
                    let at = rubbish.below(40) as usize;
                    container[at] = rubbish.next() as u8;
                }
                peer.fill(buffer, 0, &container);
                let mut response = rubbish.response(buffer.id);
                if rubbish.below(3) == 0 {
                    response =
                        RxResponse { id: buffer.id, offset: 0, flags: 0, status: container.len() as i16 };
                }
                peer.respond(response);
            }
            peer.publish();
            for received in guest.receive(0) {
                assert!(received.len() >= 14);
            }
            assert!(guest.vif(0).is_up());
        }
        // An end to whatever chain is open, extra segments included.
        for _ in 0..3 {
            let buffer = peer.take_buffer();
            peer.respond(RxResponse { id: buffer.id, offset: 0, flags: 0, status: 0 });
        }
        peer.publish();
        guest.receive(0);
        let last =
            if features == STOCK { frame(60, 9) } else { pack(&[(frame(60, 9), Default::default())], 0) };
        peer.give(&last, 0);
        assert_eq!(guest.receive(0), [frame(60, 9)]);
        assert_eq!(peer.rings().rx.available(), Ok(256), "no buffer was lost");
        let rx = guest.counters(0).rx;
        assert!(rx.packets > 1000 && rx.dropped.total() > 1000, "{rx:?}");
        assert_eq!(rx.revokes, rx.regrants);
        guest.hv.assert_clean();
    }
}
