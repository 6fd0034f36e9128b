//! All of the guest's memory: pages, heap, mappings. Brought up in two steps: a little at first, enough for a
//! heap and xenstore; then, once xenstore has told how much may be touched, the rest.

pub(crate) mod heap;
pub(crate) mod pages;
pub(crate) mod paging;
pub(crate) mod window;

use core::fmt;

use drayage_entry::{BootInfo, PAGE_BYTES, Platform, Range, Ranges};
use drayage_kernel::memory_plan::{LimitSource, MemoryLimit, limit};

pub(crate) use paging::{Frame, MapError};
pub(crate) use window::Pool;

/// Memory to start with.
const FIRST_BYTES: u64 = 1 << 20;

/// Memory is taken in pieces of this many bytes, what one lowest-level page table maps.
const CHUNK_BYTES: u64 = 2 << 20;

/// What became of the memory, for the boot line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemorySummary {
    given_bytes: u64,
    limit: MemoryLimit,
    usable_bytes: u64,
    image_bytes: u64,
}

impl fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes / 1024;
        let rest_bytes = self.limit.bytes.saturating_sub(self.usable_bytes + self.image_bytes);
        write!(f, "{} KiB given", kib(self.limit.bytes))?;
        if self.limit.source == LimitSource::Target {
            write!(f, " (memory/target; the memory map shows {})", kib(self.given_bytes))?;
        }
        write!(
            f,
            ", {} KiB usable as heap, {} KiB image, {} KiB page tables and boot pages",
            kib(self.usable_bytes),
            kib(self.image_bytes),
            kib(rest_bytes)
        )
    }
}

/// Takes control of the page tables and of the first memory: after this there is a heap, code cannot be written,
/// data cannot be executed, and neither page 0 nor the page below the stack is mapped.
///
/// # Errors
/// What Xen or the lack of memory says.
pub(crate) fn start(boot: &BootInfo) -> Result<(), MapError> {
    paging::start(boot)?;
    let mut free = boot.ram.clone();
    boot.taken.iter().for_each(|range| free.remove(*range));
    add(&free.first_bytes(FIRST_BYTES))?;
    heap::start();
    paging::protect_image(boot)
}

/// Takes the rest of the memory, up to what `memory/target` allows.
///
/// # Errors
/// As for [`start`].
pub(crate) fn take_all(boot: &BootInfo, target_kib: Option<&str>) -> Result<MemorySummary, MapError> {
    // PV is given its frames at boot, and the frame list shows them: there is nothing to populate on demand.
    let target_kib = target_kib.filter(|_| boot.platform == Platform::XenPvh);
    let limit = limit(boot.ram.len_bytes(), target_kib);
    let allowed = boot.ram.first_bytes(limit.bytes);
    let mut free = allowed.clone();
    boot.taken.iter().for_each(|range| free.remove(*range));
    free.first_bytes(FIRST_BYTES).iter().for_each(|range| free.remove(*range));
    add(&free)?;
    add(&boot.reclaimable)?;
    let mut image_left = Ranges::new();
    image_left.add(image());
    boot.reclaimable.iter().for_each(|range| image_left.remove(*range));
    Ok(MemorySummary {
        given_bytes: boot.ram.len_bytes(),
        limit,
        usable_bytes: heap::total_bytes() + pages::free_bytes(),
        image_bytes: image_left.len_bytes(),
    })
}

/// Makes ranges of memory usable.
fn add(ranges: &Ranges) -> Result<(), MapError> {
    for range in ranges.iter() {
        let mut start = range.start;
        while start < range.end {
            let end = ((start / CHUNK_BYTES + 1) * CHUNK_BYTES).min(range.end);
            let chunk = Range::new(start, end);
            paging::map_ram(chunk)?;
            pages::add(chunk);
            start = end;
        }
    }
    Ok(())
}

unsafe extern "C" {
    static drayage_image_start: u8;
    static drayage_text_end: u8;
    static drayage_rodata_end: u8;
    static drayage_image_end: u8;
    static drayage_stack_guard: u8;
}

/// Returns where the image lies.
fn image() -> Range {
    Range::new((&raw const drayage_image_start).addr() as u64, (&raw const drayage_image_end).addr() as u64)
}

/// Returns where the image's code lies.
fn text() -> Range {
    Range::new((&raw const drayage_image_start).addr() as u64, (&raw const drayage_text_end).addr() as u64)
}

/// Returns where the image's constants lie.
fn rodata() -> Range {
    Range::new((&raw const drayage_text_end).addr() as u64, (&raw const drayage_rodata_end).addr() as u64)
}

/// Returns the page below the stack.
fn stack_guard() -> Range {
    let start = (&raw const drayage_stack_guard).addr() as u64;
    Range::new(start, start + PAGE_BYTES)
}
