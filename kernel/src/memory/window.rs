//! Addresses that are not memory's own: pages mapped once more, in an order of our choosing. There the grant
//! table grows, pools have their first pages again behind the last, and devices are mapped. Each piece is
//! followed by a page that is not mapped.

use core::ptr::NonNull;

use drayage_entry::PAGE_BYTES;
use free_list::{FreeList, PageLayout, PageRange};
use spin::Mutex;

use super::pages::Pages;
use super::paging::{self, Access, Frame, MapError};

/// Where the window starts: far above any memory, in the lower half.
const START: usize = 0x4000_0000_0000;
const BYTES: usize = 64 << 30;

static ADDRESSES: Mutex<FreeList<64>> = Mutex::new(FreeList::new());

/// Makes the window's addresses available.
pub(super) fn start() {
    if let Ok(all) = PageRange::from_start_len(START, BYTES) {
        // SAFETY: nothing is mapped there, and the list only hands out addresses.
        let _ = unsafe { ADDRESSES.lock().deallocate(all) };
    }
}

/// Reserves addresses for `count` pages, with nothing mapped.
pub(crate) fn reserve(count: usize) -> Result<u64, MapError> {
    let bytes = (count + 1) * PAGE_BYTES as usize;
    let layout = PageLayout::from_size(bytes).map_err(|_| MapError::NoAddresses)?;
    let range = ADDRESSES.lock().allocate(layout).map_err(|_| MapError::NoAddresses)?;
    Ok(range.start() as u64)
}

fn release(address: u64, count: usize) {
    let bytes = (count + 1) * PAGE_BYTES as usize;
    if let Ok(range) = PageRange::from_start_len(address as usize, bytes) {
        // SAFETY: the range was reserved, and nothing is mapped there any more.
        let _ = unsafe { ADDRESSES.lock().deallocate(range) };
    }
}

/// Maps the registers of a device (no Xen: its physical addresses are ours to map), for good.
///
/// # Errors
/// [`MapError`] when a page table finds no memory.
pub(crate) fn map_device(physical: u64, len_bytes: usize) -> Result<NonNull<u8>, MapError> {
    let offset = physical % PAGE_BYTES;
    let count = (offset as usize + len_bytes).div_ceil(PAGE_BYTES as usize);
    let address = reserve(count)?;
    for i in 0..count as u64 {
        let frame = Frame(physical / PAGE_BYTES + i);
        // SAFETY: the address was just reserved, and the frame is a device's, not memory's.
        unsafe { paging::map(address + i * PAGE_BYTES, frame, Access::Device) }?;
    }
    NonNull::new(core::ptr::with_exposed_provenance_mut((address + offset) as usize))
        .ok_or(MapError::NoAddresses)
}

/// Contiguous pages, the first few of which are mapped once more right behind the last. Unmapped and given back
/// when dropped.
#[derive(Debug)]
pub(crate) struct Pool {
    pages: Pages,
    address: u64,
    mirror: usize,
}

impl Pool {
    /// Allocates `count` zeroed pages, the first `mirror` of which appear again behind the last.
    ///
    /// # Errors
    /// [`MapError`] when memory, page tables or addresses run out, or `mirror` is more than `count`.
    pub(crate) fn allocate(count: usize, mirror: usize) -> Result<Self, MapError> {
        if mirror > count || count == 0 {
            return Err(MapError::BadSize);
        }
        let pages = Pages::allocate(count).ok_or(MapError::NoMemory)?;
        let address = reserve(count + mirror)?;
        let pool = Self { pages, address, mirror };
        let memory = pool.pages.address();
        // SAFETY: the addresses were just reserved; the pages are the pool's, which is only ever used as shared
        // bytes, where being mapped twice (or three times) is what is wanted.
        unsafe { paging::map_again(address, memory, count) }?;
        // SAFETY: as above.
        unsafe { paging::map_again(address + count as u64 * PAGE_BYTES, memory, mirror) }?;
        Ok(pool)
    }

    /// Returns the first byte; the pool's pages follow, then the mirror.
    pub(crate) fn start(&self) -> NonNull<u8> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(self.address as usize))
            .unwrap_or(NonNull::dangling())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let count = self.pages.count() + self.mirror;
        for i in 0..count as u64 {
            // SAFETY: the pool is gone, and with it every use of these addresses. An address that was never
            // mapped (an allocation that failed half way) stays so.
            let _ = unsafe { paging::unmap(self.address + i * PAGE_BYTES) };
        }
        release(self.address, count);
    }
}
