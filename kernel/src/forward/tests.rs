//! A router that is shown frames, byte by byte.

use alloc::vec::Vec;

use super::outbox::RESERVED;
use super::*;
use drayage_wire::checksum::sum;

const MAC: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 1, 1]];
const HOST: Mac = [2, 0, 0, 0, 0, 9];
const FAR: Mac = [2, 0, 0, 0, 1, 9];
const SECOND: u64 = 1_000_000_000;

/// A router between 10.0.0.0/24 and 10.0.1.0/24, and fd00::/64 and fd01::/64; it is .1 and ::1 on each.
fn router() -> Router {
    let mut router = Router::new();
    configure(&mut router, &[]);
    for side in [0, 1] {
        router.set_carrier(side, Carrier::Up);
    }
    router
}

fn configure(router: &mut Router, gateways_of_1: &[&str]) {
    for (side, addresses) in
        [["fe80::1/64", "10.0.0.1/24", "fd00::1/64"], ["fe80::1:1/64", "10.0.1.1/24", "fd01::1/64"]]
            .iter()
            .enumerate()
    {
        let addresses: Vec<IpCidr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let gateways = if side == 1 { gateways_of_1 } else { &[] };
        let gateways = gateways.iter().map(|text| text.parse().unwrap());
        router.configure(side, MAC[side], 1514, &addresses, gateways);
    }
}

/// Returns a UDP datagram for the router's hardware address on side 0.
fn datagram(source: &str, destination: &str, hops: u8, payload: usize) -> Vec<u8> {
    let mut frame = [&MAC[0][..], &HOST].concat();
    let udp = 8 + payload as u16;
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddress::Ipv4(source), IpAddress::Ipv4(destination)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + udp).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, hops, 17, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let check = !sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddress::Ipv6(source), IpAddress::Ipv6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(udp.to_be_bytes());
            frame.extend([17, hops]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend([0x0f, 0xa0, 0, 9]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|at| at as u8));
    frame
}

