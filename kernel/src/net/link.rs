//! One interface: stack, sockets and app on top of a NIC, and one turn of all of them. It outlives what happens
//! to the NIC's other end. It knows no other interface and does not sleep.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;

use drayage_netfront::inbox::Inboxes;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use super::address;
use super::egress::Card;
use super::ingress::{self, Ingress};
use super::io::Net;
use super::nic::{Counters, Nic};
use super::transit::{BLOCKED_NS, Passage, Transit};
use super::watch::{Transmit, Watch, Watched};
use crate::app::{App, Next, Starter};
use crate::forward::Routed;
use crate::settings::Addressing;

/// Times that an app may fill its sockets before what it sent is handed over.
const ROUNDS: usize = 4;

/// An interface that has been up.
pub(super) struct Link {
    number: u32,
    name: String,
    addressing: Addressing,
    seed: u64,
    identity: Identity,
    interface: Interface,
    sockets: SocketSet<'static>,
    watch: Watch,
    inboxes: Inboxes,
    dhcp: Option<SocketHandle>,
    app: Option<Box<dyn App>>,
    next: Next,
    announced: usize,
    /// What the NIC had counted in the last turn.
    counters: Counters,
    /// What the router had counted by then, in a guest that is one.
    routed: Routed,
    /// What goes on to the other interface of a router.
    passage: Passage,
}

/// What the stack cannot change its mind about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    mac: EthernetAddress,
    frame_bytes: usize,
    /// The longest TCP super-frame over IPv4 that the NIC takes from the stack, if it takes any.
    super_frame_bytes: Option<NonZeroUsize>,
}

/// Why an interface cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
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

impl Link {
    /// Brings an interface up for the first time.
    ///
    /// # Errors
    /// The NIC's hardware address cannot be used.
    pub(super) fn new<N: Nic>(
        number: u32,
        prefix: &str,
        nic: &mut N,
        addressing: Addressing,
        seed: u64,
        now_ns: u64,
    ) -> Result<Self, LinkError> {
        let identity = Identity::of(nic)?;
        let mut interface = identity.interface(nic, &addressing, seed, now_ns);
        let mut sockets = SocketSet::new(Vec::new());
        address::set_up(&mut interface, identity.mac, &addressing);
        let dhcp = address::client(&addressing).map(|client| sockets.add(client));
        let mut watch = Watch::default();
        watch.short.reset(identity.frame_bytes);
        Ok(Self {
            number,
            name: format!("{prefix}{number}"),
            addressing,
            seed,
            identity,
            interface,
            sockets,
            watch,
            inboxes: Inboxes::default(),
            dhcp,
            app: None,
            next: Next::OnTraffic,
            announced: 0,
            counters: nic.counters(),
            routed: Routed::default(),
            passage: Passage::default(),
        })
    }

    /// Brings the interface up again: it may be another network, with another MTU. Sockets stay as they are.
    ///
    /// # Errors
    /// As for [`Link::new`]; then nothing has changed.
    pub(super) fn revive<N: Nic>(&mut self, nic: &mut N, now_ns: u64) -> Result<(), LinkError> {
        let identity = Identity::of(nic)?;
        self.watch.short.reset(identity.frame_bytes);
        if identity != self.identity {
            self.identity = identity;
            self.interface = identity.interface(nic, &self.addressing, self.seed, now_ns);
            address::set_up(&mut self.interface, identity.mac, &self.addressing);
            self.announced = 0;
        }
        if let Some(client) = self.dhcp {
            address::ask_again(&mut self.sockets, client);
        }
        Ok(())
    }

    /// Starts an app on the interface.
    pub(super) fn start(&mut self, starter: &Starter, now_ns: u64, console: &mut dyn fmt::Write) {
        self.announce(console);
        self.app = Some(starter(&mut self.net(now_ns, console, None)));
    }

    /// Returns the number of the interface.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Tells whether it has the addresses that it is to have: a lease, where it asks for one.
    pub(super) fn has_address(&self) -> bool {
        self.dhcp.is_none() || self.interface.ipv4_addr().is_some()
    }

