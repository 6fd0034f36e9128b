//! The data path's loop body: one pass over everything that has work, bounded, without allocating.
//!
//! A pass takes what guests sent, then what came in from uplinks and from other workers, then lets the generator
//! write, and last hands over what is ready, with one batch of grant copies for all guests together and one
//! event for each.
//! It tells its caller when the next pass is due. It knows no xenstore, and neither waits nor makes threads.

mod attach;
mod glance;
mod load;
mod senders;
mod stream;
pub mod trunks;
mod uplinks;
mod watch;

use drayage_wire::container::Manifest;
use drayage_wire::ring::SharedWords;
use serde::{Deserialize, Serialize};

use crate::aggregate::REGION_BYTES;
use crate::capture::Capture;
use crate::clock::Clock;
use crate::fabric::{Fabric, Kind, Port, REGIONS_BYTES, region_start};
use crate::port::MAX_FRAME_BYTES;
use crate::switch::PortId;
use crate::vif::holds::HoldTimes;
use crate::vif::rx::{Sources, Wish};
use crate::vif::scratch::Scratch;
use crate::vif::staging;
use crate::vif::tx::Left;
use crate::vif::{Counters, Fault, Vif};
use crate::xen::{Copies, EventPort, Xen};
pub use attach::ConnectError;
use glance::Glances;
use load::Load;
use stream::Running;
pub use stream::Target;

/// Grant copies in one batch, at most.
pub const BATCH_OPS: usize = 1024;
/// Pending ports taken in one pass.
const EVENTS: usize = 128;

/// How the loop trades delay for wake-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// When this many frames or more came in within about one hold-off, the next look at uplinks and at guests
    /// that send is put off, so that one wake-up serves many packets.
    pub busy_frames: usize,
    /// For how long at least, and for how long while a TAP has 64 KiB and more yet to take of what was sent to it; 0 for
    /// never.
    pub holdoff_us: u32,
    /// For how long at most, where looks bring few frames, and longer waits bring more. Not where a guest's policy is
    /// a bound on delay.
    pub holdoff_most_us: u32,
    /// How long to look again and again before sleeping, where frames came so close after each other that this
    /// would have caught them; no look is put off then. It costs a processor of its own; 0 for never.
    pub busy_poll_us: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { busy_frames: 8, holdoff_us: 100, holdoff_most_us: 400, busy_poll_us: 0 }
    }
}

/// When the next pass is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// At the latest at this time, or when something happens.
    pub when: Wish,
    /// Whether uplinks are among the things that may happen.
    pub uplinks: Uplinks,
}

/// Whether uplinks wake the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplinks {
    /// They do.
    Awaited,
    /// They are looked at when the time has come.
    PutOff,
}

/// Why an uplink's descriptor ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to receive.
    Readable,
    /// There is an error.
    Failed,
}

/// What the loop did, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounters {
    /// Passes.
    pub passes: u64,
    /// Batches of grant copies.
    pub copy_batches: u64,
    /// Grant copies in them.
    pub copies: u64,
    /// Times that the loop slept.
    pub sleeps: u64,
    /// Passes that put the next look off.
    pub put_off: u64,
    /// Passes after which it looked again at once although there was nothing.
    pub polls: u64,
    /// Times that it rested although there was work, for other processes: in real time only.
    pub rests: u64,
}

impl std::ops::AddAssign for WorkerCounters {
    fn add_assign(&mut self, other: Self) {
        self.passes += other.passes;
        self.copy_batches += other.copy_batches;
        self.copies += other.copies;
        self.sleeps += other.sleeps;
        self.put_off += other.put_off;
        self.polls += other.polls;
        self.rests += other.rests;
    }
}

