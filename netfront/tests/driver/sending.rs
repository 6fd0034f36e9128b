//! Sending of plain netif, the notify protocol, and backends that answer wrongly, late or never.

use drayage_netfront::Readiness;
use drayage_wire::checksum::{Verdict, verify};
use drayage_wire::keys;
use drayage_wire::netif::{TxResponse, status, tx_flags};
use smoltcp::phy::{Device, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::peer::{STOCK, datagram, frame};
use crate::states::connected;

#[test]
fn frames_arrive_whole_and_each_round_notifies_once() {
    let (mut guest, mut peer) = connected(STOCK);
    peer.take_notified();
    let mut n = 0;
    for round in 0..100 {
        for _ in 0..round % 7 + 1 {
            assert!(guest.send(0, &frame(60 + n as usize % 1400, n)));
            n += 1;
        }
        let before = guest.hv.operations(crate::guest::GUEST).notifies;
        guest.vif(0).flush();
        assert!(guest.hv.operations(crate::guest::GUEST).notifies <= before + 1);
        assert!(peer.take_notified(), "the backend was asleep");
        let sent = peer.take_sent(status::OKAY);
        let first = n - sent.len() as u32;
        for (i, chain) in sent.iter().enumerate() {
            let which = first + i as u32;
            assert_eq!(chain.bytes, frame(60 + which as usize % 1400, which));
        }
        assert_eq!(sent.len(), round % 7 + 1);
    }
    guest.hv.assert_clean();
}

#[test]
fn checksums_stay_blank_only_where_the_backend_takes_that() {
    let mut blanked = datagram(b"hello");
    blanked[40..42].fill(0);
    let (mut guest, mut peer) = connected(STOCK);
    guest.send(0, &blanked);
    guest.vif(0).flush();
    let sent = peer.take_sent(status::OKAY);
    assert_eq!(sent[0].flags, tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED);
    // Pseudo-header: 0a00 + 0001 + 0a00 + 0002 + 0011 + 000d.
    assert_eq!(sent[0].bytes[40..42], [0x14, 0x21]);
    assert_eq!(guest.counters(0).tx.blank_checksums, 1);

    let mut features = STOCK.to_vec();
    features.push((keys::FEATURE_NO_CSUM_OFFLOAD, "1"));
    let (mut guest, mut peer) = connected(&features);
    guest.send(0, &blanked);
    guest.vif(0).flush();
    let sent = peer.take_sent(status::OKAY);
    assert_eq!(sent[0].flags & tx_flags::CSUM_BLANK, 0);
    assert_eq!(verify(&sent[0].bytes), Verdict::Good);
    assert_eq!(sent[0].bytes, datagram(b"hello"));
}

#[test]
fn large_frames_go_in_chains_over_the_rings_end() {
    let hv = memxen::Hypervisor::new();
    hv.create_domain(crate::guest::GUEST);
    hv.create_domain(crate::peer::BACKEND);
    let mut guest = crate::guest::Guest::on(&hv, drayage_netfront::Options::default());
    let mut peer = crate::peer::Peer::plug(&hv, 0);
    peer.write_front(keys::MTU, "9000");
    peer.offer(STOCK);
    guest.pump();
    peer.connect();
    guest.pump();
    assert_eq!(guest.vif(0).capabilities().max_transmission_unit, 9014);
    for n in 0..300 {
        assert!(guest.send(0, &frame(9014, n)));
        guest.vif(0).flush();
        let sent = peer.take_sent(status::OKAY);
        assert!(sent.len() == 1 && sent[0].slots == 3 && sent[0].bytes == frame(9014, n), "frame {n}");
        guest.vif(0).flush();
    }
    hv.assert_clean();
}

#[test]
fn a_full_ring_refuses_the_stack_keeps_replies_and_never_stops_reception() {
    let (mut guest, mut peer) = connected(STOCK);
    let mut sent = 0;
    while guest.send(0, &frame(60, sent)) {
        sent += 1;
    }
    // 16 pages and an extra segment: the stack might send a super-frame.
    assert_eq!(sent, 256 - 32 - 17 + 1, "some slots are kept for replies");
    guest.vif(0).flush();
    assert_eq!(guest.vif(0).rearm(), Readiness::SendBlocked);
    for n in 0..50 {
        peer.give(&frame(60, n), 0);
        let vif = guest.vif(0);
        let (rx, tx) = vif.receive(Instant::ZERO).expect("reception goes on");
        rx.consume(|bytes| {
            tx.consume(bytes.len(), |reply| reply.copy_from_slice(bytes));
        });
        vif.flush();
    }
    let tx = guest.counters(0).tx;
    assert_eq!((tx.packets, tx.dropped_full, tx.refused), (256, 50 - 48, 1));
    assert_eq!(guest.vif(0).rearm(), Readiness::SendBlocked);
    assert!(!guest.is_woken(0));
    assert_eq!(peer.take_sent(status::OKAY).len(), 256);
    assert!(guest.is_woken(0), "there is room: the stack is to be told");
    assert_eq!(guest.vif(0).rearm(), Readiness::Busy);
    assert!(guest.send(0, &frame(60, 0)));
    assert_eq!(guest.vif(0).rearm(), Readiness::Idle);
    guest.hv.assert_clean();
}

#[test]
fn answers_out_of_order_never_free_a_page_that_is_in_flight() {
    let (mut guest, mut peer) = connected(STOCK);
    let (mut next, mut held) = (0u32, None);
    for _ in 0..40 {
        for _ in 0..20 {
            if guest.send(0, &frame(60, next)) {
                next += 1;
            }
        }
        guest.vif(0).flush();
        let (requests, chains) = peer.take_requests();
        drop(chains);
        for request in requests.into_iter().rev() {
            // The first of all is answered by nobody for a long time.
            if held.is_none() && request.id == 0 {
                held = Some(request);
            } else {
                peer.rings().tx.respond(TxResponse { id: request.id, status: status::OKAY }).unwrap();
            }
        }
        let _ = peer.rings().tx.publish();
    }
    // A super-frame's 16 pages are one range.
    assert_eq!(next, 256 - 15, "slot 0 comes round again, and its page is still in flight");
    let id = held.unwrap().id;
    peer.rings().tx.respond(TxResponse { id, status: status::OKAY }).unwrap();
    let _ = peer.rings().tx.publish();
    assert_eq!(guest.vif(0).rearm(), Readiness::Busy);
    assert!(guest.send(0, &frame(60, next)));
    assert_eq!(guest.counters(0).tx.bad_responses, 0);
    guest.hv.assert_clean();
}

#[test]
fn before_the_end_everything_sent_is_waited_for() {
    let (mut guest, mut peer) = connected(STOCK);
    assert!(guest.vif(0).drain(), "nothing was sent");
    for n in 0..10 {
        guest.send(0, &frame(60, n));
    }
    assert!(!guest.vif(0).drain());
    assert!(peer.take_notified(), "what was left is handed over");
    let (requests, _) = peer.take_requests();
    for (n, request) in requests.iter().enumerate() {
        assert!(!guest.vif(0).drain());
        assert!(!guest.is_woken(0), "the event comes with the last answer, not before");
        peer.rings().tx.respond(TxResponse { id: request.id, status: status::OKAY }).unwrap();
        assert_eq!(peer.publish_sent(), n + 1 == requests.len());
    }
    assert!(guest.is_woken(0));
    assert!(guest.vif(0).drain());
    guest.hv.assert_clean();
}

#[test]
fn wrong_answers_are_counted_and_believed_in_nothing() {
    let (mut guest, mut peer) = connected(STOCK);
    for n in 0..4 {
        guest.send(0, &frame(60, n));
    }
    guest.vif(0).flush();
    let (requests, _) = peer.take_requests();
    let first = requests[0].id;
    for (id, status) in [(first, status::ERROR), (first, 0), (0xffff, 0), (200, status::DROPPED)] {
        peer.rings().tx.respond(TxResponse { id, status }).unwrap();
    }
    let _ = peer.rings().tx.publish();
    guest.vif(0).flush();
    let tx = guest.counters(0).tx;
    assert_eq!((tx.errors, tx.bad_responses), (2, 3));
    assert!(guest.vif(0).is_up());
    guest.hv.assert_clean();
}

#[test]
fn a_busy_guest_asks_for_no_events_and_a_sleeping_one_for_the_next() {
    let (mut guest, mut peer) = connected(STOCK);
    assert_eq!(guest.vif(0).rearm(), Readiness::Idle);
    assert!(peer.rings().rx.frontend_waits());
    peer.give_chain(&frame(60, 1), 0);
    assert!(peer.publish(), "it asked for this one");
    assert!(guest.is_woken(0));
    assert_eq!(guest.receive(0).len(), 1);
    for n in 0..100 {
        peer.give_chain(&frame(60, n), 0);
        assert!(!peer.publish(), "it is busy, and finds the packet by itself");
        assert!(!peer.rings().rx.frontend_waits());
        assert_eq!(guest.receive(0).len(), 1);
    }
    peer.give_chain(&frame(60, 1), 0);
    peer.publish();
    assert_eq!(guest.vif(0).rearm(), Readiness::Busy, "it must not sleep on this one");
    assert_eq!(guest.receive(0).len(), 1);
    assert_eq!(guest.vif(0).rearm(), Readiness::Idle);
    assert!(!guest.is_woken(0), "pending bits are cleared before the last look");
}

#[test]
fn buffers_are_announced_only_to_a_backend_that_waits_for_them() {
    let (mut guest, mut peer) = connected(STOCK);
    peer.take_notified();
    for n in 0..64 {
        peer.give(&frame(60, n), 0);
        guest.receive(0);
    }
    assert_eq!(guest.counters(0).rx.notifications, 0);
    for n in 0..256 {
        peer.give_chain(&frame(60, n), 0);
    }
    assert!(!peer.rings().rx.rearm(), "no buffer is left");
    peer.publish();
    guest.receive(0);
    assert!(peer.take_notified());
    assert_eq!(guest.counters(0).rx.notifications, 1);
}
