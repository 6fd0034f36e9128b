//! Containers in both directions.

use drayage_netfront::{Options, Readiness};
use drayage_wire::container::{Checksum, Meta};
use drayage_wire::netif::{ExtraInfo, ExtraKind, RxResponse, rx_flags, status};
use memxen::Hypervisor;

use crate::guest::{GUEST, Guest};
use crate::peer::{BACKEND, CONTAINERS, Peer, datagram, frame, pack, unpack};
use crate::states::{connected, connected_as, connected_on};

fn frames(count: u32, len: usize) -> Vec<(Vec<u8>, Meta)> {
    (0..count).map(|n| (frame(len, n), Meta::default())).collect()
}

fn bare(packets: &[(Vec<u8>, Meta)]) -> Vec<Vec<u8>> {
    packets.iter().map(|(p, _)| p.clone()).collect()
}

/// Gives slots back empty until the next one is `slot`.
fn advance_to(guest: &mut Guest, peer: &mut Peer, slot: usize) {
    while peer.next_slot() != slot {
        peer.skip(1);
        guest.receive(0);
    }
}

#[test]
fn a_container_is_taken_apart_in_place_with_one_revoke_for_each_page() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    let packets = frames(500, 100);
    let container = pack(&packets, 0);
    assert_eq!(container.len().div_ceil(4096), 14);
    peer.give(&container, 0);
    assert!(guest.receive(0) == bare(&packets));
    let rx = guest.counters(0).rx;
    assert_eq!((rx.containers, rx.packets, rx.revokes, rx.slots), (1, 500, 14, 14));
    assert_eq!((rx.container_packets, rx.container_sizes[8], rx.hold_ns), (500, 1, 1000));
    assert_eq!(rx.regrants, 14);
    assert_eq!(peer.rings().rx.available(), Ok(256), "all pages are posted again");
    guest.hv.assert_clean();
}

#[test]
fn chains_start_anywhere_and_cross_the_rings_end() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    let mut sequence = 0;
    for start in (240..256).chain(0..3) {
        for (count, len) in [(1, 60), (60, 60), (150, 60), (40, 1514), (42, 1514), (1, 65_510)] {
            advance_to(&mut guest, &mut peer, start);
            let packets = frames(count, len);
            peer.give(&pack(&packets, sequence), 0);
            sequence += 1;
            assert!(guest.receive(0) == bare(&packets), "{count} of {len} from slot {start}");
        }
    }
    let rx = guest.counters(0).rx;
    assert_eq!((rx.sequence_gaps, rx.dropped.total()), (0, 0));
    guest.hv.assert_clean();
}

#[test]
fn without_a_mirror_a_chain_may_end_at_the_rings_end_and_not_cross_it() {
    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    hv.forbid_mirroring(GUEST);
    let (mut guest, mut peer) = connected_on(&hv, Options::default(), CONTAINERS);
    advance_to(&mut guest, &mut peer, 254);
    let packets = frames(5, 1514);
    peer.give(&pack(&packets, 0), 0);
    assert!(guest.receive(0) == bare(&packets), "254 and 255");
    advance_to(&mut guest, &mut peer, 255);
    peer.give(&pack(&packets, 1), 0);
    assert!(guest.receive(0).is_empty());
    assert_eq!(guest.counters(0).rx.dropped.bad_wrap, 1);
    let packets = frames(10, 60);
    peer.give(&pack(&packets, 2), 0);
    assert!(guest.receive(0) == bare(&packets));
    assert_eq!(guest.counters(0).rx.sequence_gaps, 1, "the one that was dropped");
    hv.assert_clean();
}

#[test]
fn one_with_more_slots_than_agreed_is_dropped() {
    let options = Options { rx_container_max_bytes: 8192, ..Options::default() };
    let (mut guest, mut peer) = connected_as(options, CONTAINERS);
    assert_eq!(peer.read("rx-container-max-bytes").as_deref(), Some("8192"));
    peer.give(&pack(&frames(5, 1514), 0), 0);
    assert_eq!(guest.receive(0).len(), 5);
    peer.give(&pack(&frames(6, 1514), 0), 0);
    assert!(guest.receive(0).is_empty());
    assert_eq!(guest.counters(0).rx.dropped.too_long, 1);
}