/// The data path.
pub struct Worker<X: Xen, C> {
    xen: X,
    clock: C,
    settings: Settings,
    fabric: Fabric<X::Page>,
    scratch: Scratch,
    /// The ports that are trunks, and room for a frame of one where there is none among what guests sent.
    trunks: Vec<PortId>,
    landing: Box<[u8; MAX_FRAME_BYTES]>,
    manifest: Box<Manifest>,
    tx_copies: Copies,
    rx_copies: Copies,
    owners: Vec<Option<PortId>>,
    pending: Vec<EventPort>,
    /// Whether a control ring is to be looked at in the next pass.
    control_ready: bool,
    put_off_until_ns: u64,
    /// The port whose TX ring is read first.
    first_sender: usize,
    load: Load,
    glances: Glances,
    capture: Option<Box<Capture>>,
    stream: Option<Running>,
    faults: Vec<(PortId, Fault)>,
    counters: WorkerCounters,
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Makes a worker without ports.
    pub fn new(xen: X, clock: C, settings: Settings) -> Self {
        Self {
            xen,
            clock,
            settings,
            fabric: Fabric::new(),
            scratch: Scratch::default(),
            trunks: Vec::new(),
            landing: Box::new([0; MAX_FRAME_BYTES]),
            manifest: Box::new(Manifest::new()),
            tx_copies: Copies::with_capacity(BATCH_OPS),
            rx_copies: Copies::with_capacity(BATCH_OPS),
            owners: Vec::new(),
            pending: vec![EventPort(0); EVENTS],
            control_ready: false,
            put_off_until_ns: 0,
            first_sender: 0,
            load: Load::default(),
            glances: Glances::new(),
            capture: None,
            stream: None,
            faults: Vec::with_capacity(crate::fabric::MAX_GUESTS),
            counters: WorkerCounters::default(),
        }
    }

    /// Returns the hypervisor.
    pub fn xen(&self) -> &X {
        &self.xen
    }

    /// Returns the clock's time.
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Returns what the loop did.
    pub fn worker_counters(&self) -> WorkerCounters {
        self.counters
    }

    /// Counts a sleep, for whoever waits on the worker's behalf.
    pub fn note_sleep(&mut self) {
        self.counters.sleeps += 1;
    }

    /// Counts a rest that was for other processes.
    pub fn note_rest(&mut self) {
        self.counters.rests += 1;
    }

    /// Notes that no event channel was pending when a sleep ended: the next pass need not look.
    pub fn note_no_event(&mut self) {
        self.glances.note_no_event(self.counters.passes);
    }

    /// Returns an interface's counters.
    pub fn counters(&self, id: PortId) -> Option<Counters> {
        self.fabric.counters(id)
    }

    /// Returns how long an interface's packets were held.
    pub fn holds(&self, id: PortId) -> Option<HoldTimes> {
        self.fabric.holds(id)
    }

    /// Returns how many blocks of what guests sent are in use: those of the last pass, and those that queues refer to.
    pub fn blocks_in_use(&self) -> usize {
        self.fabric.leases.taken()
    }

    /// Returns the interfaces that broke the protocol since this was last asked. They are not served any
    /// more, and are to be disconnected.
    pub fn take_faults(&mut self) -> Vec<(PortId, Fault)> {
        if self.faults.is_empty() { Vec::new() } else { self.faults.drain(..).collect() }
    }

