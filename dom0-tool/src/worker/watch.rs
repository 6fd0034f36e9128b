//! What a capture sees of a pass: frames on their way from and to guests, and the containers that they are in.
//!
//! It runs only while there is a capture.

use drayage_wire::container::Manifest;

use super::Worker;
use crate::aggregate::REGION_BYTES;
use crate::capture::{Capture, Travel, Way};
use crate::clock::Clock;
use crate::fabric::{Kind, Port, region_start};
use crate::switch::PortId;
use crate::vif::rx::Emission;
use crate::vif::tx::Tx;
use crate::xen::{CopyOp, PageAccess, Xen};

/// Notes how the frames of a guest travelled that are about to be delivered.
pub(super) fn note_gathered<P: PageAccess>(
    capture: &mut Capture,
    vif: PortId,
    tx: &Tx<P>,
    scratch: &[u8],
    ops: &[CopyOp],
    manifest: &mut Manifest,
) {
    capture.clear_notes();
    tx.show_gathered(scratch, ops, manifest, |travelled| {
        capture.note(match travelled {
            Some((header, position)) => {
                Travel::Container { vif, sequence: header.sequence, position, hold_ns: Some(header.hold_ns) }
            }
            None => Travel::Alone { vif },
        });
    });
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Starts a capture. Returns whether there was none already.
    pub fn start_capture(&mut self, capture: Capture) -> bool {
        self.end_capture();
        if self.capture.is_some() {
            return false;
        }
        self.fabric.trace.watched = Some(capture.port());
        self.capture = Some(Box::new(capture));
        true
    }

    /// Ends a capture whose other end is gone.
    pub fn end_capture(&mut self) {
        if self.capture.as_mut().is_some_and(|capture| capture.is_over()) {
            self.capture = None;
            self.fabric.trace.watched = None;
        }
    }

    /// Shows the capture what the batch carries that was just copied: frames to the guest that is watched, or
    /// which containers are closed that frames of the watched uplink went into.
    pub(super) fn watch_emitted(&mut self, now_ns: u64) {
        let Some(capture) = &mut self.capture else { return };
        let (manifest, watched) = (&mut *self.manifest, capture.port());
        let through_uplink =
            matches!(self.fabric.port_mut(watched), Some(Port { kind: Kind::Uplink { .. }, .. }));
        for at in 0..self.fabric.ports.len() {
            let id = PortId(at as u16);
            let Some(Port { kind: Kind::Guest { vif, region }, .. }) = &self.fabric.ports[at] else {
                continue;
            };
            if !through_uplink && id != watched {
                continue;
            }
            let start = region_start(*region);
            let memory = &self.fabric.regions.bytes()[start..start + REGION_BYTES];
            vif.rx.show_emitted(memory, self.scratch.bytes(), |emission| match emission {
                Emission::Container { bytes, packet: find } => {
                    // It is our own, and good.
                    let Ok(header) = manifest.read(bytes) else { return };
                    if through_uplink {
                        capture.close(id, header.sequence, header.hold_ns);
                        return;
                    }
                    for (position, packet) in (0..).zip(manifest.packets()) {
                        let travel = Travel::Container {
                            vif: id,
                            sequence: header.sequence,
                            position,
                            hold_ns: Some(header.hold_ns),
                        };
                        if let Some(frame) = find(packet) {
                            capture.take(now_ns, Way::Out, travel, frame);
                        }
                    }
                }
                Emission::Frame(bytes) if !through_uplink => {
                    capture.take(now_ns, Way::Out, Travel::Alone { vif: id }, bytes);
                }
                Emission::Frame(_) => {}
            });
        }
    }
}
