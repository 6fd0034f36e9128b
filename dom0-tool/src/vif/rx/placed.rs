//! Packets that go straight from one guest's mapped pages into those that another has posted, each to where it belongs in the
//! container that is still open: one copy, though the container takes packets from everywhere, and waits as its policy
//! says. Its header and table follow when it goes out, with whatever of it lies elsewhere.
//!
//! It knows ring and queue, and neither where the packet comes from nor when the container goes out.

use drayage_wire::PAGE_SIZE;
use drayage_wire::container::{Checksum, Packet};

use super::{Queue, Rx};
use crate::aggregate::{Referral, Spot};
use crate::vif::across::{Mapped, Whole};
use crate::vif::counters::Counters;
use crate::vif::staging::Table;
use crate::vif::tx::Taken;
use crate::xen::{GrantRef, PageAccess};

impl<P: PageAccess> Rx<P> {
    /// Takes a packet of a container of which not all was read, if it needs no change and its place is in pages that are
    /// posted and mapped. Returns whether it was dealt with; where it was not, it is to be taken in another way at once.
    pub fn accept_packet(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        (whole, packet): (&mut Whole<'_, P>, &Packet),
        staged: &Table<P>,
        counters: &mut Counters,
    ) -> Taken {
        let (len, meta) = (usize::from(packet.len), packet.meta);
        let Queue::Containers(_) = &self.queue else { return Taken::No };
        let Ok(available) = self.available() else { return Taken::No };
        let fits = match meta.gso {
            Some(gso) => self.accepts.gso(gso.kind) && self.takes_whole(len),
            None => meta.checksum != Checksum::Blank || self.accepts.blank(whole.read_head(packet)),
        };
        if !fits {
            return Taken::No;
        }
        if self.is_too_late() {
            counters.drops.too_late += 1;
            return Taken::Yes;
        }
        let Queue::Containers(open) = &mut self.queue else { return Taken::No };
        let (ring, requests, classes) = (&self.ring, &mut self.requests, self.urgent);
        let mut urgent = false;
        let pushed = open.push_placed(region, now_ns, (len, meta), |Spot { slots_before, start }| {
            let pages = start / PAGE_SIZE..(start + len).div_ceil(PAGE_SIZE);
            if slots_before as usize + pages.end > available as usize {
                return false;
            }
            let first = pages.start;
            let count = pages.len() as u64;
            let grants = pages.map(|page| GrantRef(requests.get(ring, slots_before + page as u32).gref));
            let Some(to) = Mapped::find(first, grants, |grant| staged.find_writable(grant)) else {
                return false;
            };
            urgent = classes.contain(whole.known_part(packet));
            whole.write_packet(packet, &to, start);
            counters.rx.mapped_ops += count;
            counters.rx.mapped_bytes += len as u64;
            true
        });
        let result = match pushed {
            Ok(Referral::CopyIt) => return Taken::No,
            Ok(Referral::Done) => Ok(()),
            Err(refusal) => Err(refusal),
        };
        if result.is_ok() {
            self.count_arrival(urgent);
        }
        self.note(result, len, meta, counters);
        Taken::Yes
    }
}
