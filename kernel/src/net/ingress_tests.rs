//! Whatever comes, an app sees the same of it by the short way and by the stack alone; nothing changes places.

use alloc::string::String;
use alloc::vec::Vec;

use drayage_netfront::inbox::Inboxes;
use drayage_wire::checksum;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpEndpoint};

use super::fake::{FakeNic, wire};
use super::ingress::{self, Ingress};
use super::io::{Net, UdpHandle};
use super::nic::{Counters, Nic as _};
use super::watch::{Watch, Watched};
use crate::forward::Routed;

const MS: u64 = 1_000_000;
const HEADERS: usize = 42;

/// What an app is told of a datagram.
type Told = (Vec<u8>, IpEndpoint, Option<smoltcp::wire::IpAddress>);

/// A stack with an app's two sockets on ports 9 and 10.
struct Guest {
    nic: FakeNic,
    peer: FakeNic,
    interface: Interface,
    sockets: SocketSet<'static>,
    watch: Watch,
    inboxes: Inboxes,
    handles: Vec<UdpHandle>,
    now_ns: u64,
}

impl Guest {
    /// Returns one with the short way, or without it: its ports were never opened there.
    fn new(short: bool) -> Self {
        let (mut nic, peer) = wire();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac)));
        let mut interface = Interface::new(config, &mut nic, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in ["10.0.0.2/24", "172.16.0.1/31", "fd00::2/64"] {
                list.push(address.parse().unwrap()).unwrap();
            }
        });
        let (sockets, watch) = (SocketSet::new(Vec::new()), Watch::default());
        let mut guest = Self {
            nic,
            peer,
            interface,
            sockets,
            watch,
            inboxes: Inboxes::default(),
            handles: Vec::new(),
            now_ns: MS,
        };
        guest.handles = [9, 10].map(|port| guest.with_net(|net| net.open_udp(port))).into();
        if !short {
            guest.inboxes = Inboxes::default();
        }
        guest
    }

    fn with_net<R>(&mut self, act: impl FnOnce(&mut Net<'_>) -> R) -> R {
        let mut console = String::new();
        act(&mut Net {
            card: None,
            name: "vif0",
            now_ns: self.now_ns,
            counters: Counters::default(),
            routed: Routed::default(),
            interface: &mut self.interface,
            sockets: &mut self.sockets,
            watch: &mut self.watch,
            inboxes: &mut self.inboxes,
            console: &mut console,
        })
    }

    fn turn(&mut self) {
        let now = Instant::from_micros((self.now_ns / 1000) as i64);
        self.watch.begin_batch();
        ingress::begin(&mut self.inboxes, &self.nic, &self.interface, self.now_ns);
        let Self { interface, sockets, watch, inboxes, .. } = self;
        Ingress { interface, sockets, watch, inboxes }.take_batch(&mut self.nic, None, now);
        let mut device = Watched { device: &mut self.nic, watch: &mut self.watch };
        self.interface.poll_egress(now, &mut device, &mut self.sockets);
        self.nic.flush();
    }

    /// Reads at most so many datagrams of a socket.
    fn read(&mut self, which: usize, most: usize) -> Vec<Told> {
        let handle = self.handles[which];
        self.with_net(|net| {
            let mut udp = net.udp(handle);
            let mut told = Vec::new();
            while told.len() < most
                && let Some(datagram) = udp.receive()
            {
                told.push((datagram.bytes.to_vec(), datagram.from, datagram.to));
            }
            told
        })
    }

    fn dropped(&mut self) -> u64 {
        self.with_net(|net| net.dropped())
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        self.peer.take_all()
    }
}

/// Numbers that look random.
struct Random(u32);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % below
    }
}

/// Returns a datagram to us whose payload begins with a number.
fn datagram(number: u32, to: [u8; 4], port: u16, payload_bytes: usize) -> Vec<u8> {
    let mut frame = alloc::vec![0; HEADERS + payload_bytes.max(4)];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let total = (frame.len() - 14) as u16;
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 0, 0, 0, 0]);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[30..34].copy_from_slice(&to);
    frame[34..36].copy_from_slice(&4000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    frame[42..46].copy_from_slice(&number.to_be_bytes());
    frame
}

