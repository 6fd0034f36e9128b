//! The trunks' place in a pass: frames of other workers' ports are taken and forwarded as those of a port of
//! our own, and what is for them is shown to them once.
//!
//! It knows trunks, and not how their queues work.

use std::sync::Arc;

use super::Worker;
use crate::bell::Bell;
use crate::clock::Clock;
use crate::fabric::{Forwarded, Kind, Origin, Port, Via};
use crate::rules::Guard;
use crate::switch::{Mac, PortId, Segment};
use crate::trunk::{Trunk, TrunkCounters, pair};
use crate::vif::scratch::Parcel;
use crate::vif::tx::Left;
use crate::xen::Xen;

/// Frames taken from one trunk in one pass.
const TAKEN: usize = 512;
/// No port is in it.
const NO_SEGMENT: Segment = Segment(0);

/// Makes a trunk between every two workers, which the bells wake. Returns each one's trunks by the number of the other.
pub fn join<X: Xen, C: Clock>(workers: &mut [Worker<X, C>], bells: &[Arc<Bell>]) -> Vec<Vec<Option<PortId>>> {
    let count = workers.len();
    let mut ids = vec![vec![None; count]; count];
    let mut add = |at: usize, to: usize, trunk: Trunk| ids[at][to] = workers[at].add_trunk(trunk);
    for first in 0..count {
        for second in first + 1..count {
            let (one, other) = pair(&bells[first], &bells[second]);
            add(first, second, one);
            add(second, first, other);
        }
    }
    ids
}

impl<X: Xen, C: Clock> Worker<X, C> {
    /// Adds a trunk. `None` when there are too many ports.
    pub fn add_trunk(&mut self, trunk: Trunk) -> Option<PortId> {
        let id = self.fabric.vacancy()?;
        let kind = Kind::Trunk(Box::new(trunk));
        let port = Port { segment: NO_SEGMENT, guard: Guard::default(), kind };
        self.fabric.ports[usize::from(id.0)] = Some(port);
        self.trunks.push(id);
        Some(id)
    }

    /// Notes that there is a port more behind a trunk, and where a guest's address is.
    pub fn announce(&mut self, trunk: PortId, segment: Segment, mac: Option<Mac>) {
        let Some(Port { kind: Kind::Trunk(behind), .. }) = self.fabric.port_mut(trunk) else { return };
        behind.extend(segment);
        if let Some(mac) = mac {
            self.fabric.pin(trunk, segment, mac);
        }
    }

    /// Notes that there is one less.
    pub fn retract(&mut self, trunk: PortId, segment: Segment, mac: Option<Mac>) {
        let Some(Port { kind: Kind::Trunk(behind), .. }) = self.fabric.port_mut(trunk) else { return };
        behind.shrink(segment);
        if let Some(mac) = mac {
            self.fabric.switch.unpin(trunk, segment, mac);
        }
    }

    /// Returns what went over all trunks.
    pub fn trunk_counters(&self) -> TrunkCounters {
        let mut sum = TrunkCounters::default();
        for port in self.fabric.ports.iter().flatten() {
            if let Kind::Trunk(trunk) = &port.kind {
                sum += trunk.counters;
            }
        }
        sum
    }

    /// Takes frames of other workers and forwards them to ports of our own. They lie among what guests sent, as far as there is
    /// room, so that they go out from there.
    pub(super) fn take_from_trunks(&mut self, now_ns: u64) -> (usize, Left) {
        let (mut frames, mut left) = (0, Left::Nothing);
        for at in 0..self.trunks.len() {
            let id = self.trunks[at];
            let Some(slot) = self.fabric.ports.get_mut(usize::from(id.0)) else { continue };
            let Some(mut port) = slot.take() else { continue };
            if let Kind::Trunk(trunk) = &mut port.kind {
                let mut taken = 0;
                while taken < TAKEN
                    && let Some(len) = trunk.next_len()
                {
                    let at = self.scratch.place(&mut self.fabric.leases, len);
                    let into = match at {
                        Some(at) => &mut self.scratch.bytes_mut()[at as usize..at as usize + len],
                        None => &mut self.landing[..len],
                    };
                    let Some(label) = trunk.receive(into) else { break };
                    taken += 1;
                    let guard = Guard::of_another(label.privacy);
                    let from = Origin { port: id, segment: label.segment, guard, via: Via::Trunk };
                    let parcel = Parcel { bytes: into, meta: label.meta, at };
                    match self.fabric.forward(&from, now_ns, &parcel) {
                        Forwarded::Yes => {}
                        Forwarded::Isolated => trunk.counters.isolated += 1,
                        Forwarded::Nobody | Forwarded::WrongSource => trunk.counters.no_destination += 1,
                    }
                }
                trunk.release();
                frames += taken;
                // A busy trunk is looked at again when the time has come, and need not say so.
                if taken == TAKEN || (taken < self.settings.busy_frames && trunk.rearm()) {
                    left = Left::Some;
                }
            }
            self.fabric.ports[usize::from(id.0)] = Some(port);
        }
        (frames, left)
    }

    /// Shows other workers what this pass has for them.
    pub(super) fn publish_trunks(&mut self) {
        for id in &self.trunks {
            if let Some(Some(Port { kind: Kind::Trunk(trunk), .. })) =
                self.fabric.ports.get_mut(usize::from(id.0))
            {
                trunk.publish();
            }
        }
    }
}