    /// Returns whether there is something to [take](Self::take_faults).
    pub fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Does what there is to do, in bounds, and says when to come back.
    pub fn pass(&mut self) -> Next {
        self.counters.passes += 1;
        if self.capture.is_some() {
            self.end_capture();
        }
        let now_ns = self.clock.now_ns();
        let events = self.take_events();
        let mut busy = 0;
        let mut again = self.control_ready && self.serve_control() == staging::Left::Some;
        let looked = now_ns >= self.put_off_until_ns;
        if looked {
            let (frames, left) = self.take_from_guests(now_ns);
            busy += frames;
            again |= left == Left::Some;
            let (frames, left) = self.take_from_uplinks(now_ns);
            busy += frames;
            again |= left == Left::Some;
            let (frames, left) = self.take_from_trunks(now_ns);
            busy += frames;
            again |= left == Left::Some;
            self.publish_trunks();
        }
        let mut stream = self.generate(now_ns);
        let handed = self.hand_over(now_ns);
        let mut held = Wish::Event;
        if looked {
            held = self.held(now_ns);
            again |= held == Wish::Now;
        }
        if stream == Wish::Event && self.stream_has_room() {
            stream = Wish::Now;
        }
        self.notify();
        self.fabric.flush(|| self.clock.now_ns());
        if events > 0 {
            self.xen.unmask(&self.pending[..events]);
        }
        let holdoff_ns = u64::from(self.settings.holdoff_us) * 1000;
        let poll_ns = u64::from(self.settings.busy_poll_us) * 1000;
        let mut polls = false;
        if looked {
            self.load.note(now_ns, busy, holdoff_ns, poll_ns);
            polls = !again && self.load.is_worth_polling(now_ns, poll_ns);
            self.counters.polls += u64::from(polls && busy == 0);
            if !again && !polls {
                let most_ns = self.longest_holdoff_ns(holdoff_ns);
                let busy_frames = self.settings.busy_frames;
                let mut put_off_ns = self.load.put_off_ns(now_ns, busy_frames, holdoff_ns, most_ns);
                // Else each answer to what is being sent would be looked for by itself.
                if put_off_ns < holdoff_ns && self.fabric.is_behind() {
                    put_off_ns = holdoff_ns;
                }
                self.put_off_until_ns = now_ns + put_off_ns;
                self.counters.put_off += u64::from(put_off_ns > 0);
            }
        }
        let mut when = earlier(earlier(stream, handed), held);
        if again || polls || events == EVENTS {
            when = Wish::Now;
        }
        let mut uplinks = Uplinks::Awaited;
        if self.put_off_until_ns > now_ns {
            when = earlier(when, Wish::At(self.put_off_until_ns));
            uplinks = Uplinks::PutOff;
        } else if busy >= self.settings.busy_frames {
            // Without a hold-off, who was busy is looked at again at once: nobody asked to be told.
            when = Wish::Now;
        }
        Next { when, uplinks }
    }

    /// Returns for how long a look may be put off at most: no longer than always where a guest's packets have a bound.
    fn longest_holdoff_ns(&self, least_ns: u64) -> u64 {
        let bounded = self.fabric.ports.iter().flatten().any(|port| match &port.kind {
            Kind::Guest { vif, .. } => vif.rx.has_bound(),
            Kind::Uplink { .. } | Kind::Trunk(_) => false,
        });
        if bounded { least_ns } else { u64::from(self.settings.holdoff_most_us) * 1000 }
    }

    fn take_events(&mut self) -> usize {
        if self.glances.skips_events(self.counters.passes) {
            return 0;
        }
        let taken = self.xen.take_pending(&mut self.pending);
        for port in &self.pending[..taken] {
            let Some(Some(id)) = self.owners.get(port.0 as usize).copied() else { continue };
            if let Some((vif, _)) = self.fabric.vif_mut(id) {
                vif.counters.events_in += 1;
                vif.woken = true;
                if *port == vif.events.tx {
                    vif.tx_ready = true;
                }
                if let Some(staging) = &mut vif.staging
                    && *port == staging.event
                {
                    staging.ready = true;
                    self.control_ready = true;
                }
            }
        }
        taken
    }

    /// Answers control rings: rare, and a bounded part of a pass.
    fn serve_control(&mut self) -> staging::Left {
        self.control_ready = false;
        let mut left = staging::Left::Nothing;
        for at in 0..self.fabric.ports.len() {
            let Some(Port { kind: Kind::Guest { vif, .. }, .. }) = &mut self.fabric.ports[at] else {
                continue;
            };
            if vif.fault.is_some() {
                continue;
            }
            let Vif { staging: Some(staging), counters, .. } = &mut **vif else { continue };
            if !std::mem::take(&mut staging.ready) {
                continue;
            }
            match staging.work(&mut self.xen, counters) {
                Ok(staging::Left::Nothing) => {}
                Ok(staging::Left::Some) => {
                    staging.ready = true;
                    self.control_ready = true;
                    left = staging::Left::Some;
                }
                Err(overrun) => fail(&mut self.faults, vif, at, Fault::Control(overrun)),
            }
        }
        left
    }

