//! Containers that go straight from one guest's mapped pages into those that another has posted, before anything else of the
//! pass is handed over; they are answered with all the rest.
//!
//! It knows ring and queue, and neither where the container comes from nor what is in it.

use drayage_wire::PAGE_SIZE;
use drayage_wire::netif::RxRequest;

use super::{Queue, Rx};
use crate::aggregate::Place;
use crate::vif::across::{MOST_PAGES, Mapped, Whole};
use crate::vif::staging::Table;
use crate::xen::{GrantRef, PageAccess};

impl<P: PageAccess> Rx<P> {
    /// Writes a container of which not all was read into posted pages, if all of these are mapped and nothing waits that it
    /// would overtake. Returns whether it did: nothing has changed where it did not.
    pub(super) fn accept_across(
        &mut self,
        region: &mut [u8],
        now_ns: u64,
        whole: &mut Whole<'_, P>,
        staged: &Table<P>,
    ) -> bool {
        let Ok(available) = self.available() else { return false };
        let Queue::Containers(open) = &mut self.queue else { return false };
        let slots = whole.end().div_ceil(PAGE_SIZE);
        let overtakes = open.open_since_ns().is_some() || open.waiting_count() > self.across;
        if !whole.is_unread() || overtakes || slots > MOST_PAGES || slots > available as usize {
            return false;
        }
        // Each request is read once.
        let mut requests = [RxRequest::default(); MOST_PAGES];
        let requests = &mut requests[..slots];
        for (request, ahead) in requests.iter_mut().zip(0..) {
            *request = self.requests.get(&self.ring, ahead);
        }
        let grants = requests.iter().map(|request| GrantRef(request.gref));
        let Some(pages) = Mapped::find(0, grants, |grant| staged.find_writable(grant)) else { return false };
        if open.push_whole(region, now_ns, whole.bytes, whole.packets, Place::Across).is_err() {
            return false;
        }
        whole.write_across(&pages);
        for request in requests {
            self.ids[self.across_slots] = request.id;
            self.across_slots += 1;
        }
        self.requests.advance(&mut self.ring, slots as u32);
        self.across += 1;
        true
    }
}
