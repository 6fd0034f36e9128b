//! A router between two interfaces: where each packet goes, and what is said about those that go nowhere. It reads
//! frames and says what is to be done with them; it knows neither cards nor the stack, to which it leaves what is
//! for the guest itself.
//!
//! Forwarding allocates nothing. What cannot leave at once, because a neighbour is still asked for or because it
//! goes back where it came from, waits in an outbox of fixed size.

mod decisions;
mod neighbours;
mod outbox;
pub(crate) mod packet;
mod talk;

use alloc::boxed::Box;

use decisions::{Decision, Decisions, pair};
use neighbours::{Due, Neighbours, Reason};
use outbox::{Outbox, State, WAITING};
use packet::{Address, Family, Found, Mac, Packet, find, mapped, rewrite, stays_on_link};
use smoltcp::wire::{IpAddress, IpCidr};
use talk::{Trouble, hear, write_error, write_question};

/// Addresses of one interface that count: as many as the stack has.
const PREFIXES: usize = 8;
/// Errors in a row…
const ERROR_BURST: u32 = 32;
/// …and the time after which one more may be sent (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
const ERROR_INTERVAL_NS: u64 = 5_000_000;

/// What a router did with the packets that came in on one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routed {
    /// Passed on.
    pub forwarded: u64,
    /// Dropped: they had passed too many routers.
    pub expired: u64,
    /// Dropped: there is no route.
    pub no_route: u64,
    /// Dropped: nobody answers at the next hop, or more wait for the answer than can.
    pub unresolved: u64,
    /// Dropped: too large for the next link.
    pub too_big: u64,
    /// Dropped: broken headers, or addresses that no router may pass on.
    pub malformed: u64,
    /// Dropped: the other interface took nothing for too long.
    pub full: u64,
    /// Errors sent about the above.
    pub errors_sent: u64,
}

impl Routed {
    /// Returns how many packets were dropped.
    pub fn dropped(&self) -> u64 {
        self.expired + self.no_route + self.unresolved + self.too_big + self.malformed + self.full
    }
}

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The stack of the interface on which it came takes it.
    Deliver,
    /// Nothing more: it was dropped and counted, or waits.
    Done,
    /// It is copied to the other interface.
    Cross(Crossing),
}

/// Whether packets flow on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Up,
    Down,
}

/// A packet on its way to the other interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    pub(crate) family: Family,
    pub(crate) frame_bytes: usize,
    pub(crate) next: Mac,
    pub(crate) own: Mac,
}

/// The router.
#[derive(Debug)]
pub(crate) struct Router {
    sides: Box<[Side; 2]>,
}

#[derive(Debug)]
struct Side {
    carrier: Carrier,
    mac: Mac,
    /// Without the Ethernet header.
    mtu: usize,
    prefixes: [Prefix; PREFIXES],
    /// The routers of IPv4 and IPv6; 0 where there is none.
    gateways: [Address; 2],
    neighbours: Neighbours,
    /// Of packets that came in on this side.
    decisions: Decisions,
    outbox: Outbox,
    errors: Allowance,
    counted: Routed,
}

/// An address of ours and the network around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prefix {
    /// 0 where there is none.
    address: Address,
    mask: Address,
}

/// Errors that may be sent.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since_ns: u64,
}

impl Router {
    /// Returns a router both of whose interfaces are down.
    pub(crate) fn new() -> Self {
        let side = || Side {
            carrier: Carrier::Down,
            mac: [0; 6],
            mtu: 0,
            prefixes: [Prefix::default(); PREFIXES],
            gateways: [0; 2],
            neighbours: Neighbours::default(),
            decisions: Decisions::default(),
            outbox: Outbox::new(),
            errors: Allowance { left: ERROR_BURST, since_ns: 0 },
            counted: Routed::default(),
        };
        Self { sides: Box::new([side(), side()]) }
    }

