//! What a guest passes on: from a generator in the backend through one of its interfaces, its router and the other one
//! into the backend's uplink. The loop, the router and the app are the kernel's own.
//!
//! Each interface is a domain's of its own here: a frontend knows nothing of another one.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use drayage::clock::Clock;
use drayage::policy::Policy;
use drayage::port::generator::Stream;
use drayage::port::{Budget, Sent, Uplink};
use drayage::switch::Mac;
use drayage::worker::{Settings, Target, Worker};
use drayage_kernel::control::Request;
use drayage_kernel::net::{Change, Ended, Machine, run};
use drayage_kernel::seed::{Seed, SeedSource};
use drayage_netfront::platform::DomainId;
use drayage_netfront::{Netfront, Options, Use, Vif};
use drayage_wire::container::Meta;
use memxen::Hypervisor;
use memxen::front::Front;

use super::{Back, Connector, GUEST, GUEST_MAC, HANDLE, LAN, Offers, Steps, pump, stream};

const SIDES: [(DomainId, [u8; 6]); 2] = [(GUEST, GUEST_MAC), (DomainId(6), [2, 0, 0, 0, 1, 6])];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const FAR: [u8; 4] = [10, 0, 1, 1];

/// The next hop: it answers who asks for its address, and throws away what it gets.
struct NextHop {
    answer: Option<Vec<u8>>,
    taken: Arc<AtomicU64>,
}

impl Uplink for NextHop {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: &mut Budget, each: &mut dyn FnMut(&[u8], Meta)) {
        if let Some(frame) = self.answer.take() {
            budget.spend(frame.len());
            each(&frame, Meta::default());
        }
    }

    fn send(&mut self, frame: &[u8], _: Meta) -> Sent {
        match frame.get(12..14) {
            Some([8, 0]) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
            }
            Some([8, 6]) if frame.get(38..42) == Some(&FAR) => {
                let mut answer = vec![0; 60];
                answer[..6].copy_from_slice(&frame[22..28]);
                answer[6..12].copy_from_slice(&FAR_MAC);
                answer[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
                answer[22..28].copy_from_slice(&FAR_MAC);
                answer[28..32].copy_from_slice(&FAR);
                answer[32..42].copy_from_slice(&frame[22..32]);
                self.answer = Some(answer);
            }
            _ => {}
        }
        Sent::Yes
    }
}

/// A guest with two interfaces, and what is around it.
pub struct Routed {
    sides: [Netfront<Front>; 2],
    worker: Worker<Back, Steps>,
    connector: Connector,
    steps: Steps,
    frame_bytes: usize,
    taken: Arc<AtomicU64>,
    changes: VecDeque<Change>,
    /// Frames of the streams that are still to be sent, the first of which finds out who the next hop is.
    streams: VecDeque<u64>,
    wanted: u64,
    idle: u32,
}

impl Routed {
    pub(super) fn new(frame_bytes: usize) -> Self {
        let hv = Hypervisor::new();
        let steps = Steps::default();
        let settings = Settings { holdoff_us: 0, ..Settings::default() };
        let mut worker = Worker::new(Back::new(&hv), steps.clone(), settings);
        let taken = Arc::new(AtomicU64::new(0));
        let hop = NextHop { answer: None, taken: Arc::clone(&taken) };
        worker.add_uplink(LAN, Box::new(hop)).expect("a new worker has room");
        let mut connector = Connector::new(&hv, Offers::default(), Policy::default());
        let sides = SIDES.map(|(id, mac)| {
            hv.create_domain(id);
            let platform = Front::new(&hv, id);
            let options = Options { segments: Use::Never, ..Options::default() };
            let mut driver = Netfront::new(platform.clone(), options).expect("xenstore works");
            connector.plug(id, mac);
            pump(&mut driver, &platform);
            connector.connect(&mut worker, id, Mac(mac)).expect("it connects");
            pump(&mut driver, &platform);
            driver
        });
        let (changes, streams) = (VecDeque::new(), VecDeque::new());
        Self { sides, worker, connector, steps, frame_bytes, taken, changes, streams, wanted: 0, idle: 0 }
    }

    pub(super) fn run(&mut self, count: u64) {
        self.wanted = self.taken.load(Ordering::Relaxed);
        self.changes.extend([Change::Up(0), Change::Up(1)]);
        self.streams.extend([1, count]);
        let words = "app=forward ip=10.0.0.5/24 ip1=10.0.1.5/24";
        let settings = drayage_kernel::settings::Settings::parse(words).expect("they are right");
        let seed = Seed { value: 1, source: SeedSource::Jitter };
        let ended = run(self, &mut String::new(), &settings, seed);
        assert_eq!(ended, Ended::Asked(Request::PowerOff));
    }

    /// Returns how many frames went in a container, on average.
    pub(super) fn frames_per_container(&mut self) -> f64 {
        let counters = self.sides[1].vif_mut(HANDLE).expect("the guest has a vif").counters();
        counters.tx.packets as f64 / counters.tx.containers.max(1) as f64
    }
}

impl Machine for Routed {
    type Nic = Vif<Front>;

    const PREFIX: &'static str = "vif";

    fn now_ns(&self) -> u64 {
        self.steps.now_ns()
    }

    fn cpu_ns(&self) -> Option<u64> {
        None
    }

    fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    fn nic(&mut self, number: u32) -> Option<&mut Vif<Front>> {
        self.sides.get_mut(number as usize)?.vif_mut(HANDLE)
    }

    fn nics(&mut self, [one, _]: [u32; 2]) -> [Option<&mut Vif<Front>>; 2] {
        let [first, second] = self.sides.each_mut().map(|side| side.vif_mut(HANDLE));
        if one == 0 { [first, second] } else { [second, first] }
    }

    /// Meanwhile the backend works.
    fn sleep(&mut self, _: Option<u64>) {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken == self.wanted {
            match self.streams.pop_front() {
                Some(count) => {
                    self.wanted += count;
                    let (done, _) = mpsc::channel();
                    let stream = Stream { dst_ip: FAR.into(), ..stream(self.frame_bytes, count) };
                    let target = Target::Guest(self.connector.port(GUEST));
                    assert!(self.worker.start_stream(&stream, target, done), "one stream at a time");
                }
                None => self.changes.push_back(Change::Stop(Request::PowerOff)),
            }
        }
        self.steps.0.set(self.steps.0.get() + 1000);
        self.worker.pass();
        self.idle = if self.taken.load(Ordering::Relaxed) == taken { self.idle + 1 } else { 0 };
        assert!(self.idle < 1000, "{taken} of {} frames came", self.wanted);
    }
}
