//! The real driver and the real backend against each other, in one process: what goes in at one end comes out at the
//! other, with containers and without, whatever the limits, and nobody is ever asleep when there is work.

use drayage::control::details::{Containers, Mapping};
use drayage::policy::Policy;
use drayage_netfront::{Counters, Options, Stage, Use};
use drayage_tests::connector::Offers;
use drayage_tests::host::{UdpSink, UdpSource};
use drayage_tests::inhabitants::Pace;
use drayage_tests::transfers::{at, datagrams_both_ways, streams_both_ways};
use drayage_tests::uplink::Arriving;
use drayage_tests::world::{ControlPath, Shape, World};

const SECOND_NS: u64 = 1_000_000_000;

fn small(_: u32) -> usize {
    18
}

fn mixed(n: u32) -> usize {
    8 + (n as usize * 131) % 1465
}

/// Every way in which the two ends can have agreed.
fn shapes() -> Vec<(&'static str, Shape)> {
    let plain = Shape::default();
    let rx_only = Offers { tx_containers: false, ..Offers::default() };
    let tx_only = Offers { rx_containers: false, ..Offers::default() };
    let neither = Offers { rx_containers: false, ..rx_only };
    let unwanted = Options { rx_containers: Use::Never, tx_containers: Use::Never, ..Options::default() };
    let page = Options { rx_container_max_bytes: 4096, ..Options::default() };
    let odd = Options { rx_container_max_bytes: 12_288, ..Options::default() };
    let insists = Options { staged: Stage::Always, ..Options::default() };
    let control = Offers { control: true, ..Offers::default() };
    let staged = Mapping { staged: true, trusted: true };
    let fixed = Policy::Fixed { size_bytes: 16_384, timeout_us: 200 };
    vec![
        ("containers", plain),
        ("containers towards the guest", Shape { offers: rx_only, ..plain }),
        ("containers from the guest", Shape { offers: tx_only, ..plain }),
        ("plain", Shape { offers: neither, ..plain }),
        ("containers that the guest does not want", Shape { options: unwanted, ..plain }),
        ("one event channel", Shape { offers: Offers { split: false, ..Offers::default() }, ..plain }),
        ("one event channel, plain", Shape { offers: Offers { split: false, ..neither }, ..plain }),
        ("containers of a page", Shape { options: page, ..plain }),
        ("containers of three pages", Shape { options: odd, ..plain }),
        (
            "small containers from the guest",
            Shape { offers: Offers { tx_max_bytes: 5000, ..Offers::default() }, ..plain },
        ),
        ("the papers' policy", Shape { policy: fixed, ..plain }),
        ("the real control path", Shape { control: ControlPath::Real(Containers::On), ..plain }),
        ("the real control path, plain", Shape { control: ControlPath::Real(Containers::Off), ..plain }),
        ("staged, copied first", Shape { options: insists, offers: control, ..plain }),
        ("staged, plain", Shape { options: insists, offers: Offers { control: true, ..neither }, ..plain }),
        (
            "the real control path, staged",
            Shape { control: ControlPath::Real(Containers::On), mapping: staged, ..plain },
        ),
        ("blank checksums", Shape { arriving: Arriving::Blank, ..plain }),
        ("blank checksums, plain", Shape { arriving: Arriving::Blank, offers: neither, ..plain }),
    ]
}

fn counters(world: &mut World) -> (Counters, drayage::vif::Counters) {
    let id = world.guests[0].id;
    let back = world.back_counters(id).expect("the guest is connected");
    (*world.guests[0].vif().counters(), back)
}

/// Asserts that the two ends counted the same, and nothing that should not be.
fn assert_books_balance(world: &mut World) {
    world.settle();
    let (front, back) = counters(world);
    assert_eq!(front.rx.packets, back.rx.packets, "towards the guest");
    assert_eq!(front.tx.packets, back.tx.packets, "from the guest");
    assert_eq!(front.rx.container_packets, if back.rx.containers > 0 { back.rx.packets } else { 0 });
    assert_eq!((front.rx.containers, front.tx.containers), (back.rx.containers, back.tx.containers));
    assert_eq!((front.rx.sequence_gaps, front.rx.dropped.total(), back.drops.total()), (0, 0, 0));
    assert_eq!((front.tx.errors, front.tx.bad_responses, back.guest_errors), (0, 0, 0));
    let read = front.rx.revokes + front.rx.unrevoked;
    assert_eq!(read, front.rx.slots - front.rx.dropped.empty_slots, "one revoke for each page, or none");
}

#[test]
fn datagrams_arrive_in_every_shape() {
    for (name, shape) in shapes() {
        println!("{name}");
        let mut world = World::new(shape);
        world.add_guest(5);
        datagrams_both_ways(&mut world, 3000, mixed);
        assert_books_balance(&mut world);
        world.end();
    }
}

