//! The life of a vif: it waits where it must, and leaves nothing behind.

use drayage_netfront::platform::Refused;
use drayage_netfront::{Event, Options, Problem, Readiness};
use drayage_wire::keys::{self, State};
use memxen::{Faults, Hypervisor};

use crate::guest::{GUEST, Guest};
use crate::peer::{BACKEND, CONTAINERS, Peer, STOCK, frame};

/// Returns a guest with vif 0 connected to a backend that offers `features`.
pub(crate) fn connected(features: &[(&str, &str)]) -> (Guest, Peer) {
    connected_as(Options::default(), features)
}

pub(crate) fn connected_as(options: Options, features: &[(&str, &str)]) -> (Guest, Peer) {
    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    connected_on(&hv, options, features)
}

pub(crate) fn connected_on(hv: &Hypervisor, options: Options, features: &[(&str, &str)]) -> (Guest, Peer) {
    hv.create_domain(BACKEND);
    let mut guest = Guest::on(hv, options);
    let mut peer = Peer::plug(&guest.hv, 0);
    peer.offer(features);
    guest.pump();
    peer.connect();
    guest.pump();
    assert!(guest.vif(0).is_up(), "{:?}", guest.changes);
    (guest, peer)
}

#[test]
fn it_waits_for_the_backend_at_each_step() {
    let mut guest = Guest::new(Options::default());
    guest.hv.create_domain(BACKEND);
    guest.pump();
    assert!(guest.net.vifs().is_empty());
    let mut peer = Peer::plug(&guest.hv, 0);
    guest.pump();
    assert_eq!(guest.vif(0).mac(), [0, 0x16, 0x3e, 0, 0, 7]);
    assert_eq!(guest.vif(0).peer(), BACKEND);
    assert_eq!(peer.front_state(), State::Initialising);
    assert_eq!(peer.read(keys::TX_RING_REF), None, "no details before InitWait");
    assert_eq!(guest.hv.claimed_grants(GUEST), 0);

    guest.hv.set_faults(GUEST, Faults { fail_commits: 3, ..Faults::default() });
    peer.offer(STOCK);
    guest.pump();
    assert_eq!(peer.front_state(), State::Connected);
    assert_eq!(peer.read(keys::REQUEST_RX_COPY).as_deref(), Some("1"));
    assert_eq!(peer.read(keys::FEATURE_RX_NOTIFY).as_deref(), Some("1"));
    assert_eq!(peer.read(keys::FEATURE_SG).as_deref(), Some("1"));
    assert_eq!(peer.read(keys::EVENT_CHANNEL), None, "they are split");
    assert_eq!(peer.read(keys::REQUEST_RX_CONTAINERS), None, "a stock backend is asked for nothing");
    assert!(!guest.vif(0).is_up(), "the backend is not connected yet");
    assert!(!guest.send(0, &frame(60, 1)));
    assert_eq!(guest.vif(0).rearm(), Readiness::SendBlocked);

    peer.attach();
    assert_eq!(peer.rings().rx.available(), Ok(256), "all buffers are posted before we are connected");
    peer.set_state(State::Connected);
    assert_eq!(guest.events(0), [Event::Up]);
    assert!(peer.take_notified(), "what was posted before the backend came, it may have missed");
    assert!(guest.send(0, &frame(60, 1)));
    assert_eq!(guest.vif(0).mtu(), 1500);
}

#[test]
fn keys_follow_what_the_backend_offers() {
    let (mut guest, peer) = connected(CONTAINERS);
    for (key, value) in [
        (keys::REQUEST_RX_CONTAINERS, Some("1")),
        (keys::REQUEST_TX_CONTAINERS, Some("1")),
        (keys::RX_CONTAINER_MAX_BYTES, Some("65536")),
        (keys::FEATURE_RX_CONTAINER_WRAP, Some("1")),
        (keys::EVENT_CHANNEL_RX, None),
    ] {
        assert_eq!(peer.read(key).as_deref(), value, "{key}");
    }
    assert!(peer.read(keys::EVENT_CHANNEL).is_some());
    let agreed = *guest.vif(0).agreed().unwrap();
    assert_eq!(agreed.rx_container_max_bytes(), Some(65_536));
    assert_eq!(agreed.tx_container_max_bytes(), Some(65_535));

    for bad in ["4095", "x", ""] {
        let mut features = CONTAINERS.to_vec();
        features.push((keys::TX_CONTAINER_MAX_BYTES, bad));
        let (_, peer) = connected(&features);
        assert_eq!(peer.read(keys::REQUEST_TX_CONTAINERS), None, "a limit of {bad:?} is no offer");
        assert_eq!(peer.read(keys::REQUEST_RX_CONTAINERS).as_deref(), Some("1"));
    }

    let hv = Hypervisor::new();
    hv.create_domain(GUEST);
    hv.forbid_mirroring(GUEST);
    let (_guest, peer) = connected_on(&hv, Options::default(), CONTAINERS);
    assert_eq!(peer.read(keys::FEATURE_RX_CONTAINER_WRAP), None, "this platform cannot mirror");
}

