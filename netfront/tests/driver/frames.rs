//! Reception of plain netif: chains, extra segments, checksums, and every way to get them wrong.

use drayage_netfront::RxDrops;
use drayage_wire::netif::{ExtraInfo, ExtraKind, RxResponse, rx_flags, status};

use crate::guest::Guest;
use crate::peer::{Peer, STOCK, datagram, frame};
use crate::states::connected;

const MORE: u16 = rx_flags::MORE_DATA;
const EXTRA: u16 = rx_flags::EXTRA_INFO;

fn gso(more: bool) -> ExtraInfo {
    ExtraInfo { kind: ExtraKind::Gso { size: 1448, gso_type: 1 }, more }
}

/// Asserts that nothing arrives, that it is counted as `dropped`, and that the vif works as before.
fn assert_dropped(guest: &mut Guest, peer: &mut Peer, expected: impl FnOnce(&mut RxDrops)) {
    let mut dropped = guest.counters(0).rx.dropped;
    expected(&mut dropped);
    peer.publish();
    assert_eq!(guest.receive(0), Vec::<Vec<u8>>::new());
    assert_eq!(guest.counters(0).rx.dropped, dropped);
    for n in 0..300 {
        peer.give(&frame(64, n), 0);
        assert_eq!(guest.receive(0), [frame(64, n)], "frame {n}");
    }
    assert!(guest.vif(0).is_up());
    guest.hv.assert_clean();
}

#[test]
fn frames_of_all_lengths_arrive_whole_at_every_ring_position() {
    let (mut guest, mut peer) = connected(STOCK);
    for n in 0..600 {
        let len = [14, 60, 1514, 4096, 4097, 9014, 40_000, 65_549][n as usize % 8];
        peer.give(&frame(len, n), 0);
        let got = guest.receive(0);
        assert!(got == [frame(len, n)], "frame {n} of {len} bytes");
    }
    let counters = guest.counters(0).rx;
    assert_eq!(counters.packets, 600);
    assert_eq!(counters.linearised, 1, "17 slots from slot 255 on are one more than the mirror has");
    assert_eq!(counters.dropped, RxDrops::default());
    assert_eq!(counters.revokes, counters.regrants, "each page once");
    guest.hv.assert_clean();
}

#[test]
fn frames_queue_up_to_the_whole_ring() {
    let (mut guest, mut peer) = connected(STOCK);
    for n in 0..256 {
        peer.give_chain(&frame(60, n), 0);
    }
    peer.publish();
    let all: Vec<_> = (0..256).map(|n| frame(60, n)).collect();
    assert!(guest.receive(0) == all);
    assert_eq!(peer.rings().rx.available(), Ok(256), "and every buffer is posted again");
}

#[test]
fn a_super_frame_with_extra_segments_arrives_whole() {
    let (mut guest, mut peer) = connected(STOCK);
    for n in 0..100 {
        let whole = frame(30_000, n);
        let (first, rest) = whole.split_at(4096);
        peer.give_slot(first, MORE | EXTRA);
        peer.respond_extra(gso(true));
        peer.respond_extra(ExtraInfo { kind: ExtraKind::Other(4), more: false });
        peer.give_chain(rest, 0);
        peer.publish();
        assert!(guest.receive(0) == [whole], "frame {n}");
    }
    assert_eq!(guest.counters(0).rx.linearised, 100);
    // A small one in one slot, and an offset.
    peer.give_slot(&frame(1514, 7), EXTRA);
    peer.respond_extra(gso(false));
    let buffer = peer.take_buffer();
    peer.fill(buffer, 2000, &frame(60, 8));
    peer.respond(RxResponse { id: buffer.id, offset: 2000, flags: 0, status: 60 });
    peer.publish();
    assert_eq!(guest.receive(0), [frame(1514, 7), frame(60, 8)]);
    guest.hv.assert_clean();
}

#[test]
fn pieces_that_do_not_fill_their_pages_are_put_together() {
    let (mut guest, mut peer) = connected(STOCK);
    let whole = frame(2000, 1);
    peer.give_slot(&whole[..100], MORE);
    peer.give_slot(&whole[100..101], MORE);
    peer.give_slot(&whole[101..], 0);
    peer.publish();
    assert_eq!(guest.receive(0), [whole]);
}

#[test]
fn a_chain_in_two_parts_is_waited_for() {
    let (mut guest, mut peer) = connected(STOCK);
    let whole = frame(5000, 1);
    peer.give_slot(&whole[..4096], MORE);
    peer.publish();
    assert!(guest.receive(0).is_empty());
    assert_eq!(guest.vif(0).rearm(), drayage_netfront::Readiness::Idle, "there is nothing to do but wait");
    assert!(!guest.is_woken(0));
    peer.give_slot(&whole[4096..], 0);
    assert!(peer.publish(), "the rest wakes the guest");
    assert!(guest.is_woken(0));
    assert_eq!(guest.receive(0), [whole]);
}

