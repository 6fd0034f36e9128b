//! A frontend played by hand whose data pages are mapped by the backend, as its control ring asked for, and which may make
//! something else of them while they are being read.
//!
//! It knows the control ring and lists of references, and no packets.

use drayage::vif::{Connection, ControlRing};
use drayage::xen;
use drayage_wire::PAGE_SIZE;
use drayage_wire::control::{Control, Gref, Request, Response, kind, status};
use drayage_wire::ring::FrontRing;
use memxen::{Access, DomainId};

use crate::back::Moment;
use crate::fleet::Fleet;
use crate::hand::DOM0;
use crate::rawfront::{PAGES, RawFront};

/// Connects a guest without posted buffers to the first worker, and has all its data pages mapped.
///
/// # Panics
/// When the hypervisor or the backend refuses.
pub fn staged_guest(fleet: &mut Fleet, id: u16, shape: impl FnOnce(&mut Connection)) -> RawFront {
    let domain = DomainId(id);
    fleet.hv.create_domain(domain);
    let mut pages = fleet.hv.raw_pages(domain, 2).expect("memory");
    let mut granted = || {
        let page = pages.pop().expect("two");
        let grant = fleet.hv.grant(domain, DOM0, page.address(), Access::ReadWrite).expect("a grant");
        (page, grant.0)
    };
    let ((page, ring_ref), (list, list_ref)) = (granted(), granted());
    let mut ring: FrontRing<Control, _> = FrontRing::new(page);
    let port = fleet.hv.alloc_unbound(domain, DOM0).expect("a port");
    let control = ControlRing { ring: xen::GrantRef(ring_ref), event: xen::EventPort(port.0) };
    let hv = fleet.hv.clone();
    let front = RawFront::connect_made(&hv, &mut fleet.workers[0], domain, |connection| {
        connection.control = Some(control);
        shape(connection);
    });
    for at in 0..PAGES {
        let entry = Gref { gref: front.grant(at), flags: 0, status: 0 };
        list.write(at * 8, &entry.to_bytes());
    }
    let data = [0, list_ref, PAGES as u32];
    ring.push(Request { id: 1, kind: kind::ADD_GREF_MAPPING, data }).expect("room");
    let _ = ring.publish();
    hv.notify(domain, port);
    for _ in 0..PAGES {
        fleet.workers[0].pass();
    }
    assert_eq!(ring.available(), Ok(1));
    assert_eq!(ring.peek::<Response>(0).status, status::SUCCESS);
    front
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
