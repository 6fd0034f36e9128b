//! The hypervisor as Linux offers it to programs: the two device files together.

use std::io;
use std::os::fd::BorrowedFd;

use super::evtchn::{self, Evtchn};
use super::gntdev::{self, Gntdev, MappedPage};
use super::{CopyOp, DomainId, EventPort, GrantRef, Xen, XenError};

/// Access to Xen through `/dev/xen/gntdev` and `/dev/xen/evtchn`.
#[derive(Debug)]
pub struct Linux {
    gntdev: Gntdev,
    evtchn: Evtchn,
}

/// A device file of Xen's could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening {path}: {source}")]
pub struct OpenError {
    /// Which.
    pub path: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl Linux {
    /// Opens the device files; batches of copies may have up to `batch` operations without allocating.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(batch: usize) -> Result<Self, OpenError> {
        let gntdev = Gntdev::open(batch).map_err(|source| OpenError { path: gntdev::PATH, source })?;
        let evtchn = Evtchn::open().map_err(|source| OpenError { path: evtchn::PATH, source })?;
        Ok(Self { gntdev, evtchn })
    }
}

impl Xen for Linux {
    type Page = MappedPage;

    fn map(&mut self, domain: DomainId, grant: GrantRef) -> Result<MappedPage, XenError> {
        let failed = |source| XenError::Map { domain: domain.0, grant: grant.0, source };
        self.gntdev.map(domain, grant).map_err(failed)
    }

    fn bind(&mut self, domain: DomainId, remote: EventPort) -> Result<EventPort, XenError> {
        let failed = |source| XenError::Bind { domain: domain.0, port: remote.0, source };
        self.evtchn.bind(domain, remote).map_err(failed)
    }

    fn unbind(&mut self, port: EventPort) {
        self.evtchn.unbind(port);
    }

    fn notify(&mut self, port: EventPort) {
        self.evtchn.notify(port);
    }

    fn take_pending(&mut self, into: &mut [EventPort]) -> usize {
        self.evtchn.take_pending(into)
    }

    fn unmask(&mut self, ports: &[EventPort]) {
        self.evtchn.unmask(ports);
    }

    fn copy_to_guests(&mut self, local: &[u8], ops: &mut [CopyOp]) {
        self.gntdev.copy_to(local, ops);
    }

    fn copy_from_guests(&mut self, local: &mut [u8], ops: &mut [CopyOp]) {
        self.gntdev.copy_from(local, ops);
    }

    fn event_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.evtchn.descriptor())
    }
}
