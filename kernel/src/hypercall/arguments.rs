//! Where the arguments lie of the two calls that follow packets: Xen reads them by address, and so walks our page tables
//! for each structure and each port. Memory beyond the image is mapped by large pages, and a walk to it has one level less.
//!
//! It knows the layout of the two structures, and not what is asked for.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Once;

use crate::memory::pages::Pages;

/// Ports that one call can name; Xen's limit is 128.
pub(crate) const MAX_PORTS: usize = 32;

/// Both structures. Nobody but this processor writes, and nobody but Xen reads, within a call.
#[repr(C)]
pub(super) struct Arguments {
    /// `struct sched_poll`.
    ports_at: AtomicU64,
    count: AtomicU32,
    padding: AtomicU32,
    timeout_ns: AtomicU64,
    /// `struct evtchn_send`.
    send: AtomicU32,
    ports: [AtomicU32; MAX_PORTS],
}

const _: () = {
    assert!(offset_of!(Arguments, count) == 8 && offset_of!(Arguments, timeout_ns) == 16);
    assert!(offset_of!(Arguments, send) == 24 && size_of::<Arguments>() <= 4096);
};

/// Those before [`move_away`].
static EARLY: Arguments = Arguments {
    ports_at: AtomicU64::new(0),
    count: AtomicU32::new(0),
    padding: AtomicU32::new(0),
    timeout_ns: AtomicU64::new(0),
    send: AtomicU32::new(0),
    ports: [const { AtomicU32::new(0) }; MAX_PORTS],
};
static MOVED: Once<&Arguments> = Once::new();

/// Moves the arguments to memory beyond the image, once all of it is there. Without a page they stay.
pub(crate) fn move_away() {
    if let Some(pages) = Pages::allocate(1) {
        let page = pages.as_ptr().cast::<Arguments>();
        let _ = pages.leak();
        // SAFETY: the page is ours for good, aligned and zeroed, which is a value of every atomic, and longer than them.
        let moved = unsafe { &*page };
        MOVED.call_once(|| moved);
    }
}

impl Arguments {
    /// Returns those in use.
    pub(super) fn get() -> &'static Self {
        MOVED.get().copied().unwrap_or(&EARLY)
    }

    /// Writes a `struct sched_poll` for as many ports as there is room for, and returns its address.
    pub(super) fn poll(&self, ports: impl Iterator<Item = u32>, timeout_ns: u64) -> u64 {
        let mut count = 0;
        for (place, port) in self.ports.iter().zip(ports) {
            place.store(port, Ordering::Relaxed);
            count += 1;
        }
        self.ports_at.store(address_of(&self.ports[0]), Ordering::Relaxed);
        self.count.store(count, Ordering::Relaxed);
        self.timeout_ns.store(timeout_ns, Ordering::Relaxed);
        address_of(self)
    }

    /// Writes a `struct evtchn_send`, and returns its address.
    pub(super) fn send(&self, port: u32) -> u64 {
        self.send.store(port, Ordering::Relaxed);
        address_of(&self.send)
    }
}

/// Returns the address of something that Xen reads.
fn address_of<T>(value: &T) -> u64 {
    core::ptr::from_ref(value).expose_provenance() as u64
}
