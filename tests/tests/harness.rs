//! The harness itself: two hosts on a cable, without any of the product between them. What fails here would fail
//! everywhere else for the wrong reason.

use drayage_tests::cable::{End, cable};
use drayage_tests::host::{Host, TcpSink, TcpSource, UdpSink, UdpSource};
use smoltcp::wire::{IpAddress, IpEndpoint};

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn hosts() -> (Host<End>, Host<End>, IpEndpoint) {
    let (a, b) = cable();
    let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, 2), 9);
    (Host::new(a, A, "10.0.0.1/24"), Host::new(b, B, "10.0.0.2/24"), to)
}

/// Moves one byte stream; returns how many milliseconds of the hosts' time it took.
fn transfer(lose_every: u64, bytes: u64, read_each_ms: usize) -> u64 {
    let (mut a, mut b, to) = hosts();
    a.device.lose_every(lose_every);
    b.device.lose_every(lose_every);
    let (from, at) = (a.connect(to, 50_000), b.listen(9));
    let (mut source, mut sink) = (TcpSource::new(from, 1, bytes), TcpSink::new(at, 1));
    for ms in 0..600_000 {
        a.poll(ms * 1_000_000);
        b.poll(ms * 1_000_000);
        source.step(&mut a);
        sink.step(&mut b, read_each_ms);
        if sink.ended(&mut b) {
            assert_eq!((sink.wrong, sink.hash()), (0, source.hash()));
            assert_eq!(a.device.lost() + b.device.lost() > 0, lose_every > 0);
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
    let (mut a, mut b, to) = hosts();
    let sizes = |n: u32| 8 + n as usize % 1400;
    let (from, at) = (a.udp(1000, 64), b.udp(9, 64));
    let (mut source, mut sink) = (UdpSource::new(from, to, 7, 3000, sizes), UdpSink::new(at, 7, 3000, sizes));
    for ms in 0..10_000 {
        source.step(&mut a, 32);
        a.poll(ms * 1_000_000);
        b.poll(ms * 1_000_000);
        if sink.step(&mut b, u32::MAX) == 3000 {
            break;
        }
    }
    sink.assert_right();
    assert_eq!((source.sent(), sink.step(&mut b, 0)), (3000, 3000));
}

#[test]
fn a_changed_datagram_is_noticed() {
    let (mut a, mut b, to) = hosts();
    let sizes = |_: u32| 40;
    let (from, at) = (a.udp(1000, 64), b.udp(9, 64));
    // Of another stream: the same bytes would need the same number.
    let (mut source, mut sink) = (UdpSource::new(from, to, 7, 5, sizes), UdpSink::new(at, 8, 5, sizes));
    for ms in 0..100 {
        source.step(&mut a, 32);
        a.poll(ms * 1_000_000);
        b.poll(ms * 1_000_000);
        sink.step(&mut b, u32::MAX);
    }
    assert_eq!(sink.wrong, 5);
}
