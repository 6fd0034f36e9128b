//! From Xen's entry point to the kernel's main: one image that is entered as a Xen PV guest, as a Xen PVH
//! guest and by `qemu -kernel`, and three readers that turn what each of them hands over into one
//! [`BootInfo`]. It knows nothing of what the kernel then does with the machine.
//!
//! The entry code itself is compiled with the feature `image`; without it this is a library of plain types
//! that a host test can use. The binary that turns it on links with this crate's `link.ld` and supplies
//! `drayage_main`.
#![cfg_attr(not(test), no_std)]

pub mod bootinfo;
pub mod hypercall;
pub mod ranges;

#[cfg(all(feature = "image", not(test)))]
mod start;

#[cfg(all(test, target_arch = "x86_64"))]
mod memory_test;

pub use bootinfo::{BootInfo, Channel, CommandLine, Platform, PvBoot};
pub use ranges::{Range, Ranges};

/// Bytes of a page on x86.
pub const PAGE_BYTES: u64 = 4096;
