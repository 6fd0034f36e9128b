//! A NIC and a machine in memory, and a whole second host at the other end of the wire, for tests.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use drayage_netfront::datagram::Template;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress};

use super::nic::{Counters, Nic, Rearmed, send_by_token};
use super::run::{Change, Machine};

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a wire. Frames lie on the near side until `flush`.
pub(crate) struct FakeNic {
    pub(crate) mac: [u8; 6],
    rx: Queue,
    tx: Queue,
    staged: VecDeque<Vec<u8>>,
    /// Frames that may be staged before the ring is full.
    pub(crate) room: Rc<Cell<usize>>,
    pub(crate) armed: Rc<Cell<usize>>,
    /// The most frames that were flushed at once.
    pub(crate) most_flushed: Rc<Cell<usize>>,
    /// The largest frame.
    pub(crate) frame_bytes: usize,
    /// Datagrams that did not come from the stack.
    pub(crate) short: usize,
    counters: Counters,
}

/// Returns both ends of a wire.
pub(crate) fn wire() -> (FakeNic, FakeNic) {
    let (there, back) = (Queue::default(), Queue::default());
    let end = |mac, rx: &Queue, tx: &Queue| FakeNic {
        mac,
        rx: Rc::clone(rx),
        tx: Rc::clone(tx),
        staged: VecDeque::new(),
        room: Rc::new(Cell::new(usize::MAX)),
        armed: Rc::default(),
        most_flushed: Rc::default(),
        frame_bytes: 1514,
        short: 0,
        counters: Counters::default(),
    };
    (end([2, 0, 0, 0, 0, 1], &there, &back), end([2, 0, 0, 0, 0, 2], &back, &there))
}

impl FakeNic {
    /// Lets a frame arrive here.
    pub(crate) fn arrive(&self, frame: Vec<u8>) {
        self.rx.borrow_mut().push_back(frame);
    }

    /// Takes all frames that arrived here.
    pub(crate) fn take_all(&self) -> Vec<Vec<u8>> {
        self.rx.borrow_mut().drain(..).collect()
    }
}

pub(crate) struct RxFrame(Vec<u8>);
pub(crate) struct TxRoom<'a>(&'a mut FakeNic);

impl phy::RxToken for RxFrame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for TxRoom<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = alloc::vec![0; len];
        let result = f(&mut frame);
        if self.0.room.get() > 0 {
            self.0.room.set(self.0.room.get() - 1);
            self.0.counters.tx_frames += 1;
            self.0.staged.push_back(frame);
        } else {
            self.0.counters.tx_dropped += 1;
        }
        result
    }
}

impl Device for FakeNic {
    type RxToken<'a> = RxFrame;
    type TxToken<'a> = TxRoom<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxFrame, TxRoom<'_>)> {
        let frame = self.rx.borrow_mut().pop_front()?;
        self.counters.rx_frames += 1;
        Some((RxFrame(frame), TxRoom(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxRoom<'_>> {
        (self.room.get() > 0).then_some(TxRoom(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.frame_bytes;
        caps
    }
}

impl Nic for FakeNic {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }
    fn flush(&mut self) {
        self.most_flushed.set(self.most_flushed.get().max(self.staged.len()));
        self.tx.borrow_mut().append(&mut self.staged);
    }
    fn rearm(&mut self) -> Rearmed {
        self.armed.set(self.armed.get() + 1);
        assert!(self.staged.is_empty(), "asleep with frames that were not flushed");
        if self.rx.borrow().is_empty() { Rearmed::Armed } else { Rearmed::WorkWaiting }
    }
    fn drain(&mut self) -> bool {
        self.flush();
        self.tx.borrow().is_empty()
    }
    fn counters(&self) -> Counters {
        self.counters
    }

    fn send_datagram(
        &mut self,
        template: &mut Template,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> bool {
        let sent = send_by_token(self, template, bytes, fill);
        self.short += usize::from(sent);
        sent
    }
}

/// A host with a stack of its own.
pub(crate) struct Host {
    nic: FakeNic,
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
}

impl Host {
    pub(crate) fn new(mut nic: FakeNic, addresses: &[&str]) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac)));
        config.random_seed = 77;
        let mut interface = Interface::new(config, &mut nic, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in addresses {
                list.push(address.parse().unwrap()).unwrap();
            }
        });
        Self { nic, interface, sockets: SocketSet::new(Vec::new()) }
    }

    /// Sends what is for other networks to a router.
    pub(crate) fn route_by(&mut self, gateway: IpAddress) {
        let routes = self.interface.routes_mut();
        let _ = match gateway {
            IpAddress::Ipv4(gateway) => routes.add_default_ipv4_route(gateway).map(|_| ()),
            IpAddress::Ipv6(gateway) => routes.add_default_ipv6_route(gateway).map(|_| ()),
        };
    }

    pub(crate) fn poll(&mut self, now_ns: u64) {
        let now = Instant::from_micros((now_ns / 1000) as i64);
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
        self.nic.flush();
    }

    pub(crate) fn udp(&mut self, port: u16) -> SocketHandle {
        use smoltcp::socket::udp;
        let buffer =
            || udp::PacketBuffer::new(alloc::vec![udp::PacketMetadata::EMPTY; 4096], alloc::vec![0; 1 << 20]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        use smoltcp::socket::tcp;
        let buffer = || tcp::SocketBuffer::new(alloc::vec![0; 65_535]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn connect(&mut self, to: IpAddress, port: u16, local_port: u16) -> SocketHandle {
        use smoltcp::socket::tcp;
        let buffer = || tcp::SocketBuffer::new(alloc::vec![0; 65_535]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.interface.context(), (to, port), local_port).unwrap();
        self.sockets.add(socket)
    }
}

/// What goes on while a machine sleeps.
type World<'a> = dyn FnMut(u64, &mut VecDeque<Change>) -> Option<u64> + 'a;

/// A machine whose clock jumps while it sleeps, and that does what a test says.
pub(crate) struct FakeMachine<'a> {
    pub(crate) now_ns: u64,
    pub(crate) nics: Vec<(u32, FakeNic)>,
    pub(crate) changes: VecDeque<Change>,
    /// Sleeps, and how they ended.
    pub(crate) slept: Vec<Option<u64>>,
    /// Called in every sleep with the time and the changes to come; tells when to wake up, if not at the deadline.
    pub(crate) world: Box<World<'a>>,
}

impl Machine for FakeMachine<'_> {
    type Nic = FakeNic;
    const PREFIX: &'static str = "vif";

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn cpu_ns(&self) -> Option<u64> {
        Some(self.now_ns)
    }

    fn sleep(&mut self, until_ns: Option<u64>) {
        assert!(until_ns.is_none_or(|at| at > self.now_ns), "a sleep that is none");
        self.slept.push(until_ns);
        assert!(self.slept.len() < 100_000, "asleep for ever");
        let event = (self.world)(self.now_ns, &mut self.changes);
        let wake = event.into_iter().chain(until_ns).min().expect("asleep without an end");
        self.now_ns = wake.max(self.now_ns);
    }

    fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut FakeNic>; 2] {
        let mut found = [None, None];
        for (number, nic) in &mut self.nics {
            if let Some(at) = numbers.iter().position(|other| other == number) {
                found[at] = Some(nic);
            }
        }
        found
    }

    fn nic(&mut self, number: u32) -> Option<&mut FakeNic> {
        self.nics.iter_mut().find(|(other, _)| *other == number).map(|(_, nic)| nic)
    }
}
