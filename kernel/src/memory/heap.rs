//! The heap: linked_list_allocator over runs of pages, which grows when it is full until no page is left. Its
//! cost grows with its holes, so nothing on the data path allocates.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use drayage_entry::PAGE_BYTES;
use linked_list_allocator::Heap;
use spin::Mutex;

use super::pages;

/// The heap grows by at least this much, while there is so much.
const GROW_BYTES: usize = 256 << 10;

/// Runs that are not neighbours; memory maps have few holes.
const MAX_ARENAS: usize = 32;

/// What the allocator keeps in front of or behind an allocation of a new run, at most.
const SLACK_BYTES: usize = 64;

#[global_allocator]
static HEAP: KernelHeap =
    KernelHeap(Mutex::new(Arenas { heaps: [const { Heap::empty() }; MAX_ARENAS], count: 0 }));

struct KernelHeap(Mutex<Arenas>);

struct Arenas {
    heaps: [Heap; MAX_ARENAS],
    count: usize,
}

/// Takes the first pages, so that a lack of them shows at boot.
pub(super) fn start() {
    HEAP.0.lock().grow(GROW_BYTES);
}

/// Returns how many bytes the heap has taken from the free pages so far.
pub(crate) fn total_bytes() -> u64 {
    HEAP.0.lock().active().map(|heap| heap.size() as u64).sum()
}

/// Returns how many bytes are allocated.
#[cfg(feature = "selftest")]
pub(crate) fn used_bytes() -> u64 {
    HEAP.0.lock().active().map(|heap| heap.used() as u64).sum()
}

impl Arenas {
    fn active(&self) -> impl Iterator<Item = &Heap> {
        self.heaps[..self.count].iter()
    }

    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.heaps[..self.count].iter_mut().find_map(|heap| heap.allocate_first_fit(layout).ok())
    }

    /// Adds memory for an allocation of `bytes`. Returns whether there was any.
    fn grow(&mut self, bytes: usize) -> bool {
        let page_bytes = PAGE_BYTES as usize;
        let Some(least) = bytes.checked_next_multiple_of(page_bytes) else { return false };
        let last_end = self.active().last().map(|heap| heap.top() as usize);
        let behind = last_end.filter(|end| end % page_bytes == 0);
        let Some((start, len)) =
            pages::take_lowest(least.max(GROW_BYTES), behind).or_else(|| pages::take_lowest(least, behind))
        else {
            return false;
        };
        if last_end == Some(start) {
            // SAFETY: the pages lie right behind the arena, and the free list has just made them ours.
            unsafe { self.heaps[self.count - 1].extend(len) };
            return true;
        }
        let Some(empty) = self.heaps.get_mut(self.count) else { return false };
        let bottom = core::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the pages are mapped, writable, and the free list has just made them ours.
        unsafe { empty.init(bottom, len) };
        self.count += 1;
        true
    }
}

// SAFETY: every block comes from the arena whose range it lies in and goes back there; a run belongs to one
// arena; the lock is never taken from within (the free list does not allocate).
unsafe impl GlobalAlloc for KernelHeap {
    // Nothing that is in a hurry allocates; inlined everywhere, the two would be a fifteenth of the image.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut arenas = self.0.lock();
        if let Some(block) = arenas.allocate(layout) {
            return block.as_ptr();
        }
        let Some(bytes) =
            layout.size().checked_add(layout.align()).and_then(|sum| sum.checked_add(SLACK_BYTES))
        else {
            return null_mut();
        };
        match arenas.grow(bytes).then(|| arenas.allocate(layout)).flatten() {
            Some(block) => block.as_ptr(),
            None => null_mut(),
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let mut arenas = self.0.lock();
        let count = arenas.count;
        let owner =
            arenas.heaps[..count].iter_mut().find(|heap| (heap.bottom()..heap.top()).contains(&block));
        if let (Some(heap), Some(block)) = (owner, NonNull::new(block)) {
            // SAFETY: our caller vouches that the block was allocated with this layout; the arena is the one
            // that it lies in.
            unsafe { heap.deallocate(block, layout) };
        }
    }
}