    /// Takes a batch in, lets the app work, sends what it and the stack have to send. In a router, packets for
    /// others leave by the other interface meanwhile.
    pub(super) fn turn<N: Nic>(
        &mut self,
        nic: &mut N,
        mut transit: Option<Transit<'_, N>>,
        now_ns: u64,
        console: &mut dyn fmt::Write,
    ) -> Turn {
        let now = instant(now_ns);
        self.watch.begin_batch();
        self.watch.short.begin(now_ns);
        self.interface.poll_maintenance(now);
        if let Some(transit) = &mut transit {
            let Identity { mac, frame_bytes, .. } = self.identity;
            transit.begin(&mut self.interface, mac.0, frame_bytes, self.passage);
        }
        ingress::begin(&mut self.inboxes, nic, &self.interface, now_ns);
        let mut moved = self.ingress().take_batch(nic, transit.as_mut(), now);
        self.counters = nic.counters();
        if let Some(client) = self.dhcp
            && address::follow_lease(&self.name, &mut self.interface, &mut self.sockets, client, console)
        {
            self.watch.short.flows.forget();
        }
        self.announce(console);
        for _ in 0..ROUNDS {
            self.watch.crowded = false;
            self.watch.short.refill();
            if let Some(mut app) = self.app.take() {
                self.next = app.poll(&mut self.net(now_ns, console, Some(nic)));
                self.app = Some(app);
            }
            moved |= self.send_all(nic, now) || self.watch.short.sent > 0;
            // What an app still has leaves in the same containers, and with the same event.
            if !self.watch.crowded || self.watch.transmit == Transmit::Full {
                break;
            }
        }
        if let Some(transit) = transit {
            let ended = transit.end(nic);
            moved |= ended.has_sent;
            (self.routed, self.passage) = (ended.routed, ended.passage);
        }
        // The stack does not report everything that it sends of its own accord, such as a question for a
        // neighbour's address.
        if moved || self.watch.batch_sent > 0 {
            nic.flush();
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
        let blocked = self.passage.blocked_since_ns.map(|since| since.saturating_add(BLOCKED_NS));
        let blocked = blocked.filter(|at| *at > now_ns);
        stack.into_iter().chain(app).chain(blocked).min()
    }

    /// Tells whether packets wait here until another interface has room. Then there is no reason to stay awake
    /// for them: an event tells when there is.
    pub(super) fn is_blocked(&self, now_ns: u64) -> bool {
        self.passage.blocked_since_ns.is_some_and(|since| now_ns - since < BLOCKED_NS)
    }

    /// Lets the app say its last words.
    pub(super) fn finish(&mut self, now_ns: u64, console: &mut dyn fmt::Write) {
        if let Some(mut app) = self.app.take() {
            app.finish(&mut self.net(now_ns, console, None));
        }
        let refused = self.watch.refused;
        if refused > 0 {
            let _ = writeln!(console, "net: {}: {refused} frames kept from the stack", self.name);
        }
    }

    fn ingress(&mut self) -> Ingress<'_> {
        let Self { interface, sockets, watch, inboxes, .. } = self;
        Ingress { interface, sockets, watch, inboxes }
    }

    fn send_all<N: Nic>(&mut self, nic: &mut N, now: Instant) -> bool {
        let mut moved = false;
        // Each pass sends one packet of every socket that has one; sockets hold a bounded number.
        loop {
            let mut device = Watched { device: nic, watch: &mut self.watch };
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
        let [a, b, c, d, e, f] = self.identity.mac.0;
        let name = &self.name;
        let _ = write!(console, "net: {name}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        for address in addresses {
            let _ = write!(console, " {address}");
        }
        let _ = writeln!(console);
    }

    fn net<'a>(
        &'a mut self,
        now_ns: u64,
        console: &'a mut dyn fmt::Write,
        card: Option<&'a mut dyn Card>,
    ) -> Net<'a> {
        Net {
            name: &self.name,
            now_ns,
            counters: self.counters,
            routed: self.routed,
            interface: &mut self.interface,
            sockets: &mut self.sockets,
            watch: &mut self.watch,
            inboxes: &mut self.inboxes,
            console,
            card,
        }
    }
}

impl Identity {
    fn of<N: Nic>(nic: &N) -> Result<Self, LinkError> {
        let mac = EthernetAddress(nic.mac());
        if !mac.is_unicast() || mac.0 == [0; 6] {
            return Err(LinkError::Mac(mac));
        }
        let capabilities = nic.capabilities();
        let (frame_bytes, segmentation) = (capabilities.max_transmission_unit, capabilities.segmentation);
        Ok(Self { mac, frame_bytes, super_frame_bytes: segmentation.tcpv4 })
    }

    fn interface<N: Nic>(self, nic: &mut N, addressing: &Addressing, seed: u64, now_ns: u64) -> Interface {
        let mut config = Config::new(HardwareAddress::Ethernet(self.mac));
        // A stack that is made anew must not repeat what the last one drew.
        config.random_seed = seed.wrapping_add(now_ns);
        config.slaac = !addressing.has_fixed_v6();
        Interface::new(config, nic, instant(now_ns))
    }
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros_const(i64::try_from(ns / 1000).unwrap_or(i64::MAX))
}

fn nanoseconds(instant: Instant) -> u64 {
    u64::try_from(instant.total_micros()).unwrap_or(0).saturating_mul(1000)
}
