//! Pages shared with one backend, and when they may be borrowed: the crate's one place with `unsafe` in it
//! (besides the forwarding in `platform`).
//!
//! A page that the backend can write is never a reference, unless the toolstack vouches for the backend and the
//! guest was told to rely on that ([`Reading::InPlace`]). [`ReceivePool`] else lends bytes only of pages whose
//! grant was revoked, and keeps track of that itself; [`SendPool`] is granted read-only, so it may be borrowed
//! at any time; [`SharedRing`] hands out its page as a ring of atomics. None of them knows what the bytes mean.
//!
//! Giving pages back can fail while the backend uses them (XSA-396), so it is a method, `reclaim`, that is
//! asked again later, and dropping any of them leaks instead.

use alloc::vec::Vec;
use core::ptr::NonNull;

use drayage_shared::{SharedBytes, SharedPage};
use drayage_wire::PAGE_SIZE;
use drayage_wire::control::{Gref, MAX_LIST_ENTRIES};
use drayage_wire::netif::RING_SLOTS;
use drayage_wire::ring::{FrontRing, RingKind, SharedWords as _};

use crate::platform::{Access, DomainId, GrantRef, Platform, RawPool, Refused, StillInUse};

/// Pages of a receive or send pool: one for each slot of its ring.
const RING_PAGES: usize = RING_SLOTS as usize;

/// A pool with a grant on each of its pages.
#[derive(Debug)]
struct Granted<P> {
    platform: P,
    raw: RawPool,
    access: Access,
    /// One for each page, from page 0 on; popped as the pages are reclaimed.
    grants: Vec<GrantRef>,
    freed: bool,
}

// SAFETY: the address in `raw` belongs to this value alone, so it may move to another thread with it, if the
// platform may.
unsafe impl<P: Send> Send for Granted<P> {}

impl<P: Platform> Granted<P> {
    fn alloc(platform: P, pages: usize, mirror: usize, access: Access) -> Result<Self, Refused> {
        let raw = platform.alloc_pool(pages, mirror)?;
        Ok(Self { platform, raw, access, grants: Vec::with_capacity(pages), freed: false })
    }

    /// Grants every page. What was granted before an error is for `reclaim` to take back.
    fn grant_all(&mut self, peer: DomainId) -> Result<(), Refused> {
        while self.grants.len() < self.raw.pages {
            let page = self.page(self.grants.len());
            // SAFETY: the page lies in the pool. No reference into it is alive: references are only made by
            // methods that borrow `self`, of pages that are revoked or granted read-only.
            let grant = unsafe { self.platform.grant(peer, page, self.access) }?;
            self.grants.push(grant);
        }
        Ok(())
    }

    fn page(&self, page: usize) -> NonNull<u8> {
        assert!(page < self.raw.pages + self.raw.mirrored, "page {page} is outside the pool");
        // SAFETY: just bounded; the pool is valid over that many pages (`Platform::alloc_pool`).
        unsafe { self.raw.base.add(page * PAGE_SIZE) }
    }

    /// Takes all pages back and frees the pool.
    fn reclaim(&mut self) -> Result<(), StillInUse> {
        while let Some(grant) = self.grants.last() {
            self.platform.release(*grant)?;
            self.grants.pop();
        }
        if !self.freed {
            self.freed = true;
            // SAFETY: the pool came from this platform and is freed once (`freed`), no page of it is granted
            // any more, and no reference is alive, as this method borrows `self` mutably.
            unsafe { self.platform.free_pool(self.raw) };
        }
        Ok(())
    }
}

/// A ring in a page of its own (XSA-403), granted to the backend.
#[derive(Debug)]
pub(crate) struct SharedRing<K, P> {
    ring: FrontRing<K, SharedPage>,
    page: Granted<P>,
}