/// Returns an ARP packet.
fn arp(operation: u8, sender: (Mac, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &sender.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend(sender.0);
    frame.extend(sender.1);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

fn ready(router: &mut Router, side: usize) -> Vec<Vec<u8>> {
    core::iter::from_fn(|| router.take_ready(side).map(<[u8]>::to_vec)).collect()
}

#[test]
fn a_neighbour_is_asked_for_and_what_waited_follows_the_answer() {
    let mut router = router();
    let frame = datagram("10.0.0.9", "10.0.1.9", 64, 10);
    assert_eq!(router.step(0, &frame, 5), Step::Done);
    router.maintain(1, 5);
    let asked = ready(&mut router, 1);
    let mut expected = arp(1, (MAC[1], [10, 0, 1, 1]), [10, 0, 1, 9]);
    expected.resize(60, 0);
    assert_eq!(asked, [expected]);
    assert_eq!(router.step(1, &arp(2, (FAR, [10, 0, 1, 9]), [10, 0, 1, 1]), 9), Step::Deliver);
    let sent = ready(&mut router, 1);
    assert_eq!(sent.len(), 1);
    let mut passed = frame.clone();
    rewrite(&mut passed, Family::V4, FAR, MAC[1]);
    assert_eq!(sent[0], passed);
    assert_eq!(sum(&passed[14..34]), 0xffff);
    let crossing = Crossing { family: Family::V4, frame_bytes: 52, next: FAR, own: MAC[1] };
    assert_eq!(router.step(0, &frame, 10), Step::Cross(crossing), "the next one crosses at once");
    assert_eq!(router.counted(0).forwarded, 1, "the other is counted when it has crossed");
}

#[test]
fn neighbours_on_ipv6_are_solicited() {
    let mut router = router();
    let frame = datagram("fd00::9", "fd01::12:3456", 64, 10);
    assert_eq!(router.step(0, &frame, 0), Step::Done);
    router.maintain(1, 0);
    let asked = ready(&mut router, 1).remove(0);
    assert_eq!(asked[..14], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 2, 0, 0, 0, 1, 1, 0x86, 0xdd]);
    assert_eq!(asked[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
    assert_eq!(asked[54], 135);
    assert_eq!(hear(&asked).unwrap().mac, MAC[1], "its own sum is right");
    // The neighbour asks for us instead of answering: that tells its address just as well.
    let mut said = asked.clone();
    said[6..12].copy_from_slice(&FAR);
    let (us, them) = (key("fd01::1".parse().unwrap()), key("fd01::12:3456".parse().unwrap()));
    let len = write_question(&mut said, us, None, (them, FAR)).unwrap();
    assert_eq!(router.step(1, &said[..len], 1), Step::Deliver);
    let sent = ready(&mut router, 1).remove(0);
    assert_eq!((&sent[..6], sent[21]), (&FAR[..], 63));
    said[60] ^= 1;
    assert_eq!(hear(&said[..len]), None, "a wrong sum says nothing");
}

#[test]
fn the_last_hop_is_told_of() {
    for (source, destination, kind, sender_at) in
        [("10.0.0.9", "10.0.1.9", 11, 26), ("fd00::9", "fd01::9", 3, 22)]
    {
        for hops in [0, 1] {
            let mut router = router();
            let frame = datagram(source, destination, hops, 10);
            assert_eq!(router.step(0, &frame, 0), Step::Done);
            let error = ready(&mut router, 0).remove(0);
            let Found::Packet(packet) = find(&error) else { panic!("{error:?}") };
            assert_eq!(packet.destination, key(source.parse().unwrap()));
            assert_eq!((&error[..6], &error[6..12]), (&HOST[..], &MAC[0][..]));
            let (icmp_at, own) = if sender_at == 26 { (34, "10.0.0.1") } else { (54, "fd00::1") };
            assert_eq!(packet.source, key(own.parse().unwrap()));
            assert_eq!((error[icmp_at], error[icmp_at + 1]), (kind, 0));
            assert_eq!(error[icmp_at + 8..], frame[14..], "it quotes the packet");
            if sender_at == 26 {
                assert_eq!(sum(&error[34..]), 0xffff);
            }
            assert_eq!((router.counted(0).expired, router.counted(0).errors_sent), (1, 1));
        }
    }
}

#[test]
fn errors_have_the_numbers_of_their_rfcs() {
    let mut router = router();
    // (to, size, type, code, rest)
    for (source, destination, payload, expected) in [
        ("10.0.0.9", "192.0.2.1", 10, [3, 0, 0, 0, 0, 0]),
        ("fd00::9", "2001:db8::1", 10, [1, 0, 0, 0, 0, 0]),
        ("10.0.0.9", "10.0.1.255", 10, [3, 0, 0, 0, 0, 0]),
        ("10.0.0.9", "10.0.1.9", 3000, [3, 4, 0, 0, 0x05, 0xdc]),
        ("fd00::9", "fd01::9", 3000, [2, 0, 0, 0, 0x05, 0xdc]),
    ] {
        let frame = datagram(source, destination, 64, payload);
        assert_eq!(router.step(0, &frame, 0), Step::Done, "{destination}");
        let error = ready(&mut router, 0).remove(0);
        let icmp = &error[if source.contains(':') { 54 } else { 34 }..];
        let [kind, code, _, _, rest @ ..] = icmp else { panic!() };
        assert_eq!([*kind, *code, rest[0], rest[1], rest[2], rest[3]], expected, "{destination}");
        assert!(error.len() <= if source.contains(':') { 14 + 1280 } else { 14 + 576 });
    }
    assert_eq!((router.counted(0).no_route, router.counted(0).too_big), (3, 2));
}

#[test]
fn nobody_at_home() {
    for (source, destination, expected) in [("10.0.0.9", "10.0.1.9", (3, 1)), ("fd00::9", "fd01::9", (1, 3))]
    {
        let mut router = router();
        assert_eq!(router.step(0, &datagram(source, destination, 64, 10), 0), Step::Done);
        for second in 0..=3 {
            router.maintain(1, second * SECOND);
        }
        assert_eq!(ready(&mut router, 1).len(), 3, "three questions");
        let error = ready(&mut router, 0).remove(0);
        let icmp_at = if source.contains(':') { 54 } else { 34 };
        assert_eq!((error[icmp_at], error[icmp_at + 1]), expected);
        assert_eq!(router.counted(0).unresolved, 1);
        assert_eq!(router.due_ns(1), None);
    }
}

#[test]
fn what_is_not_to_be_forwarded_is_left_or_dropped() {
    let mut router = router();
    for (source, destination) in [
        ("10.0.0.9", "10.0.0.1"),
        ("10.0.0.9", "224.0.0.5"),
        ("fd00::9", "fd00::1"),
        ("fd00::9", "ff02::1"),
        ("fe80::9", "fe80::1"),
    ] {
        assert_eq!(router.step(0, &datagram(source, destination, 64, 10), 0), Step::Deliver, "{destination}");
    }
    let mut stranger = datagram("10.0.0.9", "10.0.1.9", 64, 10);
    stranger[5] = 77;
    assert_eq!(router.step(0, &stranger, 0), Step::Deliver, "another hardware address");
    for source in ["127.0.0.1", "0.0.0.0", "224.0.0.1"] {
        assert_eq!(router.step(0, &datagram(source, "10.0.1.9", 64, 10), 0), Step::Done, "{source}");
    }
    assert_eq!(router.step(0, &datagram("fe80::9", "fd01::9", 64, 10), 0), Step::Done);
    assert_eq!(router.counted(0).malformed, 4);
    assert!(!router.has_ready(0), "and nothing is said about it");
}

#[test]
fn no_error_about_an_error_and_not_too_many() {
    let mut router = router();
    let mut error = datagram("10.0.0.9", "10.0.1.9", 1, 10);
    error[23] = 1;
    error[34] = 3;
    error[24..26].fill(0);
    let check = !sum(&error[14..34]);
    error[24..26].copy_from_slice(&check.to_be_bytes());
    assert_eq!(router.step(0, &error, 0), Step::Done);
    let mut fragment = datagram("10.0.0.9", "10.0.1.9", 1, 10);
    fragment[21] = 5;
    fragment[24..26].fill(0);
    let check = !sum(&fragment[14..34]);
    fragment[24..26].copy_from_slice(&check.to_be_bytes());
    assert_eq!(router.step(0, &fragment, 0), Step::Done);
    assert_eq!((router.counted(0).expired, router.counted(0).errors_sent), (2, 0));
    let expired = datagram("10.0.0.9", "10.0.1.9", 1, 10);
    let mut sent = 0;
    for at in 0..1000 {
        router.step(0, &expired, at);
        sent += ready(&mut router, 0).len() as u32;
    }
    // The two that may not be sent have spent their share.
    assert!((ERROR_BURST - 2..=ERROR_BURST).contains(&sent), "{sent} errors in a moment");
    router.step(0, &expired, SECOND);
    assert_eq!(ready(&mut router, 0).len(), 1, "later there may be more");
}

#[test]
fn default_routes_lead_on_and_a_link_that_is_down_does_not() {
    let mut router = router();
    configure(&mut router, &["10.0.1.254", "fe80::fe"]);
    let frame = datagram("10.0.0.9", "192.0.2.1", 64, 10);
    router.step(0, &frame, 0);
    router.maintain(1, 0);
    assert_eq!(ready(&mut router, 1)[0][38..42], [10, 0, 1, 254], "the router is asked for");
    router.step(1, &arp(2, (FAR, [10, 0, 1, 254]), [10, 0, 1, 1]), 1);
    assert!(matches!(router.step(0, &frame, 2), Step::Cross(Crossing { next: FAR, .. })));
    router.step(0, &datagram("fd00::9", "2001:db8::1", 64, 10), 3);
    router.maintain(1, 3);
    let asked = ready(&mut router, 1).into_iter().find(|frame| frame.len() > 78 && frame[54] == 135).unwrap();
    assert_eq!((asked[62], asked[63], asked[77]), (0xfe, 0x80, 0xfe), "and the one of the other family");
    router.set_carrier(1, Carrier::Down);
    assert_eq!(router.step(0, &frame, 4), Step::Done);
    assert_eq!(router.counted(0).no_route, 1);
}

#[test]
fn a_packet_may_go_back_where_it_came_from() {
    let mut router = router();
    router.step(0, &arp(1, (FAR, [10, 0, 0, 7]), [10, 0, 0, 1]), 0);
    assert_eq!(router.step(0, &datagram("10.0.0.9", "10.0.0.7", 64, 10), 1), Step::Done);
    let back = ready(&mut router, 0).remove(0);
    assert_eq!((&back[..6], &back[6..12], back[22]), (&FAR[..], &MAC[0][..], 63));
    assert_eq!(router.counted(0).forwarded, 1);
}

#[test]
fn an_address_of_ours_is_nobody_elses() {
    let mut router = router();
    router.step(1, &arp(1, (FAR, [10, 0, 1, 1]), [10, 0, 1, 1]), 0);
    assert_eq!(router.sides[1].neighbours.known(key("10.0.1.1".parse().unwrap())), None);
}

#[test]
fn more_than_can_wait_is_counted() {
    let mut router = router();
    for at in 0..100 {
        router.step(0, &datagram("10.0.0.9", &alloc::format!("10.0.1.{}", 10 + at), 64, 10), 0);
    }
    assert_eq!(router.counted(0).unresolved, 100 - (WAITING - RESERVED) as u64);
    router.maintain(1, 0);
    let asked = ready(&mut router, 1);
    assert_eq!(asked.len(), RESERVED, "questions leave all the same");
    assert!(asked.iter().all(|frame| frame[12..14] == [8, 6]));
}

/// A router that knows 10.0.1.9.
fn acquainted() -> Router {
    let mut router = router();
    router.step(0, &datagram("10.0.0.9", "10.0.1.9", 64, 18), 0);
    router.step(1, &arp(2, (FAR, [10, 0, 1, 9]), [10, 0, 1, 1]), 0);
    ready(&mut router, 1);
    router
}

/// Sets the sum of an IPv4 header right.
fn with_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let check = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame
}

#[test]
fn a_packet_is_treated_the_same_whether_or_not_one_like_it_was_before() {
    let (mut remembers, mut forgets) = (acquainted(), acquainted());
    let usual = datagram("10.0.0.9", "10.0.1.9", 64, 18);
    let mut compare = |frame: &[u8], what: &str, at: usize| {
        for router in [&mut remembers, &mut forgets] {
            assert!(matches!(router.step(0, &usual, 1), Step::Cross(_)));
        }
        forgets.forget_decisions();
        assert_eq!(remembers.step(0, frame, 1), forgets.step(0, frame, 1), "{what} {at}");
        assert_eq!(remembers.counted(0), forgets.counted(0), "{what} {at}");
    };
    for at in 0..usual.len() {
        for value in 0..=255 {
            let mut frame = usual.clone();
            frame[at] = value;
            compare(&frame, "byte", at);
            compare(&with_sum(frame), "byte, under a right sum,", at);
        }
        compare(&usual[..at], "length", at);
    }
    for len in 61..80 {
        let mut frame = usual.clone();
        frame.resize(len, 0);
        compare(&frame, "padded to", len);
    }
    let long = datagram("10.0.0.9", "10.0.1.9", 64, 1473);
    compare(&long, "longer than the next link takes by", 1);
    // More senders than there are places.
    for sender in 0..200 {
        let source = alloc::format!("10.0.0.{}", 10 + sender % 100);
        compare(&datagram(&source, "10.0.1.9", 64, 18), "sender", sender);
    }
}

#[test]
fn what_is_remembered_does_not_outlive_a_change() {
    let usual = datagram("10.0.0.9", "10.0.1.9", 64, 18);
    const MOVED: Mac = [2, 0, 0, 0, 1, 10];
    let step_after = |change: fn(&mut Router)| {
        let mut router = acquainted();
        assert!(matches!(router.step(0, &usual, 1), Step::Cross(Crossing { next: FAR, .. })));
        change(&mut router);
        router.step(0, &usual, 1)
    };
    let moved = step_after(|router| {
        router.step(1, &arp(2, (MOVED, [10, 0, 1, 9]), [10, 0, 1, 1]), 1);
    });
    assert!(matches!(moved, Step::Cross(Crossing { next: MOVED, .. })), "{moved:?}");
    let down = step_after(|router| router.set_carrier(1, Carrier::Down));
    assert_eq!(down, Step::Done);
    let renamed = step_after(|router| {
        router.configure(1, MOVED, 1514, &["10.0.1.1/24".parse().unwrap()], core::iter::empty());
    });
    assert!(matches!(renamed, Step::Cross(Crossing { next: FAR, own: MOVED, .. })), "{renamed:?}");
    let short = step_after(|router| {
        router.configure(1, MAC[1], 59, &["10.0.1.1/24".parse().unwrap()], core::iter::empty());
    });
    assert_eq!(short, Step::Done, "one byte too long");
}