#[test]
fn a_backend_that_does_not_copy_is_refused() {
    let mut guest = Guest::new(Options::default());
    let peer = Peer::plug(&guest.hv, 0);
    peer.offer(&[(keys::FEATURE_SG, "1")]);
    assert_eq!(guest.events(0), [Event::Failed(Problem::NoCopy)]);
    assert_eq!(guest.vif(0).problem(), Some(Problem::NoCopy));
    assert_eq!(peer.front_state(), State::Closed);
    guest.assert_nothing_left();
}

#[test]
fn the_mtu_key_is_heeded_within_reason() {
    let with_mtu = |mtu: &str, features| {
        let mut guest = Guest::new(Options::default());
        guest.hv.create_domain(BACKEND);
        let mut peer = Peer::plug(&guest.hv, 0);
        peer.write_front(keys::MTU, mtu);
        peer.offer(features);
        guest.pump();
        peer.connect();
        guest.pump();
        guest.vif(0).mtu()
    };
    assert_eq!(with_mtu("1400", STOCK), 1400);
    assert_eq!(with_mtu("9000", STOCK), 9000);
    assert_eq!(with_mtu("9000", &[(keys::FEATURE_RX_COPY, "1")]), 4082, "one slot without feature-sg");
    for nonsense in ["67", "65522", "many", "-1"] {
        assert_eq!(with_mtu(nonsense, STOCK), 1500);
    }
}

#[test]
fn a_closing_backend_is_followed_and_nothing_is_left() {
    let (mut guest, mut peer) = connected(STOCK);
    guest.events(0);
    peer.write(keys::ONLINE, "0");
    peer.let_go();
    peer.set_state(State::Closing);
    assert_eq!(guest.events(0), [Event::Down]);
    assert_eq!(peer.front_state(), State::Closed);
    guest.assert_nothing_left();
    peer.set_state(State::Closed);
    assert_eq!(guest.events(0), []);
    assert_eq!(peer.front_state(), State::Closed);
    peer.unplug();
    assert_eq!(guest.events(0), [Event::Removed]);
    assert!(guest.net.vifs().is_empty());
}

#[test]
fn a_vanished_backend_ends_the_vif() {
    let (mut guest, mut peer) = connected(STOCK);
    guest.events(0);
    peer.vanish();
    assert_eq!(guest.events(0), [Event::Down]);
    assert_eq!(peer.front_state(), State::Closed);
    guest.assert_nothing_left();
}

#[test]
fn unplugging_at_any_moment_leaves_nothing() {
    for step in 0..3 {
        let mut guest = Guest::new(Options::default());
        guest.hv.create_domain(BACKEND);
        let mut peer = Peer::plug(&guest.hv, 0);
        guest.pump();
        if step > 0 {
            peer.offer(CONTAINERS);
            guest.pump();
        }
        if step > 1 {
            peer.connect();
            guest.pump();
            peer.let_go();
        }
        peer.unplug();
        assert_eq!(guest.events(0).last(), Some(&Event::Removed));
        guest.assert_nothing_left();
    }
}

#[test]
fn it_connects_again_whichever_way_the_backend_comes_back() {
    let (mut guest, mut peer) = connected(CONTAINERS);
    guest.events(0);
    let mut round = 0;
    let mut again = |guest: &mut Guest, peer: &mut Peer, events: &[Event]| {
        assert_eq!(guest.events(0), events, "round {round}");
        assert_eq!(peer.front_state(), State::Connected, "round {round}");
        peer.connect();
        assert_eq!(guest.events(0), [Event::Up]);
        let container = crate::peer::pack(&[(frame(60, round), Default::default())], 0);
        peer.give(&container, 0);
        assert_eq!(guest.receive(0), [frame(60, round)]);
        assert_eq!(guest.counters(0).rx.sequence_gaps, 0, "counted from 0 at each connection");
        round += 1;
    };
    // In order: Closing, Closed, and then InitWait, as Linux does when the frontend initialises.
    peer.let_go();
    peer.set_state(State::Closing);
    assert_eq!(guest.events(0), [Event::Down]);
    assert_eq!(peer.front_state(), State::Closed);
    peer.set_state(State::Closed);
    guest.pump();
    assert_eq!(peer.front_state(), State::Initialising, "online is 1: we would start anew");
    peer.set_state(State::InitWait);
    again(&mut guest, &mut peer, &[]);
    // Straight to InitWait.
    peer.let_go();
    peer.set_state(State::InitWait);
    again(&mut guest, &mut peer, &[Event::Down]);
    // From Initialising.
    peer.let_go();
    peer.set_state(State::Initialising);
    assert_eq!(guest.events(0), [Event::Down]);
    assert_eq!(peer.front_state(), State::Initialising);
    peer.set_state(State::InitWait);
    again(&mut guest, &mut peer, &[]);
    // Another toolstack makes both directories anew under the same number.
    peer.let_go();
    peer.vanish();
    assert_eq!(guest.events(0), [Event::Down]);
    peer.unplug();
    assert_eq!(guest.events(0), [Event::Removed]);
    let mut peer = Peer::plug(&guest.hv, 0);
    peer.offer(CONTAINERS);
    guest.pump();
    again(&mut guest, &mut peer, &[]);
    guest.hv.assert_clean();
}

