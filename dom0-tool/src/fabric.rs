//! The ports of the switch, and the way of a frame from one to another.
//!
//! It knows how to hand a frame to each kind of port. It knows no hypervisor: what guests are to get lies in
//! their regions of one memory until the worker asks for the copies.

use drayage_wire::container::Packet;
use serde::{Deserialize, Serialize};

use crate::aggregate::REGION_BYTES;
use crate::capture::Travel;
use crate::memory::Pages;
use crate::port::{By, Sent, Uplink};
use crate::rules::Guard;
use crate::switch::{Decision, Mac, PortId, Segment, Switch};
use crate::trunk::queue::{Label, Share};
use crate::trunk::{MAX_TRUNKS, Trunk};
use crate::vif::across::Whole;
use crate::vif::holds::HoldTimes;
use crate::vif::scratch::{Leases, Parcel};
use crate::vif::tx::{Taken, judge};
use crate::vif::{Aim, Counters, Vif};
use crate::xen::PageAccess;

/// Guests that can be served at a time.
pub const MAX_GUESTS: usize = 256;
/// Uplinks that can be open at a time.
pub const MAX_UPLINKS: usize = 64;

/// A frame shorter than this is copied for an uplink, with others for the same system call.
const LEAST_SCATTERED_BYTES: usize = 2048;

/// Bytes of all guests' regions together.
pub(crate) const REGIONS_BYTES: usize = MAX_GUESTS * REGION_BYTES;
/// Ports of one worker, at most.
pub(crate) const MAX_PORTS: usize = MAX_GUESTS + MAX_UPLINKS + MAX_TRUNKS;

/// What an uplink did, counted from our point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkCounters {
    /// Frames that came in.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// When the last of them had gone out, in nanoseconds of the backend's clock (CLOCK_MONOTONIC); 0 before the first.
    #[serde(default)]
    pub sent_last_ns: u64,
    /// Frames that it did not take.
    pub send_drops: u64,
    /// Frames that came in, and for which there was no destination.
    pub no_destination: u64,
    /// Passes in which frames came in.
    pub batches: u64,
    /// Frames that were lost on its receiving side before we saw them.
    pub receive_drops: u64,
    /// Sleeps that it ended.
    pub wakeups: u64,
    /// By what its frames go.
    #[serde(default)]
    pub by: By,
}

impl UplinkCounters {
    /// Counts a frame of so many bytes that was to be sent.
    fn note(&mut self, sent: Sent, bytes: usize) {
        match sent {
            Sent::Yes => {
                self.sent += 1;
                self.sent_bytes += bytes as u64;
            }
            // Counted when it is flushed.
            Sent::Queued => {}
            Sent::No => self.send_drops += 1,
        }
    }
}

/// A port.
pub(crate) struct Port<P> {
    pub(crate) segment: Segment,
    pub(crate) guard: Guard,
    pub(crate) kind: Kind<P>,
}

/// What stands at a port.
pub(crate) enum Kind<P> {
    Guest {
        vif: Box<Vif<P>>,
        region: usize,
    },
    Uplink {
        link: Box<dyn Uplink>,
        counters: UplinkCounters,
        /// How many of the frames sent had gone out at `sent_last_ns`.
        stamped: u64,
    },
    Trunk(Box<Trunk>),
}

/// The ports, the table that says where addresses are, and the memory in which frames wait for guests.
pub(crate) struct Fabric<P> {
    pub(crate) ports: Vec<Option<Port<P>>>,
    pub(crate) switch: Switch,
    pub(crate) regions: Pages,
    /// Who refers to which block of what guests sent.
    pub(crate) leases: Leases,
    free_regions: Vec<usize>,
    pub(crate) trace: Trace,
    /// Where the frames of the port went that is being served.
    pub(crate) aim: Aim,
}

/// What became of the last frame, for a capture.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trace {
    /// The uplink that is watched.
    pub(crate) watched: Option<PortId>,
    /// Whether the frame went there.
    pub(crate) hit: bool,
    /// The guest that it was handed to; the last one, if there were several.
    pub(crate) guest: Option<PortId>,
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) port: PortId,
    pub(crate) segment: Segment,
    pub(crate) guard: Guard,
    pub(crate) via: Via,
}

