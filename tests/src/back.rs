//! The in-memory hypervisor as the backend's own: its `Xen`, in the place of Linux's device files.
//!
//! Ports are masked from the moment they are taken until they are unmasked, as `/dev/xen/evtchn` does it. It knows
//! neither rings nor packets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use drayage::xen::{CopyOp, DomainId, EventPort, GrantRef, Xen, XenError};
use drayage_wire::ring::SharedWords;
use memxen::grants::{Copy, Foreign, status};
use memxen::raw::RawPage;
use memxen::{Hypervisor, Port};

use crate::hand::DOM0;

/// A port's mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    Open,
    Masked,
}

/// A moment in which a guest may write what the backend has just read, or is about to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The backend has loaded a word of a ring.
    Loaded,
    /// It is about to copy from or to a page.
    Copying,
    /// It has.
    Copied,
}

/// What a guest does in such moments.
type Meddler = Rc<RefCell<Option<Box<dyn FnMut(Moment)>>>>;

fn meddle(meddler: &Meddler, moment: Moment) {
    if let Some(meddler) = &mut *meddler.borrow_mut() {
        meddler(moment);
    }
}

/// A mapped ring page, whose guest may write between any two loads.
pub struct Ring {
    page: RawPage,
    meddler: Meddler,
}

impl SharedWords for Ring {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        let value = self.page.load(word, order);
        meddle(&self.meddler, Moment::Loaded);
        value
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.page.store(word, value, order);
    }
    fn full_fence(&self) {
        self.page.full_fence();
    }
}

/// Domain 0's access to the hypervisor.
pub struct Back {
    hv: Hypervisor,
    meddler: Meddler,
    /// The ports that are bound.
    ports: BTreeMap<u32, Mask>,
}

impl Back {
    /// Returns the access of domain 0.
    pub fn new(hv: &Hypervisor) -> Self {
        Self { hv: hv.clone(), meddler: Meddler::default(), ports: BTreeMap::new() }
    }

    /// Lets a guest act in the moments between two steps of the backend.
    pub fn meddle_with(&self, meddler: impl FnMut(Moment) + 'static) {
        *self.meddler.borrow_mut() = Some(Box::new(meddler));
    }

    /// Returns whether a port is pending and not masked: what makes the device file readable.
    pub fn is_readable(&self) -> bool {
        self.ports.iter().any(|(port, mask)| *mask == Mask::Open && self.hv.is_pending(DOM0, Port(*port)))
    }

    fn place(op: &CopyOp) -> Foreign {
        let (domain, grant) = (memxen::DomainId(op.domain.0), memxen::GrantRef(op.grant.0));
        Foreign { domain, grant, offset: op.offset }
    }
}

fn range(op: &CopyOp) -> std::ops::Range<usize> {
    op.local as usize..op.local as usize + usize::from(op.len)
}

impl Xen for Back {
    type Page = Ring;

    fn map(&mut self, domain: DomainId, grant: GrantRef) -> Result<Ring, XenError> {
        let mapped = self.hv.raw_map(DOM0, memxen::DomainId(domain.0), memxen::GrantRef(grant.0));
        let page = mapped.map_err(|status| {
            let source = io::Error::other(format!("grant operation status {status}"));
            XenError::Map { domain: domain.0, grant: grant.0, source }
        })?;
        Ok(Ring { page, meddler: self.meddler.clone() })
    }

    fn bind(&mut self, domain: DomainId, remote: EventPort) -> Result<EventPort, XenError> {
        let bound = self.hv.bind_interdomain(DOM0, memxen::DomainId(domain.0), Port(remote.0));
        let port = bound.map_err(|refused| {
            let source = io::Error::other(refused.to_string());
            XenError::Bind { domain: domain.0, port: remote.0, source }
        })?;
        self.ports.insert(port.0, Mask::Open);
        Ok(EventPort(port.0))
    }

    fn unbind(&mut self, port: EventPort) {
        if self.ports.remove(&port.0).is_some() {
            self.hv.close(DOM0, Port(port.0));
        }
    }

    fn notify(&mut self, port: EventPort) {
        self.hv.notify(DOM0, Port(port.0));
    }

    fn take_pending(&mut self, into: &mut [EventPort]) -> usize {
        let open = self.ports.iter_mut().filter(|(_, mask)| **mask == Mask::Open);
        let pending = open.filter(|(port, _)| self.hv.take_pending(DOM0, Port(**port)));
        let mut taken = 0;
        for (slot, (port, mask)) in into.iter_mut().zip(pending) {
            *slot = EventPort(*port);
            *mask = Mask::Masked;
            taken += 1;
        }
        taken
    }

    fn unmask(&mut self, ports: &[EventPort]) {
        for port in ports {
            if let Some(mask) = self.ports.get_mut(&port.0) {
                *mask = Mask::Open;
            }
        }
    }

    fn copy_to_guests(&mut self, local: &[u8], ops: &mut [CopyOp]) {
        for op in ops {
            let Some(bytes) = local.get(range(op)) else {
                op.status = status::GENERAL_ERROR;
                continue;
            };
            let copy = Copy::To(Self::place(op), bytes);
            meddle(&self.meddler, Moment::Copying);
            self.hv.grant_copy(DOM0, &mut [copy], std::slice::from_mut(&mut op.status));
            meddle(&self.meddler, Moment::Copied);
        }
    }

    fn copy_from_guests(&mut self, local: &mut [u8], ops: &mut [CopyOp]) {
        for op in ops {
            let Some(bytes) = local.get_mut(range(op)) else {
                op.status = status::GENERAL_ERROR;
                continue;
            };
            let copy = Copy::From(Self::place(op), bytes);
            meddle(&self.meddler, Moment::Copying);
            self.hv.grant_copy(DOM0, &mut [copy], std::slice::from_mut(&mut op.status));
            meddle(&self.meddler, Moment::Copied);
        }
    }

    fn event_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
