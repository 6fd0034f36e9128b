//! The uplinks that attachments have in common: opened for the first of them, closed after the last.
//!
//! It knows which segment belongs to which uplink, and no guest.

use std::collections::BTreeMap;

use super::error::{Failure, FailureKind};
use super::plane::DataPlane;
use crate::port::Uplink;
use crate::port::packet::Packet;
use crate::port::spec::PortSpec;
use crate::port::tap::Tap;
use crate::switch::{PortId, Segment};

/// An uplink in use.
pub(super) struct Open {
    pub(super) spec: PortSpec,
    pub(super) segment: Segment,
    pub(super) port: PortId,
    pub(super) mtu: u16,
}

/// The uplinks in use, by the name of their devices.
pub(super) struct Uplinks {
    open: BTreeMap<String, Open>,
    /// The segment of guests without an uplink.
    local: Segment,
    next_segment: u16,
}

impl Uplinks {
    /// Makes an empty list.
    pub(super) fn new(local: Segment) -> Self {
        Self { open: BTreeMap::new(), local, next_segment: local.0 + 1 }
    }

    /// Returns an uplink.
    pub(super) fn get(&self, spec: &PortSpec) -> Option<&Open> {
        self.open.get(spec.device())
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Open> {
        self.open.values()
    }

    /// Opens an uplink unless it is open.
    pub(super) fn open(&mut self, spec: &PortSpec, data: &mut impl DataPlane) -> Result<(), Failure> {
        if let Some(open) = self.open.get(spec.device()) {
            // A tap that is open may be named without its bridge.
            let same = match (spec, &open.spec) {
                (PortSpec::Tap(new), PortSpec::Tap(old)) => new.bridge.is_none() || new.bridge == old.bridge,
                (new, old) => new == old,
            };
            if !same {
                let message = format!("{} is open already, as {}", spec.device(), open.spec);
                return Err(Failure::new(FailureKind::Taken, message));
            }
            return Ok(());
        }
        let (link, mtu) = open(spec)?;
        let segment = Segment(self.next_segment);
        let port = data.add_uplink(segment, link).ok_or_else(|| {
            Failure::new(FailureKind::Other, format!("no room for another uplink ({spec})"))
        })?;
        self.next_segment = self.next_segment.wrapping_add(1).max(self.local.0 + 1);
        self.open.insert(spec.device().into(), Open { spec: spec.clone(), segment, port, mtu });
        Ok(())
    }

    /// Closes those that nobody uses.
    pub(super) fn close_all_but(&mut self, used: &[&PortSpec], data: &mut impl DataPlane) {
        self.open.retain(|device, open| {
            let keep = used.iter().any(|spec| spec.device() == device);
            if !keep {
                data.remove_uplink(open.port);
            }
            keep
        });
    }
}

/// Opens an uplink. Returns it with its MTU.
fn open(spec: &PortSpec) -> Result<(Box<dyn Uplink>, u16), Failure> {
    Ok(match spec {
        PortSpec::Tap(spec) => {
            let (tap, mtu) = Tap::open(spec)?;
            (Box::new(tap), mtu)
        }
        PortSpec::Packet(spec) => {
            let (packet, mtu) = Packet::open(spec)?;
            (Box::new(packet), mtu)
        }
        PortSpec::Xdp(spec) => {
            let message = format!("{spec}: not in this version; packet:{} does the same", spec.device);
            return Err(Failure::new(FailureKind::Other, message));
        }
    })
}