fn set_sums(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = !checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    checksum::fill(frame);
}

/// Returns a frame that is a plain datagram, or nearly one.
fn any_frame(random: &mut Random, number: u32) -> Vec<u8> {
    let to = [[10, 0, 0, 2], [10, 0, 0, 2], [172, 16, 0, 1], [10, 0, 0, 3], [10, 0, 0, 255]][random.below(5)];
    let port = [9, 9, 10, 11][random.below(4)];
    let payload_bytes = random.below(80);
    let mut frame = datagram(number, to, port, payload_bytes);
    if random.below(3) == 0 {
        frame[26..30]
            .copy_from_slice(&[[10, 0, 0, 255], [0; 4], [224, 0, 0, 9], [172, 16, 0, 0]][random.below(4)]);
    }
    let changed = random.below(2) == 0;
    for _ in 0..if changed { 1 + random.below(2) } else { 0 } {
        let at = random.below(HEADERS);
        frame[at] =
            if random.below(2) == 0 { frame[at] ^ 1 << random.below(8) } else { random.below(256) as u8 };
    }
    // Most often all else is right.
    if random.below(8) != 0 {
        set_sums(&mut frame);
    }
    if random.below(4) == 0 {
        frame.resize(frame.len() + random.below(20), 0xee);
    }
    frame.truncate(frame.len() - [0, 0, 0, random.below(30)][random.below(4)]);
    frame
}

#[test]
fn an_app_sees_the_same_of_any_frame_by_both_ways() {
    let mut random = Random(1);
    let mut guests = [Guest::new(true), Guest::new(false)];
    let (mut told_all, mut number) = (0, 0);
    for round in 0..4000 {
        let frames = random.below(9);
        for _ in 0..frames {
            let frame = any_frame(&mut random, number);
            number += 1;
            guests.iter().for_each(|guest| guest.nic.arrive(frame.clone()));
        }
        // A reader that is slow now and then leaves some for the next time.
        let most = [usize::MAX, 1, 3][random.below(3)];
        for which in [0, 1] {
            let [short, long] = guests.each_mut().map(|guest| {
                if which == 0 {
                    guest.now_ns += 300 * MS;
                    guest.turn();
                }
                guest.read(which, most)
            });
            assert_eq!(short, long, "round {round}");
            told_all += short.len();
        }
        let [short, long] = guests.each_mut().map(Guest::sent);
        assert_eq!(short, long, "what the stack answers, round {round}");
    }
    for which in [0, 1] {
        let [short, long] = guests.each_mut().map(|guest| guest.read(which, usize::MAX));
        assert_eq!(short, long);
        told_all += short.len();
    }
    let [short, long] = guests.each_mut().map(Guest::dropped);
    assert_eq!(short, long);
    assert!(told_all > 3000 && long > 500, "{told_all} of {number} were told, {long} dropped");
}

#[test]
fn a_full_queue_loses_the_newest_and_counts_them() {
    let mut guest = Guest::new(true);
    let frame = |number| {
        let mut frame = datagram(number, [10, 0, 0, 2], 9, 1472);
        set_sums(&mut frame);
        frame
    };
    (0..200).for_each(|number| guest.nic.arrive(frame(number)));
    for _ in 0..10 {
        guest.turn();
    }
    let told = guest.read(0, usize::MAX);
    assert!((90..200).contains(&told.len()), "{}", told.len());
    for (at, (bytes, ..)) in told.iter().enumerate() {
        assert_eq!(bytes[..4], (at as u32).to_be_bytes());
    }
    assert_eq!(guest.dropped(), 200 - told.len() as u64);
    // One that comes afterwards finds room.
    guest.nic.arrive(frame(7));
    guest.turn();
    assert_eq!(guest.read(0, usize::MAX).len(), 1);
}