    /// Begins an interface's turn: takes note of what it has.
    pub(crate) fn configure(
        &mut self,
        side: usize,
        mac: Mac,
        frame_bytes: usize,
        addresses: &[IpCidr],
        gateways: impl Iterator<Item = IpAddress>,
    ) {
        self.forget_decisions();
        let side = &mut self.sides[side];
        (side.mac, side.mtu) = (mac, frame_bytes - packet::ETHERNET_BYTES);
        side.prefixes = [Prefix::default(); PREFIXES];
        for (place, cidr) in side.prefixes.iter_mut().zip(addresses) {
            *place = Prefix::of(cidr);
        }
        side.gateways = [0; 2];
        for gateway in gateways.map(key) {
            side.gateways[Family::of(gateway) as usize] = gateway;
        }
    }

    /// Returns the longest frame that leaves by a side, in bytes.
    pub(crate) fn longest_frame_bytes(&self, side: usize) -> usize {
        self.sides[side].mtu + packet::ETHERNET_BYTES
    }

    /// Takes note of whether packets flow on an interface; down, it is on no route.
    pub(crate) fn set_carrier(&mut self, side: usize, carrier: Carrier) {
        self.forget_decisions();
        self.sides[side].carrier = carrier;
    }

    /// Returns what was done with the packets that came in on a side.
    pub(crate) fn counted(&self, side: usize) -> Routed {
        self.sides[side].counted
    }

    /// Decides about a frame that came in on a side.
    #[inline]
    pub(crate) fn step(&mut self, from: usize, frame: &[u8], now_ns: u64) -> Step {
        match self.sides[from].repeat(frame) {
            Some(crossing) => Step::Cross(crossing),
            None => self.decide(from, frame, now_ns),
        }
    }

    fn decide(&mut self, from: usize, frame: &[u8], now_ns: u64) -> Step {
        let here = &self.sides[from];
        // What is not for our hardware address is for many, or a mistake: the stack's affair either way. What
        // neighbours say of themselves comes both ways.
        if frame.get(..6) != Some(&here.mac) {
            self.listen(from, frame, now_ns);
            return Step::Deliver;
        }
        let packet = match find(frame) {
            Found::Packet(packet) => packet,
            Found::Other => {
                self.listen(from, frame, now_ns);
                return Step::Deliver;
            }
            Found::Malformed => {
                self.sides[from].counted.malformed += 1;
                return Step::Done;
            }
        };
        if here.owns(packet.destination) || stays_on_link(packet.destination) {
            self.listen(from, frame, now_ns);
            return Step::Deliver;
        }
        if stays_on_link(packet.source) {
            self.sides[from].counted.malformed += 1;
            return Step::Done;
        }
        self.forward(from, frame, packet, now_ns)
    }

    /// Something has changed on which decisions may rest.
    fn forget_decisions(&mut self) {
        self.sides.iter_mut().for_each(|side| side.decisions.forget());
    }

    /// Counts a packet that has crossed.
    pub(crate) fn has_crossed(&mut self, from: usize) {
        self.sides[from].counted.forwarded += 1;
    }

    /// Counts a packet for which the other interface had no room.
    pub(crate) fn was_full(&mut self, from: usize) {
        self.sides[from].counted.full += 1;
    }

    fn forward(&mut self, from: usize, frame: &[u8], packet: Packet, now_ns: u64) -> Step {
        if packet.hops <= 1 {
            self.sides[from].counted.expired += 1;
            self.complain(from, frame, packet, Trouble::Expired, now_ns);
            return Step::Done;
        }
        let Some((to, next)) = self.route(from, packet.destination) else {
            self.sides[from].counted.no_route += 1;
            self.complain(from, frame, packet, Trouble::NoRoute, now_ns);
            return Step::Done;
        };
        let there = &mut self.sides[to];
        if packet.frame_bytes > there.mtu + packet::ETHERNET_BYTES {
            let trouble = Trouble::TooBig { mtu: there.mtu };
            self.sides[from].counted.too_big += 1;
            self.complain(from, frame, packet, trouble, now_ns);
            return Step::Done;
        }
        // A frame is not made shorter than Ethernet's least by leaving out its padding.
        let frame_bytes = packet.frame_bytes.max(frame.len().min(60));
        match there.neighbours.look_up(next, now_ns) {
            Some(next) if to != from => {
                let (own, longest) = (there.mac, there.mtu + packet::ETHERNET_BYTES);
                if let (Family::V4, Some(addresses)) = (packet.family, packet::addresses_v4(frame)) {
                    self.sides[from].decisions.keep(pair(addresses), Decision { next, own, longest });
                }
                Step::Cross(Crossing { family: packet.family, frame_bytes, next, own })
            }
            known => {
                let state = match known {
                    Some(_) => State::Ready,
                    None => State::For { next, packet, from },
                };
                let place = there.outbox.add(&frame[..frame_bytes], state);
                let has_place = place.is_some();
                if let (Some(bytes), Some(mac)) = (place, known) {
                    rewrite(bytes, packet.family, mac, there.mac);
                }
                let counted = &mut self.sides[from].counted;
                match (has_place, known) {
                    (true, Some(_)) => counted.forwarded += 1,
                    (false, Some(_)) => counted.full += 1,
                    (true, None) => {}
                    (false, None) => counted.unresolved += 1,
                }
                Step::Done
            }
        }
    }

