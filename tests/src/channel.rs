//! The channel in one process, to be timed and counted: UDP frames from a backend's worker through containers into a
//! guest's socket, out of a socket into the backend, from guest to guest, and through a guest that routes; and for
//! comparison the same straight from memory into the same stack, and out of it.
//!
//! It knows both ends and a stack. What the hypervisor does in hardware's place is `memxen`'s, locks and poison
//! included, and is counted as the channel's.

mod outbound;
mod routed;

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use drayage::clock::Clock;
use drayage::policy::Policy;
use drayage::port::generator::{Stream, Template};
use drayage::port::{Budget, Sent, Uplink};
use drayage::switch::Mac;
use drayage::worker::{Settings, Target, Worker};
use drayage_netfront::inbox::{Inboxes, Sorted, Sums};
use drayage_netfront::platform::DomainId;
use drayage_netfront::{Netfront, Options, Vif, take_frame};
use drayage_wire::container::Meta;
use memxen::Hypervisor;
use memxen::front::Front;
use smoltcp::iface::{PollIngressSingleResult, SocketHandle};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::back::Back;
use crate::connector::{Connector, Offers};
use crate::host::{Stack, instant};
use crate::inhabitants::HANDLE;
use crate::world::LAN;

const GUEST: DomainId = DomainId(5);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];
const PORT: u16 = 9;
/// Frames that the stack takes before the application reads: the kernel's batch.
const BATCH: usize = 64;
/// The same of frames that go the short way past the stack.
const SHORT_BATCH: usize = 256;
/// The most bytes that are taken before it reads: the kernel's.
const BATCH_BYTES: usize = 128 << 10;
/// Room of the queue on that way: the kernel's.
const SHORT_BYTES: usize = 144 << 10;
/// Room of the socket, in datagrams: twice a batch, as in the kernel.
const SOCKET: usize = 2 * BATCH;

/// The ways that a frame can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From memory into the stack.
    Alone,
    /// Written into an open container, handed over, validated, and lent to the stack.
    Channel,
    /// The same without containers: each frame in a page of its own.
    Plain,
    /// As above, behind an uplink and the switch.
    Switched,
    /// Out of the stack into nothing.
    SentAlone,
    /// Out of the stack, through containers and the switch into an uplink.
    Sent,
    /// From one guest's socket into another's.
    Between,
    /// Into a guest that routes, and out of it into an uplink.
    Routed,
}

impl Way {
    /// All, with the names that programs take.
    pub const ALL: [(Way, &str); 8] = [
        (Way::Alone, "alone"),
        (Way::Channel, "channel"),
        (Way::Plain, "plain"),
        (Way::Switched, "switched"),
        (Way::SentAlone, "sent-alone"),
        (Way::Sent, "sent"),
        (Way::Between, "between"),
        (Way::Routed, "routed"),
    ];
}

fn stream(frame_bytes: usize, count: u64) -> Stream {
    Stream {
        src_mac: Mac([2, 0, 0, 0, 0, 1]),
        dst_mac: Mac(GUEST_MAC),
        src_ip: Ipv4Addr::new(10, 0, 0, 1),
        dst_ip: Ipv4Addr::new(10, 0, 0, 5),
        src_port: 4000,
        dst_port: PORT,
        frame_bytes,
        count,
        rate: None,
    }
}

fn frame(frame_bytes: usize) -> Vec<u8> {
    let template = Template::new(&stream(frame_bytes, 1));
    let mut frame = vec![0; template.len()];
    template.write(7, &mut frame);
    frame
}

/// A clock that goes on when it is told to.
#[derive(Clone, Debug, Default)]
struct Steps(Rc<Cell<u64>>);

impl Clock for Steps {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }
}

/// Everything that one way needs.
pub enum Setup {
    /// See [`Way::Alone`].
    Alone(Box<Alone>),
    /// What the guest receives.
    Channel(Box<Channel>),
    /// See [`Way::SentAlone`].
    SentAlone(Box<outbound::Alone>),
    /// What the guest sends.
    Outbound(Box<outbound::Outbound>),
    /// See [`Way::Routed`].
    Routed(Box<routed::Routed>),
}

impl Setup {
    /// Makes a way for frames of one size.
    pub fn new(way: Way, frame_bytes: usize) -> Self {
        match way {
            Way::Alone => Self::Alone(Box::new(Alone::new(frame_bytes))),
            Way::Channel | Way::Plain | Way::Switched => {
                Self::Channel(Box::new(Channel::new(way, frame_bytes)))
            }
            Way::SentAlone => Self::SentAlone(Box::new(outbound::Alone::new(frame_bytes))),
            Way::Sent | Way::Between => Self::Outbound(Box::new(outbound::Outbound::new(way, frame_bytes))),
            Way::Routed => Self::Routed(Box::new(routed::Routed::new(frame_bytes))),
        }
    }

