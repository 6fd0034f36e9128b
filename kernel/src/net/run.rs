//! The loop: every interface has its turn while anything moves; then all are armed and the machine sleeps. It
//! knows neither what a machine is made of nor what the apps do.

use alloc::vec::Vec;
use core::fmt;

use super::link::{Link, Turn};
use super::nic::{Nic, Rearmed};
use super::transit::Transit;
use crate::app::{Role, Spread};
use crate::control::Request;
use crate::forward::{Carrier, Router};
use crate::seed::Seed;
use crate::settings::Settings;

/// How long something may wait that is due and could not be done, such as a frame for which the stack finds no
/// room and no ring is full.
const STUCK_NS: u64 = 1_000_000;

/// What the loop stands on.
pub trait Machine {
    /// Its network interface cards.
    type Nic: Nic;

    /// What the names of its interfaces begin with; the number follows.
    const PREFIX: &'static str;

    /// Returns the time in nanoseconds since its start.
    fn now_ns(&self) -> u64;

    /// Returns for how many nanoseconds it has had a processor, where somebody knows.
    fn cpu_ns(&self) -> Option<u64>;

    /// Returns what happened besides packets. Called in every round: cheap while nothing has.
    fn next_change(&mut self) -> Option<Change>;

    /// Returns the card of an interface, from [`Change::Up`] to [`Change::Gone`].
    fn nic(&mut self, number: u32) -> Option<&mut Self::Nic>;

    /// Returns the cards of two interfaces at once, for what goes from one to the other.
    fn nics(&mut self, numbers: [u32; 2]) -> [Option<&mut Self::Nic>; 2];

    /// Sleeps until an event of any kind, or until a time.
    fn sleep(&mut self, until_ns: Option<u64>);
}

/// What can happen to a machine besides packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Packets flow on the interface with this number, for the first time or again.
    Up(u32),
    /// They do not flow for now.
    Down(u32),
    /// There is no such interface any more.
    Gone(u32),
    /// The guest is asked to end.
    Stop(Request),
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The app has done what it was started for.
    Finished,
    /// The toolstack asked.
    Asked(Request),
}

/// Runs the app that the settings name until it has finished or the machine is asked to end.
pub fn run<M: Machine>(
    machine: &mut M,
    console: &mut dyn fmt::Write,
    settings: &Settings,
    seed: Seed,
) -> Ended {
    let router = (settings.app.role == Role::Router).then(Router::new);
    let mut state = State {
        machine,
        console,
        settings,
        seed,
        links: Vec::new(),
        router,
        boot: Boot::UnderWay,
        clock: Clock::Unread,
    };
    let ended = loop {
        if let Some(request) = state.take_changes() {
            break Ended::Asked(request);
        }
        if state.round() == Turn::Done {
            break Ended::Finished;
        }
    };
    for number in state.numbers() {
        state.finish(number);
    }
    ended
}

/// Tells whether a router passes packets on from and to an interface: it has two.
fn is_routed(number: u32) -> bool {
    number < 2
}

struct State<'a, M> {
    machine: &'a mut M,
    console: &'a mut dyn fmt::Write,
    settings: &'a Settings,
    seed: Seed,
    links: Vec<Link>,
    router: Option<Router>,
    boot: Boot,
    clock: Clock,
}

/// What the loop knows of the time. Where a hypervisor emulates the time stamp counter, a look at the clock costs more than
/// an answer to a lone frame; so the round behind the first one after a sleep, which mostly finds nothing, has that
/// one's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// It is looked at, and the round after that has a look of its own.
    Unread,
    /// The machine slept: it is looked at, for two rounds.
    Slept,
    /// It was looked at in the round before, right after a sleep.
    Read(u64),
}

/// Whether the guest has become ready for its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    /// No interface is up yet, or one has no address.
    UnderWay,
    /// It has said so.
    Done,
}

