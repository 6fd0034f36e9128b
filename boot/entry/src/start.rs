//! Where the entry code arrives in Rust: reads what the loader left, makes a [`BootInfo`] of it, and calls the
//! kernel's main. It knows of start_info (public/xen.h) and hvm_start_info (public/arch-x86/hvm/start_info.h).

mod pv;
mod pvh;

use core::arch::global_asm;

use crate::{BootInfo, Range};

global_asm!(include_str!("start.s"), options(att_syntax));
global_asm!(include_str!("memory.s"), options(att_syntax));

unsafe extern "Rust" {
    /// The kernel's main, which the binary supplies.
    fn drayage_main(boot: BootInfo) -> !;
}

unsafe extern "C" {
    static drayage_image_start: u8;
    static drayage_image_end: u8;
    static drayage_boot_tables: u8;
}

/// Bytes of the page tables that only the PVH entry uses (start.s).
const BOOT_TABLES_BYTES: u64 = 6 * 4096;

/// Hands over to the kernel.
fn enter(boot: BootInfo) -> ! {
    // SAFETY: the binary defines drayage_main with this signature (this crate's documentation).
    unsafe { drayage_main(boot) }
}

/// Returns where the image lies.
fn image() -> Range {
    Range::new((&raw const drayage_image_start).addr() as u64, (&raw const drayage_image_end).addr() as u64)
}

/// Returns where the page tables lie that only PVH uses.
fn boot_tables() -> Range {
    let start = (&raw const drayage_boot_tables).addr() as u64;
    Range::new(start, start + BOOT_TABLES_BYTES)
}
