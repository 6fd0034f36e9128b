//! Several workers of one backend: a frame finds its way between them, operators' rules hold across them, and a worker
//! that sleeps is woken once.

use drayage::aggregate::Wrap;
use drayage::rules::Rules;
use drayage::switch::Segment;
use drayage::vif::rx;
use drayage_tests::fleet::{Fleet, frame, own};
use drayage_tests::world::LAN;
use drayage_wire::netif::TxRequest;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The host beyond the uplink.
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const STRANGER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const NONE: [Vec<u8>; 0] = [];

#[test]
fn a_frame_finds_its_way_between_workers_and_goes_no_way_in_vain() {
    let mut fleet = Fleet::new(3);
    let far = fleet.uplink(0, LAN);
    let (mut a, mut b) = (fleet.guest(0, 5, |_| ()), fleet.guest(1, 6, |_| ()));
    let mut c = fleet.guest(2, 7, |_| ());
    let arrived = || std::iter::from_fn(|| far.take()).collect::<Vec<_>>();
    // To everybody, once.
    fleet.sends(&mut b, &frame(BROADCAST, own(6), 1));
    let everybody = [frame(BROADCAST, own(6), 1)];
    assert_eq!(
        (a.frames(), b.frames(), c.frames(), arrived()),
        (everybody.to_vec(), vec![], everybody.to_vec(), everybody.to_vec())
    );
    // To somebody, and to nobody else: guests' addresses are known before they have sent anything.
    fleet.sends(&mut b, &frame(own(7), own(6), 2));
    assert_eq!((a.frames(), c.frames(), arrived()), (vec![], vec![frame(own(7), own(6), 2)], vec![]));
    // The far host is learned behind the trunk.
    far.send(frame(own(6), FAR, 3));
    fleet.passes();
    assert_eq!(b.frames(), [frame(own(6), FAR, 3)]);
    fleet.sends(&mut b, &frame(FAR, own(6), 4));
    assert_eq!((a.frames(), c.frames(), arrived()), (vec![], vec![], vec![frame(FAR, own(6), 4)]));
    // What stays with one worker crosses nothing.
    let before: Vec<_> = fleet.workers.iter().map(|w| w.trunk_counters().sent).collect();
    fleet.sends(&mut a, &frame(FAR, own(5), 5));
    assert_eq!(arrived(), [frame(FAR, own(5), 5)]);
    let after: Vec<_> = fleet.workers.iter().map(|w| w.trunk_counters().sent).collect();
    assert_eq!(before, after);
    assert_eq!(fleet.counters(1, &b).drops.total() + fleet.counters(0, &a).drops.total(), 0);
    fleet.hv.assert_clean();
}

/// What comes from another worker goes out from where it was copied to out of the queue between them.
#[test]
fn what_crosses_is_copied_no_more_than_it_must() {
    for len in [60, 1514, 9000] {
        let mut fleet = Fleet::new(2);
        let mut sender = fleet.guest(0, 5, |_| ());
        let mut receiver = fleet.guest(1, 6, |connection| {
            connection.rx_format = rx::Format::Containers { size: 65_536, wrap: Wrap::Allowed };
        });
        let mut expected = Vec::new();
        for n in 0..3 {
            let mut bytes = frame(own(6), own(5), n);
            bytes.resize(len, n ^ 0x5a);
            sender.send_bytes(100, &bytes);
            fleet.passes();
            sender.answers();
            expected.push(bytes);
        }
        fleet.clock.advance(10_000_000);
        fleet.passes();
        assert!(receiver.take_packets() == expected, "{len} bytes");
        let rx = fleet.counters(1, &receiver).rx;
        assert_eq!((rx.packets, rx.copies, rx.moved_bytes), (3, 0, 0), "{len} bytes");
        assert!(fleet.workers[1].blocks_in_use() <= 1, "nothing is referred to any more");
        fleet.hv.assert_clean();
    }
}

#[test]
fn a_segment_that_a_worker_has_no_port_in_does_not_go_there() {
    let mut fleet = Fleet::new(2);
    let other = fleet.uplink(1, Segment(9));
    let mut a = fleet.guest(0, 5, |_| ());
    fleet.sends(&mut a, &frame(BROADCAST, own(5), 1));
    assert_eq!((other.take(), fleet.workers[0].trunk_counters().sent), (None, 0));
    assert_eq!(fleet.counters(0, &a).drops.no_destination, 1);
    let mut b = fleet.guest(1, 6, |_| ());
    fleet.sends(&mut a, &frame(BROADCAST, own(5), 2));
    assert_eq!((other.take(), b.frames()), (None, vec![frame(BROADCAST, own(5), 2)]));
    fleet.disconnect(1, 6, &b);
    fleet.sends(&mut a, &frame(BROADCAST, own(5), 3));
    fleet.sends(&mut a, &frame(own(6), own(5), 4));
    assert_eq!(fleet.workers[0].trunk_counters().sent, 1);
    assert_eq!(fleet.counters(0, &a).drops.no_destination, 3);
}