impl<M: Machine> State<'_, M> {
    /// Gives every interface its turn; sleeps when none has anything left to do.
    fn round(&mut self) -> Turn {
        let now_ns = self.look();
        let mut sum = Turn::Idle;
        for link in &mut self.links {
            let number = link.number();
            let (nic, transit) = match &mut self.router {
                Some(router) if is_routed(number) => {
                    let [nic, out] = self.machine.nics([number, 1 - number]);
                    (nic, Some(Transit::new(router, number as usize, out, now_ns)))
                }
                _ => (self.machine.nic(number), None),
            };
            let Some(nic) = nic else { continue };
            match link.turn(nic, transit, now_ns, self.console) {
                Turn::Done => return Turn::Done,
                Turn::Busy => sum = Turn::Busy,
                Turn::Idle => {}
            }
        }
        if sum == Turn::Idle && self.rearm(now_ns) == Rearmed::Armed {
            let deadlines = self.links.iter_mut().filter_map(|link| link.deadline_ns(now_ns));
            let routing = self.router.iter().flat_map(|router| [0, 1].map(|side| router.due_ns(side)));
            let until_ns = deadlines
                .chain(routing.flatten())
                .min()
                .map(|at| if at > now_ns { at } else { now_ns + STUCK_NS });
            self.note_boot();
            self.machine.sleep(until_ns);
            self.clock = Clock::Slept;
        }
        sum
    }

    /// Returns the time for a round.
    fn look(&mut self) -> u64 {
        match core::mem::replace(&mut self.clock, Clock::Unread) {
            Clock::Read(now_ns) => now_ns,
            Clock::Unread => self.machine.now_ns(),
            Clock::Slept => {
                let now_ns = self.machine.now_ns();
                self.clock = Clock::Read(now_ns);
                now_ns
            }
        }
    }

    /// Says once, before the first sleep with a network that is up, what processor time that took.
    fn note_boot(&mut self) {
        if self.boot == Boot::Done || self.links.is_empty() || !self.links.iter().all(Link::has_address) {
            return;
        }
        self.boot = Boot::Done;
        if let Some(cpu_ns) = self.machine.cpu_ns() {
            let _ = writeln!(self.console, "boot: network is up, cpu_ns={cpu_ns}");
        }
    }

    /// Arms every card, also behind one that found work: an event that was not asked for is lost.
    fn rearm(&mut self, now_ns: u64) -> Rearmed {
        let mut sum = Rearmed::Armed;
        for link in &self.links {
            let nic = self.machine.nic(link.number());
            let waiting = nic.is_some_and(|nic| nic.rearm() == Rearmed::WorkWaiting);
            if waiting && !link.is_blocked(now_ns) {
                sum = Rearmed::WorkWaiting;
            }
        }
        sum
    }

    /// Takes what happened besides packets; returns the request to end, if that is what happened.
    fn take_changes(&mut self) -> Option<Request> {
        while let Some(change) = self.machine.next_change() {
            match change {
                Change::Up(number) => {
                    self.up(number);
                    self.set_carrier(number, Carrier::Up);
                }
                Change::Down(number) => {
                    self.set_carrier(number, Carrier::Down);
                    self.say(number, "down");
                }
                Change::Gone(number) => {
                    self.set_carrier(number, Carrier::Down);
                    self.finish(number);
                    self.say(number, "gone");
                    self.links.retain(|link| link.number() != number);
                }
                Change::Stop(request) => return Some(request),
            }
        }
        None
    }

    fn up(&mut self, number: u32) {
        let now_ns = self.machine.now_ns();
        let Some(nic) = self.machine.nic(number) else { return };
        let result = match self.links.iter_mut().find(|link| link.number() == number) {
            Some(link) => link.revive(nic, now_ns),
            None => {
                let addressing = self.settings.addressing(number as usize);
                let seed = self.seed.fork(number.into());
                Link::new(number, M::PREFIX, nic, addressing, seed, now_ns).map(|mut link| {
                    let here = self.settings.app.spread == Spread::EveryInterface || number == 0;
                    if here {
                        link.start(&self.settings.start, now_ns, self.console);
                    }
                    self.links.push(link);
                })
            }
        };
        if let Err(error) = result {
            let _ = writeln!(self.console, "net: {}{number}: not used: {error}", M::PREFIX);
        }
    }

    fn set_carrier(&mut self, number: u32, carrier: Carrier) {
        if let Some(router) = self.router.as_mut().filter(|_| is_routed(number)) {
            router.set_carrier(number as usize, carrier);
        }
    }

    fn finish(&mut self, number: u32) {
        let now_ns = self.machine.now_ns();
        for link in self.links.iter_mut().filter(|link| link.number() == number) {
            link.finish(now_ns, self.console);
        }
    }

    fn say(&mut self, number: u32, what: &str) {
        if self.links.iter().any(|link| link.number() == number) {
            let _ = writeln!(self.console, "net: {}{number}: {what}", M::PREFIX);
        }
    }

    fn numbers(&self) -> Vec<u32> {
        self.links.iter().map(Link::number).collect()
    }
}
