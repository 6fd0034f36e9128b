//! One interface: NIC, stack, sockets and app, and one turn of all of them. It knows no other interface and
//! does not sleep.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::io::Net;
use super::nic::Nic;
use super::watch::{Transmit, Watch, Watched};
use super::{BATCH_BYTES, BATCH_FRAMES, address};
use crate::app::{App, Next, Starter};
use crate::settings::Addressing;

/// An interface that is up.
pub struct Link<N> {
    nic: N,
    interface: Interface,
    sockets: SocketSet<'static>,
    watch: Watch,
    dhcp: Option<SocketHandle>,
    app: Option<Box<dyn App>>,
    next: Next,
    announced: usize,
}

/// Why an interface cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Its hardware address is none that one host can have.
    #[error("hardware address {0} is not that of a single host")]
    Mac(EthernetAddress),
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Packets moved: there may be more to do at once.
    Busy,
    /// Nothing is left to do before the next event or deadline.
    Idle,
    /// The app has done what it was started for.
    Done,
}

impl<N: Nic> Link<N> {
    /// Brings an interface up and starts an app on it.
    ///
    /// # Errors
    /// The NIC's hardware address cannot be used.
    pub fn new(
        mut nic: N,
        addressing: &Addressing,
        seed: u64,
        now_ns: u64,
        start: Option<&Starter>,
        console: &mut dyn fmt::Write,
    ) -> Result<Self, LinkError> {
        let mac = EthernetAddress(nic.mac());
        if !mac.is_unicast() || mac.0 == [0; 6] {
            return Err(LinkError::Mac(mac));
        }
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = seed;
        config.slaac = !addressing.has_fixed_v6();
        let mut interface = Interface::new(config, &mut nic, instant(now_ns));
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = address::set_up(&mut interface, &mut sockets, mac, addressing);
        let mut link = Self {
            nic,
            interface,
            sockets,
            watch: Watch::default(),
            dhcp,
            app: None,
            next: Next::OnTraffic,
            announced: 0,
        };
        link.announce(console);
        link.app = start.map(|start| start(&mut link.net(now_ns, console)));
        Ok(link)
    }

    /// Returns the NIC.
    pub fn nic(&self) -> &N {
        &self.nic
    }

    /// Returns the NIC, to rearm it.
    pub fn nic_mut(&mut self) -> &mut N {
        &mut self.nic
    }

    /// Takes a batch in, lets the app work, sends what it and the stack have to send.
    pub(super) fn turn(&mut self, now_ns: u64, console: &mut dyn fmt::Write) -> Turn {
        let now = instant(now_ns);
        self.watch.begin_batch();
        self.interface.poll_maintenance(now);
        let mut moved = self.take_batch(now);
        if let Some(client) = self.dhcp {
            address::follow_lease(self.nic.name(), &mut self.interface, &mut self.sockets, client, console);
        }
        self.announce(console);
        if let Some(mut app) = self.app.take() {
            self.next = app.poll(&mut self.net(now_ns, console));
            self.app = Some(app);
        }
        moved |= self.send_all(now);
        // The stack does not report everything that it sends of its own accord, such as a question for a
        // neighbour's address.
        if moved || self.watch.batch_sent > 0 {
            self.nic.flush();
        }
        match (self.next, moved) {
            // What the app queued last may still wait for room.
            (Next::Done, _) if self.watch.transmit == Transmit::Open => Turn::Done,
            (_, true) => Turn::Busy,
            _ => Turn::Idle,
        }
    }

    /// Returns when the interface must have its next turn, events aside. A time that is past means that
    /// something is due which the turn just taken could not do.
    pub(super) fn deadline_ns(&mut self, now_ns: u64) -> Option<u64> {
        let stack = self.interface.poll_at(instant(now_ns), &self.sockets).map(nanoseconds);
        // A packet that waits for room in the transmit ring is due now and for ever, but what it waits for is
        // an event.
        let stack = stack.filter(|at| *at > now_ns || self.watch.transmit == Transmit::Open);
        let app = match self.next {
            Next::At(at) => Some(at),
            Next::OnTraffic | Next::Done => None,
        };
        stack.into_iter().chain(app).min()
    }

    /// Lets the app say its last words.
    pub(super) fn finish(&mut self, now_ns: u64, console: &mut dyn fmt::Write) {
        if let Some(mut app) = self.app.take() {
            app.finish(&mut self.net(now_ns, console));
        }
        let refused = self.watch.refused;
        if refused > 0 {
            let _ = writeln!(console, "net: {}: {refused} frames kept from the stack", self.nic.name());
        }
    }

    fn take_batch(&mut self, now: Instant) -> bool {
        for frames in 0..BATCH_FRAMES {
            let mut device = Watched { device: &mut self.nic, watch: &mut self.watch };
            let taken = self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
            if taken == PollIngressSingleResult::None {
                return frames > 0;
            }
            if self.watch.batch_bytes >= BATCH_BYTES {
                break;
            }
        }
        true
    }

    fn send_all(&mut self, now: Instant) -> bool {
        let mut moved = false;
        // Each pass sends one packet of every socket that has one; sockets hold a bounded number.
        loop {
            let mut device = Watched { device: &mut self.nic, watch: &mut self.watch };
            let sent = self.interface.poll_egress(now, &mut device, &mut self.sockets);
            if sent == PollResult::None {
                return moved;
            }
            moved = true;
        }
    }

    fn announce(&mut self, console: &mut dyn fmt::Write) {
        let addresses = self.interface.ip_addrs();
        if addresses.len() == self.announced {
            return;
        }
        self.announced = addresses.len();
        let [a, b, c, d, e, f] = self.nic.mac();
        let name = self.nic.name();
        let _ = write!(console, "net: {name}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        for address in addresses {
            let _ = write!(console, " {address}");
        }
        let _ = writeln!(console);
    }

    fn net<'a>(&'a mut self, now_ns: u64, console: &'a mut dyn fmt::Write) -> Net<'a> {
        Net {
            name: self.nic.name(),
            now_ns,
            counters: self.nic.counters(),
            interface: &mut self.interface,
            sockets: &mut self.sockets,
            watch: &mut self.watch,
            console,
        }
    }
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros_const(i64::try_from(ns / 1000).unwrap_or(i64::MAX))
}

fn nanoseconds(instant: Instant) -> u64 {
    u64::try_from(instant.total_micros()).unwrap_or(0).saturating_mul(1000)
}