    /// Copies what is ready into the guests' pages and answers their requests.
    fn hand_over(&mut self, now_ns: u64) -> Wish {
        self.rx_copies.clear();
        let mut wish = Wish::Event;
        let mut any = false;
        for at in 0..self.fabric.ports.len() {
            let Some(Port { kind: Kind::Guest { vif, region }, .. }) = &mut self.fabric.ports[at] else {
                continue;
            };
            if vif.fault.is_some() || vif.rx.is_idle() {
                continue;
            }
            any = true;
            let start = region_start(*region);
            let memory = &mut self.fabric.regions.bytes_mut()[start..start + REGION_BYTES];
            let staged = vif.staging.as_ref().map(|staging| &staging.table);
            let blocks = self.scratch.bytes_mut();
            let sources =
                Sources { region: memory, region_start: start, blocks, blocks_start: REGIONS_BYTES };
            match vif.rx.fill_batch(sources, now_ns, staged, &mut self.rx_copies) {
                Ok(this) => wish = earlier(wish, this),
                Err(error) => fail(&mut self.faults, vif, at, error.into()),
            }
        }
        if !any {
            return wish;
        }
        let mut done_ns = now_ns;
        if self.rx_copies.granted() > 0 {
            self.counters.copy_batches += 1;
            self.counters.copies += self.rx_copies.granted() as u64;
            let local = [self.fabric.regions.bytes(), self.scratch.bytes()];
            self.xen.copy_to_guests(local, self.rx_copies.ops_mut());
        }
        if !self.rx_copies.ops().is_empty() {
            if self.capture.is_some() {
                self.watch_emitted(now_ns);
            }
            // A packet's hold ends here, not when the pass began.
            done_ns = self.clock.now_ns();
        }
        for port in self.fabric.ports.iter_mut().flatten() {
            if let Kind::Guest { vif, .. } = &mut port.kind
                && vif.fault.is_none()
            {
                let Vif { rx, counters, .. } = &mut **vif;
                vif.notify_rx |=
                    rx.complete(self.rx_copies.ops(), done_ns, &mut self.fabric.leases, counters);
            }
        }
        wish
    }

    /// Sends the events of this pass: one for each channel at most.
    fn notify(&mut self) {
        for port in self.fabric.ports.iter_mut().flatten() {
            let Kind::Guest { vif, .. } = &mut port.kind else { continue };
            vif.counters.wakeups += u64::from(std::mem::take(&mut vif.woken));
            let (tx, rx) = (std::mem::take(&mut vif.notify_tx), std::mem::take(&mut vif.notify_rx));
            if let Some(staging) = &mut vif.staging
                && std::mem::take(&mut staging.notify)
            {
                self.xen.notify(staging.event);
                vif.counters.events_out += 1;
                vif.counters.hypercalls += 1;
            }
            let shared = vif.events.tx == vif.events.rx;
            if tx || (rx && shared) {
                self.xen.notify(vif.events.tx);
                vif.counters.events_out += 1;
                vif.counters.hypercalls += 1;
            }
            if rx && !shared {
                self.xen.notify(vif.events.rx);
                vif.counters.events_out += 1;
                vif.counters.hypercalls += 1;
            }
        }
    }
}

fn fail<P: SharedWords>(faults: &mut Vec<(PortId, Fault)>, vif: &mut Vif<P>, at: usize, fault: Fault) {
    vif.counters.guest_errors += 1;
    vif.fault = Some(fault);
    vif.tx_ready = false;
    // One for each interface at most, for which there is room.
    faults.push((PortId(at as u16), fault));
}

fn earlier(a: Wish, b: Wish) -> Wish {
    match (a, b) {
        (Wish::Now, _) | (_, Wish::Now) => Wish::Now,
        (Wish::At(a), Wish::At(b)) => Wish::At(a.min(b)),
        (Wish::At(at), Wish::Event) | (Wish::Event, Wish::At(at)) => Wish::At(at),
        (Wish::Event, Wish::Event) => Wish::Event,
    }
}
