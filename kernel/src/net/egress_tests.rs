//! The short way of datagrams, between a link and a card in memory: it sends what the stack would send, in order, and
//! no longer than the stack would send it there.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::wire::{IpAddress, IpEndpoint};

use super::fake::{FakeNic, wire};
use super::link::{Link, Turn};
use super::{Net, UDP_TX_DATAGRAMS, UdpHandle};
use crate::app::{App, Next, Starter};
use crate::settings::Settings;

const MS: u64 = 1_000_000;
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// Payloads that are to be sent in the next calls, one list for each call; what was not taken stays.
type Orders = Rc<RefCell<Vec<Vec<(Vec<u8>, IpEndpoint)>>>>;

/// An app that sends what it is told to, in place.
struct Puppet {
    udp: UdpHandle,
    orders: Orders,
}

impl App for Puppet {
    fn poll(&mut self, net: &mut Net<'_>) -> Next {
        let mut orders = self.orders.borrow_mut();
        if orders.is_empty() {
            return Next::OnTraffic;
        }
        let mut udp = net.udp(self.udp);
        let taken = orders[0]
            .iter()
            .take_while(|(payload, to)| {
                udp.send_with(payload.len(), *to, |place| place.copy_from_slice(payload)).is_ok()
            })
            .count();
        orders[0].drain(..taken);
        if orders[0].is_empty() {
            orders.remove(0);
        }
        Next::OnTraffic
    }
}

/// A link with its card, and the frames that left.
struct Bench {
    link: Link,
    nic: FakeNic,
    far: FakeNic,
    orders: Orders,
    now_ns: u64,
    console: String,
}

impl Bench {
    fn new() -> Self {
        let settings = Settings::parse("ip=10.0.0.2/24").unwrap();
        let (mut nic, far) = wire();
        let mut link = Link::new(0, "vif", &mut nic, settings.addressing(0), 1, MS).unwrap();
        let (orders, mut console) = (Orders::default(), String::new());
        let given = Rc::clone(&orders);
        let start: Starter =
            Box::new(move |net| Box::new(Puppet { udp: net.open_udp(4000), orders: Rc::clone(&given) }));
        link.start(&start, MS, &mut console);
        let mut bench = Self { link, nic, far, orders, now_ns: MS, console };
        bench.answer(NEIGHBOUR);
        bench.turns();
        bench.frames();
        bench
    }

    /// Lets the neighbour say where he is, asked or not.
    fn answer(&mut self, mac: [u8; 6]) {
        let mut frame = Vec::from(self.nic.mac);
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        frame.extend(mac);
        frame.extend([10, 0, 0, 1]);
        frame.extend(self.nic.mac);
        frame.extend([10, 0, 0, 2]);
        self.nic.arrive(frame);
    }

    fn turns(&mut self) {
        self.now_ns += MS;
        while self.link.turn(&mut self.nic, None, self.now_ns, &mut self.console) == Turn::Busy {}
    }

    /// Returns the datagrams over IPv4 that left.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        self.far.take_all().into_iter().filter(|frame| frame[12..14] == [8, 0]).collect()
    }

    /// Lets the app send in one call.
    fn order(&mut self, payloads: &[&[u8]]) {
        let order = payloads.iter().map(|payload| (payload.to_vec(), to(9))).collect();
        self.orders.borrow_mut().push(order);
    }

    /// As above, and returns what left, and how many of it took the short way.
    fn send(&mut self, payloads: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
        self.order(payloads);
        let before = self.nic.short;
        self.turns();
        (self.frames(), self.nic.short - before)
    }
}

fn to(port: u16) -> IpEndpoint {
    IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), port)
}

fn bodies(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    frames.iter().map(|frame| &frame[42..]).collect()
}

/// All but the first of a flow go the short way, and are byte for byte what the stack sends: an answer of the
/// neighbour makes that decide anew.
#[test]
fn every_length_is_sent_as_the_stack_sends_it() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    for len in (0..=1472).chain([0, 1472, 18]) {
        let text: Vec<u8> = (0..len).map(|at| (at * 31 + len * 7) as u8).collect();
        let (short, taken) = bench.send(&[&text]);
        assert_eq!(taken, 1, "{len} bytes");
        bench.answer(NEIGHBOUR);
        bench.turns();
        let (long, taken) = bench.send(&[&text]);
        assert_eq!(taken, 0, "{len} bytes");
        assert_eq!(short, long, "{len} bytes");
        assert_eq!((short[0].len(), &short[0][..6]), (42 + len, &NEIGHBOUR[..]));
        // After an empty one, only the next one that is not shows that it has left.
        bench.send(&[b"between"]);
    }
}

#[test]
fn what_is_longer_than_a_frame_goes_through_the_stack() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    let (frames, taken) = bench.send(&[&[7; 1473], b"next"]);
    assert_eq!((frames.len(), taken), (3, 0), "two fragments, and what must not overtake them");
    assert_eq!(frames[2][42..], *b"next");
    let (frames, taken) = bench.send(&[b"x"]);
    assert_eq!((bodies(&frames), taken), (Vec::from([&b"x"[..]]), 1));
    bench.nic.frame_bytes = 114;
    bench.link.revive(&mut bench.nic, bench.now_ns).unwrap();
    bench.answer(NEIGHBOUR);
    bench.send(&[b"first"]);
    assert_eq!(bench.send(&[&[7; 72]]).1, 1);
    assert_eq!(bench.send(&[&[7; 73]]).1, 0);
}

