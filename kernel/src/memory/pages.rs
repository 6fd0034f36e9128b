//! Free pages: whole runs of them, found by address. What is handed out is mapped, readable and writable, at
//! the address that it is known by. Taken from the top, so that the heap can grow upwards from the bottom.

use drayage_entry::{PAGE_BYTES, Range};
use free_list::{FreeList, PageRange};
use spin::Mutex;

/// Runs that the list holds in place. One more would make it allocate, which must not happen from within the
/// heap; so a run that finds no room is given up instead.
const MAX_RUNS: usize = 128;

static FREE: Mutex<FreeList<MAX_RUNS>> = Mutex::new(FreeList::new());

/// Adds mapped memory that nothing uses.
pub(super) fn add(range: Range) {
    if let Ok(pages) = PageRange::new(range.start as usize, range.end as usize) {
        give_back(pages);
    }
}

fn give_back(pages: PageRange) {
    let mut free = FREE.lock();
    if free.iter().count() < MAX_RUNS {
        // SAFETY: the memory is mapped and nobody uses it: it was found so at boot, or is given back by its only
        // owner. A range that is in the list already is refused.
        let _ = unsafe { free.deallocate(pages) };
    }
}

/// A run of pages, readable, writable, and nobody else's. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    range: PageRange,
}

impl Pages {
    /// Takes a run of `count` pages from the highest place that has one, zeroed.
    pub(crate) fn allocate(count: usize) -> Option<Self> {
        let bytes = count.checked_mul(PAGE_BYTES as usize)?;
        let mut free = FREE.lock();
        let run = free.iter().filter(|run| run.len().get() >= bytes).last()?;
        let range = PageRange::new(run.end() - bytes, run.end()).ok()?;
        free.allocate_at(range).ok()?;
        drop(free);
        Some(Self::zeroed(range))
    }

    /// Takes the lowest page, zeroed: for page tables, which are made while memory is still being added above
    /// and would cut it to pieces there.
    pub(super) fn allocate_lowest() -> Option<Self> {
        let (start, bytes) = take_lowest(PAGE_BYTES as usize, None)?;
        Some(Self::zeroed(PageRange::from_start_len(start, bytes).ok()?))
    }

    fn zeroed(range: PageRange) -> Self {
        let pages = Self { range };
        // SAFETY: the run is mapped and ours alone.
        unsafe { pages.as_ptr().write_bytes(0, range.len().get()) };
        pages
    }

    /// Returns the address of the first page, the same virtually and (pseudo-)physically.
    pub(crate) fn address(&self) -> u64 {
        self.range.start() as u64
    }

    /// Returns the first byte.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.range.start())
    }

    /// Returns the number of pages.
    pub(crate) fn count(&self) -> usize {
        self.range.len().get() / PAGE_BYTES as usize
    }

    /// Keeps the pages for ever.
    pub(crate) fn leak(self) -> u64 {
        let address = self.address();
        core::mem::forget(self);
        address
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        give_back(self.range);
    }
}

/// Takes a run of pages away from the free list: right behind `behind` where that is free, else the lowest that
/// is long enough.
pub(super) fn take_lowest(bytes: usize, behind: Option<usize>) -> Option<(usize, usize)> {
    let mut free = FREE.lock();
    let range = behind
        .and_then(|start| PageRange::from_start_len(start, bytes).ok())
        .filter(|range| free.allocate_at(*range).is_ok())
        .or_else(|| {
            let run = free.iter().find(|run| run.len().get() >= bytes)?;
            let range = PageRange::from_start_len(run.start(), bytes).ok()?;
            free.allocate_at(range).is_ok().then_some(range)
        })?;
    Some((range.start(), range.len().get()))
}

/// Returns how many bytes are free.
pub(crate) fn free_bytes() -> u64 {
    FREE.lock().free_space() as u64
}
