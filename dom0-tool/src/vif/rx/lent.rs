//! What stays where it was copied to from another guest until it goes out: frames, packets of the open container, and
//! containers that are handed on whole.
//!
//! It knows the queue, and neither the ring nor who sent what.

use drayage_wire::PAGE_SIZE;
use drayage_wire::ring::SharedWords;

use super::{Queue, Rx};
use crate::aggregate::{Piece, Place, Referral, Refusal};
use crate::vif::across::Whole;
use crate::vif::counters::Counters;
use crate::vif::scratch::{Leases, Parcel};
use crate::vif::tx::Taken;
use crate::xen::PageAccess;

impl<P: SharedWords> Rx<P> {
    /// Takes a frame that needs no change and lies in the blocks, without copying it. Returns whether it was dealt with; where
    /// it was not, the queue refers to as much as it may.
    pub(super) fn push_lent(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        parcel: &Parcel<'_>,
        leases: &mut Leases,
        counters: &mut Counters,
    ) -> Taken {
        let Parcel { bytes: frame, meta, at: Some(at) } = *parcel else { return Taken::No };
        let len = frame.len();
        if self.is_too_late() {
            counters.drops.too_late += 1;
            return Taken::Yes;
        }
        let pins = &mut self.pins;
        let result = match &mut self.queue {
            Queue::Plain(_) if len > PAGE_SIZE && !self.accepts.scatter => return Taken::No,
            Queue::Plain(frames) => {
                let Some(lent) = pins.pin(leases, at) else { return Taken::No };
                let pushed = frames.push_lent(now_ns, len, meta, lent);
                if pushed.is_err() {
                    pins.unpin(leases, lent);
                }
                pushed
            }
            Queue::Containers(open) => {
                match open.push_lent(region, now_ns, (len, meta), at, || pins.pin(leases, at)) {
                    Ok(Referral::CopyIt) => return Taken::No,
                    Ok(Referral::Done) => {
                        self.count_arrival(self.urgent.contain(frame));
                        Ok(())
                    }
                    Err(refusal) => Err(refusal),
                }
            }
        };
        self.note(result, len, meta, counters);
        Taken::Yes
    }

    /// As [`accept_container`](Self::accept_container), by way of private memory.
    pub(super) fn accept_copy(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        whole: &mut Whole<'_, P>,
        leases: &mut Leases,
        counters: &mut Counters,
    ) -> Result<(), Refusal>
    where
        P: PageAccess,
    {
        let Queue::Containers(open) = &mut self.queue else { return Err(Refusal::TooLarge) };
        whole.fill();
        let lent = self.pins.pin(leases, whole.at);
        let place = lent.map_or(Place::Own, Place::Lent);
        let pushed = open.push_whole(region, now_ns, whole.bytes, whole.packets, place);
        match (pushed, lent) {
            (Err(_), Some(lent)) => self.pins.unpin(leases, lent),
            (Ok(()), None) => counters.rx.moved(whole.bytes.len()),
            _ => {}
        }
        pushed
    }

    /// Refers to nothing any more that guests sent: the queue will not be looked at again.
    pub fn let_go(&mut self, leases: &mut Leases) {
        let mut unpin = |lent| self.pins.unpin(leases, lent);
        match &self.queue {
            Queue::Plain(frames) => frames.iter().filter_map(|frame| frame.lent).for_each(&mut unpin),
            Queue::Containers(open) => {
                let whole = open.waiting().filter_map(|closed| {
                    if let Place::Lent(lent) = closed.place { Some(lent) } else { None }
                });
                whole.for_each(&mut unpin);
                open.pieces().filter_map(Piece::lent).for_each(&mut unpin);
            }
        }
    }
}