#[test]
fn a_neighbour_with_another_address_is_followed() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    for mac in [OTHER, NEIGHBOUR] {
        bench.answer(mac);
        let (frames, taken) = bench.send(&[b"a", b"b"]);
        assert_eq!((bodies(&frames), taken), (Vec::from([&b"a"[..], b"b"]), 0), "both were queued");
        let (more, taken) = bench.send(&[b"c", b"d"]);
        assert_eq!(taken, 2);
        assert!(frames.iter().chain(&more).all(|frame| frame[..6] == mac));
    }
}

#[test]
fn the_stack_is_asked_again_after_a_second() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    bench.now_ns += 990 * MS;
    assert_eq!(bench.send(&[b"short"]).1, 1);
    bench.now_ns += 10 * MS;
    let (frames, taken) = bench.send(&[b"long"]);
    assert_eq!((frames.len(), taken), (1, 0));
    assert_eq!(bench.send(&[b"short"]).1, 1);
    // A neighbour that says nothing for a minute is asked for, and what is for him waits.
    bench.now_ns += 61_000 * MS;
    let (frames, taken) = bench.send(&[b"1", b""]);
    assert_eq!((frames.len(), taken), (0, 0));
    let (frames, taken) = bench.send(&[b"2"]);
    assert_eq!((frames.len(), taken), (0, 0), "it overtakes nothing");
    bench.now_ns += 1100 * MS;
    bench.answer(OTHER);
    bench.turns();
    bench.now_ns += 1100 * MS;
    bench.turns();
    let frames = bench.frames();
    assert_eq!(bodies(&frames), [&b"1"[..], b"", b"2"]);
    assert!(frames.iter().all(|frame| frame[..6] == OTHER));
}

/// An empty datagram leaves no byte in a queue by which one would see it.
#[test]
fn an_empty_datagram_that_waits_is_not_overtaken() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    bench.nic.room.set(0);
    bench.now_ns += 1001 * MS;
    assert_eq!(bench.send(&[b""]).1, 0, "it waits in the stack");
    bench.now_ns += MS;
    bench.order(&[b"next"]);
    bench.nic.room.set(100);
    bench.turns();
    let frames = bench.frames();
    assert_eq!(bodies(&frames), [&b""[..], b"next"]);
    assert_eq!(bench.send(&[b"short"]).1, 1);
}

#[test]
fn a_full_card_takes_no_more_and_is_asked_when_it_has_room() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    bench.nic.room.set(2);
    let (frames, taken) = bench.send(&[b"1", b"2", b"3", b"4"]);
    assert_eq!((bodies(&frames), taken), (Vec::from([&b"1"[..], b"2"]), 2));
    let waits = bench.link.deadline_ns(bench.now_ns);
    assert!(waits.is_none_or(|at| at > bench.now_ns), "{waits:?}: an event tells of room");
    assert_eq!(bench.link.turn(&mut bench.nic, None, bench.now_ns, &mut bench.console), Turn::Idle);
    bench.nic.room.set(100);
    bench.turns();
    assert_eq!(bodies(&bench.frames()), [&b"3"[..], b"4"]);
    assert_eq!(bench.nic.short, 4, "none was queued meanwhile");
}

#[test]
fn one_call_sends_as_much_as_a_socket_holds_and_one_turn_four_times_that() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    let many: Vec<[u8; 4]> = (0..10 * UDP_TX_DATAGRAMS as u32).map(u32::to_be_bytes).collect();
    let order: Vec<&[u8]> = many.iter().map(<[u8; 4]>::as_slice).collect();
    bench.order(&order);
    let turn = bench.link.turn(&mut bench.nic, None, bench.now_ns, &mut bench.console);
    assert_eq!((turn, bench.nic.short), (Turn::Busy, 4 * UDP_TX_DATAGRAMS));
    bench.turns();
    assert_eq!(bodies(&bench.frames()), order);
    assert_eq!(bench.nic.short, order.len());
    bench.order(&[[1; 1000].as_slice(); 300]);
    bench.turns();
    assert_eq!((bench.frames().len(), bench.nic.short), (300, order.len() + 300));
}

#[test]
fn a_card_that_was_down_may_lead_elsewhere() {
    let mut bench = Bench::new();
    bench.send(&[b"first"]);
    assert_eq!(bench.send(&[b"short"]).1, 1);
    bench.link.revive(&mut bench.nic, bench.now_ns).unwrap();
    assert_eq!(bench.send(&[b"long"]).1, 0);
    assert_eq!(bench.send(&[b"short"]).1, 1);
    bench.nic.mac = [2, 0, 0, 0, 0, 9];
    bench.link.revive(&mut bench.nic, bench.now_ns).unwrap();
    bench.answer(NEIGHBOUR);
    bench.turns();
    let frames = [bench.send(&[b"long"]).0, bench.send(&[b"short"]).0].concat();
    assert_eq!(bodies(&frames), [&b"long"[..], b"short"]);
    assert!(frames.iter().all(|frame| frame[6..12] == bench.nic.mac));
}
