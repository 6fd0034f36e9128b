//! The driver against backends that are scripted, and mostly lie, over the in-memory hypervisor.
//!
//! `peer` plays the backend and the toolstack, `guest` the kernel.

mod allocation;
mod containers;
mod frames;
mod guest;
mod hostile;
mod offload;
mod peer;
mod sending;
mod stack;
mod staged;
mod states;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts this thread's allocations, for the test that the data path makes none.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every method forwards to the system's allocator, which keeps the promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns how often this thread has allocated.
fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}
