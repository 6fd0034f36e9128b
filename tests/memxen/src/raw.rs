//! Single pages in the hands of a test that plays a guest or a backend itself, honest or not: plain loads and
//! stores, without the driver or the backend that would do them rightly.
//!
//! It knows pages, and nothing of what is in them.

use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use drayage_shared::{SharedBytes, SharedPage, Span};
use drayage_wire::PAGE_SIZE;
use drayage_wire::ring::SharedWords;

use drayage_netfront::platform::Refused;

use crate::{Access, DomainId, GrantRef, Hypervisor};

/// A page of a domain's own, or of another domain, mapped until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct RawPage(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    address: NonNull<u8>,
    words: SharedPage,
    bytes: SharedBytes,
    mapping: Option<(Hypervisor, DomainId, u64)>,
}

impl RawPage {
    /// Takes a page.
    ///
    /// # Safety
    /// 4096 readable and writable bytes at `address`, page-aligned, stay mapped for as long as the value lives,
    /// and nothing in the program holds a reference into them.
    unsafe fn new(address: NonNull<u8>, mapping: Option<(Hypervisor, DomainId, u64)>) -> Self {
        // SAFETY: the caller's promise; `bytes` accesses the page volatilely, which is as good as atomics where
        // both sides only ever take what they read for bytes of unknown origin.
        let words = unsafe { SharedPage::new(address) };
        // SAFETY: the caller's promise.
        let bytes = unsafe { SharedBytes::new(address, PAGE_SIZE) };
        Self(Rc::new(Inner { address, words, bytes, mapping }))
    }

    /// Returns the page's address, by which a guest grants it.
    pub fn address(&self) -> NonNull<u8> {
        self.0.address
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// Beyond the page's end.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.bytes.copy_in(offset, bytes).expect("inside the page");
    }

    /// Copies bytes into another page, at `at`.
    ///
    /// # Panics
    /// Beyond the page's end.
    pub fn copy_across(&self, offset: usize, to: &Self, at: usize, len: usize) {
        self.0.bytes.copy_across(offset, &to.0.bytes, at, len).expect("inside the page");
    }

    /// Returns a part of the page, for the system to read.
    ///
    /// # Panics
    /// Beyond the page's end.
    pub fn span(&self, offset: usize, len: usize) -> Span<'_> {
        self.0.bytes.span(offset, len).expect("inside the page")
    }

    /// Reads bytes.
    ///
    /// # Panics
    /// Beyond the page's end.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.bytes.copy_out(offset, into).expect("inside the page");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((hv, by, handle)) = self.mapping.take() {
            hv.unmap(by, handle);
        }
    }
}

impl SharedWords for RawPage {
    fn load(&self, word: usize, order: Ordering) -> u32 {
        self.0.words.load(word, order)
    }
    fn store(&self, word: usize, value: u32, order: Ordering) {
        self.0.words.store(word, value, order);
    }
    fn full_fence(&self) {
        self.0.words.full_fence();
    }
}

impl Hypervisor {
    /// Allocates zeroed pages of a domain, which are never freed.
    ///
    /// # Errors
    /// [`Refused::NoMemory`].
    pub fn raw_pages(&self, id: DomainId, pages: usize) -> Result<Vec<RawPage>, Refused> {
        let pool = self.alloc_pool(id, pages, 0)?;
        let page = |n: usize| {
            // SAFETY: `n` is below `pages`, so the result lies in the pool.
            let address = unsafe { pool.base.add(n * PAGE_SIZE) };
            // SAFETY: the pool's pages stay mapped until `free_pool`, which nobody calls: their addresses are only
            // known to the results.
            unsafe { RawPage::new(address, None) }
        };
        Ok((0..pages).map(page).collect())
    }

    /// Maps a granted page for domain `by`, until the result is dropped.
    ///
    /// # Errors
    /// The status of the grant operation.
    pub fn raw_map(&self, by: DomainId, domain: DomainId, grant: GrantRef) -> Result<RawPage, i16> {
        self.raw_map_for(by, domain, grant, Access::ReadWrite)
    }

    /// As [`raw_map`](Self::raw_map), for reading alone if `access` says so: a write then faults.
    ///
    /// # Errors
    /// The status of the grant operation.
    pub fn raw_map_for(
        &self,
        by: DomainId,
        domain: DomainId,
        grant: GrantRef,
        access: Access,
    ) -> Result<RawPage, i16> {
        let mapping = self.map(by, &[(domain, grant)], access)?;
        // SAFETY: the mapping lasts until `unmap`, which only the page's `drop` calls: the handle moves into it.
        Ok(unsafe { RawPage::new(mapping.base, Some((self.clone(), by, mapping.handle))) })
    }
}
