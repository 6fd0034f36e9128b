//! How a world's time passes: rounds in which everybody runs who has a reason to, and jumps to the next reason. Knows
//! who may run, not what for.

use drayage::vif::rx::Wish;
use drayage::worker::Uplinks;
use drayage_netfront::Readiness;

use super::World;
use crate::inhabitants::Guest;

/// How long a round takes, in nanoseconds.
const ROUND_NS: u64 = 1000;

impl World {
    fn worker_is_woken(&self, now_ns: u64) -> bool {
        let timely = match self.next.when {
            Wish::Now => true,
            Wish::At(at_ns) => at_ns <= now_ns,
            Wish::Event => false,
        };
        let uplink = self.next.uplinks == Uplinks::Awaited && self.far.end.departing() > 0;
        timely || uplink || self.worker.0.borrow().xen().is_readable()
    }

    fn measure(&self) -> u64 {
        self.meter.map_or(0, |meter| meter())
    }

    /// Lets everybody run who has a reason to. Returns whether there was anybody.
    pub fn round(&mut self) -> bool {
        let now_ns = self.now_ns();
        let mut any = self.far.end.waiting() > 0;
        any |= self.far.turn(now_ns);
        if self.worker_is_woken(now_ns) {
            let before = self.measure();
            self.next = self.worker.0.borrow_mut().pass();
            self.worker_allocations += self.measure() - before;
            self.passes += 1;
            any = true;
        }
        if let Some(control) = &mut self.control {
            any |= control.pump(now_ns);
        }
        for guest in &mut self.guests {
            any |= guest.pump();
            if guest.is_woken(&self.hv, now_ns) {
                let before = self.meter.map_or(0, |meter| meter());
                guest.turn(now_ns);
                self.guest_allocations += self.meter.map_or(0, |meter| meter()) - before;
                any = true;
            }
        }
        any
    }

    /// Returns when somebody wants to run next.
    fn next_ns(&mut self) -> Option<u64> {
        let now_ns = self.now_ns();
        let worker = match self.next.when {
            Wish::Now => Some(now_ns),
            Wish::At(at_ns) => Some(at_ns),
            Wish::Event => None,
        };
        let far = self.far.stack.delay_ns(now_ns).map(|delay_ns| now_ns + delay_ns);
        // A resting guest that was woken runs when its rest is over.
        let woken = |guest: &mut Guest| {
            let until_ns = guest.rests_until_ns;
            let hv = &self.hv;
            guest.is_woken(hv, until_ns.max(now_ns)).then_some(until_ns)
        };
        let guests =
            self.guests.iter_mut().filter_map(|guest| guest.next_ns().into_iter().chain(woken(guest)).min());
        worker.into_iter().chain(far).chain(guests).min()
    }

    /// Runs until `done` holds.
    ///
    /// # Panics
    /// When it does not within `limit_ns`, or when everybody sleeps for ever before it does.
    pub fn run(&mut self, limit_ns: u64, mut done: impl FnMut(&mut Self) -> bool) {
        let limit_ns = self.now_ns() + limit_ns;
        loop {
            let any = self.round();
            if done(self) {
                return;
            }
            let now_ns = self.now_ns();
            let then_ns = if any {
                now_ns + ROUND_NS
            } else {
                let Some(next_ns) = self.next_ns() else {
                    panic!("everybody sleeps for ever: lost packets, or a lost wake-up\n{}", self.describe());
                };
                next_ns.max(now_ns + ROUND_NS)
            };
            assert!(then_ns < limit_ns, "not done in time\n{}", self.describe());
            self.clock.0.set(then_ns);
        }
    }

    /// Lets a guest run: its application has something new to do.
    pub fn wake(&mut self, index: usize) {
        self.guests[index].readiness = Readiness::Busy;
    }

    /// Lets time pass, and whoever wants to run, run.
    pub fn idle_until(&mut self, then_ns: u64) {
        while self.now_ns() < then_ns {
            let any = self.round();
            let now_ns = self.now_ns();
            let next_ns = if any { Some(now_ns) } else { self.next_ns() };
            self.clock.0.set(next_ns.map_or(then_ns, |next_ns| next_ns.max(now_ns + ROUND_NS).min(then_ns)));
        }
    }

    /// Runs until nobody has a reason to run but timers of stacks that are more than a second away.
    pub fn settle(&mut self) {
        let limit_ns = self.now_ns() + 60_000_000_000;
        loop {
            let any = self.round();
            let now_ns = self.now_ns();
            let then_ns = match self.next_ns() {
                _ if any => now_ns + ROUND_NS,
                Some(next_ns) if next_ns < now_ns + 1_000_000_000 => next_ns.max(now_ns + ROUND_NS),
                _ => return,
            };
            assert!(then_ns < limit_ns, "no end of it");
            self.clock.0.set(then_ns);
        }
    }
}