    /// Returns the side by which an address is reached, and the next hop. Networks that we are on come before
    /// default routes, and the other side before the one that a packet came from.
    fn route(&self, from: usize, to: Address) -> Option<(usize, Address)> {
        let sides = [1 - from, from]
            .map(|at| (at, &self.sides[at]))
            .into_iter()
            .filter(|(_, side)| side.carrier == Carrier::Up);
        for (at, side) in sides.clone() {
            match side.neighbourhood(to) {
                Some(Neighbourhood::Host) => return Some((at, to)),
                // Nobody sends to all of a network from outside of it (RFC 2644).
                Some(Neighbourhood::Everybody) => return None,
                None => {}
            }
        }
        let family = Family::of(to) as usize;
        sides.map(|(at, side)| (at, side.gateways[family])).find(|(_, gateway)| *gateway != 0)
    }

    /// Tells the sender of a packet why it went no further.
    fn complain(&mut self, from: usize, frame: &[u8], packet: Packet, trouble: Trouble, now_ns: u64) {
        let side = &mut self.sides[from];
        let Some(address) = side.address_for(packet.source) else { return };
        if !side.errors.take(now_ns) {
            return;
        }
        let own = (address, side.mac);
        let written = side.outbox.write(|out| write_error(out, frame, &packet, trouble, own));
        side.counted.errors_sent += u64::from(written);
    }

    /// Listens to what a neighbour says of itself.
    fn listen(&mut self, from: usize, frame: &[u8], now_ns: u64) {
        let Some(said) = hear(frame) else { return };
        let side = &mut self.sides[from];
        // Nobody else has an address of ours, whatever it says.
        if side.owns(said.address) {
            return;
        }
        let reason = match said.looks_for {
            Some(address) if side.owns(address) => Reason::AsksUs,
            _ => Reason::Tells,
        };
        side.neighbours.learn(said.address, said.mac, reason, now_ns);
        self.forget_decisions();
        self.release(from, said.address);
    }

    /// Lets those go that waited for a neighbour, if it is known now.
    fn release(&mut self, side: usize, address: Address) {
        let Some(mac) = self.sides[side].neighbours.known(address) else { return };
        for at in 0..WAITING {
            let there = &mut self.sides[side];
            let waiting = &mut there.outbox.frames[at];
            let State::For { next, packet, from } = waiting.state else { continue };
            if next == address {
                rewrite(&mut waiting.bytes[..waiting.len], packet.family, mac, there.mac);
                waiting.state = State::Ready;
                there.outbox.ready += 1;
                self.sides[from].counted.forwarded += 1;
            }
        }
    }

    /// Asks for the neighbours that are due, and gives up those that do not answer.
    pub(crate) fn maintain(&mut self, side: usize, now_ns: u64) {
        while let Some(due) = self.sides[side].neighbours.next_due(now_ns) {
            match due {
                Due::Ask { address, last } => {
                    let side = &mut self.sides[side];
                    let Some(own) = side.address_for(address) else { continue };
                    let own = (own, side.mac);
                    side.outbox.write(|out| write_question(out, address, last, own));
                }
                Due::GiveUp { address } => self.give_up(side, address, now_ns),
            }
        }
    }