#[test]
fn each_broken_container_is_dropped_whole_and_the_next_is_read() {
    type Break = fn(&mut Vec<u8>);
    let breaks: [(Break, &str); 9] = [
        (|c| c[0] = 2, "version"),
        (|c| c[1] = 1, "version"),
        (|c| c[2..4].fill(0), "count"),
        (|c| c[3] = 0xff, "count"),
        (|c| c[4] ^= 1, "total"),
        (|c| c.truncate(15), "truncated"),
        (|c| c[16] = 18, "offset"),
        (|c| c[18] = 13, "length"),
        (|c| c[20] = 1, "flags"),
    ];
    let (mut guest, mut peer) = connected(CONTAINERS);
    for (n, (spoil, reason)) in breaks.into_iter().enumerate() {
        let packets = frames(30, 60);
        let mut container = pack(&packets, 0);
        spoil(&mut container);
        peer.give(&container, 0);
        assert!(guest.receive(0).is_empty(), "{reason}");
        peer.give(&pack(&packets, 0), 0);
        assert_eq!(guest.receive(0).len(), 30, "the next is read");
        let rejects = guest.counters(0).rx.dropped.containers;
        assert_eq!(rejects.total(), n as u64 + 1);
        let counts = format!("{rejects:?}");
        assert!(!counts.contains(&format!("{reason}: 0")), "{reason} in {counts}");
    }
    guest.hv.assert_clean();
}

#[test]
fn chains_that_break_the_rule_are_dropped() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    let container = pack(&frames(100, 60), 0);
    // A page that is not filled.
    peer.give_slot(&container[..4095], rx_flags::MORE_DATA);
    peer.give_slot(&container[4095..], 0);
    // An offset.
    let buffer = peer.take_buffer();
    peer.respond(RxResponse { id: buffer.id, offset: 1, flags: 0, status: 100 });
    // An extra segment.
    peer.give_slot(&container[..100], rx_flags::EXTRA_INFO);
    peer.respond_extra(ExtraInfo { kind: ExtraKind::Other(5), more: false });
    // An empty slot inside of a chain.
    peer.give_slot(&container[..4096], rx_flags::MORE_DATA);
    let buffer = peer.take_buffer();
    peer.respond(RxResponse { id: buffer.id, offset: 0, flags: 0, status: status::DROPPED });
    peer.publish();
    assert!(guest.receive(0).is_empty());
    let dropped = guest.counters(0).rx.dropped;
    assert_eq!((dropped.bad_length, dropped.bad_extra, dropped.backend_error), (2, 1, 1));
    peer.give(&container, 0);
    assert_eq!(guest.receive(0).len(), 100);
    guest.hv.assert_clean();
}

#[test]
fn what_the_backend_writes_after_its_response_is_not_seen() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    let container = pack(&frames(3, 60), 0);
    let buffer = peer.take_buffer();
    peer.fill(buffer, 0, &container);
    peer.respond(RxResponse { id: buffer.id, offset: 0, flags: 0, status: container.len() as i16 });
    peer.publish();
    use smoltcp::phy::{Device, RxToken};
    let vif = guest.vif(0);
    let (rx, _) = vif.receive(smoltcp::time::Instant::ZERO).unwrap();
    rx.consume(|bytes| assert_eq!(bytes, frame(60, 0)));
    // The page is revoked since the first packet, although two are still to come.
    assert_ne!(peer.fill(buffer, 0, &[0xff; 100]), memxen::grants::status::OKAY);
    let rest = guest.receive(0);
    assert_eq!(rest, [frame(60, 1), frame(60, 2)]);
}

#[test]
fn packets_carry_their_own_checksum_state() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    let good = datagram(b"one");
    let mut bad = good.clone();
    bad[42] ^= 1;
    let with = |packet: &Vec<u8>, checksum| (packet.clone(), Meta { checksum, gso: None });
    let packets = [
        with(&good, Checksum::Unverified),
        with(&bad, Checksum::Unverified),
        with(&bad, Checksum::Valid),
        with(&bad, Checksum::Blank),
    ];
    peer.give(&pack(&packets, 0), 0);
    assert_eq!(guest.receive(0), [good, bad.clone(), bad]);
    let rx = guest.counters(0).rx;
    assert_eq!((rx.dropped.bad_checksum, rx.packets, rx.container_packets), (1, 3, 4));
}

