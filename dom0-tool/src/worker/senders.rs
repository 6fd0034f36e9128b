//! What guests send: their TX rings read in bounds, and everything in them sent on.
//!
//! Who sends faster than one guest takes is slowed down by that guest, as by a cable: what goes there is left in the
//! sender's ring until there is room for it. Nobody waits behind somebody else's packets for that: a sender is only held
//! while all that it sent last went to that one guest, never for longer than [`PATIENCE_NS`], and not at all for a
//! guest that has taken nothing for that long. What comes then finds a full queue, and is lost there.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{MAX_RX_BYTES, MAX_TX_BYTES};
use drayage_wire::ring::SharedWords;

use super::{Worker, earlier, fail, watch};
use crate::aggregate::REGION_BYTES;
use crate::capture::Way;
use crate::clock::Clock;
use crate::fabric::{Fabric, Forwarded, Kind, Origin, Port, Via};
use crate::switch::PortId;
use crate::vif::rx::Wish;
use crate::vif::tx::{Delivery, Left, Look, Taken};
use crate::vif::{Aim, Counters, Held, Vif};
use crate::xen::Xen;

/// How long requests stay in a ring at most because there is no room where they go, and for how long who takes nothing is
/// taken to be slow: as long as Xen's schedulers let one guest run while another waits for the same processor (10 ms with
/// credit2, 30 with credit), as a sender and its receiver may share one.
const PATIENCE_NS: u64 = 30_000_000;

/// Places that the queue of a guest with containers of any size has for them. Each takes one, however little is in it,
/// where it is handed on whole; two are kept for what is closed half empty (`Rx::room`).
const PLACES: usize = REGION_BYTES / MAX_RX_BYTES;

/// From this length on, on average, what goes to several is left where it is until it is known where: for a shorter frame, two
/// reads of it cost more than the copy that may be saved.
const LEAST_PLACED_BYTES: usize = 512;

/// From this length on, on average, an uplink has frames read straight into its memory: a copy less costs less than the looks
/// at the same pages that it takes.
const LONG_FRAME_BYTES: usize = PAGE_SIZE;

/// How much may be taken from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowance {
    /// Whatever it has.
    All,
    /// A container's worth, in no more containers than take half of a queue's places: it is not known where it goes, or it
    /// goes to several. The next one, in the pass that follows at once, may be for one only, who is not to get all that a
    /// ring holds at once then.
    Little,
    /// As much as the queue of a guest has room for while nothing waits there: all goes out by this uplink, but what comes
    /// next may be for a guest.
    Part(PortId),
    /// As much as there is room for where it goes.
    Bytes { to: PortId, bytes: usize, container_bytes: usize },
}

impl Allowance {
    fn bytes(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Little => MAX_TX_BYTES,
            Self::Part(_) => 4 * MAX_TX_BYTES,
            Self::Bytes { bytes, .. } => bytes,
        }
    }

    /// What a container counts for at least.
    fn container_bytes(self) -> usize {
        match self {
            Self::All => 0,
            Self::Little => self.bytes() / (PLACES / 2),
            Self::Part(_) => self.bytes() / (PLACES - 2),
            Self::Bytes { container_bytes, .. } => container_bytes,
        }
    }
}

