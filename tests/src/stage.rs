//! A frontend played by hand whose data pages are mapped by the backend, as its control ring asked for, and which may make
//! something else of them while they are being read.
//!
//! It knows the control ring and lists of references, and no packets.

use drayage::vif::{Connection, ControlRing};
use drayage::xen;
use drayage_wire::PAGE_SIZE;
use drayage_wire::control::{Control, Gref, Request, Response, kind, status};
use drayage_wire::ring::FrontRing;
use memxen::raw::RawPage;
use memxen::{Access, DomainId, Port};

use crate::back::Moment;
use crate::fleet::Fleet;
use crate::hand::DOM0;
use crate::rawfront::{PAGES, RawFront};

/// A guest's control ring.
#[derive(Debug)]
pub struct ControlEnd {
    ring: FrontRing<Control, RawPage>,
    domain: DomainId,
    port: Port,
    list: RawPage,
    list_ref: u32,
}

impl ControlEnd {
    /// Asks for something to be done with a guest's pages from `first` on, and waits until it is.
    ///
    /// # Panics
    /// When the backend refuses.
    pub fn ask(&mut self, fleet: &mut Fleet, front: &RawFront, kind: u16, first: usize, count: usize) {
        for at in 0..count {
            let entry = Gref { gref: front.grant(first + at), flags: 0, status: 0 };
            self.list.write(at * 8, &entry.to_bytes());
        }
        let data = [0, self.list_ref, count as u32];
        self.ring.push(Request { id: 1, kind, data }).expect("room");
        let _ = self.ring.publish();
        fleet.hv.notify(self.domain, self.port);
        for _ in 0..count {
            fleet.workers[0].pass();
        }
        assert_eq!(self.ring.available(), Ok(1));
        assert_eq!(self.ring.peek::<Response>(0).status, status::SUCCESS);
        self.ring.advance(1);
    }
}

/// Connects a guest without posted buffers to the first worker, and has all its data pages mapped.
///
/// # Panics
/// When the hypervisor or the backend refuses.
pub fn staged_guest(fleet: &mut Fleet, id: u16, shape: impl FnOnce(&mut Connection)) -> RawFront {
    staged_guest_with_control(fleet, id, shape).0
}

/// As [`staged_guest`], for a guest that has more to ask.
///
/// # Panics
/// When the hypervisor or the backend refuses.
pub fn staged_guest_with_control(
    fleet: &mut Fleet,
    id: u16,
    shape: impl FnOnce(&mut Connection),
) -> (RawFront, ControlEnd) {
    let domain = DomainId(id);
    fleet.hv.create_domain(domain);
    let mut pages = fleet.hv.raw_pages(domain, 2).expect("memory");
    let mut granted = || {
        let page = pages.pop().expect("two");
        let grant = fleet.hv.grant(domain, DOM0, page.address(), Access::ReadWrite).expect("a grant");
        (page, grant.0)
    };
    let ((page, ring_ref), (list, list_ref)) = (granted(), granted());
    let ring = FrontRing::new(page);
    let port = fleet.hv.alloc_unbound(domain, DOM0).expect("a port");
    let control = ControlRing { ring: xen::GrantRef(ring_ref), event: xen::EventPort(port.0) };
    let hv = fleet.hv.clone();
    let front = RawFront::connect_made(&hv, &mut fleet.workers[0], domain, |connection| {
        connection.control = Some(control);
        shape(connection);
    });
    let mut control = ControlEnd { ring, domain, port, list, list_ref };
    control.ask(fleet, &front, kind::ADD_GREF_MAPPING, 0, PAGES);
    (front, control)
}

/// From the `decided`th copy of the first worker's on, all that a guest sends from its pages `first` on says something else.
pub fn lie_after(fleet: &Fleet, sender: &RawFront, first: usize, decided: usize, lie: &[u8]) {
    let targets: Vec<_> = (first..)
        .zip(lie.chunks(PAGE_SIZE))
        .map(|(page, piece)| (sender.page(page), piece.to_vec()))
        .collect();
    let mut copied = 0;
    fleet.workers[0].xen().meddle_with(move |moment| {
        copied += usize::from(moment == Moment::Copied);
        if copied >= decided {
            for (page, piece) in &targets {
                page.write(0, piece);
            }
        }
    });
}
