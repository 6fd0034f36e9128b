//! The uplinks of a worker: they come and go, are waited for, counted, and read.
//!
//! It knows no guest, and of the frames that it reads only that somebody else finds their way.

use std::os::fd::BorrowedFd;

use super::glance::Glance;
use super::{Readiness, Worker};
use crate::capture::Way;
use crate::clock::Clock;
use crate::fabric::{Forwarded, Kind, Origin, Port, UplinkCounters, Via};
use crate::port::{Budget, Uplink};
use crate::rules::Guard;
use crate::switch::{PortId, Segment};
use crate::vif::scratch::Parcel;
use crate::vif::tx::Left;
use crate::xen::Xen;

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Adds an uplink to a segment. `None` when there are too many ports.
    pub fn add_uplink(&mut self, segment: Segment, link: Box<dyn Uplink>) -> Option<PortId> {
        let id = self.fabric.vacancy()?;
        let kind = Kind::Uplink { link, counters: UplinkCounters::default(), stamped: 0 };
        self.fabric.ports[usize::from(id.0)] = Some(Port { segment, guard: Guard::default(), kind });
        Some(id)
    }

    /// Takes an uplink out, and closes it.
    pub fn remove_uplink(&mut self, id: PortId) {
        if let Some(Port { kind: Kind::Uplink { .. }, .. }) = self.fabric.port_mut(id) {
            self.fabric.ports[usize::from(id.0)] = None;
            self.fabric.switch.forget(id);
        }
    }

    /// Returns the descriptors of all uplinks that have one.
    pub fn uplink_descriptors(&self) -> impl Iterator<Item = (PortId, BorrowedFd<'_>)> {
        (0..).zip(&self.fabric.ports).filter_map(|(at, port)| match &port.as_ref()?.kind {
            Kind::Uplink { link, .. } => Some((PortId(at), link.descriptor()?)),
            Kind::Guest { .. } | Kind::Trunk(_) => None,
        })
    }

    /// Notes that an uplink had nothing when a sleep ended: the next pass need not look.
    pub fn note_uplink_silence(&mut self, id: PortId) {
        self.glances.note_silence(self.counters.passes, id);
    }

    /// Counts a sleep that an uplink ended, for whoever waits on the worker's behalf.
    pub fn note_uplink_wakeup(&mut self, id: PortId, readiness: Readiness) {
        self.glances.note_wakeup(self.counters.passes, id);
        if let Some(Port { kind: Kind::Uplink { link, counters, .. }, .. }) = self.fabric.port_mut(id) {
            counters.wakeups += 1;
            if readiness == Readiness::Failed {
                link.clear_error();
            }
        }
    }

    /// Returns an uplink's counters.
    pub fn uplink_counters(&self, id: PortId) -> Option<UplinkCounters> {
        match &self.fabric.ports.get(usize::from(id.0))?.as_ref()?.kind {
            Kind::Uplink { link, counters, .. } => {
                Some(UplinkCounters { receive_drops: link.receive_drops(), by: link.by(), ..*counters })
            }
            Kind::Guest { .. } | Kind::Trunk(_) => None,
        }
    }

    /// Reads uplinks and forwards what came in.
    pub(super) fn take_from_uplinks(&mut self, now_ns: u64) -> (usize, Left) {
        let (mut frames, mut left) = (0, Left::Nothing);
        for at in 0..self.fabric.ports.len() {
            if !matches!(self.fabric.ports[at], Some(Port { kind: Kind::Uplink { .. }, .. })) {
                continue;
            }
            let glance = self.glances.of(self.counters.passes, at);
            let Some(mut port) = self.fabric.ports[at].take() else { continue };
            if let Kind::Uplink { link, counters, .. } = &mut port.kind
                && (glance != Glance::None || link.has_own())
            {
                let before = counters.received;
                let mut budget = if glance == Glance::First { Budget::one() } else { Budget::new() };
                let from = Origin {
                    port: PortId(at as u16),
                    segment: port.segment,
                    guard: port.guard,
                    via: Via::Own,
                };
                let fabric = &mut self.fabric;
                let mut capture = self.capture.as_deref_mut().filter(|capture| capture.port() == from.port);
                link.receive(&mut budget, &mut |frame, meta| {
                    counters.received += 1;
                    counters.received_bytes += frame.len() as u64;
                    fabric.trace.guest = None;
                    let parcel = Parcel { bytes: frame, meta, at: None };
                    if fabric.forward(&from, now_ns, &parcel) != Forwarded::Yes {
                        counters.no_destination += 1;
                    }
                    if let Some(capture) = &mut capture {
                        capture.take(now_ns, Way::In, fabric.take_travel(), frame);
                    }
                });
                if !budget.is_left() && glance != Glance::First {
                    left = Left::Some;
                }
                let taken = (counters.received - before) as usize;
                if taken > 0 {
                    frames += taken;
                    counters.batches += 1;
                    self.glances.note_frames(self.counters.passes, at);
                }
            }
            self.fabric.ports[at] = Some(port);
        }
        (frames, left)
    }
}