/// How it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// From a port of this worker's.
    Own,
    /// From another worker, which has served all others already: it goes over no second trunk.
    Trunk,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// It was handed to a port at least.
    Yes,
    /// There was nobody to take it.
    Nobody,
    /// Its sender is held to its own address, and this is another.
    WrongSource,
    /// Both ends are isolated.
    Isolated,
}

/// Returns where a region starts.
pub(crate) fn region_start(region: usize) -> usize {
    region * REGION_BYTES
}

impl<P: PageAccess> Fabric<P> {
    pub(crate) fn new() -> Self {
        Self {
            ports: Vec::with_capacity(MAX_PORTS),
            switch: Switch::new(),
            regions: Pages::new(REGIONS_BYTES),
            leases: Leases::default(),
            free_regions: (0..MAX_GUESTS).rev().collect(),
            trace: Trace::default(),
            aim: Aim::Nothing,
        }
    }

    /// Returns a free port number. The list is only as long as it must be, for every pass walks over it.
    pub(crate) fn vacancy(&mut self) -> Option<PortId> {
        let at = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        if at == MAX_PORTS {
            return None;
        }
        if at == self.ports.len() {
            self.ports.push(None);
        }
        Some(PortId(at as u16))
    }

    /// Returns a free region, zeroed: its last user's packets are nobody else's business (XSA-403).
    pub(crate) fn take_region(&mut self) -> Option<usize> {
        let region = self.free_regions.pop()?;
        let start = region_start(region);
        self.regions.bytes_mut()[start..start + REGION_BYTES].fill(0);
        Some(region)
    }

    pub(crate) fn give_region(&mut self, region: usize) {
        self.free_regions.push(region);
    }

    pub(crate) fn port_mut(&mut self, id: PortId) -> Option<&mut Port<P>> {
        self.ports.get_mut(usize::from(id.0))?.as_mut()
    }

    pub(crate) fn vif_mut(&mut self, id: PortId) -> Option<(&mut Vif<P>, usize)> {
        match &mut self.port_mut(id)?.kind {
            Kind::Guest { vif, region } => Some((vif, *region)),
            Kind::Uplink { .. } | Kind::Trunk(_) => None,
        }
    }

    /// Says where an address is.
    pub(crate) fn pin(&mut self, port: PortId, segment: Segment, mac: Mac) {
        self.switch.pin(port, segment, mac);
    }

    /// Hands a frame from a port, which is taken out of the list meanwhile, to where it belongs.
    pub(crate) fn forward(&mut self, from: &Origin, now_ns: u64, parcel: &Parcel<'_>) -> Forwarded {
        let frame = parcel.bytes;
        // Before anything is learned from it.
        if !from.guard.admits(frame) {
            return Forwarded::WrongSource;
        }
        match self.switch.decide(from.port, from.segment, now_ns, frame) {
            Some(Decision::To(to)) if !self.may_reach(from, to) => Forwarded::Isolated,
            Some(Decision::To(to)) => {
                self.aim.note(to);
                self.deliver(to, from, Share::All, now_ns, parcel)
            }
            Some(Decision::Flood) => {
                self.aim = Aim::Many;
                self.flood(from, now_ns, parcel)
            }
            Some(Decision::Nowhere) | None => Forwarded::Nobody,
        }
    }

