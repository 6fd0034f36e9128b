use super::*;
extern crate std;
use std::vec::Vec;

use drayage_wire::checksum::fill;

const MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];
const ANY: [u8; 4] = [0; 4];

/// A datagram "hi!" from 10.0.0.1:4000 to 10.0.0.5:9, with two bytes of padding.
const PLAIN: [u8; 47] = [
    2, 0, 0, 0, 1, 5, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 31, 0, 7, 0x40, 0, 64, 17, 0x26, 0xc2, 10, 0, 0, 1,
    10, 0, 0, 5, 0x0f, 0xa0, 0, 9, 0, 11, 0, 0, b'h', b'i', b'!', 0xaa, 0xbb,
];

/// Sets a frame's IPv4 header sum, and the UDP checksum where the frame has one.
fn sum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let value = !drayage_wire::checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&value.to_be_bytes());
    fill(frame);
}

fn plain() -> Vec<u8> {
    let mut frame = PLAIN.to_vec();
    sum(&mut frame);
    frame
}

fn inboxes(sums: Sums) -> Inboxes {
    let mut inboxes = Inboxes::default();
    assert_eq!(inboxes.open(9, 4096), Some(0));
    assert_eq!(inboxes.open(10, 4096), Some(1));
    inboxes.configure(MAC, sums, [([10, 0, 0, 5], 24)]);
    inboxes.begin(1);
    inboxes
}

fn pop(inboxes: &mut Inboxes, number: usize) -> Option<Vec<u8>> {
    inboxes.get(number)?.pop().map(|received| received.bytes.to_vec())
}

#[test]
fn a_plain_datagram_is_taken_as_it_is() {
    for sums in [Sums::Verified, Sums::Unverified] {
        let mut inboxes = inboxes(sums);
        assert_eq!(inboxes.sort(&plain()), Sorted::Taken);
        let received = inboxes.get(0).unwrap().pop().unwrap();
        let expected = Received { bytes: b"hi!", from: [10, 0, 0, 1], from_port: 4000, to: [10, 0, 0, 5] };
        assert_eq!(received, expected);
        assert_eq!(pop(&mut inboxes, 0), None);
        assert_eq!(pop(&mut inboxes, 1), None);
    }
}

#[test]
fn what_differs_in_one_point_is_the_stacks() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 22] = [
        ("another host's", |frame| frame[5] = 6),
        ("to everybody", |frame| frame[..6].fill(0xff)),
        ("a VLAN tag", |frame| drop(frame.splice(12..12, [0x81, 0, 0, 1]))),
        ("not IPv4", |frame| frame[13] = 6),
        ("IPv6 in an IPv4 frame", |frame| frame[14] = 0x65),
        ("options", |frame| frame[14] = 0x46),
        ("a short header", |frame| frame[14] = 0x44),
        ("the first fragment", |frame| frame[20] = 0x20),
        ("a later fragment", |frame| frame[21] = 1),
        ("TCP", |frame| frame[23] = 6),
        ("ICMP", |frame| frame[23] = 1),
        ("a packet beyond the frame", |frame| frame[17] = 34),
        ("a packet shorter than its datagram", |frame| frame[17] = 30),
        ("a datagram shorter than its header", |frame| frame[39] = 7),
        ("a datagram beyond its packet", |frame| frame[39] = 12),
        ("from everybody", |frame| frame[26..30].fill(0xff)),
        ("from the network's everybody", |frame| frame[29] = 0xff),
        ("from a group", |frame| frame[26] = 224),
        ("from nobody", |frame| frame[26..30].fill(0)),
        ("another address", |frame| frame[33] = 6),
        ("the network's broadcast address", |frame| frame[33] = 0xff),
        ("another port", |frame| frame[37] = 8),
    ];
    for sums in [Sums::Verified, Sums::Unverified] {
        for (what, change) in changes {
            let mut inboxes = inboxes(sums);
            let mut frame = plain();
            change(&mut frame);
            // Each is right in all else.
            sum(&mut frame);
            assert_eq!(inboxes.sort(&frame), Sorted::Stack, "{what}");
            assert_eq!(pop(&mut inboxes, 0), None, "{what}");
        }
        let mut bad = plain();
        bad[24] ^= 1;
        assert_eq!(inboxes(sums).sort(&bad), Sorted::Stack, "the header's sum");
        for len in 0..45 {
            assert_eq!(inboxes(sums).sort(&plain()[..len]), Sorted::Stack, "{len} bytes");
        }
        assert_eq!(inboxes(sums).sort(&plain()[..45]), Sorted::Taken, "without padding");
    }
}

#[test]
fn a_datagram_may_end_before_its_packet_and_its_type_of_service_is_its_own_business() {
    let mut inboxes = inboxes(Sums::Unverified);
    let mut frame = plain();
    (frame[15], frame[17]) = (0xb8, 33);
    sum(&mut frame);
    assert_eq!(inboxes.sort(&frame), Sorted::Taken);
    assert_eq!(pop(&mut inboxes, 0).as_deref(), Some(&b"hi!"[..]));
}

#[test]
fn checksums_are_verified_where_nobody_has() {
    let mut bad = plain();
    bad[42] ^= 1;
    assert_eq!(inboxes(Sums::Unverified).sort(&bad), Sorted::Stack);
    assert_eq!(inboxes(Sums::Verified).sort(&bad), Sorted::Taken);
    let mut none = plain();
    none[40..42].fill(0);
    assert_eq!(inboxes(Sums::Unverified).sort(&none), Sorted::Taken, "a datagram may have none");
}

