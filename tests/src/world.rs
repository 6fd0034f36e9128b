//! A whole machine in one thread: domain 0 with the real backend's worker, guests with the real driver, a stack in
//! each guest and one at the far end of the backend's uplink.
//!
//! Nobody here polls: a guest runs when one of its event channels is pending or its stack's time has come, the
//! worker when its file would be readable or it asked for the time. Time is simulated, and only passes when there is
//! nothing else to do. When nothing is left to wait for and the work is not done, a wake-up was lost, and
//! [`World::run`] says so.

mod running;

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::{Duration, Instant};

use drayage::class::Classes;
use drayage::clock::Clock;
use drayage::control::AttachRequest;
use drayage::control::attachment::Memory;
use drayage::control::details::{Containers, Mapping};
use drayage::policy::Policy;
use drayage::store::WatchEvent;
use drayage::switch::{Mac, Segment};
use drayage::vif::rx::Wish;
use drayage::worker::{Next, Settings, Uplinks, Worker};
use drayage_netfront::platform::DomainId;
use drayage_netfront::{Netfront, Options, Readiness};
use drayage_wire::container::MAX_RX_BYTES;
use memxen::Hypervisor;
use memxen::front::Front;

use crate::back::{Back, Life, Shelf};
use crate::cable::{End, cable};
use crate::connector::{Connector, Offers};
use crate::control::{Control, SharedWorker};
use crate::host::Stack;
use crate::inhabitants::{Far, Guest, HANDLE, Pace};
use crate::tasks::Tasks;
use crate::uplink::{Arriving, CableUplink};

/// The one segment of the world.
pub const LAN: Segment = Segment(1);

/// The time of the world.
#[derive(Clone, Debug, Default)]
pub struct WorldClock(Rc<Cell<u64>>);

impl WorldClock {
    /// Lets time go on.
    pub fn advance(&self, by_ns: u64) {
        self.0.set(self.0.get() + by_ns);
    }
}

impl Clock for WorldClock {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }
}

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What the backend offers.
    pub offers: Offers,
    /// What the guests want.
    pub options: Options,
    /// When containers go out.
    pub policy: Policy,
    /// Packets that do not wait.
    pub urgent: Classes,
    /// What the uplink does with checksums.
    pub arriving: Arriving,
    /// How the worker trades delay for wake-ups.
    pub settings: Settings,
    /// Who connects the vifs.
    pub control: ControlPath,
    /// Whether the uplink carries TCP super-frames, and the host beyond makes them.
    pub super_frames: bool,
    /// What the real control path tells and offers of mapped pages.
    pub mapping: Mapping,
}

/// Who connects the vifs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlPath {
    /// A stand-in that can offer what the real one never would.
    Hand,
    /// The backend's own.
    Real(Containers),
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            offers: Offers::default(),
            options: Options::default(),
            policy: Policy::default(),
            urgent: Classes::default(),
            arriving: Arriving::Filled,
            settings: Settings::default(),
            control: ControlPath::Hand,
            super_frames: false,
            mapping: Mapping::default(),
        }
    }
}

/// Returns a guest's name.
pub fn name_of(id: DomainId) -> String {
    format!("guest{}", id.0)
}

/// The machine.
pub struct World {
    /// The hypervisor.
    pub hv: Hypervisor,
    /// The backend's data path.
    pub worker: SharedWorker,
    /// The guests.
    pub guests: Vec<Guest>,
    /// The host beyond.
    pub far: Far,
    /// The backend's control path, where it is played by hand.
    pub connector: Connector,
    /// The backend's real control path, where the world has one.
    pub control: Option<Control>,
    /// Passes of the worker.
    pub passes: u64,
    /// Returns how many allocations were made so far, in a test that counts them.
    pub meter: Option<fn() -> u64>,
    /// Allocations during passes of the worker.
    pub worker_allocations: u64,
    /// Allocations during the guests' turns, stack and application included.
    pub guest_allocations: u64,
    /// How long the backend lives.
    pub life: Life,
    /// What outlives it.
    pub shelf: Shelf,
    memory: Memory,
    /// The backend's end of the cable to the far host.
    near: End,
    shape: Shape,
    clock: WorldClock,
    next: Next,
}

impl World {
    /// Makes a world without guests.
    ///
    /// # Panics
    /// When the worker takes no uplink.
    pub fn new(shape: Shape) -> Self {
        Self::remembering(shape, Memory::none())
    }

