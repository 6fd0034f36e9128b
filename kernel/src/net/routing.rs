//! The loop as a router between two hosts with stacks of their own.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::IpAddress;

use super::allocation::datagram;
use super::fake::{FakeMachine, FakeNic, Host, wire};
use super::nic::Nic;
use super::run::{Change, run};
use crate::control::Request;
use crate::seed::{Seed, SeedSource};
use crate::settings::Settings;

const SEED: Seed = Seed { value: 42, source: SeedSource::Jitter };
const MS: u64 = 1_000_000;
const LINE: &str = "app=forward ip=10.0.0.254/24,fd00::fe/64 ip1=10.0.1.254/24,fd01::fe/64";

fn address(text: &str) -> IpAddress {
    text.parse().unwrap()
}

/// Runs a router between two hosts, each of which is polled in every sleep; `each` is called with both and the time
/// until it says that all is done. Returns the console.
fn between(each: &mut dyn FnMut(&mut [Host; 2], u64) -> bool, room: usize) -> String {
    let settings = Settings::parse(LINE).unwrap();
    let (first, first_peer) = wire();
    let (second, mut second_peer) = wire();
    let mut second = second;
    (second.mac, second_peer.mac) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
    let limit = Rc::clone(&second.room);
    limit.set(room);
    let mut hosts = [
        Host::new(first_peer, &["10.0.0.1/24", "fd00::1/64"]),
        Host::new(second_peer, &["10.0.1.1/24", "fd01::1/64"]),
    ];
    for (host, gateways) in hosts.iter_mut().zip([["10.0.0.254", "fd00::fe"], ["10.0.1.254", "fd01::fe"]]) {
        gateways.into_iter().for_each(|gateway| host.route_by(address(gateway)));
    }
    let mut console = String::new();
    let mut machine = FakeMachine {
        now_ns: MS,
        nics: Vec::from([(0, first), (1, second)]),
        changes: VecDeque::from([Change::Up(0), Change::Up(1)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, changes| {
            limit.set(room);
            hosts.iter_mut().for_each(|host| host.poll(now_ns));
            if each(&mut hosts, now_ns) {
                changes.push_back(Change::Stop(Request::PowerOff));
            }
            assert!(now_ns < 60_000 * MS, "it takes for ever");
            Some(now_ns + MS)
        }),
    };
    run(&mut machine, &mut console, &settings, SEED);
    drop(machine);
    console
}

fn socket(host: &mut Host, handle: SocketHandle) -> &mut udp::Socket<'static> {
    host.sockets.get_mut(handle)
}

#[test]
fn datagrams_of_both_families_find_their_way_both_ways() {
    let mut handles = None;
    let seen = RefCell::new([0_usize; 2]);
    let console = between(
        &mut |hosts, _| {
            let handles = *handles.get_or_insert_with(|| {
                let handles = [hosts[0].udp(4000), hosts[1].udp(4000)];
                for at in 0..50_u8 {
                    for to in ["10.0.1.1", "fd01::1"] {
                        socket(&mut hosts[0], handles[0]).send_slice(&[at; 30], (address(to), 4000)).unwrap();
                    }
                    for to in ["10.0.0.1", "fd00::1"] {
                        socket(&mut hosts[1], handles[1]).send_slice(&[at; 30], (address(to), 4000)).unwrap();
                    }
                }
                handles
            });
            for (at, handle) in handles.into_iter().enumerate() {
                while let Ok((bytes, from)) = socket(&mut hosts[at], handle).recv() {
                    assert_eq!(bytes.len(), 30);
                    let sender = [["10.0.1.1", "fd01::1"], ["10.0.0.1", "fd00::1"]][at].map(address);
                    assert!(sender.contains(&from.endpoint.addr), "{from}");
                    seen.borrow_mut()[at] += 1;
                }
            }
            *seen.borrow() == [100, 100]
        },
        usize::MAX,
    );
    assert_eq!(console.matches("forward: vif").count(), 4, "{console}");
    assert!(console.contains("forward: vif0: packets=100 dropped=0"), "{console}");
    assert!(console.contains("forward: vif1: packets=100 dropped=0"), "{console}");
}