#[test]
fn a_batch_may_end_inside_a_container() {
    use smoltcp::phy::{Device, RxToken};
    let (mut guest, mut peer) = connected(CONTAINERS);
    let packets = frames(10, 60);
    peer.give(&pack(&packets, 0), 0);
    let vif = guest.vif(0);
    for expected in &bare(&packets)[..4] {
        let (rx, _) = vif.receive(smoltcp::time::Instant::ZERO).unwrap();
        rx.consume(|bytes| assert_eq!(bytes, &expected[..]));
    }
    vif.flush();
    assert!(vif.has_work());
    assert_eq!(vif.rearm(), Readiness::Busy, "six packets are left");
    assert_eq!(guest.receive(0), bare(&packets)[4..]);
    assert_eq!(guest.vif(0).rearm(), Readiness::Idle);
}

#[test]
fn what_one_round_sends_goes_out_in_one_container() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    for round in 0..50u32 {
        for n in 0..40 {
            assert!(guest.send(0, &frame(60 + n as usize, n)));
        }
        guest.vif(0).flush();
        let sent = peer.take_sent(status::OKAY);
        if round >= 3 {
            assert_eq!(sent.len(), 1, "round {round}: the table has grown to what is needed");
        }
        let packets: Vec<_> = sent.iter().flat_map(|s| unpack(&s.bytes)).map(|(p, _)| p).collect();
        let expected: Vec<_> = (0..40).map(|n| frame(60 + n as usize, n)).collect();
        assert!(packets == expected, "round {round}");
    }
    guest.vif(0).flush();
    let tx = guest.counters(0).tx;
    assert_eq!((tx.packets, tx.errors, tx.bad_responses, tx.dropped_full), (2000, 0, 0, 0));
    guest.hv.assert_clean();
}

#[test]
fn a_lone_packet_costs_one_slot_and_full_containers_are_full() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    guest.send(0, &frame(60, 1));
    guest.vif(0).flush();
    let sent = peer.take_sent(status::OKAY);
    assert_eq!((sent.len(), sent[0].slots), (1, 1));
    assert!(sent[0].bytes.len() < 200);
    // Some rounds of large frames, then see that containers are used to their end.
    for _ in 0..12 {
        for n in 0..86 {
            assert!(guest.send(0, &frame(1514, n)));
        }
        guest.vif(0).flush();
        peer.take_sent(status::OKAY);
    }
    for n in 0..86 {
        assert!(guest.send(0, &frame(1514, n)));
    }
    guest.vif(0).flush();
    let sent = peer.take_sent(status::OKAY);
    assert!(sent.len() <= 3 && sent[0].bytes.len() > 62_000, "{} of {}", sent.len(), sent[0].bytes.len());
    guest.hv.assert_clean();
}

#[test]
fn small_limits_and_a_missing_mirror_are_respected() {
    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    hv.forbid_mirroring(GUEST);
    hv.create_domain(BACKEND);
    for limit in ["4096", "8192", "5000"] {
        let mut features = CONTAINERS.to_vec();
        features.push(("tx-container-max-bytes", limit));
        let mut guest = Guest::on(&hv, Options::default());
        let mut peer = Peer::plug(&hv, 0);
        peer.offer(&features);
        guest.pump();
        peer.connect();
        guest.pump();
        for n in 0..700 {
            assert!(guest.send(0, &frame(1000, n)), "frame {n}");
            if n % 10 == 9 {
                guest.vif(0).flush();
                let sent = peer.take_sent(status::OKAY);
                assert!(sent.iter().all(|s| s.bytes.len() <= limit.parse().unwrap()));
                let packets: Vec<_> = sent.iter().flat_map(|s| unpack(&s.bytes)).map(|(p, _)| p).collect();
                assert!(packets == (n - 9..=n).map(|n| frame(1000, n)).collect::<Vec<_>>());
                guest.vif(0).flush();
            }
        }
        peer.let_go();
        peer.unplug();
        guest.pump();
        guest.assert_nothing_left();
    }
}
