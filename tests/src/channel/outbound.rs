//! What an application in a guest sends: into nothing, into the backend's uplink, and to another guest. The
//! application is as quick as it can be, and the loop is the kernel's: what the stack has decided once is repeated past it,
//! but for what goes into nothing.

use super::{
    Back, Connector, GUEST, GUEST_MAC, HANDLE, Inboxes, LAN, Memory, Netfront, Offers, PORT, Reader, Stack,
    Steps, Way, Worker, inboxes, instant, pump, take_batch,
};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use drayage::policy::Policy;
use drayage::port::{Budget, Sent, Uplink};
use drayage::switch::Mac;
use drayage::worker::Settings;
use drayage_netfront::datagram::{Flow, Flows};
use drayage_netfront::platform::DomainId;
use drayage_netfront::{Options, Shown, Vif};
use drayage_wire::container::Meta;
use memxen::Hypervisor;
use memxen::front::Front;
use smoltcp::iface::{PollIngressSingleResult, PollResult, SocketHandle};
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpEndpoint};

/// Where the application sends from.
const FROM_PORT: u16 = 4000;
const OTHER: DomainId = DomainId(6);
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 6];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Datagrams and bytes that the socket holds: the kernel's.
const DATAGRAMS: usize = 256;
const BYTES: usize = 128 << 10;
/// Times that the application may fill its socket before what it sent is handed over: the kernel's.
const ROUNDS: usize = 4;
/// Ethernet's, IPv4's and UDP's headers.
const HEADERS: usize = 42;

/// A question for the guest's address, from which its stack learns whose it is that asks.
fn question() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&FAR_MAC);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&FAR_MAC);
    frame[28..32].copy_from_slice(&[10, 0, 0, 1]);
    frame[38..42].copy_from_slice(&[10, 0, 0, 5]);
    frame
}

/// An application that sends numbered datagrams.
struct Sender {
    socket: SocketHandle,
    to: IpEndpoint,
    flow: Flow,
    len: usize,
    sent: u64,
    until: u64,
}

/// Writes a datagram's payload.
fn write(payload: &mut [u8], number: u64) {
    let (place, rest) = payload.split_at_mut(8);
    place.copy_from_slice(&number.to_be_bytes());
    rest.fill(0);
}

impl Sender {
    fn new(stack: &mut Stack, to: [u8; 4], frame_bytes: usize) -> Self {
        let [a, b, c, d] = to;
        let flow = Flow { from: [0; 4], to, from_port: FROM_PORT, to_port: PORT };
        let to = IpEndpoint::new(IpAddress::v4(a, b, c, d), PORT);
        let buffer = |datagrams, bytes| {
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; datagrams], vec![0; bytes])
        };
        let mut socket = udp::Socket::new(buffer(4, 4096), buffer(DATAGRAMS, BYTES));
        socket.bind(FROM_PORT).expect("a port other than 0");
        let socket = stack.sockets.add(socket);
        Self { socket, to, flow, len: frame_bytes - HEADERS, sent: 0, until: 0 }
    }

    fn turn(&mut self, stack: &mut Stack) {
        let socket = stack.udp_socket(self.socket);
        while self.sent < self.until {
            let Ok(payload) = socket.send(self.len, self.to) else { return };
            write(payload, self.sent);
            self.sent += 1;
        }
    }

    /// As above, past the stack where that has nothing left to decide.
    fn short_turn(&mut self, stack: &mut Stack, vif: &mut Vif<Front>, flows: &mut Flows, now_ns: u64) {
        if stack.udp_socket(self.socket).send_queue() > 0 || flows.find(self.flow, now_ns).is_none() {
            self.turn(stack);
            let source = IpAddress::v4(10, 0, 0, 5);
            assert_eq!(stack.interface.get_source_address(&self.to.addr), Some(source));
            flows.await_frame(self.flow, [10, 0, 0, 5]);
            return;
        }
        for _ in 0..DATAGRAMS.min((self.until - self.sent) as usize) {
            let Some(template) = flows.find(self.flow, now_ns) else { return };
            let number = self.sent;
            if !vif.send_datagram(template, self.len, |payload| write(payload, number)) {
                return;
            }
            self.sent += 1;
        }
    }
}

/// A card whose frames are shown to flows.
struct Learning<'a> {
    vif: &'a mut Vif<Front>,
    flows: &'a mut Flows,
    now_ns: u64,
}

impl Device for Learning<'_> {
    type RxToken<'b>
        = <Vif<Front> as Device>::RxToken<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Shown<'b, <Vif<Front> as Device>::TxToken<'b>>
    where
        Self: 'b;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (frame, token) = self.vif.receive(now)?;
        Some((frame, Shown { token, to: None }))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        let token = self.vif.transmit(now)?;
        Some(Shown { token, to: Some((self.flows, self.now_ns)) })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.vif.capabilities()
    }
}

/// Lets the stack send all that it has.
fn send_all(stack: &mut Stack, device: &mut impl Device, now_ns: u64) {
    let Stack { interface, sockets } = stack;
    while interface.poll_egress(instant(now_ns), device, sockets) == PollResult::SocketStateChanged {}
}

/// A stack that sends into nothing.
pub struct Alone {
    stack: Stack,
    sender: Sender,
    memory: Memory,
}

impl Alone {
    pub(super) fn new(frame_bytes: usize) -> Self {
        let mut memory = Memory::new(question(), 1);
        let mut stack = Stack::new(&mut memory, GUEST_MAC, "10.0.0.5/24");
        let sender = Sender::new(&mut stack, [10, 0, 0, 1], frame_bytes);
        let Stack { interface, sockets } = &mut stack;
        let asked = interface.poll_ingress_single(instant(0), &mut memory, sockets);
        assert!(asked != PollIngressSingleResult::None, "the question came");
        Self { stack, sender, memory }
    }

