//! The harness itself: two hosts on a cable, without any of the product between them. What fails here would fail
//! everywhere else for the wrong reason.

use drayage_tests::cable::{End, cable};
use drayage_tests::host::{Stack, TcpSink, TcpSource, UdpSink, UdpSource};
use smoltcp::wire::{IpAddress, IpEndpoint};

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Where the transfers go.
const TO: IpEndpoint = IpEndpoint { addr: IpAddress::v4(10, 0, 0, 2), port: 9 };

struct Pair {
    ends: (End, End),
    a: Stack,
    b: Stack,
}

impl Pair {
    fn new() -> Self {
        let mut ends = cable();
        let a = Stack::new(&mut ends.0, A, "10.0.0.1/24");
        let b = Stack::new(&mut ends.1, B, "10.0.0.2/24");
        Self { ends, a, b }
    }

    fn poll(&mut self, ms: u64) {
        self.a.poll(&mut self.ends.0, ms * 1_000_000);
        self.b.poll(&mut self.ends.1, ms * 1_000_000);
    }
}

/// Moves one byte stream; returns how many milliseconds of the hosts' time it took.
fn transfer(lose_every: u64, bytes: u64, read_each_ms: usize) -> u64 {
    let mut pair = Pair::new();
    pair.ends.0.lose_every(lose_every);
    pair.ends.1.lose_every(lose_every);
    let (from, at) = (pair.a.connect(TO, 50_000), pair.b.listen(9));
    let (mut source, mut sink) = (TcpSource::new(from, 1, bytes), TcpSink::new(at, 1));
    for ms in 0..600_000 {
        pair.poll(ms);
        source.step(&mut pair.a);
        sink.step(&mut pair.b, read_each_ms);
        if sink.ended(&mut pair.b) {
            assert_eq!((sink.wrong, sink.hash()), (0, source.hash()));
            assert_eq!(pair.ends.0.lost() + pair.ends.1.lost() > 0, lose_every > 0);
            return ms;
        }
    }
    panic!("{bytes} bytes did not arrive in ten minutes of the hosts' time");
}

#[test]
fn a_stream_arrives_whole_also_over_a_bad_cable_and_to_a_slow_reader() {
    let fast = transfer(0, 1 << 20, usize::MAX);
    assert!(transfer(53, 1 << 20, usize::MAX) > fast);
    assert!(transfer(0, 1 << 20, 1000) > fast);
}

#[test]
fn datagrams_arrive_once_and_in_order() {
    let mut pair = Pair::new();
    let sizes = |n: u32| 8 + n as usize % 1400;
    let (from, at) = (pair.a.udp(1000, 64), pair.b.udp(9, 64));
    let (mut source, mut sink) = (UdpSource::new(from, TO, 7, 3000, sizes), UdpSink::new(at, 7, 3000, sizes));
    for ms in 0..10_000 {
        source.step(&mut pair.a, 32);
        pair.poll(ms);
        if sink.step(&mut pair.b, u32::MAX) == 3000 {
            break;
        }
    }
    sink.assert_right();
    assert_eq!((source.sent(), sink.step(&mut pair.b, 0)), (3000, 3000));
}

#[test]
fn a_changed_datagram_is_noticed() {
    let mut pair = Pair::new();
    let sizes = |_: u32| 40;
    let (from, at) = (pair.a.udp(1000, 64), pair.b.udp(9, 64));
    // Of another stream: the same bytes would need the same number.
    let (mut source, mut sink) = (UdpSource::new(from, TO, 7, 5, sizes), UdpSink::new(at, 8, 5, sizes));
    for ms in 0..100 {
        source.step(&mut pair.a, 32);
        pair.poll(ms);
        sink.step(&mut pair.b, u32::MAX);
    }
    assert_eq!(sink.wrong, 5);
}