    fn give_up(&mut self, side: usize, address: Address, now_ns: u64) {
        self.forget_decisions();
        for at in 0..WAITING {
            let waiting = &mut self.sides[side].outbox.frames[at];
            let State::For { next, packet, from } = waiting.state else { continue };
            if next != address {
                continue;
            }
            waiting.state = State::Free;
            // The error about it may want a place in the same outbox: not this one while it is being read.
            let bytes = core::mem::take(&mut waiting.bytes);
            self.sides[from].counted.unresolved += 1;
            self.complain(from, &bytes, packet, Trouble::NoHost, now_ns);
            self.sides[side].outbox.frames[at].bytes = bytes;
        }
    }

    /// Tells whether a side has frames that can leave.
    pub(crate) fn has_ready(&self, side: usize) -> bool {
        self.sides[side].outbox.ready > 0
    }

    /// Returns a frame that can leave by a side, which is then gone.
    pub(crate) fn take_ready(&mut self, side: usize) -> Option<&[u8]> {
        let outbox = &mut self.sides[side].outbox;
        let waiting = outbox.frames.iter_mut().find(|waiting| waiting.state == State::Ready)?;
        waiting.state = State::Free;
        outbox.ready -= 1;
        waiting.bytes.get(..waiting.len)
    }

    /// Returns when a side has something to do, if nothing happens before.
    pub(crate) fn due_ns(&self, side: usize) -> Option<u64> {
        self.sides[side].neighbours.due_ns()
    }
}

/// What an address is in a network that we are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbourhood {
    Host,
    Everybody,
}

impl Side {
    /// Does with a packet what was done with one between the same addresses before, if it can be: what is out of the ordinary
    /// is decided anew.
    #[inline]
    fn repeat(&self, frame: &[u8]) -> Option<Crossing> {
        let decision = self.decisions.find(pair(packet::addresses_v4(frame)?))?;
        let (hops, total) = packet::find_plain_v4(frame)?;
        let frame_bytes = total.max(frame.len().min(60));
        let ordinary = frame.starts_with(&self.mac) && hops > 1 && total <= decision.longest;
        let Decision { next, own, .. } = *decision;
        ordinary.then_some(Crossing { family: Family::V4, frame_bytes, next, own })
    }

    fn owns(&self, address: Address) -> bool {
        self.prefixes.iter().any(|prefix| prefix.address == address)
    }

    fn neighbourhood(&self, address: Address) -> Option<Neighbourhood> {
        let prefix = self.prefixes.iter().find(|prefix| prefix.contains(address))?;
        let is_broadcast = Family::of(address) == Family::V4
            && address == prefix.address | !prefix.mask
            && prefix.mask.trailing_zeros() > 1;
        Some(if is_broadcast { Neighbourhood::Everybody } else { Neighbourhood::Host })
    }

    /// Returns the address of ours from which another one is spoken to: one on its network, else one that is good
    /// beyond its link.
    fn address_for(&self, other: Address) -> Option<Address> {
        let of_family = || {
            let own = self.prefixes.iter().filter(|prefix| prefix.address != 0);
            own.filter(|prefix| Family::of(prefix.address) == Family::of(other))
        };
        let near = of_family().find(|prefix| prefix.contains(other));
        let far = || of_family().find(|prefix| !stays_on_link(prefix.address)).or_else(|| of_family().next());
        near.or_else(far).map(|prefix| prefix.address)
    }
}

impl Prefix {
    fn of(cidr: &IpCidr) -> Self {
        let bits = match cidr {
            IpCidr::Ipv4(cidr) => 96 + u32::from(cidr.prefix_len()),
            IpCidr::Ipv6(cidr) => u32::from(cidr.prefix_len()),
        };
        let mask = Address::MAX.checked_shl(128 - bits).unwrap_or_default();
        Self { address: key(cidr.address()), mask }
    }

    fn contains(&self, address: Address) -> bool {
        self.address != 0 && (self.address ^ address) & self.mask == 0
    }
}

fn key(address: IpAddress) -> Address {
    match address {
        IpAddress::Ipv4(address) => mapped(address.octets()),
        IpAddress::Ipv6(address) => address.to_bits(),
    }
}

impl Allowance {
    fn take(&mut self, now_ns: u64) -> bool {
        let earned = now_ns.saturating_sub(self.since_ns) / ERROR_INTERVAL_NS;
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(ERROR_BURST);
            self.since_ns += earned * ERROR_INTERVAL_NS;
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests;