#[test]
fn a_toolstack_may_write_a_closed_vif_anew_in_place() {
    let (mut guest, mut peer) = connected(STOCK);
    peer.vanish();
    guest.events(0);
    let mut peer = Peer::plug(&guest.hv, 0);
    guest.pump();
    peer.offer(STOCK);
    guest.pump();
    peer.connect();
    assert_eq!(guest.events(0), [Event::Up]);
    guest.hv.assert_clean();
}

#[test]
fn vifs_are_plugged_and_unplugged_beside_each_other() {
    let (mut guest, mut first) = connected(STOCK);
    let mut second = Peer::plug(&guest.hv, 5);
    second.offer(CONTAINERS);
    guest.pump();
    second.connect();
    assert_eq!(guest.events(5), [Event::Up]);
    first.give(&frame(60, 1), 0);
    assert_eq!(guest.receive(0), [frame(60, 1)]);
    second.let_go();
    second.unplug();
    assert_eq!(guest.events(5), [Event::Down, Event::Removed]);
    assert_eq!(guest.net.vifs().len(), 1);
    first.give(&frame(60, 2), 0);
    assert_eq!(guest.receive(0), [frame(60, 2)], "the other goes on");
    guest.hv.assert_clean();
}

#[test]
fn what_the_platform_refuses_is_given_back() {
    for (nth, fault) in [
        Faults { refuse_allocations: 1, ..Faults::default() },
        Faults { refuse_grants: 1, ..Faults::default() },
        Faults { refuse_ports: 1, ..Faults::default() },
        Faults { fail_commits: 1000, ..Faults::default() },
    ]
    .into_iter()
    .enumerate()
    {
        let mut guest = Guest::new(Options::default());
        let peer = Peer::plug(&guest.hv, 0);
        guest.pump();
        guest.hv.set_faults(GUEST, fault);
        peer.offer(STOCK);
        assert!(matches!(guest.events(0)[..], [Event::Failed(_)]), "fault {nth}");
        assert_eq!(peer.front_state(), State::Closed);
        guest.assert_nothing_left();
    }
}

#[test]
fn pages_that_a_backend_holds_on_to_are_taken_back_later_and_bound_what_it_costs() {
    let (mut guest, mut peer) = connected(STOCK);
    guest.events(0);
    let mut held = Vec::new();
    for round in 0..4 {
        // It starts over and keeps the rings mapped.
        held.push(peer.rings.take());
        peer.set_state(State::InitWait);
        guest.pump();
        assert!(!guest.net.is_closed());
        if round < 3 {
            peer.connect();
            guest.pump();
            assert!(guest.vif(0).is_up());
        }
    }
    let problem = Problem::Refused(Refused::NoMemory);
    assert_eq!(guest.vif(0).problem(), Some(problem), "four connections' worth are enough");
    for rings in held {
        peer.rings = rings;
        peer.let_go();
    }
    guest.let_reclaim();
    guest.assert_nothing_left();
}

#[test]
fn closing_all_is_in_order() {
    let (mut guest, mut peer) = connected(STOCK);
    guest.events(0);
    guest.net.close();
    assert_eq!(guest.events(0), [Event::Down]);
    assert_eq!(peer.front_state(), State::Closing);
    assert!(!guest.net.is_closed(), "the backend lets go first");
    peer.let_go();
    peer.set_state(State::Closing);
    guest.pump();
    assert_eq!(peer.front_state(), State::Closed);
    assert!(guest.net.is_closed());
    // Linux's netback goes on to Closed and, being online, to InitWait: one that starts over finds nobody.
    for state in [State::Closed, State::InitWait] {
        peer.set_state(state);
        guest.pump();
        assert_eq!(peer.front_state(), State::Closed);
        assert!(guest.net.is_closed());
    }
    guest.assert_nothing_left();
}