/// Returns how much may be taken from the guest at a port, judged by where what it sent last went.
fn allowance<P: SharedWords>(fabric: &Fabric<P>, from: usize, now_ns: u64) -> Allowance {
    let guest = |at: usize| match &fabric.ports.get(at)?.as_ref()?.kind {
        Kind::Guest { vif, .. } => Some(vif),
        Kind::Uplink { .. } | Kind::Trunk(_) => None,
    };
    let Some(sender) = guest(from) else { return Allowance::All };
    let to = match sender.aim {
        Aim::Nothing | Aim::Many => return Allowance::Little,
        Aim::One(to) => to,
    };
    let Some(receiver) = guest(usize::from(to.0)) else { return Allowance::Part(to) };
    let too_long = |since_ns: u64| now_ns.saturating_sub(since_ns) >= PATIENCE_NS;
    if receiver.fault.is_some()
        || receiver.rx.stuck_since_ns().is_some_and(too_long)
        || sender.held.is_some_and(|held| too_long(held.since_ns))
    {
        return Allowance::All;
    }
    let room = receiver.rx.room();
    let bytes = room.bytes.min(room.packets.saturating_mul(sender.frame_bytes));
    let bytes = bytes.saturating_sub(receiver.promised_bytes);
    Allowance::Bytes { to, bytes, container_bytes: room.container_bytes }
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Reads TX rings and forwards what is in them.
    pub(super) fn take_from_guests(&mut self, now_ns: u64) -> (usize, Left) {
        let (mut left, any) = self.gather(now_ns);
        if !any {
            return (0, left);
        }
        if self.tx_copies.granted() > 0 {
            self.counters.copy_batches += 1;
            self.counters.copies += self.tx_copies.granted() as u64;
            self.xen.copy_from_guests(self.scratch.bytes_mut(), self.tx_copies.ops_mut());
        }
        let mut frames = 0;
        for at in 0..self.fabric.ports.len() {
            let has_chains = match &self.fabric.ports[at] {
                Some(Port { kind: Kind::Guest { vif, .. }, .. }) => vif.tx.has_chains(),
                _ => false,
            };
            if has_chains {
                frames += self.deliver(at, now_ns);
            }
        }
        // Rings that were emptied are watched again; what came meanwhile is taken in the next pass.
        for port in self.fabric.ports.iter_mut().flatten() {
            let Kind::Guest { vif, .. } = &mut port.kind else { continue };
            vif.promised_bytes = 0;
            if std::mem::take(&mut vif.tx_drained) && vif.fault.is_none() {
                if frames >= self.settings.busy_frames && self.settings.holdoff_us > 0 {
                    // A busy sender is looked at again when the time has come, and need not say so.
                    vif.tx_ready = true;
                } else if vif.tx.rearm() {
                    vif.tx_ready = true;
                    left = Left::Some;
                }
            }
        }
        (frames, left)
    }

    /// Takes requests out of the rings. Returns whether there is more, and whether a ring was looked at.
    fn gather(&mut self, now_ns: u64) -> (Left, bool) {
        self.scratch.begin(&mut self.fabric.leases);
        self.tx_copies.clear();
        let (mut left, mut any) = (Left::Nothing, false);
        let ports = self.fabric.ports.len();
        // Several may send to one: who got nothing through in the last pass comes first.
        let first = self.first_sender.min(ports);
        let mut starved = None;
        for at in (first..ports).chain(0..first) {
            let allowance = allowance(&self.fabric, at, now_ns);
            let look = self.look(at, allowance);
            let Some(Port { kind: Kind::Guest { vif, .. }, .. }) = &mut self.fabric.ports[at] else {
                continue;
            };
            if !vif.tx_ready || vif.fault.is_some() {
                continue;
            }
            any = true;
            let since_ns = vif.held.take().map(|held| held.since_ns);
            let staged = vif.staging.as_ref().map(|staging| &staging.table);
            let room = (&mut self.scratch, &mut self.fabric.leases);
            match vif.tx.gather(
                room,
                staged,
                &mut self.tx_copies,
                (allowance.bytes(), allowance.container_bytes(), look),
            ) {
                Ok(Left::Nothing) => {
                    vif.tx_ready = false;
                    vif.tx_drained = true;
                }
                Ok(Left::Some) => left = Left::Some,
                Ok(Left::TooMuch { bytes }) => {
                    // Whoever got something through begins to wait anew.
                    let nothing = !vif.tx.has_chains();
                    starved = starved.or(nothing.then_some(at));
                    let since_ns = since_ns.filter(|_| nothing).unwrap_or(now_ns);
                    vif.held = Some(Held { since_ns, bytes });
                }
                Err(error) => fail(&mut self.faults, vif, at, error.into()),
            }
            let taken_bytes = vif.tx.taken_bytes();
            if let Allowance::Bytes { to, .. } = allowance
                && let Some((receiver, _)) = self.fabric.vif_mut(to)
            {
                receiver.promised_bytes += taken_bytes;
            }
        }
        self.first_sender = starved.unwrap_or(first);
        (left, any)
    }

    /// Returns how much of a container in mapped pages is to be read before it is known where it goes: a capture wants to
    /// see all of it, and only where the next guest's pages are mapped, too, or an uplink has memory for frames or has the system
    /// read them, it goes straight there. What goes to several may find such a one.
    fn look(&self, from: usize, allowance: Allowance) -> Look {
        let kind = |at: usize| Some(&self.fabric.ports.get(at)?.as_ref()?.kind);
        let Some(Kind::Guest { vif: sender, .. }) = kind(from) else { return Look::Whole };
        let straight = match allowance {
            Allowance::Bytes { to, .. } | Allowance::Part(to) => match kind(usize::from(to.0)) {
                Some(Kind::Guest { vif, .. }) => vif.staging.is_some(),
                Some(Kind::Uplink { link, .. }) => {
                    sender.frame_bytes >= LONG_FRAME_BYTES && (link.has_places() || link.takes_scattered())
                }
                _ => false,
            },
            Allowance::Little => sender.frame_bytes >= LEAST_PLACED_BYTES,
            Allowance::All => false,
        };
        if straight && self.capture.is_none() { Look::First } else { Look::Whole }
    }

    /// Sends on what was taken from the guest at a port. Returns how many frames that was.
    fn deliver(&mut self, at: usize, now_ns: u64) -> usize {
        // The sender is out of the list while its frames are handed to others.
        let Some(mut port) = self.fabric.ports[at].take() else { return 0 };
        let mut frames = 0;
        if let Kind::Guest { vif, .. } = &mut port.kind {
            let from =
                Origin { port: PortId(at as u16), segment: port.segment, guard: port.guard, via: Via::Own };
            let fabric = &mut self.fabric;
            let Vif { tx, subscriptions, staging, counters, .. } = &mut **vif;
            let staged = staging.as_ref().map(|staging| &staging.table);
            let scratch = self.scratch.bytes_mut();
            let mut capture = self.capture.as_deref_mut();
            if let Some(capture) = &mut capture {
                let ops = self.tx_copies.ops();
                watch::note_gathered(capture, from.port, tx, scratch, ops, &mut self.manifest);
            }
            fabric.aim = Aim::Nothing;
            let before = counters.tx;
            let each = |delivery: Delivery<'_, '_, X::Page>, counters: &mut Counters| {
                let parcel = match delivery {
                    Delivery::Frame(parcel) => parcel,
                    // A capture shows each packet's way.
                    Delivery::Container(_) if capture.is_some() => return Taken::No,
                    Delivery::Container(whole) => {
                        let packets = whole.packets.len();
                        let taken = fabric.forward_whole(&from, now_ns, whole, counters);
                        frames += if taken == Taken::Yes { packets } else { 0 };
                        return taken;
                    }
                    Delivery::Packet(whole, packet) => {
                        let taken = fabric.forward_packet(&from, now_ns, (whole, &packet));
                        frames += usize::from(taken == Taken::Yes);
                        return taken;
                    }
                };
                frames += 1;
                if let Some(capture) = &mut capture
                    && capture.port() == from.port
                {
                    capture.take(now_ns, Way::In, capture.noted(frames - 1), parcel.bytes);
                }
                match fabric.forward(&from, now_ns, &parcel) {
                    Forwarded::Yes => {}
                    Forwarded::Nobody => counters.drops.no_destination += 1,
                    Forwarded::WrongSource => counters.drops.wrong_source += 1,
                    Forwarded::Isolated => counters.drops.isolated += 1,
                }
                if let Some(capture) = &mut capture
                    && std::mem::take(&mut fabric.trace.hit)
                {
                    capture.take(now_ns, Way::Out, capture.noted(frames - 1), parcel.bytes);
                }
                Taken::Yes
            };
            let ops = self.tx_copies.ops();
            tx.deliver(scratch, ops, &mut self.manifest, (subscriptions, staged), counters, each);
            let (bytes, packets) = (counters.tx.bytes - before.bytes, counters.tx.packets - before.packets);
            if let Some(mean) = bytes.checked_div(packets) {
                (vif.aim, vif.frame_bytes) = (self.fabric.aim, mean as usize);
            }
            vif.woken = true;
            vif.notify_tx |= vif.tx.publish();
        }
        self.fabric.ports[at] = Some(port);
        frames
    }

    /// Returns when those are to be looked at whose requests were left in their rings.
    pub(super) fn held(&self, now_ns: u64) -> Wish {
        let mut wish = Wish::Event;
        for at in 0..self.fabric.ports.len() {
            let Some(Port { kind: Kind::Guest { vif, .. }, .. }) = &self.fabric.ports[at] else { continue };
            let Some(held) = vif.held.filter(|_| vif.fault.is_none()) else { continue };
            let this = match allowance(&self.fabric, at, now_ns) {
                Allowance::Bytes { bytes, .. } if bytes < held.bytes => Wish::At(held.since_ns + PATIENCE_NS),
                _ => Wish::Now,
            };
            wish = earlier(wish, this);
        }
        wish
    }
}