impl<K: RingKind, P: Platform> SharedRing<K, P> {
    /// Allocates and initialises a ring. It is not granted yet.
    pub(crate) fn new(platform: P) -> Result<Self, Refused> {
        let page = Granted::alloc(platform, 1, 0, Access::ReadWrite)?;
        // SAFETY: the page is mapped until `reclaim` frees it, after which `ring` panics rather than hand it
        // out; nothing else accesses it.
        let words = unsafe { SharedPage::new(page.page(0)) };
        Ok(Self { ring: FrontRing::new(words), page })
    }

    /// Grants the ring to the backend and returns the reference.
    pub(crate) fn grant(&mut self, peer: DomainId) -> Result<GrantRef, Refused> {
        self.page.grant_all(peer)?;
        Ok(self.page.grants[0])
    }

    /// Returns the ring.
    ///
    /// # Panics
    /// After a `reclaim` that succeeded; the owner drops the ring then.
    pub(crate) fn get(&mut self) -> &mut FrontRing<K, SharedPage> {
        assert!(!self.page.freed, "the ring was reclaimed");
        &mut self.ring
    }

    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.page.reclaim()
    }
}

/// A page of its own (XSA-403) for lists of grants, granted to the backend.
#[derive(Debug)]
pub(crate) struct SharedList<P> {
    words: SharedPage,
    page: Granted<P>,
}

impl<P: Platform> SharedList<P> {
    /// Allocates the page. It is not granted yet.
    pub(crate) fn new(platform: P) -> Result<Self, Refused> {
        let page = Granted::alloc(platform, 1, 0, Access::ReadWrite)?;
        // SAFETY: the page is mapped until `reclaim` frees it, after which `fill` does not touch it; nothing
        // else accesses it.
        let words = unsafe { SharedPage::new(page.page(0)) };
        Ok(Self { words, page })
    }

    /// Grants the page to the backend and returns the reference.
    pub(crate) fn grant(&mut self, peer: DomainId) -> Result<GrantRef, Refused> {
        self.page.grant_all(peer)?;
        Ok(self.page.grants[0])
    }

