//! The real driver, the real worker and the real control path together: guests that come, go, come again and die, two
//! at once, in mid-traffic, and frontends whose keys make no sense.

use drayage::class::Classes;
use drayage::control::AttachRequest;
use drayage::control::details::{Containers, Mapping};
use drayage::control::error::FailureKind;
use drayage::policy::Policy;
use drayage::switch::Mac;
use drayage_tests::hand::DOM0;
use drayage_tests::host::{TcpSink, TcpSource, UdpSink, UdpSource};
use drayage_tests::inhabitants::HANDLE;
use drayage_tests::world::{ControlPath, Shape, World, name_of};
use drayage_wire::keys::{self, State};
use memxen::DomainId;
use memxen::store::NO_TRANSACTION;
use smoltcp::wire::{IpAddress, IpEndpoint};

const SECOND_NS: u64 = 1_000_000_000;

fn world(containers: Containers) -> World {
    World::new(Shape { control: ControlPath::Real(containers), ..Shape::default() })
}

fn sizes(n: u32) -> usize {
    8 + (n as usize * 131) % 1465
}

/// Adds a stream of datagrams from the far host to a guest. Returns the index of its sink.
fn stream(world: &mut World, index: usize, stream: u32, count: u32) -> usize {
    let guest = &mut world.guests[index];
    let id = guest.id.0 as u8;
    let port = 2000 + stream as u16;
    let there = guest.stack.as_mut().expect("the vif was up").udp(port, 256);
    guest.tasks.udp_sinks.push(UdpSink::new(there, stream, count, sizes));
    let here = world.far.stack.udp(port, 256);
    let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, id), port);
    world.far.tasks.udp_sources.push(UdpSource::new(here, to, stream, count, sizes));
    world.guests[index].tasks.udp_sinks.len() - 1
}

/// Lets the far host and every guest learn each other's addresses: a stack asks for one at a time, once a second.
fn greet(world: &mut World) {
    world.settle();
    for index in 0..world.guests.len() {
        let sink = stream(world, index, 90 + index as u32, 1);
        world.run(10 * SECOND_NS, |world| world.guests[index].tasks.udp_sinks[sink].got() == 1);
    }
    world.settle();
}

#[test]
fn two_guests_are_served_at_once_and_each_other() {
    for containers in [Containers::On, Containers::Off] {
        let mut world = world(containers);
        let (a, b) = (world.add_guest(5), world.add_guest(6));
        greet(&mut world);
        let (to_a, to_b) = (stream(&mut world, a, 1, 4000), stream(&mut world, b, 2, 4000));
        // And from one guest to the other, which the far host does not see.
        let to = IpEndpoint::new(IpAddress::v4(10, 0, 0, 6), 3000);
        let from = world.guests[a].stack.as_mut().expect("up").connect(to, 50_000);
        world.guests[a].tasks.tcp_sources.push(TcpSource::new(from, 3, 2_000_000));
        let at = world.guests[b].stack.as_mut().expect("up").listen(3000);
        world.guests[b].tasks.tcp_sinks.push((TcpSink::new(at, 3), usize::MAX));
        world.wake(a);
        world.run(60 * SECOND_NS, |world| {
            world.guests[a].tasks.udp_sinks[to_a].got() == 4000
                && world.guests[b].tasks.udp_sinks[to_b].got() == 4000
                && world.guests[b].tasks.tcp_sinks[0].0.got() == 2_000_000
        });
        let (sink, source) = (&world.guests[b].tasks.tcp_sinks[0].0, &world.guests[a].tasks.tcp_sources[0]);
        assert_eq!((sink.wrong, sink.hash()), (0, source.hash()));
        world.guests[a].tasks.udp_sinks[to_a].assert_right();
        world.guests[b].tasks.udp_sinks[to_b].assert_right();
        world.end();
    }
}

#[test]
fn a_guest_that_is_detached_and_attached_again_in_mid_traffic_goes_on() {
    for containers in [Containers::On, Containers::Off] {
        let mut world = world(containers);
        let (a, b) = (world.add_guest(5), world.add_guest(6));
        greet(&mut world);
        let (to_a, to_b) = (stream(&mut world, a, 1, 50_000), stream(&mut world, b, 2, 50_000));
        for round in 1..=5u32 {
            world.run(60 * SECOND_NS, |world| world.guests[a].tasks.udp_sinks[to_a].got() >= round * 500);
            world.detach(a);
            // The neighbour is served while the other is gone.
            let there = world.guests[b].tasks.udp_sinks[to_b].got();
            world.run(60 * SECOND_NS, |world| world.guests[b].tasks.udp_sinks[to_b].got() >= there + 500);
            world.attach(a);
        }
        let before = world.guests[a].tasks.udp_sinks[to_a].got();
        world.run(60 * SECOND_NS, |world| world.guests[a].tasks.udp_sinks[to_a].got() >= before + 500);
        world.run(60 * SECOND_NS, |world| world.guests[b].tasks.udp_sinks[to_b].got() == 50_000);
        world.guests[a].tasks.udp_sinks[to_a].assert_right();
        world.guests[b].tasks.udp_sinks[to_b].assert_right();
        world.end();
    }
}