#[test]
fn without_an_address_or_with_too_many_all_is_the_stacks() {
    let mut inboxes = inboxes(Sums::Verified);
    inboxes.configure(MAC, Sums::Verified, []);
    let mut frame = plain();
    assert_eq!(inboxes.sort(&frame), Sorted::Stack);
    frame[30..34].copy_from_slice(&ANY);
    sum(&mut frame);
    assert_eq!(inboxes.sort(&frame), Sorted::Stack, "no address is not ours");
    let ours = |count: u8| (1..=count).map(|last| ([10, 0, 0, last], 24));
    inboxes.get(0).unwrap().has_ended();
    inboxes.configure(MAC, Sums::Verified, ours(5));
    assert_eq!(inboxes.sort(&plain()), Sorted::Stack);
    inboxes.get(0).unwrap().has_ended();
    inboxes.configure(MAC, Sums::Verified, ours(4).skip(1).chain([([10, 0, 0, 5], 32)]));
    assert_eq!(inboxes.sort(&plain()), Sorted::Taken, "the fourth");
}

#[test]
fn ports_have_one_queue_each_and_some_have_none() {
    let mut inboxes = inboxes(Sums::Verified);
    assert_eq!(inboxes.open(9, 4096), None);
    assert_eq!(inboxes.open(0, 4096), None);
    assert_eq!(inboxes.open(68, 4096), None, "the DHCP client's");
    let mut second = plain();
    second[37] = 10;
    assert_eq!(inboxes.sort(&second), Sorted::Taken);
    assert_eq!(pop(&mut inboxes, 0), None);
    assert!(pop(&mut inboxes, 1).is_some());
}

#[test]
fn nothing_overtakes_what_went_to_the_stack() {
    let mut inboxes = inboxes(Sums::Verified);
    assert_eq!(inboxes.sort(&plain()), Sorted::Taken);
    let mut tcp = plain();
    tcp[23] = 6;
    assert_eq!(inboxes.sort(&tcp), Sorted::Stack);
    assert_eq!(inboxes.sort(&plain()), Sorted::Taken, "a stream holds no datagram");
    let mut fragment = plain();
    fragment[21] = 2;
    assert_eq!(inboxes.sort(&fragment), Sorted::Stack);
    for _ in 0..3 {
        assert_eq!(inboxes.sort(&plain()), Sorted::Stack);
        // Something waits here, so the reader cannot have looked behind it.
        inboxes.get(0).unwrap().has_ended();
    }
    assert!(pop(&mut inboxes, 0).is_some());
    assert!(pop(&mut inboxes, 0).is_some());
    assert_eq!(inboxes.sort(&plain()), Sorted::Stack, "the stack may still hold some");
    inboxes.get(0).unwrap().has_ended();
    assert_eq!(inboxes.sort(&plain()), Sorted::Taken);
}

#[test]
fn the_stack_sees_a_datagram_once_a_second() {
    let mut inboxes = inboxes(Sums::Verified);
    for (at_ns, sorted) in [
        (999_999_999, Sorted::Taken),
        (1_000_000_000, Sorted::Stack),
        (1_999_999_999, Sorted::Taken),
        (3_000_000_000, Sorted::Stack),
    ] {
        // Turns in which nothing comes change nothing.
        inboxes.begin(at_ns);
        assert!(inboxes.get(0).unwrap().pop().is_none());
        inboxes.get(0).unwrap().has_ended();
        inboxes.begin(at_ns);
        assert_eq!(inboxes.sort(&plain()), sorted, "{at_ns}");
        while pop(&mut inboxes, 0).is_some() {}
        inboxes.get(0).unwrap().has_ended();
    }
}

/// Returns a datagram of so many bytes that begin with a number.
fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut frame = PLAIN[..42].to_vec();
    frame.extend(number.to_be_bytes());
    frame.extend((4..len).map(|at| (at as u32 * 31 + number) as u8));
    let len = len as u16;
    frame[16..18].copy_from_slice(&(len + 28).to_be_bytes());
    frame[38..40].copy_from_slice(&(len + 8).to_be_bytes());
    sum(&mut frame);
    frame
}

#[test]
fn a_queue_keeps_order_and_bytes_over_its_end_and_counts_what_it_cannot_take() {
    let mut seed = 1_u32;
    let mut random = move |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let mut inboxes = inboxes(Sums::Verified);
    let (mut sent, mut lost, mut got) = (0_u32, 0_u64, 0_u32);
    let mut waiting = std::collections::VecDeque::new();
    while got < 50_000 {
        for _ in 0..random(20) {
            let before = inboxes.lost();
            let frame = numbered(sent, 4 + random(if sent % 3 == 0 { 900 } else { 60 }) as usize);
            assert_eq!(inboxes.sort(&frame), Sorted::Taken);
            sent += 1;
            if inboxes.lost() == before {
                waiting.push_back(frame);
            } else {
                lost += 1;
                let bytes: usize = waiting.iter().map(|frame: &Vec<u8>| frame.len() - 26).sum();
                assert!(bytes > 1500, "full with {bytes} bytes of 4096");
            }
        }
        for _ in 0..random(24) {
            let frame = waiting.pop_front();
            assert_eq!(pop(&mut inboxes, 0).as_deref(), frame.as_deref().map(|frame| &frame[42..]));
            got += u32::from(frame.is_some());
        }
    }
    assert_eq!(inboxes.lost(), lost);
    assert!(lost > 100, "{lost}");
}

#[test]
fn a_length_that_changes_after_it_was_looked_at_changes_nothing() {
    let mut frame = plain();
    let mut inbox = Inbox::new(9, 256);
    frame[UDP_LEN_AT..UDP_LEN_AT + 2].fill(0);
    inbox.push(&frame[KEPT_AT..45]);
    assert_eq!(inbox.pop().map(|received| received.bytes.to_vec()), Some(b"hi!".to_vec()));
    assert!(inbox.is_empty());
}