#[test]
fn checksums_are_verified_where_nobody_vouches_for_them() {
    let (mut guest, mut peer) = connected(STOCK);
    let good = datagram(b"hello");
    let mut bad = good.clone();
    bad[44] ^= 1;
    peer.give(&good, 0);
    assert_eq!(guest.receive(0).len(), 1);
    peer.give(&bad, rx_flags::DATA_VALIDATED);
    peer.give(&bad, rx_flags::CSUM_BLANK | rx_flags::DATA_VALIDATED);
    assert_eq!(guest.receive(0).len(), 2, "taken on the backend's word");
    assert_eq!(guest.counters(0).rx.udp_packets, 3);
    peer.give_chain(&bad, 0);
    assert_dropped(&mut guest, &mut peer, |d| d.bad_checksum += 1);
}

#[test]
fn lies_in_one_slot_cost_one_frame() {
    let (mut guest, mut peer) = connected(STOCK);
    let mut lie = |change: fn(RxResponse) -> RxResponse, expected: fn(&mut RxDrops)| {
        let buffer = peer.take_buffer();
        peer.fill(buffer, 0, &frame(60, 0));
        peer.respond(change(RxResponse { id: buffer.id, offset: 0, flags: 0, status: 60 }));
        assert_dropped(&mut guest, &mut peer, expected);
    };
    lie(|r| RxResponse { id: r.id ^ 1, ..r }, |d| d.bad_id += 1);
    lie(|r| RxResponse { id: r.id | 0x8000, ..r }, |d| d.bad_id += 1);
    lie(|r| RxResponse { status: status::ERROR, ..r }, |d| d.backend_error += 1);
    lie(|r| RxResponse { status: i16::MIN, ..r }, |d| d.backend_error += 1);
    lie(|r| RxResponse { status: status::DROPPED, ..r }, |d| d.empty_slots += 1);
    lie(|r| RxResponse { status: status::NULL, ..r }, |d| d.runt += 1);
    lie(|r| RxResponse { status: 0, ..r }, |d| d.bad_length += 1);
    lie(|r| RxResponse { status: 13, ..r }, |d| d.runt += 1);
    lie(|r| RxResponse { status: 4097, ..r }, |d| d.bad_length += 1);
    lie(|r| RxResponse { offset: 4037, ..r }, |d| d.bad_length += 1);
    lie(|r| RxResponse { offset: u16::MAX, status: i16::MAX, ..r }, |d| d.bad_length += 1);
}

#[test]
fn lies_in_a_chain_cost_the_chain() {
    let (mut guest, mut peer) = connected(STOCK);
    // A bad slot in the middle.
    peer.give_slot(&frame(4096, 0), MORE);
    let buffer = peer.take_buffer();
    peer.respond(RxResponse { id: buffer.id, offset: 0, flags: MORE, status: status::ERROR });
    peer.give_slot(&frame(60, 0), 0);
    assert_dropped(&mut guest, &mut peer, |d| d.backend_error += 1);
    // Extra segments announced by a later slot.
    peer.give_slot(&frame(4096, 0), MORE);
    peer.give_slot(&frame(60, 0), EXTRA);
    assert_dropped(&mut guest, &mut peer, |d| d.bad_extra += 1);
    // Too many slots.
    for _ in 0..40 {
        peer.give_slot(&frame(100, 0), MORE);
    }
    peer.give_slot(&frame(100, 0), 0);
    assert_dropped(&mut guest, &mut peer, |d| d.too_long += 1);
    // Too many extra segments.
    peer.give_slot(&frame(100, 0), EXTRA);
    for _ in 0..50 {
        peer.respond_extra(gso(true));
    }
    peer.respond_extra(gso(false));
    assert_dropped(&mut guest, &mut peer, |d| d.too_long += 1);
}

#[test]
fn a_chain_without_end_holds_no_buffers() {
    let (mut guest, mut peer) = connected(STOCK);
    for _ in 0..20 {
        for _ in 0..200 {
            peer.give_slot(&frame(100, 0), MORE);
        }
        peer.publish();
        assert!(guest.receive(0).is_empty());
        assert!(peer.rings().rx.available().unwrap() >= 200, "the buffers come back while it goes on");
    }
    peer.give_slot(&frame(100, 0), 0);
    assert_dropped(&mut guest, &mut peer, |d| d.too_long += 1);
}

#[test]
fn a_revoked_page_is_out_of_the_backends_reach_and_comes_back_poisoned() {
    let (mut guest, mut peer) = connected(STOCK);
    let buffer = peer.take_buffer();
    peer.fill(buffer, 0, &frame(60, 1));
    peer.respond(RxResponse { id: buffer.id, offset: 0, flags: 0, status: 60 });
    peer.publish();
    let hv = guest.hv.clone();
    {
        use smoltcp::phy::{Device, RxToken};
        let vif = guest.vif(0);
        let (rx, _) = vif.receive(smoltcp::time::Instant::ZERO).unwrap();
        assert_ne!(peer.fill(buffer, 0, &frame(60, 2)), memxen::grants::status::OKAY, "while it is lent");
        rx.consume(|bytes| assert_eq!(bytes, frame(60, 1)));
    }
    assert_eq!(hv.operations(crate::peer::BACKEND).copies_refused, 1);
    guest.receive(0);
    assert_eq!(peer.fill(buffer, 0, &frame(60, 2)), memxen::grants::status::OKAY, "once it is posted again");
    hv.assert_clean();
}
