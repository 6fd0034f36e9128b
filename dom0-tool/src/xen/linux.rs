//! The hypervisor as Linux offers it to programs: the two device files together.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use drayage_shared::Span;
use drayage_wire::ring::SharedWords;

use super::evtchn::{self, Evtchn};
use super::gntdev::{self, Gntdev, MappedPage};
use super::kept::{KeptPage, KeptPages};
use super::{Access, CopyOp, DomainId, EventPort, GrantRef, PageAccess, Xen, XenError};

/// Access to Xen through `/dev/xen/gntdev` and `/dev/xen/evtchn`.
#[derive(Debug)]
pub struct Linux {
    gntdev: Gntdev,
    evtchn: Evtchn,
    kept: Option<KeptPages>,
}

/// A page: another domain's, or one of ours that outlives us.
#[derive(Debug)]
pub enum Page {
    /// Another domain's.
    Mapped(MappedPage),
    /// One of ours.
    #[doc(hidden)]
    Kept(Kept),
}

/// A page of ours that outlives us.
#[derive(Debug)]
pub struct Kept(KeptPage);

impl SharedWords for Page {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        match self {
            Self::Mapped(page) => page.load(word, order),
            Self::Kept(page) => page.0.words().load(word, order),
        }
    }

    fn store(&self, word: usize, value: u32, order: Ordering) {
        match self {
            Self::Mapped(page) => page.store(word, value, order),
            Self::Kept(page) => page.0.words().store(word, value, order),
        }
    }

    fn full_fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl PageAccess for Page {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        match self {
            Self::Mapped(page) => page.copy_in(offset, bytes),
            // One of ours holds words only.
            Self::Kept(_) => false,
        }
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool {
        match self {
            Self::Mapped(page) => page.copy_out(offset, into),
            Self::Kept(_) => false,
        }
    }

    fn span(&self, offset: usize, len: usize) -> Option<Span<'_>> {
        match self {
            Self::Mapped(page) => page.span(offset, len),
            Self::Kept(_) => None,
        }
    }

    fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) -> bool {
        match (self, to) {
            (Self::Mapped(from), Self::Mapped(to)) => from.copy_across(offset, to, at, len),
            _ => false,
        }
    }
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
        Ok(Self { gntdev, evtchn, kept: None })
    }

    /// Has pages that outlive this process, in a folder.
    #[must_use]
    pub fn keeping(mut self, kept: KeptPages) -> Self {
        self.kept = Some(kept);
        self
    }
}

impl Xen for Linux {
    type Page = Page;

    fn map(&mut self, domain: DomainId, grant: GrantRef, access: Access) -> Result<Page, XenError> {
        let failed = |source| XenError::Map { domain: domain.0, grant: grant.0, source };
        self.gntdev.map(domain, grant, access).map(Page::Mapped).map_err(failed)
    }

    fn keep(&mut self, name: &str) -> Option<Page> {
        let kept = self.kept.as_ref()?;
        match kept.open(name) {
            Ok(page) => Some(Page::Kept(Kept(page))),
            Err(error) => {
                let folder = kept.folder().display();
                tracing::warn!("packets may be lost when this daemon is killed: {folder}/{name}: {error}");
                None
            }
        }
    }

    fn give_up(&mut self, name: &str) {
        if let Some(kept) = &self.kept {
            kept.remove(name);
        }
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

    fn copy_to_guests(&mut self, local: [&[u8]; 2], ops: &mut [CopyOp]) {
        self.gntdev.copy_to(local, ops);
    }

    fn copy_from_guests(&mut self, local: &mut [u8], ops: &mut [CopyOp]) {
        self.gntdev.copy_from(local, ops);
    }

    fn event_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.evtchn.descriptor())
    }
}
