//! What passes through a router in one turn of an interface: frames are taken before the stack sees them, and
//! copied once into what the other interface sends. It knows two cards and the router's decisions, and no header.

use smoltcp::iface::Interface;
use smoltcp::phy::TxToken;
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpCidr};

use super::nic::Nic;
use crate::forward::packet::{Mac, pass_on};
use crate::forward::{Routed, Router, Step};

/// How long an interface waits until the other one has room. After that, packets are dropped: somebody who takes
/// nothing must not keep the rest of the guest from working.
pub(super) const BLOCKED_NS: u64 = 100_000_000;

/// Bytes that are passed on before the other end hears of them, while more come in: so many fill the largest container.
const HEARD_OF_BYTES: usize = 64 << 10;

/// A router and the way out, for the length of a turn.
#[derive(Debug)]
pub(super) struct Transit<'t, N> {
    router: &'t mut Router,
    /// The side whose turn it is.
    side: usize,
    /// The other side's card; none while there is none.
    out: Option<&'t mut N>,
    /// The longest frame that leaves by it.
    longest: usize,
    /// It has room for one.
    has_room: bool,
    now_ns: u64,
    passage: Passage,
    /// Nothing more is there to be taken in.
    drained: bool,
}

/// What an interface remembers of what it passes on, from turn to turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passage {
    /// Since when the other one has no room.
    pub(super) blocked_since_ns: Option<u64>,
    /// Bytes that it was given and has not handed over.
    unheard_bytes: usize,
}

/// Whether a frame was taken from the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is none of the stack's business any more.
    Taken,
    /// It is the stack's.
    Left,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) has_sent: bool,
    pub(super) routed: Routed,
    pub(super) passage: Passage,
}

impl<'t, N> Transit<'t, N> {
    pub(super) fn new(router: &'t mut Router, side: usize, out: Option<&'t mut N>, now_ns: u64) -> Self {
        let longest = router.longest_frame_bytes(1 - side);
        let passage = Passage::default();
        Self { router, side, out, longest, has_room: false, now_ns, passage, drained: false }
    }
}

impl<N: Nic> Transit<'_, N> {
    /// Tells whether a frame may be taken in: one that crosses finds room.
    #[inline]
    pub(super) fn is_open(&mut self) -> bool {
        let Some(out) = &mut self.out else { return true };
        self.has_room = out.has_room(self.longest);
        if self.has_room {
            self.passage.blocked_since_ns = None;
            return true;
        }
        let since_ns = *self.passage.blocked_since_ns.get_or_insert(self.now_ns);
        self.now_ns - since_ns >= BLOCKED_NS
    }

    /// Takes a frame, if it is not for the guest itself.
    pub(super) fn take(&mut self, frame: &[u8]) -> Taken {
        let crossing = match self.router.step(self.side, frame, self.now_ns) {
            Step::Deliver => return Taken::Left,
            Step::Done => return Taken::Taken,
            Step::Cross(crossing) => crossing,
        };
        match self.out.as_mut().filter(|_| self.has_room) {
            Some(out) => {
                let from = &frame[..crossing.frame_bytes];
                out.send_frame(from.len(), |to| {
                    pass_on(from, to, crossing.family, crossing.next, crossing.own);
                });
                self.passage.unheard_bytes += from.len();
                self.router.has_crossed(self.side);
            }
            None => self.router.was_full(self.side),
        }
        Taken::Taken
    }

    /// Notes that nothing more is there to be taken in.
    pub(super) fn note_drained(&mut self) {
        self.drained = true;
    }

    /// Begins a turn: the router learns what has changed on the interface.
    pub(super) fn begin(
        &mut self,
        interface: &mut Interface,
        mac: Mac,
        frame_bytes: usize,
        passage: Passage,
    ) {
        self.passage = passage;
        let gateways = gateways(interface).into_iter().flatten();
        self.router.configure(self.side, mac, frame_bytes, interface.ip_addrs(), gateways);
    }

    /// Ends a turn: what waited for its chance leaves, and the other side is told of what it got.
    pub(super) fn end(mut self, nic: &mut N) -> Ended {
        self.router.maintain(self.side, self.now_ns);
        let mut has_sent = false;
        while self.router.has_ready(self.side) {
            let Some(token) = nic.transmit(Instant::ZERO) else { break };
            let Some(frame) = self.router.take_ready(self.side) else { break };
            token.consume(frame.len(), |to| to.copy_from_slice(frame));
            has_sent = true;
        }
        let Passage { unheard_bytes, blocked_since_ns } = self.passage;
        let nothing_follows = self.drained || blocked_since_ns.is_some();
        if (unheard_bytes > 0 && nothing_follows || unheard_bytes >= HEARD_OF_BYTES)
            && let Some(out) = self.out
        {
            out.flush();
            self.passage.unheard_bytes = 0;
        }
        let routed = self.router.counted(self.side);
        Ended { has_sent, routed, passage: self.passage }
    }
}

/// Returns the default routes of an interface, IPv4 and IPv6. The stack shows them to whom may change them alone.
pub(super) fn gateways(interface: &mut Interface) -> [Option<IpAddress>; 2] {
    let mut found = [None; 2];
    interface.routes_mut().update(|routes| {
        for route in routes.iter().filter(|route| route.cidr.prefix_len() == 0) {
            let place = match route.cidr {
                IpCidr::Ipv4(_) => &mut found[0],
                IpCidr::Ipv6(_) => &mut found[1],
            };
            *place = Some(route.via_router);
        }
    });
    found
}