    /// Hands a guest's container on as a whole, if all its packets go to one port that has a use for that: then what is
    /// decided for one is decided for all, as nothing but addresses decides. Another guest gets it as it is; an uplink that
    /// keeps frames in memory of its own has those that were not read yet written there.
    pub(crate) fn forward_whole(
        &mut self,
        from: &Origin,
        now_ns: u64,
        whole: &mut Whole<'_, P>,
        sender: &mut Counters,
    ) -> Taken {
        let container = &*whole.bytes;
        let Some((first, others)) = whole.packets.split_first() else { return Taken::No };
        let frame = &container[first.range()];
        if (others.is_empty() && !whole.is_unread()) || !from.guard.admits(frame) {
            return Taken::No;
        }
        let decision = self.switch.decide(from.port, from.segment, now_ns, frame);
        let Some(Decision::To(to)) = decision else { return Taken::No };
        if !self.may_reach(from, to) {
            return Taken::No;
        }
        let addresses = frame.first_chunk::<12>();
        let together =
            || others.iter().all(|other| container[other.range()].first_chunk::<12>() == addresses);
        let Some(port) = self.ports.get_mut(usize::from(to.0)).and_then(Option::as_mut) else {
            return Taken::No;
        };
        let taken = match &mut port.kind {
            Kind::Guest { vif, region } if vif.fault.is_none() && !others.is_empty() && together() => {
                let start = region_start(*region);
                let memory = &mut self.regions.bytes_mut()[start..start + REGION_BYTES];
                vif.accept_container(memory, now_ns, whole, &mut self.leases)
            }
            Kind::Uplink { link, counters, .. } if whole.is_unread() && together() => {
                send_whole(&mut **link, counters, whole, sender);
                Taken::Yes
            }
            _ => Taken::No,
        };
        if taken == Taken::Yes {
            self.aim.note(to);
        }
        taken
    }

