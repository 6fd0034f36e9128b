//! Who lives in a world: guests with the real driver and a stack, and a host with a stack beyond the backend's uplink.
//! Each runs when it is told to; when that is, the world decides.

use drayage_netfront::platform::DomainId;
use drayage_netfront::{Netfront, Readiness, Vif};
use memxen::Hypervisor;
use memxen::front::Front;
use smoltcp::iface::{PollIngressSingleResult, PollResult};

use crate::cable::End;
use crate::host::{Stack, instant};
use crate::tasks::Tasks;

/// The number of every guest's vif.
pub const HANDLE: u32 = 0;

/// How a guest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All that is there, whenever it runs.
    Eager,
    /// So many frames, and then not before so many nanoseconds have passed.
    Slow {
        /// See above.
        frames: usize,
        /// See above.
        rest_ns: u64,
    },
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its number.
    pub id: DomainId,
    /// Its driver.
    pub driver: Netfront<Front>,
    /// Its stack, once its vif was up.
    pub stack: Option<Stack>,
    /// What it does.
    pub tasks: Tasks,
    /// How it reads.
    pub pace: Pace,
    pub(crate) platform: Front,
    pub(crate) mac: [u8; 6],
    pub(crate) address: String,
    pub(crate) readiness: Readiness,
    /// When it wants to run next; it runs earlier when it is woken.
    pub(crate) due_ns: Option<u64>,
    /// Until when it does not run, whatever happens.
    pub(crate) rests_until_ns: u64,
}

impl Guest {
    /// Returns its vif.
    ///
    /// # Panics
    /// When it has none.
    pub fn vif(&mut self) -> &mut Vif<Front> {
        self.driver.vif_mut(HANDLE).expect("the guest has a vif")
    }

    /// Takes watch events and does what is due outside the data path. Returns whether there were any.
    pub fn pump(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.platform.next_event() {
            self.driver.watch_fired(&event.path, &event.token);
            any = true;
        }
        self.driver.service();
        while self.driver.next_change().is_some() {
            any = true;
        }
        any
    }

    pub(crate) fn is_woken(&mut self, hv: &Hypervisor, now_ns: u64) -> bool {
        if now_ns < self.rests_until_ns {
            return false;
        }
        let Some(vif) = self.driver.vif_mut(HANDLE) else { return false };
        self.readiness == Readiness::Busy
            || self.due_ns.is_some_and(|due_ns| due_ns <= now_ns)
            || vif.ports().any(|port| hv.is_pending(self.id, port))
    }

    /// One waking of the guest: the loop of a kernel, as netfront's documentation has it.
    pub(crate) fn turn(&mut self, now_ns: u64) {
        let Some(vif) = self.driver.vif_mut(HANDLE) else { return };
        if !vif.is_up() {
            // It may be waiting for its pages.
            self.readiness = vif.rearm();
            return;
        }
        let (mac, address) = (self.mac, &self.address);
        let stack = self.stack.get_or_insert_with(|| Stack::new(vif, mac, address));
        let now = instant(now_ns);
        let batch = if let Pace::Slow { frames, .. } = self.pace { frames } else { 32 };
        let more = loop {
            let taken = vif.ingress(now, &mut stack.interface, &mut stack.sockets, batch);
            let moved = self.tasks.step(stack);
            // Each pass sends a packet of every socket that has one.
            while stack.interface.poll_egress(now, vif, &mut stack.sockets) != PollResult::None {}
            vif.flush();
            let more = taken == batch || moved;
            if !more || self.pace != Pace::Eager {
                break more;
            }
        };
        self.readiness = vif.rearm();
        if let Pace::Slow { rest_ns, .. } = self.pace {
            self.rests_until_ns = now_ns + rest_ns;
        }
        self.due_ns = match self.readiness {
            Readiness::Busy => Some(now_ns),
            // A slow guest has not done all that it could.
            _ if more => Some(now_ns),
            Readiness::Idle => stack.delay_ns(now_ns).map(|delay_ns| now_ns + delay_ns),
            Readiness::SendBlocked => None,
        };
    }

    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.due_ns.map(|due_ns| due_ns.max(self.rests_until_ns))
    }
}

/// The host at the far end of the uplink.
#[derive(Debug)]
pub struct Far {
    /// Its end of the cable.
    pub end: End,
    /// Its stack.
    pub stack: Stack,
    /// What it does.
    pub tasks: Tasks,
}

impl Far {
    /// Takes all that came, in batches, so that no socket overflows while its application waits for its turn. Returns
    /// whether the applications did anything.
    pub(crate) fn turn(&mut self, now_ns: u64) -> bool {
        let Self { end, stack, tasks } = self;
        let now = instant(now_ns);
        let mut any = false;
        loop {
            let mut taken = 0;
            while taken < 32
                && stack.interface.poll_ingress_single(now, end, &mut stack.sockets)
                    != PollIngressSingleResult::None
            {
                taken += 1;
            }
            any |= tasks.step(stack);
            if taken == 0 {
                stack.poll(end, now_ns);
                return any;
            }
        }
    }
}
