//! The uplinks that attachments have in common: opened for the first of them, closed after the last.
//!
//! It knows which segment belongs to which uplink, and no guest.

use std::collections::BTreeMap;

use super::error::{Failure, FailureKind};
use super::plane::DataPlane;
use crate::port::discard::Discard;
use crate::port::packet::Packet;
use crate::port::spec::PortSpec;
use crate::port::tap::{self, Opened, Origin, Sending, Tap};
use crate::port::vhost;
use crate::port::xdp::Xdp;
use crate::port::{Uplink, mtu_of};
use crate::switch::{PortId, Segment};

/// An uplink in use.
pub(super) struct Open {
    pub(super) spec: PortSpec,
    pub(super) segment: Segment,
    pub(super) port: PortId,
    /// When it was opened.
    mtu: u16,
    /// `Made` also when an earlier daemon of ours made its device.
    origin: Origin,
}

impl Open {
    /// Returns the MTU that the device has now, for whoever is about to be told.
    pub(super) fn mtu(&self) -> u16 {
        mtu_of(self.spec.device()).unwrap_or(self.mtu)
    }
}

/// The uplinks in use, by the name of their devices.
pub(super) struct Uplinks {
    open: BTreeMap<String, Open>,
    /// The segment of guests without an uplink.
    local: Segment,
    next_segment: u16,
    /// Devices that an earlier daemon made, and that are to be removed when nobody needs them.
    inherited: Vec<String>,
}

impl Uplinks {
    /// Makes an empty list.
    pub(super) fn new(local: Segment) -> Self {
        Self { open: BTreeMap::new(), local, next_segment: local.0 + 1, inherited: Vec::new() }
    }

    /// Returns an uplink.
    pub(super) fn get(&self, spec: &PortSpec) -> Option<&Open> {
        self.open.get(spec.device())
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Open> {
        self.open.values()
    }

    /// Takes over devices that an earlier daemon made.
    pub(super) fn inherit(&mut self, devices: Vec<String>) {
        self.inherited = devices;
    }

    /// Removes those of them that nobody needed.
    pub(super) fn remove_inherited(&mut self) {
        self.inherited.drain(..).for_each(|device| remove_device(&device));
    }

    /// Returns the devices that we made, and are to remove.
    pub(super) fn made(&self) -> Vec<String> {
        let made = self.open.iter().filter(|(_, open)| open.origin == Origin::Made);
        made.map(|(device, _)| device.clone()).chain(self.inherited.iter().cloned()).collect()
    }

    /// Opens an uplink unless it is open. Says whether a device was made for it, which outlives us.
    pub(super) fn open(&mut self, spec: &PortSpec, data: &mut impl DataPlane) -> Result<Origin, Failure> {
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
            return Ok(Origin::Found);
        }
        let (link, mtu, mut origin) = open(spec)?;
        if let Some(at) = self.inherited.iter().position(|device| device == spec.device()) {
            self.inherited.swap_remove(at);
            origin = Origin::Made;
        }
        let segment = Segment(self.next_segment);
        let port = data.add_uplink(segment, link).ok_or_else(|| {
            Failure::new(FailureKind::Other, format!("no room for another uplink ({spec})"))
        })?;
        self.next_segment = self.next_segment.wrapping_add(1).max(self.local.0 + 1);
        self.open.insert(spec.device().into(), Open { spec: spec.clone(), segment, port, mtu, origin });
        Ok(origin)
    }

    /// Closes those that nobody uses, and removes what was made for them. Returns whether there were any.
    pub(super) fn close_all_but(&mut self, used: &[&PortSpec], data: &mut impl DataPlane) -> bool {
        let before = self.open.len();
        self.open.retain(|device, open| {
            let keep = used.iter().any(|spec| spec.device() == device);
            if !keep {
                data.remove_uplink(open.port);
                if open.origin == Origin::Made {
                    remove_device(device);
                }
            }
            keep
        });
        self.open.len() < before
    }
}

/// Removes a network device that we made.
fn remove_device(device: &str) {
    if let Err(error) = tap::remove(device) {
        tracing::warn!("removing what was made: {error}");
    }
}

/// Opens an uplink. Returns it with its MTU, and where its device came from.
fn open(spec: &PortSpec) -> Result<(Box<dyn Uplink>, u16, Origin), Failure> {
    Ok(match spec {
        PortSpec::Tap(spec) => {
            let Opened { tap, mtu, origin, sending } = Tap::open(spec)?;
            match sending {
                Sending::Batched => tracing::info!("{spec}: frames go to it by {}", vhost::PATH),
                Sending::Single => {}
                Sending::Refused(doing, error) => tracing::info!(
                    "{spec}: frames go to it one by one, which is slower: {}: {doing}: {error}; try `modprobe vhost_net`",
                    vhost::PATH
                ),
            }
            let link: Box<dyn Uplink> = Box::new(tap);
            match spec.discard {
                Some(address) => (Box::new(Discard::new(link, address)), mtu, origin),
                None => (link, mtu, origin),
            }
        }
        PortSpec::Packet(spec) => {
            let (packet, mtu) = Packet::open(spec)?;
            (Box::new(packet), mtu, Origin::Found)
        }
        PortSpec::Xdp(spec) => {
            let (xdp, mtu) = Xdp::open(spec)?;
            tracing::info!(
                "{spec}: its program runs in the {}",
                if xdp.is_native() { "driver" } else { "stack" }
            );
            (Box::new(xdp), mtu, Origin::Found)
        }
    })
}