    /// Writes a list; what is beyond a page is left out.
    pub(crate) fn fill(&mut self, entries: impl Iterator<Item = Gref>) {
        if self.page.freed {
            return;
        }
        for (at, entry) in entries.take(MAX_LIST_ENTRIES).enumerate() {
            for (n, word) in entry.to_words().into_iter().enumerate() {
                // The request that names the list is published with a barrier of its own.
                self.words.store(at * Gref::WORDS + n, word, core::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.page.reclaim()
    }
}

/// What keeps a received page from changing while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Its grant is revoked first.
    Revoked,
    /// Nothing: the backend keeps it mapped, and is trusted not to write it before it is posted again.
    InPlace,
    /// Nothing: the backend keeps it mapped, so what is in it is copied into private memory first.
    Copied,
}

/// The pages that the backend writes packets into. At first all are granted.
#[derive(Debug)]
pub(crate) struct ReceivePool<P> {
    pages: Granted<P>,
    reading: Reading,
    /// A bit for each page, set while its grant is revoked: only then is the page ours to read.
    owned: [u64; 4],
    /// Bytes of the pool that lie in such pages alone, found once for a container instead of for each of its packets.
    /// Empty again as soon as any page is given back.
    found: core::ops::Range<usize>,
}

impl<P: Platform> ReceivePool<P> {
    /// Allocates a page for each slot of a ring; they are not granted yet, nor lent.
    pub(crate) fn new(platform: P, mirror: usize) -> Result<Self, Refused> {
        let pages = Granted::alloc(platform, RING_PAGES, mirror, Access::ReadWrite)?;
        Ok(Self { pages, reading: Reading::Revoked, owned: [0; 4], found: 0..0 })
    }

    /// Grants every page to the backend.
    pub(crate) fn grant_all(&mut self, peer: DomainId) -> Result<(), Refused> {
        self.pages.grant_all(peer)
    }

    /// Returns how many pages are mapped a second time behind the last.
    pub(crate) fn mirrored(&self) -> usize {
        self.pages.raw.mirrored
    }

    /// Returns the reference of a page.
    pub(crate) fn grant_ref(&self, page: usize) -> GrantRef {
        self.pages.grants[page]
    }

    /// Returns the references of all pages.
    pub(crate) fn grants(&self) -> &[GrantRef] {
        &self.pages.grants
    }

    /// Returns what keeps pages from changing while they are read.
    pub(crate) fn reading(&self) -> Reading {
        self.reading
    }

    /// Prepares for the backend to map the pages, or to have unmapped them: says how they are read from now on.
    /// Returns whether that can be: all pages must be granted.
    pub(crate) fn set_reading(&mut self, reading: Reading) -> bool {
        let all_granted = self.owned == [0; 4];
        if all_granted {
            self.reading = reading;
            self.found = 0..0;
        }
        all_granted
    }

    fn owns(&self, page: usize) -> bool {
        self.owned[page / 64] >> (page % 64) & 1 != 0
    }

    /// Takes a page from the backend, whose bytes can then be lent. One that may be mapped stays granted.
    /// Returns whether it was revoked.
    pub(crate) fn revoke(&mut self, page: usize) -> Result<bool, StillInUse> {
        if self.reading != Reading::Revoked || self.owns(page) {
            return Ok(false);
        }
        self.pages.platform.revoke(self.pages.grants[page])?;
        self.owned[page / 64] |= 1 << (page % 64);
        Ok(true)
    }

    /// Gives a page to the backend again. Returns whether it was ours.
    pub(crate) fn regrant(&mut self, page: usize) -> bool {
        if !self.owns(page) {
            return false;
        }
        self.owned[page / 64] &= !(1 << (page % 64));
        self.found = 0..0;
        // SAFETY: the reference came from this platform, is revoked (its bit was set) and not released. No
        // reference into the page is alive: `bytes` borrows `self`, and this method borrows it mutably.
        unsafe { self.pages.platform.regrant(self.pages.grants[page], Access::ReadWrite) };
        true
    }

    /// Returns whether all pages of a range of bytes of the pool are ours to read.
    fn is_readable(&self, start: usize, end: usize) -> bool {
        // A page in the mirror is the page whose second mapping it is.
        let mut touched = start / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        match self.reading {
            Reading::Revoked => touched.all(|page| self.owns(page % RING_PAGES)),
            Reading::InPlace => true,
            Reading::Copied => false,
        }
    }

    /// Prepares for [`bytes`](Self::bytes) to be asked again and again for parts of `len` bytes from page `first` on.
    pub(crate) fn find(&mut self, first: usize, len: usize) {
        let start = first * PAGE_SIZE;
        self.found = if self.is_readable(start, start + len) { start..start + len } else { 0..0 };
    }

    /// Lends `len` bytes from `offset` in page `first` on, over page boundaries and into the mirror. Returns
    /// `None` when not all of that is ours to read.
    pub(crate) fn bytes(&self, first: usize, offset: usize, len: usize) -> Option<&[u8]> {
        let raw = &self.pages.raw;
        let start = first.checked_mul(PAGE_SIZE)?.checked_add(offset)?;
        let end = start.checked_add(len)?;
        if end > (RING_PAGES + raw.mirrored) * PAGE_SIZE || self.pages.freed {
            return None;
        }
        let found = self.found.start <= start && end <= self.found.end;
        if !found && !self.is_readable(start, end) {
            return None;
        }
        // SAFETY: `start` lies in the pool, as `end` does.
        let at = unsafe { raw.base.add(start) };
        // SAFETY: the range was bounded above and is mapped while the pool lives, and this program never writes
        // the pool. No other domain writes the range while the result is alive:
        // * `Revoked`: all its pages are revoked, and none is granted again, since `regrant` borrows `self`
        //   mutably. Where `found` says so, they were when it was set, and it is emptied by whatever gives a page back.
        // * `InPlace`: the backend maps the pages and *could* write. It is trusted not to: this mode is only set
        //   where the toolstack wrote `trusted=1` for this vif, which says that the guest relies on its backend
        //   as it relies on domain 0. SPEC.md, section 7, obliges a backend to write a staged page only between
        //   its request and its response; the pages of the range are posted again (`push` in `rx`, which
        //   borrows the queue and so this pool mutably) only after the result is gone.
        Some(unsafe { core::slice::from_raw_parts(at.as_ptr(), len) })
    }

    /// Copies bytes of pages that the backend can write into private memory: from `offset` in page `first` on,
    /// over page boundaries and into the mirror. Returns whether the pool has them; nothing is else copied.
    pub(crate) fn copy_out(&mut self, first: usize, offset: usize, into: &mut [u8]) -> bool {
        let raw = &self.pages.raw;
        let Some(start) = first.checked_mul(PAGE_SIZE).and_then(|start| start.checked_add(offset)) else {
            return false;
        };
        if self.pages.freed {
            return false;
        }
        let len = (raw.pages + raw.mirrored) * PAGE_SIZE;
        // SAFETY: the pool is valid over that many bytes while it is not freed, which it is not while the value
        // lives. `self` is borrowed mutably, so nothing is lent of it.
        let bytes = unsafe { SharedBytes::new(raw.base, len) };
        bytes.copy_out(start, into).is_ok()
    }

    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.owned = [0; 4];
        self.found = 0..0;
        self.pages.reclaim()
    }
}

/// The pages that frames are written into. They are granted read-only for as long as the two ends are
/// connected, which costs no grant operation on the data path: they only ever hold what was meant for this
/// backend, and are zeroed when they come from the platform.
#[derive(Debug)]
pub(crate) struct SendPool<P>(Granted<P>);

impl<P: Platform> SendPool<P> {
    /// Allocates a page for each slot of a ring; they are not granted yet.
    pub(crate) fn new(platform: P, mirror: usize) -> Result<Self, Refused> {
        Granted::alloc(platform, RING_PAGES, mirror, Access::ReadOnly).map(Self)
    }

