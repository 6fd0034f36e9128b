//! The loop: every interface has its turn while anything moves; then all are armed and the machine sleeps. It
//! knows neither what a machine is made of nor what the apps do.

use alloc::vec::Vec;
use core::fmt;

use super::link::{Link, Turn};
use super::nic::{Nic, Rearmed};
use crate::app::Spread;
use crate::control::Request;
use crate::seed::Seed;
use crate::settings::Settings;

/// How long something may wait that is due and could not be done, such as a frame for which the stack finds no
/// room and no ring is full.
const STUCK_NS: u64 = 1_000_000;

/// What the loop stands on.
pub trait Machine {
    /// Its network interfaces.
    type Nic: Nic;

    /// Returns the time in nanoseconds since its start.
    fn now_ns(&self) -> u64;

    /// Sleeps until an event of any kind, or until a time.
    fn sleep(&mut self, until_ns: Option<u64>);

    /// Returns what happened besides packets. Called in every round: cheap while nothing has.
    fn next_change(&mut self) -> Option<Change<Self::Nic>>;

    /// Returns the console.
    fn console(&mut self) -> &mut dyn fmt::Write;
}

/// What can happen to a machine besides packets.
#[derive(Debug)]
pub enum Change<N> {
    /// An interface came up.
    Attached(N),
    /// The interface with this number is gone.
    Detached(usize),
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
pub fn run<M: Machine>(machine: &mut M, settings: &Settings, seed: Seed) -> Ended {
    let mut links: Vec<Link<M::Nic>> = Vec::new();
    let ended = loop {
        if let Some(request) = take_changes(machine, settings, seed, &mut links) {
            break Ended::Asked(request);
        }
        let now_ns = machine.now_ns();
        let mut sum = Turn::Idle;
        for link in &mut links {
            match link.turn(now_ns, machine.console()) {
                Turn::Done => sum = Turn::Done,
                Turn::Busy if sum == Turn::Idle => sum = Turn::Busy,
                Turn::Busy | Turn::Idle => {}
            }
        }
        match sum {
            Turn::Done => break Ended::Finished,
            Turn::Busy => continue,
            Turn::Idle => {}
        }
        // Every link is armed, also behind one that found work: an event that is not asked for is lost.
        let mut rearmed = Rearmed::Armed;
        for link in &mut links {
            if link.nic_mut().rearm() == Rearmed::WorkWaiting {
                rearmed = Rearmed::WorkWaiting;
            }
        }
        if rearmed == Rearmed::WorkWaiting {
            continue;
        }
        let deadlines = links.iter_mut().filter_map(|link| link.deadline_ns(now_ns));
        machine.sleep(deadlines.min().map(|at| if at > now_ns { at } else { now_ns + STUCK_NS }));
    };
    let now_ns = machine.now_ns();
    for link in &mut links {
        link.finish(now_ns, machine.console());
    }
    ended
}

/// Takes what happened besides packets; returns the request to end, if that is what happened.
fn take_changes<M: Machine>(
    machine: &mut M,
    settings: &Settings,
    seed: Seed,
    links: &mut Vec<Link<M::Nic>>,
) -> Option<Request> {
    while let Some(change) = machine.next_change() {
        match change {
            Change::Attached(nic) => attach(machine, settings, seed, links, nic),
            Change::Detached(index) => {
                let now_ns = machine.now_ns();
                for link in links.iter_mut().filter(|link| link.nic().index() == index) {
                    link.finish(now_ns, machine.console());
                    let _ = writeln!(machine.console(), "net: {}: gone", link.nic().name());
                }
                links.retain(|link| link.nic().index() != index);
            }
            Change::Stop(request) => return Some(request),
        }
    }
    None
}

fn attach<M: Machine>(
    machine: &mut M,
    settings: &Settings,
    seed: Seed,
    links: &mut Vec<Link<M::Nic>>,
    nic: M::Nic,
) {
    let index = nic.index();
    let start = match settings.app.spread {
        Spread::EveryInterface => Some(&settings.start),
        Spread::FirstInterface => (index == 0).then_some(&settings.start),
    };
    let now_ns = machine.now_ns();
    let addressing = settings.addressing(index);
    let seed = seed.fork(index as u64);
    match Link::new(nic, &addressing, seed, now_ns, start, machine.console()) {
        Ok(link) => links.push(link),
        Err(error) => {
            let _ = writeln!(machine.console(), "net: interface {index} is not used: {error}");
        }
    }
}