#[test]
fn a_stream_crosses_whole_and_a_slow_way_out_slows_the_way_in_down() {
    const BYTES: usize = 300_000;
    for room in [usize::MAX, 3] {
        let mut handles = None;
        let (mut sent, mut read) = (0, 0);
        let console = between(
            &mut |hosts, _| {
                let (client, server) = *handles.get_or_insert_with(|| {
                    let client = hosts[0].connect(address("10.0.1.1"), 80, 5000);
                    let buffer = || tcp::SocketBuffer::new(alloc::vec![0; 65_535]);
                    let mut server = tcp::Socket::new(buffer(), buffer());
                    server.listen(80).unwrap();
                    (client, hosts[1].sockets.add(server))
                });
                let client = hosts[0].sockets.get_mut::<tcp::Socket>(client);
                while client.can_send() && sent < BYTES {
                    sent += client.send_slice(&[7; 1000][..(BYTES - sent).min(1000)]).unwrap();
                }
                let server = hosts[1].sockets.get_mut::<tcp::Socket>(server);
                while server.can_recv() {
                    read += server.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
                }
                read == BYTES
            },
            room,
        );
        // With three frames a millisecond, packets wait before the router, and none is lost in it.
        assert!(console.contains(" dropped=0 "), "{console}");
        assert!(!console.contains(" full=1"), "{console}");
    }
}

#[test]
fn a_way_out_that_takes_nothing_blocks_nobody_for_long() {
    let mut handles = None;
    let mut answered_at_ns = 0;
    let console = between(
        &mut |hosts, now_ns| {
            let handle = *handles.get_or_insert_with(|| hosts[0].udp(4000));
            let socket = socket(&mut hosts[0], handle);
            if socket.can_send() {
                socket.send_slice(&[1; 30], (address("10.0.1.1"), 4000)).unwrap();
                socket.send_slice(&[1; 30], (address("10.0.0.254"), 10)).unwrap();
            }
            if socket.recv().is_ok() {
                answered_at_ns = now_ns;
            }
            now_ns > 500 * MS
        },
        0,
    );
    assert!(answered_at_ns > 400 * MS, "the counters are told all along\n{console}");
}

fn send_by_far(far: &mut FakeNic, frame: &[u8]) {
    far.send_frame(frame.len(), |place| place.copy_from_slice(frame));
    far.flush();
}

/// Frames for one neighbour on the other side.
fn crossing(count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut frame = datagram(9, 60);
    frame[30..34].copy_from_slice(&[10, 0, 1, 1]);
    frame[24..26].fill(0);
    let check = !drayage_wire::checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    core::iter::repeat_n(frame, count)
}

#[test]
fn what_is_passed_on_is_heard_of_by_the_container_and_no_later_than_all_came_in() {
    const COUNT: usize = 3000;
    let settings = Settings::parse("app=forward ip=10.0.0.2/24 ip1=10.0.1.254/24").unwrap();
    let (first, mut far) = wire();
    let (mut second, mut second_peer) = wire();
    (second.mac, second_peer.mac) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
    let most = Rc::clone(&second.most_flushed);
    let mut host = Host::new(second_peer, &["10.0.1.1/24"]);
    let handle = host.udp(9);
    let (mut sleeps, mut received) = (0, 0);
    let mut machine = FakeMachine {
        now_ns: MS,
        nics: Vec::from([(0, first), (1, second)]),
        changes: VecDeque::from([Change::Up(0), Change::Up(1)]),
        slept: Vec::new(),
        world: Box::new(|now_ns, changes| {
            sleeps += 1;
            // The first frame finds out where the others go.
            let counts = [(1, 1), (10, COUNT)];
            if let Some((_, count)) = counts.iter().find(|(at, _)| *at == sleeps) {
                for frame in crossing(*count) {
                    send_by_far(&mut far, &frame);
                }
            }
            let before = received;
            host.poll(now_ns);
            while socket(&mut host, handle).recv().is_ok() {
                received += 1;
            }
            if sleeps == 11 {
                assert_eq!(received - before, COUNT, "all of them are there when the guest sleeps again");
                changes.push_back(Change::Stop(Request::PowerOff));
            }
            Some(now_ns + MS)
        }),
    };
    run(&mut machine, &mut String::new(), &settings, SEED);
    drop(machine);
    let frames = 65_536 / 60;
    assert!((frames..=frames + 256).contains(&most.get()), "{} at once", most.get());
}