    /// As [`new`](Self::new), with a control path that remembers attachments.
    ///
    /// # Panics
    /// As there.
    pub fn remembering(shape: Shape, memory: Memory) -> Self {
        let hv = Hypervisor::new();
        let clock = WorldClock::default();
        let (life, shelf) = (Life::default(), Shelf::default());
        let mut worker = Worker::new(Back::mortal(&hv, &life, &shelf), clock.clone(), shape.settings);
        let (near, mut end) = cable();
        let (arriving, super_frames) = (shape.arriving, shape.super_frames);
        let uplink = CableUplink { end: near.clone(), arriving, super_frames };
        end.frame_bytes = shape.offers.mtu.unwrap_or(1500) + 14;
        if super_frames {
            // What the largest container holds: Linux is told as much of a TAP.
            end.super_frame_bytes = NonZeroUsize::new(MAX_RX_BYTES - 26);
        }
        worker.add_uplink(LAN, Box::new(uplink)).expect("a new worker has room");
        let stack = Stack::new(&mut end, [2, 0, 0, 0, 0, 1], "10.0.0.1/24");
        let mut connector = Connector::new(&hv, shape.offers, shape.policy);
        connector.urgent = shape.urgent;
        let worker = SharedWorker(Rc::new(RefCell::new(worker)));
        let control =
            (shape.control != ControlPath::Hand).then(|| Control::new(&hv, worker.clone(), memory.clone()));
        Self {
            hv,
            worker,
            control,
            guests: Vec::new(),
            far: Far { end, stack, tasks: Tasks::default() },
            connector,
            passes: 0,
            meter: None,
            worker_allocations: 0,
            guest_allocations: 0,
            life,
            shelf,
            memory,
            near,
            shape,
            clock,
            next: Next { when: Wish::Now, uplinks: Uplinks::Awaited },
        }
    }

    /// Ends the backend as it stands, whether it has died or not, and starts another one, which knows what the first
    /// one remembered. The guests are told nothing.
    ///
    /// # Panics
    /// When there is no real control path, or the new backend does not start.
    pub fn restart(&mut self) {
        assert!(self.shape.control != ControlPath::Hand, "a backend that remembers");
        self.control = None;
        self.life.set(u64::MAX);
        let back = Back::mortal(&self.hv, &self.life, &self.shelf);
        let worker = Worker::new(back, self.clock.clone(), self.shape.settings);
        // The old one lets go of everything before the new one takes it.
        drop(self.worker.0.replace(worker));
        let (arriving, super_frames) = (self.shape.arriving, self.shape.super_frames);
        let uplink = CableUplink { end: self.near.clone(), arriving, super_frames };
        self.worker.0.borrow_mut().add_uplink(LAN, Box::new(uplink)).expect("a new worker has room");
        let mut control = Control::new(&self.hv, self.worker.clone(), self.memory.clone());
        if let Err(failure) = control.manager.recall(self.clock.now_ns()) {
            panic!("{failure}");
        }
        self.control = Some(control);
        self.next = Next { when: Wish::Now, uplinks: Uplinks::Awaited };
    }

    /// Adds a guest with the address 10.0.0.`id` and connects it. Returns its index.
    ///
    /// # Panics
    /// When its vif does not come up.
    pub fn add_guest(&mut self, id: u16) -> usize {
        let index = self.add_domain(id);
        self.attach(index);
        index
    }

    /// As [`add_guest`](Self::add_guest), with wishes of its own.
    ///
    /// # Panics
    /// As above.
    pub fn add_guest_as(&mut self, id: u16, options: Options) -> usize {
        let others = std::mem::replace(&mut self.shape.options, options);
        let index = self.add_guest(id);
        self.shape.options = others;
        index
    }

    /// Adds a guest without a vif.
    ///
    /// # Panics
    /// When xenstore fails.
    pub fn add_domain(&mut self, id: u16) -> usize {
        let id = DomainId(id);
        self.hv.create_domain(id);
        if let Some(control) = &self.control {
            control.name(drayage::xen::DomainId(id.0), &name_of(id), &format!("uuid-{}", id.0));
        }
        let platform = Front::new(&self.hv, id);
        let driver = Netfront::new(platform.clone(), self.shape.options).expect("xenstore works");
        self.guests.push(Guest {
            id,
            driver,
            stack: None,
            tasks: Tasks::default(),
            pace: Pace::Eager,
            platform,
            mac: [2, 0, 0, 0, 1, id.0 as u8],
            address: format!("10.0.0.{}/24", id.0),
            readiness: Readiness::Busy,
            due_ns: Some(0),
            rests_until_ns: 0,
        });
        self.guests.len() - 1
    }

