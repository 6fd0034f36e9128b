//! The in-memory hypervisor as the backend's own: its `Xen`, in the place of Linux's device files.
//!
//! It can be made to die after so many operations, each store to a shared page being one, and what it had open is then
//! closed as the kernel closes it. Ports are masked from the moment they are taken until they are unmasked, as
//! `/dev/xen/evtchn` does it. It knows neither rings nor packets.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use drayage::xen::{self, By, CopyOp, DomainId, EventPort, GrantRef, Xen, XenError};
use drayage_shared::Span;
use drayage_wire::PAGE_SIZE;
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

/// How many operations a backend has left to live.
#[derive(Clone, Debug)]
pub struct Life(Rc<Cell<u64>>);

impl Default for Life {
    fn default() -> Self {
        Self(Rc::new(Cell::new(u64::MAX)))
    }
}

/// What a backend that dies unwinds with.
#[derive(Debug)]
pub struct Died;

impl Life {
    /// Sets how many operations are left.
    pub fn set(&self, operations: u64) {
        self.0.set(operations);
    }

    fn spend(&self) {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            // Once: what is dropped meanwhile is what the kernel does for the dead.
            None if !std::thread::panicking() => std::panic::resume_unwind(Box::new(Died)),
            None => {}
        }
    }
}

/// Pages that outlive a backend.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Rc<RefCell<BTreeMap<String, RawPage>>>);

impl Shelf {
    /// Returns how many pages are kept.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Domain 0's access to the hypervisor.
pub struct Back {
    hv: Hypervisor,
    meddler: Meddler,
    /// The ports that are bound.
    ports: BTreeMap<u32, Mask>,
    life: Life,
    shelf: Option<Shelf>,
}

/// A page in a backend's hands: its own, or a guest's, who may write between any two loads.
pub struct BackPage {
    page: RawPage,
    access: xen::Access,
    life: Life,
    meddler: Meddler,
}

impl SharedWords for BackPage {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        let value = self.page.load(word, order);
        meddle(&self.meddler, Moment::Loaded);
        value
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.life.spend();
        self.page.store(word, value, order);
    }
    fn full_fence(&self) {
        self.page.full_fence();
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        for port in self.ports.keys() {
            self.hv.close(DOM0, Port(*port));
        }
    }
}

impl Back {
    /// Returns the access of domain 0, without pages that outlive it.
    pub fn new(hv: &Hypervisor) -> Self {
        Self::mortal_or_not(hv, Life::default(), None)
    }

    /// Returns the access of domain 0 for a backend that may die.
    pub fn mortal(hv: &Hypervisor, life: &Life, shelf: &Shelf) -> Self {
        Self::mortal_or_not(hv, life.clone(), Some(shelf.clone()))
    }

    fn mortal_or_not(hv: &Hypervisor, life: Life, shelf: Option<Shelf>) -> Self {
        Self { hv: hv.clone(), meddler: Meddler::default(), ports: BTreeMap::new(), life, shelf }
    }

    /// Lets a guest act in the moments between two steps of the backend.
    pub fn meddle_with(&self, meddler: impl FnMut(Moment) + 'static) {
        *self.meddler.borrow_mut() = Some(Box::new(meddler));
    }

    fn page(&self, page: RawPage, access: xen::Access) -> BackPage {
        BackPage { page, access, life: self.life.clone(), meddler: self.meddler.clone() }
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

impl xen::PageAccess for BackPage {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        let fits = self.access == xen::Access::ReadWrite && offset + bytes.len() <= PAGE_SIZE;
        if fits {
            self.life.spend();
            meddle(&self.meddler, Moment::Copying);
            self.page.write(offset, bytes);
            meddle(&self.meddler, Moment::Copied);
        }
        fits
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool {
        let fits = offset + into.len() <= PAGE_SIZE;
        if fits {
            meddle(&self.meddler, Moment::Copying);
            self.page.read(offset, into);
            meddle(&self.meddler, Moment::Copied);
        }
        fits
    }

    fn span(&self, offset: usize, len: usize) -> Option<Span<'_>> {
        (offset + len <= PAGE_SIZE).then(|| self.page.span(offset, len))
    }

    fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) -> bool {
        let fits = to.access == xen::Access::ReadWrite && offset.max(at) + len <= PAGE_SIZE;
        if fits {
            self.life.spend();
            meddle(&self.meddler, Moment::Copying);
            self.page.copy_across(offset, &to.page, at, len);
            meddle(&self.meddler, Moment::Copied);
        }
        fits
    }
}

impl Xen for Back {
    type Page = BackPage;

    fn map(&mut self, domain: DomainId, grant: GrantRef, access: xen::Access) -> Result<BackPage, XenError> {
        self.life.spend();
        let wanted = match access {
            xen::Access::ReadOnly => memxen::Access::ReadOnly,
            xen::Access::ReadWrite => memxen::Access::ReadWrite,
        };
        let (id, reference) = (memxen::DomainId(domain.0), memxen::GrantRef(grant.0));
        let page = self.hv.raw_map_for(DOM0, id, reference, wanted);
        let page = page.map_err(|status| {
            let source = io::Error::other(format!("grant operation status {status}"));
            XenError::Map { domain: domain.0, grant: grant.0, source }
        })?;
        Ok(self.page(page, access))
    }

    fn keep(&mut self, name: &str) -> Option<BackPage> {
        self.life.spend();
        let mut kept = self.shelf.as_ref()?.0.borrow_mut();
        let new = || self.hv.raw_pages(DOM0, 1).ok()?.pop();
        let page = match kept.get(name) {
            Some(page) => page.clone(),
            None => kept.entry(name.into()).or_insert(new()?).clone(),
        };
        Some(self.page(page, xen::Access::ReadWrite))
    }

    fn give_up(&mut self, name: &str) {
        self.life.spend();
        if let Some(shelf) = &self.shelf {
            shelf.0.borrow_mut().remove(name);
        }
    }

    fn bind(&mut self, domain: DomainId, remote: EventPort) -> Result<EventPort, XenError> {
        self.life.spend();
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
        self.life.spend();
        self.hv.notify(DOM0, Port(port.0));
    }

    fn take_pending(&mut self, into: &mut [EventPort]) -> usize {
        self.life.spend();
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
        self.life.spend();
        for port in ports {
            if let Some(mask) = self.ports.get_mut(&port.0) {
                *mask = Mask::Open;
            }
        }
    }

    fn copy_to_guests(&mut self, local: [&[u8]; 2], ops: &mut [CopyOp]) {
        for op in ops.iter_mut().filter(|op| op.by == By::Grant) {
            let Some(bytes) = op.bytes(local) else {
                op.status = status::GENERAL_ERROR;
                continue;
            };
            self.life.spend();
            let copy = Copy::To(Self::place(op), bytes);
            meddle(&self.meddler, Moment::Copying);
            self.hv.grant_copy(DOM0, &mut [copy], std::slice::from_mut(&mut op.status));
            meddle(&self.meddler, Moment::Copied);
        }
    }

    fn copy_from_guests(&mut self, local: &mut [u8], ops: &mut [CopyOp]) {
        for op in ops.iter_mut().filter(|op| op.by == By::Grant) {
            let Some(bytes) = local.get_mut(range(op)) else {
                op.status = status::GENERAL_ERROR;
                continue;
            };
            self.life.spend();
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