    /// Grants every page to the backend.
    pub(crate) fn grant_all(&mut self, peer: DomainId) -> Result<(), Refused> {
        self.0.grant_all(peer)
    }

    /// Returns the references of all pages.
    pub(crate) fn grants(&self) -> &[GrantRef] {
        &self.0.grants
    }

    /// Returns how many pages are mapped a second time behind the last.
    pub(crate) fn mirrored(&self) -> usize {
        self.0.raw.mirrored
    }

    /// Returns the reference of a page.
    pub(crate) fn grant_ref(&self, page: usize) -> GrantRef {
        self.0.grants[page]
    }

    /// Returns `len` bytes from page `first` on, over page boundaries and into the mirror, to write a frame
    /// into. Returns `None` when the pool does not have them in one piece.
    pub(crate) fn bytes_mut(&mut self, first: usize, len: usize) -> Option<&mut [u8]> {
        let raw = &self.0.raw;
        let start = first.checked_mul(PAGE_SIZE)?;
        let end = start.checked_add(len)?;
        // Longer than the pool, the range would reach a page twice.
        let inside = end <= (raw.pages + raw.mirrored) * PAGE_SIZE && len <= raw.pages * PAGE_SIZE;
        if !inside || first >= raw.pages || self.0.freed {
            return None;
        }
        // SAFETY: `start` lies in the pool, as `end` does.
        let at = unsafe { raw.base.add(start) };
        // SAFETY: the range was bounded above, is mapped while the pool lives, and reaches no byte twice. The
        // result borrows `self` mutably, so there is no other reference, and the backend's grant is read-only.
        Some(unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), len) })
    }

    pub(crate) fn reclaim(&mut self) -> Result<(), StillInUse> {
        self.0.reclaim()
    }
}