    /// Brings frames to the application, and returns once `count` of them have been read.
    ///
    /// # Panics
    /// When one is lost.
    pub fn run(&mut self, count: u64) {
        match self {
            Self::Alone(alone) => alone.run(count),
            Self::Channel(channel) => channel.run(count),
            Self::SentAlone(alone) => alone.run(count),
            Self::Outbound(outbound) => outbound.run(count),
            Self::Routed(routed) => routed.run(count),
        }
    }

    /// Returns how many frames went in a container, on average, where there are containers.
    pub fn frames_per_container(&mut self) -> Option<f64> {
        match self {
            Self::Alone(_) | Self::SentAlone(_) => None,
            Self::Channel(channel) if channel.way == Way::Plain => None,
            Self::Channel(channel) => Some(channel.frames_per_container()),
            Self::Outbound(outbound) => Some(outbound.frames_per_container()),
            Self::Routed(routed) => Some(routed.frames_per_container()),
        }
    }
}

/// An application that reads a socket.
struct Reader {
    socket: SocketHandle,
    read: u64,
}

impl Reader {
    fn new(stack: &mut Stack) -> Self {
        Self { socket: stack.udp(PORT, SOCKET), read: 0 }
    }

    fn turn(&mut self, stack: &mut Stack, inboxes: &mut Inboxes) {
        if let Some(inbox) = inboxes.get(0) {
            while let Some(received) = inbox.pop() {
                std::hint::black_box(received.bytes);
                self.read += 1;
            }
            inbox.has_ended();
        }
        let socket = stack.udp_socket(self.socket);
        while let Ok((payload, _)) = socket.recv() {
            std::hint::black_box(payload);
            self.read += 1;
        }
    }
}

/// The stack with frames from memory.
pub struct Alone {
    stack: Stack,
    reader: Reader,
    memory: Memory,
}

impl Alone {
    fn new(frame_bytes: usize) -> Self {
        let mut memory = Memory::new(frame(frame_bytes), 0);
        let mut stack = Stack::new(&mut memory, GUEST_MAC, "10.0.0.5/24");
        let reader = Reader::new(&mut stack);
        Self { stack, reader, memory }
    }

    fn run(&mut self, count: u64) {
        let wanted = self.reader.read + count;
        self.memory.left = count;
        let now = instant(0);
        while self.memory.left > 0 {
            let Self { stack, reader, memory } = self;
            for _ in 0..BATCH {
                let Stack { interface, sockets } = stack;
                if interface.poll_ingress_single(now, memory, sockets) == PollIngressSingleResult::None {
                    break;
                }
            }
            reader.turn(stack, &mut Inboxes::default());
        }
        assert_eq!(self.reader.read, wanted, "frames were lost in the stack");
    }
}

/// A device that has one frame again and again, and throws away what it gets.
struct Memory {
    frame: Vec<u8>,
    left: u64,
    thrown: Thrown,
}

impl Memory {
    fn new(frame: Vec<u8>, left: u64) -> Self {
        Self { frame, left, thrown: Thrown { frames: 0, room: [0; 1514] } }
    }
}

/// What was thrown away, and where frames are written before they are.
struct Thrown {
    frames: u64,
    room: [u8; 1514],
}

struct Lent<'a>(&'a [u8]);

impl RxToken for Lent<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

struct Nowhere<'a>(&'a mut Thrown);

impl TxToken for Nowhere<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.frames += 1;
        fill(&mut self.0.room[..len])
    }
}

impl Device for Memory {
    type RxToken<'a> = Lent<'a>;
    type TxToken<'a> = Nowhere<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Lent<'_>, Nowhere<'_>)> {
        self.left = self.left.checked_sub(1)?;
        Some((Lent(&self.frame), Nowhere(&mut self.thrown)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Nowhere<'_>> {
        Some(Nowhere(&mut self.thrown))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// An uplink that has one frame so many times.
struct Endless {
    frame: Vec<u8>,
    left: Arc<AtomicU64>,
}

impl Uplink for Endless {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        let mut left = self.left.load(Ordering::Relaxed);
        while left > 0 && budget.is_left() {
            left -= 1;
            budget.spend(self.frame.len());
            each(&self.frame, Meta::default());
        }
        self.left.store(left, Ordering::Relaxed);
    }

    fn send(&mut self, _: &[u8], _: Meta) -> Sent {
        Sent::Yes
    }
}

/// Frames of an uplink that wait for a guest's turn: about what one container holds of the smallest.
const BURST: u64 = 640;

/// A backend and a guest.
pub struct Channel {
    way: Way,
    frame_bytes: usize,
    worker: Worker<Back, Steps>,
    connector: Connector,
    driver: Netfront<Front>,
    stack: Stack,
    inboxes: Inboxes,
    reader: Reader,
    steps: Steps,
    supply: Arc<AtomicU64>,
}

impl Channel {
    fn new(way: Way, frame_bytes: usize) -> Self {
        let hv = Hypervisor::new();
        let steps = Steps::default();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&hv), steps.clone(), settings);
        let supply = Arc::new(AtomicU64::new(0));
        if way == Way::Switched {
            let uplink = Endless { frame: frame(frame_bytes), left: Arc::clone(&supply) };
            worker.add_uplink(LAN, Box::new(uplink)).expect("a new worker has room");
        }
        hv.create_domain(GUEST);
        let platform = Front::new(&hv, GUEST);
        let mut driver = Netfront::new(platform.clone(), Options::default()).expect("xenstore works");
        let offers = Offers { rx_containers: way != Way::Plain, ..Offers::default() };
        let mut connector = Connector::new(&hv, offers, Policy::default());
        connector.plug(GUEST, GUEST_MAC);
        pump(&mut driver, &platform);
        connector.connect(&mut worker, GUEST, Mac(GUEST_MAC)).expect("it connects");
        pump(&mut driver, &platform);
        let vif = driver.vif_mut(HANDLE).expect("the guest has a vif");
        assert!(vif.is_up(), "{:?}", vif.problem());
        let mut stack = Stack::new(vif, GUEST_MAC, "10.0.0.5/24");
        let reader = Reader::new(&mut stack);
        let inboxes = inboxes(GUEST_MAC, [10, 0, 0, 5]);
        Self { way, frame_bytes, worker, connector, driver, stack, inboxes, reader, steps, supply }
    }