#[test]
fn rules_hold_across_workers() {
    let isolated = Rules { locked_mac: false, isolated: true };
    let locked = Rules { locked_mac: true, isolated: false };
    let mut fleet = Fleet::new(2);
    let far = fleet.uplink(0, LAN);
    let mut a = fleet.guest(0, 5, |connection| connection.rules = isolated);
    let mut b = fleet.guest(1, 6, |connection| connection.rules = isolated);
    let mut shared = fleet.guest(1, 7, |_| ());
    let mut held = fleet.guest(1, 8, |connection| connection.rules = locked);
    // Isolated from each other, by name and in what goes to everybody; not from the rest.
    fleet.sends(&mut a, &frame(own(6), own(5), 1));
    fleet.sends(&mut a, &frame(BROADCAST, own(5), 2));
    fleet.sends(&mut a, &frame(own(7), own(5), 3));
    assert_eq!(b.frames(), NONE);
    assert_eq!(shared.frames(), [frame(BROADCAST, own(5), 2), frame(own(7), own(5), 3)]);
    assert_eq!(fleet.workers[1].trunk_counters().isolated, 1);
    fleet.sends(&mut b, &frame(FAR, own(6), 4));
    assert_eq!(std::iter::from_fn(|| far.take()).map(|f| f[59]).collect::<Vec<_>>(), [2, 4]);
    // A locked guest's lies cross nothing, and are not learned.
    let sent = fleet.workers[1].trunk_counters().sent;
    for to in [FAR, own(5), BROADCAST] {
        fleet.sends(&mut held, &frame(to, STRANGER, 5));
    }
    assert_eq!(fleet.counters(1, &held).drops.wrong_source, 3);
    assert_eq!(fleet.workers[1].trunk_counters().sent, sent);
    // And nobody takes another's address over to another worker.
    a.frames();
    shared.frames();
    fleet.sends(&mut shared, &frame(FAR, own(5), 6));
    far.send(frame(own(5), FAR, 7));
    fleet.passes();
    assert_eq!(shared.frames(), NONE);
    assert_eq!(a.frames().last(), Some(&frame(own(5), FAR, 7)));
    b.frames();
    far.send(frame(own(6), FAR, 8));
    fleet.passes();
    fleet.sends(&mut a, &frame(BROADCAST, own(6), 9));
    far.send(frame(own(6), FAR, 10));
    fleet.passes();
    assert_eq!(b.frames().iter().map(|f| f[59]).collect::<Vec<_>>(), [8, 10]);
    fleet.hv.assert_clean();
}

#[test]
fn a_sleeper_is_woken_once_and_who_is_awake_is_not() {
    let mut fleet = Fleet::new(2);
    let (mut a, mut b) = (fleet.guest(0, 5, |_| ()), fleet.guest(1, 6, |_| ()));
    fleet.passes();
    assert!(!fleet.bells[0].take() && !fleet.bells[1].take());
    let mut burst = |fleet: &mut Fleet, count: usize| {
        for n in 0..count {
            let page = 100 + n;
            a.write(page, &frame(own(6), own(5), n as u8));
            let gref = a.grant(page);
            assert!(a.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: 60 }));
        }
        a.publish();
        fleet.workers[0].pass();
        a.answers();
    };
    burst(&mut fleet, 20);
    assert!(fleet.bells[1].take(), "it sleeps, and has 20 frames");
    burst(&mut fleet, 20);
    assert!(!fleet.bells[1].take(), "it was woken already");
    assert_eq!(fleet.workers[0].trunk_counters().rings, 1);
    // It takes them, is busy, and looks again without being told.
    fleet.workers[1].pass();
    assert_eq!(b.frames().len(), 40);
    burst(&mut fleet, 3);
    assert!(!fleet.bells[1].take(), "it comes back by itself");
    fleet.workers[1].pass();
    assert_eq!(b.frames().len(), 3);
    fleet.workers[1].pass();
    burst(&mut fleet, 3);
    assert!(fleet.bells[1].take(), "it had nothing more to do");
    fleet.workers[1].pass();
    assert_eq!(b.frames().len(), 3);
    fleet.hv.assert_clean();
}

#[test]
fn a_storm_fills_its_half_of_a_trunk_and_no_more() {
    let mut fleet = Fleet::new(2);
    let (mut storm, mut calm) = (fleet.guest(0, 5, |_| ()), fleet.guest(0, 6, |_| ()));
    let mut there = fleet.guest(1, 7, |_| ());
    // The other worker is not heard of meanwhile.
    let mut sent = 0u64;
    while fleet.workers[0].trunk_counters().queue_full < 100 {
        for page in 0..100 {
            let mut big = frame(BROADCAST, own(5), 1);
            big.resize(1514, 0);
            storm.write(page, &big);
            let gref = storm.grant(page);
            assert!(storm.send(TxRequest { gref, offset: 0, flags: 0, id: 0, size: 1514 }));
        }
        storm.publish();
        // A container's worth in each.
        for _ in 0..4 {
            fleet.workers[0].pass();
        }
        sent += storm.answers().len() as u64;
        assert!(sent < 10_000, "a trunk has an end");
    }
    let counters = fleet.workers[0].trunk_counters();
    assert_eq!(counters.sent + counters.queue_full, sent);
    calm.send_frame(0, &frame(own(7), own(6), 9));
    fleet.workers[0].pass();
    assert_eq!(fleet.workers[0].trunk_counters().queue_full, counters.queue_full, "there is room for it");
    // Once it wakes, everything that was kept comes, as far as its guest has buffers.
    for _ in 0..8 {
        fleet.workers[1].pass();
        there.received();
        there.post_pages(0, 64);
    }
    assert_eq!(fleet.workers[1].trunk_counters().received, counters.sent + 1);
    fleet.hv.assert_clean();
}
