//! Pages that domains share: a memfd for each pool, seen by the guest at one address (the first pages twice,
//! where it asked for that), by the hypervisor at another, and by whoever maps it at a third.
//!
//! It knows addresses and pages, and neither grants nor who may do what.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use drayage_netfront::platform::{RawPool, Refused};
use drayage_shared::SharedBytes;
use drayage_wire::PAGE_SIZE;

use crate::{DomainId, Hypervisor};

/// A pool of pages.
pub(crate) struct Pool {
    fd: OwnedFd,
    raw: RawPool,
    /// The hypervisor's view.
    pub(crate) bytes: SharedBytes,
    /// How many grants are in force on each page.
    pub(crate) granted: Vec<u32>,
    pub(crate) freed: bool,
}

// SAFETY: the pool owns its mappings; the addresses in `raw` are only handed out, never used here.
unsafe impl Send for Pool {}

/// A page of a domain: its pool's address and its number in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) pool: usize,
    pub(crate) page: usize,
}

/// Reserves `pages` pages of addresses that fault.
fn reserve(pages: usize) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE_SIZE, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) }
}

/// Maps `pages` pages of `fd` from its page `first` on over `at`, which `reserve` returned.
fn map_over(at: *mut u8, fd: &OwnedFd, first: usize, pages: usize, prot: i32) -> bool {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let offset = (first * PAGE_SIZE) as libc::off_t;
    // SAFETY: the callers pass ranges inside a reservation of their own, which nobody else uses.
    let got = unsafe { libc::mmap(at.cast(), pages * PAGE_SIZE, prot, flags, fd.as_raw_fd(), offset) };
    got != libc::MAP_FAILED
}

/// Puts a reservation that faults back over `pages` pages at `at`.
fn unmap(at: *mut u8, pages: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the callers pass ranges that they mapped with `map_over`; what still points there will fault,
    // which is the purpose.
    let got = unsafe { libc::mmap(at.cast(), pages * PAGE_SIZE, libc::PROT_NONE, flags, -1, 0) };
    debug_assert!(got != libc::MAP_FAILED);
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl Pool {
    fn new(pages: usize, mirrored: usize) -> Option<Self> {
        // SAFETY: the name is a C string; the flags are none.
        let fd = unsafe { libc::memfd_create(c"memxen".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a plain system call on our own descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), (pages * PAGE_SIZE) as libc::off_t) } != 0 {
            return None;
        }
        let base = reserve(pages + mirrored)?;
        let behind = base.as_ptr().wrapping_add(pages * PAGE_SIZE);
        let own = reserve(pages)?;
        let mapped = map_over(base.as_ptr(), &fd, 0, pages, READ_WRITE)
            && (mirrored == 0 || map_over(behind, &fd, 0, mirrored, READ_WRITE))
            && map_over(own.as_ptr(), &fd, 0, pages, READ_WRITE);
        if !mapped {
            return None;
        }
        // SAFETY: the range was just mapped, stays so for the process's life, and nothing else knows it.
        let bytes = unsafe { SharedBytes::new(own, pages * PAGE_SIZE) };
        let raw = RawPool { base, pages, mirrored };
        Some(Self { fd, raw, bytes, granted: vec![0; pages], freed: false })
    }

    /// Maps one page over `at`, for another domain.
    pub(crate) fn map_page(&self, page: usize, at: *mut u8, prot: i32) -> bool {
        map_over(at, &self.fd, page, 1, prot)
    }
}

/// Reserves addresses for `pages` pages that are mapped one by one.
pub(crate) fn reserve_window(pages: usize) -> Option<NonNull<u8>> {
    reserve(pages)
}

/// Ends a mapping made into a window.
pub(crate) fn unmap_window(at: NonNull<u8>, pages: usize) {
    unmap(at.as_ptr(), pages);
}

impl Hypervisor {
    /// Allocates a pool for a domain, as [`Platform::alloc_pool`](drayage_netfront::platform::Platform).
    ///
    /// # Errors
    /// [`Refused::NoMemory`].
    pub fn alloc_pool(&self, id: DomainId, pages: usize, mirror: usize) -> Result<RawPool, Refused> {
        let mut state = self.lock();
        let domain = state.domains.get_mut(&id).ok_or(Refused::NoMemory)?;
        if domain.faults.refuse_allocations > 0 {
            domain.faults.refuse_allocations -= 1;
            return Err(Refused::NoMemory);
        }
        let mirrored = if domain.cannot_mirror { 0 } else { mirror.min(pages) };
        let pool = Pool::new(pages, mirrored).ok_or(Refused::NoMemory)?;
        let raw = pool.raw;
        domain.pools.insert(raw.base.as_ptr() as usize, pool);
        Ok(raw)
    }

    /// Takes a pool back. From here on its addresses fault.
    pub fn free_pool(&self, id: DomainId, raw: RawPool) {
        let mut state = self.lock();
        let state = &mut *state;
        let base = raw.base.as_ptr() as usize;
        let Some(pool) = state.domains.get_mut(&id).and_then(|d| d.pools.get_mut(&base)) else {
            state.violations.push(format!("{id:?} frees a pool that is not its own: {base:#x}"));
            return;
        };
        if pool.freed {
            state.violations.push(format!("{id:?} frees the pool {base:#x} twice"));
            return;
        }
        if let Some(page) = pool.granted.iter().position(|n| *n > 0) {
            state.violations.push(format!("{id:?} frees the pool {base:#x} while page {page} is granted"));
            return;
        }
        pool.freed = true;
        unmap(raw.base.as_ptr(), pool.raw.pages + pool.raw.mirrored);
    }

    /// Returns how many pools of a domain are allocated.
    pub fn live_pools(&self, id: DomainId) -> usize {
        self.lock().domains.get(&id).map_or(0, |d| d.pools.values().filter(|p| !p.freed).count())
    }
}

impl crate::Domain {
    /// Returns the frame at an address of the domain.
    pub(crate) fn frame_at(&self, address: usize) -> Option<Frame> {
        let (&base, pool) = self.pools.range(..=address).next_back()?;
        let page = (address - base) / PAGE_SIZE;
        let inside = page < pool.raw.pages && !pool.freed && address.is_multiple_of(PAGE_SIZE);
        inside.then_some(Frame { pool: base, page })
    }
}