#[test]
fn a_guest_that_dies_in_mid_traffic_leaves_nothing_and_the_other_is_served() {
    let mut world = world(Containers::On);
    let (a, b) = (world.add_guest(5), world.add_guest(6));
    world.settle();
    let (to_a, to_b) = (stream(&mut world, a, 1, 50_000), stream(&mut world, b, 2, 20_000));
    world.run(60 * SECOND_NS, |world| world.guests[a].tasks.udp_sinks[to_a].got() >= 1000);
    world.destroy(a);
    let b = b - 1;
    let control = world.control.as_mut().expect("the world has one");
    assert!(control.manager.connected(&name_of(DomainId(5)), None).is_none());
    assert!(control.manager.connected(&name_of(DomainId(6)), None).is_some());
    let gone: Vec<_> = control.manager.list().iter().map(|i| (i.domain, i.state.clone())).collect();
    assert!(gone.contains(&(None, "gone".into())), "{gone:?}");
    world.run(60 * SECOND_NS, |world| world.guests[b].tasks.udp_sinks[to_b].got() == 20_000);
    world.guests[b].tasks.udp_sinks[to_b].assert_right();

    // The toolstack starts it anew, under another number: it is known by its UUID.
    let id = DomainId(9);
    let again = world.add_domain(9);
    world.control.as_ref().expect("one").name(drayage::xen::DomainId(id.0), "guest5", "uuid-5");
    world.reintroduce(id);
    world.negotiate();
    assert!(world.guests[again].vif().is_up());
    let control = world.control.as_mut().expect("one");
    assert!(control.manager.connected("guest5", None).is_some(), "{:?}", control.manager.list());
    let failure = control.manager.detach("guest5", None, 0).err();
    assert_eq!(failure, None);
    world.negotiate();
    assert!(world.guests[again].driver.vif_mut(HANDLE).is_none());
}

#[test]
fn keys_that_make_no_sense_are_refused_and_named() {
    for (key, value) in [
        (keys::TX_RING_REF, "nonsense"),
        (keys::TX_RING_REF, "-1"),
        (keys::RX_RING_REF, "4294967296"),
        (keys::RX_RING_REF, "7"),
        (keys::EVENT_CHANNEL_TX, "99999"),
        (keys::REQUEST_RX_COPY, "0"),
        (keys::REQUEST_RX_CONTAINERS, "2"),
        (keys::REQUEST_TX_CONTAINERS, "9"),
        (keys::RX_CONTAINER_MAX_BYTES, "4095"),
    ] {
        let mut world = world(Containers::On);
        let neighbour = world.add_guest(6);
        let liar = world.add_guest(5);
        let id = world.guests[liar].id;
        let dir = format!("/local/domain/{}/device/vif/0", id.0);
        let store = world.hv.connect_store(id);
        let write = |key: &str, value: &str| {
            store.write(NO_TRANSACTION, &format!("{dir}/{key}"), value.as_bytes()).expect("its own");
        };
        // It begins anew, and connects with other keys.
        write(keys::STATE, State::Initialising.value());
        let control = world.control.as_mut().expect("one");
        control.pump(0);
        write(key, value);
        write(keys::STATE, State::Connected.value());
        control.pump(0);
        let back = world.hv.connect_store(DOM0);
        let path = format!("/local/domain/0/backend/{}/{}/0/{}", keys::BACKEND_TYPE, id.0, keys::STATE);
        let state = State::parse(&back.read(NO_TRANSACTION, &path).expect("the node is there"));
        assert_eq!(state, State::Closing, "{key} {value}");
        let control = world.control.as_mut().expect("one");
        assert!(control.manager.connected(&name_of(id), None).is_none(), "{key} {value}");

        world.settle();
        let there = stream(&mut world, neighbour, 1, 100);
        world.run(SECOND_NS, |world| world.guests[neighbour].tasks.udp_sinks[there].got() == 100);
        world.guests[neighbour].tasks.udp_sinks[there].assert_right();
        world.hv.assert_clean();
    }
}

#[test]
fn requests_that_cannot_be_met_name_what_is_wrong() {
    let mut world = world(Containers::On);
    world.add_guest(5);
    let request = |domain: &str| AttachRequest {
        domain: domain.into(),
        vif: None,
        mac: None,
        port: None,
        policy: Policy::default(),
        urgent: Classes::default(),
        size_bytes: 65_536,
        containers: Containers::On,
        mapping: Mapping::default().into(),
        rules: Default::default(),
    };
    let control = world.control.as_mut().expect("one");
    let mut refused = |request: AttachRequest, kind: FailureKind, named: &[&str]| {
        let failure = control.manager.attach(&request).expect_err("it is refused");
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(named.iter().all(|part| failure.message.contains(part)), "{failure}");
    };
    refused(request("guest6"), FailureKind::NotFound, &["\"guest6\"", "guest5 (5)", "xl list"]);
    refused(
        request("guest5"),
        FailureKind::Taken,
        &["\"guest5\"", "attached already", "drayage detach guest5"],
    );
    refused(request("5"), FailureKind::Taken, &["attached already"]);
    let again = AttachRequest { vif: Some(0), ..request("guest5") };
    refused(again, FailureKind::Taken, &["interface 0", "--vif"]);
    let twin = AttachRequest { vif: Some(1), mac: Some(Mac([2, 0, 0, 0, 1, 5])), ..request("guest5") };
    refused(twin, FailureKind::Taken, &["02:00:00:00:01:05"]);
    let group = AttachRequest { vif: Some(1), mac: Some(Mac([3; 6])), ..request("guest5") };
    refused(group, FailureKind::BadValue, &["03:03:03:03:03:03"]);
    for size_bytes in [0, 4095, 65_537] {
        let wrong = AttachRequest { vif: Some(1), size_bytes, ..request("guest5") };
        refused(wrong, FailureKind::BadValue, &[&size_bytes.to_string(), "4096 to 65536"]);
    }
    let failure = control.manager.detach("guest6", None, 0).expect_err("there is none");
    assert_eq!(failure.kind, FailureKind::NotFound);
    let failure = control.manager.detach("guest5", Some(3), 0).expect_err("there is none");
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert_eq!(control.manager.list().len(), 1, "and nothing is left of any of it");
    world.end();
}