    /// Hands a packet of a guest's container, of which not all was read, straight to another guest, if it goes there alone and
    /// that one has a place for it.
    pub(crate) fn forward_packet(
        &mut self,
        from: &Origin,
        now_ns: u64,
        (whole, packet): (&mut Whole<'_, P>, &Packet),
    ) -> Taken {
        let frame = whole.known_part(packet);
        if !from.guard.admits(frame) {
            return Taken::No;
        }
        let decision = self.switch.decide(from.port, from.segment, now_ns, frame);
        let Some(Decision::To(to)) = decision else { return Taken::No };
        if !self.may_reach(from, to) {
            return Taken::No;
        }
        let port = self.ports.get_mut(usize::from(to.0)).and_then(Option::as_mut);
        let Some(Port { kind: Kind::Guest { vif, region }, .. }) = port else { return Taken::No };
        if vif.fault.is_some() || !vif.subscriptions.want(frame) {
            return Taken::No;
        }
        let start = region_start(*region);
        let memory = &mut self.regions.bytes_mut()[start..start + REGION_BYTES];
        let taken = vif.accept_packet(memory, now_ns, (whole, packet));
        if taken == Taken::Yes {
            self.aim.note(to);
        }
        taken
    }

    fn may_reach(&self, from: &Origin, to: PortId) -> bool {
        let port = self.ports.get(usize::from(to.0)).and_then(Option::as_ref);
        port.is_none_or(|port| from.guard.privacy.reaches(port.guard.privacy))
    }

    fn flood(&mut self, from: &Origin, now_ns: u64, parcel: &Parcel<'_>) -> Forwarded {
        let mut result = Forwarded::Nobody;
        for at in 0..self.ports.len() {
            let id = PortId(at as u16);
            let hears = self.ports[at].as_ref().is_some_and(|port| match &port.kind {
                Kind::Trunk(trunk) => trunk.reaches(from.segment),
                _ => port.segment == from.segment,
            });
            if id != from.port
                && hears
                && self.may_reach(from, id)
                && self.deliver(id, from, Share::Half, now_ns, parcel) == Forwarded::Yes
            {
                result = Forwarded::Yes;
            }
        }
        result
    }

    fn deliver(
        &mut self,
        to: PortId,
        from: &Origin,
        share: Share,
        now_ns: u64,
        parcel: &Parcel<'_>,
    ) -> Forwarded {
        let Parcel { bytes: frame, meta, .. } = *parcel;
        let Some(port) = self.ports.get_mut(usize::from(to.0)).and_then(Option::as_mut) else {
            return Forwarded::Nobody;
        };
        match &mut port.kind {
            Kind::Guest { vif, region } => {
                if vif.fault.is_some() {
                    return Forwarded::Nobody;
                }
                if !vif.subscriptions.want(frame) {
                    vif.counters.filtered += 1;
                    return Forwarded::Nobody;
                }
                let start = region_start(*region);
                let memory = &mut self.regions.bytes_mut()[start..start + REGION_BYTES];
                let (leases, counters) = (&mut self.leases, &mut vif.counters);
                match share {
                    Share::All => vif.rx.accept(memory, now_ns, parcel, leases, counters),
                    Share::Half => vif.rx.accept_flood(memory, now_ns, parcel, leases, counters),
                }
                self.trace.guest = Some(to);
            }
            Kind::Uplink { link, counters, .. } => {
                let sent = link.send(frame, meta);
                counters.note(sent, frame.len());
                self.trace.hit |= self.trace.watched == Some(to);
            }
            Kind::Trunk(_) if from.via == Via::Trunk => return Forwarded::Nobody,
            Kind::Trunk(trunk) => {
                trunk.send(Label { segment: from.segment, privacy: from.guard.privacy, meta }, frame, share);
            }
        }
        Forwarded::Yes
    }

    /// Returns how the last frame travels, and forgets it.
    pub(crate) fn take_travel(&mut self) -> Travel {
        let Some(id) = self.trace.guest.take() else { return Travel::Nowhere };
        match self.vif_mut(id).map(|(vif, _)| vif.rx.last()) {
            Some(Some((sequence, position))) => {
                Travel::Container { vif: id, sequence, position, hold_ns: None }
            }
            Some(None) => Travel::Alone { vif: id },
            None => Travel::Nowhere,
        }
    }

    /// Returns whether an uplink is behind with what was sent by it.
    pub(crate) fn is_behind(&mut self) -> bool {
        self.ports.iter_mut().flatten().any(|port| match &mut port.kind {
            Kind::Uplink { link, .. } => link.is_behind(),
            Kind::Guest { .. } | Kind::Trunk(_) => false,
        })
    }

    /// Sends what waits in uplinks, and asks for the time where something went out.
    pub(crate) fn flush(&mut self, now_ns: impl Fn() -> u64) {
        for port in self.ports.iter_mut().flatten() {
            if let Kind::Uplink { link, counters, stamped } = &mut port.kind {
                let done = link.flush();
                counters.sent += done.sent;
                counters.sent_bytes += done.sent_bytes;
                counters.send_drops += done.drops;
                if counters.sent != *stamped {
                    *stamped = counters.sent;
                    counters.sent_last_ns = now_ns();
                }
            }
        }
    }

    /// Returns how long a guest's packets were held.
    pub(crate) fn holds(&self, id: PortId) -> Option<HoldTimes> {
        match &self.ports.get(usize::from(id.0))?.as_ref()?.kind {
            Kind::Guest { vif, .. } => Some(vif.rx.holds().summary()),
            Kind::Uplink { .. } | Kind::Trunk(_) => None,
        }
    }

    /// Returns the counters of a guest.
    pub(crate) fn counters(&self, id: PortId) -> Option<Counters> {
        match &self.ports.get(usize::from(id.0))?.as_ref()?.kind {
            Kind::Guest { vif, .. } => Some(vif.counters),
            Kind::Uplink { .. } | Kind::Trunk(_) => None,
        }
    }
}

/// Sends the packets of a container by an uplink. Each is judged where it was written to, which nobody else can.
fn send_whole<P: PageAccess>(
    link: &mut dyn Uplink,
    counters: &mut UplinkCounters,
    whole: &mut Whole<'_, P>,
    sender: &mut Counters,
) {
    for packet in whole.packets {
        let bytes = packet.range().len();
        if link.takes_scattered()
            && bytes >= LEAST_SCATTERED_BYTES
            && let Some(scattered) = whole.scatter(packet)
        {
            // Nothing is looked at but its headers, which go out as they were read.
            if let Some(meta) = judge(scattered.frame, packet.meta, sender) {
                counters.note(link.send_scattered(&scattered, meta), bytes);
            }
            continue;
        }
        let sent = if let Some(place) = link.place(bytes) {
            whole.read_packet(packet, place);
            judge(place, packet.meta, sender).map(|meta| link.send_placed(meta))
        } else {
            let frame = whole.fill_packet(packet);
            judge(frame, packet.meta, sender).map(|meta| link.send(frame, meta))
        };
        if let Some(sent) = sent {
            counters.note(sent, bytes);
        }
    }
}