    /// Gives a guest a vif, and waits until it is up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn attach(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let (id, mac) = (guest.id, guest.mac);
        if let ControlPath::Real(containers) = self.shape.control {
            let control = self.control.as_mut().expect("the world was made with one");
            control.attach(&AttachRequest {
                domain: name_of(id),
                vif: Some(HANDLE),
                mac: Some(Mac(mac)),
                port: None,
                policy: self.shape.policy,
                urgent: self.shape.urgent,
                size_bytes: 65_536,
                containers,
                mapping: self.shape.mapping.into(),
                rules: Default::default(),
            });
            self.negotiate();
        } else {
            self.connector.plug(id, mac);
            guest.pump();
            let mut worker = self.worker.0.borrow_mut();
            self.connector.connect(&mut worker, id, Mac(mac)).expect("it connects");
            guest.pump();
        }
        let guest = &mut self.guests[index];
        assert!(guest.vif().is_up(), "{:?}", guest.vif().problem());
        guest.readiness = Readiness::Busy;
        // The worker is told of a new port by its control path.
        self.next.when = Wish::Now;
    }

    /// Takes a guest's vif away, in order: the backend closes first, as when its operator detaches it.
    ///
    /// # Panics
    /// When the guest has no vif.
    pub fn detach(&mut self, index: usize) {
        let id = self.guests[index].id;
        if let Some(control) = &mut self.control {
            if let Err(failure) = control.manager.detach(&name_of(id), None, self.clock.now_ns()) {
                panic!("{failure}");
            }
            self.negotiate();
            // Pages that the backend maps are asked for back by way of the worker first.
            let until_ns = self.now_ns() + 1_000_000;
            let key = (drayage::xen::DomainId(id.0), HANDLE);
            while self.control.as_ref().is_some_and(|control| control.manager.is_attached(key))
                && self.now_ns() < until_ns
            {
                self.idle_until(self.now_ns() + 10_000);
            }
        } else {
            let guest = &mut self.guests[index];
            self.connector.close(&mut self.worker.0.borrow_mut(), guest.id);
            guest.pump();
            self.connector.unplug(guest.id);
            guest.pump();
        }
        self.await_grants(index);
        let guest = &mut self.guests[index];
        // What the stack was sending is lost with the vif.
        guest.readiness = Readiness::Idle;
        guest.due_ns = None;
    }

    /// Waits until a guest without a vif has its grants back.
    pub fn await_grants(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        // Pages that the backend let go of late are asked for again by the driver's own clock, which is real, and of
        // which a driver only has so many outstanding.
        let patience = Instant::now() + Duration::from_secs(5);
        while self.hv.claimed_grants(guest.id) > 0 && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
            guest.pump();
        }
    }

    /// Destroys a guest as it stands.
    pub fn destroy(&mut self, index: usize) {
        let guest = self.guests.remove(index);
        self.hv.destroy_domain(guest.id);
        // What is left of it in this process is no domain any more, and frees nothing.
        std::mem::forget(guest);
        self.negotiate();
    }

    /// Says once more that a domain is there, now that its nodes are complete.
    pub fn reintroduce(&mut self, id: DomainId) {
        let control = self.control.as_mut().expect("the world has a control path");
        let path = format!("/local/domain/{}", id.0);
        let event = WatchEvent { path, token: "introduce".into() };
        control.manager.on_watch(&event, self.clock.now_ns()).expect("xenstore works");
    }

    /// Lets both ends' control paths run until neither has anything to do.
    pub fn negotiate(&mut self) {
        let now_ns = self.clock.now_ns();
        let mut passes = 0;
        loop {
            let mut any = self.control.as_mut().is_some_and(|control| control.pump(now_ns));
            for guest in &mut self.guests {
                any |= guest.pump();
            }
            // Pages are mapped and unmapped by the worker.
            let woken = self.worker.0.borrow().xen().is_readable() || self.next.when == Wish::Now;
            if woken && self.shape.mapping.staged {
                self.next = self.worker.0.borrow_mut().pass();
                self.passes += 1;
                passes += 1;
                any |= passes < 500;
            }
            if !any {
                return;
            }
        }
    }

    /// Returns what the backend counted of a guest's vif, while it is connected.
    pub fn back_counters(&mut self, id: DomainId) -> Option<drayage::vif::Counters> {
        let port = match &self.control {
            Some(control) => control.manager.connected(&name_of(id), None)?.0,
            None => self.connector.find(id)?,
        };
        self.worker.0.borrow().counters(port)
    }

    /// Returns the time, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Returns what everybody counted, for messages of failed tests.
    pub fn describe(&mut self) -> String {
        let mut text = format!("at {} ns, after {} passes: {:?}\n", self.now_ns(), self.passes, self.next);
        for index in 0..self.guests.len() {
            let back = self.back_counters(self.guests[index].id);
            let guest = &mut self.guests[index];
            let front = guest.driver.vif_mut(HANDLE).map(|vif| *vif.counters());
            text += &format!("{:?} {:?}\nfront {front:#?}\nback {back:#?}\n", guest.id, guest.readiness);
            text += &format!("{:?}\n", guest.tasks);
        }
        text + &format!("far {:?}", self.far.tasks)
    }

    /// Detaches every guest, and asserts that nothing is left of any vif and that nobody misused the hypervisor.
    ///
    /// # Panics
    /// See above.
    pub fn end(mut self) {
        for index in 0..self.guests.len() {
            if self.guests[index].driver.vif_mut(HANDLE).is_some() {
                self.detach(index);
            }
            let id = self.guests[index].id;
            assert_eq!(self.hv.claimed_grants(id), 0, "{id:?} has its grants back");
            assert_eq!(self.hv.live_pools(id), 0, "{id:?} has its pages back");
            assert_eq!(self.hv.open_ports(id), 0, "{id:?} has closed its ports");
        }
        assert_eq!(self.hv.live_mappings(crate::hand::DOM0), 0, "the backend maps nothing any more");
        assert_eq!(self.hv.open_ports(crate::hand::DOM0), 0, "and has closed its ports");
        self.hv.assert_clean();
    }
}