#[test]
fn streams_arrive_in_every_shape() {
    for (name, shape) in shapes() {
        println!("{name}");
        let mut world = World::new(shape);
        world.add_guest(5);
        streams_both_ways(&mut world, 1 << 20, usize::MAX);
        assert_books_balance(&mut world);
        world.end();
    }
}

#[test]
fn streams_survive_a_bad_cable_and_a_slow_reader() {
    for (name, shape) in shapes() {
        println!("{name}");
        let mut world = World::new(shape);
        world.add_guest(5);
        world.far.end.lose_every(97);
        world.far.end.lose_departing_every(89);
        world.guests[0].pace = Pace::Slow { frames: 7, rest_ns: 300_000 };
        streams_both_ways(&mut world, 300_000, 900);
        assert!(world.far.end.lost() > 0);
        world.end();
    }
}

#[test]
fn small_packets_share_containers_and_a_lone_one_does_not_wait() {
    let mut world = World::new(Shape::default());
    world.add_guest(5);
    datagrams_both_ways(&mut world, 20_000, small);
    let (front, back) = counters(&mut world);
    let mean = back.rx.packets as f64 / back.rx.containers as f64;
    assert!(mean > 4.0, "{mean} packets in a container under load");
    assert!(back.rx.grant_ops * 3 < back.rx.packets, "copies: {} for {}", back.rx.grant_ops, back.rx.packets);
    assert!(front.events * 2 < front.rx.packets, "{} events", front.events);

    // One alone, to a guest that sleeps: it arrives within what a round takes, and no deadline is waited for.
    world.settle();
    let (_, before) = counters(&mut world);
    let started_ns = world.now_ns();
    let there = world.guests[0].stack.as_mut().expect("the vif is up").udp(10, 4);
    world.guests[0].tasks.udp_sinks.push(UdpSink::new(there, 9, 1, small));
    let here = world.far.stack.udp(10, 4);
    world.far.tasks.udp_sources.push(UdpSource::new(here, at(5, 10), 9, 1, small));
    world.run(SECOND_NS, |world| world.guests[0].tasks.udp_sinks[1].got() == 1);
    assert!(world.now_ns() - started_ns < 20_000, "{} ns", world.now_ns() - started_ns);
    let (_, after) = counters(&mut world);
    assert_eq!(after.flushes.idle, before.flushes.idle + 1);
    assert_eq!(after.flushes.deadline, before.flushes.deadline);
    world.end();
}

#[test]
fn nobody_wakes_for_nothing() {
    for (name, shape) in shapes() {
        println!("{name}");
        let mut world = World::new(shape);
        world.add_guest(5);
        datagrams_both_ways(&mut world, 500, small);
        world.settle();
        let (passes, front) = (world.passes, counters(&mut world).0);
        let limit_ns = world.now_ns() + 5 * SECOND_NS;
        world.idle_until(limit_ns);
        assert_eq!(world.passes, passes, "the worker sleeps");
        assert_eq!(counters(&mut world).0, front, "and the guest");
        world.end();
    }
}

#[test]
fn a_guest_that_does_not_read_loses_its_own_packets_and_all_are_accounted_for() {
    for (name, shape) in shapes() {
        println!("{name}");
        let mut world = World::new(shape);
        world.add_guest(5);
        world.settle();
        world.guests[0].pace = Pace::Slow { frames: 1, rest_ns: 50_000 };
        let count = 5000;
        let there = world.guests[0].stack.as_mut().expect("the vif is up").udp(9, 64);
        world.guests[0].tasks.udp_sinks.push(UdpSink::new(there, 1, count, mixed));
        let here = world.far.stack.udp(9, 256);
        world.far.tasks.udp_sources.push(UdpSource::new(here, at(5, 9), 1, count, mixed));
        let before = counters(&mut world).0.rx.packets;
        world.run(60 * SECOND_NS, |world| world.far.tasks.udp_sources[0].sent() == count);
        world.settle();
        let (front, back) = counters(&mut world);
        let got = u64::from(world.guests[0].tasks.udp_sinks[0].got());
        let arp = back.rx.packets + back.drops.queue_full - u64::from(count) - before;
        assert!(back.drops.queue_full > 0, "it was overrun");
        assert!(arp <= 2, "{arp} packets too many");
        assert_eq!(front.rx.packets, back.rx.packets, "what it was given, it got");
        assert_eq!(front.rx.udp_packets, got, "and read");
        assert_eq!(back.drops.total(), back.drops.queue_full);
        world.guests[0].tasks.udp_sinks[0].assert_right();
        world.end();
    }
}