    fn run(&mut self, count: u64) {
        let wanted = self.reader.read + count;
        if self.way != Way::Switched {
            let (done, _) = mpsc::channel();
            let port = self.connector.port(GUEST);
            let stream = stream(self.frame_bytes, count);
            assert!(self.worker.start_stream(&stream, Target::Guest(port), done), "one stream at a time");
        }
        let mut left = count;
        let mut idle = 0;
        while self.reader.read < wanted {
            let read = self.reader.read;
            if self.way == Way::Switched {
                let burst = left.min(BURST);
                left -= burst;
                self.supply.store(burst, Ordering::Relaxed);
            }
            loop {
                self.steps.0.set(self.steps.0.get() + 1000);
                self.worker.pass();
                if self.supply.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
            self.turn();
            idle = if self.reader.read == read { idle + 1 } else { 0 };
            assert!(idle < 1000, "{} of {wanted} frames came", self.reader.read);
        }
    }

    /// One waking of the guest: the kernel's loop.
    fn turn(&mut self) {
        let now = instant(self.steps.now_ns());
        let vif = self.driver.vif_mut(HANDLE).expect("the guest has a vif");
        let (stack, inboxes) = (&mut self.stack, &mut self.inboxes);
        loop {
            let more = take_batch(vif, now, stack, inboxes);
            self.reader.turn(stack, inboxes);
            vif.flush();
            if !more {
                break;
            }
        }
        vif.rearm();
    }

    /// Returns how many frames came in a container, on average.
    fn frames_per_container(&mut self) -> f64 {
        let counters = self.driver.vif_mut(HANDLE).expect("the guest has a vif").counters();
        counters.rx.packets as f64 / counters.rx.containers.max(1) as f64
    }
}

/// Returns the short way into a guest's port.
fn inboxes(mac: [u8; 6], address: [u8; 4]) -> Inboxes {
    let mut inboxes = Inboxes::default();
    inboxes.open(PORT, SHORT_BYTES).expect("the first port has a queue");
    inboxes.configure(mac, Sums::Verified, [(address, 24)]);
    inboxes
}

/// Takes a batch as the kernel does, and returns whether there may be more.
fn take_batch(vif: &mut Vif<Front>, now: Instant, stack: &mut Stack, inboxes: &mut Inboxes) -> bool {
    let Stack { interface, sockets } = stack;
    let (mut long, mut bytes) = (0, 0);
    for _ in 0..SHORT_BATCH {
        let taken = take_frame(vif, now, interface, sockets, |frame| {
            bytes += frame.len();
            inboxes.sort(frame)
        });
        match taken {
            None => return false,
            Some(Sorted::Taken) => {}
            Some(Sorted::Stack) => long += 1,
        }
        if long >= BATCH || bytes >= BATCH_BYTES {
            break;
        }
    }
    true
}

fn pump(driver: &mut Netfront<Front>, platform: &Front) {
    while let Some(event) = platform.next_event() {
        driver.watch_fired(&event.path, &event.token);
    }
    driver.service();
    while driver.next_change().is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_brings_every_frame() {
        for (way, name) in Way::ALL {
            for frame_bytes in [60, 1514] {
                let mut setup = Setup::new(way, frame_bytes);
                setup.run(5000);
                setup.run(1);
                if let Some(packed) = setup.frames_per_container() {
                    let least = if frame_bytes == 60 { 100.0 } else { 10.0 };
                    assert!(packed > least, "{name}, {frame_bytes}: only {packed} in a container");
                }
            }
        }
    }
}