    pub(super) fn run(&mut self, count: u64) {
        let Self { stack, sender, memory } = self;
        sender.until += count;
        let wanted = memory.thrown.frames + count;
        while memory.thrown.frames < wanted {
            sender.turn(stack);
            send_all(stack, memory, 0);
        }
    }
}

/// An uplink that asks once, and throws away what it gets.
struct Beyond {
    question: Option<Vec<u8>>,
    taken: Arc<AtomicU64>,
}

impl Uplink for Beyond {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        if let Some(frame) = self.question.take() {
            budget.spend(frame.len());
            each(&frame, Meta::default());
        }
    }

    fn send(&mut self, frame: &[u8], _: Meta) -> Sent {
        let ours = std::hint::black_box(frame).get(12..14) == Some(&[8, 0]);
        self.taken.fetch_add(u64::from(ours), Ordering::Relaxed);
        Sent::Yes
    }
}

/// A guest's driver and stack.
struct Guest {
    driver: Netfront<Front>,
    stack: Stack,
    inboxes: Inboxes,
    flows: Flows,
}

impl Guest {
    fn new(
        hv: &Hypervisor,
        connector: &mut Connector,
        worker: &mut Worker<Back, Steps>,
        (id, mac, address): (DomainId, [u8; 6], [u8; 4]),
    ) -> Self {
        hv.create_domain(id);
        let platform = Front::new(hv, id);
        let mut driver = Netfront::new(platform.clone(), Options::default()).expect("xenstore works");
        connector.plug(id, mac);
        pump(&mut driver, &platform);
        connector.connect(worker, id, Mac(mac)).expect("it connects");
        pump(&mut driver, &platform);
        let vif = driver.vif_mut(HANDLE).expect("the guest has a vif");
        let [a, b, c, d] = address;
        let stack = Stack::new(vif, mac, &format!("{a}.{b}.{c}.{d}/24"));
        Self { driver, stack, inboxes: inboxes(mac, address), flows: Flows::default() }
    }

    /// One waking of the guest: the kernel's loop, with an application that `act`s.
    fn turn(
        &mut self,
        now_ns: u64,
        mut act: impl FnMut(&mut Stack, &mut Inboxes, &mut Vif<Front>, &mut Flows),
    ) {
        let vif = self.driver.vif_mut(HANDLE).expect("the guest has a vif");
        let Self { stack, inboxes, flows, .. } = self;
        loop {
            let more = take_batch(vif, instant(now_ns), stack, inboxes);
            for _ in 0..ROUNDS {
                act(stack, inboxes, vif, flows);
                send_all(stack, &mut Learning { vif, flows, now_ns }, now_ns);
            }
            vif.flush();
            if !more {
                break;
            }
        }
        vif.rearm();
    }
}

/// A guest that sends, a backend, and somebody who takes it.
pub struct Outbound {
    worker: Worker<Back, Steps>,
    steps: Steps,
    from: Guest,
    sender: Sender,
    to: Option<(Guest, Reader)>,
    taken: Arc<AtomicU64>,
    _connector: Connector,
}

impl Outbound {
    pub(super) fn new(way: Way, frame_bytes: usize) -> Self {
        let hv = Hypervisor::new();
        let steps = Steps::default();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&hv), steps.clone(), settings);
        let mut connector = Connector::new(&hv, Offers::default(), Policy::default());
        let taken = Arc::new(AtomicU64::new(0));
        let between = way == Way::Between;
        if !between {
            let beyond = Beyond { question: Some(question()), taken: Arc::clone(&taken) };
            worker.add_uplink(LAN, Box::new(beyond)).expect("a new worker has room");
        }
        let mut from = Guest::new(&hv, &mut connector, &mut worker, (GUEST, GUEST_MAC, [10, 0, 0, 5]));
        let to = between.then(|| {
            let mut guest = Guest::new(&hv, &mut connector, &mut worker, (OTHER, OTHER_MAC, [10, 0, 0, 6]));
            let reader = Reader::new(&mut guest.stack);
            (guest, reader)
        });
        let address = if between { [10, 0, 0, 6] } else { [10, 0, 0, 1] };
        let sender = Sender::new(&mut from.stack, address, frame_bytes);
        let mut outbound = Self { worker, steps, from, sender, to, taken, _connector: connector };
        // Neighbours get to know each other.
        outbound.run(1);
        outbound
    }

    fn taken(&self) -> u64 {
        match &self.to {
            Some((_, reader)) => reader.read,
            None => self.taken.load(Ordering::Relaxed),
        }
    }

    pub(super) fn run(&mut self, count: u64) {
        self.sender.until += count;
        let mut idle = 0;
        while self.sender.sent < self.sender.until || self.taken() < self.sender.until {
            let before = self.taken();
            self.steps.0.set(self.steps.0.get() + 1000);
            let now_ns = self.steps.0.get();
            let sender = &mut self.sender;
            self.from.turn(now_ns, |stack, _, vif, flows| sender.short_turn(stack, vif, flows, now_ns));
            self.worker.pass();
            if let Some((guest, reader)) = &mut self.to {
                guest.turn(now_ns, |stack, inboxes, _, _| reader.turn(stack, inboxes));
            }
            idle = if self.taken() == before { idle + 1 } else { 0 };
            assert!(idle < 1000, "{} of {} frames came", self.taken(), self.sender.until);
        }
    }

    /// Returns how many frames went in a container, on average.
    pub(super) fn frames_per_container(&mut self) -> f64 {
        let counters = self.from.driver.vif_mut(HANDLE).expect("the guest has a vif").counters();
        counters.tx.packets as f64 / counters.tx.containers.max(1) as f64
    }
}
